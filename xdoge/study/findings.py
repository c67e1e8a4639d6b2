"""The findings of a study: bits per byte of every model, paired differences over seeds, and stability of weights."""

from __future__ import annotations

import datetime
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from xdoge._version import __version__
from xdoge.errors import XDogeError, importing
from xdoge.eval.perplexity import TASK, Measured, PerplexitySettings
from xdoge.eval.results import ALL, Results
from xdoge.mixtures.weights import WeightSet
from xdoge.names import split_source
from xdoge.study.attempts import attempts
from xdoge.study.intervals import CONFIDENCE, Floats, Interval, paired
from xdoge.study.plan import Run, StudyPlan, Trial
from xdoge.study.spec import BudgetKind
from xdoge.study.verdict import verdict

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = "xdoge.study"
METRIC = "bits_per_byte"
MACRO, WORST = "macro", "worst"


@dataclass(frozen=True)
class Resampled:
    """Bits per byte of a model on documents that a bootstrap draws, the same ones for every model of one text.

    Attributes:
        text: identifies the documents; only models of the same text are paired by document.
        documents: number behind each measure.
        measures: (R,) of each language, of their mean (macro) and of the greatest of them (worst).
    """

    text: Mapping[str, Any]
    documents: Mapping[str, int]
    measures: Mapping[str, Floats]


@dataclass(frozen=True)
class TrialResult:
    """The state of a trial, which is one model of a study, and its bits per byte once it is measured.

    Attributes:
        trial: the model.
        state: "finished", "failed", "begun" or "waiting". The last two occur only before the study has ended.
        why: name of the run that failed, and the last line of its log; empty unless the state is "failed".
        languages: bits per byte of each language, over all its text; empty unless the trial is finished.
        sources: bits per byte of each source.
        resampled: bits per byte on resampled documents; None if no file has the scores of each document.
    """

    trial: Trial
    state: str
    why: str
    languages: Mapping[str, float]
    sources: Mapping[str, float]
    resampled: Resampled | None = field(default=None, repr=False, compare=False)

    @property
    def measures(self) -> dict[str, float]:
        """Bits per byte of each language, their mean (macro), and the greatest of them (worst)."""
        values = self.languages
        return {**values, MACRO: math.fsum(values.values()) / len(values), WORST: max(values.values())}


