"""One step of the outer problem: from gradient products to new source weights.

Each step, every source j is scored by how much a gradient step on it would lower the target losses,
W_j = ⟨g_j, Σ_i τ_i g_i⟩. Weights move by mirror descent, multiplied by exp(η W_j / μ) and projected back onto the
simplex with a floor. The step is a pure function from state to state, in NumPy and float64; `docs/method.md` has
the derivation, "The outer step" and "Unbiased scores".

Source: Fan et al. 2023, DoGE, arXiv:2310.15393; Lacunza et al. 2025, XDoGE, arXiv:2512.10545.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from xdoge.simplex import Floats, project

if TYPE_CHECKING:
    from xdoge.proxy.gram import SourceProducts

Score = Literal["unbiased", "paper"]
Normalisation = Literal["mean_square", "mean_norm", "none"]

NORM_DECAY = 0.95
"""Of the running mean of |g|²: it remembers about 20 steps, while gradient norms change over hundreds."""


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
    """

    targets: Floats
    trained: np.ndarray[tuple[int], np.dtype[np.bool_]]
    floor: float
    mu: float
    score: Score
    normalise: Normalisation


@dataclass(frozen=True)
class Weights:
    """The state of the outer problem: the weights now, their running sum, and the scale of the gradients.

    Args:
        now: (k,) α_t, 0 where not trained.
        total: (k,) sum of α_t over the steps that count towards the average.
        steps: number of those steps.
        square_norm: exponentially weighted sum of the mean |g_i|².
        square_norm_mass: the sum of its weights, for the bias of the first steps.
    """

    now: Floats
    total: Floats
    steps: int = 0
    square_norm: float = 0.0
    square_norm_mass: float = 0.0

    @classmethod
    def uniform(cls, trained: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Weights:
        """Start from equal shares for all trained sources."""
        return cls(now=trained / trained.sum(), total=np.zeros(trained.size))

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
    square = float(np.nanmean(products.square_norms))
    mass = NORM_DECAY * weights.square_norm_mass + (1 - NORM_DECAY)
    square_norm = NORM_DECAY * weights.square_norm + (1 - NORM_DECAY) * square
    scores = normalised(raw_scores(products, rule), products, rule=rule, mean_square=square_norm / mass)
    exponents = eta / rule.mu * scores
    trained = rule.trained
    now = np.zeros_like(weights.now)
    now[trained] = mirror_step(weights.now[trained], exponents[trained], floor=rule.floor)
    after = replace(
        weights,
        now=now,
        total=weights.total + now if counts else weights.total,
        steps=weights.steps + counts,
        square_norm=square_norm,
        square_norm_mass=mass,
    )
    return after, scores


def raw_scores(products: SourceProducts, rule: Rule) -> Floats:
    """Return W_j per source in nats², NaN where the batch cannot tell.

    Between two sources the batch's draws are independent, so ⟨g_j, g_i⟩ is unbiased as it is; only ⟨g_j, g_j⟩ holds
    the gradient noise, E|g_j|² = |∇l_j|² + tr Var g_j. The unbiased score puts the product of two independent halves
    in its place.
    """
    if rule.score == "paper":
        return products.scores
    own: Floats = np.where(rule.targets > 0, rule.targets * (products.half_products - products.square_norms), 0.0)
    return products.scores + own


def noise_share(products: SourceProducts, rule: Rule) -> float | None:
    """Return what part of the paper's scores, summed over sources, is gradient noise; None where no source tells.

    It is Σ_j τ_j (|g_j|² - ⟨g_j^A, g_j^B⟩) over Σ_j W_j, for the sources with two sequences or more.
    """
    told = ~np.isnan(products.half_products)
    noise = rule.targets * (products.square_norms - products.half_products)
    return float(noise[told].sum() / products.scores[told].sum()) if told.any() else None


def normalised(scores: Floats, products: SourceProducts, *, rule: Rule, mean_square: float) -> Floats:
    """Return scores without the scale of the gradients, so that one μ serves proxies of all sizes.

    "mean_square" divides by the running mean of |g_i|² and by Στ over the sources present: the mean alignment of a
    source with the targets, about -1 to 1. "mean_norm" divides by the mean |g_i| of this step, as DoGE's code does.
    "none" leaves nats² per unit step.
    """
    if rule.normalise == "none":
        return scores
    if rule.normalise == "mean_norm":
        return scores / float(np.nanmean(np.sqrt(products.square_norms)))
    present = rule.targets[~np.isnan(products.losses)].sum()
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
    known = ~np.isnan(exponents)
    if not known.any():
        return weights
    largest = exponents[known].max()
    growth = np.exp(np.where(known, exponents, largest) - largest)
    growth[~known] = weights[known] @ growth[known] / weights[known].sum()
    return project(weights * growth, floor=floor)
