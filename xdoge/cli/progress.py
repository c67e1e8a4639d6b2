"""Progress of long commands on stderr: the part done, the time left, and a number for each language."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from xdoge.cli.app import is_first
from xdoge.progress import Event

LINE_SECONDS = 10.0
"""Seconds between two lines of progress, if there is no terminal for a bar."""


class Display:
    """A context that shows events and notes: as bars on the terminal of the first process, as lines elsewhere.

    Pass `show` as `on_progress` and `note` as `on_note`.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.bars = Progress(
            TextColumn("{task.description:<24}", markup=False),  # a source may be called [/x]
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[about]:>18}", markup=False),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        self.live = Live(self.bars, console=self.console, refresh_per_second=4)
        self.tasks: dict[str, TaskID] = {}
        self.first: dict[str, tuple[float, int]] = {}
        self.last_line = time.monotonic()
        self.validation = ""
        self.by_language: tuple[str, Mapping[str, float]] = ("", {})

    def __enter__(self) -> Self:
        """Start drawing."""
        if self.console.is_terminal and is_first():
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        """Stop drawing. Bars of reading stay on the terminal; numbers that the result replaces do not."""
        self.live.transient = bool(self.by_language[0])
        self.live.stop()

    def note(self, text: str) -> None:
        """Print a message."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def show(self, event: Event) -> None:
        """Show an event."""
        if event.kind in ("tokenizer", "skip"):
            self.note(event.name if event.kind == "tokenizer" else f"{event.name}: already finished, kept")
            return
        now = time.monotonic()
        is_first = event.name not in self.first
        self.first.setdefault(event.name, (now, event.done))
        row = event.row or {}
        if losses := row.get("validation_by_language"):
            self.validated(event.done, losses)
        if event.kind == "step" and row and "loss" not in row:  # a row of losses between two steps
            numbers = " ".join(f"{language} {loss:.3f}" for language, loss in losses.items()) if losses else ""
            self.note(f"step {event.done}/{event.total}, validation loss, nats/token: {numbers}")
            return
        about = self._step(row) if event.kind == "step" and row else f"{event.tokens:,} tokens" if event.tokens else ""
        always = event.kind == "done" or (event.kind == "step" and (is_first or row.get("validation")))
        if self.console.is_terminal:
            self._draw(event, about)
        elif always or now - self.last_line >= LINE_SECONDS:
            self._line(event, about, now)

    def validated(self, step: int, losses: Mapping[str, float]) -> None:
        """Show validation losses by language, measured at a step, from now on."""
        self.by_language = (f"validation loss at step {step}", losses)

    def _step(self, row: Mapping[str, Any]) -> str:
        """Return the text for a step, and store its number for each language."""
        if "languages" in row:
            self.by_language = ("weights", row["languages"])
        if losses := row.get("validation"):
            self.validation = f", validation {sum(losses.values()) / len(losses):.3f} at step {row['step']}"
        speed = row.get("tokens_per_second")
        loss = row.get("target_loss") or row["loss"]
        return f"loss {loss:.3f} nats/token{self.validation}" + (f", {speed:,.0f} tokens/s" if speed else "")

    def _draw(self, event: Event, about: str) -> None:
        name = "reading files" if event.kind == "scan" else event.name
        if name not in self.tasks:
            self.tasks[name] = self.bars.add_task(name, total=event.total, about="")
        total = event.done if event.kind == "done" else event.total
        self.bars.update(self.tasks[name], completed=event.done, total=total, about=about)
        if event.kind == "step":
            self.live.update(Group(self.bars, language_bars(*self.by_language)))

    def _line(self, event: Event, about: str, now: float) -> None:
        self.last_line = now
        of = f" of {event.total:,}" if event.total and event.kind != "done" else ""
        about = f", {about}" if about else ""
        if event.kind == "step":
            numbers = "".join(f" {language} {number:.3f}" for language, number in self.by_language[1].items())
            numbers = f", {self.by_language[0]}{numbers}" if numbers else ""
            self.note(f"step {event.done}/{event.total}{about}{numbers}, ETA {self._left(event, now)}")
        elif event.kind == "scan":
            self.note(f"reading files: {event.done:,}{of}")
        else:
            left = f", ETA {self._left(event, now)}" if of else ""
            self.note(f"{event.name}: {event.done:,}{of} {event.unit}{about}{left}")

    def _left(self, event: Event, now: float) -> str:
        start, before = self.first[event.name]
        if event.total is None or event.done <= before:
            return "unknown"
        seconds = round((now - start) / (event.done - before) * max(0, event.total - event.done))
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def language_bars(about: str, languages: Mapping[str, float]) -> Table:
    """Return a table with a bar for each language, the largest number first; `about` describes the numbers."""
    table = Table(box=None, show_header=False, padding=(0, 1), title=about if languages else None, title_justify="left")
    largest = max(languages.values(), default=0.0) or 1.0
    for language, number in sorted(languages.items(), key=lambda item: -item[1]):
        table.add_row(language, f"{number:.3f}", "█" * round(40 * number / largest))
    return table
