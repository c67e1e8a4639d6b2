"""IberoBench and other suites of benchmarks. lm-eval runs the tasks that a suite lists.

Every task of a suite has an outcome: it ran, there was no data, it is broken upstream, the suite describes it wrongly,
or it failed. No outcome stops the other tasks. The average of a language is the mean of the normalised scores of its
tasks that ran. The tasks of a group are averaged first.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from xdoge.distributed import Processes
from xdoge.errors import Interrupted, XDogeError
from xdoge.eval.lm_eval.catalogue import Catalogue, Fault, TaskError, is_unreachable, offline, one_line
from xdoge.eval.lm_eval.harness import HarnessModel, Score
from xdoge.eval.results import ALL, Row
from xdoge.eval.suite import NORMALISED, HarnessSettings, Suite, SuiteTask, check_together, covered, is_published
from xdoge.io import read_json, sha256_json, write_json
from xdoge.models.resolver import CausalModel
from xdoge.progress import Event, OnProgress, silent

SCHEMA = "xdoge.benchmark"


@dataclass(frozen=True)
class TaskOutcome:
    """The outcome of one task.

    Attributes:
        spec: the task.
        outcome: "ran", "no data" or "broken upstream"; "wrong suite" if the suite describes the task wrongly; "failed"
            if an error occurred while the model answered.
        reason: why the task did not run, in one line.
        seconds: duration.
        num_fewshot: number of examples in the prompt.
        examples: split of the data that the examples came from; None without examples.
        version: version of the task's definition.
        data: SHA-256 of the files with the questions, or the data set on the Hub.
        score: the score if the task ran, else None.
    """

    spec: SuiteTask
    outcome: Literal["ran"] | Fault
    reason: str = ""
    seconds: float = 0.0
    num_fewshot: int = 0
    examples: str | None = None
    version: str = ""
    data: Mapping[str, Any] | None = None
    score: Score | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the entry of the task in results.json."""
        spec = self.spec
        about = {key: value for key, value in asdict(self).items() if key not in ("spec", "score")}
        names = {key: getattr(spec, key) for key in ("task", "language", "name", "metric", "group")}
        names["name"] = spec.name or spec.task
        scale = {"chance": spec.guessing, "max": spec.max}
        if self.score is None:
            return {**names, **about, **scale}
        return {**names, **about, **scale, **asdict(self.score), NORMALISED: spec.normalised(self.score.value)}


@dataclass(frozen=True)
class Benchmarked:
    """The results of a model in a suite.

    Attributes:
        model: name of the model in tables.
        suite: name of the suite.
        outcomes: outcome of every task, in the order of the suite.
        settings: the settings, with their final values.
        about: everything else that the scores depend on.
    """

    model: str
    suite: str
    outcomes: tuple[TaskOutcome, ...]
    settings: HarnessSettings
    about: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the entry of the run in results.json."""
        return {
            "settings": self.settings.model_dump(mode="json"),
            **self.about,
            "outcomes": [outcome.to_dict() for outcome in self.outcomes],
        }

    def rows(self) -> list[Row]:
        """Return the scores as rows of results.json.

        Each task that ran, and each group, has its score in the metric's own unit and its normalised score. Each
        language has its normalised average, with the suite's name as the task. The average over languages has the
        language `ALL`. `n` is the number of questions; in an average it is the number of scores averaged. There is no
        average if less than `LEAST_COVERAGE` of the tasks ran.
        """
        return [*self._task_rows(), *self._average_rows()]

    def _task_rows(self) -> Iterator[Row]:
        for spec, score in self._scores():
            raw, normalised = _numbers(spec, score)
            yield self._row(spec.language, spec.task, spec.metric, raw, score.n, score.higher_is_better)
            yield self._row(spec.language, spec.task, NORMALISED, normalised, score.n)

    def _average_rows(self) -> Iterator[Row]:
        languages: dict[str, dict[str, list[_Number]]] = {}
        raws: dict[tuple[str, str, str, bool], list[_Number]] = {}
        for spec, score in self._scores():
            raw, normalised = _numbers(spec, score)
            languages.setdefault(spec.language, {}).setdefault(spec.group or spec.task, []).append(normalised)
            if spec.group:
                raws.setdefault((spec.language, spec.group, spec.metric, score.higher_is_better), []).append(raw)
        for (language, group, metric, better), members in raws.items():
            yield self._row(language, group, metric, _average(members), len(members), better)
            yield self._row(language, group, NORMALISED, _average(languages[language][group]), len(members))
        averages = {
            language: _average([_average(members) for members in tasks.values()])
            for language, tasks in languages.items()
            if covered(outcome.outcome for outcome in self.outcomes if outcome.spec.language == language)
        }
        for language, average in averages.items():
            yield self._row(language, self.suite, NORMALISED, average, len(languages[language]))
        if len(averages) > 1 and covered(outcome.outcome for outcome in self.outcomes):
            yield self._row(ALL, self.suite, NORMALISED, _average(list(averages.values())), len(averages))

    def _scores(self) -> Iterator[tuple[SuiteTask, Score]]:
        for outcome in self.outcomes:
            if outcome.score is not None:
                yield outcome.spec, outcome.score

    def _row(self, language: str, task: str, metric: str, number: _Number, n: int, better: bool = True) -> Row:
        return Row(self.model, language, task, metric, *number, n, better)


_Number = tuple[float, float | None]
"""A score and its standard error."""


def _numbers(spec: SuiteTask, score: Score) -> tuple[_Number, _Number]:
    """Return the score in the metric's own unit and the normalised score, each with its standard error."""
    stderr = None if score.stderr is None else score.stderr * spec.per_unit
    return (score.value, score.stderr), (spec.normalised(score.value), stderr)


