"""Weight sets, mixtures, training runs and results side by side, as rows, data frames, tables and charts."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xdoge.analysis import models, shares, tables
from xdoge.analysis.page import TableOf
from xdoge.analysis.reading import File, Inputs, Source, read_all
from xdoge.analysis.shares import Group, Rows
from xdoge.errors import MissingExtraError, XDogeError
from xdoge.eval.report import measures, outcomes
from xdoge.mixtures.weights import WeightSet

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

    from xdoge.analysis.gallery import Drawn


@dataclass(frozen=True, repr=False)
class Comparison:
    """What was read, and all that follows from it; everything is worked out when first asked for.

    Args:
        inputs: the files.
        baseline: name against which differences are given; None for the first of each kind.
    """

    inputs: Inputs
    baseline: str | None = None

    @property
    def files(self) -> tuple[File, ...]:
        """What was compared: name, kind, path, SHA-256, version and time of each."""
        return tuple(self.inputs.files)

    @functools.cached_property
    def sets(self) -> dict[str, WeightSet]:
        """Weight sets by name, and after them the planned shares of mixtures."""
        planned = {name: shares.planned(mixture) for name, mixture in self.inputs.mixtures.items()}
        taken = self.inputs.weights
        return {**taken, **{f"{name} (planned)" if name in taken else name: one for name, one in planned.items()}}

    @functools.cached_property
    def groups(self) -> tuple[Group, ...]:
        """Which weight sets are summarised together."""
        return tuple(shares.groups(self.inputs.weights))

    def baseline_of(self, names: Iterable[str]) -> str | None:
        """Return which of some names the others are compared with; None if the baseline is none of them."""
        names = list(names)
        if self.baseline is None:
            return names[0] if len(names) > 1 else None
        return self.baseline if self.baseline in names else None

    @functools.cached_property
    def rows(self) -> dict[str, Rows]:
        """The numbers, tidy and long; a key for each kind that there is something of.

        `weights`, `distances`, `summary` (mean and spread of several fits), `order` (of every two languages in them),
        `mixtures`, `scores` (of results.json), `validation` (of training runs, by step) and `reading`.
        """
        given = self.inputs
        found: dict[str, Rows] = {
            "weights": shares.weight_rows(self.sets, baseline=self.baseline_of(self.sets)),
            "distances": shares.distance_rows(self.sets),
            "summary": [row for group in self.groups for row in shares.summary_rows(group)],
            "order": [row for group in self.groups for row in shares.order_rows(group)],
            "mixtures": shares.mixture_rows(given.mixtures),
            "scores": models.score_rows(given.results, baseline=self.baseline_of(self.models)),
            "validation": models.validation_rows(given.runs, baseline=self.baseline_of(given.runs)),
            "reading": models.reading_rows(given.runs),
        }
        return {kind: rows for kind, rows in found.items() if rows}

    @functools.cached_property
    def frames(self) -> dict[str, pd.DataFrame]:
        """`rows` as data frames."""
        try:
            import pandas as pd
        except ImportError as error:
            raise MissingExtraError("pandas", "analysis") from error
        return {kind: pd.DataFrame(rows) for kind, rows in self.rows.items()}

    @functools.cached_property
    def drawn(self) -> list[Drawn]:
        """Every chart of `xdoge.analysis.charts` that these files can fill, with what it shows."""
        from xdoge.analysis.gallery import charts_of

        return charts_of(self)

    @property
    def charts(self) -> dict[str, alt.TopLevelMixin]:
        """The same charts by names that can be those of files: "weights", "trajectory-60m"."""
        from xdoge.analysis.gallery import named

        return named(self.drawn)

    @property
    def models(self) -> list[str]:
        """Names of the models in results.json."""
        return shares.union([row.model] for row in self.inputs.results.rows)

    @functools.cached_property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know before trusting a difference, and the warnings of the mixtures; a line each."""
        given = self.inputs
        lines = shares.notes(self.sets)
        lines += models.score_notes(self.rows.get("scores", []), baseline=self.baseline_of(self.models))
        lines += models.window_notes(given.results, baseline=self.baseline_of(self.models))
        lines += models.run_notes(given.runs, baseline=self.baseline_of(given.runs))
        lines += [f"{name}: {line}" for name, mixture in given.mixtures.items() for line in mixture.warnings()]
        return tuple(lines)

    @functools.cached_property
    def parts(self) -> dict[str, tuple[TableOf, ...]]:
        """The tables by what they are about, in the order in which they are read; only parts that have some."""
        rows, weights, runs = self.rows, list[TableOf](), list[TableOf]()
        if "weights" in rows:
            weights += tables.weights_tables(rows["weights"], baseline=self.baseline_of(self.sets))
        for level in ("language", "source"):
            if any(row["level"] == level for row in rows.get("distances", ())):
                weights.append(tables.distances_table(rows["distances"], level=level))
        for group in self.groups:
            weights += [tables.summary_table(group, rows["summary"]), tables.order_table(group, rows["order"])]
        if "validation" in rows:
            runs.append(tables.validation_table(rows["validation"], baseline=self.baseline_of(self.inputs.runs)))
        if "reading" in rows:
            runs.append(tables.reading_table(rows["reading"]))
        found = {
            "Weights": weights,
            "Mixtures": [tables.mixtures_table(rows["mixtures"])] if "mixtures" in rows else [],
            "Training runs": runs,
            "Models": self._score_tables(),
        }
        kept = {title: tuple(one for one in some if one.rows) for title, some in found.items()}
        return {title: some for title, some in kept.items() if some}

    @property
    def tables(self) -> tuple[TableOf, ...]:
        """All tables."""
        return tuple(one for some in self.parts.values() for one in some)

    def _score_tables(self) -> list[TableOf]:
        results, rows, baseline = self.inputs.results, self.rows.get("scores", []), self.baseline_of(self.models)
        found = [tables.scores_table(rows, measure, baseline=baseline) for measure in measures(results)]
        tasks = {(one["task"], one["metric"]) for one in outcomes(results) if one["outcome"] == "ran"}
        return [*found, tables.tasks_table(rows, tasks, baseline=baseline)]

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences that belong to the tables: how stable several fits are, what has no order, and what is starred."""
        order = self.rows.get("order", [])
        found = [tables.stability(group, order) for group in self.groups]
        found += tables.without_order(self.rows.get("distances", []), self.sets)
        return (*found, *tables.exceeding_rule(self.rows.get("scores", [])))

    def to_html(self, command: str = "") -> str:
        """Return a self-contained page: files, tables, charts, warnings and the commands to repeat it."""
        from xdoge.analysis.report import report

        return report(self, command)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the charts, as `xdoge compare --json` prints it."""
        return {
            "schema": "xdoge.comparison/1",
            "files": [vars(file) for file in self.files],
            "baseline": self.baseline,
            "notes": list(self.notes),
            "remarks": list(self.remarks),
            **self.rows,
        }

    def __repr__(self) -> str:
        """What was compared, and what there is of it."""
        names = ", ".join(f"{file.kind} {file.name}" for file in self.files)
        return f"Comparison({names}; frames: {', '.join(self.rows)})"


def compare(
    given: Iterable[Source | tuple[str | None, Source]] | Mapping[str, Source], *, baseline: str | None = None
) -> Comparison:
    """Compare any mix of weights.json, mixture.json, results.json and run folders.

    Args:
        given: paths, or what was read from them (`WeightSet`, `Mixture`, `Results`); a string "NAME=FILE", a pair or a
            mapping says what to call one. A path without a name is called by its end, as long as it takes to tell it
            from the others.
        baseline: name of the weight set, mixture, run or model that the others' differences are taken against; the
            first of each kind if left out. Kinds that have none of that name show no differences.

    Raises:
        XDogeError: a file is missing or of another kind, two things have one name, or nothing is called `baseline`.
    """
    items = list(given.items()) if isinstance(given, Mapping) else given
    comparison = Comparison(read_all([items] if isinstance(items, str | Path) else items), baseline)
    names = shares.union([comparison.sets, comparison.inputs.runs, comparison.models])
    if baseline is not None and baseline not in names:
        raise XDogeError(f"baseline {baseline} is none of what is compared: {', '.join(names)}.")
    return comparison
