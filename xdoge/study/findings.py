"""What a study found: every run with its state, bits per byte, differences over seeds, and how stable weights are."""

from __future__ import annotations

import datetime
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from xdoge._version import __version__
from xdoge.errors import MissingExtraError, XDogeError
from xdoge.eval.perplexity import TASK
from xdoge.eval.results import ALL, Results
from xdoge.mixtures.weights import WeightSet
from xdoge.study.intervals import CONFIDENCE, Interval, paired
from xdoge.study.plan import Run, Study, Trial
from xdoge.study.runner import attempts
from xdoge.study.spec import Comparison

if TYPE_CHECKING:
    import pandas as pd

    from xdoge.analysis.page import TableOf

SCHEMA = "xdoge.study"
METRIC = "bits_per_byte"
MACRO, WORST = "macro", "worst"


@dataclass(frozen=True)
class Outcome:
    """What became of a trial.

    Attributes:
        trial: which.
        state: "finished", "failed", "begun" or "waiting"; the last two of a study that has not ended.
        why: what a failed run said last, with its name.
        languages: bits per byte of each language, all its text together; empty unless finished.
        sources: of each source.
    """

    trial: Trial
    state: str
    why: str
    languages: Mapping[str, float]
    sources: Mapping[str, float]

    @property
    def measures(self) -> dict[str, float]:
        """Bits per byte of each language, their mean, and the greatest of them."""
        values = self.languages
        return {**values, MACRO: math.fsum(values.values()) / len(values), WORST: max(values.values())}


