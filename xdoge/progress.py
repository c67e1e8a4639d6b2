"""Progress of a long function, for whoever wants to show it.

Every long function of the library takes `on_progress`, which it calls with an `Event`, and `on_note`, which it calls
with a sentence that the user should read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Event:
    """How far a function is.

    Attributes:
        kind: "scan" counts input files; "tokenizer" is one message; "skip" is a source finished in an earlier run;
            "source" counts what was read of one source; "step" is a step of a fit or a training; "done" ends it.
        name: the source, or the run.
        done: units so far.
        total: of how many; None when unknown, an estimate for formats of lines.
        tokens: read so far.
        unit: what `done` and `total` count.
        row: of a "step", the row that metrics.jsonl got.
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
    """Show nothing: the default of `on_progress` and `on_note`."""
