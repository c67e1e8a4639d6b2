"""The best mixture under a law, and its gain over simple mixtures, corrected for optimism.

The optimum minimises the mean or the largest predicted loss over mixtures within bounds. With a convex form, there is
one solution. With a stack, the search starts at several mixtures and keeps the best.

A fitted law has errors, and the optimum tends to be where the law predicts too low a loss. So its predicted gain is too
high on average. A parametric bootstrap measures this *optimism*. It simulates the runs from the law, fits a law to them
and optimises. It then compares the gain that this fit predicts with the gain under the original law. The optimism is
subtracted from the gain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from scipy.optimize import minimize, nnls

from xdoge.errors import XDogeError, argument, few
from xdoge.laws.bootstrap import QUANTILE, SIMULATIONS, misfit, misfit_of_worst, simulated
from xdoge.laws.effective import fit_effective
from xdoge.laws.intervals import calibrate, novelty, novelty_among
from xdoge.laws.problem import Floats
from xdoge.laws.stack import folds
from xdoge.mixtures.allocation import unimax
from xdoge.mixtures.strategies import spread_by_size
from xdoge.names import check_seed, language_of

if TYPE_CHECKING:
    from xdoge.laws.fitted import FittedLaw

Law = TypeVar("Law", bound="FittedLaw")

FLOOR = 1e-4
"""Least share in the search with a stack, whose derivatives are infinite at a share of 0."""
LEVEL = 0.9
KNOWS = "fit it on a swarm, or with token counts and a budget"
BEYOND = 1.1
"""Ratio of the passes over a source to its largest number of passes in any run. From this ratio on, the prediction is a
guess."""
SAMPLES = 4000
"""Number of random mixtures that are tried for a form without derivatives."""


@dataclass(frozen=True)
class OptimizeSettings:
    """The objective, the limits and the bootstrap of an optimisation.

    Attributes:
        objective: "mean" or "worst" predicted loss over the evaluations.
        no_worse_than: limit on every evaluation's loss, as (mixture, tolerance). With ("uniform", 0.01), no loss may be
            more than 1 % above its value at equal shares.
        mean_no_worse_than: limit on the mean loss over the evaluations, as (mixture, tolerance).
        max_epochs: most passes over a source; needs token counts and a budget. None for no cap.
        budget_tokens: training tokens of the run; by default those of the law.
        anywhere: whether shares may be outside the range that the runs covered. By default they may not, since the
            law's errors there are unknown.
        bootstrap: number of simulated swarms that measure the optimism, at least 2.
        seed: seed of the bootstrap.
    """

    objective: str = "mean"
    no_worse_than: tuple[str, float] | None = None
    mean_no_worse_than: tuple[str, float] | None = None
    max_epochs: float | None = None
    budget_tokens: int | None = None
    anywhere: bool = False
    bootstrap: int = SIMULATIONS
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise XDogeError if a number is out of range."""
        check_seed(argument("seed"), self.seed)
        if self.max_epochs is not None:
            check_epochs(self.max_epochs)
        if self.budget_tokens is not None and self.budget_tokens < 1:
            raise XDogeError(f"{argument('budget_tokens')} is {self.budget_tokens}; it must be at least 1 token.")
        if self.bootstrap < 2:
            raise XDogeError(f"bootstrap is {self.bootstrap}; intervals need at least 2 swarms.")


def check_epochs(max_epochs: float) -> None:
    """Raise XDogeError if a cap on epochs is not a finite number above 0."""
    if not (math.isfinite(max_epochs) and max_epochs > 0):
        raise XDogeError(f"{argument('max_epochs')} is {max_epochs:g}; it must be a finite number above 0.")


@dataclass(frozen=True)
class Gain:
    """How much lower the loss is at the optimum than at another mixture, in the unit of the law's losses.

    The optimum of a fitted law looks better than it is. A bootstrap estimates this optimism.

    Attributes:
        over: name of the other mixture.
        predicted: predicted gain in the objective, before the correction.
        corrected: predicted gain minus the optimism.
        low: lower end of the 90 % interval of `corrected`.
        high: upper end of the 90 % interval of `corrected`.
        evaluations: corrected gain and the ends of its 90 % interval, by evaluation.
    """

    over: str
    predicted: float
    corrected: float
    low: float
    high: float
    evaluations: Mapping[str, tuple[float, float, float]]


