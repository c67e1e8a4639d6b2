"""Targets τ: how much the loss of each source counts, fixed or moving towards the languages that progress least.

In each step a language ℓ makes a progress of P_ℓ(α) = ⟨∇l_ℓ, Σ_j α_j g_j⟩, to first order and per unit of the learning
rate. C_ℓ is the progress that ℓ would make with all the weight. `targets: robust` plays a game over their ratio:

    max over α, min over τ   Σ_ℓ τ_ℓ P_ℓ(α) / C_ℓ

α moves up by the outer step, with τ_ℓ / C_ℓ as targets; τ moves down by mirror descent. A guard (`no_worse_than`)
compares P_ℓ(α) with P_ℓ of reference weights. It raises the target of a language whose loss would end too far above
the loss that the reference would have reached. Neither needs another backward pass: progress is an inner product with a
sum that the gradient engine forms anyway, or with one more.

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
"""Target that a language gains when it is foreseen to miss half its allowance by as much again: at its limit."""
AHEAD = 0.2
"""Part of the fit that the guard looks ahead: weights move over such times, and would swing if it waited."""

NUMBERS = ("mass", "elapsed")
"""The fields of `TargetState` that hold one number for the whole fit."""

FLOOR_SHARE = 1 / 20
"""Least τ of a language as a part of the equal share: none is ever out of sight."""


@dataclass(frozen=True)
class TargetRule:
    """How the targets move: what stays the same over the fit.

    Args:
        shares: (L, k) what each source counts for in its language's loss; rows sum to 1.
        base: (k,) targets where they do not move.
        robust: whether τ moves.
        mu: the lead in relative progress over the whole fit that costs a language a factor e of τ.
        reference: (k,) weights of the guard, None for no guard.
        allowance: by what part a language's loss may end above the reference's.
    """

    shares: Floats
    base: Floats
    robust: bool = False
    mu: float = 0.1
    reference: Floats | None = None
    allowance: float = 0.01

    @property
    def moves(self) -> bool:
        """Whether languages have to be followed at all."""
        return self.robust or self.reference is not None


@dataclass(frozen=True)
class TargetState:
    """What a step moves. All fields are (L,), by language, except `mass` and `elapsed`.

    Args:
        tau: τ, on the floored simplex.
        total: sum of τ over the steps so far.
        signal: exponentially weighted sum of C_ℓ = Σ_i ω_i |∇l_i|², without noise where the score is.
        square_norm: the same of Σ_i ω_i |g_i|², noise included.
        loss: the same of the loss.
        mass: the sum of the weights of the five.
        elapsed: Σ_t η_t, the part of the fit that is done.
        pace: exponentially weighted sum of P_ℓ(α_t).
        reference_pace: the same of the reference's.
        multiplier: λ ≥ 0 of the guard.
        first_loss: in the first step.
        made: Σ_t η_t P_ℓ(α_t).
        reference_made: Σ_t η_t P_ℓ of the reference weights.
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
    made: Floats
    reference_made: Floats
    mass: float = 0.0
    elapsed: float = 0.0

    @classmethod
    def start(cls, languages: int) -> Self:
        """Begin with equal targets and nothing seen."""
        names = [field.name for field in fields(cls) if field.name not in NUMBERS]
        empty: dict[str, Any] = {name: np.zeros(languages) for name in names}
        return cls(**empty | {"tau": np.full(languages, 1 / languages), "first_loss": np.full(languages, np.nan)})

    @property
    def potential(self) -> Floats:
        """C_ℓ, bounded from below as the scores' scale is; 1 before the first step."""
        if not self.mass:
            return np.ones_like(self.tau)
        bounded: Floats = np.maximum(self.signal, LEAST_SIGNAL * self.square_norm) / self.mass
        return np.where(bounded > 0, bounded, np.inf)

    def targets(self, rule: TargetRule) -> Floats:
        """Return τ of the sources for the next step, (k,); only their proportions matter."""
        potential = self.potential
        finite = np.isfinite(potential)
        usual = potential[finite].mean() if finite.any() else 1.0
        return self._of_sources(rule, usual / potential)

    def masses(self, rule: TargetRule) -> Floats:
        """Return what each source's target counts for in the scale of the scores, (k,).

        A target in units of a language's own progress says how much it is asked for, not how long gradients are.
        """
        return self._of_sources(rule, np.ones_like(self.tau))

    def _of_sources(self, rule: TargetRule, scale: Floats) -> Floats:
        """Return (k,) what τ and the multipliers, times (L,) a scale, and fixed targets make of each source."""
        if not rule.moves:
            return rule.base
        count = len(self.tau)
        moving: Floats = ((count * self.tau * rule.robust + self.multiplier) * scale) @ rule.shares
        return moving if rule.robust else moving + rule.base * count / rule.base.sum()

    def excess(self) -> Floats:
        """Return by what part the loss of each language is above what the reference would have reached by now, (L,).

        The fall of the loss so far, times the reference's progress over the progress made, is taken for the
        reference's fall; NaN before anything can be said, and while the loss is above what it was at first.
        """
        return self._forecast(0.0)

    def _forecast(self, ahead: float) -> Floats:
        """Return the same after a further part of the fit at the present pace of both."""
        with np.errstate(divide="ignore", invalid="ignore"):
            fallen = self.first_loss - self.loss / self.mass
            made = self.made + ahead * self.pace / self.mass
            reference_made = self.reference_made + ahead * self.reference_pace / self.mass
            loss = self.first_loss - fallen * made / self.made
            reference = self.first_loss - fallen * reference_made / self.made
            known = (fallen > 0) & (self.made > 0) & (self.reference_made > 0) & (reference > 0)
            excess: Floats = np.where(known, loss / reference - 1, np.nan)
        return excess


