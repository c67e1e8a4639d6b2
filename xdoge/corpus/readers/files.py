"""Documents out of files, a block at a time.

Files are read with pyarrow, which is also what `datasets` reads them with; only the text column is parsed, so a
field that appears late or changes its type elsewhere in a row does no harm. Cutting a file into blocks is cheap and
happens in order; turning a block into texts is the work, and may happen in any thread.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.json
import pyarrow.parquet

from xdoge.corpus.readers.csv_rows import csv_rows
from xdoge.corpus.readers.json_values import Pairs, json_values, one_object_a_line
from xdoge.corpus.readers.streams import open_bytes
from xdoge.corpus.spec import PLAIN_CSV, CsvSpec, text_format
from xdoge.errors import XDogeError

BLOCK_BYTES = 1 << 19
"""Text handed on at once: 0.04 s of a SentencePiece model, so 60 blocks in flight are 30 MB."""
BLOCK_ROWS = 256
"""The same for formats that count in rows; web documents have about 3 kB."""
IPC_END = b"\xff\xff\xff\xff\0\0\0\0"
"""The last bytes of an Arrow IPC stream that was written to its end."""

MARKS = re.compile(rb"(?m)^(?:\xef\xbb\xbf)+")
"""Byte order marks, which stand where files were joined to one."""


@dataclass(frozen=True)
class Block:
    """Some rows of one file or data set, not yet turned into texts.

    Attributes:
        where: the file or data set, for messages.
        first: number of the first row (of the first line, in formats of lines), from 1.
        kind: format of `data`: ".jsonl", ".txt", or "" for an Arrow array of texts.
    """

    where: str
    first: int
    kind: str
    data: bytes | pa.Array

    def texts(self, column: str) -> list[str]:
        """Return the documents in order, "" for each that is empty or null.

        Raises:
            XDogeError: a row is damaged or its text is not text; the line names the row.
        """
        if self.kind == ".txt":
            lines = MARKS.sub(b"", self.data).decode("utf-8").split("\n")
            lines = lines if lines[-1] else lines[:-1]
            return [line.removesuffix("\r") for line in lines]
        if self.kind == ".jsonl":
            try:
                data = MARKS.sub(b"", self.data)
                table = pa.json.read_json(
                    pa.BufferReader(data),
                    read_options=pa.json.ReadOptions(use_threads=False, block_size=len(data) + 1),
                    parse_options=pa.json.ParseOptions(
                        explicit_schema=pa.schema([(column, pa.string())]), unexpected_field_behavior="ignore"
                    ),
                )
            except pa.ArrowException:
                # rare: pyarrow refuses what Python's parser takes, or the row is bad and Python's parser says which
                return [text or "" for text in self._texts_of_lines(column)]
            texts = table.column(column)
        else:
            texts = self.data
        try:
            return [_decoded(text) for text in texts.to_pylist()]
        except UnicodeDecodeError:
            for row, value in enumerate(texts):
                try:
                    _decoded(value.as_py())
                except UnicodeDecodeError as error:
                    raise XDogeError(f"{self.where}: row {self.first + row} is not UTF-8 ({error}).") from error
            raise

    def _texts_of_lines(self, column: str) -> Iterator[str | None]:
        for number, line in enumerate(MARKS.sub(b"", self.data).split(b"\n"), start=self.first):
            if not line.strip():
                continue
            try:
                row = json.loads(line, object_pairs_hook=Pairs)
            except (ValueError, RecursionError) as error:
                raise XDogeError(f"{self.where}: line {number} is not JSON ({error}).") from error
            yield _text_of(row, column, where=f"{self.where}: line {number}")


def _text_of(row: object, column: str, *, where: str) -> str | None:
    if not isinstance(row, Pairs):
        raise XDogeError(f"{where} is a JSON {type(row).__name__}, not an object with a {column!r}.")
    if column in row.repeated:
        raise XDogeError(f"{where} has {column!r} twice; one of them is not the document.")
    text = row.get(column)
    if text is not None and not isinstance(text, str):
        raise XDogeError(f"{where}: {column!r} is {str(text)[:40]!r}, which is not text.")
    if text and not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise XDogeError(f"{where}: {column!r} has half a surrogate pair, which is no character.") from error
    return text


def _decoded(text: str | bytes | None) -> str:
    return text.decode("utf-8") if isinstance(text, bytes) else text or ""


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the errors of a damaged file into one line naming it."""
    try:
        yield
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        message = " ".join(str(error).split())
        raise XDogeError(f"{path} cannot be read: {message[:300]}") from error


