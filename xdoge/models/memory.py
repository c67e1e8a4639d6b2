"""Errors of a device that has too little memory, in one line with the way out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from xdoge.errors import MemoryFullError


@contextlib.contextmanager
def memory_errors(advice: str) -> Iterator[None]:
    """Say in one line that memory is full: "out of memory", then `advice`.

    Raises:
        MemoryFullError: the block ran out of memory.
    """
    import torch

    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise MemoryFullError(f"out of memory {advice}.") from error
        raise
