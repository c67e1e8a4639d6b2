"""Read files in .zip and .tar archives with Python's zipfile and tarfile, and samples of WebDataset.

A .zip has a checksum for each file, and zipfile compares it at the end of the file. A .tar has checksums only for
headers, and tarfile takes a damaged header for the end of the archive. Therefore the rest of a .tar must be zeros.
"""

from __future__ import annotations

import io
import json
import lzma
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from xdoge.corpus.paths import ARCHIVES, check_format, is_data
from xdoge.corpus.readers.columns import Columns, Pairs, names_of
from xdoge.corpus.readers.streams import open_bytes
from xdoge.corpus.remote import Readable, UnpackedFile, local
from xdoge.errors import XDogeError

BLOCK = 512
"""Bytes of a header of a .tar. Data is padded to a multiple of this."""


END = 22
"""Bytes of the end record of a .zip, without its comment."""
MANY = 0xFFFF
"""Number of files in the end record if the true number needs more than two bytes."""
DAMAGE = (zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError)
"""Exceptions of the libraries for damaged archives, in addition to OSError, EOFError and zlib.error."""

SAMPLES = "pack the text alone; for samples of WebDataset, set text: txt, or a field such as text: json.text"


def has_samples(columns: Columns) -> bool:
    """Whether columns are those of WebDataset: `txt`, `json`, or a field such as json.text."""
    return all(name.partition(".")[0] in ("txt", "json") for name in names_of(columns))


def unpacked(path: Readable, kind: str, compression: str) -> Iterator[UnpackedFile]:
    """Yield the text files of an archive. Each unpacked file exists until the next one is requested.

    Raises:
        XDogeError: the format of a file cannot be read, or files have different formats.
        OSError, EOFError, zipfile.BadZipFile, tarfile.TarError: the archive is damaged.
    """
    first: dict[str, Any] = {}
    for name, data in archived(path, kind, compression):
        if not is_data(PurePosixPath(name)):
            continue
        check_format(PurePosixPath(name), first, where=str(path), advice=SAMPLES)
        if next(iter(first)) in ARCHIVES:
            raise XDogeError(f"{path} holds the archive {name}; unpack one of them.")
        with tempfile.NamedTemporaryFile(prefix="xdoge-") as copy:
            shutil.copyfileobj(data, copy)
            copy.flush()
            yield UnpackedFile(Path(copy.name), f"{path}/{name}")


def samples(path: Readable, kind: str, compression: str) -> Iterator[Pairs]:
    """Yield the samples of WebDataset as rows with the keys `txt` and `json`. Other files are skipped.

    The files of a sample are consecutive. Their paths are the same up to the first dot of the file name.

    Raises:
        XDogeError: a file is not UTF-8 or not JSON.
        OSError, EOFError, zipfile.BadZipFile, tarfile.TarError: the archive is damaged.
    """
    before, row = None, Pairs([])
    for name, data in archived(path, kind, compression):
        key, _, ending = PurePosixPath(name).name.partition(".")
        if not is_data(PurePosixPath(name)):
            continue
        sample = (PurePosixPath(name).parent, key)
        if before not in (None, sample):
            yield row
            row = Pairs([])
        before = sample
        if ending in ("txt", "json"):
            row[ending] = _content(data.read(), ending, where=f"{path}/{name}")
    if before is not None:
        yield row


def _content(data: bytes, ending: str, *, where: str) -> Any:
    try:
        text = data.decode("utf-8-sig")
        if "\0" in text:
            raise XDogeError(f"{where} holds a zero byte, so it is not text; it is damaged, or UTF-16.")
        return text if ending == "txt" else json.loads(text, object_pairs_hook=Pairs)
    except UnicodeDecodeError as error:
        raise XDogeError(f"{where} is not UTF-8 ({error}).") from error
    except (ValueError, RecursionError) as error:
        raise XDogeError(f"{where} is not JSON ({error}).") from error


def archived(path: Readable, kind: str, compression: str) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield the name and the data of each file in an archive, in its order.

    The data of a file must be read before the next one is requested.

    Raises:
        OSError, EOFError, zipfile.BadZipFile, tarfile.TarError: the archive is damaged or encrypted, or contains a name
            twice, links or devices.
    """
    names = set()
    for name, data in (_zipped if kind == ".zip" else _in_tar)(path, compression):
        if name in names:
            raise OSError(f"it holds {name} twice")
        names.add(name)
        yield name, data


def _zipped(path: Readable, compression: str) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(local(path)) as archive:
        _check_count(archive, local(path))
        for info in archive.infolist():
            if info.is_dir():
                continue
            try:
                data = archive.open(info)
            except (RuntimeError, NotImplementedError) as error:  # encrypted, or an unknown compression
                raise OSError(str(error)) from error
            with data:
                yield info.filename, data


def _check_count(archive: zipfile.ZipFile, path: Path) -> None:
    """Raise BadZipFile if the number of files differs from the end record, which zipfile does not check."""
    with path.open("rb") as file:
        file.seek(-len(archive.comment) - END, io.SEEK_END)
        count = int.from_bytes(file.read(END)[10:12], "little")
    if count not in (len(archive.filelist), MANY):
        raise zipfile.BadZipFile(f"it lists {len(archive.filelist):,} files instead of {count:,}")


def _in_tar(path: Readable, compression: str) -> Iterator[tuple[str, IO[bytes]]]:
    with open_bytes(path, compression) as stream:
        recent = _Recent(stream)
        with tarfile.open(fileobj=recent, mode="r|", bufsize=BLOCK * 20) as archive:  # type: ignore[call-overload]
            while (info := archive.next()) is not None:
                archive.members.clear()  # otherwise it keeps all members in memory
                if info.isreg() and not info.issparse():
                    with archive.extractfile(info) as data:
                        yield info.name, data
                elif not info.isdir():
                    raise OSError(f"{info.name} in it is a link, a device or a sparse file; pack plain files")
            end = archive.offset
        rest = recent.since(end)
        if len(rest) < BLOCK or rest.strip(b"\0"):
            raise EOFError(f"it is damaged, was cut, or is followed by another archive after {end:,} bytes")


class _Recent:
    """A stream that keeps the last bytes that were read from it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._recent, self._position = stream, b"", 0

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._position += len(data)
        self._recent = (self._recent + data)[-4 * BLOCK * 20 :]
        return data

    def since(self, offset: int) -> bytes:
        """Return the bytes after an offset that was read recently, up to the end of the stream.

        Long runs of zeros are shortened, so that memory stays small.
        """
        rest = self._recent[len(self._recent) - (self._position - offset) :]
        while piece := self.read(io.DEFAULT_BUFFER_SIZE):
            rest = rest.rstrip(b"\0")[:BLOCK] + piece
        return rest