@dataclass(frozen=True)
class Optimum:
    """The best mixture under a law. Losses and gains have the unit of the law's losses.

    Attributes:
        shares: shares of the best mixture by source.
        objective: "mean" or "worst".
        predicted: predicted loss by evaluation at `shares`.
        value: predicted mean or largest loss at `shares`.
        gains: gains over "uniform" and, if token counts are known, over "proportional" and "unimax".
        shadow_prices: for each source at its cap of `max_epochs`, how much the objective would fall if the cap allowed
            0.01 more of its share.
        recommended: the shares to use. The fallback is equal shares, or UniMax shares if equal shares break the epoch
            caps. `recommended` is `shares` if the gain over the fallback is significant (its interval lies above 0), or
            if the fallback breaks a limit. Otherwise it is the fallback.
        uses_fallback: whether `recommended` is the fallback.
        extrapolated: whether `shares` are farther from the nearest run than 99 % of the runs are from theirs.
        verdict: the recommendation in words.
    """

    shares: Mapping[str, float]
    objective: str
    predicted: Mapping[str, float]
    value: float
    gains: Mapping[str, Gain]
    shadow_prices: Mapping[str, float]
    recommended: Mapping[str, float]
    uses_fallback: bool
    extrapolated: bool
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "objective": self.objective,
            "value": self.value,
            "shares": dict(self.shares),
            "predicted": dict(self.predicted),
            "gains": {
                name: {
                    "predicted": gain.predicted,
                    "charged": gain.corrected,
                    "low": gain.low,
                    "high": gain.high,
                    "evaluations": {key: list(value) for key, value in gain.evaluations.items()},
                }
                for name, gain in self.gains.items()
            },
            "shadow_prices": dict(self.shadow_prices),
            "recommended": dict(self.recommended),
            "keeps_uniform": self.uses_fallback,
            "extrapolated": self.extrapolated,
            "verdict": self.verdict,
        }


Slopes = Callable[[Floats], tuple[Floats, Floats]]
"""Returns losses, shape (L,), and their derivatives with respect to the shares, shape (L, k), at a mixture."""


