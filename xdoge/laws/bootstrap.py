"""How far the differences between mixtures that a law predicts may be wrong: simulated runs, refitted.

Each simulated swarm takes the law's losses at the runs plus noise of the size that the fit found, with the correlation
between evaluations that the runs' residuals have. A law that is fitted to it differs from the law it came from as that
one may differ from the truth. What noise does not explain of the errors of cross-validation, the misfit, comes on top.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from xdoge.laws.effective import Effective, fit_effective
from xdoge.laws.problem import Floats
from xdoge.laws.process import Process
from xdoge.laws.stack import FITS

if TYPE_CHECKING:
    from xdoge.laws.fitted import FittedLaw

SIMULATIONS = 20
"""Simulated swarms behind an interval, where nobody asks for another number."""
QUANTILE = 1.645
"""Half of a 90 % interval in standard deviations of a normal distribution."""

SAME = 1e-4
"""Shares nearer than this are of one mixture but for rounding to whole tokens, so its difference to itself is 0."""


def simulated(law: FittedLaw, count: int, seed: int) -> Iterator[FittedLaw]:
    """Yield laws that are fitted to simulated losses of the same runs."""
    generator = np.random.default_rng([seed, 2])
    sizes, rows = noise(law)
    truth = replace(law, adapted=None).losses_at(law.shares)
    for _ in range(count):
        drawn = rows[generator.integers(len(rows), size=len(truth))] * generator.choice([-1.0, 1.0], (len(truth), 1))
        yield refit(law, truth + sizes * drawn)


def difference_halves(law: FittedLaw, shares: Floats, others: Floats, *, seed: int = 0) -> Floats:
    """Return half of the 90 % interval of the predicted difference between each mixture and another one.

    Both mixtures are predicted by the same refitted laws, so that errors which they share cancel. Trees would take
    minutes to refit: with LightGBM the squares of both mixtures' own half widths add up, which is wider.

    Args:
        law: the law.
        shares: of the mixtures, shape (m, k).
        others: shares of the mixtures that they are compared with, shape (m, k).
        seed: of the simulated swarms.

    Returns:
        Half widths for each evaluation, their mean and the worst one, shape (m, L + 2); 0 for the same mixture.
    """
    same = np.abs(shares - others).max(axis=1, keepdims=True) < SAME
    if "lightgbm" in law.weights:
        return np.where(same, 0.0, np.hypot(_own_halves(law, shares), _own_halves(law, others)))
    m, both = len(shares), np.vstack([shares, others])
    losses = law.losses_at(both)
    drawn = np.array([_measures(refitted.losses_at(both)) for refitted in simulated(law, SIMULATIONS, seed)])
    variance = (drawn[:, :m] - drawn[:, m:]).var(axis=0, ddof=1)  # (m, L + 2)
    single, of_mean = misfit(law)
    largest = losses.argmax(axis=1).tolist()
    unexplained = np.array(
        [
            [*single, of_mean, misfit_of_worst(single, here, there)]
            for here, there in zip(largest[:m], largest[m:], strict=True)
        ]
    )
    halves = QUANTILE * np.sqrt(variance + unexplained**2)
    return np.where(same, 0.0, halves)


def _own_halves(law: FittedLaw, shares: Floats) -> Floats:
    """Return half of the 90 % interval of each loss, of their mean and of the largest, shape (m, L + 2)."""
    prediction = law.predict(shares)
    halves = prediction.high - prediction.predicted
    of_largest = np.take_along_axis(halves, prediction.predicted.argmax(axis=1)[:, None], axis=1)
    return np.column_stack([halves, prediction.mean_half, of_largest])


def _measures(losses: Floats) -> Floats:
    """Return the losses of mixtures, then their mean and the largest, (m, L) to (m, L + 2)."""
    return np.column_stack([losses, losses.mean(axis=1), losses.max(axis=1)])


def misfit(law: FittedLaw) -> tuple[Floats, float]:
    """Return the deviation of prediction errors that noise does not explain: of each evaluation, and of their mean."""
    sizes, rows = noise(law)
    both = [_robust(np.column_stack([errors, errors.mean(axis=1)])) for errors in (law.residuals, sizes * rows)]
    unexplained = np.sqrt(np.maximum(both[0] ** 2 - both[1] ** 2, 0.0))
    return unexplained[:-1], float(unexplained[-1])


def misfit_of_worst(single: Floats, here: int, there: int) -> float:
    """Return the misfit of the difference between the losses of the worst evaluations of two mixtures.

    If one evaluation is the worst of both, it is that evaluation's own.
    """
    return float(np.sqrt((single[here] ** 2 + single[there] ** 2) / 2))


def noise(law: FittedLaw) -> tuple[Floats, Floats]:
    """Return the noise deviation of each loss, shape (n, L), and rows of unit noise to draw from, shape (n, L)."""
    sizes = np.zeros_like(law.losses)
    for name, weight in law.weights.items():
        part = law.parts[name]
        if isinstance(part, Process):
            sizes += weight * np.maximum(law.losses - part.base, 0.0) * part.deviation * part.noise
        elif isinstance(part, Effective):
            sizes += weight * part.noise
        else:
            sizes += weight * np.sqrt(((part.predict(law.shares) - law.losses) ** 2).mean(axis=0))
    rows = law.residuals / np.maximum(law.losses - law.intervals.base, law.intervals.least)
    rows = np.clip(rows / _robust(rows), -2.5, 2.5)
    return sizes, rows / np.sqrt((rows**2).mean(axis=0))


def _robust(values: Floats) -> Floats:
    """Return the standard deviation of each column as its median absolute value has it."""
    return np.asarray(np.maximum(1.4826 * np.median(np.abs(values), axis=0), 1e-12))


def refit(law: FittedLaw, losses: Floats) -> FittedLaw:
    """Return the law fitted to other losses of the same runs, with the same stack weights and hyperparameters."""
    parts: dict[str, Any] = {}
    for name in law.weights:
        part = law.parts[name]
        if isinstance(part, Process):
            parts[name] = part.refit(losses)
        elif isinstance(part, Effective):
            parts[name] = fit_effective(part.problem, law.shares, losses, start=part)
        else:
            parts[name] = FITS[name](law.problem, law.shares, losses, 0)
    return replace(law, parts=parts, losses=losses)
