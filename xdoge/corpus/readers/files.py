"""Documents out of files, a block at a time.

Files are read with pyarrow, which is also what `datasets` reads them with; only the text column is parsed, so a
field that appears late or changes its type elsewhere in a row does no harm. Cutting a file into blocks is cheap and
happens in order; turning a block into texts is the work, and may happen in any thread.
"""

from __future__ import annotations

import codecs
import contextlib
import itertools
import json
import os
import re
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
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
from xdoge.io import refuse_pointer, sha256_file

BLOCK_BYTES = 1 << 19
"""Text handed on at once: 0.04 s of a SentencePiece model, so 60 blocks in flight are 30 MB."""
SCAN_BYTES = 1 << 14
"""Text that is checked at once. With blocks as above the heap grows with the file, by 155 MB over one of 830 MB."""
BLOCK_ROWS = 256
"""The same for formats that count in rows; web documents have about 3 kB."""
HEAD_LINES = 100
"""Lines of a JSON file that are parsed before the work."""
NAMES_SHOWN = 300
"""Characters of column names in a message: a CSV file without a header has a document for names."""
IPC_END = b"\xff\xff\xff\xff\0\0\0\0"
"""The last bytes of an Arrow IPC stream that was written to its end."""

TEXT_TYPES = (
    *(pa.string(), pa.large_string(), pa.string_view()),
    *(pa.binary(), pa.large_binary(), pa.binary_view()),
)
"""Types of a column of text. Impala and old versions of Spark write UTF-8 as binary."""
_MARKS = re.compile(rb"(?m)^(?:\xef\xbb\xbf)+")
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
            lines = _MARKS.sub(b"", self.data).decode("utf-8").split("\n")
            lines = lines if lines[-1] else lines[:-1]
            return [line.removesuffix("\r") for line in lines]
        if self.kind == ".jsonl":
            try:
                data = _MARKS.sub(b"", self.data)
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
        for number, line in enumerate(_MARKS.sub(b"", self.data).split(b"\n"), start=self.first):
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
            with _open_parquet(path) as parquet:
                yield from array_blocks(str(path), parquet.iter_batches(BLOCK_ROWS, columns=[column]), column)
        elif kind == ".arrow":
            with pa.memory_map(str(path)) as file:
                yield from array_blocks(str(path), _arrow_batches(file), column)
        elif kind in (".csv", ".tsv"):
            with open_bytes(path, compression) as stream:
                rows = csv_rows(path, stream, csv)
                names = next(rows, [])  # of an empty file none
                yield from _text_blocks(path, (row[names.index(column)] for row in rows))
        else:
            with open_bytes(path, compression) as stream:
                chunks = _chunks(stream, BLOCK_BYTES)
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


def _open_parquet(path: Path) -> pa.parquet.ParquetFile:
    return pa.parquet.ParquetFile(path, page_checksum_verification=True)


def _chunks(stream: IO[bytes], n_bytes: int) -> Iterator[bytes]:
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


def _arrow_batches(file: pa.NativeFile) -> Iterator[pa.RecordBatch]:
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


@dataclass(frozen=True)
class Input:
    """A file or a part of a data set, and what shows that it changed.

    Attributes:
        path: as messages and the store name it: relative to corpus.yaml, or a URL that names a revision.
        rows: documents in it, None when unknown; an estimate where empty or quoted lines count.
        n_bytes, mtime_ns, sha256: None for what lies on a server.
    """

    path: str
    rows: int | None = None
    n_bytes: int | None = None
    mtime_ns: int | None = None
    sha256: str | None = None

    def same_time(self, folder: Path) -> bool:
        """Say whether the file still has its size and time; then it is taken for unchanged."""
        stat = (folder / self.path).stat()
        return (stat.st_size, stat.st_mtime_ns) == (self.n_bytes, self.mtime_ns)


def scan(path: Path, column: str, *, name: str, csv: CsvSpec = PLAIN_CSV) -> Input:
    """Hash and count a file, and find what can be found wrong with it before the long work.

    Every byte of a format of lines is checked to be UTF-8; rows are parsed at the start only.

    Raises:
        XDogeError: the file is empty, damaged, not UTF-8 (with the line) or lacks the text column.
    """
    kind, compression = text_format(path)
    with reading(path):
        file = hashed(path, name=name)
        if kind in (".parquet", ".arrow"):
            rows: int | None = _check_table(path, kind, column)
        else:
            rows = _check_text(path, kind, compression, column, csv) if file.n_bytes or compression else 0
    return replace(file, rows=rows)


