"""A Gaussian process on the logarithm of the loss above a level. It is more flexible than the effective-data law.

The covariance of two mixtures is a function of z = 2 √w. It is the sum of a Matérn 5/2 kernel with a length scale per
source, a linear kernel and a constant. Losses enter as ln(y - level), so that errors have the same size everywhere. The
length scales of all evaluations share prior means: one per source, and one for an evaluation's own sources. With them,
32 runs are enough for a fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve, lapack
from scipy.optimize import minimize

from xdoge.laws.problem import Floats, Problem, array_of, base_losses

CONSTANT = 4.0
"""Variance of the constant, in standardised units. It is so large that the mean of an evaluation is left open."""
JITTER = 1e-5
ITERATIONS = 60
MOST_RUNS = 200
"""Most runs that hyperparameters are fitted on. More runs change the accuracy little, and the time grows with their
cube."""
CHUNK_CELLS = 1 << 18
"""Number of kernel entries computed at once: 2 MB, which fits in a core's cache."""

START = {"scale": -1.5, "own_scale": 0.8, "slope": -2.2, "own_slope": 2.3, "amplitude": 0.0, "noise": np.log(0.1)}
"""Prior means of the logarithms of the inverse length scale, the linear weight, the factors by which own sources change
both, the amplitude and the noise."""
SPREAD = 0.5
"""Standard deviation of a length scale around its source's mean, and of a source's mean around the mean of all."""
NOISE_SPREAD, SHARED_NOISE_SPREAD = 0.5, 0.7


def features(shares: Floats) -> Floats:
    """Return 2 √w, in which changes of a small share count most. Powers of 0.35 to 0.5 were equally good on RegMix."""
    return np.asarray(2.0 * np.sqrt(shares), dtype=np.float64)


def matern(squared: Floats) -> tuple[Floats, Floats]:
    """Return the Matérn 5/2 correlation of squared distances, and its derivative with respect to them."""
    r = np.sqrt(5.0 * squared)
    decay = np.exp(-r)
    return (1.0 + r + 5.0 / 3.0 * squared) * decay, -5.0 / 6.0 * (1.0 + r) * decay


def squared_distances(a: Floats, b: Floats) -> Floats:
    """Return squared Euclidean distances of rows, shape (len(a), len(b))."""
    squared = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2.0 * a @ b.T
    return np.asarray(np.maximum(squared, 1e-12))


@dataclass(frozen=True)
class Process:
    """A fitted Gaussian process per evaluation.

    Attributes:
        problem: names and own sources.
        shares: mixtures that it was fitted on, shape (n, k).
        base: level below all losses, shape (L,).
        centre: mean of ln(loss - base), shape (L,).
        deviation: standard deviation of ln(loss - base), shape (L,).
        scales: inverse length scales, shape (L, k).
        linear: weights of the linear kernel, shape (L, k).
        amplitude: standard deviation of the Matérn part, shape (L,), in standardised units.
        noise: noise standard deviation, shape (L,), in standardised units.
        dual: K⁻¹ t, shape (L, n).
    """

    problem: Problem
    shares: Floats
    base: Floats
    centre: Floats
    deviation: Floats
    scales: Floats
    linear: Floats
    amplitude: Floats
    noise: Floats
    dual: Floats
    _roots: Floats = field(init=False, repr=False, compare=False)

    smooth = True
    convex = False

    def __post_init__(self) -> None:
        """Compute the features of the runs once."""
        object.__setattr__(self, "_roots", features(self.shares))

    def predict(self, shares: Floats) -> Floats:
        """Return losses, shape (m, L), for shares of shape (m, k)."""
        z = features(shares)
        out = np.empty((len(z), len(self.base)))
        step = max(1, CHUNK_CELLS // len(self.shares))
        for row in range(len(self.base)):
            scaled = self._roots * self.scales[row]
            flat = self._linear(row)
            weights = self.amplitude[row] ** 2 * self.dual[row]
            for start in range(0, len(z), step):
                block = z[start : start + step]
                kernel = _correlation(squared_distances(block * self.scales[row], scaled))
                out[start : start + step, row] = kernel @ weights + block @ flat
        out += CONSTANT * self.dual.sum(axis=1)
        return np.asarray(self.base + np.exp(out * self.deviation + self.centre))

    def _linear(self, row: int) -> Floats:
        """Return the coefficients of the linear kernel's part of the prediction for one evaluation, shape (k,)."""
        return np.asarray(self.linear[row] ** 2 * (self.dual[row] @ self._roots))

    def slopes(self, share: Floats) -> tuple[Floats, Floats]:
        """Return losses, (L,), and their derivatives with respect to the shares, (L, k), at one mixture > 0."""
        z = features(share[None])[0]
        losses = self.predict(share[None])[0]
        by_root = np.empty_like(self.scales)
        for row in range(len(self.base)):
            gap = (z - self._roots) * self.scales[row]  # (n, k)
            slope = matern(np.maximum((gap**2).sum(axis=1), 1e-12))[1]
            weights = self.amplitude[row] ** 2 * self.dual[row] * slope
            by_root[row] = 2.0 * self.scales[row] * (weights @ gap) + self._linear(row)
        by_share = by_root * 2.0 / np.maximum(z, 1e-6)  # z = 2 √w, so dz/dw = 2 / z
        return losses, ((losses - self.base) * self.deviation)[:, None] * by_share

    def refit(self, losses: Floats) -> Process:
        """Return the process on other losses of the same runs, with the same hyperparameters.

        Args:
            losses: shape (n, L), all above `base`.
        """
        targets = (np.log(np.maximum(losses - self.base, 1e-6)) - self.centre) / self.deviation
        return _conditioned(self, targets)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {name: getattr(self, name).tolist() for name in _ARRAYS}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], problem: Problem) -> Process:
        """Read what `to_dict` wrote."""
        runs, rows, columns = len(value["shares"]), len(problem.evaluations), len(problem.sources)
        shapes = {"shares": (runs, columns), "scales": (rows, columns), "linear": (rows, columns), "dual": (rows, runs)}
        return cls(problem, *(array_of(value[name], *shapes.get(name, (rows,))) for name in _ARRAYS))