@dataclass(frozen=True)
class Programme:
    """A minimisation of (1 - worst) * mean loss + worst * largest loss over mixtures within bounds.

    Attributes:
        worst: weight of the largest loss in the objective. 0 is the mean alone and 1 the largest loss alone.
        low: least share of each source, shape (k,).
        high: largest share of each source, shape (k,).
        limits: largest loss allowed for each evaluation, shape (L,); None for no limits.
        mean_limit: largest mean loss allowed; None for no limit.
    """

    worst: float
    low: Floats
    high: Floats
    limits: Floats | None = None
    mean_limit: float | None = None

    def limited(self, losses: Floats, slopes: Floats) -> tuple[Floats, Floats]:
        """Return the margin below each of the m limits, (m,), and its derivatives, (m, k).

        `losses` is (L,) and `slopes` is (L, k).
        """
        left, by_share = [np.zeros(0)], [np.zeros((0, slopes.shape[1]))]
        if self.limits is not None:
            left.append(self.limits - losses)
            by_share.append(-slopes)
        if self.mean_limit is not None:
            left.append(np.array([self.mean_limit - losses.mean()]))
            by_share.append(-slopes.mean(axis=0)[None])
        return np.concatenate(left), np.vstack(by_share)

    def meets_limits(self, losses: Floats, tolerance: float = 0.0) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Return which mixtures meet every limit within a relative tolerance, (m,), from their losses, (m, L)."""
        good = np.ones(len(losses), dtype=bool)
        if self.limits is not None:
            good &= (losses <= self.limits + tolerance * np.abs(self.limits)).all(axis=1)
        if self.mean_limit is not None:
            good &= losses.mean(axis=1) <= self.mean_limit + tolerance * abs(self.mean_limit)
        return good

    def value(self, losses: Floats) -> float:
        """Return the objective of losses, shape (L,)."""
        return float(self.values(losses[None])[0])

    def values(self, losses: Floats) -> Floats:
        """Return the objective of each row of losses, shape (m, L)."""
        return np.asarray((1 - self.worst) * losses.mean(axis=1) + self.worst * losses.max(axis=1))

    def solve(self, slopes: Slopes, starts: Sequence[Floats]) -> Floats:
        """Return the best mixture of local searches from several starts, shape (k,).

        The largest loss is minimised as a variable t >= every loss, which keeps the problem smooth. The starts
        themselves are candidates too, since a search may end at a mixture that breaks a limit.

        Raises:
            XDogeError: no mixture within the bounds meets the limits.
        """
        best, least = None, math.inf
        for start in starts:
            begin = project(start, self.low, self.high)
            for share in (self._search(slopes, begin), begin):
                losses = slopes(share)[0]
                good = self.meets_limits(losses[None], 1e-6)[0]
                if good and (value := self.value(losses)) < least - 1e-10:
                    best, least = share, value
        if best is None:
            raise XDogeError(f"no mixture within the bounds keeps {self.limits_in_words}; allow a larger percentage.")
        return best

    @property
    def limits_in_words(self) -> str:
        """The limits in words, for error messages."""
        every = f"every evaluation within {argument('no_worse_than')}"
        mean = f"the mean within {argument('mean_no_worse_than')}"
        return " and ".join([every] * (self.limits is not None) + [mean] * (self.mean_limit is not None))

    def _search(self, slopes: Slopes, start: Floats) -> Floats:
        k = len(start)
        cache: dict[bytes, tuple[Floats, Floats]] = {}

        def at(x: Floats) -> tuple[Floats, Floats]:
            key = x[:k].tobytes()
            if key not in cache:
                cache.clear()
                cache[key] = slopes(np.clip(x[:k], self.low, self.high))
            return cache[key]

        losses = at(start)[0]
        scale = max(float(np.std(losses)), 1e-3)
        x0 = np.append(start, losses.max() / scale) if self.worst else start
        extra = len(x0) - k
        constraints: list[dict[str, Any]] = [
            {
                "type": "eq",
                "fun": lambda x: x[:k].sum() - 1.0,
                "jac": lambda x: np.append(np.ones(k), np.zeros(extra)),
            }
        ]
        if self.worst:
            constraints.append(
                {
                    "type": "ineq",
                    "fun": lambda x: x[k] - at(x)[0] / scale,
                    "jac": lambda x: np.hstack([-at(x)[1] / scale, np.ones((len(losses), 1))]),
                }
            )
        if count := len(self.limited(*at(start))[0]):
            constraints.append(
                {
                    "type": "ineq",
                    "fun": lambda x: self.limited(*at(x))[0] / scale,
                    "jac": lambda x: np.hstack([self.limited(*at(x))[1] / scale, np.zeros((count, extra))]),
                }
            )
        bounds = [(float(a), float(b)) for a, b in zip(self.low, self.high, strict=True)] + [(None, None)] * extra

        def objective(x: Floats) -> tuple[float, Floats]:
            values, gradient = at(x)
            mean, slope = (
                (1 - self.worst) * float(values.mean()) / scale,
                (1 - self.worst) * gradient.mean(axis=0) / scale,
            )
            return (mean + self.worst * float(x[k]), np.append(slope, self.worst)) if self.worst else (mean, slope)

        options = {"maxiter": 200, "ftol": 1e-9}
        result = minimize(
            objective, x0, jac=True, bounds=bounds, constraints=constraints, method="SLSQP", options=options
        )
        return project(result.x[:k], self.low, self.high)

    def prices(self, slopes: Slopes, share: Floats) -> Floats:
        """Return the shadow price of each upper bound, (k,): the gain in the objective per unit of share.

        At the optimum, the multipliers of the active bounds balance the gradient of the active losses. They are the
        solution of a least-squares problem with signs.
        """
        losses, gradient = slopes(share)
        k = len(share)
        tight = losses >= losses.max() - 1e-4 * max(1.0, abs(float(losses.max()))) if self.worst else np.zeros(0, bool)
        rows = gradient[tight] if self.worst else np.zeros((0, k))
        left, by_share = self.limited(losses, gradient)
        limited = -by_share[left <= 1e-4 * max(1.0, float(np.abs(losses).max()))]
        at_high = np.flatnonzero((share >= self.high - 1e-6) & (self.high < 1 - 1e-9))
        at_low = np.flatnonzero(share <= self.low + 1e-6)
        unit = np.eye(k)
        # Σ μ ∇y + Σ ν ∇limit + Σ cap - Σ floor + free constant = -(∇mean), all but the constant >= 0
        columns = np.vstack([rows, limited, unit[at_high], -unit[at_low], np.ones((1, k)), -np.ones((1, k))]).T
        target = np.zeros(k) if self.worst else -gradient.mean(axis=0)
        if self.worst:  # the multipliers of the largest losses sum to 1
            heavy = 1e3 * max(1.0, float(np.abs(gradient).max()))
            last = np.zeros(columns.shape[1])
            last[: len(rows)] = heavy
            columns, target = np.vstack([columns, last]), np.append(target, heavy)
        multipliers = nnls(columns, target)[0]
        prices = np.zeros(k)
        first = len(rows) + len(limited)
        prices[at_high] = multipliers[first : first + len(at_high)]
        return prices


def project(share: Floats, low: Floats, high: Floats) -> Floats:
    """Return the nearest mixture within bounds: clip(share + t), with t such that the sum is 1."""
    below, above = -2.0 - share.max(), 2.0 - share.min()
    for _ in range(100):
        t = (below + above) / 2
        if np.clip(share + t, low, high).sum() < 1:
            below = t
        else:
            above = t
    out: Floats = np.clip(share + above, low, high)
    return np.asarray(out / out.sum())


def best_shares(law: FittedLaw, objective: str) -> Floats:
    """Return the best mixture within the range of the runs, shape (k,). Its gain is not computed."""
    return _best(law, OptimizeSettings(objective=objective))[3]


def trade_off(law: FittedLaw, points: int = 13) -> Floats:
    """Return mixtures from the best mean loss to the best worst loss, shape (p, k), within the range of the runs.

    They minimise (1 - a) * mean + a * worst for `points` values of a from 0 to 1. A form that is not convex can give a
    mixture that another one beats in both losses. Such mixtures are left out.
    """
    low, high = _bounds(law, OptimizeSettings())
    uniform, chosen = reference_mixtures(law)["uniform"], list[Floats]()
    for weight in np.linspace(0, 1, points) ** 2:  # squared, since the mean changes most at small weights
        programme = Programme(float(weight), low, high)
        chosen.append(_solve(programme, law, [*_starts(law, programme, uniform), *chosen[-1:]]))
    losses = law.losses_at(np.array(chosen))
    pairs = np.column_stack([losses.mean(axis=1), losses.max(axis=1)])
    best = [pair for pair in range(points) if not (pairs < pairs[pair] - 1e-9).all(axis=1).any()]
    order = sorted(best, key=lambda i: tuple(pairs[i]))
    return np.array([chosen[i] for i in order])


def _best(law: FittedLaw, settings: OptimizeSettings) -> tuple[FittedLaw, Programme, dict[str, Floats], Floats]:
    """Return the law at the budget, the programme, the mixtures to compare with, and the best mixture."""
    if settings.objective not in ("mean", "worst"):
        raise XDogeError(f"objective {settings.objective!r} is unknown; it is mean or worst.")
    law = at_budget(law, settings.budget_tokens)
    low, high = _bounds(law, settings)
    references = reference_mixtures(law, settings.max_epochs)
    limits = _limits(law, "no_worse_than", settings.no_worse_than, references)
    mean_limits = _limits(law, "mean_no_worse_than", settings.mean_no_worse_than, references)
    mean_limit = None if mean_limits is None else float(mean_limits.mean())
    programme = Programme(float(settings.objective == "worst"), low, high, limits, mean_limit)
    uniform = references["uniform"]
    try:
        share = _solve(programme, law, _starts(law, programme, uniform))
    except XDogeError as error:
        for name, _ in filter(None, (settings.no_worse_than, settings.mean_no_worse_than)):
            outside = (references[name] < law.shares.min(axis=0)) | (references[name] > law.shares.max(axis=0))
            if outside.any() and not settings.anywhere:
                raise XDogeError(
                    f"{error.message.removesuffix('.')}, or use {argument('anywhere', True)}, since {name} lies "
                    "outside the range of the runs."
                ) from error
        raise
    return law, programme, references, share


def optimize(law: FittedLaw, settings: OptimizeSettings) -> Optimum:
    """Return the best mixture under a law, with its gains and a verdict.

    Raises:
        XDogeError: the objective is unknown, epochs are capped but token counts are unknown, the caps leave part of the
            budget unspent, or no mixture meets the limits.
    """
    law, programme, references, share = _best(law, settings)
    names = law.problem.sources
    prices = np.zeros(len(names))
    if law.smooth and settings.max_epochs is not None and law.problem.passes is not None:
        capped = programme.high >= settings.max_epochs / np.array(law.problem.passes) - 1e-12
        prices = np.where(capped, programme.prices(law.slopes, share), 0.0)
    optimism, errors = _bootstrap(law, programme, share, references, settings)
    losses = law.losses_at(share[None])[0]
    gains = {
        name: _gain(law, programme, name, share, other, optimism[name], errors[name])
        for name, other in references.items()
    }
    simple = "uniform"
    if settings.max_epochs is not None and law.problem.passes is not None and "unimax" in references:
        epochs = references["uniform"] * np.array(law.problem.passes)
        simple = "unimax" if (epochs > settings.max_epochs * (1 + 1e-9)).any() else "uniform"
    breaks = not programme.meets_limits(law.losses_at(references[simple][None]), 1e-6)[0]
    keep = gains[simple].low <= 0 and not breaks
    far = bool(novelty(share[None], law.shares)[0] > law.intervals.far)
    recommended = references[simple] if keep else share
    return Optimum(
        shares=dict(zip(names, share.tolist(), strict=True)),
        objective=settings.objective,
        predicted=dict(zip(law.problem.evaluations, losses.tolist(), strict=True)),
        value=programme.value(losses),
        gains=gains,
        shadow_prices={name: float(price) / 100 for name, price in zip(names, prices, strict=True) if price > 0},
        recommended=dict(zip(names, recommended.tolist(), strict=True)),
        uses_fallback=keep,
        extrapolated=far,
        verdict=_verdict(gains[simple], settings.objective, keep, breaks, far),
    )


def reference_mixtures(law: FittedLaw, max_epochs: float | None = None) -> dict[str, Floats]:
    """Return the mixtures that an optimum is compared with, by name, as `xdoge mix` plans them.

    They are "uniform" and, if token counts are known, "proportional" and "unimax". If sources are named
    language/source, languages have equal shares in "uniform". A language is divided among its sources by their sizes,
    or equally if token counts are unknown.
    """
    names, budget, cap = law.problem.sources, law.budget_tokens, max_epochs or 4.0
    by_language = _by_language(names)
    if law.tokens is None or budget is None:
        members = by_language.values() or [[name] for name in names]
        equal = {name: 1.0 / len(group) / len(members) for group in members for name in group}
        return {"uniform": np.array([equal[name] for name in names])}
    counts = {name: int(law.tokens[name]) for name in names}
    equal = dict.fromkeys(by_language or names, 1.0 / len(by_language or names))
    weights = {
        "uniform": spread_by_size(equal, counts) if by_language else equal,
        "proportional": {name: count / sum(counts.values()) for name, count in counts.items()},
    }
    if budget <= cap * sum(counts.values()):
        sizes = {language: sum(counts[name] for name in members) for language, members in by_language.items()}
        spent = unimax(sizes or counts, budget_tokens=budget, max_epochs=cap).counts
        shares = {name: count / budget for name, count in spent.items()}
        weights["unimax"] = spread_by_size(shares, counts) if by_language else shares
    return {strategy: np.array([shares[name] for name in names]) for strategy, shares in weights.items()}


def _by_language(names: Sequence[str]) -> dict[str, list[str]]:
    """Return the sources of each language; empty unless all names are language/source."""
    out: dict[str, list[str]] = {}
    for name in names:
        out.setdefault(language_of(name), []).append(name)
    return out if all("/" in name for name in names) else {}


def at_budget(law: Law, budget_tokens: int | None) -> Law:
    """Return the law for another budget. It is the effective-data law alone, since no other form models epochs.

    Its intervals come from the errors of this form at the budget of the runs. They do not contain the additional error
    at another budget, which no run measured.

    Raises:
        XDogeError: the law has no token counts, or the budget is below 1 token.
    """
    if budget_tokens is None or budget_tokens == law.budget_tokens:
        return law
    if law.tokens is None or law.budget_tokens is None:
        raise XDogeError(f"{argument('budget_tokens')} needs a law that knows token counts; {KNOWS}.")
    if budget_tokens < 1:
        raise XDogeError(f"{argument('budget_tokens')} is {budget_tokens}; it must be at least 1 token.")
    passes = tuple(budget_tokens / law.tokens[name] for name in law.problem.sources)
    problem = replace(law.problem, passes=passes)
    part = replace(law.effective, problem=problem)
    # D_l is measured in shares of the fitted budget. So (U_j / B) s(E_j) scales with B_new / B_old.
    ratio = budget_tokens / law.budget_tokens
    part = replace(part, level=part.level - part.exponent * math.log(ratio), offset=part.offset / ratio)
    residuals = law.residuals if set(law.weights) == {"effective"} else _residuals_of_effective(law)
    return replace(
        law,
        problem=problem,
        residuals=residuals,
        intervals=replace(
            calibrate(law.losses + residuals, law.losses, novelty_among(law.shares)), far=law.intervals.far
        ),
        budget_tokens=budget_tokens,
        parts={"effective": part},
        weights={"effective": 1.0},
        form="effective",
    )


def unseen_epochs(law: FittedLaw, runs: FittedLaw, shares: Mapping[str, Floats]) -> list[str]:
    """Return a line for each mixture that repeats a source more often than any run did.

    Args:
        law: at the budget of the mixtures, as `at_budget` returns it.
        runs: the law as it was fitted.
        shares: of each mixture by its name, shape (k,).
    """
    of_runs = runs.run_passes or runs.problem.passes
    if law.problem.passes is None or of_runs is None:
        return []
    most = runs.shares.max(axis=0) * np.array(of_runs)
    lines = []
    for name, share in shares.items():
        epochs = share * np.array(law.problem.passes)
        over = [
            f"{source} {epochs[j]:.3g} times (the runs {most[j]:.3g})"
            for j, source in enumerate(law.problem.sources)
            if epochs[j] > max(1.0, most[j]) * BEYOND
        ]
        if over:
            lines.append(f"{name} reads text more often than any run did, so its losses are a guess: {few(over)}.")
    return lines


def _residuals_of_effective(law: FittedLaw) -> Floats:
    """Return the cross-validated residuals of the effective-data law alone, shape (n, L)."""
    assigned, predicted = folds(law.shares, 0), np.empty_like(law.losses)
    for fold in range(int(assigned.max()) + 1):
        test = assigned == fold
        part = fit_effective(law.problem, law.shares[~test], law.losses[~test])
        predicted[test] = part.predict(law.shares[test])
    return predicted - law.losses


def _bounds(law: FittedLaw, settings: OptimizeSettings) -> tuple[Floats, Floats]:
    k = len(law.problem.sources)
    low, high = np.zeros(k), np.ones(k)
    if not settings.anywhere:
        low, high = law.shares.min(axis=0), law.shares.max(axis=0)
    if settings.max_epochs is not None:
        if law.problem.passes is None:
            raise XDogeError(f"{argument('max_epochs')} needs a law that knows token counts; {KNOWS}.")
        caps = settings.max_epochs / np.array(law.problem.passes)
        if caps.sum() < 1:
            raise XDogeError(
                f"{argument('max_epochs')} {settings.max_epochs:g} spends only {caps.sum():.3g} of the budget; raise "
                f"it to {settings.max_epochs / caps.sum():.3g} or more."
            )
        high = np.minimum(high, caps)
    low = np.minimum(low, high)
    if not law.convex:
        low = np.maximum(low, np.minimum(FLOOR, high / 2))
    if low.sum() > 1 or high.sum() < 1:
        raise XDogeError(
            f"the shares that the runs covered, within the caps, sum to at most {high.sum():.3g} and at least "
            f"{low.sum():.3g}; use {argument('anywhere', True)} to go beyond the runs."
        )
    return low, high


def parse_limit(key: str, text: str | None) -> tuple[str, float] | None:
    """Return the mixture and the tolerance of a limit: ("uniform", 0.01) for "uniform:1%". None gives None.

    Raises:
        XDogeError: the text has another form. The message names `key`.
    """
    if text is None:
        return None
    name, _, percent = text.partition(":")
    try:
        value = float(percent.removesuffix("%")) / 100
    except ValueError:
        value = -1.0
    if not name or not 0 <= value < 1:
        raise XDogeError(f"{argument(key)} {text!r}: write a mixture and a percentage, such as uniform:1%.")
    return name, value


def _limits(
    law: FittedLaw, key: str, limit: tuple[str, float] | None, references: Mapping[str, Floats]
) -> Floats | None:
    """Return the losses at the mixture of a limit, raised by its tolerance, shape (L,); None without a limit."""
    if limit is None:
        return None
    name, tolerance = limit
    if name not in references:
        raise XDogeError(f"{argument(key)} {name}: known mixtures are {', '.join(references)}.")
    losses = law.losses_at(references[name][None])[0]
    return np.asarray(losses + tolerance * np.abs(losses))


def _starts(law: FittedLaw, programme: Programme, uniform: Floats) -> list[Floats]:
    """Return the mixtures at which searches start.

    A convex law needs only one. Otherwise the optimum of the effective-data law and the best runs are added.
    """
    if law.convex:
        return [uniform]
    starts = [uniform]
    if "effective" in law.parts:
        plain = replace(programme, limits=None, mean_limit=None)
        starts.append(plain.solve(law.parts["effective"].slopes, [uniform]))
    predicted = law.losses_at(law.shares)
    starts.extend(law.shares[i] for i in np.argsort(programme.values(predicted))[:3])
    return starts


def _solve(programme: Programme, law: FittedLaw, starts: Sequence[Floats]) -> Floats:
    if law.smooth:
        return programme.solve(law.slopes, starts)
    generator = np.random.default_rng(0)
    k = len(programme.low)
    pool = np.vstack([*starts, law.shares, generator.dirichlet(np.ones(k), SAMPLES)])
    pool = np.array([project(share, programme.low, programme.high) for share in pool])
    losses = law.losses_at(pool)
    values = np.where(programme.meets_limits(losses), programme.values(losses), np.inf)
    if not np.isfinite(values).any():
        raise XDogeError(f"no mixture tried keeps {programme.limits_in_words}; allow a larger percentage.")
    return np.asarray(pool[values.argmin()])


def _gain(
    law: FittedLaw,
    programme: Programme,
    name: str,
    share: Floats,
    other: Floats,
    optimism: Floats,
    errors: Floats,
) -> Gain:
    """Return the gain over another mixture, with the optimism subtracted.

    Args:
        law: the law.
        programme: the optimisation.
        name: name of the other mixture.
        share: the best mixture, shape (k,).
        other: the other mixture, shape (k,).
        optimism: from `_bootstrap`, shape (L + 1,).
        errors: from `_bootstrap`, shape (bootstrap, L + 1).
    """
    here, there = law.losses_at(np.stack([share, other]))
    single, of_mean = misfit(law)
    of_worst = misfit_of_worst(single, int(here.argmax()), int(there.argmax()))
    unexplained = np.append(single, of_worst if programme.worst else of_mean)
    gains = np.append(there - here, programme.value(there) - programme.value(here))
    corrected = gains - optimism
    half = QUANTILE * np.sqrt(errors.var(axis=0, ddof=1) + unexplained**2)
    rows = {
        evaluation: (float(corrected[i]), float(corrected[i] - half[i]), float(corrected[i] + half[i]))
        for i, evaluation in enumerate(law.problem.evaluations)
    }
    return Gain(
        over=name,
        predicted=float(gains[-1]),
        corrected=float(corrected[-1]),
        low=float(corrected[-1] - half[-1]),
        high=float(corrected[-1] + half[-1]),
        evaluations=rows,
    )


def _bootstrap(
    law: FittedLaw,
    programme: Programme,
    share: Floats,
    references: Mapping[str, Floats],
    settings: OptimizeSettings,
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Return the optimism of the gains over each reference, and the errors of the gains at `share`.

    Returns:
        Optimism per reference, shape (L + 1,), and deviations of the gain at `share` in simulated swarms, shape
            (bootstrap, L + 1). The last column of each array is the objective.
    """
    errors: dict[str, list[Floats]] = {name: [] for name in references}
    fixed: dict[str, list[Floats]] = {name: [] for name in references}
    for refitted in simulated(law, settings.bootstrap, settings.seed):
        try:
            chosen = _solve(programme, refitted, [share])
        except XDogeError:
            chosen = share
        for name, other in references.items():
            errors[name].append(_gains(refitted, programme, chosen, other) - _gains(law, programme, chosen, other))
            fixed[name].append(_gains(refitted, programme, share, other) - _gains(law, programme, share, other))
    optimism = {name: np.mean(values, axis=0) for name, values in errors.items()}
    return optimism, {name: np.array(values) for name, values in fixed.items()}


