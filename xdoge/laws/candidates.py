"""Predictions of a law for mixtures, weight sets and files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xdoge.errors import XDogeError, names_that_differ
from xdoge.io import read_json
from xdoge.laws.bootstrap import difference_halves
from xdoge.laws.optimize import KNOWS, reference_mixtures, unseen_epochs
from xdoge.laws.problem import Floats
from xdoge.mixtures.csv_files import read_mixture
from xdoge.mixtures.mixture import Mixture
from xdoge.mixtures.weights import WeightSet
from xdoge.names import language_of

if TYPE_CHECKING:
    from xdoge.laws.fitted import FittedLaw, Prediction

Candidate = Mixture | WeightSet | Mapping[str, float] | Path | str
"""What a law can predict. A string is "uniform", "proportional", "unimax", or the path of a file or a run folder. A CSV
file holds the shares of one mixture."""


def shares_of(law: FittedLaw, candidate: Candidate, *, name: str = "the mixture") -> Floats:
    """Return the shares of a mixture in the order of the law's sources, shape (k,).

    If the shares of the law are those of languages, the shares of a language's sources are summed.

    Args:
        law: the law.
        candidate: the mixture.
        name: name of the mixture in error messages. A string or path is its own name.

    Raises:
        XDogeError: the mixture has other sources than the law, or the string names no mixture, or the law lacks the
            token counts that the mixture needs.
    """
    if isinstance(candidate, str):
        references = reference_mixtures(law)
        if candidate in references:
            return references[candidate]
        if candidate == "unimax" and "proportional" in references:
            raise XDogeError(
                f"unimax reads a source at most 4 times, but the budget of {law.budget_tokens:,} tokens is more than 4 "
                "epochs of all text; name a mixture of xdoge mix."
            )
        if candidate in ("proportional", "unimax"):
            raise XDogeError(f"{candidate} needs a law that knows token counts; {KNOWS}.")
    if isinstance(candidate, str | Path):
        name, candidate = str(candidate), _read(Path(candidate))
    if isinstance(candidate, Mixture):
        shares = {source: share.weight for source, share in candidate.sources.items()}
    else:
        shares = dict(candidate.sources if isinstance(candidate, WeightSet) else candidate)
    if not any("/" in source for source in law.problem.sources):
        languages: dict[str, float] = {}
        for source, share in shares.items():
            languages[language_of(source)] = languages.get(language_of(source), 0.0) + share
        shares = languages
    if differing := names_that_differ(name, shares, "the law", law.problem.sources):
        raise XDogeError(f"{name} and the law name different sources; {differing}.")
    return np.array([shares[source] for source in law.problem.sources])


def _read(path: Path) -> Mixture | WeightSet | dict[str, float]:
    if path.suffix == ".csv":
        return read_mixture(path)
    if path.is_dir():
        path = path / ("mixture.json" if (path / "mixture.json").exists() else "weights.json")
    kind = str(read_json(path).get("schema", ""))
    return Mixture.load(path) if kind.startswith("xdoge.mixture/") else WeightSet.load(path)


@dataclass(frozen=True)
class PredictionTable:
    """Predicted losses of several mixtures, with 90 % intervals.

    Attributes:
        rows: for each mixture a row per evaluation, then a row "mean" and a row "worst". A row has the keys mixture,
            evaluation, predicted, low, high, difference (to equal shares), difference_low, difference_high, largest and
            extrapolated. "largest" names the evaluation with the largest loss, in the row "worst" only.
        notes: lines that name mixtures without a prediction, and limits of the predictions.
    """

    rows: list[dict[str, Any]]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"rows": self.rows, "notes": list(self.notes)}


def prediction_table(law: FittedLaw, candidates: Mapping[str, Candidate]) -> PredictionTable:
    """Return predicted losses of named mixtures, and their differences to equal shares, with 90 % intervals.

    The intervals of the differences are paired: errors that both mixtures share cancel. The interval of the worst
    evaluation reaches from the largest of the lower ends to the largest of the upper ends.

    A mixture with other sources than the law's gets no prediction, and a note says why. Notes also name mixtures that
    are far from all runs, and mixtures that were planned for another budget than the law's.

    Args:
        law: the law.
        candidates: the mixtures by name.
    """
    shares, notes = dict[str, Floats](), list[str]()
    for name, candidate in candidates.items():
        try:
            shares[name] = shares_of(law, candidate, name=name)
        except XDogeError as error:
            notes.append(f"{name} has no prediction: {error}")
    if not shares:
        return PredictionTable([], tuple(notes))
    equal, mixtures = reference_mixtures(law)["uniform"], np.array(list(shares.values()))
    prediction = law.predict(np.vstack([equal, mixtures]))
    halves = difference_halves(law, mixtures, np.tile(equal, (len(mixtures), 1)))
    rows = [row for place, name in enumerate(shares, 1) for row in _rows(name, prediction, place, halves[place - 1])]
    far = [name for name, outside in zip(shares, prediction.extrapolated[1:].tolist(), strict=True) if outside]
    notes += [f"{name} is far from all runs, so its intervals may be too narrow." for name in far]
    notes += unseen_epochs(law, law, shares)
    notes += _other_budgets(law, {name: candidates[name] for name in shares})
    return PredictionTable(rows, tuple(notes))


def _rows(name: str, prediction: Prediction, place: int, halves: Floats) -> list[dict[str, Any]]:
    """Return the rows of one mixture.

    Args:
        name: name of the mixture.
        prediction: predictions of equal shares, at index 0, and of all mixtures.
        place: index of the mixture in `prediction`.
        halves: half widths of the intervals of its differences, shape (L + 2,).
    """
    columns = (prediction.predicted, prediction.low, prediction.high)
    largest = prediction.evaluations[int(prediction.predicted[place].argmax())]
    both = prediction.mean - prediction.mean_half, prediction.mean + prediction.mean_half
    measures = {evaluation: [column[:, i] for column in columns] for i, evaluation in enumerate(prediction.evaluations)}
    measures |= {"mean": [prediction.mean, *both], "worst": [column.max(axis=1) for column in columns]}
    return [
        {
            "mixture": name,
            "evaluation": evaluation,
            "predicted": float(predicted[place]),
            "low": float(low[place]),
            "high": float(high[place]),
            "difference": (difference := float(predicted[place] - predicted[0])),
            "difference_low": difference - half,
            "difference_high": difference + half,
            "largest": largest if evaluation == "worst" else None,
            "extrapolated": bool(prediction.extrapolated[place]),
        }
        for (evaluation, (predicted, low, high)), half in zip(measures.items(), halves.tolist(), strict=True)
    ]


def _other_budgets(law: FittedLaw, candidates: Mapping[str, Candidate]) -> list[str]:
    """Return a note that names the mixtures planned for another budget than the law's, if any."""
    if law.budget_tokens is None:
        return []
    planned = {name: value.budget_tokens for name, value in candidates.items() if isinstance(value, Mixture)}
    others = [f"{name} for {tokens:,} tokens" for name, tokens in planned.items() if tokens != law.budget_tokens]
    text = (
        f"the law predicts runs of {law.budget_tokens:,} tokens, but these mixtures were planned for another budget: "
    )
    return [f"{text}{', '.join(others)}. At that budget a share means other epochs and losses."] if others else []