_ARRAYS = ("shares", "base", "centre", "deviation", "scales", "linear", "amplitude", "noise", "dual")


def _correlation(squared: Floats) -> Floats:
    """Return the Matérn 5/2 correlation, computed in place. Prediction spends most of its time here."""
    squared *= 5.0
    r = np.sqrt(squared)
    squared *= 1.0 / 3.0
    squared += r
    squared += 1.0
    np.negative(r, out=r)
    np.exp(r, out=r)
    squared *= r
    return squared


class _Posterior:
    """The negative log posterior of the hyperparameters of all evaluations, and its gradient.

    The parameters are one vector. It begins with a row per evaluation: ln scales (k), ln linear weights (k), ln
    amplitude and ln noise. Then come shifts of prior means, which all evaluations share. They are, in order, those of
    scales by source (k), linear weights by source (k), all scales, own scales, all linear weights, own linear weights,
    and noise.
    """

    def __init__(self, problem: Problem, z: Floats, targets: Floats) -> None:
        self.z, self.targets = z, targets
        self.n, self.k = z.shape
        self.own = problem.is_own.astype(np.float64)
        self.count = targets.shape[1]

    def start(self) -> Floats:
        """Return the parameters at their prior means."""
        scales = START["scale"] + START["own_scale"] * self.own
        slopes = START["slope"] + START["own_slope"] * self.own
        ends = np.tile([START["amplitude"], START["noise"]], (self.count, 1))
        return np.concatenate([np.hstack([scales, slopes, ends]).ravel(), np.zeros(2 * self.k + 5)])

    def split(self, theta: Floats) -> tuple[Floats, Floats]:
        """Return the rows and the shared shifts."""
        cut = self.count * (2 * self.k + 2)
        return theta[:cut].reshape(self.count, -1), theta[cut:]

    def __call__(self, theta: Floats) -> tuple[float, Floats]:
        """Return the value and the gradient."""
        rows, shared = self.split(theta)
        value, gradient = 0.0, np.empty_like(rows)
        for row in range(self.count):
            more, gradient[row] = self._likelihood(rows[row], self.targets[:, row])
            value += more
        more, by_rows, by_shared = self._prior(rows, shared)
        return value + more, np.concatenate([(gradient + by_rows).ravel(), by_shared])

    def _likelihood(self, row: Floats, target: Floats) -> tuple[float, Floats]:
        k, z = self.k, self.z
        scales, linear, (amplitude, noise) = np.exp(row[:k]), np.exp(row[k : 2 * k]), np.exp(2 * row[2 * k :])
        correlation, slope = matern(squared_distances(z * scales, z * scales))
        flat = z * linear
        covariance = amplitude * correlation + flat @ flat.T + CONSTANT
        covariance[np.diag_indices(self.n)] += noise + JITTER
        factor, failed = lapack.dpotrf(covariance, lower=1)
        if failed:
            return 1e10, np.zeros_like(row)
        inverse = lapack.dpotri(factor, lower=1)[0]
        inverse = np.tril(inverse) + np.tril(inverse, -1).T
        dual = inverse @ target
        value = 0.5 * float(target @ dual) + float(np.log(np.diag(factor)).sum())
        half = 0.5 * (inverse - np.outer(dual, dual))  # derivative of the value with respect to the covariance
        gradient = np.empty_like(row)
        inner = half * slope * amplitude
        gradient[:k] = 4.0 * scales**2 * (inner.sum(axis=1) @ z**2 - ((inner @ z) * z).sum(axis=0))
        gradient[k : 2 * k] = 2.0 * linear**2 * ((half @ z) * z).sum(axis=0)
        gradient[2 * k] = 2.0 * amplitude * float((half * correlation).sum())
        gradient[2 * k + 1] = 2.0 * noise * float(np.trace(half))
        return value, gradient

    def _prior(self, rows: Floats, shared: Floats) -> tuple[float, Floats, Floats]:
        k, own = self.k, self.own
        by_source, (scale, own_scale, slope, own_slope, noise) = shared[: 2 * k], shared[2 * k :]
        parts = []
        for columns, centre, extra in (
            (slice(0, k), START["scale"] + scale + by_source[:k], START["own_scale"] + own_scale),
            (slice(k, 2 * k), START["slope"] + slope + by_source[k:], START["own_slope"] + own_slope),
        ):
            parts.append((rows[:, columns] - centre - extra * own) / SPREAD)
        ends = np.stack([rows[:, 2 * k] - START["amplitude"], (rows[:, 2 * k + 1] - START["noise"] - noise)], axis=1)
        ends /= np.array([1.0, NOISE_SPREAD])
        scales = np.concatenate([np.full(2 * k, SPREAD), np.ones(4), [SHARED_NOISE_SPREAD]])
        shared_z = shared / scales
        value = 0.5 * (sum(float((part**2).sum()) for part in (*parts, ends)) + float((shared_z**2).sum()))
        by_rows = np.hstack([parts[0] / SPREAD, parts[1] / SPREAD, ends / np.array([1.0, NOISE_SPREAD])])
        by_shared = shared_z / scales
        by_shared[:k] -= by_rows[:, :k].sum(axis=0)
        by_shared[k : 2 * k] -= by_rows[:, k : 2 * k].sum(axis=0)
        for place, columns in ((2 * k, slice(0, k)), (2 * k + 2, slice(k, 2 * k))):
            by_shared[place] -= by_rows[:, columns].sum()
            by_shared[place + 1] -= (by_rows[:, columns] * own).sum()
        by_shared[2 * k + 4] -= by_rows[:, 2 * k + 1].sum()
        return value, by_rows, by_shared


