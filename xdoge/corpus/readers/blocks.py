"""Blocks: groups of rows of a file, and the documents in them.

Dividing a file into blocks is cheap and happens in order. Most of the time goes into parsing the text of a block, which
can run in any thread.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.json

from xdoge.corpus.readers.columns import Columns, Pairs, names_of, select, text_of, texts_of
from xdoge.errors import XDogeError

_MARKS = re.compile(rb"(?m)^(?:\xef\xbb\xbf)+")

BLANK_LINES = re.compile(r"(?m)^(?:[ \t\r]*\n)+")


def unmarked(data: bytes) -> bytes:
    """Return lines without byte order marks. Marks inside a file remain where several files were concatenated."""
    return _MARKS.sub(b"", data) if codecs.BOM_UTF8 in data else data


@dataclass(frozen=True)
class Block:
    """Some rows of one file or data set, not parsed yet.

    Attributes:
        where: file or data set, for messages.
        first: number of the first row (in line-based formats, of the first line), from 1.
        kind: format of `data`. It is ".jsonl", a `DocumentOf` for .txt files, or "" for an Arrow array that
            `columns.select` returned.
        data: bytes of the rows, or an Arrow array.
    """

    where: str
    first: int
    kind: str
    data: bytes | pa.Array

    def n_bytes(self) -> int:
        """Return the size of the data in bytes."""
        return len(self.data) if isinstance(self.data, bytes) else int(self.data.nbytes)

    def texts(self, columns: Columns) -> list[str]:
        """Return the documents in order, "" for empty rows and null.

        Raises:
            XDogeError: a row is damaged, or its value is not text. The message names the row.
        """
        if self.kind in ("line", "blank-line", "file"):
            text = unmarked(self.data).decode("utf-8").replace("\r\n", "\n")
            if self.kind == "file":
                return [text]
            if self.kind == "blank-line":
                return [part.removesuffix("\n") for part in BLANK_LINES.split(text) if part.strip()]
            return text.removesuffix("\n").split("\n")
        array: Any = _parsed(unmarked(self.data), columns) if self.kind == ".jsonl" else self.data
        if array is None:
            return list(self._texts_of_lines(columns))
        try:
            return list(texts_of(array))
        except UnicodeDecodeError:
            for row in range(len(array)):
                try:
                    list(texts_of(array.slice(row, 1)))
                except UnicodeDecodeError as error:
                    raise XDogeError(f"{self.where}: row {self.first + row} is not UTF-8 ({error}).") from error
            raise

    def _texts_of_lines(self, columns: Columns) -> Iterator[str]:
        for number, line in enumerate(unmarked(self.data).split(b"\n"), start=self.first):
            if not line.strip():
                continue
            try:
                row = json.loads(line, object_pairs_hook=Pairs)
            except (ValueError, RecursionError) as error:
                raise XDogeError(f"{self.where}: line {number} is not JSON ({error}).") from error
            yield text_of(row, columns, where=f"{self.where}: line {number}")


@dataclass(frozen=True)
class TokenBlock:
    """D documents that are tokens already.

    Attributes:
        where: file, for messages.
        tokens: (tokens,) concatenated documents, each with its end-of-document token.
        lengths: (D,) tokens of each document.
        rows: number of rows, including empty ones.
    """

    where: str
    tokens: npt.NDArray[Any]
    lengths: npt.NDArray[np.int64]
    rows: int

    def documents(self) -> list[npt.NDArray[Any]]:
        """Return the documents in order. Those with only an end-of-document token are left out."""
        documents = np.split(self.tokens, np.cumsum(self.lengths)[:-1]) if len(self.lengths) else []
        return [document for document in documents if len(document) > 1]


def document_texts(blocks: Sequence[Block], columns: Columns) -> list[str]:
    """Return the documents of several blocks in order.

    JSON lines of all blocks are parsed together, since a call of the parser costs 0.1 ms.

    Raises:
        XDogeError: as for `Block.texts`.
    """
    if len(blocks) > 1 and all(block.kind == ".jsonl" for block in blocks):
        data = unmarked(b"\n".join(block.data for block in blocks))
        array = _parsed(data, columns)
        if array is not None and len(array) == sum(1 for line in data.split(b"\n") if line.strip()):
            return list(texts_of(array))
        # Otherwise parse each block by itself: a row is bad, and the message must name it, or spans two files.
    return [text for block in blocks for text in block.texts(columns)]


def _parsed(data: bytes, columns: Columns) -> pa.Array | None:
    """Return the columns of JSON lines, or None if Python's parser must read them.

    This is rare. Either pyarrow rejects what Python accepts, or a name is ambiguous, or a row is bad and Python's
    parser will tell which one.
    """
    lists: Collection[str] = ()
    for _ in range(2):
        if (schema := _schema(data, columns, lists)) is None:
            return None
        try:
            table = pa.json.read_json(
                pa.BufferReader(data),
                read_options=pa.json.ReadOptions(use_threads=False, block_size=len(data) + 1),
                parse_options=pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
            )
        except pa.ArrowException:
            if lists or not (lists := _lists(data, columns)):
                return None
        else:
            return select(table, columns)
    return None


def _lists(data: bytes, columns: Columns) -> list[str]:
    """Return the columns whose values are lists in the first row."""
    try:
        row = json.loads(data.lstrip().split(b"\n", 1)[0])
    except (ValueError, RecursionError):
        return []
    lists = []
    for name in names_of(columns):
        value = row
        for key in _path(data, name) or ():
            value = value.get(key) if isinstance(value, dict) else None
        lists += [name] * isinstance(value, list)
    return lists


def _schema(data: bytes, columns: Columns, lists: Collection[str]) -> pa.Schema | None:
    """Return the schema of the parts of a row that have the columns, None if a name is ambiguous."""
    tree: dict[str, Any] = {}
    for name in names_of(columns):
        path = _path(data, name)
        inner: Any = tree
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
            if not isinstance(inner, dict):
                return None
        if not path or path[-1] in inner:
            return None
        inner[path[-1]] = pa.list_(pa.string()) if name in lists else pa.string()
    return pa.schema(_fields(tree))


def _fields(tree: dict[str, Any]) -> list[pa.Field]:
    return [pa.field(key, pa.struct(_fields(kind)) if isinstance(kind, dict) else kind) for key, kind in tree.items()]


def _path(data: bytes, name: str) -> tuple[str, ...]:
    """Return the path of keys to a column in JSON lines, () if it may differ between rows."""
    parts = name.split(".")
    dotted = [".".join(parts[i:j]) for i in range(len(parts)) for j in range(i + 2, len(parts) + 1)]
    if not any(_has_key(data, key) for key in dotted):
        return tuple(parts)
    return (name,) if _has_key(data, name) and not _has_key(data, parts[0]) else ()


def _has_key(data: bytes, key: str) -> bool:
    return json.dumps(key, ensure_ascii=False).encode() in data
