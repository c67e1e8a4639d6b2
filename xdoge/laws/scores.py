"""Scores of predictions: rank correlations, errors, coverage, and the regret of the best predicted mixture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from xdoge.laws.problem import Floats, array_of


@dataclass(frozen=True)
class Scores:
    """Comparison of predicted with measured losses.

    Attributes:
        rank_evaluations: Spearman correlation, averaged over the evaluations.
        rank_mean: Spearman correlation of the mean loss.
        rmse: root mean squared error over all evaluations, in the unit of the losses.
        rmse_mean: root mean squared error of the mean loss.
        regret: measured mean loss of the mixture with the best prediction, minus the least measured mean loss.
        relative: rmse of each evaluation divided by the standard deviation of its losses, averaged over evaluations.
        coverage: share of the losses inside their 90 % intervals; None without intervals.
    """

    rank_evaluations: float
    rank_mean: float
    rmse: float
    rmse_mean: float
    regret: float
    relative: float
    coverage: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Scores:
        """Read what `to_dict` wrote."""
        optional = {"coverage": None} if value.get("coverage") is None else {}
        return cls(**{name: float(array_of(score)) for name, score in value.items() if name not in optional})


def spearman(a: Floats, b: Floats) -> float:
    """Return the rank correlation of two series; 0 if either is constant."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(spearmanr(a, b).statistic)


def score(predicted: Floats, losses: Floats, half_widths: Floats | None = None) -> Scores:
    """Return the scores of predicted losses against measured ones, both of shape (m, L)."""
    means, measured = predicted.mean(axis=1), losses.mean(axis=1)
    errors = predicted - losses
    deviation = np.maximum(losses.std(axis=0), 1e-12)
    return Scores(
        rank_evaluations=float(np.mean([spearman(p, y) for p, y in zip(predicted.T, losses.T, strict=True)])),
        rank_mean=spearman(means, measured),
        rmse=float(np.sqrt((errors**2).mean())),
        rmse_mean=float(np.sqrt(((means - measured) ** 2).mean())),
        regret=float(measured[means.argmin()] - measured.min()),
        relative=float((np.sqrt((errors**2).mean(axis=0)) / deviation).mean()),
        coverage=None if half_widths is None else float((np.abs(errors) <= half_widths).mean()),
    )
