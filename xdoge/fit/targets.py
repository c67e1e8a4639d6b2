"""Targets τ: how much the loss of each source counts, fixed or moving towards the languages that progress least.

The *progress* of a language ℓ is the fall of its loss in one step, to first order and per unit of the learning rate:
P_ℓ(α) = ⟨∇l_ℓ, Σ_j α_j g_j⟩. C_ℓ is the progress that ℓ would make if it had all the weight. `targets: robust` solves

    max over α, min over τ   Σ_ℓ τ_ℓ P_ℓ(α) / C_ℓ

The outer step maximises over α, with τ_ℓ / C_ℓ as targets. Mirror descent minimises over τ.

The *guard* (`no_worse_than`) compares P_ℓ(α) with P_ℓ of reference weights. It raises the target of a language whose
loss would end too far above the loss that the reference would have reached.

Neither needs another backward pass. Progress is an inner product with Σ_j α_j g_j, which the gradient engine forms
anyway. The guard adds one such sum.

Source: docs/explanation/method.md, "Robust targets" and "No worse than".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from xdoge.errors import XDogeError
from xdoge.fit.reweight import DECAY, LEAST_SIGNAL, Rule, mirror_step, own_products
from xdoge.mixtures.simplex import Floats

if TYPE_CHECKING:
    from xdoge.fit.gradients.products import SourceProducts

GAIN = 10.0
"""Target that the guard adds for a language whose forecast excess equals its full allowance."""

AHEAD = 0.2
"""Part of the fit that the guard forecasts. Weights take about so long to move; without a forecast they oscillate."""

NUMBERS = ("mass", "elapsed")
"""The fields of `TargetState` that hold one number for the whole fit."""

FLOOR_SHARE = 1 / 20
"""Least τ of a language, as a part of the equal share 1 / L."""


@dataclass(frozen=True)
class TargetRule:
    """The settings of the targets, which stay the same over the fit.

    Args:
        shares: (L, k) weight of each source in its language's loss; rows sum to 1.
        base: (k,) fixed targets, used if `robust` is False.
        robust: whether τ moves.
        mu: a language whose relative progress over the whole fit is ahead by `mu` loses a factor e of τ.
        reference: (k,) reference weights of the guard; None for no guard.
        allowance: how far a language's loss may end above the reference's, as a fraction of it.
    """

    shares: Floats
    base: Floats
    robust: bool = False
    mu: float = 0.1
    reference: Floats | None = None
    allowance: float = 0.01

    @property
    def moves(self) -> bool:
        """Whether the targets move at all."""
        return self.robust or self.reference is not None


@dataclass(frozen=True)
class TargetState:
    """The state of the targets. All fields are (L,), by language, except `mass` and `elapsed`.

    Args:
        tau: τ, on the simplex with a floor.
        total: sum of τ over the steps so far.
        signal: exponentially weighted sum of C_ℓ = Σ_i ω_i |∇l_i|², as the score estimates it.
        square_norm: exponentially weighted sum of Σ_i ω_i |g_i|², gradient noise included.
        loss: exponentially weighted sum of the loss.
        pace: exponentially weighted sum of P_ℓ(α_t).
        reference_pace: exponentially weighted sum of P_ℓ of the reference weights.
        mass: sum of the exponential weights. Dividing the five sums by it gives means.
        multiplier: λ ≥ 0 of the guard.
        first_loss: loss in the first step that showed the language, NaN before.
        progress: Σ_t η_t P_ℓ(α_t), the progress so far.
        reference_progress: Σ_t η_t P_ℓ of the reference weights.
        elapsed: Σ_t η_t, the part of the fit that is done.
    """

    tau: Floats
    total: Floats
    signal: Floats
    square_norm: Floats
    loss: Floats
    pace: Floats
    reference_pace: Floats
    multiplier: Floats
    first_loss: Floats
    progress: Floats
    reference_progress: Floats
    mass: float = 0.0
    elapsed: float = 0.0

    @classmethod
    def start(cls, languages: int) -> Self:
        """Return the state before the first step: equal targets, and all sums 0."""
        names = [each.name for each in fields(cls) if each.name not in NUMBERS]
        empty: dict[str, Any] = {name: np.zeros(languages) for name in names}
        return cls(**empty | {"tau": np.full(languages, 1 / languages), "first_loss": np.full(languages, np.nan)})

    @property
    def own_progress(self) -> Floats:
        """C_ℓ, the progress of ℓ if it had all the weight, (L,); 1 before the first step.

        It has the same lower bound as the scale of the scores.
        """
        if not self.mass:
            return np.ones_like(self.tau)
        bounded: Floats = np.maximum(self.signal, LEAST_SIGNAL * self.square_norm) / self.mass
        return np.where(bounded > 0, bounded, np.inf)

    def targets(self, rule: TargetRule) -> Floats:
        """Return τ of the sources for the next step, (k,); only their proportions matter."""
        own = self.own_progress
        finite = np.isfinite(own)
        usual = own[finite].mean() if finite.any() else 1.0
        return self._of_sources(rule, usual / own)

    def masses(self, rule: TargetRule) -> Floats:
        """Return the weight of each source's target in the scale of the scores, (k,).

        These are the targets without the factor 1 / C_ℓ, which depends on the lengths of the gradients.
        """
        return self._of_sources(rule, np.ones_like(self.tau))

    def _of_sources(self, rule: TargetRule, scale: Floats) -> Floats:
        """Return the targets of the sources, (k,): τ and the multipliers, times `scale` (L,), plus fixed targets."""
        if not rule.moves:
            return rule.base
        count = len(self.tau)
        moving: Floats = ((count * self.tau * rule.robust + self.multiplier) * scale) @ rule.shares
        return moving if rule.robust else moving + rule.base * count / rule.base.sum()

    def excess(self) -> Floats:
        """Return the relative excess of each language's loss over what the reference would have reached by now, (L,).

        The loss of the reference is estimated. Its fall is taken as the fall of the loss so far, times the reference's
        progress over the progress made. The excess is NaN if there is no progress yet, or if the loss has risen.
        """
        return self._forecast(0.0)

    def _forecast(self, ahead: float) -> Floats:
        """Return `excess` after a further part `ahead` of the fit, if both go on at their present pace."""
        with np.errstate(divide="ignore", invalid="ignore"):
            fallen = self.first_loss - self.loss / self.mass
            progress = self.progress + ahead * self.pace / self.mass
            reference_progress = self.reference_progress + ahead * self.reference_pace / self.mass
            loss = self.first_loss - fallen * progress / self.progress
            reference = self.first_loss - fallen * reference_progress / self.progress
            known = (fallen > 0) & (self.progress > 0) & (self.reference_progress > 0) & (reference > 0)
            excess: Floats = np.where(known, loss / reference - 1, np.nan)
        return excess


def advance(
    state: TargetState, products: SourceProducts, weights: Floats, *, target_rule: TargetRule, rule: Rule, eta: float
) -> tuple[TargetState, Floats]:
    """Return the state after one step, and the relative progress P_ℓ / C_ℓ of each language in it, (L,).

    Args:
        state: the state before the step.
        products: losses and gradient products of the step's batch.
        weights: (k,) weight of each source's mean gradient in the training gradient.
        target_rule: settings of the targets.
        rule: settings of the outer step. Its `score` decides how |∇l_j|² is estimated.
        eta: the step's part of the whole fit.
    """
    own = own_products(products, rule)
    present = target_rule.shares * ~np.isnan(own)
    sums = present.sum(1, keepdims=True)
    shares = np.divide(present, sums, out=np.zeros_like(present), where=sums > 0)  # (L, k)
    seen = sums[:, 0] > 0

    def by_language(values: Floats) -> Floats:
        return np.where(seen, shares @ np.where(np.isnan(own), 0.0, values), np.nan)

    def decayed(before: Floats, values: Floats) -> Floats:
        # a language without a sequence in the batch keeps its mean
        usual = before / state.mass if state.mass else np.zeros_like(before)
        return DECAY * before + (1 - DECAY) * np.where(np.isnan(values), usual, values)

    noise = own - products.square_norms
    losses = by_language(products.losses)
    progress = by_language(products.progress + weights * noise)
    after = replace(
        state,
        signal=decayed(state.signal, by_language(own)),
        square_norm=decayed(state.square_norm, by_language(products.square_norms)),
        loss=decayed(state.loss, losses),
        mass=DECAY * state.mass + (1 - DECAY),
        elapsed=state.elapsed + eta,
        pace=decayed(state.pace, progress),
        first_loss=np.where(np.isnan(state.first_loss), losses, state.first_loss),
        progress=state.progress + eta * np.nan_to_num(progress),
    )
    relative: Floats = progress / after.own_progress
    if target_rule.robust:
        floor = FLOOR_SHARE / len(state.tau)
        tau = mirror_step(state.tau, -eta / target_rule.mu * relative, floor=floor)
        after = replace(after, tau=tau, total=state.total + tau)
    if target_rule.reference is not None:
        assert products.reference is not None
        reference_progress = by_language(products.reference + target_rule.reference * noise)
        after = replace(
            after,
            reference_pace=decayed(state.reference_pace, reference_progress),
            reference_progress=state.reference_progress + eta * np.nan_to_num(reference_progress),
        )
        ahead = min(AHEAD, 1 - after.elapsed)
        # the allowance grows in proportion to the part of the fit that is done
        half = target_rule.allowance / 2 * (after.elapsed + ahead)
        forecast = after._forecast(ahead)
        # Without any progress there is no forecast, although this is the worst case. The bound on the mass waits until
        # it cannot be the noise of the first steps.
        stuck = np.isnan(forecast) & ~(after.progress > 0) & (after.reference_progress > 0) & (after.mass > 0.5)
        miss = np.where(stuck, GAIN, forecast / half - 1)
        multiplier = np.where(np.isnan(miss), state.multiplier, GAIN * np.clip(miss, 0.0, GAIN))
        after = replace(after, multiplier=multiplier)
    return after, relative


def targets_by_source(targets: str | Mapping[str, float], languages: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Return τ of each source.

    With "sources" every source has 1. With "languages" and "robust" every language has 1, which its sources share
    equally. In a mapping, the value of a language is shared equally by its sources.

    Raises:
        XDogeError: a mapping names a language and one of its sources.
    """
    if isinstance(targets, str):
        alike = targets == "sources"
        return {source: 1 / (1 if alike else len(members)) for members in languages.values() for source in members}
    parts: dict[str, float] = {}
    for name, target in targets.items():
        members = languages.get(name, [name])
        if twice := [source for source in members if source in parts or (source in targets and source != name)]:
            raise XDogeError(f"targets names {twice[0]} and its language; name one of them.")
        parts |= dict.fromkeys(members, target / len(members))
    return parts


def language_shares(languages: Sequence[Sequence[int]], targets: Floats) -> Floats:
    """Return the weight of each source in its language's loss, (L, k), in proportion to the targets.

    Args:
        languages: for each language, the positions of its sources.
        targets: (k,) τ. If all sources of a language have 0, they count equally.
    """
    shares = np.zeros((len(languages), len(targets)))
    for row, members in enumerate(languages):
        own = targets[list(members)]
        shares[row, list(members)] = own / own.sum() if own.sum() else 1 / len(members)
    return shares
