"""One step of the outer problem: from gradient products to new source weights.

The score of a source j says how much a gradient step on it would lower the target losses: W_j = ⟨g_j, Σ_i τ_i g_i⟩.
The weights move by mirror descent. Each weight is multiplied by exp(η W_j / μ), and the result is projected onto the
simplex with a floor. The step is a pure function from state to state, in NumPy and float64. The derivation is in
`docs/explanation/method.md`, "The outer step" and "Unbiased scores".

Source: Fan et al. 2023, DoGE, arXiv:2310.15393; Lacunza et al. 2025, XDoGE, arXiv:2512.10545.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from xdoge.mixtures.simplex import Floats, project

if TYPE_CHECKING:
    from xdoge.fit.gradients.products import SourceProducts

Score = Literal["unbiased", "paper"]
Normalisation = Literal["mean_square", "none"]

DECAY = 0.95
"""Decay of the running means of |g|². They average over about 20 steps; gradient norms change over hundreds."""

LEAST_SIGNAL = 0.02
"""Least share of |g|² that counts as signal. Measured shares are 0.15 to 0.5 (docs/experiments.md). Noise can make the
mean of the products tiny or negative. Without this bound, the scores would then become huge."""


@dataclass(frozen=True)
class Rule:
    """The settings of the outer step, which stay the same over the fit.

    Args:
        targets: (k,) τ, >= 0: how much the loss of each source counts.
        trained: (k,) bool: False for a held-out target. It steers the weights, but the proxy never trains on it
            (α = 0).
        floor: γ, least weight of a trained source.
        mu: μ > 0. A source whose score exceeds another's by μ over the whole fit gains a factor e on it.
        score: "unbiased" computes ⟨g_j, g_j⟩ between independent halves of the batch, "paper" within the whole batch.
        normalise: what the scores are divided by; see `normalised`.
        masses: (k,) weights of the targets in this normalisation; by default `targets`.
        shares: (k,) weights of the sources in the mean of |g|²; by default all equal.
    """

    targets: Floats
    trained: np.ndarray[tuple[int], np.dtype[np.bool_]]
    floor: float
    mu: float
    score: Score
    normalise: Normalisation
    masses: Floats | None = None
    shares: Floats | None = None


@dataclass(frozen=True)
class Weights:
    """The state of the outer problem: the weights now, their running sum, and the scale of the gradients.

    Args:
        now: (k,) α_t, 0 where not trained.
        total: (k,) sum of α_t over the steps that count towards the average.
        steps: number of these steps.
        signal: exponentially weighted sum of the mean of |∇l_i|², as the score estimates it.
        square_norm: exponentially weighted sum of the mean of |g_i|², gradient noise included.
        mass: sum of the exponential weights. Dividing by it removes the bias of the first steps.
    """

    now: Floats
    total: Floats
    steps: int = 0
    signal: float = 0.0
    square_norm: float = 0.0
    mass: float = 0.0

    @classmethod
    def start(cls, initial: Floats) -> Weights:
        """Return the state before the first step. `initial` is (k,), with 0 for sources that are not trained on."""
        return cls(now=initial, total=np.zeros(initial.size))

    @property
    def average(self) -> Floats:
        """The mean of α_t over the steps that count, (k,): the result of the fit."""
        return self.total / self.steps if self.steps else self.now


def step(
    weights: Weights, products: SourceProducts, *, rule: Rule, eta: float, counts: bool = True
) -> tuple[Weights, Floats]:
    """Return the weights after one step, and the scores that moved them.

    Args:
        weights: the state before the step.
        products: losses and gradient products of the step's batch.
        rule: settings of the outer step.
        eta: η_t, the step's part of the whole fit. It is proportional to the proxy's learning rate and sums to 1.
        counts: whether the new weights count towards the average (False during burn-in).

    Returns:
        The new state, and (k,) dimensionless scores, NaN where a source could not be scored.
    """
    signal, square_norm = _mean(own_products(products, rule), rule), _mean(products.square_norms, rule)
    weights = replace(
        weights,
        signal=DECAY * weights.signal + (1 - DECAY) * signal,
        square_norm=DECAY * weights.square_norm + (1 - DECAY) * square_norm,
        mass=DECAY * weights.mass + (1 - DECAY),
    )
    usual = max(weights.signal, LEAST_SIGNAL * weights.square_norm) / weights.mass
    # Damp a step whose gradients are far above the running mean: one sequence of one step once decided a whole fit.
    leap = max(1.0, square_norm * weights.mass / weights.square_norm) if weights.square_norm else 1.0
    mean_square = usual * leap
    scores = normalised(raw_scores(products, rule), products, rule=rule, mean_square=mean_square)
    exponents = eta / rule.mu * scores
    trained = rule.trained
    now = np.zeros_like(weights.now)
    now[trained] = mirror_step(weights.now[trained], exponents[trained], floor=rule.floor)
    after = replace(
        weights,
        now=now,
        total=weights.total + now if counts else weights.total,
        steps=weights.steps + counts,
    )
    return after, scores


def raw_scores(products: SourceProducts, rule: Rule) -> Floats:
    """Return W_j per source in nats², (k,), NaN where the batch does not determine it.

    The batch draws two sources independently, so ⟨g_j, g_i⟩ is unbiased. Only ⟨g_j, g_j⟩ contains gradient noise:
    E|g_j|² = |∇l_j|² + tr Var g_j. The unbiased score replaces it by the product of two independent halves.
    """
    own = own_products(products, rule)
    correction = np.where(rule.targets > 0, rule.targets * (own - products.square_norms), 0.0)
    scores: Floats = products.scores + correction
    return scores


def own_products(products: SourceProducts, rule: Rule) -> Floats:
    """Return the score's estimate of |∇l_j|², (k,): ⟨g_j^A, g_j^B⟩ between halves, or |g_j|² as in the paper."""
    return products.square_norms if rule.score == "paper" else products.half_products


