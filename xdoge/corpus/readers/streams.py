"""The bytes of a file as they were before compression. What they are is told by their first bytes, not by a name.

Python's own readers of gzip, bzip2 and xz files pass over some damage after the first stream. Here each stream must end
with its marker and its checksums, and be followed by another stream, by zeros or by nothing.
"""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

from xdoge.corpus.remote import Readable, local
from xdoge.errors import MissingExtraError, XDogeError

ZSTD_SKIPPABLE = b"\x2a\x4d\x18"
"""From the second byte on. A frame of notes may stand before the data, as pzstd writes it."""
BZIP2_BLOCKS = (b"1AY&SY", b"\x17rE8P\x90")
"""From the fifth byte on: a first block, or the end of empty data."""
PIECE = 1 << 10
"""Compressed bytes that are decompressed at once. They can become 32 MB at most, with `MOST` for bzip2 and xz."""
MOST = 1 << 20
"""Bytes that bzip2 and xz return at once."""


def open_bytes(path: Readable, compression: str) -> IO[bytes]:
    """Open a file of text, decompressed.

    Args:
        path: the file.
        compression: the ending that its name has, such as ".gz", or "".

    Raises:
        XDogeError: the name says that it is compressed, and it is not.
    """
    return decompressed(local(path).open("rb"), compression, where=str(path))


def decompressed(stream: io.BufferedReader, compression: str, *, where: str) -> IO[bytes]:
    """Return a stream with what a stream is before compression; closing it closes both."""
    kind = _compression(stream.peek(10)[:10], compression)
    if kind:
        return io.BufferedReader(_Decompressed(stream, kind))
    if compression:
        stream.close()
        raise XDogeError(f"{where} cannot be read: it is not {_NAMES[compression]} data. Rename it if it is plain.")
    return stream


def is_compressed(data: bytes) -> bool:
    """Say whether data is compressed, by its first bytes."""
    return bool(_compression(data[:10], ""))


def _compression(head: bytes, ending: str) -> str:
    """Return how data is compressed, by its first bytes. Only those of bzip2 may also begin a text in UTF-8."""
    if head.startswith(b"\x1f\x8b"):
        return ".gz"
    if head.startswith(b"\x28\xb5\x2f\xfd") or (ending == ".zst" and head[1:4] == ZSTD_SKIPPABLE):
        return ".zst"
    if head.startswith(b"\xfd7zXZ\0"):
        return ".xz"
    return ".bz2" if head.startswith(b"BZh") and head[4:] in BZIP2_BLOCKS else ""


class _Decompressed(io.RawIOBase):
    """The data of compressed streams one after the other."""

    def __init__(self, stream: IO[bytes], compression: str) -> None:
        self._stream = stream
        self._pieces = _pieces(stream, compression)
        self._data = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._data:
            if (piece := next(self._pieces, None)) is None:
                return 0
            self._data = memoryview(piece)
        count = min(len(buffer), len(self._data))
        buffer[:count], self._data = self._data[:count], self._data[count:]
        return count

    def close(self) -> None:
        self._stream.close()
        super().close()


def _pieces(stream: IO[bytes], compression: str) -> Iterator[bytes]:
    decoder, limit = None, (MOST,) if compression in (".bz2", ".xz") else ()
    while piece := stream.read(PIECE):
        while piece and (decoder or piece.strip(b"\0")):  # zeros may fill the last block
            decoder = decoder or _DECODERS[compression]()
            try:
                yield decoder.decompress(piece, *limit)
                while limit and not decoder.eof and not decoder.needs_input:
                    yield decoder.decompress(b"", *limit)
            except Exception as error:  # each library has a class of its own
                raise OSError(str(error)) from error
            piece, decoder = (decoder.unused_data, None) if decoder.eof else (b"", decoder)
    if decoder is not None:
        raise EOFError(f"it ends before its {_NAMES[compression]} data does, so it was cut")


def _zstd() -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise MissingExtraError("zstandard", "proxy") from error
    return zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()  # windows of up to 2 GiB


_NAMES = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
_DECODERS: dict[str, Callable[[], Any]] = {
    ".gz": lambda: zlib.decompressobj(wbits=31),
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lambda: lzma.LZMADecompressor(format=lzma.FORMAT_XZ),
    ".zst": _zstd,
}
