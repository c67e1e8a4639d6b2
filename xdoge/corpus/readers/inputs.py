"""The inputs of a corpus: what shows that one changed, and the check of each before the long work."""

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
"""Text that is checked at once. With blocks as above the heap grows with the file, by 155 MB over one of 830 MB."""
SMALL_FILE = 1 << 17
"""Bytes of a file that is read once for all checks."""
HEAD_LINES = 100
"""Lines of a JSON file that are parsed before the work."""


@dataclass(frozen=True)
class Input:
    """A file or a part of a data set, and what shows that it changed.

    Attributes:
        path: as messages and the store name it: relative to corpus.yaml, or a URL that names a revision.
        rows: documents in it, None when unknown; an estimate where empty or quoted lines count.
        n_bytes, sha256: None for a part of a data set on the Hub.
        mtime_ns: None for what lies on a server.
        version: of a file on a server, its ETag or time; None if the server tells neither.
    """

    path: str
    rows: int | None = None
    n_bytes: int | None = None
    mtime_ns: int | None = None
    sha256: str | None = None
    version: str | None = None

    def same_time(self, folder: Path) -> bool:
        """Say whether the file still has its size and time; then it is taken for unchanged."""
        stat = os.stat(os.path.join(folder, self.path))
        return (stat.st_size, stat.st_mtime_ns) == (self.n_bytes, self.mtime_ns)

    def changed(self, file: File) -> bool:
        """Say whether a file is not what it was; one of another time is read, and one of another version downloaded."""
        if isinstance(file, RemoteFile):
            same = self.version is not None and (file.version, file.n_bytes) == (self.version, self.n_bytes)
        else:
            stat = file.stat()
            same = (stat.st_size, stat.st_mtime_ns) == (self.n_bytes, self.mtime_ns)
        return not same and sha256_file(local(file)) != self.sha256


def scan(
    path: Readable, columns: Columns, *, name: str, csv: CsvSpec = PLAIN_CSV, document: DocumentOf = "line"
) -> Input:
    """Return what `scan_files` says of one file."""
    return scan_files([path], columns, names=[name], csv=csv, document=document)[0]


def scan_files(
    paths: Sequence[Readable],
    columns: Columns,
    *,
    names: Sequence[str],
    csv: CsvSpec = PLAIN_CSV,
    document: DocumentOf = "line",
) -> list[Input]:
    """Hash and count files, and find what can be found wrong with them before the long work.

    Every byte of a format of lines is checked to be UTF-8; rows are parsed at the start only. Of several small files
    the starts are parsed together.

    Raises:
        XDogeError: a file is damaged, not UTF-8 (with the line) or lacks the text column.
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
        for start in starts:  # one may lack a column
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
    """Return an input, and of a file of JSON lines the start, which is yet to be checked."""
    kind, compression = text_format(path)
    stat = local(path).stat()  # before the bytes: a later change then shows in the time
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
    """Refuse files that have no rows all together; an empty one among others is what Spark and filters write.

    Raises:
        XDogeError: the inputs have no row.
    """
    if inputs and all(entry.rows == 0 for entry in inputs):
        raise XDogeError(f"{inputs[0].path} is empty: it has no rows{' nor have the others' * (len(inputs) > 1)}.")


def hashed(path: Readable, *, name: str) -> Input:
    """Return a file's size, time and SHA-256 without looking at what is in it."""
    refuse_pointer(local(path), name=str(path))
    stat = local(path).stat()  # before the bytes: a later change then shows in the time
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
            for _ in itertools.islice(rows, HEAD_LINES):
                pass
        return lines - 1, None
    first = next(file_blocks(path, columns), None)
    if first is None:
        return 0, None
    if first.kind == "":  # a .json file of values, which are counted when they are read
        with open_bytes(path, compression) as stream:
            values = itertools.islice(json_values(path, chunks_of(stream, BLOCK_BYTES)), HEAD_LINES)
            check_rows(list(values), columns, where=str(path))
        return None, None
    return lines, first


def _count_lines(path: Readable, chunks: Iterator[bytes]) -> int:
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


def _check_keys(block: Block, columns: Columns) -> None:
    rows = []
    for line in unmarked(block.data).split(b"\n"):
        with contextlib.suppress(ValueError, RecursionError):  # bad rows are told apart where the block is parsed
            rows.append(json.loads(line))
    check_rows(rows, columns, where=block.where)


def relative(path: File, folder: Path) -> str:
    """Return `path` as seen from `folder`, so that both can move together; of what lies on a server the URL."""
    return relatives([path], folder)[0]


def relatives(paths: Iterable[File], folder: Path) -> list[str]:
    """Return each path as seen from `folder`; each of their folders is looked at once."""
    start, ways, names = folder.resolve(), dict[Path, str](), []
    for path in paths:
        if isinstance(path, RemoteFile):
            names.append(path.url)
            continue
        if (way := ways.get(path.parent)) is None:
            way = ways[path.parent] = os.path.relpath(path.parent.resolve(), start)
        names.append((Path(way) / path.name).as_posix())  # a file that is a link keeps its name
    return names
