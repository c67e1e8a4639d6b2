"""A PyTorch data set of the sequences of a mixture.

Item t is the sequence at the sampler's position t, regardless of what was read before. The data set has no state. A
loader that reads the positions in order reads the mixture. A loader that starts at position n resumes it there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, default_collate, get_worker_info
from torch.utils.data._utils.collate import default_collate_fn_map

from xdoge.errors import XDogeError
from xdoge.sampling.sampler import Draw, Draws, MixtureSampler

Documents = Literal["ignore", "separate"]
Tensors = dict[str, torch.Tensor]
Where: TypeAlias = "int | Draw | slice | Sequence[int] | Sequence[Draw] | NDArray[np.integer[Any]]"

NO_LABEL = -100
"""Label that `torch.nn.functional.cross_entropy` ignores (`ignore_index`). `transformers` relies on it too."""


ROWS_OF_SOURCE = 8
"""From this many rows per source in a batch, reading them together is faster than one by one."""


class SequenceStore(Protocol):
    """Interface of the store that the data set reads tokens from, for example `xdoge.corpus.TokenStore`."""

    @property
    def path(self) -> Path: ...
    def sequence_counts(self, length: int) -> dict[str, int]: ...
    def flat(self, source: str) -> Any: ...
    def document_bounds(self, source: str) -> NDArray[np.int64]: ...
    def check_ids(self, source: str, ids: Any) -> None: ...


class _Item(dict[str, torch.Tensor]):
    """The tensors of a sequence, as a type of its own, so that `default_collate` calls `_collate` for it."""


class _Items(Sequence[Tensors]):
    """The items of a batch. Each is a view of the batch's tensors, created on access."""

    def __init__(self, batch: Tensors) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return len(self.batch["input_ids"])

    def __getitem__(self, number: Any) -> Any:
        return _Item({name: rows[number] for name, rows in self.batch.items()})


def _collate(items: Sequence[Tensors], *, collate_fn_map: Any = None) -> Tensors:
    """Return a batch of items, as tensors that do not share memory. Items that form a whole batch are not copied."""
    if not isinstance(items, _Items):
        return {name: default_collate([item[name] for item in items]) for name in items[0]}
    if get_worker_info() is not None:  # in a worker, `default_collate` puts tensors into shared memory
        return {name: default_collate([rows])[0] for name, rows in items.batch.items()}
    input_ids, labels, *_ = items.batch.values()
    return {**items.batch, "labels": labels.clone() if labels is input_ids else labels}


default_collate_fn_map[_Item] = _collate


