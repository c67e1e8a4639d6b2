"""`MixtureLaw`: it is fitted to the runs of a swarm, predicts other mixtures, and finds the best mixture.

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
    """A function from the shares of a mixture to the loss on each evaluation, with 90 % intervals.

    Losses have the unit of the losses that the law was fitted to. It is bits per byte for a swarm.

    Attributes:
        problem: sources, evaluations, the sources that belong to each evaluation, and passes.
        form: "auto" or the name of one form.
        parts: fitted forms by name.
        weights: weights of the parts in the prediction; they sum to 1.
        shares: mixtures of the runs, shape (n, k).
        losses: losses of the runs, shape (n, L).
        residuals: cross-validated residuals, predicted - measured, shape (n, L).
        intervals: calibrated widths of the prediction intervals.
        validation: cross-validated scores of this form and of the forms that it is compared with.
        tokens: unique tokens per source; None if unknown.
        budget_tokens: training tokens of a run; None if unknown.
        adapted: offset and factor per evaluation, shape (2, L), for another model size; None for the size of the runs.
        members: for a law over languages, the sources of each language with their parts of its share; None for a law
            over sources.
        notes: what the user should know about the fit.
        run_passes: passes over each source at a share of 1 in the runs; None if they are those of `problem`.
    """

    def __repr__(self) -> str:
        """Return the form and the numbers of sources, evaluations and runs, in one line."""
        runs, sources, evaluations = len(self.shares), len(self.problem.sources), len(self.problem.evaluations)
        return f"MixtureLaw({self.form!r}, {runs} runs, {sources} sources, {evaluations} evaluations)"

    def optimize(self, objective: str = "mean", **settings: Any) -> Optimum:
        """Return the mixture with the lowest predicted loss, with its gains and a verdict.

        Args:
            objective: "mean" or "worst": the mean or the largest predicted loss over the evaluations.
            settings: other fields of `OptimizeSettings`, such as max_epochs=4.

        Raises:
            XDogeError: a setting is unknown or out of range, epochs are capped but token counts are unknown, the caps
                leave part of the budget unspent, or no mixture meets the limits.
        """
        return optimize(self, OptimizeSettings(objective=objective, **settings))

    def shares_of(self, candidate: Candidate, *, name: str = "the mixture") -> Floats:
        """Return the shares of a mixture in the order of the law's sources, shape (k,).

        For a law over languages, the shares of a language's sources are summed.

        Args:
            candidate: a `Mixture`, a `WeightSet`, a mapping of shares, a file or a run folder. "uniform",
                "proportional" and "unimax" also work.
            name: name of the mixture in error messages. A string or path is its own name.

        Raises:
            XDogeError: the mixture has other sources than the law, the string names no mixture, or the law lacks the
                token counts that the mixture needs.
        """
        return shares_of(self, candidate, name=name)

    def prediction_table(self, candidates: Mapping[str, Candidate]) -> PredictionTable:
        """Return the predicted losses of mixtures, and their differences to equal shares, with 90 % intervals.

        The intervals of the differences are paired: errors that both mixtures share cancel. A mixture with other
        sources than the law's gets no prediction, and a note says why.

        Args:
            candidates: mixtures by name, in any form that `shares_of` takes.
        """
        return prediction_table(self, candidates)
