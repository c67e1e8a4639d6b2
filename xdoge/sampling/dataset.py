"""A mixture's sequences as a data set that PyTorch's loaders read.

Item t is the sequence at the sampler's position t, whatever was read before. The data set has no state. A loader that
goes through the positions in order reads the mixture, and a loader that starts at position n resumes it there.
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
"""What `torch.nn.functional.cross_entropy` leaves out, and `transformers` with it."""


ROWS_OF_SOURCE = 8
"""Rows of a source in a batch from which on it is faster to read them together than one by one."""


class SequenceStore(Protocol):
    """What the data set reads tokens from; `xdoge.corpus.TokenStore` is one."""

    @property
    def path(self) -> Path: ...
    def sequence_counts(self, length: int) -> dict[str, int]: ...
    def flat(self, source: str) -> Any: ...
    def document_bounds(self, source: str) -> NDArray[np.int64]: ...
    def check_ids(self, source: str, ids: Any) -> None: ...


class _Item(dict[str, torch.Tensor]):
    """The tensors of a sequence; PyTorch's `default_collate` knows this type by name."""


class _Items(Sequence[Tensors]):
    """The items of a batch, views of its tensors, made when they are asked for."""

    def __init__(self, batch: Tensors) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return len(self.batch["input_ids"])

    def __getitem__(self, number: Any) -> Any:
        return _Item({name: rows[number] for name, rows in self.batch.items()})


def _collate(items: Sequence[Tensors], *, collate_fn_map: Any = None) -> Tensors:
    """Return the batch that items make, no two tensors of which share memory; one that is whole already stays so."""
    if not isinstance(items, _Items):
        return {name: default_collate([item[name] for item in items]) for name in items[0]}
    if get_worker_info() is not None:  # put into memory that processes share
        return {name: default_collate([rows])[0] for name, rows in items.batch.items()}
    input_ids, labels, *_ = items.batch.values()
    return {**items.batch, "labels": labels.clone() if labels is input_ids else labels}


default_collate_fn_map[_Item] = _collate


class MixtureDataset(Dataset[Tensors]):
    """The token sequences of a mixture by position: a map-style data set that maps the store into memory.

    `dataset[t]` is the sequence at the sampler's position t and `dataset[draw]` the one that a `Draw` names, so both
    `DataLoader(dataset)`, in order, and `DataLoader(dataset, sampler=sampler)` read the mixture. A slice, a list or an
    array gives a batch, read source by source and converted once, which `DataLoader(dataset, batch_size=None,
    sampler=BatchSampler(...))` passes on without another copy.

    Each item has `input_ids` (T,) and `labels` (T,), int64, as the causal language models of `transformers` want
    them: one tensor under two names, since the model shifts the labels itself; copy the labels before changing them.
    A batch has (B, T).

    With `documents="separate"` an item also has `position_ids` (T,) that begin at 0 with the sequence and again with
    each document, and no label (-100) where a document begins, since what came before says nothing about it. From such
    positions `transformers` keeps documents apart by itself under the sdpa, eager and flex attentions, if it gets
    neither an attention mask nor a cache. `Trainer` sees to that; your own loop sets `model.config.use_cache = False`.
    Under flash attention it does so only if the batch is one row: flatten each tensor to (1, B * T). Other models take
    `document_mask`.

    Args:
        store: where the tokens are.
        sampler: which sequence comes at which position; this rank's view of it gives this rank's items.
        sequence_length: T, the one that the sampler's lengths were counted with.
        documents: "ignore" lets sequences run across documents; "separate" tells where documents begin.

    Raises:
        XDogeError: the sampler was made for another store or another sequence length.
    """

    def __init__(
        self, store: SequenceStore, sampler: MixtureSampler, sequence_length: int, *, documents: Documents = "ignore"
    ) -> None:
        if sequence_length < 2:
            raise XDogeError(f"sequence_length is {sequence_length}; it takes 2 tokens to predict one.")
        if documents not in get_args(Documents):
            raise XDogeError(f"documents is {documents!r}; it is one of {', '.join(get_args(Documents))}.")
        if sequence_length != sampler.sequence_length:
            raise XDogeError(
                f"sequence_length is {sequence_length:,}, and the sampler was made for sequences of "
                f"{sampler.sequence_length:,} tokens; use one for both."
            )
        available = store.sequence_counts(sequence_length)
        if missing := [source for source in sampler.sources if source not in available]:
            raise XDogeError(
                f"the sampler draws from {', '.join(missing)}, which {store.path} lacks; it has {', '.join(available)}."
            )
        for source, length in sampler.lengths.items():
            if length != available[source]:
                raise XDogeError(
                    f"the sampler takes {source} to have {length:,} sequences, and in {store.path} it has "
                    f"{available[source]:,}; make the sampler with lengths=store.sequence_counts({sequence_length})."
                )
        self.store = store
        self.sampler = sampler
        self.sequence_length = sequence_length
        self.documents = documents

    def __len__(self) -> int:
        """Return how many items this rank has."""
        return len(self.sampler)

    def __getitem__(self, where: Where) -> Tensors:
        """Return the sequence at a position or of a `Draw`, or the batch of several.

        Raises:
            IndexError: the plan has no such position.
            XDogeError: the store has no such sequence.
        """
        if isinstance(where, (int, np.integer, Draw)):
            return {name: rows[0] for name, rows in self._read(self._draws([where])).items()}
        return self._read(self._draws(where))

    def __getitems__(self, where: Sequence[int] | Sequence[Draw]) -> Sequence[Tensors]:
        """Return several items, read together; PyTorch's loaders call this for each batch."""
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
        """Return the tokens of draws as the store has them, (n, T)."""
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
                own = draws.index[order[begin:end]]  # within bounds, so that "clip" only spares a copy
                np.take(whole, own, axis=0, out=sorted_rows[begin:end], mode="clip")
        back = np.empty_like(order)
        back[order] = np.arange(size)
        return np.take(sorted_rows, back, axis=0)

    def _document_places(self, draws: Draws) -> NDArray[np.int64]:
        """Return where documents begin inside the rows of a batch, as places among its B * T tokens."""
        places = [np.empty(0, dtype=np.int64)]
        for number in np.unique(draws.source).tolist():
            rows = np.flatnonzero(draws.source == number)
            bounds = self.store.document_bounds(draws.sources[number])
            row, column = _document_begins(bounds, draws.index[rows] * self.sequence_length, self.sequence_length)
            places.append(rows[row] * self.sequence_length + column)
        return np.concatenate(places)


def document_mask(position_ids: torch.Tensor) -> torch.Tensor:
    """Return which earlier tokens each token may attend to, those of its own document: bool, (B, 1, T, T).

    For `torch.nn.functional.scaled_dot_product_attention` and models built on it. Make it where it is used: as long as
    the batch, it is T times as large.

    Args:
        position_ids: (B, T) of a `MixtureDataset` with documents="separate".
    """
    document = (position_ids == 0).cumsum(-1)
    same = document[:, :, None] == document[:, None, :]  # (B, T, T)
    return same.tril()[:, None]


def _document_begins(
    bounds: NDArray[np.int64], begin: NDArray[np.int64], length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return row and column of each document that begins within the sequences [begin, begin + length), not at 0."""
    first = np.searchsorted(bounds, begin, side="right")
    counts = np.searchsorted(bounds, begin + length, side="left") - first
    row = np.repeat(np.arange(len(begin)), counts)
    nth = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)  # 0, 1, ... within each row
    return row, bounds[first[row] + nth] - begin[row]
