"""A law fitted to runs: cross-validation, predictions with 90 % intervals, and law.json.

The form `auto` is a stack of the effective-data law, a Gaussian process and the log-linear law. Cross-validation
chooses its weights. docs/explanation/law.md has the derivation and the measurements.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from xdoge.config import parse_count
from xdoge.errors import XDogeError, argument, names_that_differ
from xdoge.io import read_json, write_json
from xdoge.laws.effective import Effective, fit_effective
from xdoge.laws.intervals import Intervals, calibrate, novelty, novelty_among
from xdoge.laws.own_sources import match_own
from xdoge.laws.problem import FORMS, Floats, Problem, array_of
from xdoge.laws.rivals import has_lightgbm
from xdoge.laws.scores import Scores, score
from xdoge.laws.stack import FITS, READERS, STACKED, folds, stack_weights
from xdoge.laws.transfer import WORTH_IT, TransferIntervals, candidates_of_prior, transfer_intervals
from xdoge.mixtures.csv_files import Table, as_mixtures
from xdoge.names import check_seed, shown
from xdoge.progress import Event, OnProgress, silent

SCHEMA = "xdoge.law"
FEWEST_RUNS = 8


@dataclass(frozen=True)
class Prediction:
    """Predicted losses of m mixtures.

    Attributes:
        evaluations: names of the L columns.
        predicted: shape (m, L), in the unit of the losses that the law was fitted on.
        low: lower ends of the 90 % intervals, shape (m, L).
        high: upper ends of the 90 % intervals, shape (m, L).
        mean_half: half the width of the 90 % interval of the mean over evaluations, shape (m,).
        novelty: Hellinger distance of each mixture to the nearest run, from 0 to 1, shape (m,); 0 for a run itself.
        extrapolated: True for a mixture that is farther from the nearest run than 99 % of the runs are from theirs,
            shape (m,).
    """

    evaluations: tuple[str, ...]
    predicted: Floats
    low: Floats
    high: Floats
    mean_half: Floats
    novelty: Floats
    extrapolated: np.ndarray[Any, np.dtype[np.bool_]]

    @property
    def mean(self) -> Floats:
        """Mean predicted loss over the evaluations, shape (m,)."""
        return np.asarray(self.predicted.mean(axis=1))


@dataclass(frozen=True)
class FittedLaw:
    """The fit, the predictions and the file of a law. `MixtureLaw` describes the attributes."""

    problem: Problem
    form: str
    parts: Mapping[str, Any]
    weights: Mapping[str, float]
    shares: Floats
    losses: Floats
    residuals: Floats
    intervals: Intervals
    validation: Mapping[str, Scores]
    tokens: Mapping[str, int] | None = None
    budget_tokens: int | None = None
    adapted: Floats | None = None
    members: Mapping[str, Mapping[str, float]] | None = None
    notes: tuple[str, ...] = field(default=())
    run_passes: tuple[float, ...] | None = None

    @classmethod
    def fit(
        cls,
        mixtures: Floats,
        losses: Floats,
        *,
        sources: Sequence[str],
        evaluations: Sequence[str],
        own: Sequence[tuple[str, str]] = (),
        form: str = "auto",
        settings: LawSettings | None = None,
        on_progress: OnProgress = silent,
    ) -> Self:
        """Return the law that is fitted to n runs.

        Args:
            mixtures: shares, shape (n, k). A row whose sum differs from 1 by up to 0.02 is divided by its sum.
            losses: shape (n, L), in any unit.
            sources: k names.
            evaluations: L names. An evaluation belongs to the sources of the same name or language, as `xdoge fit-law
                --help` describes.
            own: pairs (evaluation, source) for names that do not match.
            form: "auto", "effective", "process", "log-linear", "lightgbm" or "linear".
            settings: token counts, budget, seed, and whether other forms are fitted for comparison.
            on_progress: called before each fit of a form, and at the end.

        Raises:
            XDogeError: the form is unknown, there are too few runs, a loss is not finite, an evaluation or a source
                never varies over the runs, or `own` has an unknown name.

        Source: docs/explanation/law.md. The log-linear form is that of Olmix, arXiv:2602.12237; LightGBM is the form of
        RegMix, arXiv:2407.01492.
        """
        from threadpoolctl import threadpool_limits

        # The matrices are small. On RegMix's 512 runs, linear algebra with two threads took 85 s and with one 24 s.
        with threadpool_limits(1, user_api="blas"):
            return cls._fit(mixtures, losses, sources, evaluations, own, form, settings or LawSettings(), on_progress)

    @classmethod
    def _fit(
        cls,
        mixtures: Floats,
        losses: Floats,
        sources: Sequence[str],
        evaluations: Sequence[str],
        own: Sequence[tuple[str, str]],
        form: str,
        settings: LawSettings,
        on_progress: OnProgress,
    ) -> Self:
        x, y = np.asarray(mixtures, dtype=np.float64), np.asarray(losses, dtype=np.float64)
        ids = tuple(str(i + 1) for i in range(len(x)))
        x = as_mixtures(Table(ids, tuple(sources), x), "mixtures").values
        _refuse(x, y, sources, evaluations, form)
        passes, of_runs = settings.passes(sources), settings.run_passes
        if settings.members is not None and (
            differing := names_that_differ("the members", settings.members, "the mixtures", sources)
        ):
            raise XDogeError(f"members and mixtures name different languages; {differing}.")
        run_passes = None if of_runs is None else tuple(of_runs[source] for source in sources)
        matched = match_own(sources, evaluations, own)
        problem = Problem(tuple(sources), tuple(evaluations), matched, run_passes or passes)
        stacked = [name for name in STACKED if form == "auto"] or [form]
        names = [*stacked, *(name for name in settings.rivals(form) if name not in stacked)]
        assigned = folds(x, settings.seed)
        problem, affinity_notes = _with_affinity(problem, x, y, assigned, settings)
        total = (int(assigned.max()) + 1) * len(names) + len(stacked)
        held_out, distance = _cross_validate(problem, x, y, names, assigned, settings.seed, on_progress, total)
        weights = stack_weights({name: held_out[name] for name in stacked}, y)
        predicted = _stacked_without_fold({name: held_out[name] for name in stacked}, y, assigned)
        parts: dict[str, Any] = {}
        for place, name in enumerate(stacked):
            if weights[name] > 0 or name == "effective":
                on_progress(Event("source", "law", done=total - len(stacked) + place, total=total, unit="fits"))
                parts[name] = FITS[name](problem, x, y, settings.seed)
        intervals = calibrate(predicted, y, distance)
        validation = {form: score(predicted, y, _held_out_widths(predicted, y, distance, assigned))}
        validation |= {name: score(held_out[name], y) for name in names if name != form}
        on_progress(Event("done", "law", done=total, total=total, unit="fits"))
        law = cls(
            problem=problem,
            form=form,
            parts=parts,
            weights={name: weight for name, weight in weights.items() if weight > 0},
            shares=x,
            losses=y,
            residuals=predicted - y,
            intervals=intervals,
            validation=validation,
            tokens=settings.tokens,
            budget_tokens=settings.budget_tokens,
            members=settings.members,
            notes=(*settings.notes(form), *affinity_notes),
            run_passes=run_passes,
        )
        return law.with_passes(passes)

    def with_passes(self, passes: tuple[float, ...] | None) -> Self:
        """Return the same law for other numbers of passes over each source at a share of 1, shape (k,)."""
        problem = replace(self.problem, passes=passes)
        parts = {
            name: replace(part, problem=problem) if isinstance(part, Effective) else part
            for name, part in self.parts.items()
        }
        return replace(self, problem=problem, parts=parts)

    @property
    def of_runs(self) -> Self:
        """The law with the numbers of passes that the runs had. It is the same law if these were not changed."""
        return self if self.run_passes is None else self.with_passes(self.run_passes)

    def losses_at(self, shares: Floats) -> Floats:
        """Return predicted losses, shape (m, L), without intervals."""
        total = sum(weight * self.parts[name].predict(shares) for name, weight in self.weights.items())
        return self._adapt(np.asarray(total, dtype=np.float64))

    def slopes(self, share: Floats) -> tuple[Floats, Floats]:
        """Return losses, shape (L,), and their derivatives with respect to the shares, shape (L, k), at one mixture.

        Raises:
            XDogeError: the form is "lightgbm", a step function without derivatives.
        """
        if not self.smooth:
            raise XDogeError(f"the form {self.form} has no derivatives; fit the law with {argument('form', 'auto')}.")
        pairs = [(weight, *self.parts[name].slopes(share)) for name, weight in self.weights.items()]
        losses = np.asarray(sum(weight * part for weight, part, _ in pairs))
        slopes = np.asarray(sum(weight * part for weight, _, part in pairs))
        factor = np.ones(len(losses)) if self.adapted is None else self.adapted[1]
        return self._adapt(losses[None])[0], slopes * factor[:, None]

    @property
    def smooth(self) -> bool:
        """Whether the law has derivatives."""
        return all(self.parts[name].smooth for name in self.weights)

    @property
    def convex(self) -> bool:
        """Whether each loss is a convex function of the mixture."""
        return all(self.parts[name].convex for name in self.weights)

    def _adapt(self, losses: Floats) -> Floats:
        return losses if self.adapted is None else self.adapted[0] + self.adapted[1] * losses

    def predict(self, mixtures: Floats | Sequence[Mapping[str, float]]) -> Prediction:
        """Return the predicted losses of m mixtures, with 90 % intervals.

        Args:
            mixtures: shares in the order of the law's sources, shape (m, k), or one mapping of shares per mixture.

        Raises:
            XDogeError: a mixture names other sources, or its shares do not sum to 1 within 0.02.
        """
        shares = self.as_shares(mixtures)
        raw = np.asarray(sum(weight * self.parts[name].predict(shares) for name, weight in self.weights.items()))
        distance = novelty(shares, self.shares)
        factor = np.ones(raw.shape[1]) if self.adapted is None else self.adapted[1]
        half = self.intervals.half_widths(raw, distance) * factor
        mean_half = self.intervals.mean_half_widths(raw, distance, factor)
        predicted = self._adapt(raw)
        return Prediction(
            self.problem.evaluations,
            predicted,
            predicted - half,
            predicted + half,
            mean_half,
            distance,
            distance > self.intervals.far,
        )

    def held_out(self) -> Prediction:
        """Return cross-validated predictions of the runs, with 90 % intervals, at the model size of the runs.

        The novelty of a run is its distance to the nearest run of another mixture.
        """
        predicted = self.losses + self.residuals
        distance = novelty_among(self.shares)
        half = self.intervals.half_widths(predicted, distance)
        return Prediction(
            self.problem.evaluations,
            predicted,
            predicted - half,
            predicted + half,
            self.intervals.mean_half_widths(predicted, distance),
            distance,
            distance > self.intervals.far,
        )

    def as_shares(self, mixtures: Floats | Mapping[str, float] | Sequence[Mapping[str, float]]) -> Floats:
        """Return shares in the order of the law's sources, shape (m, k).

        Raises:
            XDogeError: a mixture names other sources, or its shares do not sum to 1 within 0.02.
        """
        if isinstance(mixtures, Mapping):
            mixtures = [mixtures]
        if isinstance(mixtures, str) or (len(mixtures) and isinstance(mixtures[0], str)):
            raise XDogeError("mixtures are mappings of shares or an array; shares_of(...) reads names and files.")
        if isinstance(mixtures, np.ndarray):
            values = np.atleast_2d(np.asarray(mixtures, dtype=np.float64))
            if values.shape[1] != len(self.problem.sources):
                raise XDogeError(
                    f"a mixture has {values.shape[1]} shares; the law has {len(self.problem.sources)} sources."
                )
        else:
            for mixture in mixtures:
                if differing := names_that_differ("the mixture", mixture, "the law", self.problem.sources):
                    raise XDogeError(f"mixture and law name different sources; {differing}.")
            values = np.array(
                [[mixture[name] for name in self.problem.sources] for mixture in mixtures], dtype=np.float64
            )
        ids = tuple(str(i + 1) for i in range(len(values)))
        return as_mixtures(Table(ids, self.problem.sources, values), "mixtures").values

    @property
    def transfer(self) -> dict[str, dict[str, float]]:
        """τ by evaluation and source: the value of a token of the source, in tokens of the evaluation's own sources."""
        return {
            evaluation: dict(zip(self.problem.sources, row, strict=True))
            for evaluation, row in zip(self.problem.evaluations, self.effective.transfer.tolist(), strict=True)
        }

    @property
    def transfer_intervals(self) -> TransferIntervals:
        """90 % intervals of `transfer` and of the value of four epochs."""
        return transfer_intervals(self.of_runs.effective, self.shares, self.losses)

    @property
    def effective(self) -> Effective:
        """The effective-data law of the same runs. It is fitted first if the law is of another form."""
        law = self.parts.get("effective")
        if isinstance(law, Effective):
            return law
        return replace(fit_effective(self.of_runs.problem, self.shares, self.losses), problem=self.problem)

    def adapt(self, mixtures: Floats, losses: Floats) -> tuple[Self, float]:
        """Return the law for another model size, adapted with a few runs of that size.

        Each evaluation gets an offset and a factor. With few runs, the factors are shrunk towards their common value.
        The intervals are scaled by the factors. They are widened if the leave-one-out error at these runs is larger.

        Args:
            mixtures: shares of the runs, shape (m, k). About 8 runs are enough.
            losses: shape (m, L).

        Returns:
            The law at the other size, and its root mean squared leave-one-out error at these runs.

        Raises:
            XDogeError: there are fewer than 3 runs, or a loss is not finite.
        """
        x, y = self.as_shares(mixtures), np.asarray(losses, dtype=np.float64)
        if len(x) < 3 or not np.isfinite(y).all():
            raise XDogeError(f"adapting a law needs at least 3 runs with finite losses, not {len(x)}; 8 are enough.")
        raw = replace(self, adapted=None).losses_at(x)
        errors = np.empty_like(y)
        for i in range(len(x)):
            rest = np.arange(len(x)) != i
            offset, factor = _offset_and_factor(raw[rest], y[rest])
            errors[i] = offset + factor * raw[i] - y[i]
        pair = _offset_and_factor(raw, y)
        half = self.intervals.half_widths(raw, novelty(x, self.shares)) * pair[1]
        wider = max(1.0, float(np.quantile(np.abs(errors) / half, 0.9)))
        intervals = replace(
            self.intervals, radius=self.intervals.radius * wider, mean_radius=self.intervals.mean_radius * wider
        )
        return replace(self, adapted=np.stack(pair), intervals=intervals), float(np.sqrt((errors**2).mean()))

    def source_weights(self, shares: Mapping[str, float]) -> dict[str, float]:
        """Return the weight of every source. The share of a language is divided among its sources."""
        if self.members is None:
            return dict(shares)
        return {source: share * part for unit, share in shares.items() for source, part in self.members[unit].items()}

    def save(self, path: str | Path) -> None:
        """Write law.json. The file is never half-written, and `load` reads exactly the same numbers."""
        write_json(Path(path), self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return the content of law.json."""
        return {
            "schema": f"{SCHEMA}/1",
            "form": self.form,
            "problem": self.problem.to_dict(),
            "weights": dict(self.weights),
            "validation": {name: scores.to_dict() for name, scores in self.validation.items()},
            "tokens": None if self.tokens is None else dict(self.tokens),
            "budget_tokens": self.budget_tokens,
            "members": None if self.members is None else {unit: dict(parts) for unit, parts in self.members.items()},
            "adapted": None if self.adapted is None else self.adapted.tolist(),
            "notes": list(self.notes),
            "run_passes": None if self.run_passes is None else list(self.run_passes),
            "intervals": self.intervals.to_dict(),
            "parts": {name: part.to_dict() for name, part in self.parts.items()},
            "runs": {
                "shares": self.shares.tolist(),
                "losses": self.losses.tolist(),
                "residuals": self.residuals.tolist(),
            },
        }

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Return the law of a law.json.

        Raises:
            XDogeError: the file is missing or damaged, is not a law, or has a newer schema.
        """
        value = read_json(Path(path), schema=SCHEMA)
        try:
            return cls(**_attributes(value))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise XDogeError(f"{path} is damaged: {type(error).__name__} {error}. Fit the law again.") from error


def _attributes(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of a law from the content of a law.json.

    Raises:
        KeyError, TypeError, ValueError, AttributeError, OverflowError: the content is not that of a law.
    """
    problem = Problem.from_dict(value["problem"])
    n, columns, rows = len(value["runs"]["shares"]), len(problem.sources), len(problem.evaluations)
    widths = {"shares": columns, "losses": rows, "residuals": rows}
    parts = {name: READERS[name](part, problem) for name, part in value["parts"].items()}
    weights = {name: float(array_of(weight)) for name, weight in value["weights"].items()}
    tokens, budget, members, passes = value["tokens"], value["budget_tokens"], value["members"], value.get("run_passes")
    if not weights or not set(weights) <= set(parts) or value["form"] not in set(FORMS) & set(value["validation"]):
        raise ValueError(f"form {shown(value['form'])} has the parts {list(parts)} and the weights {list(weights)}")
    if (tokens is None) != (budget is None):
        raise ValueError("tokens and budget_tokens do not go together")
    if tokens is not None and (set(tokens) != set(problem.sources) or not _are_counts([budget, *tokens.values()])):
        raise ValueError("tokens and budget_tokens are not counts of the law's sources")
    if members is not None:
        if set(members) != set(problem.sources):
            raise ValueError("members are not those of the law's languages")
        members = {
            name: {part: float(array_of(share)) for part, share in each.items()} for name, each in members.items()
        }
    if not all(isinstance(note, str) for note in value["notes"]):
        raise ValueError("notes are not sentences")
    return {
        "problem": problem,
        "form": value["form"],
        "parts": parts,
        "weights": weights,
        **{name: array_of(value["runs"][name], n, width) for name, width in widths.items()},
        "intervals": Intervals.from_dict(value["intervals"], rows),
        "validation": {name: Scores.from_dict(scores) for name, scores in value["validation"].items()},
        "tokens": tokens,
        "budget_tokens": budget,
        "members": members,
        "adapted": None if value["adapted"] is None else array_of(value["adapted"], 2, rows),
        "notes": tuple(value["notes"]),
        "run_passes": None if passes is None else tuple(array_of(passes, columns).tolist()),
    }


def _count(value: Any) -> int:
    return parse_count(int(value) if isinstance(value, np.integer) else value)


def _are_counts(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int) and not isinstance(value, bool) and value > 0 for value in values)


@dataclass(frozen=True)
class LawSettings:
    """Settings of the fit of a law.

    Attributes:
        tokens: unique tokens per source. With these and `budget_tokens`, the law models repetition.
        budget_tokens: training tokens of a run.
        seed: seed of the assignment of runs to folds.
        validate_rivals: whether to cross-validate the other forms too, for comparison.
        members: for a law over languages, the sources of each language with their parts of its share.
        affinity: gradient affinities from `xdoge.laws.transfer.read_affinity`, shape (L, k); None for none.
        run_passes: passes over each source at a share of 1 in the runs; by default budget / tokens.
    """

    tokens: Mapping[str, int] | None = None
    budget_tokens: int | None = None
    seed: int = 0
    validate_rivals: bool = True
    members: Mapping[str, Mapping[str, float]] | None = None
    affinity: Floats | None = None
    run_passes: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        """Raise XDogeError if only one of tokens and budget_tokens is set, or a number is out of range or not whole."""
        check_seed(argument("seed"), self.seed)
        if (self.tokens is None) != (self.budget_tokens is None):
            raise XDogeError(f"repetition needs both {argument('tokens')} and {argument('budget_tokens')}, or neither.")
        if self.budget_tokens is None or self.tokens is None:
            return
        if self.budget_tokens < 1:
            raise XDogeError(f"{argument('budget_tokens')} is {self.budget_tokens}; it must be at least 1 token.")
        try:  # a law.json holds whole numbers
            object.__setattr__(self, "budget_tokens", _count(self.budget_tokens))
            object.__setattr__(self, "tokens", {source: _count(count) for source, count in self.tokens.items()})
        except ValueError as error:
            raise XDogeError(f"{argument('tokens')} and {argument('budget_tokens')} are counts: {error}.") from error

    def passes(self, sources: Sequence[str]) -> tuple[float, ...] | None:
        """Return B / U_j of each source, or None if token counts are unknown."""
        if self.tokens is None or self.budget_tokens is None:
            return None
        if differing := names_that_differ("the token counts", self.tokens, "the mixtures", sources):
            raise XDogeError(f"token counts and mixtures name different sources; {differing}.")
        return tuple(self.budget_tokens / self.tokens[source] for source in sources)

    def rivals(self, form: str) -> list[str]:
        """Return the forms to cross-validate beside `form`."""
        names = [name for name in FORMS if name != "auto" and self.validate_rivals]
        return [name for name in names if name != "lightgbm" or has_lightgbm()]

    def notes(self, form: str) -> tuple[str, ...]:
        """Return notes for the user on how the law was fitted."""
        missing = self.validate_rivals and form != "lightgbm" and not has_lightgbm()
        return ("LightGBM is not installed, so it is not among the rivals.",) if missing else ()


def _refuse(x: Floats, y: Floats, sources: Sequence[str], evaluations: Sequence[str], form: str) -> None:
    if form not in FORMS:
        raise XDogeError(f"form {form!r} is unknown; the forms are {', '.join(FORMS)}.")
    for kind, names in (("sources", sources), ("evaluations", evaluations)):
        if len(set(names)) < len(names) or not all(names):
            raise XDogeError(f"the {kind} are {', '.join(map(repr, names))}; each needs a name of its own.")
    if x.shape[1] != len(sources) or y.shape != (len(x), len(evaluations)):
        raise XDogeError(
            f"mixtures have shape {x.shape} and losses {y.shape}, for {len(sources)} sources and {len(evaluations)} "
            "evaluations."
        )
    fewest = max(FEWEST_RUNS, len(sources))
    if len(x) < fewest:
        raise XDogeError(
            f"{len(x)} runs are too few for {len(sources)} sources: a law needs at least {fewest}, better "
            f"{3 * len(sources)}."
        )
    for name, column in zip(sources, x.T, strict=True):
        if np.ptp(column) < 1e-9:
            raise XDogeError(f"source {name} has share {column[0]:.4g} in every run; its effect cannot be learned.")
    for name, column in zip(evaluations, y.T, strict=True):
        if not np.isfinite(column).all():
            raise XDogeError(f"evaluation {name} has a loss that is not finite; leave such runs out.")
        if np.ptp(column) <= 1e-12 * max(1.0, abs(float(column[0]))):
            raise XDogeError(f"evaluation {name} has the same loss {column[0]:.6g} in every run.")


def _cross_validate(
    problem: Problem,
    x: Floats,
    y: Floats,
    names: Sequence[str],
    assigned: Any,
    seed: int,
    on_progress: OnProgress,
    total: int,
) -> tuple[dict[str, Floats], Floats]:
    """Return held-out predictions of each form, (n, L), and the novelty of each run to the other folds, (n,)."""
    held_out = {name: np.empty_like(y) for name in names}
    distance = np.empty(len(x))
    count = int(assigned.max()) + 1
    for fold in range(count):
        test = assigned == fold
        distance[test] = novelty(x[test], x[~test])
        for place, name in enumerate(names):
            on_progress(Event("source", "law", done=fold * len(names) + place, total=total, unit="fits"))
            held_out[name][test] = FITS[name](problem, x[~test], y[~test], seed).predict(x[test])
    if bad := [name for name, values in held_out.items() if not np.isfinite(values).all()]:
        raise RuntimeError(f"the fit of {bad[0]} gave a number that is not finite")
    return held_out, distance


def _stacked_without_fold(held_out: Mapping[str, Floats], y: Floats, assigned: Any) -> Floats:
    """Return held-out predictions of the stack, (n, L). The weights for a fold come from the runs of other folds."""
    out = np.empty_like(y)
    for fold in range(int(assigned.max()) + 1):
        test = assigned == fold
        weights = stack_weights({name: values[~test] for name, values in held_out.items()}, y[~test])
        out[test] = sum(weight * held_out[name][test] for name, weight in weights.items())
    return out


def _with_affinity(
    problem: Problem, x: Floats, y: Floats, assigned: Any, settings: LawSettings
) -> tuple[Problem, tuple[str, ...]]:
    """Return the problem and notes. It has the transfer prior if that lowers the cross-validated error."""
    if settings.affinity is None:
        return problem, ()
    errors = {}
    for candidate in candidates_of_prior(problem, settings.affinity):
        held_out, _ = _cross_validate(candidate, x, y, ["effective"], assigned, settings.seed, silent, 1)
        errors[candidate] = score(held_out["effective"], y).relative
    ordered = sorted(errors, key=lambda candidate: errors[candidate])
    best = next(candidate for candidate in ordered if candidate.affinity is not None)
    without = next(candidate for candidate in ordered if candidate.affinity is None)
    numbers = (
        f"the cross-validated error of the effective-data law is {errors[without]:.3f} of the spread without it and "
        f"{errors[best]:.3f} with it"
    )
    if errors[best] > WORTH_IT * errors[without]:
        return problem, (f"the transfer prior from gradients did not help and is not used: {numbers}",)
    return best, (f"the transfer prior from gradients helped and is used: {numbers}",)


def _held_out_widths(predicted: Floats, y: Floats, distance: Floats, assigned: Any) -> Floats:
    """Return half widths of the intervals of the runs, (n, L). Each is calibrated without the run's own fold."""
    out = np.empty_like(y)
    for fold in range(int(assigned.max()) + 1):
        test = assigned == fold
        out[test] = calibrate(predicted[~test], y[~test], distance[~test]).half_widths(predicted[test], distance[test])
    return out


def _offset_and_factor(raw: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Return offset and factor per evaluation, both (L,), of y = offset + factor * raw.

    Factors are shrunk towards their common value.
    """
    x, t = raw - raw.mean(axis=0), y - y.mean(axis=0)
    common = float((x * t).sum() / max((x**2).sum(), 1e-12))
    pull = float((x**2).sum(axis=0).mean()) / math.sqrt(len(raw))
    factor = np.maximum(((x * t).sum(axis=0) + pull * common) / ((x**2).sum(axis=0) + pull), 1e-3)
    return y.mean(axis=0) - factor * raw.mean(axis=0), factor
