"""Predictions of the laws of a study for its own models, compared with measurements on the trained models.

A law is fitted to small proxies, and the models are larger. So only differences to `relative_to` can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xdoge.analysis.tables import NONE, TextTable
from xdoge.laws.problem import FORMS
from xdoge.mixtures.mixture import Mixture
from xdoge.study.findings import MACRO, WORST, Findings
from xdoge.study.plan import Trial
from xdoge.study.spec import BudgetKind

if TYPE_CHECKING:
    from xdoge.laws.law import MixtureLaw


@dataclass(frozen=True)
class Predicted:
    """Predicted losses of one model, with half the widths of their 90 % intervals.

    The keys are the languages, "macro" for their mean and "worst" for the largest loss.
    """

    shares: tuple[float, ...]
    losses: dict[str, float]
    halves: dict[str, float]
    extrapolated: bool


Halves = dict[tuple[tuple[float, ...], tuple[float, ...]], dict[str, float]]
"""Half the width of the 90 % interval of a predicted difference, by the shares of both mixtures and by measure."""


@lru_cache(maxsize=1)  # tables, page and study.json show the same rows, which take twenty refits of each law
def predictions(findings: Findings) -> list[dict[str, Any]]:
    """Return a row for each law, comparison and strategy with a finished model; no rows before a law is fitted.

    All values are means over the finished seeds, in bits per byte, by language and for "macro" and "worst":

    - "predicted" and "half" are the predicted losses of the proxies and half the widths of their intervals.
    - "measured" are the losses of the models.
    - "predicted_difference", "difference_half" and "measured_difference" are the differences to `relative_to`.
    """
    study, rows = findings.study, []
    for form in FORMS:
        file = study.law_file(findings.out, form)
        if not (study.swarm and file.exists()):
            continue
        known, halves = _predict(findings, file)
        for comparison in study.spec.compare:
            rows += [
                {"form": form, "comparison": comparison, "strategy": name, **row}
                for name in study.strategies
                if (row := _row(findings, known, halves, comparison, name))
            ]
    return rows


def _predict(findings: Findings, file: Path) -> tuple[dict[Trial, Predicted], Halves]:
    """Return the predictions of a law.json for every finished model, and the intervals of their differences."""
    from xdoge.laws.law import MixtureLaw

    law, known = MixtureLaw.load(file), {}
    for trial, result in findings.results.items():
        if result.state == "finished":
            mixture = Mixture.load(findings.out / "mixtures" / f"{trial.name}.json")
            known[trial] = _predicted(law, {name: share.weight for name, share in mixture.sources.items()})
    return known, _difference_halves(findings, law, known)


def _difference_halves(findings: Findings, law: MixtureLaw, known: dict[Trial, Predicted]) -> Halves:
    """Return half the widths of the 90 % intervals of the predicted differences to `relative_to`."""
    import numpy as np

    from xdoge.laws.bootstrap import difference_halves

    study, reference = findings.study, findings.study.spec.relative_to
    pairs = dict.fromkeys(
        (known[mine].shares, known[theirs].shares)
        for comparison in study.spec.compare
        for name in study.strategies
        for seed in study.spec.seeds
        if (mine := Trial(name, study.steps(comparison, name), seed)) in known
        and (theirs := Trial(reference, study.steps(comparison, reference), seed)) in known
    )
    if not pairs:
        return {}
    shares, others = (np.array(side) for side in zip(*pairs, strict=True))
    measures = [*law.problem.evaluations, MACRO, WORST]
    halves = difference_halves(law, shares, others).tolist()
    return {pair: dict(zip(measures, row, strict=True)) for pair, row in zip(pairs, halves, strict=True)}


def _predicted(law: MixtureLaw, weights: dict[str, float]) -> Predicted:
    import numpy as np

    members = law.members or {source: {source: 1.0} for source in law.problem.sources}
    shares = tuple(math.fsum(weights[source] for source in sources) for sources in members.values())
    prediction = law.predict(np.array([shares]))
    losses = dict(zip(prediction.evaluations, prediction.predicted[0].tolist(), strict=True))
    halves = dict(zip(prediction.evaluations, (prediction.high - prediction.predicted)[0].tolist(), strict=True))
    worst = max(losses, key=losses.__getitem__)
    mean_half = law.intervals.mean_half_widths(prediction.predicted, prediction.novelty)[0]
    halves |= {MACRO: float(mean_half), WORST: halves[worst]}
    losses |= {MACRO: float(prediction.mean[0]), WORST: losses[worst]}
    return Predicted(shares, losses, halves, bool(prediction.extrapolated[0]))


def _row(
    findings: Findings, known: dict[Trial, Predicted], halves: Halves, comparison: BudgetKind, strategy: str
) -> dict[str, Any] | None:
    """Return the row of a strategy; None if none of its models is finished."""
    study, reference = findings.study, findings.study.spec.relative_to
    measured = findings.measures(comparison, strategy)
    mine, theirs = (
        {seed: known.get(Trial(name, study.steps(comparison, name), seed)) for seed in study.spec.seeds}
        for name in (strategy, reference)
    )
    here = [prediction for prediction in mine.values() if prediction]
    if not here:
        return None
    both = [(a, b) for seed, a in mine.items() if a and (b := theirs[seed])]
    measures = [*study.languages, MACRO, WORST]
    row: dict[str, Any] = {
        "extrapolated": any(prediction.extrapolated for prediction in here),
        "predicted": {key: _mean([prediction.losses[key] for prediction in here]) for key in measures},
        "half": {key: _mean([prediction.halves[key] for prediction in here]) for key in measures},
        "measured": {key: _mean([values[key] for values in measured.values()]) for key in measures},
    }
    if both and strategy != reference:
        intervals = {key: findings.difference(comparison, strategy, key) for key in measures}
        row |= {
            "predicted_difference": {key: _mean([a.losses[key] - b.losses[key] for a, b in both]) for key in measures},
            "difference_half": {key: _mean([halves[a.shares, b.shares][key] for a, b in both]) for key in measures},
            "measured_difference": {key: interval.to_dict() for key, interval in intervals.items() if interval},
        }
    return row


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def prediction_tables(findings: Findings, comparison: BudgetKind, *, languages: bool = False) -> list[TextTable]:
    """Return a table for each law, with predicted and measured differences.

    They are those of the mean and the worst language, or with `languages` those of each language.
    """
    measures = findings.study.languages if languages else (MACRO, WORST)
    rows = [row for row in predictions(findings) if row["comparison"] == comparison and "predicted_difference" in row]
    against = f"to {findings.study.spec.relative_to} in bits per byte"
    return [
        TextTable(
            f"Predicted by the law {form} (± half of a 90 % interval) and measured: difference {against}",
            ["strategy", *(f"{key},\n{what}" for key in measures for what in ("predicted", "measured"))],
            [
                [
                    row["strategy"] + " (far from all runs)" * row["extrapolated"],
                    *(cell for key in measures for cell in _cells(row, key)),
                ]
                for row in rows
                if row["form"] == form
            ],
        )
        for form in dict.fromkeys(row["form"] for row in rows)
    ]


def _cells(row: dict[str, Any], key: str) -> tuple[str, str]:
    """Return the predicted and the measured difference."""
    measured = row["measured_difference"].get(key)
    half = "" if not measured or measured["high"] is None else f" ± {measured['high'] - measured['mean']:.3f}"
    predicted = f"{row['predicted_difference'][key]:+.3f} ± {row['difference_half'][key]:.3f}"
    cells = predicted, f"{measured['mean']:+.3f}{half}" if measured else NONE
    return cells[0].replace("-", "−"), cells[1].replace("-", "−")
