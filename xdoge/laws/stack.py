"""Cross-validation of the forms, and the weights of the stack `auto`.

Runs are divided into folds. Each form is fitted to all folds but one and predicts the one left out. The stack is a
weighted mean of the smooth forms. Its weights are >= 0, sum to 1, and minimise the squared error of these predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from scipy.optimize import nnls

from xdoge.laws.effective import Effective, fit_effective
from xdoge.laws.problem import Floats, Problem
from xdoge.laws.process import Process, fit_process
from xdoge.laws.rivals import Linear, LogLinear, Trees, fit_linear, fit_log_linear, fit_trees

STACKED = ("effective", "process", "log-linear")
"""Forms that `auto` combines. They are smooth, so gradients can find the optimum."""

FEW = 150
"""Most runs for which ten folds are used. Five are enough for more runs, since a fit can then do without a fifth."""


class Form(Protocol):
    """The methods of every fitted form."""

    smooth: bool
    convex: bool

    def predict(self, shares: Floats) -> Floats:
        """Return losses, shape (m, L), for shares of shape (m, k)."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        ...


Fit = Callable[[Problem, Floats, Floats, int], Any]

FITS: Mapping[str, Fit] = {
    "effective": fit_effective,
    "process": fit_process,
    "log-linear": fit_log_linear,
    "lightgbm": fit_trees,
    "linear": fit_linear,
}
READERS: Mapping[str, Callable[[Mapping[str, Any], Problem], Any]] = {
    "effective": Effective.from_dict,
    "process": Process.from_dict,
    "log-linear": LogLinear.from_dict,
    "lightgbm": Trees.from_dict,
    "linear": Linear.from_dict,
}


def folds(shares: Floats, seed: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the fold of each run, shape (n,): ten folds, or five for more than `FEW` runs.

    Runs of one mixture with different seeds are in the same fold, so that no run is predicted from its own repeats.

    Args:
        shares: shape (n, k).
        seed: seed of the random assignment.
    """
    mixtures, which = np.unique(shares.round(9), axis=0, return_inverse=True)
    count = min(len(mixtures), 10 if len(shares) <= FEW else 5)
    assigned = np.random.default_rng([seed, 1]).permutation(np.arange(len(mixtures)) % count)
    return np.asarray(assigned[which.reshape(-1)])


def stack_weights(predictions: Mapping[str, Floats], losses: Floats) -> dict[str, float]:
    """Return weights >= 0 with sum 1 for which the weighted predictions have the least squared error.

    Residuals are measured in standard deviations of the evaluation's losses. All evaluations share one weight per form,
    since a weight per evaluation would fit the noise of few runs.

    Args:
        predictions: cross-validated losses of each form, shape (n, L).
        losses: measured, shape (n, L).

    Source: Wolpert 1992, Stacked generalization; Breiman 1996, Stacked regressions, for the sign constraint.
    """
    deviation = losses.std(axis=0)
    deviation[deviation == 0] = 1.0  # constant outside one fold
    columns = np.stack([((p - losses) / deviation).ravel() for p in predictions.values()], axis=1)
    # For weights with sum 1, Σ c_f (p_f - y) is the residual. A row with a large weight enforces the sum.
    heavy = 1e3 * np.sqrt((columns**2).sum(axis=0).max() + 1e-12)
    matrix = np.vstack([columns, np.full(columns.shape[1], heavy)])
    target = np.zeros(len(matrix))
    target[-1] = heavy
    weights = nnls(matrix, target)[0]
    weights = weights / weights.sum()
    weights[weights < 1e-3] = 0.0
    return dict(zip(predictions, (weights / weights.sum()).tolist(), strict=True))