def _average(numbers: Sequence[_Number]) -> _Number:
    """Return the mean of independent scores, and its standard error if all of them have one."""
    errors = [stderr for _, stderr in numbers if stderr is not None]
    spread = math.hypot(*errors) / len(numbers) if len(errors) == len(numbers) else None
    return sum(value for value, _ in numbers) / len(numbers), spread


def run_suite(
    model: str,
    suite: Suite,
    *,
    settings: HarnessSettings | None = None,
    local_data: Path | None = None,
    name: str | None = None,
    partial: Path | None = None,
    on_progress: OnProgress = silent,
) -> Benchmarked:
    """Return the outcome of every task of a suite for a model.

    Under torchrun or `accelerate launch`, every process calls this function, answers its part of each task, and returns
    the same outcomes.

    Args:
        model: folder, run folder or name on the Hub of a causal language model.
        suite: the tasks.
        settings: by default all defaults.
        local_data: folder with the questions, as TASK/SPLIT.jsonl. Questions that it lacks come from the Hub or its
            cache.
        name: name of the model in tables; by default `model`.
        partial: folder that stores each task as soon as it is finished. Tasks that it has for the same model, settings
            and questions are not run again.
        on_progress: called after every task, in the first process.

    Raises:
        XDogeError: the model cannot be read.
    """
    causal = CausalModel.find(model)
    settings = settings or HarnessSettings()
    processes = Processes.join(cpu=settings.device == "cpu")
    settings = resolved(settings, processes)
    asked = HarnessModel(causal, processes, settings)
    about = {
        "model": causal.identity(),
        "tokenizer": asked.tokenizer,
        "before_prompt": asked.begin,
        "lm_eval": version("lm_eval"),
    }
    tasks, catalogue = expanded(suite)
    if processes.world_size > 1:  # hashing a model takes time
        own = {"settings": settings.model_dump(mode="json"), "tasks": [spec.task for spec in tasks]}
        processes.refuse_differences({**about, "model": causal.pin(), **own})
    report = on_progress if processes.is_first else silent
    run = _SuiteRun(suite.num_fewshot, catalogue, asked, settings, processes, about, local_data, partial)
    outcomes: list[TaskOutcome] = []
    with contextlib.ExitStack() as without_network:
        for spec in tasks:
            outcome, kept = run.outcome(spec, without_network)
            outcomes.append(outcome)
            if kept:
                report(Event("skip", spec.task))
            report(Event("source", suite.name, done=len(outcomes), total=len(tasks), unit="tasks"))
    report(Event("done", suite.name, done=len(tasks), total=len(tasks), unit="tasks"))
    return Benchmarked(name or model, suite.name, tuple(outcomes), settings, {"path": causal.name, **about})


