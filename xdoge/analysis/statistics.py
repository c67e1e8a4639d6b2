"""How far two orders agree, and whether a difference exceeds what chance alone makes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from xdoge.mixtures.simplex import Floats

TIE = 1e-6
"""Weights nearer than this are equal: rounding to whole tokens moves them by less where a budget exceeds a million."""

SIGNIFICANCE = 1.96
"""Standard errors that a difference of two independent numbers exceeds in one of twenty cases if there is none."""


def rank_correlations(x: Sequence[float], y: Sequence[float]) -> tuple[float | None, float | None]:
    """Return Kendall's τ-b and Spearman's ρ of two lists of k numbers, from 1, the same order, to -1, the opposite.

    Both follow from the signs of all differences: τ-b is the cosine between the two tables of signs, ρ the cosine
    between their row sums, which are the ranks. Numbers nearer than `TIE` are tied. None where a list is all ties.

    Source: Kendall 1945, The treatment of ties in ranking problems.
    """
    a, b = _signs(x), _signs(y)
    return _cosine(a, b), _cosine(a.sum(axis=1), b.sum(axis=1))


def exceeds(difference: float, *stderrs: float | None) -> tuple[float | None, bool | None]:
    """Return the standard error of a difference of independent numbers, and whether the difference exceeds it.

    The rule: |difference| > 1.96 · sqrt(Σ stderr²). None and None where a standard error is not known.
    """
    if any(one is None for one in stderrs):
        return None, None
    error = math.hypot(*(one for one in stderrs if one is not None))
    return error, abs(difference) > SIGNIFICANCE * error


def _signs(values: Sequence[float]) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    differences = array[:, None] - array[None, :]  # (k, k)
    return np.sign(np.where(np.abs(differences) < TIE, 0.0, differences))


def _cosine(a: Floats, b: Floats) -> float | None:
    lengths = math.sqrt(float((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / lengths if lengths else None
