"""`MixtureLaw`: it is fitted to the runs of a swarm, predicts other mixtures, and finds the best one.

law = MixtureLaw.fit(mixtures, losses, sources=names, evaluations=columns)
prediction = law.predict(other_mixtures)
optimum = law.optimize("mean")
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xdoge.laws.candidates import Candidate, PredictionTable, prediction_table, shares_of
from xdoge.laws.fitted import FittedLaw, LawSettings, Prediction
from xdoge.laws.optimize import Gain, OptimizeSettings, Optimum, optimize
from xdoge.laws.problem import Floats

__all__ = ["Gain", "LawSettings", "MixtureLaw", "OptimizeSettings", "Optimum", "Prediction", "PredictionTable"]


@dataclass(frozen=True, repr=False)
class MixtureLaw(FittedLaw):
    """A function from the shares of a mixture to the loss on each evaluation, with 90 % intervals."""

    def __repr__(self) -> str:
        """Return the form and the numbers of sources, evaluations and runs, in one line."""
        runs, sources, evaluations = len(self.shares), len(self.problem.sources), len(self.problem.evaluations)
        return f"MixtureLaw({self.form!r}, {runs} runs, {sources} sources, {evaluations} evaluations)"

    def optimize(self, objective: str = "mean", **settings: Any) -> Optimum:
        """Return the best mixture. `settings` are the fields of `OptimizeSettings`; see `xdoge.laws.optimize`."""
        return optimize(self, OptimizeSettings(objective=objective, **settings))

    def shares_of(self, candidate: Candidate, *, name: str = "the mixture") -> Floats:
        """Return the shares of a candidate, shape (k,); see `xdoge.laws.candidates.shares_of`."""
        return shares_of(self, candidate, name=name)

    def prediction_table(self, candidates: Mapping[str, Candidate]) -> PredictionTable:
        """Return predictions for named mixtures and weight sets; see `xdoge.laws.candidates.prediction_table`."""
        return prediction_table(self, candidates)
