"""Compute the validation loss of a causal language model by source and by language, on any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from xdoge.corpus.store import TokenStore
from xdoge.models.loss import document_positions
from xdoge.sampling.permutation import derive_key, permute


def validation_losses(
    nats: Callable[..., torch.Tensor],
    store: TokenStore,
    sequence_length: int,
    *,
    most: int,
    rows: int,
    documents: Literal["ignore", "separate"] = "ignore",
    rank: int = 0,
    world_size: int = 1,
    gather: Callable[[torch.Tensor], Any] = lambda sums: sums,
) -> dict[str, float]:
    """Return the validation loss in nats per token, for each source that has a validation sequence.

    If a source has more than `most` sequences, a fixed random selection is used. The sequences are divided among the
    processes. All of them call `nats` equally often, as sharded models require.

    Args:
        nats: maps (B, T) token ids to the summed next-token cross-entropy of each sequence, (B,), as `sequence_nats`
            does.
        store: token store.
        sequence_length: T, tokens per sequence.
        most: largest number of sequences per source.
        rows: B, sequences per call of `nats`.
        documents: "separate" also passes the (B, T) positions within documents to `nats`, and does not score the first
            token of a document, as in `MixtureDataset`.
        rank: rank of this process.
        world_size: number of processes.
        gather: concatenates a tensor of each process, in the order of ranks.
    """
    chosen: list[tuple[str, int]] = []
    for source, count in store.sequence_counts(sequence_length, split="validation").items():
        if count:
            size = min(count, most)
            chosen += [(source, int(i)) for i in permute(np.arange(size), count, derive_key("validation", source))]
    if not chosen:
        return {}

    def sequence(source: str, index: int) -> NDArray[Any]:
        ids = store.sequence(source, index, sequence_length, "validation")
        store.check_ids(source, ids, "validation")
        return ids

    def positions(source: str, index: int) -> NDArray[np.int64]:
        bounds = store.document_bounds(source, "validation")
        return document_positions(bounds, index * sequence_length, sequence_length)

    calls = -(-len(chosen) // (rows * world_size))
    own = (np.arange(calls * rows) * world_size + rank) % len(chosen)  # repeats some at the end, removed below
    sums = []
    for part in np.split(own, calls):
        picked = [chosen[i] for i in part.tolist()]
        batch = [np.stack([sequence(source, index) for source, index in picked])]
        if documents == "separate":
            batch.append(np.stack([positions(source, index) for source, index in picked]))
        sums.append(nats(*(torch.from_numpy(array.astype(np.int64)) for array in batch)))
    gathered: torch.Tensor = gather(torch.cat(sums))  # (world_size * calls * rows,), rank after rank
    by_sequence = gathered.view(world_size, -1).T.reshape(-1)[: len(chosen)].tolist()
    totals: dict[str, tuple[float, int]] = {}
    for (source, index), total in zip(chosen, by_sequence, strict=True):
        scored = sequence_length - 1 if documents == "ignore" else int(np.count_nonzero(positions(source, index)[1:]))
        sum_so_far, predictions = totals.get(source, (0.0, 0))
        totals[source] = sum_so_far + total, predictions + scored
    return {source: total / scored for source, (total, scored) in totals.items() if scored}


def by_language(losses: Mapping[str, float], store: TokenStore, sequence_length: int) -> dict[str, float]:
    """Return the loss of each language in nats per token: the mean over its sources, weighted by their length."""
    counts = store.sequence_counts(sequence_length, split="validation")
    result = {}
    for language, sources in store.languages.items():
        measured = [source for source in sources if source in losses]
        if measured:
            total = sum(counts[source] for source in measured)
            result[language] = sum(losses[source] * counts[source] for source in measured) / total
    return result
