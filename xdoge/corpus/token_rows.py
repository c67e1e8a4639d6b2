"""Read rows of token ids that `datasets` or MosaicML's streaming wrote, as documents of a source.

The end-of-document token ends a document anywhere in a row. A row can be one document or several. If all rows have the
same length, they can also be pieces of a packed stream. If no row has the token, each row is a document, and the token
is appended. Rows are copied into the store, because documents are not contiguous in such files.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from xdoge.corpus.encoding import Encoded
from xdoge.corpus.mosaic import read_shard
from xdoge.corpus.readers.blocks import TokenBlock
from xdoge.corpus.readers.columns import NAMES_SHOWN
from xdoge.corpus.readers.files import BLOCK_ROWS, arrow_batches, open_parquet, reading
from xdoge.corpus.readers.inputs import Input, hashed
from xdoge.corpus.token_paths import is_side
from xdoge.corpus.tokenizer import Tokenizer
from xdoge.errors import XDogeError

COLUMN = "input_ids"
MASK = "attention_mask"

Kind = Literal["ended", "open", "packed"]
"""All rows end with the end-of-document token, no row has it, or rows are pieces of a packed stream."""
Rows = tuple[npt.NDArray[Any], npt.NDArray[np.int64]]
"""Concatenated ids of some rows, (tokens,), and the length of each row, (rows,)."""


@dataclass
class Tally:
    """Statistics of the rows of one file, from which their kind is told.

    Attributes:
        rows: number of rows, not counting empty ones.
        ended: rows whose last token is the end-of-document token.
        inside: end-of-document tokens at other positions of a row.
        lengths: different lengths of all rows except the last one. A few are enough, so not all are kept.
        last: length of the last row.
        unended: number of the first row that does not end with the end-of-document token, from 1. 0 if there is none.
    """

    rows: int = 0
    ended: int = 0
    inside: int = 0
    lengths: set[int] = field(default_factory=set)
    last: int = 0
    unended: int = 0

    def add(self, rows: Rows, end: int) -> None:
        """Add the statistics of more rows. `end` is the end-of-document token."""
        ids, lengths = rows[0], rows[1][rows[1] > 0]
        if not len(lengths):
            return
        ends = np.cumsum(lengths)
        ended = ids[ends - 1] == end
        if not self.unended and not ended.all():
            self.unended = self.rows + int(np.flatnonzero(~ended)[0]) + 1
        if len(self.lengths) < 3:
            self.lengths |= {self.last, *np.unique(lengths[:-1])[:3].tolist()} - {0}
        self.rows, self.last = self.rows + len(lengths), int(lengths[-1])
        self.ended += int(ended.sum())
        self.inside += int((ids == end).sum()) - int(ended.sum())


def scan_rows(file: Path, tokenizer: Tokenizer, *, column: str | None, name: str) -> tuple[Input, Tally]:
    """Return the hash of a file and statistics of its rows, after checking that the ids fit the tokenizer.

    Raises:
        XDogeError: the file is damaged, has no such column of ids, has padded rows, or an id is outside the vocabulary.
    """
    with reading(file):
        entry, tally = hashed(file, name=name), Tally()
        if is_side(file):
            return entry, tally
        for rows in read_rows(file, column):
            if len(rows[0]):
                refuse_foreign(rows[0], tokenizer, where=str(file))
            tally.add(rows, tokenizer.end_of_document)
    return Input(name, tally.rows, entry.n_bytes, entry.mtime_ns, entry.sha256), tally


def refuse_foreign(ids: npt.NDArray[Any], tokenizer: Tokenizer, *, where: str) -> None:
    """Raise an error if ids are outside the tokenizer's vocabulary.

    Raises:
        XDogeError: an id is outside the vocabulary.
    """
    for token in (int(ids.min()), int(ids.max())):
        if not 0 <= token < tokenizer.vocab_size:
            raise XDogeError(
                f"{where} holds the token id {token:,}, and the ids of the tokenizer are 0 to "
                f"{tokenizer.vocab_size - 1:,}; name the tokenizer that made the data set."
            )


class RowTokens:
    """The rows of one source, and the documents in them.

    Args:
        tallies: statistics of each file.
        tokenizer: tokenizer that made the ids.
        column: column of the ids.

    Attributes:
        kind: kind of all rows of the source.

    Raises:
        XDogeError: some documents end with the end-of-document token and others do not.
    """

    def __init__(self, tallies: Sequence[Tally], tokenizer: Tokenizer, column: str | None) -> None:
        self.kind = _kind_of([tally for tally in tallies if tally.rows], tokenizer.end_of_document)
        self._tokenizer, self._column = tokenizer, column
        self._left_out: dict[Sequence[Path], int] = {}
        self._firsts: set[int] = set()
        self._end_twice = True

    def blocks(self, files: Sequence[Path]) -> Iterator[TokenBlock]:
        """Yield the documents of files in order, each with its end-of-document token.

        A packed stream is divided after each end-of-document token.
        """
        end, rest = self._tokenizer.end_of_document, np.empty(0, np.int64)
        for file in (file for file in files if not is_side(file)):
            with reading(file):
                for ids, lengths in read_rows(file, self._column):
                    stream = np.concatenate([rest, ids.astype(np.int64)])
                    row_ends = np.cumsum(lengths[lengths > 0])
                    if self.kind == "open":
                        stream, row_ends = np.insert(stream, row_ends, end), row_ends + np.arange(len(row_ends)) + 1
                    bounds = ends_of(stream, end, [] if self.kind == "packed" else row_ends)
                    done = int(bounds[-1]) if len(bounds) else 0
                    rest = stream[done:]
                    empty = 0 if self.kind == "packed" else int((lengths == 0).sum())
                    yield TokenBlock(str(file), stream[:done], np.diff(bounds, prepend=0), len(bounds) + empty)
        self._left_out[tuple(files)] = len(rest)

    def look_at(self, encoded: Encoded) -> None:
        """Record the tokens with which documents begin and end, for `habits`."""
        if not len(encoded.lengths):
            return
        ends = np.cumsum(encoded.lengths)
        if len(self._firsts) < 2:
            self._firsts |= set(np.unique(encoded.tokens[ends - encoded.lengths])[:2].tolist())
        self._end_twice &= bool((encoded.tokens[ends - 2] == self._tokenizer.end_of_document).all())

    def habits(self) -> dict[str, Any]:
        """Return what store.json records about the first and last tokens of documents."""
        first = self._firsts.pop() if len(self._firsts) == 1 else None
        special = first is not None and self._tokenizer.decode([[first]]) == [""]
        left_out = sum(self._left_out.values())
        return {"begin": first if special else None, "end_twice": self._end_twice, "left_out": left_out}

    def notes(self) -> list[str]:
        """Return notes about the rows for the user."""
        notes = []
        if self.kind == "open":
            notes.append("no row ends with the end-of-document token; prepare added it to every row.")
        if self.kind == "packed":
            notes.append("its rows are read as one stream, in which each document ends with an end-of-document token.")
        return notes


def _kind_of(tallies: Sequence[Tally], end: int) -> Kind:
    rows, ended, inside = (sum(getattr(tally, key) for tally in tallies) for key in ("rows", "ended", "inside"))
    if ended == rows:
        return "ended"
    if ended + inside == 0:
        return "open"
    lengths = set[int]().union(*(tally.lengths for tally in tallies))
    if inside and len(lengths) <= 1 and all(tally.last <= max(lengths, default=tally.last) for tally in tallies):
        return "packed"
    row = next(tally.unended for tally in tallies if tally.unended)
    raise XDogeError(
        f"{ended:,} of {rows:,} rows end with the end-of-document token, {end}, and row {row:,} does not. "
        "End all rows with it or none, or pack them into rows of one length."
    )


def ends_of(ids: npt.NDArray[Any], end: int, known: npt.ArrayLike = ()) -> npt.NDArray[np.int64]:
    """Return the offsets where documents end, sorted.

    These are the `known` ones, and those after the last of several consecutive end-of-document tokens.
    """
    after = np.flatnonzero(ids == end) + 1
    last = np.diff(after, append=len(ids) + 2) != 1
    return np.union1d(after[last], np.asarray(known, np.int64))


# --- the formats -----------------------------------------------------------------------------------------------------


def read_rows(file: Path, column: str | None) -> Iterator[Rows]:
    """Yield the rows of a file in groups.

    Raises:
        XDogeError: the file has no such column of ids, or its rows are padded.
    """
    if ".mds" in file.suffixes:
        samples = read_shard(file, column)
        while part := list(itertools.islice(samples, BLOCK_ROWS)):
            yield np.concatenate(part), np.fromiter(map(len, part), np.int64, count=len(part))
        return
    column = column or COLUMN
    if file.suffix == ".parquet":
        with open_parquet(file) as parquet:
            names = _columns(parquet.schema_arrow, column, where=str(file))
            yield from _of_batches(parquet.iter_batches(BLOCK_ROWS, columns=names), column, file)
    else:
        with pa.memory_map(str(file)) as stream:
            yield from _of_batches(arrow_batches(stream), column, file)


def _columns(schema: pa.Schema, column: str, *, where: str) -> list[str]:
    if schema.names.count(column) != 1:
        names = ", ".join(schema.names)[:NAMES_SHOWN]
        raise XDogeError(f"{where} has no column {column!r}, or has it twice; it has {names}. Set column: NAME.")
    kind = schema.field(column).type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not pa.types.is_integer(kind.value_type):
        raise XDogeError(f"{where}: the column {column!r} is {str(kind)[:80]}, not a list of token ids.")
    return [name for name in (column, MASK) if name in schema.names]


def _of_batches(batches: Iterator[pa.RecordBatch], column: str, file: Path) -> Iterator[Rows]:
    done = 0
    for batch in batches:
        names = _columns(batch.schema, column, where=str(file))
        for start in range(0, batch.num_rows, BLOCK_ROWS):
            part = batch.slice(start, BLOCK_ROWS)
            array = part.column(column)
            ids = array.flatten()
            if ids.null_count:
                raise XDogeError(f"{file}: the column {column!r} has null among its token ids.")
            lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False).astype(np.int64)
            if MASK in names:
                _refuse_padding(part.column(MASK), file, done + start + 1)
            yield ids.to_numpy(zero_copy_only=False), lengths
        done += batch.num_rows


def _refuse_padding(masks: pa.Array, file: Path, first: int) -> None:
    if pc.min(masks.flatten()).as_py() == 0:
        row = next(row for row, mask in enumerate(masks.to_pylist(), start=first) if mask and min(mask) == 0)
        raise XDogeError(f"{file}: row {row:,} is padded, as its {MASK} says. Tokenise without padding.")
