"""Progress events of functions that take long.

Each of these functions takes two callbacks. It calls `on_progress` with an `Event`, and `on_note` with a sentence that
the user should read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Event:
    """How far a function has got.

    Attributes:
        kind: "scan" counts input files. "tokenizer" has a message about its training in `name`. "skip" names a source
            that an earlier run finished. "source" counts what was read of one source. "step" is a step of a fit or a
            training. "done" is the last event.
        name: the source or the run; for "tokenizer", a message.
        done: units that are finished.
        total: number of units; None if unknown, an estimate for line-based formats.
        tokens: tokens read so far.
        unit: what `done` and `total` count.
        row: the row written to metrics.jsonl, for "step" only.
    """

    kind: Literal["scan", "tokenizer", "skip", "source", "step", "done"]
    name: str = ""
    done: int = 0
    total: int | None = None
    tokens: int = 0
    unit: str = "documents"
    row: Mapping[str, Any] | None = None


OnProgress = Callable[[Event], None]
OnNote = Callable[[str], None]


def silent(event: Event | str) -> None:
    """Do nothing. This is the default of `on_progress` and `on_note`."""
