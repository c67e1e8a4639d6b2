"""Suites of benchmarks: those that xdoge includes, and the YAML files of users.

A suite lists tasks of the evaluation harness. Each has a language, a metric, the score of guessing and the best
possible score. A suite may also extend another suite and keep some of its tasks, so that these values are written only
once.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from xdoge.config import Config, Seed, read_yaml
from xdoge.errors import XDogeError

NORMALISED = "normalised"
"""Metric of normalised scores: 0 for guessing, 100 for the best possible score."""

LEAST_COVERAGE = 0.5
"""Least share of the tasks of a language, or of a suite, that must have run for an average over them."""

_FOLDER = Path(__file__).with_name("suites")

_APART = "run them one at a time, into tables of their own."

FEWSHOT_SEED = 1234
"""The default seed of lm-eval, so that prompts have the same examples as other people's runs."""


def _name(value: str) -> str:
    """Return the name. Raise ValueError if it looks like a path, an average or a perplexity."""
    if not value.strip() or "/" in value or value.startswith(".") or value in ("*", "perplexity"):
        raise ValueError(f"{value!r} cannot be a name")
    return value


Name = Annotated[str, AfterValidator(_name)]


class HarnessSettings(Config):
    """Every setting of a run of benchmarks.

    The suite, the model and the machine decide the values that are None. Square brackets in a description contain these
    defaults.
    """

    num_fewshot: int | None = Field(
        None, ge=0, description="examples in every prompt, except for tasks that are defined without any [the suite's]"
    )
    limit: int | None = Field(None, gt=0, description="use only the first N questions of each task [all]")
    batch_size: int | None = Field(None, gt=0, description="prompts per forward pass [4 on a CPU, 16 on a GPU]")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="precision of the model; auto is bfloat16 on a GPU that supports it, else float32"
    )
    device: Literal["auto", "cpu", "split"] = Field(
        "auto", description="device to compute on; split spreads the layers of a model over all GPUs"
    )
    seed: Seed = Field(FEWSHOT_SEED, description="seed for choosing the examples in the prompts")


class SuiteTask(Config):
    """One benchmark.

    The normalised score is (score - chance) / (max - chance) × 100: 0 for guessing, 100 for the best possible score.
    """

    task: Name = Field(min_length=1, description="a task, group or tag of lm-eval, or a task of xdoge")
    language: Name = Field(min_length=1, description="ISO code of the language whose average includes this task")
    name: str = Field("", description="name of the task in the published tables [the task]")
    metric: str = Field("acc", description="name of the metric in lm-eval")
    output_type: Literal["multiple_choice", "generate_until"] = "multiple_choice"
    choices: int | None = Field(
        None, ge=2, description="number of answers to choose from; the chance score is then max / choices"
    )
    chance: float | None = Field(None, description="score of guessing, in the metric's unit [0 without choices]")
    max: float = Field(1.0, description="best possible score, in the metric's unit")
    filter: str | None = Field(
        None, description="name of the filter of answers to score, where lm-eval applies several [the first]"
    )
    num_fewshot: int | None = Field(None, ge=0, description="examples in the prompt [the suite's]")
    group: Name | None = Field(
        None, description="tasks with the same group are averaged and count as one task in their language"
    )
    data: Name | None = Field(None, description="folder of the questions inside the local data [the task]")

    @model_validator(mode="after")
    def _scale(self) -> Self:
        if self.choices is not None and self.chance is not None:
            raise ValueError(f"{self.task} has both choices and chance; give only one, since chance is max / choices")
        if self.guessing >= self.max:
            raise ValueError(f"{self.task} has chance {self.guessing:g}, which is not below max {self.max:g}")
        return self

    @model_validator(mode="after")
    def _chance_known(self) -> Self:
        if self.output_type == "multiple_choice" and self.metric != "mcc" and self.choices is self.chance is None:
            raise ValueError(f"{self.task} is multiple choice: give choices, or chance, the score of guessing")
        return self

    @property
    def guessing(self) -> float:
        """The score of guessing, in the metric's unit."""
        if self.choices is not None:
            return self.max / self.choices
        return self.chance or 0.0

    @property
    def folder(self) -> str:
        """Name of the folder with its questions in the local data."""
        return self.data or self.task

    def normalised(self, score: float) -> float:
        """Return the normalised score: 0 for guessing, 100 for the best, negative if worse than guessing."""
        return (score - self.guessing) * self.per_unit

    @property
    def per_unit(self) -> float:
        """Points of the normalised score per unit of the raw score."""
        return 100.0 / (self.max - self.guessing)


