"""Read documents from files, one block at a time.

Files are read with pyarrow, which `datasets` uses too. Only the text column is parsed, so other fields may appear late
or change their type. Dividing a file into blocks is cheap and happens in order. Blocks are parsed in other threads.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import zlib
from collections.abc import Iterator
from typing import IO

import pyarrow as pa
import pyarrow.parquet

from xdoge.corpus.paths import ARCHIVES, text_format
from xdoge.corpus.readers.archives import DAMAGE, has_samples, samples, unpacked
from xdoge.corpus.readers.blocks import Block
from xdoge.corpus.readers.columns import (
    Columns,
    join_parts,
    names_of,
    paths_of,
    select,
    text_of,
)
from xdoge.corpus.readers.csv_rows import csv_rows
from xdoge.corpus.readers.json_values import json_values, one_object_a_line
from xdoge.corpus.readers.streams import open_bytes
from xdoge.corpus.remote import Readable, local
from xdoge.corpus.spec import PLAIN_CSV, CsvSpec, DocumentOf
from xdoge.errors import XDogeError

BLOCK_BYTES = 1 << 19
"""Bytes of text per block. SentencePiece encodes this in 0.04 s, and 60 blocks in flight need 30 MB."""
BLOCK_ROWS = 256
"""Rows per block, for formats without lines. A web document has about 3 kB."""
IPC_END = b"\xff\xff\xff\xff\0\0\0\0"
"""The last bytes of a complete Arrow IPC stream."""

_BLANK_LINE = re.compile(rb"(?m)^[ \t\r]*\n")


@contextlib.contextmanager
def reading(path: Readable) -> Iterator[None]:
    """Turn exceptions about a damaged file into an XDogeError that names it."""
    try:
        yield
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError, zlib.error, *DAMAGE) as error:
        message = " ".join(str(error).split())
        raise XDogeError(f"{path} cannot be read: {message[:300]}") from error


def file_blocks(
    path: Readable, columns: Columns, csv: CsvSpec = PLAIN_CSV, document: DocumentOf = "line"
) -> Iterator[Block]:
    """Yield the rows of a file in order, as blocks.

    Memory holds one block, and longer rows if there are any. For a Parquet file it holds a row group.

    Args:
        path: file to read.
        columns: columns of the text.
        csv: dialect of CSV files.
        document: unit of a .txt file that is a document.

    Raises:
        XDogeError: the file is damaged.
    """
    kind, compression = text_format(path)
    with reading(path):
        if kind in ARCHIVES and has_samples(columns):
            rows = enumerate(samples(path, kind, compression), start=1)
            yield from _text_blocks(path, (text_of(row, columns, where=f"{path}: sample {n}") for n, row in rows))
        elif kind in ARCHIVES:
            for file in unpacked(path, kind, compression):
                yield from file_blocks(file, columns, csv, document)
        elif kind == ".parquet":
            with open_parquet(path) as parquet:
                paths = paths_of(parquet.schema_arrow, columns)
                yield from array_blocks(str(path), parquet.iter_batches(BLOCK_ROWS, columns=paths), columns)
        elif kind == ".arrow":
            with pa.memory_map(str(local(path))) as mapped:
                yield from array_blocks(str(path), arrow_batches(mapped), columns)
        elif kind in (".csv", ".tsv"):
            with open_bytes(path, compression) as stream:
                lines = csv_rows(path, stream, csv)
                if names := next(lines, None):  # None for an empty file
                    yield from _text_blocks(path, _cells(lines, names, columns))
        else:
            with open_bytes(path, compression) as stream:
                chunks = chunks_of(stream, BLOCK_BYTES)
                if kind == ".json":
                    head = next(chunks, b"")
                    chunks = itertools.chain([head], chunks)
                    if not one_object_a_line(head):
                        yield from _value_blocks(path, chunks, columns)
                        return
                if kind == ".txt":
                    chunks = _line_feeds(chunks)
                first, kind = 1, document if kind == ".txt" else ".jsonl"
                for data in {"file": _whole, "blank-line": _whole_paragraphs}.get(kind, _whole_lines)(chunks):
                    yield Block(str(path), first, kind, data)
                    first += data.count(b"\n")


def open_parquet(path: Readable) -> pa.parquet.ParquetFile:
    return pa.parquet.ParquetFile(local(path), page_checksum_verification=True)


def chunks_of(stream: IO[bytes], n_bytes: int) -> Iterator[bytes]:
    while chunk := stream.read(n_bytes):
        yield chunk


def _line_feeds(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Replace the line ends of a text whose lines end with a carriage return only, as old Macs and some tools write."""
    bare, held = None, b""  # unknown until the first line end
    for chunk in chunks:
        chunk, held = held + chunk, b""
        if bare is None and (b"\n" in chunk or b"\r" in chunk[:-1]):
            bare = b"\n" not in chunk
        if bare is None and chunk.endswith(b"\r"):  # the next chunk may begin with a line feed
            chunk, held = chunk[:-1], b"\r"
        yield chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if bare else chunk
    if held:
        yield held


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


def _whole(chunks: Iterator[bytes]) -> Iterator[bytes]:
    yield b"".join(chunks)


def _whole_paragraphs(chunks: Iterator[bytes]) -> Iterator[bytes]:
    parts: list[bytes] = []
    for lines in _whole_lines(chunks):
        end = max((match.end() for match in _BLANK_LINE.finditer(lines)), default=0)
        if end:
            yield b"".join([*parts, lines[:end]])
            parts = []
        parts.append(lines[end:])
    yield b"".join(parts)


def array_blocks(where: str, batches: Iterator[pa.RecordBatch], columns: Columns) -> Iterator[Block]:
    first = 1
    for batch in batches:
        texts = select(batch, columns)
        for start in range(0, len(texts), BLOCK_ROWS):
            piece = texts.slice(start, BLOCK_ROWS)
            yield Block(where, first + start, "", piece)
        first += len(texts)


def arrow_batches(file: pa.NativeFile) -> Iterator[pa.RecordBatch]:
    try:
        reader = pa.ipc.open_stream(file)
    except pa.ArrowInvalid:
        reader = pa.ipc.open_file(file)  # IPC has a stream format and a file format
        for index in range(reader.num_record_batches):
            yield reader.get_batch(index)
        return
    yield from reader
    file.seek((end := file.tell()) - len(IPC_END))
    if file.read(len(IPC_END)) != IPC_END:
        raise EOFError("its stream has no end marker, so it was cut or its writer was killed")
    if end != file.size():
        raise EOFError(
            f"{file.size() - end:,} bytes follow the end of its stream; write each stream to a file of its own"
        )


def _value_blocks(path: Readable, chunks: Iterator[bytes], columns: Columns) -> Iterator[Block]:
    """Yield blocks of the objects in a JSON array, or of consecutive objects."""
    values = enumerate(json_values(path, chunks), start=1)
    yield from _text_blocks(path, (text_of(value, columns, where=f"{path}: row {row}") for row, value in values))


def _cells(rows: Iterator[list[str]], names: list[str], columns: Columns) -> Iterator[str]:
    indices = [names.index(column) for column in names_of(columns)]
    for row in rows:
        if row == names and len(names) > 1:  # repeated header of concatenated files
            yield ""
            continue
        yield row[indices[0]] if len(indices) == 1 else join_parts(row[index] for index in indices)


def _text_blocks(path: Readable, texts: Iterator[str]) -> Iterator[Block]:
    first = 1
    while piece := list(itertools.islice(texts, BLOCK_ROWS)):
        yield Block(str(path), first, "", pa.array(piece, type=pa.string()))
        first += len(piece)
