"""Errors of predicted differences between mixtures, from a parametric bootstrap.

A simulated swarm has the runs of the law. Its losses are the law's predictions plus noise. The noise has the size that
the fit estimated, and the correlation between evaluations that the residuals of the runs have. A law is fitted to each
simulated swarm. Such laws differ from the original law about as much as the original law differs from the truth.

Noise does not explain all errors of cross-validation. The rest, the *misfit*, is added.
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
"""Default number of simulated swarms for an interval."""
QUANTILE = 1.645
"""Half of a 90 % interval in standard deviations of a normal distribution."""

SAME = 1e-4
"""Two mixtures whose shares differ by less than this are the same, up to rounding to whole tokens. Their difference in
loss is 0."""


def simulated(law: FittedLaw, count: int, seed: int) -> Iterator[FittedLaw]:
    """Yield `count` laws, each fitted to simulated losses of the same runs."""
    generator = np.random.default_rng([seed, 2])
    sizes, rows = noise(law)
    truth = replace(law, adapted=None).losses_at(law.shares)
    for _ in range(count):
        drawn = rows[generator.integers(len(rows), size=len(truth))] * generator.choice([-1.0, 1.0], (len(truth), 1))
        yield refit(law, truth + sizes * drawn)


def difference_halves(law: FittedLaw, shares: Floats, others: Floats, *, seed: int = 0) -> Floats:
    """Return half the width of the 90 % interval of the predicted difference between each mixture and another one.

    The same refitted laws predict both mixtures, so errors that they share cancel. With LightGBM this is not done,
    because refitting trees would take minutes. Instead, the squares of both mixtures' own half widths are added, which
    gives wider intervals.

    Args:
        law: the law.
        shares: shares of the mixtures, shape (m, k).
        others: shares of the mixtures that they are compared with, shape (m, k).
        seed: seed of the simulated swarms.

    Returns:
        Half widths for each evaluation, then for their mean and for the worst one, shape (m, L + 2). They are 0 if both
            mixtures are the same.
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
    """Return half the width of the 90 % interval of each loss, their mean and the largest, shape (m, L + 2)."""
    prediction = law.predict(shares)
    halves = prediction.high - prediction.predicted
    of_largest = np.take_along_axis(halves, prediction.predicted.argmax(axis=1)[:, None], axis=1)
    return np.column_stack([halves, prediction.mean_half, of_largest])


def _measures(losses: Floats) -> Floats:
    """Return the losses of mixtures, (m, L), with two more columns for their mean and the largest, (m, L + 2)."""
    return np.column_stack([losses, losses.mean(axis=1), losses.max(axis=1)])


def misfit(law: FittedLaw) -> tuple[Floats, float]:
    """Return the standard deviation of prediction errors that noise does not explain.

    Returns:
        That of each evaluation, shape (L,), and that of their mean.
    """
    sizes, rows = noise(law)
    deviations = [_robust(np.column_stack([errors, errors.mean(axis=1)])) for errors in (law.residuals, sizes * rows)]
    unexplained = np.sqrt(np.maximum(deviations[0] ** 2 - deviations[1] ** 2, 0.0))
    return unexplained[:-1], float(unexplained[-1])


def misfit_of_worst(single: Floats, here: int, there: int) -> float:
    """Return the misfit of the difference between the worst losses of two mixtures.

    If the same evaluation is the worst in both mixtures, this is the misfit of that evaluation.

    Args:
        single: misfit of each evaluation, shape (L,).
        here: index of the worst evaluation in one mixture.
        there: index of the worst evaluation in the other.
    """
    return float(np.sqrt((single[here] ** 2 + single[there] ** 2) / 2))


def noise(law: FittedLaw) -> tuple[Floats, Floats]:
    """Return the standard deviation of the noise of each loss, (n, L), and rows of unit noise to draw from, (n, L)."""
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
    """Return a robust standard deviation of each column, from its median absolute value."""
    return np.asarray(np.maximum(1.4826 * np.median(np.abs(values), axis=0), 1e-12))


def refit(law: FittedLaw, losses: Floats) -> FittedLaw:
    """Return the law fitted to other losses of the same runs, with the same stack weights and hyperparameters."""
    from threadpoolctl import threadpool_limits

    parts: dict[str, Any] = {}
    with threadpool_limits(1, user_api="blas"):  # the matrices are small, as in `FittedLaw.fit`
        for name in law.weights:
            part = law.parts[name]
            if isinstance(part, Process):
                parts[name] = part.refit(losses)
            elif isinstance(part, Effective):
                parts[name] = fit_effective(part.problem, law.shares, losses, start=part)
            else:
                parts[name] = FITS[name](law.problem, law.shares, losses, 0)
    return replace(law, parts=parts, losses=losses)
