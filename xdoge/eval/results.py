"""results.json: one tidy table for perplexity and benchmarks, with a row per model, language, task and metric."""

from __future__ import annotations

import datetime
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from pydantic import Field

from xdoge.config import Config
from xdoge.errors import MOST_NAMES, XDogeError, importing
from xdoge.eval.document_scores import SUMS, DocumentScores, documents_file, load_documents, save_documents
from xdoge.io import read_json, write_json
from xdoge.names import check_text, shown

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = "xdoge.results"

ALL = "*"
"""Language of rows that average over languages. No language can have this name."""


@dataclass(frozen=True)
class Row:
    """One value of a metric.

    Attributes:
        model: name of the model in tables.
        language: ISO code, or `ALL`.
        task: such as "perplexity", "perplexity/wikipedia" or "xnli_eu".
        metric: such as "bits_per_byte" or "acc"; the name includes the unit, if any.
        value: the value, finite.
        stderr: standard error of the value; None if it cannot be estimated, as for a single document.
        n: number of documents or questions.
        higher_is_better: whether a higher value is better.

    Raises:
        XDogeError: a field has a wrong type or value. The message names the row and the field.
    """

    model: str
    language: str
    task: str
    metric: str
    value: float
    stderr: float | None
    n: int
    higher_is_better: bool

    def __post_init__(self) -> None:
        """Raise XDogeError if a field has a wrong type or value."""
        for name in ("model", "language", "task", "metric"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise XDogeError(f"{name} is {shown(value)}; it must be text, and not empty.")
            check_text(name, value)
        where = " ".join(self.key)
        if not _is_number(self.value):
            raise XDogeError(f"{where}: value is {shown(self.value)}; it must be a finite number.")
        if self.stderr is not None and not (_is_number(self.stderr) and self.stderr >= 0):
            raise XDogeError(f"{where}: stderr is {shown(self.stderr)}; it must be a number >= 0, or null.")
        if not isinstance(self.n, int) or isinstance(self.n, bool) or self.n < 0:
            raise XDogeError(f"{where}: n is {shown(self.n)}; it must be a whole number >= 0.")
        if not isinstance(self.higher_is_better, bool):
            raise XDogeError(f"{where}: higher_is_better is {shown(self.higher_is_better)}; it must be true or false.")

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Model, language, task and metric, which together are unique in a table."""
        return self.model, self.language, self.task, self.metric


@dataclass(frozen=True)
class Results:
    """The table of an evaluation, with everything that its values depend on.

    Args:
        rows: the rows, in the order in which they are shown.
        settings: settings of perplexity and of benchmarks, by model.
        xdoge_version: version of xdoge that made the table.
        created: time at which it was made, ISO 8601 in UTC.
        documents: scores of each document by model and source. They are stored in a file beside results.json.

    Raises:
        XDogeError: two rows have the same model, language, task and metric.
    """

    rows: tuple[Row, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    xdoge_version: str = ""
    created: str = ""
    documents: DocumentScores = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Raise XDogeError if two rows have the same key."""
        object.__setattr__(self, "rows", tuple(self.rows))
        for name in ("xdoge_version", "created"):
            check_text(name, getattr(self, name))
        seen: set[tuple[str, ...]] = set()
        for row in self.rows:
            if row.key in seen:
                raise XDogeError(
                    f"two rows have the same key, {' '.join(row.key)}; a table has one number for each key."
                )
            seen.add(row.key)

    @classmethod
    def of(cls, rows: Iterable[Row], *, settings: Mapping[str, Any], documents: DocumentScores | None = None) -> Self:
        """Return a table with the present time and the version of this xdoge."""
        from xdoge._version import __version__

        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return cls(tuple(rows), settings, __version__, now, documents or {})

    def task_outcomes(self) -> list[dict[str, Any]]:
        """Return the outcome of every task in every suite for every model, with the name of the model."""
        return [
            {"model": model, **outcome}
            for suites in self.settings.get("benchmarks", {}).values()
            for model, about in suites.items()
            for outcome in about["outcomes"]
        ]

    def save(self, path: Path | str) -> None:
        """Write results.json and the file of the documents. Neither is ever half-written, and values stay exact."""
        save_documents(documents_file(Path(path)), self.documents)
        write_json(Path(path), self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return the content of results.json."""
        return {
            "schema": f"{SCHEMA}/1",
            "rows": [asdict(row) for row in self.rows],
            "settings": dict(self.settings),
            "xdoge_version": self.xdoge_version,
            "created": self.created,
        }

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Return the table of a results.json.

        Raises:
            XDogeError: the file is missing, is not a results.json, has a newer schema, or has a wrong row. The message
                names the row.
        """
        value = read_json(Path(path), schema=SCHEMA, version=1)
        rows = value.get("rows")
        if not isinstance(rows, list) or not isinstance(value.get("settings"), dict):
            raise XDogeError(f"{path} is not a results table: it needs a list of rows, and settings.")
        _Settings.parse(value["settings"], where=f"{path}: settings")
        try:
            return cls(
                tuple(_row_of(entry, number) for number, entry in enumerate(rows)),
                value["settings"],
                xdoge_version=value.get("xdoge_version", ""),
                created=value.get("created", ""),
                documents=_those_of(value["settings"], load_documents(documents_file(Path(path)))),
            )
        except XDogeError as error:
            raise XDogeError(f"{path}: {error.message}") from error

    def to_frame(self) -> pd.DataFrame:
        """Return the rows as a data frame, with a column for each field."""
        with importing("analysis"):
            import pandas as pd
        return pd.DataFrame([asdict(row) for row in self.rows], columns=list(_FIELDS))


def by_reason(missed: Iterable[tuple[str, str, str]], *, most: int = 8) -> list[str]:
    """Return a line for each outcome and reason, with at most `most` of its tasks.

    Args:
        missed: (outcome, reason, task) of each task.
        most: how many tasks a line names.
    """
    reasons: dict[tuple[str, str], dict[str, None]] = {}
    for outcome, reason, task in missed:
        reasons.setdefault((outcome, reason), {})[task] = None
    lines = []
    for (outcome, reason), tasks in reasons.items():
        names = ", ".join([*list(tasks)[:most], *(["…"] if len(tasks) > most else [])])
        lines.append(f"{outcome}: {len(tasks)} task{'s' * (len(tasks) > 1)} ({reason}): {names}")
    return lines


def _those_of(settings: Mapping[str, Any], documents: DocumentScores) -> DocumentScores:
    """Return the documents whose sums equal those in the settings. All others belong to another measurement."""
    measured = settings.get("perplexity", {})
    return {
        model: by_source
        for model, by_source in documents.items()
        if by_source.keys() == (sums := measured.get(model, {}).get("sources", {})).keys()
        and all(
            np.allclose(scores.totals.sum(0), [sums[source].get(name, math.nan) for name in SUMS], rtol=1e-9)
            for source, scores in by_source.items()
        )
    }


class _Perplexity(Config, extra="ignore"):
    tokenizer: str
    text: dict[str, Any] = Field(default_factory=dict)
    settings: dict[str, Any] = Field(default_factory=dict)
    sources: dict[str, dict[str, float]] = Field(default_factory=dict)


class _Outcome(Config, extra="ignore"):
    task: str
    outcome: str
    metric: str
    language: str = ""
    group: str | None = None
    prompts: str | None = None
    num_fewshot: int | None = None
    n: int | None = None


class _Benchmarked(Config, extra="ignore"):
    outcomes: list[_Outcome]


class _Settings(Config, extra="ignore"):
    """The part of the settings that comparisons read. All other entries are free."""

    perplexity: dict[str, _Perplexity] = Field(default_factory=dict)
    benchmarks: dict[str, dict[str, _Benchmarked]] = Field(default_factory=dict)


_FIELDS = tuple(field.name for field in fields(Row))


def _row_of(entry: object, number: int) -> Row:
    where = f"rows[{number}]"
    if not isinstance(entry, dict):
        raise XDogeError(f"{where} is {shown(entry)}, not an object.")
    if entry.keys() != set(_FIELDS):
        wrong = sorted(entry.keys() ^ set(_FIELDS))[:MOST_NAMES]
        raise XDogeError(f"{where} has other fields than {', '.join(_FIELDS)}: {', '.join(wrong)}.")
    try:
        return Row(**entry)
    except XDogeError as error:
        raise XDogeError(f"{where}: {error.message}") from error


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
