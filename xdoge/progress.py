"""What `prepare` is doing, for whoever wants to show it.

`prepare` calls one function with an `Event` after every block; `show_progress` gives such a function that draws a
bar per source on a terminal and writes a line now and then elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Event:
    """How far `prepare` is.

    Attributes:
        kind: "scan" counts input files; "tokenizer" is one message; "skip" is a source finished in an earlier run;
            "source" counts the documents of one source; "done" ends it.
        name: the source, or what else is meant.
        done: documents (files, when scanning) so far.
        total: of how many; None when unknown, an estimate for formats of lines.
        tokens: of the source so far.
        unit: what `done` and `total` count.
    """

    kind: Literal["scan", "tokenizer", "skip", "source", "done"]
    name: str = ""
    done: int = 0
    total: int | None = None
    tokens: int = 0
    unit: str = "documents"


Progress = Callable[[Event], None]


def silent(event: Event) -> None:
    """Show nothing."""