def file_blocks(path: Path, column: str, csv: CsvSpec = PLAIN_CSV) -> Iterator[Block]:
    """Yield the rows of a file in order, holding one block of it and at most one row that is longer than that.

    Of a Parquet file its reader holds a row group.

    Raises:
        XDogeError: the file is damaged.
    """
    kind, compression = text_format(path)
    with reading(path):
        if kind == ".parquet":
            with open_parquet(path) as parquet:
                yield from array_blocks(str(path), parquet.iter_batches(BLOCK_ROWS, columns=[column]), column)
        elif kind == ".arrow":
            with pa.memory_map(str(path)) as file:
                yield from array_blocks(str(path), arrow_batches(file), column)
        elif kind in (".csv", ".tsv"):
            with open_bytes(path, compression) as stream:
                rows = csv_rows(path, stream, csv)
                names = next(rows, [])  # of an empty file none
                yield from _text_blocks(path, (row[names.index(column)] for row in rows))
        else:
            with open_bytes(path, compression) as stream:
                chunks = chunks_of(stream, BLOCK_BYTES)
                if kind == ".json":
                    head = next(chunks, b"")
                    chunks = itertools.chain([head], chunks)
                    if not one_object_a_line(head):
                        yield from _value_blocks(path, chunks, column)
                        return
                first = 1
                for data in _whole_lines(chunks):
                    yield Block(str(path), first, ".txt" if kind == ".txt" else ".jsonl", data)
                    first += data.count(b"\n")


def open_parquet(path: Path) -> pa.parquet.ParquetFile:
    return pa.parquet.ParquetFile(path, page_checksum_verification=True)


def chunks_of(stream: IO[bytes], n_bytes: int) -> Iterator[bytes]:
    while chunk := stream.read(n_bytes):
        yield chunk


def _whole_lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    parts: list[bytes] = []
    for chunk in chunks:
        end = chunk.rfind(b"\n") + 1
        if end:
            yield b"".join([*parts, chunk[:end]])
            parts = []
        if end < len(chunk):
            parts.append(chunk[end:])
    if parts:
        yield b"".join(parts)


def array_blocks(where: str, batches: Iterator[pa.RecordBatch], column: str) -> Iterator[Block]:
    first = 1
    for batch in batches:
        texts = batch.column(column)
        for start in range(0, len(texts), BLOCK_ROWS):
            piece = texts.slice(start, BLOCK_ROWS)
            yield Block(where, first + start, "", piece)
        first += len(texts)


def arrow_batches(file: pa.NativeFile) -> Iterator[pa.RecordBatch]:
    try:
        reader = pa.ipc.open_stream(file)
    except pa.ArrowInvalid:
        reader = pa.ipc.open_file(file)  # the other of the two IPC formats
        for index in range(reader.num_record_batches):
            yield reader.get_batch(index)
        return
    yield from reader
    file.seek((end := file.tell()) - len(IPC_END))
    if file.read(len(IPC_END)) != IPC_END:
        raise EOFError("its stream has no end marker, so it was cut or its writer was killed")
    if end != file.size():
        raise EOFError(f"{file.size() - end:,} bytes come after the end of its stream; give two streams two files")


def _value_blocks(path: Path, chunks: Iterator[bytes], column: str) -> Iterator[Block]:
    """Yield the objects of a JSON array, or of objects one after the other."""
    values = enumerate(json_values(path, chunks), start=1)
    yield from _text_blocks(path, (_text_of(value, column, where=f"{path}: row {row}") for row, value in values))


def _text_blocks(path: Path, texts: Iterator[str | None]) -> Iterator[Block]:
    first = 1
    while piece := list(itertools.islice(texts, BLOCK_ROWS)):
        yield Block(str(path), first, "", pa.array(piece, type=pa.string()))
        first += len(piece)