def _gains(law: FittedLaw, programme: Programme, share: Floats, other: Floats) -> Floats:
    here, there = law.losses_at(np.stack([share, other]))
    return np.append(there - here, programme.value(there) - programme.value(here))


def _verdict(gain: Gain, objective: str, keep: bool, breaks: bool, far: bool) -> str:
    what = "mean loss" if objective == "mean" else "loss of the worst evaluation"
    numbers = f"{gain.corrected:+.4f} (90 % interval {gain.low:+.4f} to {gain.high:+.4f})"
    equal = "equal shares" if gain.over == "uniform" else "equal shares within the epoch caps (UniMax)"
    if keep:
        return f"keep {equal}: the predicted gain of the optimum in the {what} is {numbers}, so it may gain nothing."
    tail = " It lies far from all runs: train a few runs near it before you trust it." if far else ""
    if breaks and gain.low <= 0:
        gained = f"its gain over them in the {what} is {numbers}"
        return f"use the optimum: {equal} break a limit; {gained}.{_payers(gain)}{tail}"
    interval = f"(90 % interval {gain.low:.4f} to {gain.high:.4f})"
    lowers = f"it lowers the {what} by {gain.corrected:.4f} {interval} against {equal}"
    return f"use the optimum: {lowers}.{_payers(gain)}{tail}"


def _payers(gain: Gain) -> str:
    """Return a sentence that names the evaluations whose losses rise, by how much, the largest rise first."""
    rises = sorted((value, name) for name, value in gain.evaluations.items() if round(value[0], 4) < 0)
    payers = few([f"{name} by {-mean:.4f} ({-high:+.4f} to {-low:+.4f})" for (mean, low, high), name in rises])
    return f" It raises the loss of {payers}." if rises else " No evaluation is predicted to lose."