def advance(
    state: TargetState, products: SourceProducts, weights: Floats, *, target_rule: TargetRule, rule: Rule, eta: float
) -> tuple[TargetState, Floats]:
    """Return the state after one step, and the relative progress P_ℓ / C_ℓ that each language made in it, (L,).

    Args:
        state: before the step.
        products: of the step's batch.
        weights: (k,) what each source's gradient counted for in the training gradient.
        target_rule: what stays the same.
        rule: of the outer step; whether own products hold noise.
        eta: the step's part of the whole fit.
    """
    own = own_products(products, rule)
    present = target_rule.shares * ~np.isnan(own)
    sums = present.sum(1, keepdims=True)
    shares = np.divide(present, sums, out=np.zeros_like(present), where=sums > 0)  # (L, k)
    seen = sums[:, 0] > 0

    def by_language(values: Floats) -> Floats:
        return np.where(seen, shares @ np.where(np.isnan(own), 0.0, values), np.nan)

    def kept(before: Floats, values: Floats) -> Floats:
        # a language that the batch does not show keeps its mean
        usual = before / state.mass if state.mass else np.zeros_like(before)
        return DECAY * before + (1 - DECAY) * np.where(np.isnan(values), usual, values)

    noise = own - products.square_norms
    losses = by_language(products.losses)
    made = by_language(products.progress + weights * noise)
    after = replace(
        state,
        signal=kept(state.signal, by_language(own)),
        square_norm=kept(state.square_norm, by_language(products.square_norms)),
        loss=kept(state.loss, losses),
        mass=DECAY * state.mass + (1 - DECAY),
        elapsed=state.elapsed + eta,
        pace=kept(state.pace, made),
        first_loss=np.where(np.isnan(state.first_loss), losses, state.first_loss),
        made=state.made + eta * np.nan_to_num(made),
    )
    progress: Floats = made / after.potential
    if target_rule.robust:
        floor = FLOOR_SHARE / len(state.tau)
        tau = mirror_step(state.tau, -eta / target_rule.mu * progress, floor=floor)
        after = replace(after, tau=tau, total=state.total + tau)
    if target_rule.reference is not None:
        assert products.reference is not None
        would = by_language(products.reference + target_rule.reference * noise)
        pace, sums = kept(state.reference_pace, would), state.reference_made + eta * np.nan_to_num(would)
        after = replace(after, reference_pace=pace, reference_made=sums)
        ahead = min(AHEAD, 1 - after.elapsed)
        # an allowance that grows with the fit lasts to its end
        half = target_rule.allowance / 2 * (after.elapsed + ahead)
        forecast = after._forecast(ahead)
        # no progress at all is no estimate, and the worst there is; a few steps of noise are neither
        stuck = np.isnan(forecast) & ~(after.made > 0) & (after.reference_made > 0) & (after.mass > 0.5)
        miss = np.where(stuck, GAIN, forecast / half - 1)
        multiplier = np.where(np.isnan(miss), state.multiplier, GAIN * np.clip(miss, 0.0, GAIN))
        after = replace(after, multiplier=multiplier)
    return after, progress


def targets_by_source(targets: str | Mapping[str, float], languages: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Return τ of each source: 1 for "sources", its own in a mapping, else an equal part of its language's, which is 1.

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
    """Return (L, k): what each source counts for in its language's loss, by its target; all alike without any."""
    shares = np.zeros((len(languages), len(targets)))
    for row, members in enumerate(languages):
        own = targets[list(members)]
        shares[row, list(members)] = own / own.sum() if own.sum() else 1 / len(members)
    return shares
