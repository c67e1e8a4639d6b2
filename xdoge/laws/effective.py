"""The effective-data law: the loss on a language falls with its own text and with the text of related languages.

With mixture w, the effective data of evaluation l is D_l = Σ_j τ_lj (U_j / B) s(E_j), and its loss is

    y_l = F_l + exp(a_l - β_l ln(D_l + d_l) + g_l H_l)

D_l is concave in w. H_l, the harm of many epochs, is convex in w. Hence y_l is convex in w. The fit is maximum a
posteriori with exact gradients. All evaluations share the means of the priors, which are fitted too. The derivation is
in docs/explanation/law.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize

from xdoge.laws.problem import Floats, Problem, array_of

HARM_EPOCHS = 16.0
"""Number of epochs e0 from which on repetition harms. After 16 epochs, a repeated token is worth little
(arXiv:2305.16264, section 5)."""

DECAY = 1 / 15
"""Prior mean of λ. With this value, four epochs are worth 3.7 epochs of new text (Muennighoff et al. 2023,
arXiv:2305.16264)."""

PRIOR_MEANS = np.array([-3.0, np.log(0.4), np.log(0.03), -0.5])
"""Prior means, over evaluations, of ln τ, ln β, ln d and ln((best loss - F) / standard deviation)."""
PRIOR_MEAN_DEVIATIONS = np.array([0.7, 0.4, 0.7, 0.5])
"""Standard deviations of the fitted means around `PRIOR_MEANS`."""
PRIOR_DEVIATIONS = np.array([1.5, 0.5, 1.0, 0.7])
"""Standard deviations of the same four parameters, over evaluations, around the fitted means."""
HARM_MEAN, HARM_DEVIATION = np.log(0.05), 1.0
SLOPE_MEAN, SLOPE_DEVIATION = 0.5, 0.25
"""Prior of c1, the slope of the prior mean of ln τ on the logarithm of the gradient affinity. A slope of 1 would mean
that gradients determine the transfer."""
LOG_DECAY = float(np.log(DECAY))
DECAY_DEVIATION = 0.5
NOISE = 0.1
"""Initial standard deviation of the residuals, in standard deviations of the losses. Values of 0.1 and 0.15 gave equal
accuracy on RegMix."""
HUBER = 3.0
"""Residuals beyond this many standard deviations of the noise count linearly (Huber's loss)."""
ITERATIONS = 3000


def epoch_value(epochs: Floats, decay: float) -> tuple[Floats, Floats]:
    """Return s(E), the value of E epochs in epochs of new text, and its derivative with respect to ln λ.

    s(E) = E up to one epoch, and 1 + (1 - exp(-λ (E - 1))) / λ beyond.
    """
    more = np.maximum(epochs - 1.0, 0.0)
    gone = -np.expm1(-decay * more)
    value = np.minimum(epochs, 1.0) + gone / decay
    return value, more * np.exp(-decay * more) - gone / decay


def softplus(x: Floats) -> Floats:
    """Return ln(1 + exp(x)) without overflow."""
    return np.asarray(np.logaddexp(0.0, x))


@dataclass(frozen=True)
class Effective:
    """A fitted effective-data law.

    Attributes:
        problem: names, own sources and passes.
        floor: F, shape (L,), in the unit of the losses.
        level: a, shape (L,).
        exponent: β >= 0, shape (L,).
        offset: d > 0, shape (L,), in shares.
        harm: g >= 0, shape (L,); 0 if token counts are unknown.
        transfer: τ, shape (L, k); 1 for the evaluation's own sources.
        decay: λ, which all evaluations share.
        noise: residual standard deviation of the fit, in the unit of the losses, shape (L,).
    """

    problem: Problem
    floor: Floats
    level: Floats
    exponent: Floats
    offset: Floats
    harm: Floats
    transfer: Floats
    decay: float
    noise: Floats

    smooth = True
    convex = True

    def predict(self, shares: Floats) -> Floats:
        """Return losses, shape (m, L), for shares of shape (m, k)."""
        return self.floor + np.exp(self._exponents(shares)[0])

    def slopes(self, share: Floats) -> tuple[Floats, Floats]:
        """Return losses, shape (L,), and their derivatives by the shares, shape (L, k), at one mixture."""
        exponents, effective = self._exponents(share[None])
        excess = np.exp(exponents[0])
        passes = self.problem.passes
        if passes is None:
            marginal = np.ones(len(share))
        else:
            epochs = share * np.array(passes)
            marginal = np.where(epochs > 1, np.exp(-self.decay * np.maximum(epochs - 1, 0)), 1.0)
        slopes = -(self.exponent / (effective[0]))[:, None] * self.transfer * marginal
        if passes is not None:
            inner = share * np.array(passes) / HARM_EPOCHS - 1
            rise = np.array(passes) / HARM_EPOCHS / (1 + np.exp(-inner))
            slopes = slopes + self.harm[:, None] * harm_weights(self.problem) * rise
        return self.floor + excess, excess[:, None] * slopes

    def _exponents(self, shares: Floats) -> tuple[Floats, Floats]:
        values, harms = regressors(self.problem, shares, self.decay)[::2]
        effective = values @ self.transfer.T + self.offset  # (m, L)
        return self.level - self.exponent * np.log(effective) + self.harm * harms, effective

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        names = ("floor", "level", "exponent", "offset", "harm", "transfer", "noise")
        return {name: getattr(self, name).tolist() for name in names} | {"decay": self.decay}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], problem: Problem) -> Effective:
        """Read what `to_dict` wrote."""
        rows = len(problem.evaluations)
        names = ("floor", "level", "exponent", "offset", "harm", "noise")
        arrays: dict[str, Any] = {name: array_of(value[name], rows) for name in names}
        arrays["transfer"] = array_of(value["transfer"], rows, len(problem.sources))
        decay = float(array_of(value["decay"]))
        if decay <= 0:
            raise ValueError(f"decay is {decay}; it must be above 0")
        return cls(problem=problem, decay=decay, **arrays)