def fit_process(problem: Problem, shares: Floats, losses: Floats, seed: int = 0) -> Process:
    """Return the process with maximum a posteriori hyperparameters.

    Args:
        problem: names and own sources.
        shares: shape (n, k), rows sum to 1.
        losses: shape (n, L).
        seed: if there are more than `MOST_RUNS` runs, draws those that hyperparameters are fitted on.

    Source: Rasmussen and Williams 2006, Gaussian Processes for Machine Learning, equation 5.9 and section 4.2.
    """
    base, _ = base_losses(losses)
    logs = np.log(losses - base)
    centre, deviation = logs.mean(axis=0), logs.std(axis=0)
    targets = (logs - centre) / deviation
    z, few = features(shares), np.arange(len(shares))
    if len(shares) > MOST_RUNS:
        few = np.random.default_rng(seed).choice(len(shares), MOST_RUNS, replace=False)
    posterior = _Posterior(problem, z[few], targets[few])
    options = {"maxiter": ITERATIONS, "maxcor": 20}
    result = minimize(posterior, posterior.start(), jac=True, method="L-BFGS-B", options=options)
    rows = np.exp(posterior.split(result.x)[0])
    k = shares.shape[1]
    blank = np.zeros((losses.shape[1], len(shares)))
    arrays = (shares, base, centre, deviation, rows[:, :k], rows[:, k : 2 * k], rows[:, 2 * k], rows[:, 2 * k + 1])
    return _conditioned(Process(problem, *arrays, blank), targets)


def _conditioned(process: Process, targets: Floats) -> Process:
    """Return the process conditioned on standardised targets, shape (n, L)."""
    z = features(process.shares)
    dual = np.empty_like(process.dual)
    for row in range(len(dual)):
        scaled, flat = z * process.scales[row], z * process.linear[row]
        kernel = process.amplitude[row] ** 2 * _correlation(squared_distances(scaled, scaled))
        kernel += flat @ flat.T + CONSTANT
        kernel[np.diag_indices(len(z))] += process.noise[row] ** 2 + JITTER
        dual[row] = cho_solve(cho_factor(kernel, lower=True), targets[:, row])
    return replace(process, dual=dual)
