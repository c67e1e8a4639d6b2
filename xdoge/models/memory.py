"""Report in one line that a device has too little memory, with advice."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from xdoge.errors import MemoryFullError


@contextlib.contextmanager
def memory_errors(advice: str) -> Iterator[None]:
    """Turn torch's out-of-memory errors into a MemoryFullError with the text "out of memory" and `advice`.

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