def harm_weights(problem: Problem) -> Floats:
    """Return v, shape (L, k): the share of each source in an evaluation's own unique text."""
    weights = np.where(problem.is_own, 1.0, 0.0)
    if problem.passes is not None:
        weights = weights / np.array(problem.passes)  # in proportion to U_j
    total = weights.sum(axis=1, keepdims=True)
    return np.asarray(weights / np.where(total > 0, total, 1.0))


def regressors(problem: Problem, shares: Floats, decay: float) -> tuple[Floats, Floats, Floats]:
    """Return the effective data and the harm of mixtures, before transfer.

    Returns:
        (U_j / B) s(E_j), shape (m, k); its derivative with respect to ln λ, shape (m, k); and H_l, shape (m, L).
    """
    if problem.passes is None:
        zeros = np.zeros((len(shares), len(problem.evaluations)))
        return shares, np.zeros_like(shares), zeros
    passes = np.array(problem.passes)
    epochs = shares * passes
    value, by_decay = epoch_value(epochs, decay)
    harms = softplus(epochs / HARM_EPOCHS - 1) @ harm_weights(problem).T
    return value / passes, by_decay / passes, harms


def jacobian(law: Effective, shares: Floats) -> Floats:
    """Return the derivatives of the predicted losses with respect to the law's parameters, shape (m, L, k + 5).

    The parameters of an evaluation are ln τ (k of them), ln β, ln d, the floor, a and ln g.
    """
    values, _, harms = regressors(law.problem, shares, law.decay)
    effective = values @ law.transfer.T + law.offset  # (m, L)
    excess = np.exp(law.level - law.exponent * np.log(effective) + law.harm * harms)
    by_effective = -excess * law.exponent / effective
    m, rows = effective.shape
    k = shares.shape[1]
    slopes = np.zeros((m, rows, k + 5))
    slopes[:, :, :k] = by_effective[:, :, None] * np.where(law.problem.is_own, 0.0, law.transfer) * values[:, None, :]
    slopes[:, :, k] = -excess * law.exponent * np.log(effective)
    slopes[:, :, k + 1] = by_effective * law.offset
    slopes[:, :, k + 2] = -1.0
    slopes[:, :, k + 3] = excess
    slopes[:, :, k + 4] = excess * law.harm * harms
    return slopes


