"""IberoBench and other suites of benchmarks: lm-eval runs the tasks, a suite says which, how and what scores mean.

Every task of a suite has an outcome: it ran, there was no data, it is broken upstream, the suite has it wrong, or it
failed; none stops the others. A language's average is over the normalised scores of its tasks that ran, those of a
group averaged first.
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
    """What became of one task.

    Attributes:
        spec: the task.
        outcome: "wrong suite" is a task that the suite describes as it is not; "failed" an error while the model was
            asked.
        reason: why it did not run, in one line.
        seconds: it took.
        num_fewshot: examples in the prompt.
        examples: split of the data that they came from; None where there are none.
        version: of the task's definition.
        data: SHA-256 of the files with the questions, or the data set on the Hub.
        score: if it ran.
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
        """Return what results.json says about the task."""
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
    """What a model got in a suite.

    Attributes:
        model: what to call it in tables.
        suite: name of the suite.
        outcomes: of every task, in the suite's order.
        settings: all of them resolved.
        about: what the numbers depend on beside the settings.
    """

    model: str
    suite: str
    outcomes: tuple[TaskOutcome, ...]
    settings: HarnessSettings
    about: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return what results.json says about the run."""
        return {
            "settings": self.settings.model_dump(mode="json"),
            **self.about,
            "outcomes": [outcome.to_dict() for outcome in self.outcomes],
        }

    def rows(self) -> list[Row]:
        """Return the numbers as rows of results.json.

        Of each task that ran, and of each group, the score in the metric's own unit and the normalised one; of each
        language (task: the suite's name) and of the average over languages (language `ALL`) the normalised one. `n`
        counts questions, and in averages what is averaged. There is no average where less than
        `LEAST_COVERAGE` of the tasks ran.
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
    """Return the score in the metric's own unit, and normalised."""
    stderr = None if score.stderr is None else score.stderr * spec.per_unit
    return (score.value, score.stderr), (spec.normalised(score.value), stderr)


def _average(numbers: Sequence[_Number]) -> _Number:
    """Return the mean of independent numbers, and its standard error if all have one."""
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
    """Return what a model gets in every task of a suite.

    Under torchrun or `accelerate launch` every process calls it, answers its part of each task, and returns the same.

    Args:
        model: folder, run folder or name on the Hub of a causal language model.
        suite: the tasks.
        settings: all defaults if left out.
        local_data: folder with the questions, TASK/SPLIT.jsonl; what it lacks comes from the Hub or its cache.
        name: what to call the model in tables; `model` if left out.
        partial: folder that keeps each task as it is finished. What lies there of the same model, task, settings and
            questions is not run again.
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
    if processes.world_size > 1:  # the hash of a model is not free
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
    """What the tasks of a suite have in common."""

    num_fewshot: int
    catalogue: Catalogue
    asked: HarnessModel
    settings: HarnessSettings
    processes: Processes
    about: Mapping[str, Any]
    local_data: Path | None
    partial: Path | None

    def outcome(self, spec: SuiteTask, without_network: contextlib.ExitStack) -> tuple[TaskOutcome, bool]:
        """Return what becomes of a task, and whether that was known from an earlier run."""
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
        """Fail in every process where the block failed in one; the others would wait for its answers."""
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
        except Exception as error:  # one task that fails must not stop a night's run
            raise TaskError("failed", one_line(error)) from error
        if score is None or not math.isfinite(score.value):
            raise TaskError("failed", f"{spec.metric} is {'missing' if score is None else score.value}")
        return score

    def _file(self, outcome: TaskOutcome) -> tuple[Path | None, dict[str, Any]]:
        """Return where a finished task is kept, and what its number depends on."""
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
    """Return the settings with nothing left open but what the suite says."""
    update = {
        "batch_size": settings.batch_size or (4 if processes.device == "cpu" else 16),
        "precision": settings.precision if settings.precision != "auto" else processes.precision(),
    }
    return settings.model_copy(update=update)


def expanded(suite: Suite) -> tuple[list[SuiteTask], Catalogue]:
    """Return the tasks of a suite, members in the place of the harness's groups and tags, and what is known of them.

    Raises:
        XDogeError: the harness has no task of a name, unless it is one of the published tables; or a task stands in the
            suite by its own name and by that of a group.
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
        raise XDogeError(f"suite {suite.name}: {twice} is listed twice, by its own name and as one of a group.")
    if len(tasks) > len(suite.tasks):
        catalogue = Catalogue(names)
    return tasks, catalogue


def check(suites: Sequence[Suite], settings: HarnessSettings) -> None:
    """Refuse, before anything is measured, suites that cannot be run or whose numbers could not stand in one table.

    Raises:
        XDogeError: a name is wrong, or two suites ask a task in different ways.
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
    """Read what an earlier run finished; the name of the file says that it is of the same model, task and data."""
    if file is None or not file.is_file():
        return None
    value = read_json(file, schema=SCHEMA, version=1)
    return Score(**value["score"]), value["seconds"]
