"""What a fit or a training shows on stderr: progress with the time left, and a number for each language."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from xdoge.progress import Event, OnProgress

SECONDS_BETWEEN_LINES = 10.0
"""Where stderr is a file, a line this often, and at every evaluation, says how far the fit is."""


class FitDisplay:
    """A context that draws the rows of a fit as they come: live on a terminal, as lines elsewhere."""

    def __init__(self, console: Console, *, steps: int, what: str = "fit") -> None:
        self.console, self.steps = console, steps
        self.progress = Progress(
            TextColumn(what),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[losses]}"),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
        )
        self.task = self.progress.add_task(what, total=steps, losses="")
        self.live = Live(self.progress, console=console, refresh_per_second=4, transient=True)
        self.first: tuple[int, float] | None = None
        self.last_line = 0.0
        self.validation = ""

    def __enter__(self) -> Self:
        """Begin to draw."""
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        """Leave the terminal as it was."""
        self.live.stop()

    def on_step(self, row: Mapping[str, Any], about: str = "weights") -> None:
        """Show a row of metrics.jsonl; `about` says what its number for each language is."""
        now = time.monotonic()
        self.first = self.first or (row["step"], now)
        if losses := row.get("validation"):
            self.validation = f", validation {sum(losses.values()) / len(losses):.3f} at step {row['step']}"
        text = f"loss {row['target_loss'] or row['loss']:.3f} nats/token{self.validation}"
        if speed := row.get("tokens_per_second"):
            text += f", {speed:,.0f} tokens/s"
        self.progress.update(self.task, completed=row["step"], losses=text)
        if self.console.is_terminal:
            self.live.update(Group(self.progress, language_bars(row["languages"], about)))
        elif losses or now - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = now
            numbers = "".join(f" {language} {number:.3f}" for language, number in row["languages"].items())
            numbers = f"{about}{numbers}, " if numbers else ""
            self.note(f"step {row['step']}/{self.steps}, {text}, {numbers}ETA {self._left(row, now)}")

    def note(self, text: str) -> None:
        """Show a message that stays."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _left(self, row: Mapping[str, Any], now: float) -> str:
        assert self.first is not None
        done = row["step"] - self.first[0]
        if not done:
            return "unknown"
        seconds = round((now - self.first[1]) / done * (self.steps - row["step"]))
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def language_bars(languages: Mapping[str, float], about: str) -> Table:
    """Return one bar per language, largest number first, under what the numbers are."""
    table = Table(box=None, show_header=False, padding=(0, 1), title=about if languages else None, title_justify="left")
    largest = max(languages.values(), default=0.0) or 1.0
    for language, number in sorted(languages.items(), key=lambda item: -item[1]):
        table.add_row(language, f"{number:.3f}", "█" * round(40 * number / largest))
    return table


LINE_SECONDS = 10.0
"""Between two lines where no bar can be drawn."""


@contextlib.contextmanager
def show_progress() -> Iterator[OnProgress]:
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


def _lines() -> OnProgress:
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