@dataclass(frozen=True)
class _SuiteRun:
    """The model, the settings and the data that the tasks of a suite share."""

    num_fewshot: int
    catalogue: Catalogue
    asked: HarnessModel
    settings: HarnessSettings
    processes: Processes
    about: Mapping[str, Any]
    local_data: Path | None
    partial: Path | None

    def outcome(self, spec: SuiteTask, without_network: contextlib.ExitStack) -> tuple[TaskOutcome, bool]:
        """Return the outcome of a task, and whether an earlier run had stored it."""
        began, outcome = time.monotonic(), TaskOutcome(spec, "ran")
        try:
            with self._agreed():
                data = self.catalogue.data(spec, self.local_data)
                num_fewshot = self.catalogue.num_fewshot(spec, self.num_fewshot, self.settings)
                outcome = replace(
                    outcome,
                    num_fewshot=num_fewshot,
                    examples=data.examples if num_fewshot else None,
                    version=self.catalogue.version(spec),
                    data=data.identity(),
                )
            file, key = self._file(outcome)
            known = self.processes.broadcast(_load(file) if self.processes.is_first else None)
            if known is not None:
                return replace(outcome, score=known[0], seconds=known[1]), True
            with self._agreed():
                task = self.catalogue.build(spec, data, num_fewshot=num_fewshot, seed=self.settings.seed)
            outcome = replace(outcome, score=self._score(task, spec))
        except TaskError as error:
            outcome = replace(outcome, outcome=error.outcome, reason=str(error))
            if is_unreachable(error):
                without_network.enter_context(offline())
        outcome = replace(outcome, seconds=round(time.monotonic() - began, 3))
        if outcome.score is not None and file and self.processes.is_first:
            stored = {"score": asdict(outcome.score), "seconds": outcome.seconds}
            write_json(file, {"schema": f"{SCHEMA}/1", "key": key, "task": spec.task, **stored})
        return outcome, False

    @contextlib.contextmanager
    def _agreed(self) -> Iterator[None]:
        """Raise in every process if the block failed in one of them. The others would wait for its answers."""
        fault: TaskError | None = None
        try:
            yield
        except TaskError as error:
            fault = error
        faults = self.processes.all_gather_objects((fault.outcome, str(fault)) if fault else None)
        if fault:
            raise fault
        for other in filter(None, faults):
            raise TaskError(*other)

    def _score(self, task: Any, spec: SuiteTask) -> Score:
        try:
            score = self.asked.score(task, spec.metric, spec.filter)
        except (Interrupted, XDogeError):
            raise
        except Exception as error:  # a task that fails must not stop the other tasks
            raise TaskError("failed", one_line(error)) from error
        if score is None or not math.isfinite(score.value):
            raise TaskError("failed", f"{spec.metric} is {'missing' if score is None else score.value}")
        return score

    def _file(self, outcome: TaskOutcome) -> tuple[Path | None, dict[str, Any]]:
        """Return the file that stores a finished task, and everything that its score depends on."""
        spec, settings = outcome.spec, self.settings
        key = {
            **self.about,
            **{name: getattr(settings, name) for name in ("limit", "precision", "seed")},
            **{name: getattr(spec, name) for name in ("task", "metric", "filter")},
            "num_fewshot": outcome.num_fewshot,
            "version": outcome.version,
            "data": outcome.data,
        }
        return self.partial / f"{spec.task}-{sha256_json(key)[:16]}.json" if self.partial else None, key


def resolved(settings: HarnessSettings, processes: Processes) -> HarnessSettings:
    """Return the settings with all defaults filled in, except those that the suite decides."""
    update = {
        "batch_size": settings.batch_size or (4 if processes.device == "cpu" else 16),
        "precision": settings.precision if settings.precision != "auto" else processes.precision(),
    }
    return settings.model_copy(update=update)


def expanded(suite: Suite) -> tuple[list[SuiteTask], Catalogue]:
    """Return the tasks of a suite, with groups and tags of the harness replaced by their members, and their catalogue.

    Raises:
        XDogeError: neither the harness nor the published tables have a task of a name, or the suite lists a task both
            by its own name and by that of a group.
    """
    catalogue = Catalogue([task.task for task in suite.tasks])
    tasks: list[SuiteTask] = []
    for task in suite.tasks:
        members = catalogue.members(task.task)
        if not members and not is_published(task.task):
            raise XDogeError(f"suite {suite.name}: {catalogue.unknown(task.task)}")
        if members in ([], [task.task]):
            tasks.append(task)
        else:
            tasks += [task.model_copy(update={"task": member, "group": task.group or task.task}) for member in members]
    names = [task.task for task in tasks]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise XDogeError(f"suite {suite.name}: {twice} is listed twice, by its own name and in a group.")
    if len(tasks) > len(suite.tasks):
        catalogue = Catalogue(names)
    return tasks, catalogue


def check(suites: Sequence[Suite], settings: HarnessSettings) -> None:
    """Check suites before anything is measured.

    Raises:
        XDogeError: a name is wrong, or two suites run the same task in different ways.
    """
    asked: dict[str, list[SuiteTask]] = {}
    for suite in suites:
        if suite.name in asked:
            raise XDogeError(f"two suites are called {suite.name}; give one of the files another `name:`.")
        tasks, catalogue = expanded(suite)
        asked[suite.name] = [
            task.model_copy(update={"num_fewshot": catalogue.num_fewshot(task, suite.num_fewshot, settings)})
            for task in tasks
            if catalogue.members(task.task)
        ]
    check_together(asked)


def _load(file: Path | None) -> tuple[Score, float] | None:
    """Return what an earlier run stored. The name of the file identifies the model, the task and the data."""
    if file is None or not file.is_file():
        return None
    value = read_json(file, schema=SCHEMA, version=1)
    return Score(**value["score"]), value["seconds"]
