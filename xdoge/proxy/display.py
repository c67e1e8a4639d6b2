"""What a fit or a training shows on stderr: progress with the time left, and a number for each language."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

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

    def on_step(self, row: Mapping[str, Any]) -> None:
        """Show a row of metrics.jsonl."""
        now = time.monotonic()
        self.first = self.first or (row["step"], now)
        if losses := row.get("validation"):
            self.validation = f", validation {sum(losses.values()) / len(losses):.3f}"
        text = f"loss {row['target_loss'] or row['loss']:.3f}{self.validation} nats/token"
        self.progress.update(self.task, completed=row["step"], losses=text)
        if self.console.is_terminal:
            self.live.update(Group(self.progress, language_bars(row["languages"])))
        elif losses or now - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = now
            shares = " ".join(f"{language} {share:.3f}" for language, share in row["languages"].items())
            self.note(f"step {row['step']}/{self.steps}, {text}, {shares}, ETA {self._left(row, now)}")

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


def language_bars(languages: Mapping[str, float]) -> Table:
    """Return one bar per language, largest weight first."""
    table = Table(box=None, show_header=False, padding=(0, 1))
    largest = max(languages.values()) or 1.0
    for language, share in sorted(languages.items(), key=lambda item: -item[1]):
        table.add_row(language, f"{share:.3f}", "█" * round(40 * share / largest))
    return table
