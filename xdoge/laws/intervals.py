"""Conformal prediction intervals from cross-validated residuals. They are wider far from the runs.

Residuals are divided by a scale, the size of errors that is expected at a mixture. The scale is the distance of the
predicted loss from a level below all losses, times 1 + slope * novelty. The novelty of a mixture is its distance to the
nearest run. The half width of an interval is a quantile of the scaled residuals, so no distribution of errors is
assumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from xdoge.laws.problem import Floats, array_of, base_losses

LEVEL = 0.9
LEAST_SCALE = 0.25
"""Lower bound on the distance to the level in the scale, in standard deviations of the losses."""
SLOPES = (0.0, 1.0, 2.0, 4.0, 8.0)
"""Values tried for `slope`, the growth of errors with novelty."""


def novelty(shares: Floats, runs: Floats) -> Floats:
    """Return each mixture's Hellinger distance to the nearest run, shape (m,), from 0 to 1."""
    roots, others = np.sqrt(shares), np.sqrt(runs)
    out = np.empty(len(shares))
    for start in range(0, len(shares), 1024):
        out[start : start + 1024] = (roots[start : start + 1024] @ others.T).max(axis=1)
    return np.asarray(np.sqrt(np.maximum(1.0 - out, 0.0)))


def novelty_among(runs: Floats) -> Floats:
    """Return each run's Hellinger distance to the nearest run of another mixture, shape (n,)."""
    near = np.sqrt(runs) @ np.sqrt(runs).T
    near[near > 1 - 1e-9] = 0.0  # the same mixture with another seed
    return np.asarray(np.sqrt(np.maximum(1.0 - near.max(axis=1), 0.0)))


@dataclass(frozen=True)
class Intervals:
    """Calibrated prediction intervals.

    Attributes:
        base: level below all losses, shape (L,).
        least: lower bound on the distance to the level, shape (L,).
        slope: growth of errors with novelty.
        radius: half the width of the intervals in units of the scale, shape (L,).
        mean_radius: half the width of the interval of the mean over evaluations, in units of the mean scale.
        far: novelty beyond which a mixture is an extrapolation.
    """

    base: Floats
    least: Floats
    slope: float
    radius: Floats
    mean_radius: float
    far: float

    def scale(self, predicted: Floats, distance: Floats) -> Floats:
        """Return the scale of errors, shape (m, L)."""
        return np.asarray(np.maximum(predicted - self.base, self.least) * (1.0 + self.slope * distance[:, None]))

    def half_widths(self, predicted: Floats, distance: Floats) -> Floats:
        """Return half the width of the 90 % intervals, shape (m, L), in the unit of the losses."""
        return np.asarray(self.scale(predicted, distance) * self.radius)

    def mean_half_widths(self, predicted: Floats, distance: Floats, factor: Floats | float = 1.0) -> Floats:
        """Return half the width of the 90 % interval of the mean over evaluations, shape (m,).

        `factor` multiplies the errors: one number, or one per evaluation, shape (L,).
        """
        return np.asarray((self.scale(predicted, distance) * factor).mean(axis=1) * self.mean_radius)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "base": self.base.tolist(),
            "least": self.least.tolist(),
            "slope": self.slope,
            "radius": self.radius.tolist(),
            "mean_radius": self.mean_radius,
            "far": self.far,
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], evaluations: int) -> Intervals:
        """Return the intervals that `to_dict` gave."""
        arrays = {name: array_of(value[name], evaluations) for name in ("base", "least", "radius")}
        slope, mean_radius, far = (float(array_of(value[name])) for name in ("slope", "mean_radius", "far"))
        return cls(**arrays, slope=slope, mean_radius=mean_radius, far=far)


def calibrate(predicted: Floats, losses: Floats, distance: Floats) -> Intervals:
    """Return the intervals that contain 90 % of cross-validated losses.

    The slope maximises a Laplace likelihood of the residuals. Each evaluation's radius comes from its own residuals.
    With few runs, it is shrunk towards the radius of all evaluations.

    Args:
        predicted: cross-validated losses, shape (n, L).
        losses: measured, shape (n, L).
        distance: novelty of each run against the runs of its fit, shape (n,).

    Source: Vovk et al. 2005, Algorithmic Learning in a Random World; Lei et al. 2018, arXiv:1604.04173, section 5.2.
    """
    base, deviation = base_losses(losses)
    least = LEAST_SCALE * deviation
    best, slope = np.inf, 0.0
    for candidate in SLOPES:
        scale = np.maximum(predicted - base, least) * (1.0 + candidate * distance[:, None])
        spread = np.abs(predicted - losses) / scale
        likelihood = float(np.log(np.maximum(spread.mean(axis=0), 1e-12)).sum() * len(scale) + np.log(scale).sum())
        if likelihood < best - 1e-9:
            best, slope = likelihood, candidate
    scale = np.maximum(predicted - base, least) * (1.0 + slope * distance[:, None])
    scaled = np.abs(predicted - losses) / scale
    n = len(scaled)
    level = min(1.0, LEVEL * (n + 1) / n)
    # Evaluations differ in the size of their errors, and n runs determine a 90 % quantile poorly. So all evaluations
    # together give the ratio of the quantile to the mean error.
    size = np.maximum(scaled.mean(axis=0), 1e-12)
    common = float(np.quantile(scaled / size, level)) * size
    radius = (n * np.quantile(scaled, level, axis=0) + 100 * common) / (n + 100)
    means = np.abs((predicted - losses).mean(axis=1)) / scale.mean(axis=1)
    far = float(np.quantile(distance, 0.99))
    return Intervals(base, least, slope, radius, float(np.quantile(means, level)), far)