class Suite(Config):
    """Benchmarks that are run and averaged together."""

    name: Name = Field(min_length=1, description="name of the suite in tables")
    about: str = ""
    num_fewshot: int = Field(0, ge=0, description="examples in the prompt of tasks that do not set their own number")
    tasks: tuple[SuiteTask, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        seen: set[str] = set()
        for task in self.tasks:
            if task.task in seen:
                raise ValueError(f"{task.task} is listed twice")
            seen.add(task.task)
            if self.name in (task.task, task.group):
                raise ValueError(f"{self.name} is the name of the suite and of one of its tasks; rename the suite")
        for group in {task.group for task in self.tasks if task.group}:
            members = [task for task in self.tasks if task.group == group]
            if len({(task.language, task.metric) for task in members}) > 1:
                raise ValueError(f"the tasks of {group} have several languages or metrics; a group needs one of each")
            if any(task.task == group for task in self.tasks):
                raise ValueError(f"{group} is both a task and a group of others; list only one of them")
        return self

    @classmethod
    def find(cls, name: str) -> Self:
        """Return a suite that xdoge includes, by its name, or the suite of a YAML file.

        Raises:
            XDogeError: there is no such suite or file, or it is not a valid suite.
        """
        return cls._read(name, ())

    @classmethod
    def _read(cls, name: str, below: tuple[str, ...]) -> Self:
        path = _path(name)
        if str(path) in below:
            raise XDogeError(f"{name}: suites extend each other in a circle.")
        value = {"name": path.stem, **read_yaml(path)}
        if isinstance(value.get("tasks"), list):
            value["tasks"] = [_filled(entry, f"{path}: tasks.{n}") for n, entry in enumerate(value["tasks"])]
        if "extends" in value:
            if value.get("tasks"):  # checked alone first, so that an error numbers the tasks as the file does
                cls.parse({key: item for key, item in value.items() if key not in ("extends", "only")}, where=str(path))
            value = cls._extended(dict(value), path, (*below, str(path)))
        return cls.parse(value, where=str(path))

    @classmethod
    def _extended(cls, value: dict[str, Any], path: Path, below: tuple[str, ...]) -> dict[str, Any]:
        """Return a suite that extends another: the tasks of the other that match `only`, then its own tasks."""
        other, only = value.pop("extends"), value.pop("only", {})
        base = cls._read(str(path.parent / other) if str(other).endswith((".yaml", ".yml")) else str(other), below)
        if not isinstance(only, Mapping) or (unknown := only.keys() - SuiteTask.model_fields.keys()):
            known = ", ".join(SuiteTask.model_fields)
            wrong = (
                f"has {', '.join(sorted(unknown))}, which are not keys of a task"
                if isinstance(only, Mapping)
                else "is not a mapping"
            )
            raise XDogeError(f"{path}: only {wrong}; it may have the keys {known}.")
        kept = [task for task in base.tasks if all(_fits(getattr(task, key), wanted) for key, wanted in only.items())]
        if not kept:
            raise XDogeError(f"{path}: no task of {base.name} matches only {dict(only)}.")
        own = value.get("tasks", [])
        return {"num_fewshot": base.num_fewshot, **value, "tasks": [*(task.model_dump() for task in kept), *own]}


def check_together(suites: Mapping[str, Sequence[SuiteTask]]) -> None:
    """Check that suites do not give two values for one row of a table.

    Args:
        suites: tasks by the name of the suite, with groups of the harness expanded and `num_fewshot` filled in.

    Raises:
        XDogeError: a suite has the name of a task of another, or two suites run the same task in different ways.
    """
    seen: dict[str, tuple[str, dict[str, Any]]] = {}
    for suite, tasks in suites.items():
        for task in tasks:
            if clash := {task.task, task.group} & suites.keys():
                raise XDogeError(f"{clash.pop()} is the name of a suite and of a task of {suite}; {_APART}")
            members = [member.task for member in tasks if member.group == task.group] if task.group else []
            asked = task.model_dump(exclude={"name", "data"}) | {"members": members}
            other, before = seen.setdefault(task.task, (suite, asked))
            if differ := [key for key in asked if asked[key] != before[key]]:
                what = f"the tasks of {task.group}" if differ == ["members"] else f"{differ[0]} of {task.task}"
                raise XDogeError(f"{other} and {suite} differ in {what}, but a table has one number for it; {_APART}")


def covered(outcomes: Iterable[str]) -> bool:
    """Return whether enough tasks ran for an average over them. `outcomes` are the outcomes of all tasks."""
    ran = [outcome == "ran" for outcome in outcomes]
    return sum(ran) >= LEAST_COVERAGE * len(ran)


def is_published(task: str) -> bool:
    """Return whether the published tables have a task, by its name in the harness."""
    return task in _published()


def suite_names() -> list[str]:
    """Return the names of the suites that xdoge includes."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


@functools.cache
def _published() -> dict[str, dict[str, Any]]:
    """Return the tasks of the published tables by name, as in iberobench.yaml."""
    return {entry["task"]: entry for entry in read_yaml(_FOLDER / "iberobench.yaml")["tasks"]}


def _filled(entry: object, where: str) -> dict[str, Any]:
    """Return a task of a suite. Fields that it leaves out come from the published task of the same name."""
    if not isinstance(entry, Mapping):
        raise XDogeError(f"{where} is {entry!r}; write it as {{task: NAME, language: gl, choices: 4}}.")
    published = dict(_published().get(str(entry.get("task")), {}))
    if "chance" in entry or "choices" in entry:
        published = {key: value for key, value in published.items() if key not in ("chance", "choices")}
    if entry.get("metric", published.get("metric")) != published.get("metric"):
        published = {key: published[key] for key in ("language", "name", "data", "group") if key in published}
    return {**published, **entry}


def _path(name: str) -> Path:
    if name in suite_names():
        return _FOLDER / f"{name}.yaml"
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    near = difflib.get_close_matches(name, suite_names(), n=1)
    hint = f"; did you mean {near[0]}?" if near else "."
    raise XDogeError(f"suite {name} is unknown; the suites are {', '.join(suite_names())}, or name a YAML file{hint}")


def _fits(value: object, wanted: object) -> bool:
    """Return whether a field has one of the wanted values, or matches a wanted pattern such as belebele_*."""
    alternatives = wanted if isinstance(wanted, list) else [wanted]
    return any(value == match or (value is not None and fnmatchcase(str(value), str(match))) for match in alternatives)