class _Posterior:
    """The negative log posterior of the law's parameters and its gradient.

    The parameters are one vector. It begins with a row per evaluation: ln τ (k of them), ln β, ln d,
    ln((best - F) / sd), a and ln g. Then come the four prior means, c1 and ln λ. Losses are divided by their standard
    deviation.
    """

    def __init__(self, problem: Problem, shares: Floats, losses: Floats, noise: float | Floats) -> None:
        self.problem, self.shares, self.losses = problem, shares, losses
        self.noise = noise
        self.own = problem.is_own
        self.deviation = losses.std(axis=0)
        self.best = losses.min(axis=0)
        self.columns = shares.shape[1]
        self.repeats = problem.passes is not None
        # The level a is measured at a typical amount of data: otherwise a and β are so correlated that L-BFGS crawls.
        typical = np.where(self.own.any(axis=1), (shares @ self.own.T).mean(axis=0), 0.0)
        self.typical = np.log(typical + 0.03)
        k = self.columns
        deviations = np.array([problem.transfer_deviation or PRIOR_DEVIATIONS[0], *PRIOR_DEVIATIONS[1:]])
        spread = np.concatenate([np.full(k, deviations[0]), deviations[1:], [3.0, HARM_DEVIATION]])
        self.free = np.ones((len(self.own), k + 5))  # 0 where a parameter is fixed, or is not the logarithm of another
        self.free[:, :k][self.own] = 0.0
        self.free[:, k + 3] = 0.0
        self.is_level = np.arange(k + 5) == k + 3
        self.precision = np.where(self.is_level, 1.0, self.free) / spread
        self.above = (self.best - losses) / self.deviation
        affinity = np.zeros(self.own.shape) if problem.affinity is None else np.array(problem.affinity)
        self.affinity = np.where(self.own, 0.0, affinity)

    def start(self) -> Floats:
        """Return the parameters at their prior means."""
        row = np.concatenate([np.full(self.columns, PRIOR_MEANS[0]), PRIOR_MEANS[1:], [0.0, HARM_MEAN]])
        rows = np.tile(row, (len(self.deviation), 1))
        if self.problem.affinity is not None:
            rows[:, : self.columns] += SLOPE_MEAN * self.affinity
        return np.concatenate([rows.ravel(), PRIOR_MEANS, [SLOPE_MEAN, np.log(DECAY)]])

    def start_at(self, law: Effective) -> Floats:
        """Return the parameters of a law that was fitted to similar losses."""
        k = self.columns
        below = np.log(np.maximum(self.best - law.floor, 0.05 * self.deviation) / self.deviation)
        level = law.level - np.log(self.deviation) - law.exponent * self.typical
        harm = np.log(law.harm) if self.repeats else np.full(len(below), HARM_MEAN)
        plain = np.stack([np.log(law.exponent), np.log(law.offset), below, level, harm], axis=1)
        rows = np.hstack([np.where(self.own, PRIOR_MEANS[0], np.log(law.transfer)), plain])
        means = [rows[:, :k][~self.own].mean() if (~self.own).any() else PRIOR_MEANS[0], *plain[:, :3].mean(axis=0)]
        return np.concatenate([rows.ravel(), means, [SLOPE_MEAN, np.log(law.decay)]])

    def split(self, theta: Floats) -> tuple[Floats, Floats, float]:
        """Return the rows, the prior means with c1, and ln λ."""
        rows = theta[:-6].reshape(len(self.deviation), self.columns + 5)
        return rows, theta[-6:-1], float(theta[-1])

    def __call__(self, theta: Floats) -> tuple[float, Floats]:
        """Return the value and the gradient."""
        k = self.columns
        rows, means, log_decay = self.split(theta)
        positive = np.exp(rows * self.free)  # 1 for own sources
        transfer, exponent, offset, below = positive[:, :k], positive[:, k], positive[:, k + 1], positive[:, k + 2]
        level, harm = rows[:, k + 3], positive[:, k + 4] * self.repeats
        values, by_decay, harms = regressors(self.problem, self.shares, np.exp(log_decay))
        effective = values @ transfer.T + offset  # (n, L)
        log_effective = np.log(effective) - self.typical
        exponents = level - exponent * log_effective + harm * harms
        excess = np.exp(np.minimum(np.maximum(exponents, -50.0), 50.0))
        residuals = (self.above - below + excess) / self.noise
        clipped = np.minimum(np.maximum(residuals, -HUBER), HUBER)
        value = float((clipped * (residuals - clipped / 2)).sum())  # Huber's loss
        by_loss = clipped / self.noise
        by_exponent = by_loss * excess  # derivative with respect to the argument of exp()
        by_log = by_exponent * exponent
        by_effective = -by_log / effective
        gradient = np.empty_like(rows)
        gradient[:, :k] = by_effective.T @ values
        gradient[:, k] = -(by_log * log_effective).sum(axis=0) / exponent
        gradient[:, k + 1] = by_effective.sum(axis=0)
        gradient[:, k + 2] = -by_loss.sum(axis=0)
        gradient[:, k + 3] = by_exponent.sum(axis=0)
        gradient[:, k + 4] = (by_exponent * harms).sum(axis=0) * self.repeats
        gradient *= np.where(self.is_level, 1.0, positive * self.free)
        slope = float(((by_effective @ transfer) * by_decay).sum()) if self.repeats else 0.0
        more, prior_rows, prior_means, prior_decay = self._prior(rows, means, log_decay)
        return value + more, np.concatenate([(gradient + prior_rows).ravel(), prior_means, [slope + prior_decay]])

    def _prior(self, rows: Floats, means: Floats, log_decay: float) -> tuple[float, Floats, Floats, float]:
        k = self.columns
        means, slope = means[:4], means[4]
        centre = np.zeros(k + 5)
        centre[:k], centre[k : k + 3], centre[k + 4] = means[0], means[1:], HARM_MEAN
        away = rows - centre
        if self.problem.affinity is not None:
            away[:, :k] -= slope * self.affinity
        z = away * self.precision
        by_rows = z * self.precision
        column_sums = by_rows.sum(axis=0)
        z_means = (means - PRIOR_MEANS) / PRIOR_MEAN_DEVIATIONS
        by_means = z_means / PRIOR_MEAN_DEVIATIONS
        by_means[0] -= column_sums[:k].sum()
        by_means[1:] -= column_sums[k : k + 3]
        z_slope = (slope - SLOPE_MEAN) / SLOPE_DEVIATION
        by_slope = z_slope / SLOPE_DEVIATION - float((by_rows[:, :k] * self.affinity).sum())
        z_decay = (log_decay - LOG_DECAY) / DECAY_DEVIATION
        total = 0.5 * (float((z * z).sum()) + float((z_means * z_means).sum()) + z_slope**2 + z_decay**2)
        return total, by_rows, np.append(by_means, by_slope), z_decay / DECAY_DEVIATION

    def law(self, theta: Floats, noise: Floats) -> Effective:
        """Return the law at these parameters, in the unit of the losses."""
        k = self.columns
        rows, _, log_decay = self.split(theta)
        exponent = np.exp(rows[:, k])
        return Effective(
            problem=self.problem,
            floor=self.best - self.deviation * np.exp(rows[:, k + 2]),
            level=rows[:, k + 3] + np.log(self.deviation) + exponent * self.typical,
            exponent=exponent,
            offset=np.exp(rows[:, k + 1]),
            harm=np.exp(rows[:, k + 4]) * self.repeats,
            transfer=np.exp(np.where(self.own, 0.0, rows[:, :k])),
            decay=float(np.exp(log_decay)),
            noise=noise,
        )


