"""Read files and decompress them. The compression is recognised by the first bytes, not by the file name.

Python's own readers of gzip, bzip2 and xz ignore some damage after the first stream. Here each stream must end with its
marker and checksums. After it may come another stream, zeros, or the end of the file.
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
"""Bytes 2 to 4 of a skippable frame. pzstd writes such a frame, which has metadata, before the data."""
BZIP2_BLOCKS = (b"1AY&SY", b"\x17rE8P\x90")
"""Bytes 5 to 10: the start of a first block, or the end of empty data."""
PIECE = 1 << 10
"""Compressed bytes that are decompressed at once. The result is at most 32 MB; `MOST` limits it for bzip2 and xz."""
MOST = 1 << 20
"""Most bytes that bzip2 and xz return at once."""


def open_bytes(path: Readable, compression: str) -> IO[bytes]:
    """Open a file for reading and decompress it if necessary.

    Args:
        path: file to open.
        compression: extension of the file name for the compression, such as ".gz", or "".

    Raises:
        XDogeError: the file is not compressed, although it has such an extension.
    """
    return decompressed(local(path).open("rb"), compression, where=str(path))


def decompressed(stream: io.BufferedReader, compression: str, *, where: str) -> IO[bytes]:
    """Return the decompressed data of a stream, as a stream. Closing it closes both.

    Args:
        stream: stream to decompress.
        compression: as for `open_bytes`.
        where: name of the file, for messages.

    Raises:
        XDogeError: the data is not compressed, although `compression` is given.
    """
    kind = _compression(stream.peek(10)[:10], compression)
    if kind:
        return io.BufferedReader(_Decompressed(stream, kind))
    if compression:
        stream.close()
        raise XDogeError(
            f"{where} cannot be read: it is not {_NAMES[compression]} data. If it is not compressed, rename it."
        )
    return stream


def is_compressed(data: bytes) -> bool:
    """Whether data is compressed, judged by its first bytes."""
    return bool(_compression(data[:10], ""))


def _compression(head: bytes, ending: str) -> str:
    """Return the compression of data as an extension, judged by its first bytes.

    Valid UTF-8 text can begin like bzip2 data, but not like the others. Therefore more bytes are compared for bzip2.
    """
    if head.startswith(b"\x1f\x8b"):
        return ".gz"
    if head.startswith(b"\x28\xb5\x2f\xfd") or (ending == ".zst" and head[1:4] == ZSTD_SKIPPABLE):
        return ".zst"
    if head.startswith(b"\xfd7zXZ\0"):
        return ".xz"
    return ".bz2" if head.startswith(b"BZh") and head[4:] in BZIP2_BLOCKS else ""


class _Decompressed(io.RawIOBase):
    """A readable stream with the decompressed data of consecutive compressed streams."""

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
        while piece and (decoder or piece.strip(b"\0")):  # the last block may be padded with zeros
            decoder = decoder or _DECODERS[compression]()
            try:
                yield decoder.decompress(piece, *limit)
                while limit and not decoder.eof and not decoder.needs_input:
                    yield decoder.decompress(b"", *limit)
            except Exception as error:  # every library has its own exceptions
                raise OSError(str(error)) from error
            piece, decoder = (decoder.unused_data, None) if decoder.eof else (b"", decoder)
    if decoder is not None:
        raise EOFError(f"it ends before its {_NAMES[compression]} data is complete, so it was cut")


def _zstd() -> Any:
    try:
        import zstandard
    except ModuleNotFoundError as error:
        raise MissingExtraError("zstandard", "proxy") from error
    return zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()  # windows of up to 2 GiB


_NAMES = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
_DECODERS: dict[str, Callable[[], Any]] = {
    ".gz": lambda: zlib.decompressobj(wbits=31),
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lambda: lzma.LZMADecompressor(format=lzma.FORMAT_XZ),
    ".zst": _zstd,
}
