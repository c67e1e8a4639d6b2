"""Statistics of comparisons: rank correlations, and whether a difference exceeds its standard errors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from xdoge.errors import require
from xdoge.mixtures.simplex import Floats

TIE = 1e-6
"""Weights that differ by less are equal. Rounding to whole tokens changes them by less if the budget exceeds 1M."""

SIGNIFICANCE = 1.96
"""Number of standard errors. The difference of two equal numbers exceeds it by chance in 5 % of cases."""


def rank_correlations(x: Sequence[float], y: Sequence[float]) -> tuple[float | None, float | None]:
    """Return Kendall's τ-b and Spearman's ρ of two lists of k numbers, from 1 (same order) to -1 (opposite order).

    Numbers that differ by less than `TIE` are tied. Both are None if all numbers of a list are tied.

    Raises:
        MissingExtraError: SciPy is not installed.
    """
    require("cli", "scipy")
    from scipy.stats import kendalltau, spearmanr

    a, b = _levels(x), _levels(y)
    if not (a.any() and b.any()):
        return None, None
    return float(kendalltau(a, b).statistic), float(spearmanr(a, b).statistic)


def exceeds(difference: float, *stderrs: float | None) -> tuple[float | None, bool | None]:
    """Return the standard error of a difference of independent numbers, and whether the difference exceeds it.

    It does if |difference| > 1.96 · sqrt(Σ stderr²). Both are None if a standard error is unknown.
    """
    if any(stderr is None for stderr in stderrs):
        return None, None
    error = math.hypot(*(stderr for stderr in stderrs if stderr is not None))
    return error, abs(difference) > SIGNIFICANCE * error


def _levels(values: Sequence[float]) -> Floats:
    """Return the rank of each number, (k,), from 0. A number within `TIE` of the next smaller one has the same rank."""
    array = np.asarray(values, dtype=np.float64)
    order = np.argsort(array)
    ranks = np.zeros(len(array))
    ranks[order[1:]] = np.cumsum(np.diff(array[order]) >= TIE)
    return ranks
