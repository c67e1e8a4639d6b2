"""What `prepare` is doing, for whoever wants to show it.

`prepare` calls one function with an `Event` after every block; `show_progress` gives such a function that draws a
bar per source on a terminal and writes a line now and then elsewhere.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

LINE_SECONDS = 10.0
"""Between two lines where no bar can be drawn."""


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


@contextlib.contextmanager
def show_progress() -> Iterator[Progress]:
    """Yield a function that shows events on stderr: bars with an ETA on a terminal, else plain lines."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    tasks: dict[str, TaskID] = {}
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]:>18}"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Bars(*columns, console=console) as bars:

        def show(event: Event) -> None:
            if event.kind in ("tokenizer", "skip"):
                bars.console.print(_sentence(event), highlight=False)
                return
            name = "reading files" if event.kind == "scan" else event.name
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=event.total, note="")
            note = f"{event.tokens:,} tokens" if event.tokens else ""
            total = event.done if event.kind == "done" else event.total
            bars.update(tasks[name], completed=event.done, total=total, note=note)

        yield show


def _lines() -> Progress:
    state = {"last": time.monotonic(), "source": 0.0}
    began: dict[str, float] = {}

    def show(event: Event) -> None:
        now = time.monotonic()
        start = began.setdefault(event.name, now)
        if event.kind in ("source", "scan") and now - state["last"] < LINE_SECONDS:
            return
        state["last"] = now
        text = _sentence(event)
        if event.kind == "source" and event.total and event.done:
            left = (now - start) * max(0, event.total - event.done) / event.done
            text += f", about {left:,.0f} s left"
        print(text, file=sys.stderr, flush=True)

    return show


def _sentence(event: Event) -> str:
    of = f" of {event.total:,}" if event.total else ""
    tokens = f", {event.tokens:,} tokens" if event.tokens or event.unit == "documents" else ""
    return {
        "scan": f"reading files: {event.done:,}{of}",
        "tokenizer": event.name,
        "skip": f"{event.name}: finished before, kept",
        "source": f"{event.name}: {event.done:,}{of} {event.unit}{tokens}",
        "done": f"{event.name}: {event.done:,} {event.unit}{tokens}",
    }[event.kind]