def refuse_empty(inputs: Sequence[Input]) -> None:
    """Refuse files that have no rows all together; an empty one among others is what Spark and filters write.

    Raises:
        XDogeError: there is no row.
    """
    if inputs and all(entry.rows == 0 for entry in inputs):
        raise XDogeError(f"{inputs[0].path} is empty: it has no rows{' nor have the others' * (len(inputs) > 1)}.")


def hashed(path: Path, *, name: str) -> Input:
    """Return a file's size, time and SHA-256 without looking at what is in it."""
    refuse_pointer(path)
    stat = path.stat()  # before the bytes: a later change then shows in the time
    return Input(name, None, stat.st_size, stat.st_mtime_ns, sha256_file(path))


def _check_table(path: Path, kind: str, column: str) -> int:
    rows: int
    if kind == ".parquet":
        with _open_parquet(path) as parquet:
            schema, rows = parquet.schema_arrow, parquet.metadata.num_rows
    else:
        with pa.memory_map(str(path)) as file:
            schema, rows = None, 0
            for batch in _arrow_batches(file):
                schema, rows = batch.schema, rows + batch.num_rows
    if schema is not None:
        check_column(schema, column, where=str(path))
    return rows


def check_column(schema: pa.Schema, column: str, *, where: str) -> None:
    """Refuse a table without the column, or whose column is not text.

    Raises:
        XDogeError: the line names the columns there are.
    """
    _check_names(schema.names, column, where=where)
    kind = schema.field(column).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if kind not in TEXT_TYPES:
        raise XDogeError(f"{where}: the column {column!r} is {kind}, not text.")


def _check_names(names: Collection[str], column: str, *, where: str) -> None:
    if (count := list(names).count(column)) > 1:
        raise XDogeError(f"{where} has {count} columns {column!r}; rename all but one.")
    if column not in names:
        there = ", ".join(names)
        there = there if len(there) <= NAMES_SHOWN else f"{there[:NAMES_SHOWN]}..."
        raise XDogeError(f"{where} has no column {column!r}; it has {' '.join(there.split())}. Set text: COLUMN.")


def _check_text(path: Path, kind: str, compression: str, column: str, csv: CsvSpec) -> int | None:
    with open_bytes(path, compression) as stream:
        lines = _count_lines(path, _chunks(stream, SCAN_BYTES))
    if lines == 0 or kind == ".txt":
        return lines
    if kind in (".csv", ".tsv"):
        with open_bytes(path, compression) as stream:
            rows = csv_rows(path, stream, csv)
            _check_names(next(rows), column, where=str(path))
            for _ in itertools.islice(rows, HEAD_LINES):
                pass
        return lines - 1
    first = next(file_blocks(path, column), None)
    if first is None:
        return 0
    if first.kind == "":  # a .json file of values, which are counted when they are read
        if not any(first.texts(column)):
            raise XDogeError(f"{path} has no column {column!r} in its first rows. Set text: COLUMN.")
        return None
    start = replace(first, data=b"\n".join(first.data.split(b"\n", HEAD_LINES)[:HEAD_LINES]))
    _check_keys(start, column)
    start.texts(column)
    return lines


def _count_lines(path: Path, chunks: Iterator[bytes]) -> int:
    """Return the lines of a text, 0 when it is all white space.

    Raises:
        XDogeError: it is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    lines, last, blank = 0, b"", True
    for chunk in itertools.chain(chunks, [b""]):
        try:
            decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:  # of the chunk and the few bytes kept from the one before
            line = lines + error.object[: error.start].count(b"\n") + 1
            raise XDogeError(
                f"{path}: line {line} is not UTF-8 (byte 0x{error.object[error.start]:02x}: {error.reason}). "
                "Convert the file, for example with iconv."
            ) from error
        if b"\0" in chunk:
            line = lines + chunk[: chunk.index(b"\0")].count(b"\n") + 1
            raise XDogeError(f"{path}: line {line} holds a zero byte, which text has not; it is damaged, or UTF-16.")
        lines, last, blank = lines + chunk.count(b"\n"), chunk or last, blank and not chunk.strip()
    return 0 if blank else lines + (not last.endswith(b"\n"))


def _check_keys(block: Block, column: str) -> None:
    keys: dict[str, None] = {}
    for line in _MARKS.sub(b"", block.data).split(b"\n"):
        with contextlib.suppress(ValueError):  # broken rows are told apart where the block is parsed
            row = json.loads(line)
            if isinstance(row, dict):
                keys |= dict.fromkeys(row)
    if keys:
        _check_names(keys, column, where=block.where)


def relative(path: Path, folder: Path) -> str:
    """Return `path` as seen from `folder`, so that both can move together."""
    path = path.parent.resolve() / path.name  # a file that is a link keeps its name
    return Path(os.path.relpath(path, folder.resolve())).as_posix()
