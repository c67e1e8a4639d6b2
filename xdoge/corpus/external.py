"""Tokens in files outside the store, which another program wrote. Several files are read as one."""

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

OUTSIDE = "it lies outside the store, so put back what was prepared, or run xdoge prepare again with --refresh"
"""What to do about a file that is not what store.json says."""
Tokens = npt.NDArray[Any]
"""Of whole numbers: uint16 or uint32, or what files outside the store hold."""


class Joined:
    """Tokens of several files, to be sliced as if they lay one after the other; a slice within one file is a view."""

    def __init__(self, parts: Sequence[Tokens]) -> None:
        self._parts = parts
        self._bounds = np.cumsum([0, *map(len, parts)]).tolist()

    def __len__(self) -> int:
        """Return the number of tokens."""
        return int(self._bounds[-1])

    def __getitem__(self, where: slice) -> Tokens:
        """Return the tokens of a slice without a step, (T,)."""
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
    """Tokens [begin, end) of a file of token ids and nothing else, outside of the store."""

    file: Path
    dtype: np.dtype[Any]
    sha256: str
    size: int
    begin: int
    end: int

    def map(self) -> Tokens:
        """Return the tokens, a read-only view of the file on disk.

        Raises:
            XDogeError: the file is gone, or was cut.
        """
        try:
            with pa.memory_map(str(self.file)) as source:  # which keeps no file open, unlike np.memmap
                return np.frombuffer(source.read_buffer(), self.dtype, self.end)[self.begin :]
        except (OSError, ValueError) as error:  # gone or cut since the store was opened
            raise XDogeError(f"{self.file} cannot be mapped: {error}; {OUTSIDE}.") from error