@dataclass(frozen=True, eq=False)  # so that it can be a key of caches
class Findings:
    """The results of a study, read from its folder. All losses are in bits per byte.

    `comparison` is "tokens" or "flops": at equal training tokens, or at equal FLOPs for learning weights and training
    together. `measure` is the name of a language, "macro" for the mean over languages, or "worst" for the largest
    value of any language. `relative_to` is the strategy in study.yaml with which all others are compared.

    Attributes:
        study: the plan of the study.
        out: the folder of the study.
        results: the result of every trial. A trial is one model, with its strategy, number of steps and seed.
        weights: weight sets so far, by strategy and seed. A strategy that learns nothing has the same for all seeds.
        notes: sentences that a reader should know before trusting the numbers.
    """

    study: StudyPlan
    out: Path
    results: Mapping[Trial, TrialResult]
    weights: Mapping[str, Mapping[int, WeightSet]]
    notes: Sequence[str]

    @classmethod
    def read(cls, study: StudyPlan, out: Path) -> Self:
        """Return the findings so far, from the folder of a study."""
        runs, ended = study.runs(out), attempts(out)
        results = {trial: _result(study, runs, ended, trial) for trial in study.trials()}
        weights: dict[str, dict[int, WeightSet]] = {name: {} for name in study.strategies}
        for name, seed in itertools.product(study.strategies, study.spec.seeds):
            file = study.weights_file(out, name, seed)
            if file.exists():
                weights[name][seed] = WeightSet.load(file)
        return cls(study, out, results, weights, tuple(_notes(study, results, weights)))

    def result(self, comparison: BudgetKind, strategy: str, seed: int) -> TrialResult:
        """Return the result of one model."""
        return self.results[Trial(strategy, self.study.steps(comparison, strategy), seed)]

    def measures(self, comparison: BudgetKind, strategy: str) -> dict[int, dict[str, float]]:
        """Return the measures of a strategy's finished models, by seed."""
        results = {seed: self.result(comparison, strategy, seed) for seed in self.study.spec.seeds}
        return {seed: result.measures for seed, result in results.items() if result.state == "finished"}

    def difference(self, comparison: BudgetKind, strategy: str, measure: str) -> Interval | None:
        """Return the difference between a strategy and `relative_to`, over the seeds that both have; None without any.

        Models are paired by seed. They are also paired by document if all have a file with the scores of each document.
        """
        if strategy == (reference := self.study.spec.relative_to):
            return None
        pairs = [
            (self.result(comparison, strategy, seed), self.result(comparison, reference, seed))
            for seed in self.study.spec.seeds
        ]
        finished = [pair for pair in pairs if all(result.state == "finished" for result in pair)]
        return _paired(finished, measure) if finished else None

    def rows(self, comparison: BudgetKind) -> list[dict[str, Any]]:
        """Return the table of a comparison: a row for each strategy, the best first, then those without any result.

        Rows are ordered by the paired difference of "macro", since means over different seeds cannot be compared.
        "regret" is a strategy's paired difference minus the lowest one of all strategies. It is given for "macro" and
        for "worst", in bits per byte. "better" and "worse" list the languages with a significant difference.
        """
        study = self.study
        rows: list[dict[str, Any]] = []
        for name, strategy in study.strategies.items():
            measures = self.measures(comparison, name)
            names = [*study.languages, MACRO, WORST] if measures else []
            worst = {max(study.languages, key=values.__getitem__) for values in measures.values()}
            means = {key: math.fsum(values[key] for values in measures.values()) / len(measures) for key in names}
            languages = {language: means[language] for language in study.languages if language in means}
            tokens = study.steps(comparison, name) * study.tokens_per_step
            cost = study.training_flops(tokens)
            rows.append(
                {
                    "strategy": name,
                    "kind": strategy.kind,
                    "seeds": sorted(measures),
                    "planned_seeds": list(study.spec.seeds),
                    "languages": languages,
                    MACRO: means.get(MACRO),
                    WORST: means.get(WORST),
                    "worst_language": worst.pop() if len(worst) == 1 else None,
                    "differences": {
                        measure: interval.to_dict()
                        for measure in names
                        if (interval := self.difference(comparison, name, measure)) is not None
                    },
                    "regret": {},
                    "better": self._differing(comparison, name, -1),
                    "worse": self._differing(comparison, name, 1),
                    "learning_flops": strategy.flops,
                    "training_flops": cost,
                    "share_of_training": strategy.flops / cost,
                    "training_tokens": tokens,
                }
            )
        for measure in (MACRO, WORST):
            above = {row["strategy"]: self._above_reference(row, measure) for row in rows}
            lowest = min((value for value in above.values() if value is not None), default=0.0)
            for row in rows:
                mine = above[row["strategy"]]
                row["regret"][measure] = None if mine is None else mine - lowest
        return sorted(rows, key=self._rank)

    def _above_reference(self, row: Mapping[str, Any], measure: str) -> float | None:
        """Return the mean paired difference of a row to `relative_to`: 0 for itself, None without results."""
        if row["strategy"] == self.study.spec.relative_to:
            return None if row[measure] is None else 0.0
        difference = row["differences"].get(measure)
        return difference["mean"] if difference else None

    def verdict(self, comparison: BudgetKind) -> list[str]:
        """Return sentences: which differences of a comparison are significant, and what to do next."""
        means = {name: self.difference(comparison, name, MACRO) for name in self.study.strategies}
        reference, languages = self.study.spec.relative_to, len(self.study.languages)
        return verdict(self.rows(comparison), means, reference=reference, languages=languages)

    def _rank(self, row: Mapping[str, Any]) -> tuple[int, float]:
        """Return the sort key of a row: rows with a difference to `relative_to` first, rows without any result last."""
        if MACRO in row["differences"]:
            return 0, row["differences"][MACRO]["mean"]
        if row["strategy"] == self.study.spec.relative_to and row[MACRO] is not None:
            return 0, 0.0
        return (2, 0.0) if row[MACRO] is None else (1, row[MACRO])

    def _differing(self, comparison: BudgetKind, strategy: str, sign: int) -> list[str]:
        """Return the languages whose whole interval is above 0 (`sign` 1) or below 0 (`sign` -1)."""
        intervals = {language: self.difference(comparison, strategy, language) for language in self.study.languages}
        return [language for language, interval in intervals.items() if interval and interval.sign == sign]

    def stability(self) -> list[dict[str, Any]]:
        """Return the mean total variation between the weights of two seeds, for each strategy that learns."""
        rows = []
        for name, sets in self.weights.items():
            learned = sets if self.study.strategies[name].seeded else {}
            pairs = list(itertools.combinations(learned.values(), 2))
            means = {
                level: math.fsum(a.distance(b, level=level) for a, b in pairs) / len(pairs) if pairs else None
                for level in ("sources", "languages")
            }
            rows.append({"strategy": name, "seeds": sorted(learned), **means})
        return rows

    def models(self) -> list[dict[str, Any]]:
        """Return a row for each comparison and model in it, failed and waiting models included."""
        spec, rows = self.study.spec, []
        for comparison, name, seed in itertools.product(spec.compare, self.study.strategies, spec.seeds):
            result = self.result(comparison, name, seed)
            tokens = result.trial.steps * self.study.tokens_per_step
            rows.append(
                {
                    "comparison": comparison,
                    "strategy": name,
                    "seed": seed,
                    "run": result.trial.name,
                    "state": result.state,
                    "why": result.why,
                    "training_steps": result.trial.steps,
                    "training_tokens": tokens,
                    "training_flops": self.study.training_flops(tokens),
                    "learning_flops": self.study.strategies[name].flops,
                    "languages": dict(result.languages),
                    "sources": dict(result.sources),
                }
            )
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Return the content of study.json: every model and weight, and the tables that are computed from them."""
        study = self.study
        return {
            "schema": f"{SCHEMA}/1",
            "study": {**study.spec.model_dump(mode="json"), "store": str(study.store.path)},
            "store": {"name": study.store.name, "sha256": study.store.sha256},
            "model": study.initial.to_config() | {"name": study.initial.name},
            "metric": METRIC,
            "verdict": {comparison: " ".join(self.verdict(comparison)) for comparison in study.spec.compare},
            "confidence": CONFIDENCE,
            "total_flops": study.total_flops,
            "notes": list(self.notes),
            "models": self.models(),
            "tables": {comparison: self.rows(comparison) for comparison in study.spec.compare},
            "stability": self.stability(),
            "weights": {
                name: {str(seed): dict(weights.sources) for seed, weights in sets.items()}
                for name, sets in self.weights.items()
            },
            "xdoge_version": __version__,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }

    def to_frame(self) -> pd.DataFrame:
        """Return a row for each comparison, strategy, seed and language or "macro" or "worst"; NaN if missing."""
        with importing("analysis"):
            import pandas as pd
        rows = []
        for model in self.models():
            about = {key: value for key, value in model.items() if key not in ("languages", "sources")}
            result = self.result(model["comparison"], model["strategy"], model["seed"])
            names = [*self.study.languages, MACRO, WORST]
            values = result.measures if result.state == "finished" else dict.fromkeys(names, math.nan)
            rows += [{**about, "language": name, METRIC: values[name]} for name in names]
        return pd.DataFrame(rows)


def _result(study: StudyPlan, runs: Mapping[str, Run], ended: Mapping[str, Any], trial: Trial) -> TrialResult:
    """Return the state of a trial, and read its bits per byte if it is finished."""
    stages = [f"results/{trial.name}"]
    while needs := runs[stages[0]].needs:
        stages = [*needs, *stages]
    last = runs[stages[-1]]
    if last.finished:
        measured = Results.load(last.file)
        rows = [row for row in measured.rows if row.metric == METRIC and row.language != ALL]
        languages = {row.language: row.value for row in rows if row.task == TASK}
        if missing := [language for language in study.languages if language not in languages]:
            raise XDogeError(f"{last.file} has no bits per byte of {missing[0]}; remove it to measure again.")
        sources = {
            f"{row.language}/{split_source(row.task)[1]}": row.value for row in rows if row.task.startswith(f"{TASK}/")
        }
        return TrialResult(trial, "finished", "", languages, sources, _resampled(measured, study.languages))
    name = next(name for name in stages if not runs[name].finished)
    if name in ended and ended[name]["status"]:
        return TrialResult(trial, "failed", f"{name}: {ended[name]['last_line']}", {}, {})
    begun = any(run.finished or (run.folder and run.folder.exists()) for run in map(runs.__getitem__, stages))
    return TrialResult(trial, "begun" if begun else "waiting", "", {}, {})


def _paired(models: Sequence[tuple[TrialResult, TrialResult]], measure: str) -> Interval:
    """Return the mean difference of pairs of models.

    Models are also paired by document if all were measured on the same documents.
    """
    differences = [mine.measures[measure] - theirs.measures[measure] for mine, theirs in models]
    pairs = [(a, b) for mine, theirs in models if (a := mine.resampled) and (b := theirs.resampled)]
    texts = [resampled.text for pair in pairs for resampled in pair]
    if len(pairs) < len(models) or any(text != texts[0] for text in texts):
        return paired(differences)
    resampled = np.array([a.measures[measure] - b.measures[measure] for a, b in pairs])
    return paired(differences, resampled, documents=pairs[0][0].documents[measure])


def _resampled(results: Results, languages: Sequence[str]) -> Resampled | None:
    """Return bits per byte on resampled documents, for the only model in a results.json."""
    if not results.documents:
        return None
    (model, documents), *_ = results.documents.items()
    about = results.settings["perplexity"][model]
    used = {key: about["settings"][key] for key in ("resamples", "seed") if key in about.get("settings", {})}
    estimates = Measured(model, documents, PerplexitySettings.parse(used, where="results.json"), {}).estimates
    own = {language: estimates[language, TASK, METRIC] for language in languages}
    spread = np.array([estimate.spread for estimate in own.values()])  # (L, R)
    counts = {language: estimate.n for language, estimate in own.items()}
    counts |= dict.fromkeys((MACRO, WORST), min(counts.values()))
    by_language = dict(zip(own, spread, strict=True))
    return Resampled(
        about.get("text", {}), counts, {**by_language, MACRO: spread.mean(axis=0), WORST: spread.max(axis=0)}
    )


def _notes(
    study: StudyPlan, results: Mapping[Trial, TrialResult], weights: Mapping[str, Mapping[int, WeightSet]]
) -> list[str]:
    lines = []
    states = [result.state for result in results.values()]
    if failed := [result for result in results.values() if result.state == "failed"]:
        reasons = [*dict.fromkeys(result.why.removesuffix(".") for result in failed)]
        named = "; ".join(reasons[:3]) + f"; and {len(reasons) - 3} more reasons" * (len(reasons) > 3)
        lines.append(f"{len(failed)} of {len(states)} models failed and are missing from the means: {named}")
    if left := len(states) - len(failed) - states.count("finished"):
        lines.append(f"{left} of {len(states)} models are not finished, so there is no result yet")
    if len(study.spec.seeds) == 1:
        lines.append("there is only one seed, so the effect of chance is unknown")
    if unpaired := [result for result in results.values() if result.state == "finished" and result.resampled is None]:
        lines.append(
            f"{len(unpaired)} models have no file of document scores, so their intervals include only the "
            "spread over seeds; remove their results.json to measure them again"
        )
    for name, sets in weights.items():
        planned = study.strategies[name].flops
        spent = {fit.proxy["flops"] for fit in sets.values() if "flops" in fit.proxy}
        if spent - {planned}:
            other = " and ".join(f"{cost:.4g}" for cost in sorted(spent - {planned}))
            lines.append(f"{name} cost {other} FLOPs, but {planned:.4g} were planned, so the totals differ")
    return lines
