"""The tables that several commands print."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from xdoge.analysis.tables import TextTable
from xdoge.cli.app import stdout
from xdoge.corpus.store import TokenStore
from xdoge.io import read_rows
from xdoge.mixtures.weights import WeightSet


def empty_table(texts: Iterable[str], numbers: Iterable[str] = (), *, width: int = 0) -> Table:
    """Return a table without rows. It has columns of text, at least `width` wide, and columns of numbers."""
    table = Table(box=box.SIMPLE_HEAD)
    for column in texts:
        table.add_column(column, min_width=width)
    for column in numbers:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def print_table(table: TextTable) -> None:
    """Print a table of text with its caption above it."""
    print(table.caption)
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(table.header):
        text = number in table.text_columns
        drawn.add_column(Text(column), justify="left" if text else "right", overflow="fold", no_wrap=not text)
    for line, row in enumerate(table.rows):
        cells = [Text(cell, style="bold" if (line, place) in table.bold else "") for place, cell in enumerate(row)]
        drawn.add_row(*cells, style="bold" if _heads(row[0], table) else "")
    stdout.print(drawn)


def print_verdict(sentences: Sequence[str], about: str = "") -> None:
    """Print the sentences of a verdict, if there are any."""
    if sentences:
        print(f"verdict{about and f', {about}'}: {' '.join(sentences)}")


def _heads(name: str, table: TextTable) -> bool:
    """Return whether a row is a language with its sources below it."""
    return any(row[0].startswith(f"  {name}/") for row in table.rows)


def print_files(folder: Path, *names: str) -> None:
    """Print the paths of those files that exist in a run folder."""
    for name in names:
        if (folder / name).exists():
            print(folder / name)


def print_pace(folder: Path, tokens: int) -> None:
    """Print the tokens per second over the whole run time, and the share of validation in this time."""
    rows = read_rows(folder / "metrics.jsonl")
    seconds = max((row["seconds"] for row in rows), default=0.0)
    if seconds:
        share = sum(row.get("validation_seconds", 0.0) for row in rows) / seconds
        speed = f"{tokens:,} tokens in {seconds:,.1f} s ({tokens / seconds:,.0f} tokens/s)"
        print(f"{speed}; validation took {share:.1%} of the time")


def print_weights(weights: WeightSet, store: TokenStore) -> None:
    """Print a table of the weights and the shares of the corpus."""
    tokens = store.tokens()
    total = sum(tokens.values())
    width = 2 + max(map(len, store.sources))
    table = empty_table(("source",), ("weight", "share of corpus", "weight / share"), width=width)
    for language, weight in sorted(weights.languages.items(), key=lambda item: -item[1]):
        share = sum(tokens[source] for source in store.languages[language]) / total
        table.add_row(language, f"{weight:.4f}", f"{share:.4f}", f"{weight / share:.2f}", style="bold")
        for source in store.languages[language]:
            weight, share = weights.sources[source], tokens[source] / total
            table.add_row(f"  {source}", f"{weight:.4f}", f"{share:.4f}", f"{weight / share:.2f}")
    stdout.print(table)
