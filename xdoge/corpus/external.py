"""Read tokens from files outside the store, which another program wrote. Several files appear as one array."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xdoge.errors import XDogeError, importing

with importing("cli"):
    import pyarrow as pa

OUTSIDE = "it lies outside the store: restore the file that was prepared, or run xdoge prepare again with --refresh"
"""Advice in messages about a file that differs from store.json."""
Tokens = npt.NDArray[Any]
"""Token ids: uint16 or uint32, or the integer type of a file outside the store."""


class Joined:
    """Tokens of several files, which can be sliced like one array. A slice inside a single file is a view."""

    def __init__(self, parts: Sequence[Tokens]) -> None:
        self._parts = parts
        self._bounds = np.cumsum([0, *map(len, parts)]).tolist()

    def __len__(self) -> int:
        """Return the number of tokens."""
        return int(self._bounds[-1])

    def __getitem__(self, where: slice) -> Tokens:
        """Return the tokens of a slice, (T,). The step must be 1."""
        begin, end, step = where.indices(self._bounds[-1])
        if step != 1:
            raise ValueError("tokens of several files can only be sliced one after the other")
        number = bisect_right(self._bounds, begin) - 1
        pieces = []
        while begin < end:
            start = self._bounds[number]
            pieces.append(self._parts[number][begin - start : end - start])
            number += 1
            begin = self._bounds[number]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces or [self._parts[0][:0]])


@dataclass(frozen=True)
class ExternalFile:
    """A part of a file of token ids outside the store.

    Attributes:
        file: path of the file.
        dtype: type of its ids.
        sha256: SHA-256 of the file.
        size: bytes of the file.
        begin: first token of the part, counted in ids.
        end: token after the last one.
    """

    file: Path
    dtype: np.dtype[Any]
    sha256: str
    size: int
    begin: int
    end: int

    def map(self) -> Tokens:
        """Return the tokens as a read-only view of the file on disk.

        Raises:
            XDogeError: the file was removed or truncated.
        """
        try:
            with pa.memory_map(str(self.file)) as source:  # unlike np.memmap, this keeps no file open
                return np.frombuffer(source.read_buffer(), self.dtype, self.end)[self.begin :]
        except (OSError, ValueError) as error:  # removed or truncated since the store was opened
            raise XDogeError(f"{self.file} cannot be mapped: {error}; {OUTSIDE}.") from error