def noise_share(products: SourceProducts, rule: Rule) -> float | None:
    """Return the share of gradient noise in the paper's scores, or None if no source has two sequences.

    It is Σ_j τ_j (|g_j|² - ⟨g_j^A, g_j^B⟩) / Σ_j W_j over the sources with at least two sequences.
    """
    known = ~np.isnan(products.half_products)
    noise = rule.targets * (products.square_norms - products.half_products)
    total = products.scores[known].sum()
    return float(noise[known].sum() / total) if total else None


def normalised(scores: Floats, products: SourceProducts, *, rule: Rule, mean_square: float) -> Floats:
    """Return scores without the scale of the gradients, (k,), so that one μ serves proxies of all sizes.

    With `normalise` "mean_square", the scores are divided by `mean_square` and by the sum of τ (or of `masses`) over
    the sources present. The result is the mean alignment of a source with the targets: 1 if all gradients are equal.
    With "none", the scores stay in nats².

    Args:
        scores: (k,) from `raw_scores`.
        products: of the step's batch; a source without a loss is absent.
        rule: settings of the outer step.
        mean_square: running mean of |∇l_i|², raised in a step whose |g|² is above its own running mean. All languages
            count equally in it (`Rule.shares`), so splitting a source in two changes no score.
    """
    if rule.normalise == "none":
        return scores
    masses = rule.targets if rule.masses is None else rule.masses
    present = masses[~np.isnan(products.losses)].sum()
    return scores / (mean_square * present) if present > 0 and mean_square > 0 else np.full_like(scores, np.nan)


def mirror_step(weights: Floats, exponents: Floats, *, floor: float) -> Floats:
    """Return argmax_α ⟨α, x⟩ - KL(α ‖ α_t) over the simplex with a floor: α_t ⊙ exp(x), projected exactly.

    Sources that could not be scored (NaN) neither gain nor lose: before the projection, their total share stays the
    same.

    Args:
        weights: (k,) α_t.
        exponents: (k,) x = η W / μ; NaN where unknown.
        floor: γ, below 1 / k.
    """
    known = ~np.isnan(exponents) & (weights > 0)
    if not known.any():
        return weights
    with np.errstate(divide="ignore"):
        log_weights = np.log(weights)  # in logarithms, so that no exponent under- or overflows
    moved = log_weights + np.where(known, exponents, 0.0)
    moved[~known] += np.logaddexp.reduce(moved[known]) - np.logaddexp.reduce(log_weights[known])
    return project(np.exp(moved - moved.max()), floor=floor)


def _mean(values: Floats, rule: Rule) -> float:
    """Return the mean over the sources whose value is known, weighted by `rule.shares`; 0 if these have no share."""
    shares = np.where(np.isnan(values), 0.0, 1.0 if rule.shares is None else rule.shares)
    return float(np.average(np.nan_to_num(values), weights=shares)) if shares.any() else 0.0
