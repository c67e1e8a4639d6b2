"""Check the input files of a corpus before the long work, and record what shows later whether they changed."""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from xdoge.corpus.paths import ARCHIVES, text_format
from xdoge.corpus.readers.archives import has_samples, samples, unpacked
from xdoge.corpus.readers.blocks import Block, document_texts, unmarked
from xdoge.corpus.readers.columns import Columns, check_column, check_names, check_rows
from xdoge.corpus.readers.csv_rows import csv_rows
from xdoge.corpus.readers.files import BLOCK_BYTES, arrow_batches, chunks_of, file_blocks, open_parquet, reading
from xdoge.corpus.readers.json_values import json_values
from xdoge.corpus.readers.streams import is_compressed, open_bytes
from xdoge.corpus.remote import File, Readable, RemoteFile, local
from xdoge.corpus.spec import PLAIN_CSV, CsvSpec, DocumentOf
from xdoge.errors import XDogeError
from xdoge.io import LFS_POINTER, refuse_pointer, sha256_file

SCAN_BYTES = 1 << 14
"""Bytes of text that are checked at once. With `BLOCK_BYTES`, memory grew by 155 MB over a file of 830 MB."""
SMALL_FILE = 1 << 17
"""Files up to this many bytes are read only once for all checks."""
HEAD_LINES = 100
"""Rows that are parsed in the check of a file."""


@dataclass(frozen=True)
class Input:
    """An input file, with the properties that show whether it changed.

    Attributes:
        path: path relative to corpus.yaml, or URL. Messages and the store use this name.
        rows: number of rows, None if unknown. An estimate for files with empty or quoted lines.
        n_bytes: size in bytes, None for a file of a data set on the Hub.
        mtime_ns: time of the last change, None for files on servers.
        sha256: SHA-256 of the content, None for a file of a data set on the Hub.
        version: ETag or time of the last change on a server, None if the server gives neither.
    """

    path: str
    rows: int | None = None
    n_bytes: int | None = None
    mtime_ns: int | None = None
    sha256: str | None = None
    version: str | None = None

    def same_time(self, folder: Path) -> bool:
        """Whether the file still has the same size and time, so that it counts as unchanged."""
        stat = os.stat(os.path.join(folder, self.path))
        return (stat.st_size, stat.st_mtime_ns) == (self.n_bytes, self.mtime_ns)

    def changed(self, file: File) -> bool:
        """Whether the content of a file changed.

        A local file with another size or time is hashed. A file on a server with another version is downloaded and
        hashed.
        """
        if isinstance(file, RemoteFile):
            same = self.version is not None and (file.version, file.n_bytes) == (self.version, self.n_bytes)
        else:
            stat = file.stat()
            same = (stat.st_size, stat.st_mtime_ns) == (self.n_bytes, self.mtime_ns)
        return not same and sha256_file(local(file)) != self.sha256


def scan(
    path: Readable, columns: Columns, *, name: str, csv: CsvSpec = PLAIN_CSV, document: DocumentOf = "line"
) -> Input:
    """Check one file as `scan_files` does."""
    return scan_files([path], columns, names=[name], csv=csv, document=document)[0]


def scan_files(
    paths: Sequence[Readable],
    columns: Columns,
    *,
    names: Sequence[str],
    csv: CsvSpec = PLAIN_CSV,
    document: DocumentOf = "line",
) -> list[Input]:
    """Return hash, size and number of rows of files, after checking them as far as possible in a short time.

    In line-based formats, all bytes are checked to be UTF-8, and the first rows are parsed. The first rows of several
    small files are parsed together.

    Args:
        paths: files to check.
        columns: columns of the text.
        names: names of the files for the store, relative to corpus.yaml.
        csv: dialect of CSV files.
        document: unit of a .txt file that is a document.

    Raises:
        XDogeError: a file is damaged, is not UTF-8 (the message names the line), or lacks a text column.
    """
    inputs, starts = [], []
    for path, name in zip(paths, names, strict=True):
        if text_format(path)[0] in ARCHIVES:
            inputs.append(_scan_archive(path, columns, name, csv, document))
            continue
        with reading(path):
            entry, start = _scan(path, columns, name, csv)
            if document != "line" and entry.rows and text_format(path)[0] == ".txt":
                entry = replace(entry, rows=1 if document == "file" else None)
        inputs.append(entry)
        if start is not None:
            starts.append(_start_of(start))
    if not isinstance(columns, str) or not all(document_texts(starts, columns)):
        for start in starts:  # perhaps a file lacks a column
            _check_keys(start, columns)
            start.texts(columns)
    return inputs


def _start_of(block: Block) -> Block:
    lines = block.data.split(b"\n", HEAD_LINES)
    return replace(block, data=b"\n".join(lines[:HEAD_LINES])) if len(lines) > HEAD_LINES else block


def _scan_archive(path: Readable, columns: Columns, name: str, csv: CsvSpec, document: DocumentOf) -> Input:
    kind, compression = text_format(path)
    counts: list[int | None]
    with reading(path):
        entry = hashed(path, name=name)
        if has_samples(columns):
            rows = samples(path, kind, compression)
            first = list(itertools.islice(rows, HEAD_LINES))
            counts = [len(first), sum(1 for _ in rows)]
            if first and not any(first):
                raise XDogeError(f"{path} has no file that ends in .txt or .json in its first samples.")
            if first:
                check_rows(first, columns, where=str(path))
        else:
            files = unpacked(path, kind, compression)
            counts = [scan(file, columns, name=str(file), csv=csv, document=document).rows for file in files]
    return replace(entry, rows=None if None in counts else sum(filter(None, counts)))


