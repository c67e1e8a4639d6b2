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
