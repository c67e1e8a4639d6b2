"""One step of the outer problem: from gradient products to new source weights.

Each step, every source j is scored by how much a gradient step on it would lower the target losses,
W_j = ⟨g_j, Σ_i τ_i g_i⟩. Weights move by mirror descent, multiplied by exp(η W_j / μ) and projected back onto the
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
"""Decay of the running means of |g|²: they remember about 20 steps, while gradient norms change over hundreds."""

LEAST_SIGNAL = 0.02
"""Least share of |g|² that is taken for signal. Measured shares are 0.15 to 0.5 (docs/experiments.md); the bound keeps
a mean of products that noise made tiny or negative from blowing up the scores."""


@dataclass(frozen=True)
class Rule:
    """What decides a step and stays the same over the fit.

    Args:
        targets: (k,) τ, >= 0: how much the loss of each source counts.
        trained: (k,) bool: False for a held-out target, which steers and is never trained on (α = 0).
        floor: γ, least weight of a trained source.
        mu: μ > 0, the score by which a source must exceed another over the whole fit to gain a factor e on it.
        score: "unbiased" takes ⟨g_j, g_j⟩ between independent halves of the batch; "paper" from one batch.
        normalise: what a score is divided by; see `normalised`.
        masses: (k,) what the targets count for in that, where it is not the targets themselves.
        shares: (k,) what each source counts for in the mean length of gradients; all alike if left out.
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
        steps: number of those steps.
        signal: exponentially weighted sum of the mean squared gradient, without noise where the score is.
        square_norm: the same of |g_i|², noise included.
        mass: the sum of the weights of both, for the bias of the first steps.
    """

    now: Floats
    total: Floats
    steps: int = 0
    signal: float = 0.0
    square_norm: float = 0.0
    mass: float = 0.0

    @classmethod
    def start(cls, initial: Floats) -> Weights:
        """Start at these weights, (k,), 0 for sources that are not trained on."""
        return cls(now=initial, total=np.zeros(initial.size))

    @property
    def average(self) -> Floats:
        """The mean of α_t over the steps that count: the answer of the fit."""
        return self.total / self.steps if self.steps else self.now


def step(
    weights: Weights, products: SourceProducts, *, rule: Rule, eta: float, counts: bool = True
) -> tuple[Weights, Floats]:
    """Return the weights after one step, and the score of each source that moved them.

    Args:
        weights: the state before.
        products: losses and gradient products of the step's batch.
        rule: what stays the same over the fit.
        eta: η_t, the step's part of the whole fit: proportional to the proxy's learning rate, summing to 1.
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
    # how far this step's gradients leap above the usual: without it, one sequence of one step decided a whole fit
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
    """Return W_j per source in nats², NaN where the batch cannot tell.

    Between two sources the batch's draws are independent, so ⟨g_j, g_i⟩ is unbiased as it is; only ⟨g_j, g_j⟩ holds
    the gradient noise, E|g_j|² = |∇l_j|² + tr Var g_j. The unbiased score puts the product of two independent halves
    in its place.
    """
    own = own_products(products, rule)
    correction = np.where(rule.targets > 0, rule.targets * (own - products.square_norms), 0.0)
    scores: Floats = products.scores + correction
    return scores


def own_products(products: SourceProducts, rule: Rule) -> Floats:
    """Return |∇l_j|² as the score sees it: ⟨g_j^A, g_j^B⟩ between halves, or the paper's |g_j|²."""
    return products.square_norms if rule.score == "paper" else products.half_products


def noise_share(products: SourceProducts, rule: Rule) -> float | None:
    """Return what part of the paper's scores, summed over sources, is gradient noise; None if no source has two rows.

    It is Σ_j τ_j (|g_j|² - ⟨g_j^A, g_j^B⟩) over Σ_j W_j, for the sources with two sequences or more.
    """
    told = ~np.isnan(products.half_products)
    noise = rule.targets * (products.square_norms - products.half_products)
    total = products.scores[told].sum()
    return float(noise[told].sum() / total) if total else None


def normalised(scores: Floats, products: SourceProducts, *, rule: Rule, mean_square: float) -> Floats:
    """Return scores without the scale of the gradients, so that one μ serves proxies of all sizes.

    "mean_square" divides by Στ (or the sum of `masses`) over the sources present and by the running mean of |∇l_i|² as
    the score estimates it, times the leap of this step's |g|² above its running mean: the mean alignment of a source
    with the targets, 1 if all gradients are equal. "none" leaves nats² per unit step. In these means every language
    counts alike (`shares`), so that cutting a source in two changes no score.
    """
    if rule.normalise == "none":
        return scores
    masses = rule.targets if rule.masses is None else rule.masses
    present = masses[~np.isnan(products.losses)].sum()
    return scores / (mean_square * present) if present > 0 and mean_square > 0 else np.full_like(scores, np.nan)


def mirror_step(weights: Floats, exponents: Floats, *, floor: float) -> Floats:
    """Return argmax_α ⟨α, x⟩ - KL(α ‖ α_t) over the floored simplex, α_t ⊙ exp(x) projected exactly.

    A source that could not be scored (NaN) neither gains nor loses against the others: it takes the exponent at which
    their share, all together, stays what it was.

    Args:
        weights: (k,) α_t.
        exponents: (k,) x = η W / μ; NaN where unknown.
        floor: γ, one number below 1 / k.
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
    """Mean over the sources whose value is known, 0 if none of them counts."""
    shares = np.where(np.isnan(values), 0.0, 1.0 if rule.shares is None else rule.shares)
    return float(np.average(np.nan_to_num(values), weights=shares)) if shares.any() else 0.0
