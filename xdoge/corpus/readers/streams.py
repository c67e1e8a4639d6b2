"""The bytes of a file as they were before compression. What they are is told by their first bytes, not by a name."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from xdoge.errors import MissingExtraError, XDogeError

GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
"""Neither can begin a text in UTF-8."""
ZSTD_SKIPPABLE = b"\x2a\x4d\x18"
"""From the second byte on. A frame of notes may stand before the data, as pzstd writes it."""
PIECE = 1 << 10
"""Compressed bytes that are given to zstd at once. They can become 32 MB at most."""


def open_bytes(path: Path, compression: str) -> IO[bytes]:
    """Open a file of text, decompressed.

    Args:
        path: the file.
        compression: the ending that its name has, ".gz", ".zst" or "".

    Raises:
        XDogeError: the name says that it is compressed, and it is not.
    """
    with path.open("rb") as file:
        magic = file.read(4)
    if magic.startswith(GZIP):
        return gzip.open(path)  # type: ignore[return-value]
    if magic == ZSTD or (compression == ".zst" and magic[1:] == ZSTD_SKIPPABLE):
        return io.BufferedReader(_Zstd(path))
    if compression:
        kind = {".gz": "gzip", ".zst": "zstd"}[compression]
        raise XDogeError(f"{path} cannot be read: it is not {kind} data. Rename it if it is not compressed.")
    return path.open("rb")


class _Zstd(io.RawIOBase):
    """The data of zstd frames one after the other, whose windows may have up to 2 GiB."""

    def __init__(self, path: Path) -> None:
        self._pieces = _zstd_pieces(path)
        self._data = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._data:
            if (piece := next(self._pieces, None)) is None:
                return 0
            self._data = piece
        count = min(len(buffer), len(self._data))
        buffer[:count], self._data = self._data[:count], self._data[count:]
        return count


def _zstd_pieces(path: Path) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError as error:
        raise MissingExtraError("zstandard", "proxy") from error
    decompressor, frame = zstandard.ZstdDecompressor(max_window_size=1 << 31), None
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            while piece and (frame or piece.strip(b"\0")):  # zeros may fill the last block, as after gzip data
                frame = frame or decompressor.decompressobj()
                try:
                    yield frame.decompress(piece)
                except zstandard.ZstdError as error:
                    raise OSError(str(error)) from error
                piece, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    if frame is not None:
        raise EOFError("it ends before its zstd frame does, so it was cut")