def fit_effective(
    problem: Problem, shares: Floats, losses: Floats, seed: int = 0, start: Effective | None = None
) -> Effective:
    """Return the maximum a posteriori law.

    The first fit assumes a noise of `NOISE` standard deviations of the losses. If the residuals are smaller, a second
    fit uses their size as the noise.

    Args:
        problem: names, own sources and passes.
        shares: shape (n, k), rows sum to 1.
        losses: shape (n, L).
        seed: not used; the fit starts at the prior means.
        start: a law fitted to similar losses. If given, the fit starts there and the first fit is left out.

    Source: docs/explanation/law.md; the form joins arXiv:2305.16264 (repetition) and arXiv:2510.22037 (transfer).
    """
    if start is not None:
        size = start.noise / losses.std(axis=0)
        posterior = _Posterior(problem, shares, losses, _weighed(size) if size.mean() < NOISE / 2 else NOISE)
        theta = _descend(posterior, posterior.start_at(start))
        return posterior.law(theta, _noise(posterior, theta) * posterior.deviation)
    posterior = _Posterior(problem, shares, losses, NOISE)
    theta = _descend(posterior, posterior.start())
    noise = _noise(posterior, theta)
    if noise.mean() < NOISE / 2:
        posterior = _Posterior(problem, shares, losses, _weighed(noise))
        theta = _descend(posterior, theta)
        noise = _noise(posterior, theta)
    return posterior.law(theta, noise * posterior.deviation)


def _weighed(noise: Floats) -> Floats:
    return np.asarray(np.maximum(noise, noise.mean() / 3))


def _descend(posterior: _Posterior, theta: Floats) -> Floats:
    options = {"maxiter": ITERATIONS, "maxcor": 20, "maxfun": 2 * ITERATIONS}
    result = minimize(posterior, theta, jac=True, method="L-BFGS-B", options=options)
    return np.asarray(result.x, dtype=np.float64)


def _noise(posterior: _Posterior, theta: Floats) -> Floats:
    """Return the residual standard deviation of each evaluation, in standard deviations of its losses.

    Each evaluation has k + 4 parameters of its own. The priors restrict them, so each counts as half a degree of
    freedom.
    """
    law = posterior.law(theta, np.ones(len(posterior.deviation)))
    residuals = (law.predict(posterior.shares) - posterior.losses) / posterior.deviation
    n = len(residuals)
    free = max(n - (posterior.columns + 4) / 2, n / 3)
    return np.asarray(np.maximum(np.sqrt((residuals**2).sum(axis=0) / free), 1e-4))
