"""Validation loss of a causal language model, by source and by language, on any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from xdoge.corpus.store import TokenStore
from xdoge.mixtures.shuffle import derive_key, permute


def validation_losses(
    nats: Callable[[torch.Tensor], torch.Tensor],
    store: TokenStore,
    sequence_length: int,
    *,
    most: int,
    rows: int,
    rank: int = 0,
    world_size: int = 1,
    gather: Callable[[torch.Tensor], Any] = lambda sums: sums,
) -> dict[str, float]:
    """Return the validation loss, nats per token, of each source that has a validation sequence.

    A source with more than `most` sequences is measured on as many of them, drawn once and for all. The processes
    share the sequences, and each calls `nats` equally often, as sharded models need.

    Args:
        nats: from (B, T) token ids to (B,), the summed next-token cross-entropy of each sequence: `sequence_nats`.
        store: the tokens.
        sequence_length: T.
        most: sequences per source, at most.
        rows: B, sequences per call of `nats`.
        rank: of this process.
        world_size: number of processes.
        gather: concatenates a tensor of each process, in the order of their ranks.
    """
    chosen: list[tuple[str, int]] = []
    for source, count in store.sequence_counts(sequence_length, split="validation").items():
        if count:
            size = min(count, most)
            chosen += [(source, int(i)) for i in permute(np.arange(size), count, derive_key("validation", source))]
    if not chosen:
        return {}
    calls = -(-len(chosen) // (rows * world_size))
    own = (np.arange(calls * rows) * world_size + rank) % len(chosen)  # some twice at the end; cut off below
    sums = []
    for part in np.split(own, calls):
        picked = [chosen[i] for i in part.tolist()]
        batch = [store.sequence(source, index, sequence_length, split="validation") for source, index in picked]
        sums.append(nats(torch.from_numpy(np.stack(batch).astype(np.int64))))
    everyone: torch.Tensor = gather(torch.cat(sums))  # (world_size * calls * rows,), rank after rank
    by_sequence = everyone.view(world_size, -1).T.reshape(-1)[: len(chosen)].tolist()
    totals: dict[str, list[float]] = {}
    for (source, _), total in zip(chosen, by_sequence, strict=True):
        totals.setdefault(source, []).append(total)
    return {source: sum(found) / (len(found) * (sequence_length - 1)) for source, found in totals.items()}


def sequence_nats(model: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """Return the next-token cross-entropy summed over each sequence of (B, T) token ids: (B,), float64."""
    logits = model(input_ids=rows[:, :-1]).logits.float()  # (B, T - 1, V)
    losses = F.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none")  # (B, T - 1)
    return losses.double().sum(-1)


def by_language(losses: Mapping[str, float], store: TokenStore, sequence_length: int) -> dict[str, float]:
    """Return nats per token of each language's validation text: the mean over its sources, weighted by their length."""
    counts = store.sequence_counts(sequence_length, split="validation")
    result = {}
    for language, sources in store.languages.items():
        measured = [source for source in sources if source in losses]
        if measured:
            total = sum(counts[source] for source in measured)
            result[language] = sum(losses[source] * counts[source] for source in measured) / total
    return result
