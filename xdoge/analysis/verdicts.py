"""What the numbers of a command are worth and what to do next, in plain sentences."""

from __future__ import annotations

from collections.abc import Sequence

from xdoge.errors import MOST_NAMES


def few(names: Sequence[str], *, between: str = ", ") -> str:
    """Return the first names and how many more there are."""
    more = f" and {len(names) - MOST_NAMES} more" * (len(names) > MOST_NAMES)
    return between.join(names[:MOST_NAMES]) + more
