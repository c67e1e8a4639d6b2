"""Mixtures and losses in CSV files: reading, checking, and matching by run.

The first column of a file has the ids of the runs, and the other columns have numbers. Shares in published files are
rounded. So their sum may differ from 1 by up to 0.02; they are then divided by their sum.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xdoge.errors import XDogeError, names_that_differ
from xdoge.mixtures.simplex import Floats

SUM_TOLERANCE = 0.02


@dataclass(frozen=True)
class Table:
    """Numbers by run and name.

    Attributes:
        runs: ids of the runs, in the order of the file.
        names: names of the columns.
        values: shape (runs, names).
        notes: notes for the user, such as that shares were divided by their sum.
    """

    runs: tuple[str, ...]
    names: tuple[str, ...]
    values: Floats
    notes: tuple[str, ...] = ()


def read_table(path: Path) -> Table:
    """Return the numbers of a CSV file that has run ids in its first column.

    Raises:
        XDogeError: the file is missing, has no columns or rows, repeats an id or a column, has a column without a
            name, or has a cell that is not a number. The message names the file and the row.
    """
    lines = _rows(path)
    if len(lines) < 2 or len(lines[0][1]) < 2:
        raise XDogeError(f"{path} needs a header, run ids in its first column, and at least one column and one row.")
    names = tuple(name.strip() for name in lines[0][1][1:])
    if not all(names):
        raise XDogeError(f"{path}: column {names.index('') + 2} has no name.")
    if repeated := _repeated(names):
        raise XDogeError(f"{path}: column {repeated!r} occurs twice.")
    runs, values = [], []
    for number, row in lines[1:]:
        if len(row) != len(names) + 1:
            raise XDogeError(f"{path}, row {number}: {len(row)} cells, but the header has {len(names) + 1}.")
        runs.append(row[0].strip())
        values.append([_number(cell, path, number, name) for name, cell in zip(names, row[1:], strict=True)])
    if repeated := _repeated(runs):
        raise XDogeError(f"{path}: run {repeated!r} occurs twice; a run has one row.")
    return Table(tuple(runs), names, np.array(values, dtype=np.float64))


def read_mixtures(path: Path) -> Table:
    """Return the shares of a CSV file. A row whose sum differs from 1 by up to 0.02 is divided by its sum.

    Raises:
        XDogeError: the file is not as `read_table` requires, a share is negative, or a row's sum is further from 1. The
            message names the file, the row and the sum.
    """
    return as_mixtures(read_table(path), str(path))


def read_mixture(path: Path) -> dict[str, float]:
    """Return the shares of the only mixture in a CSV file, such as `xdoge optimize --out FILE.csv` writes.

    Raises:
        XDogeError: the file is not as `read_mixtures` requires, or it has several rows.
    """
    table = read_mixtures(path)
    if len(table.runs) > 1:
        raise XDogeError(
            f"{path} has the shares of {len(table.runs):,} mixtures, but one is needed; keep only one row."
        )
    return dict(zip(table.names, table.values[0].tolist(), strict=True))


def as_mixtures(table: Table, where: str) -> Table:
    """Return a table of shares with each row divided by its sum. Raise XDogeError if a row does not hold shares."""
    sums = table.values.sum(axis=1)
    for run, row, total in zip(table.runs, table.values, sums, strict=True):
        if not np.isfinite(row).all() or (row < 0).any():
            raise XDogeError(f"{where}, run {run}: shares must be numbers >= 0.")
        if abs(total - 1) > SUM_TOLERANCE + 1e-9:
            raise XDogeError(
                f"{where}, run {run}: shares sum to {total:.6g}; they must sum to 1 within {SUM_TOLERANCE}."
            )
    off = int((np.abs(sums - 1) > 1e-9).sum())
    note = (
        f"{where}: the shares of {off:,} of {len(sums):,} rows miss a sum of 1 by up to {np.abs(sums - 1).max():.3g}; "
    )
    notes = (note + "each row was divided by its sum.",) if np.abs(sums - 1).max() > 1e-6 else ()
    return Table(table.runs, table.names, table.values / sums[:, None], (*table.notes, *notes))


def align(mixtures: Table, losses: Table, where: tuple[str, str]) -> tuple[Floats, Floats]:
    """Return shares (n, k) and losses (n, L) of the same runs, in the order of the mixtures.

    Raises:
        XDogeError: a run has a row in one file only, or a loss is not finite.
    """
    if differing := names_that_differ(where[0], mixtures.runs, where[1], losses.runs):
        raise XDogeError(f"every run needs a row in both files; {differing}.")
    bad = np.argwhere(~np.isfinite(losses.values))
    if len(bad):
        row, column = bad[0]
        raise XDogeError(
            f"{where[1]}, run {losses.runs[row]}: the loss of {losses.names[column]} is {losses.values[row, column]}; "
            "leave out runs that diverged, in both files."
        )
    place = {run: index for index, run in enumerate(losses.runs)}
    return mixtures.values, losses.values[[place[run] for run in mixtures.runs]]


def read_counts(path: Path, sources: Sequence[str]) -> dict[str, int]:
    """Return the number of unique tokens of each source, from a CSV file with the columns source and count.

    Raises:
        XDogeError: the file cannot be read, or a source is missing, unknown or repeated. Or a count is not a whole
            number above 0.
    """
    counts: dict[str, int] = {}
    for number, row in _rows(path):
        if len(row) != 2:
            raise XDogeError(f"{path}, row {number}: write a source and its unique tokens, SOURCE,TOKENS.")
        text = row[1].strip().replace("_", "")
        if number == 1 and not re.fullmatch(r"[0-9.eE+]+", text):
            continue  # a header
        try:
            count = float(text)
        except ValueError:
            count = math.nan
        if not (math.isfinite(count) and count >= 1 and count == int(count)):
            raise XDogeError(f"{path}, row {number}: {row[1]!r} is not a whole number of tokens above 0.")
        source = row[0].strip()
        if source in counts:
            raise XDogeError(f"{path}, row {number}: source {source!r} occurs twice; write its tokens once.")
        counts[source] = int(count)
    if differing := names_that_differ(str(path), counts, "the mixtures", sources):
        raise XDogeError(f"token counts and mixtures name different sources; {differing}.")
    return {source: counts[source] for source in sources}


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """Return the rows of a CSV file that are not empty, each with its row number."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return [(number, row) for number, row in enumerate(csv.reader(file), 1) if row]
    except FileNotFoundError as error:
        raise XDogeError(f"{path} does not exist.") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise XDogeError(f"{path} cannot be read as a CSV file: {error}.") from error


def _repeated(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _number(cell: str, path: Path, number: int, name: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise XDogeError(f"{path}, row {number}: {name} is {cell[:40]!r}, not a number.") from None