class MixtureDataset(Dataset[Tensors]):
    """A map-style data set of the token sequences of a mixture. It reads the store through a memory map.

    `dataset[t]` is the sequence at the sampler's position t. `dataset[draw]` is the sequence that a `Draw` names. Both
    `DataLoader(dataset)`, in order, and `DataLoader(dataset, sampler=sampler)` therefore read the mixture. A slice, a
    list or an array gives a batch, which is read source by source and converted once. `DataLoader(dataset,
    batch_size=None, sampler=BatchSampler(...))` passes such a batch on without another copy.

    Each item has `input_ids` (T,) and `labels` (T,), int64; in a batch they are (B, T). Causal language models of
    `transformers` shift the labels themselves. Therefore `labels` is the same tensor as `input_ids`: copy it before you
    change it.

    With `documents="separate"`, an item also has `position_ids` (T,), which start from 0 in each sequence and at each
    document. The first token of a document has no label (-100), because the text before it belongs to another document.

    From these positions, `transformers` keeps documents apart with sdpa, eager and flex attention, provided that it
    gets neither an attention mask nor a cache. `Trainer` ensures this. In a loop of your own, set
    `model.config.use_cache = False`. With flash attention the batch must also be a single row: flatten each tensor to
    (1, B * T). For other models use `document_mask`.

    Args:
        store: token store to read from.
        sampler: order of the sequences. With the view of one rank (`MixtureSampler.shard`), the items are that rank's.
        sequence_length: T, the same with which the sampler's `lengths` were counted.
        documents: "ignore" lets sequences cross document boundaries unmarked. "separate" marks where documents begin.

    Raises:
        XDogeError: the sampler was made for another store or another sequence length, or `documents` is unknown.
    """

    def __init__(
        self, store: SequenceStore, sampler: MixtureSampler, sequence_length: int, *, documents: Documents = "ignore"
    ) -> None:
        if sequence_length < 2:
            raise XDogeError(f"sequence_length is {sequence_length}; it takes 2 tokens to predict one.")
        if documents not in get_args(Documents):
            raise XDogeError(f"documents is {documents!r}; it must be one of {', '.join(get_args(Documents))}.")
        if sequence_length != sampler.sequence_length:
            raise XDogeError(
                f"sequence_length is {sequence_length:,}, but the sampler was made for sequences of "
                f"{sampler.sequence_length:,} tokens; use the same for both."
            )
        available = store.sequence_counts(sequence_length)
        if missing := [source for source in sampler.sources if source not in available]:
            raise XDogeError(
                f"the sampler draws from {', '.join(missing)}, which {store.path} lacks; it has {', '.join(available)}."
            )
        for source, length in sampler.lengths.items():
            if length != available[source]:
                raise XDogeError(
                    f"the sampler expects {source} to have {length:,} sequences, but in {store.path} it "
                    f"has {available[source]:,}; make the sampler with "
                    f"lengths=store.sequence_counts({sequence_length})."
                )
        self.store = store
        self.sampler = sampler
        self.sequence_length = sequence_length
        self.documents = documents

    def __len__(self) -> int:
        """Return the number of items of this rank."""
        return len(self.sampler)

    def __getitem__(self, where: Where) -> Tensors:
        """Return one sequence for a position or a `Draw`, or a batch for several of them.

        Raises:
            IndexError: the position is beyond the plan.
            XDogeError: the store does not have the sequence that a `Draw` names.
        """
        if isinstance(where, (int, np.integer, Draw)):
            return {name: rows[0] for name, rows in self._read(self._draws([where])).items()}
        return self._read(self._draws(where))

    def __getitems__(self, where: Sequence[int] | Sequence[Draw]) -> Sequence[Tensors]:
        """Return several items, read together. PyTorch's `DataLoader` calls this for each batch."""
        return _Items(self._read(self._draws(where)))

    def _draws(self, where: Any) -> Draws:
        if isinstance(where, slice):
            return self.sampler[where]
        if not (len(where) and isinstance(where[0], Draw)):
            return self.sampler[np.asarray(where, dtype=np.int64)]
        numbers = {source: number for number, source in enumerate(self.sampler.sources)}
        try:
            source = np.array([numbers[draw.source] for draw in where])
        except KeyError as error:
            raise XDogeError(f"the sampler has no source {error}; it has {', '.join(numbers)}.") from None
        for draw in where:
            if not 0 <= draw.index < self.sampler.lengths[draw.source]:
                raise XDogeError(
                    f"{draw.source} has {self.sampler.lengths[draw.source]:,} sequences of {self.sequence_length:,} "
                    f"tokens, so there is no index {draw.index:,}."
                )
        epoch, index = (np.array([draw[field] for draw in where], dtype=np.int64) for field in (1, 2))
        return Draws(self.sampler.sources, source, epoch, index)

    def _read(self, draws: Draws) -> Tensors:
        length, size = self.sequence_length, len(draws.index)
        tokens = self._rows(draws).astype(np.int64)
        input_ids = torch.from_numpy(tokens)
        if self.documents == "ignore":
            return {"input_ids": input_ids, "labels": input_ids}
        places = self._document_places(draws)
        labels = tokens.copy()
        labels.reshape(-1)[places] = NO_LABEL
        starts = np.sort(np.concatenate([np.arange(size) * length, places]))
        positions = np.arange(size * length) - np.repeat(starts, np.diff(starts, append=size * length))
        return {
            "input_ids": input_ids,
            "labels": torch.from_numpy(labels),
            "position_ids": torch.from_numpy(positions.reshape(size, length)),
        }

    def _rows(self, draws: Draws) -> NDArray[Any]:
        """Return the tokens of the draws in the store's integer type, (n, T)."""
        length, size = self.sequence_length, len(draws.index)
        flat = [self.store.flat(source) for source in draws.sources]
        if size < ROWS_OF_SOURCE * len(flat) or not all(isinstance(tokens, np.ndarray) for tokens in flat):
            begins = draws.index * length
            rows = [flat[s][b : b + length] for s, b in zip(draws.source.tolist(), begins.tolist(), strict=True)]
            return np.concatenate([*rows, flat[0][:0]]).reshape(size, length)
        order, end = np.argsort(draws.source, kind="stable"), 0
        sorted_rows = np.empty((size, length), dtype=np.result_type(*flat))
        for tokens, count in zip(flat, np.bincount(draws.source, minlength=len(flat)).tolist(), strict=True):
            begin, end = end, end + count
            if count:
                whole = tokens[: len(tokens) // length * length].reshape(-1, length)
                own = draws.index[order[begin:end]]  # all within bounds: mode="clip" only avoids a copy
                np.take(whole, own, axis=0, out=sorted_rows[begin:end], mode="clip")
        back = np.empty_like(order)
        back[order] = np.arange(size)
        return np.take(sorted_rows, back, axis=0)

    def _document_places(self, draws: Draws) -> NDArray[np.int64]:
        """Return the offsets in the flattened batch (B * T tokens) at which documents begin inside rows."""
        places = [np.empty(0, dtype=np.int64)]
        for number in np.unique(draws.source).tolist():
            rows = np.flatnonzero(draws.source == number)
            bounds = self.store.document_bounds(draws.sources[number])
            row, column = _document_begins(bounds, draws.index[rows] * self.sequence_length, self.sequence_length)
            places.append(rows[row] * self.sequence_length + column)
        return np.concatenate(places)


def document_mask(position_ids: torch.Tensor) -> torch.Tensor:
    """Return an attention mask that lets each token attend to earlier tokens of its own document: bool, (B, 1, T, T).

    It is for `torch.nn.functional.scaled_dot_product_attention` and models built on it. The mask has T times as many
    elements as the batch, so compute it on the device that uses it.

    Args:
        position_ids: (B, T), from a `MixtureDataset` with documents="separate".
    """
    document = (position_ids == 0).cumsum(-1)
    same = document[:, :, None] == document[:, None, :]  # (B, T, T)
    return same.tril()[:, None]


def _document_begins(
    bounds: NDArray[np.int64], begin: NDArray[np.int64], length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the row and column of each document that begins inside a sequence, not at its first token.

    Args:
        bounds: ascending offsets of documents in the source.
        begin: (n,) offset of each sequence in the source.
        length: T, tokens of a sequence.
    """
    first = np.searchsorted(bounds, begin, side="right")
    counts = np.searchsorted(bounds, begin + length, side="left") - first
    row = np.repeat(np.arange(len(begin)), counts)
    nth = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)  # 0, 1, ... within each row
    return row, bounds[first[row] + nth] - begin[row]
