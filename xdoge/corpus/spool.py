"""Collect the tokens of a source in temporary files, and write them as one Arrow record batch."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from xdoge.corpus.tokenizer import PART_OF_LETTER, UNKNOWN_LETTER
from xdoge.io import replacing


class Spool:
    """Temporary files for the tokens of one source and split.

    Args:
        folder: folder of the temporary files.
        split: name of the split.
        letters: (vocab_size,) `Tokenizer.letters`, to count unknown tokens.
    """

    def __init__(self, folder: Path, split: str, letters: npt.NDArray[np.int8]) -> None:
        self.files = (folder / f"{split}.tokens", folder / f"{split}.bounds")
        self._open: tuple[IO[bytes], ...] = ()
        self.documents = self.tokens = self.n_bytes = 0
        self._letters = letters
        self._kinds = np.zeros(3, dtype=np.int64)

    def add(self, tokens: npt.NDArray[Any], lengths: npt.NDArray[np.int64], n_bytes: int) -> None:
        """Append documents: all their tokens, the number of tokens of each, and the bytes of their text."""
        if not self._open:  # opened on first use, so that waiting sources keep no files open
            self.files[0].parent.mkdir(parents=True, exist_ok=True)
            self._open = tuple(file.open("wb") for file in self.files)
            self._open[1].write(np.zeros(1, dtype=np.int64).data)
        self._open[0].write(tokens.data)
        self._open[1].write((np.cumsum(lengths) + self.tokens).data)
        self.documents += len(lengths)
        self.tokens += len(tokens)
        self.n_bytes += n_bytes
        self._kinds += np.bincount(self._letters[tokens], minlength=3)

    def close(self) -> None:
        """Flush and close the files."""
        for file in self._open:
            file.close()

    def drop(self) -> None:
        """Close the files and ignore errors, for example because the disk is full."""
        for file in self._open:
            with contextlib.suppress(OSError):
                file.close()

    def assemble(self, path: Path, dtype: np.dtype[Any]) -> dict[str, Any]:
        """Write the collected tokens as one Arrow record batch, and return its counts, size and checksum."""
        if self._open:
            self.close()
            flat = _mapped(self.files[0], dtype, self.tokens)
            bounds = _mapped(self.files[1], np.dtype(np.int64), self.documents + 1)
        else:
            flat, bounds = pa.array([], pa.from_numpy_dtype(dtype)), pa.array([0], pa.int64())
        column = pa.LargeListArray.from_arrays(bounds, flat)
        batch = pa.record_batch([column], names=["input_ids"])
        with replacing(path) as file:
            hashing = _Hashing(file)
            with pa.ipc.new_stream(pa.PythonFile(hashing, mode="w"), batch.schema) as writer:
                writer.write_batch(batch)
            size = file.tell()
        return {
            "documents": self.documents,
            "tokens": self.tokens,
            "n_bytes": self.n_bytes,
            "unknown": int(self._kinds[UNKNOWN_LETTER]),
            "single_bytes": int(self._kinds[PART_OF_LETTER]),
            "size": size,
            "sha256": hashing.sha256.hexdigest(),
        }


def _mapped(file: Path, dtype: np.dtype[Any], count: int) -> pa.Array:
    values = np.memmap(file, dtype=dtype, mode="r") if count else np.empty(0, dtype=dtype)
    return pa.Array.from_buffers(pa.from_numpy_dtype(dtype), count, [None, pa.py_buffer(values)])


class _Hashing:
    """A writable file that computes the SHA-256 of the data written to it."""

    closed = False

    def __init__(self, file: IO[bytes]) -> None:
        self.sha256 = hashlib.sha256()
        self._file = file

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        """Do nothing: the file is flushed when it is moved into place."""