def _scan(path: Readable, columns: Columns, name: str, csv: CsvSpec) -> tuple[Input, Block | None]:
    """Return an input, and for JSON lines also the first block, which has not been parsed yet."""
    kind, compression = text_format(path)
    stat = local(path).stat()  # before reading, so that a later change has a later time
    small = kind in (".jsonl", ".txt") and not compression and stat.st_size <= SMALL_FILE
    if small and isinstance(path, Path):
        data = path.read_bytes()
        if data.startswith(LFS_POINTER):
            refuse_pointer(path)
        if not is_compressed(data):
            lines = _count_lines(path, iter([data] if data else []))
            start = Block(str(path), 1, kind, data) if kind == ".jsonl" and lines else None
            return Input(name, lines, stat.st_size, stat.st_mtime_ns, hashlib.sha256(data).hexdigest()), start
    file = hashed(path, name=name)
    if kind in (".parquet", ".arrow"):
        return replace(file, rows=_check_table(path, kind, columns)), None
    if not file.n_bytes and not compression:
        return replace(file, rows=0), None
    rows, start = _check_text(path, kind, compression, columns, csv)
    return replace(file, rows=rows), start


def refuse_empty(inputs: Sequence[Input]) -> None:
    """Raise an error if all files are empty. Single empty files are allowed, since Spark and filters write them.

    Raises:
        XDogeError: no file has a row.
    """
    if inputs and all(entry.rows == 0 for entry in inputs):
        raise XDogeError(f"{inputs[0].path} is empty: it has no rows{' nor have the others' * (len(inputs) > 1)}.")


def hashed(path: Readable, *, name: str) -> Input:
    """Return the size, time and SHA-256 of a file, without checking its content."""
    refuse_pointer(local(path), name=str(path))
    stat = local(path).stat()  # before reading, so that a later change has a later time
    sha256 = sha256_file(local(path))
    if isinstance(path, RemoteFile):
        return Input(name, None, path.n_bytes, None, sha256, path.version)
    return Input(name, None, stat.st_size, stat.st_mtime_ns, sha256)


def _check_table(path: Readable, kind: str, columns: Columns) -> int:
    rows: int
    if kind == ".parquet":
        with open_parquet(path) as parquet:
            schema, rows = parquet.schema_arrow, parquet.metadata.num_rows
    else:
        with pa.memory_map(str(local(path))) as file:
            schema, rows = None, 0
            for batch in arrow_batches(file):
                schema, rows = batch.schema, rows + batch.num_rows
    if schema is not None:
        check_column(schema, columns, where=str(path))
    return rows


def _check_text(
    path: Readable, kind: str, compression: str, columns: Columns, csv: CsvSpec
) -> tuple[int | None, Block | None]:
    with open_bytes(path, compression) as stream:
        lines = _count_lines(path, chunks_of(stream, SCAN_BYTES))
    if lines == 0 or kind == ".txt":
        return lines, None
    if kind in (".csv", ".tsv"):
        with open_bytes(path, compression) as stream:
            rows = csv_rows(path, stream, csv)
            check_names(next(rows), columns, where=str(path))
            first_rows = sum(1 for _ in itertools.islice(rows, HEAD_LINES))
        return max(lines - 1, first_rows), None  # lines may also end with a carriage return
    first = next(file_blocks(path, columns), None)
    if first is None:
        return 0, None
    if first.kind == "":  # a .json file that is not one object a line; its rows are not counted
        with open_bytes(path, compression) as stream:
            values = itertools.islice(json_values(path, chunks_of(stream, BLOCK_BYTES)), HEAD_LINES)
            check_rows(list(values), columns, where=str(path))
        return None, None
    return lines, first


def _count_lines(path: Readable, chunks: Iterator[bytes]) -> int:
    """Return the number of lines of a text, 0 if it is only white space.

    Raises:
        XDogeError: the text is not UTF-8, or contains a zero byte.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    lines, last, blank = 0, b"", True
    for chunk in itertools.chain(chunks, [b""]):
        try:
            decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:  # error.object is the chunk, preceded by an incomplete character
            line = lines + error.object[: error.start].count(b"\n") + 1
            raise XDogeError(
                f"{path}: line {line} is not UTF-8 (byte 0x{error.object[error.start]:02x}: {error.reason}). "
                "Convert the file, for example with iconv."
            ) from error
        if b"\0" in chunk:
            line = lines + chunk[: chunk.index(b"\0")].count(b"\n") + 1
            raise XDogeError(
                f"{path}: line {line} holds a zero byte, so it is not text; the file is damaged, or UTF-16."
            )
        lines, last, blank = lines + chunk.count(b"\n"), chunk or last, blank and not chunk.strip()
    return 0 if blank else lines + (not last.endswith(b"\n"))


def _check_keys(block: Block, columns: Columns) -> None:
    rows = []
    for line in unmarked(block.data).split(b"\n"):
        with contextlib.suppress(ValueError, RecursionError):  # `Block.texts` reports bad rows
            rows.append(json.loads(line))
    check_rows(rows, columns, where=block.where)


def relative(path: File, folder: Path) -> str:
    """Return `path` relative to `folder`, so that both can be moved together, or the URL of a file on a server."""
    return relatives([path], folder)[0]


def relatives(paths: Iterable[File], folder: Path) -> list[str]:
    """Return each path relative to `folder`, as `relative` does. Each parent folder is resolved only once."""
    start, ways, names = folder.resolve(), dict[Path, str](), []
    for path in paths:
        if isinstance(path, RemoteFile):
            names.append(path.url)
            continue
        if (way := ways.get(path.parent)) is None:
            way = ways[path.parent] = os.path.relpath(path.parent.resolve(), start)
        names.append((Path(way) / path.name).as_posix())  # links to files are not resolved
    return names