@dataclass(frozen=True)
class Findings:
    """What lies in a study's folder.

    Attributes:
        study: which.
        out: its folder.
        outcomes: of every trial.
        weights: by strategy and seed, those that are there; of a strategy that learns nothing, one for all seeds.
        notes: what a reader should know before believing the numbers.
    """

    study: Study
    out: Path
    outcomes: Mapping[Trial, Outcome]
    weights: Mapping[str, Mapping[int, WeightSet]]
    notes: Sequence[str]

    @classmethod
    def read(cls, study: Study, out: Path) -> Self:
        """Read what is finished in the folder of a study."""
        runs, ended = study.runs(out), attempts(out)
        outcomes = {trial: _outcome(study, runs, ended, trial) for trial in study.trials()}
        weights: dict[str, dict[int, WeightSet]] = {name: {} for name in study.strategies}
        for name, seed in itertools.product(study.strategies, study.spec.seeds):
            file = study.weights_file(out, name, seed)
            if file.exists():
                weights[name][seed] = WeightSet.load(file)
        return cls(study, out, outcomes, weights, tuple(_notes(study, outcomes, weights)))

    def outcome(self, comparison: Comparison, strategy: str, seed: int) -> Outcome:
        """Return what became of one model."""
        return self.outcomes[Trial(strategy, self.study.steps(comparison, strategy), seed)]

    def measures(self, comparison: Comparison, strategy: str) -> dict[int, dict[str, float]]:
        """Return the measures of a strategy's finished models, by seed."""
        found = {seed: self.outcome(comparison, strategy, seed) for seed in self.study.spec.seeds}
        return {seed: one.measures for seed, one in found.items() if one.state == "finished"}

    def difference(self, comparison: Comparison, strategy: str, measure: str) -> Interval | None:
        """Return how a measure differs from that of `relative_to`, over the seeds that both have; None without any."""
        mine = self.measures(comparison, strategy)
        theirs = self.measures(comparison, self.study.spec.relative_to)
        both = [mine[seed][measure] - theirs[seed][measure] for seed in mine if seed in theirs]
        return paired(both) if both and strategy != self.study.spec.relative_to else None

    def rows(self, comparison: Comparison) -> list[dict[str, Any]]:
        """Return the table of a comparison: a row for each strategy, the best first, then those without any result.

        Best is by the paired difference of the macro mean: means over unlike seeds do not compare.
        """
        study, rows = self.study, []
        for name, strategy in study.strategies.items():
            measures = self.measures(comparison, name)
            names = [*study.languages, MACRO, WORST] if measures else []
            worst = {max(study.languages, key=found.__getitem__) for found in measures.values()}
            means = {one: math.fsum(found[one] for found in measures.values()) / len(measures) for one in names}
            languages = {one: means[one] for one in study.languages if one in means}
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
                        one: vars(interval)
                        for one in names
                        if (interval := self.difference(comparison, name, one)) is not None
                    },
                    "better": self._surely(comparison, name, -1),
                    "worse": self._surely(comparison, name, 1),
                    "learning_flops": strategy.flops,
                    "training_flops": cost,
                    "share_of_training": strategy.flops / cost,
                    "training_tokens": tokens,
                }
            )
        return sorted(rows, key=self._rank)

    def _rank(self, row: Mapping[str, Any]) -> tuple[int, float]:
        """Order rows: by the difference to `relative_to`, then those that have none, then those without any result."""
        if MACRO in row["differences"]:
            return 0, row["differences"][MACRO]["mean"]
        if row["strategy"] == self.study.spec.relative_to and row[MACRO] is not None:
            return 0, 0.0
        return (2, 0.0) if row[MACRO] is None else (1, row[MACRO])

    def _surely(self, comparison: Comparison, strategy: str, sign: int) -> list[str]:
        """Return the languages whose whole interval lies on one side of `relative_to`."""
        found = {one: self.difference(comparison, strategy, one) for one in self.study.languages}
        return [one for one, interval in found.items() if interval and interval.sign == sign]

    def stability(self) -> list[dict[str, Any]]:
        """Return how far each learned strategy's weights of two seeds lie apart, in mean: total variation."""
        rows = []
        for name, sets in self.weights.items():
            pairs = (
                list(itertools.combinations(sets.values(), 2)) if self.study.strategies[name].weights is None else []
            )
            distances = {level: [a.distance(b, level=level) for a, b in pairs] for level in ("sources", "languages")}
            rows.append(
                {
                    "strategy": name,
                    "seeds": sorted(sets) if self.study.strategies[name].weights is None else [],
                    **{level: math.fsum(found) / len(found) if found else None for level, found in distances.items()},
                }
            )
        return rows

    def models(self) -> list[dict[str, Any]]:
        """Return a row for each model and comparison it is in, failed and waiting ones too."""
        rows = []
        for comparison, name, seed in itertools.product(
            self.study.spec.compare, self.study.strategies, self.study.spec.seeds
        ):
            one = self.outcome(comparison, name, seed)
            tokens = one.trial.steps * self.study.tokens_per_step
            rows.append(
                {
                    "comparison": comparison,
                    "strategy": name,
                    "seed": seed,
                    "run": one.trial.name,
                    "state": one.state,
                    "why": one.why,
                    "training_steps": one.trial.steps,
                    "training_tokens": tokens,
                    "training_flops": self.study.training_flops(tokens),
                    "learning_flops": self.study.strategies[name].flops,
                    "languages": dict(one.languages),
                    "sources": dict(one.sources),
                }
            )
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Return what study.json holds: every model and weight, and the tables that follow from them."""
        study = self.study
        return {
            "schema": f"{SCHEMA}/1",
            "study": {**study.spec.model_dump(mode="json"), "store": str(study.store.path)},
            "store": {"name": study.store.name, "sha256": study.store.sha256},
            "model": study.recipe.model_dump(mode="json"),
            "metric": METRIC,
            "confidence": CONFIDENCE,
            "total_flops": study.total_flops,
            "notes": list(self.notes),
            "models": self.models(),
            "tables": {comparison: self.rows(comparison) for comparison in study.spec.compare},
            "stability": self.stability(),
            "weights": {
                name: {str(seed): dict(one.sources) for seed, one in sets.items()}
                for name, sets in self.weights.items()
            },
            "xdoge_version": __version__,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }

    def to_frame(self) -> pd.DataFrame:
        """Return a row for each comparison, strategy, seed and language, macro and worst among them; NaN if missing."""
        try:
            import pandas as pd
        except ImportError as error:
            raise MissingExtraError("pandas", "analysis") from error
        rows = []
        for model in self.models():
            about = {key: value for key, value in model.items() if key not in ("languages", "sources")}
            one = self.outcome(model["comparison"], model["strategy"], model["seed"])
            names = [*self.study.languages, MACRO, WORST]
            values = one.measures if one.state == "finished" else dict.fromkeys(names, math.nan)
            rows += [{**about, "language": name, METRIC: values[name]} for name in names]
        return pd.DataFrame(rows)

    def tables(self) -> list[TableOf]:
        """Return the tables of text that the command line prints and the page shows."""
        from xdoge.study import report

        return report.tables(self)

    def to_html(self, command: str = "") -> str:
        """Return a self-contained page: tables, a chart for each comparison, what failed, and the commands."""
        from xdoge.study import report

        return report.page(self, command)


def _outcome(study: Study, runs: Mapping[str, Run], ended: Mapping[str, Any], trial: Trial) -> Outcome:
    """Say how far a trial has come, and read what it measured."""
    learned = study.weights_run(trial.strategy, trial.seed)
    chain = [learned] if learned else []
    chain += [f"{kind}/{trial.name}" for kind in ("mixtures", "train", "results")]
    last = runs[chain[-1]]
    if last.finished:
        rows = [row for row in Results.load(last.file).rows if row.metric == METRIC and row.language != ALL]
        languages = {row.language: row.value for row in rows if row.task == TASK}
        if missing := [language for language in study.languages if language not in languages]:
            raise XDogeError(f"{last.file} has no bits per byte of {missing[0]}; remove it to measure again.")
        sources = {
            f"{row.language}/{row.task.partition('/')[2]}": row.value for row in rows if row.task.startswith(f"{TASK}/")
        }
        return Outcome(trial, "finished", "", languages, sources)
    name = next(name for name in chain if not runs[name].finished)
    if name in ended and ended[name]["status"]:
        return Outcome(trial, "failed", f"{name}: {ended[name]['last_line']}", {}, {})
    begun = any(runs[one].finished for one in chain) or any(
        run.folder is not None and run.folder.exists() for run in (runs[one] for one in chain)
    )
    return Outcome(trial, "begun" if begun else "waiting", "", {}, {})


def _notes(
    study: Study, outcomes: Mapping[Trial, Outcome], weights: Mapping[str, Mapping[int, WeightSet]]
) -> list[str]:
    lines = []
    states = [one.state for one in outcomes.values()]
    if failed := [one for one in outcomes.values() if one.state == "failed"]:
        named = "; ".join(one.why for one in failed[:3]) + f"; and {len(failed) - 3} more" * (len(failed) > 3)
        lines.append(f"{len(failed)} of {len(states)} models failed and are missing from the means: {named}")
    if left := len(states) - len(failed) - states.count("finished"):
        lines.append(f"{left} of {len(states)} models are not finished, so this is no result yet")
    if len(study.spec.seeds) == 1:
        lines.append("there is one seed, so nothing says how far chance alone moves the numbers")
    for name, sets in weights.items():
        planned = study.strategies[name].flops
        spent = {one.proxy["flops"] for one in sets.values() if "flops" in one.proxy}
        if spent - {planned}:
            other = " and ".join(f"{cost:.4g}" for cost in sorted(spent - {planned}))
            lines.append(f"{name} cost {other} FLOPs, and {planned:.4g} were planned, so totals differ")
    return lines
