"""The numbers of a comparison: its inputs as rows, data frames and tables, with notes for the reader."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xdoge.analysis import models, shares, tables, verdicts
from xdoge.analysis.inputs import File, Inputs
from xdoge.analysis.shares import Group, Rows
from xdoge.analysis.tables import TextTable
from xdoge.errors import importing
from xdoge.mixtures.weights import WeightSet

if TYPE_CHECKING:
    import pandas as pd

    from xdoge.laws.candidates import PredictionTable


@dataclass(frozen=True, repr=False)
class ComparisonData:
    """The inputs of a comparison and the numbers computed from them. Each is computed when it is first used.

    Args:
        inputs: the files and objects to compare.
        baseline: name with which all others are compared; None for the first of each kind.
    """

    inputs: Inputs
    baseline: str | None = None

    @property
    def files(self) -> tuple[File, ...]:
        """Name, kind, path, SHA-256, version and time of each input."""
        return tuple(self.inputs.files)

    @functools.cached_property
    def sets(self) -> dict[str, WeightSet]:
        """Weight sets by name, and after them the planned shares of mixtures."""
        learned, mixtures = self.inputs.weights, self.inputs.mixtures
        names = {name: f"{name} (planned)" if name in learned else name for name in mixtures}
        return {**learned, **{names[name]: shares.planned(mixture) for name, mixture in mixtures.items()}}

    @functools.cached_property
    def predictions(self) -> dict[str, PredictionTable]:
        """Predictions of each law for the weight sets and mixtures."""
        mixtures = list(self.inputs.mixtures.values())
        learned = len(self.sets) - len(mixtures)
        planned = dict(zip(list(self.sets)[learned:], mixtures, strict=True))
        return {name: law.prediction_table({**self.sets, **planned}) for name, law in self.inputs.laws.items()}

    @functools.cached_property
    def groups(self) -> tuple[Group, ...]:
        """Weight sets that are summarised together."""
        return tuple(shares.groups(self.inputs.weights))

    def baseline_of(self, names: Iterable[str]) -> str | None:
        """Return which of `names` is the baseline; None if the baseline is not among them."""
        names = list(names)
        if self.baseline is None:
            return names[0] if len(names) > 1 else None
        return self.baseline if self.baseline in names else None

    @functools.cached_property
    def rows(self) -> dict[str, Rows]:
        """The numbers as tidy, long rows, by kind. A kind without rows is left out.

        The kinds are:

        - `weights` and `distances` of weight sets,
        - `summary`: mean and spread of several fits,
        - `order`: the order of every two languages in these fits,
        - `mixtures`,
        - `laws`: how well each form predicts runs that it was not fitted to,
        - `predictions` of each law for the weight sets and mixtures,
        - `scores` from results.json,
        - `validation` of training runs, by step,
        - `reading`: tokens and epochs of training runs.
        """
        inputs = self.inputs
        by_kind: dict[str, Rows] = {
            "weights": shares.weight_rows(self.sets, baseline=self.baseline_of(self.sets)),
            "distances": shares.distance_rows(self.sets),
            "summary": [row for group in self.groups for row in shares.summary_rows(group)],
            "order": [row for group in self.groups for row in shares.order_rows(group)],
            "mixtures": shares.mixture_rows(inputs.mixtures),
            "laws": [
                {"law": name, "form": form, "runs": len(law.shares), **scores.to_dict()}
                for name, law in inputs.laws.items()
                for form, scores in law.validation.items()
            ],
            "predictions": [{"law": name, **row} for name, table in self.predictions.items() for row in table.rows],
            "scores": models.score_rows(inputs.results, baseline=self.baseline_of(self.models)),
            "validation": models.validation_rows(inputs.runs, baseline=self.baseline_of(inputs.runs)),
            "reading": models.reading_rows(inputs.runs),
        }
        return {kind: rows for kind, rows in by_kind.items() if rows}

    @functools.cached_property
    def frames(self) -> dict[str, pd.DataFrame]:
        """`rows` as data frames."""
        with importing("analysis"):
            import pandas as pd
        return {kind: pd.DataFrame(rows) for kind, rows in self.rows.items()}

    @property
    def models(self) -> list[str]:
        """Names of the models in results.json."""
        return shares.union([row.model] for row in self.inputs.results.rows)

    @functools.cached_property
    def notes(self) -> tuple[str, ...]:
        """Lines that a reader must know before trusting a difference, and the warnings of the mixtures."""
        inputs = self.inputs
        lines = shares.notes(self.sets)
        lines += shares.pooling_notes(inputs.weights)
        lines += models.score_notes(self.rows.get("scores", []), baseline=self.baseline_of(self.models))
        lines += models.window_notes(inputs.results, baseline=self.baseline_of(self.models))
        lines += models.coverage_notes(inputs.results)
        lines += models.run_notes(inputs.runs, baseline=self.baseline_of(inputs.runs))
        lines += [f"{name}: {line}" for name, table in self.predictions.items() for line in table.notes]
        lines += [f"{name}: {line}" for name, mixture in inputs.mixtures.items() for line in mixture.warnings()]
        return tuple(lines)

    @functools.cached_property
    def verdict(self) -> tuple[str, ...]:
        """Sentences about models, fits and mixtures: what their numbers are worth, and what to do next."""
        inputs = self.inputs
        lines = verdicts.scores_verdict(inputs.results, baseline=self.baseline_of(self.models))
        lines += verdicts.fits_verdict(self.groups)
        lines += verdicts.mixtures_verdict(inputs.mixtures)
        lines += [
            line for name, table in self.predictions.items() for line in verdicts.predictions_verdict(table.rows, name)
        ]
        if "validation" in self.rows and not inputs.results.rows:
            lines.append(
                "Validation losses of training runs have no standard errors, so no difference can be "
                "judged. Next: measure the models with `xdoge eval`."
            )
        return tuple(lines)

    @functools.cached_property
    def parts(self) -> dict[str, tuple[TextTable, ...]]:
        """The tables by heading, in reading order. Headings without tables are left out."""
        inputs, rows, weights, runs = self.inputs, self.rows, list[TextTable](), list[TextTable]()
        if "weights" in rows:
            weights += tables.weights_tables(rows["weights"], baseline=self.baseline_of(self.sets))
        for level in ("language", "source"):
            if any(row["level"] == level for row in rows.get("distances", ())):
                weights.append(tables.distances_table(rows["distances"], level=level))
        for group in self.groups:
            weights += [tables.summary_table(group, rows["summary"]), tables.order_table(group, rows["order"])]
        if "validation" in rows:
            runs.append(tables.validation_table(rows["validation"], baseline=self.baseline_of(inputs.runs)))
        if "reading" in rows:
            runs.append(tables.reading_table(rows["reading"]))
        by_heading = {
            "Weights": weights,
            "Mixtures": [tables.mixtures_table(rows["mixtures"])] if "mixtures" in rows else [],
            "Mixture laws": [
                *([tables.laws_table(rows["laws"])] if "laws" in rows else []),
                *(
                    tables.predicted_losses_table(table.rows, name)
                    for name, table in self.predictions.items()
                    if table.rows
                ),
            ],
            "Training runs": runs,
            "Models": tables.results_tables(
                inputs.results, rows.get("scores", []), baseline=self.baseline_of(self.models)
            ),
        }
        filled = {title: tuple(table for table in part if table.rows) for title, part in by_heading.items()}
        return {title: part for title, part in filled.items() if part}

    @property
    def tables(self) -> tuple[TextTable, ...]:
        """All tables."""
        return tuple(table for part in self.parts.values() for table in part)

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences about the tables: stability of several fits, weights without an order, the meaning of stars."""
        order = self.rows.get("order", [])
        lines = [tables.stability(group, order) for group in self.groups]
        lines += tables.without_order(self.rows.get("distances", []), self.sets)
        return (*lines, *tables.exceeding_rule(self.rows.get("scores", [])))

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the charts, as `xdoge compare --json` prints it."""
        return {
            "schema": "xdoge.comparison/1",
            "files": [vars(file) for file in self.files],
            "baseline": self.baseline,
            "verdict": " ".join(self.verdict),
            "notes": list(self.notes),
            "remarks": list(self.remarks),
            **self.rows,
        }

    def __repr__(self) -> str:
        """Return the kinds and names of the inputs, and the kinds of rows."""
        names = ", ".join(f"{file.kind} {file.name}" for file in self.files)
        return f"Comparison({names}; frames: {', '.join(self.rows)})"
