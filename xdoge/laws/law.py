"""Mixture laws: fit one to the runs of a swarm, predict other mixtures, and find the best one.

law = MixtureLaw.fit(mixtures, losses, sources=names, evaluations=columns)
prediction = law.predict(other_mixtures)
optimum = law.optimize("mean")
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xdoge.laws.candidates import Candidate, Outlook, outlook, shares_of
from xdoge.laws.fitted import FitSettings, FittedLaw, Prediction
from xdoge.laws.optimize import Gain, OptimizeSettings, Optimum, optimize
from xdoge.laws.problem import Floats

__all__ = ["FitSettings", "Gain", "MixtureLaw", "OptimizeSettings", "Optimum", "Outlook", "Prediction"]


@dataclass(frozen=True, repr=False)
class MixtureLaw(FittedLaw):
    """A function from the shares of a mixture to the loss on each evaluation, with intervals."""

    def __repr__(self) -> str:
        """Return one line."""
        runs, sources, evaluations = len(self.shares), len(self.problem.sources), len(self.problem.evaluations)
        return f"MixtureLaw({self.form!r}, {runs} runs, {sources} sources, {evaluations} evaluations)"

    def optimize(self, objective: str = "mean", **settings: Any) -> Optimum:
        """Find the best mixture; `settings` and the result are those of `xdoge.laws.optimize.optimize`."""
        return optimize(self, OptimizeSettings(objective=objective, **settings))

    def shares_of(self, candidate: Candidate, *, name: str = "the mixture") -> Floats:
        """Return the shares of a mixture, weight set, file or word, as `xdoge.laws.candidates.shares_of` says."""
        return shares_of(self, candidate, name=name)

    def outlook(self, candidates: Mapping[str, Candidate]) -> Outlook:
        """Predict named mixtures and weight sets, as `xdoge.laws.candidates.outlook` says."""
        return outlook(self, candidates)
