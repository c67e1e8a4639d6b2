"""Which benchmarks to run, how, and what their scores mean: the suites that ship, and the YAML files of users.

A suite lists tasks of the evaluation harness, each with its language, its metric, what chance scores and what the best
possible answer scores. A suite may instead extend another and keep only some of its tasks, so that the numbers stand
in one place.
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
"""Metric of scores of which 0 is what chance gives and 100 the best there is."""

LEAST_COVERAGE = 0.5
"""Share of the tasks of a language, or of a suite, that must have run for an average over them."""

_FOLDER = Path(__file__).with_name("suites")

_APART = "run them one at a time, into tables of their own."

FEWSHOT_SEED = 1234
"""That of lm-eval, so that the examples in the prompt are those of other people's runs."""


def _name(value: str) -> str:
    """Refuse what could not be told from a path, an average or a perplexity."""
    if not value.strip() or "/" in value or value.startswith(".") or value in ("*", "perplexity"):
        raise ValueError(f"{value!r} cannot be a name")
    return value


Name = Annotated[str, AfterValidator(_name)]


class HarnessSettings(Config):
    """Every setting of a run; what is None is filled in from the suite, the model and the machine."""

    num_fewshot: int | None = Field(
        None, ge=0, description="examples in every prompt, except of tasks defined without any [the suite's]"
    )
    limit: int | None = Field(None, gt=0, description="questions per task, the first ones [all]")
    batch_size: int | None = Field(None, gt=0, description="prompts at once [4 on a CPU, 16 on a GPU]")
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 where the GPU has it")
    device: Literal["auto", "cpu", "split"] = Field(
        "auto", description="what to compute on; split: the layers over all GPUs, for a model too large for one"
    )
    seed: Seed = Field(FEWSHOT_SEED, description="of the choice of examples in the prompts")


class SuiteTask(Config):
    """One benchmark.

    The normalised score is (score - chance) / (max - chance) × 100: 0 for guessing, 100 for the best there is.
    """

    task: Name = Field(min_length=1, description="name in lm-eval of a task, group or tag, or of a task of xdoge's own")
    language: Name = Field(min_length=1, description="ISO code of the language whose average it enters")
    name: str = Field("", description="what the published tables call it [the task]")
    metric: str = Field("acc", description="as the harness names it")
    output_type: Literal["multiple_choice", "generate_until"] = "multiple_choice"
    choices: int | None = Field(None, ge=2, description="answers to choose from; chance is max / choices")
    chance: float | None = Field(None, description="score of guessing, in the metric's unit [0 without choices]")
    max: float = Field(1.0, description="best possible score, in the metric's unit")
    filter: str | None = Field(None, description="of the answers, where the harness applies several [its first]")
    num_fewshot: int | None = Field(None, ge=0, description="examples in the prompt [the suite's]")
    group: Name | None = Field(None, description="tasks of a group are averaged, and count as one in their language")
    data: Name | None = Field(None, description="folder of the questions among the local data [the task]")

    @model_validator(mode="after")
    def _scale(self) -> Self:
        if self.choices is not None and self.chance is not None:
            raise ValueError(f"{self.task} has choices and chance; give one, chance is max / choices")
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
        """Score of guessing."""
        if self.choices is not None:
            return self.max / self.choices
        return self.chance or 0.0

    @property
    def folder(self) -> str:
        """Name of the folder with its questions, among the local data."""
        return self.data or self.task

    def normalised(self, score: float) -> float:
        """Return the score on the scale on which guessing is 0 and the best is 100; worse than guessing is negative."""
        return (score - self.guessing) * self.per_unit

    @property
    def per_unit(self) -> float:
        """Points of the normalised score in one unit of the raw one."""
        return 100.0 / (self.max - self.guessing)


class Suite(Config):
    """Benchmarks that are run and averaged together."""

    name: Name = Field(min_length=1, description="what its averages are called in tables")
    about: str = ""
    num_fewshot: int = Field(0, ge=0, description="examples in the prompt of the tasks that say nothing else")
    tasks: tuple[SuiteTask, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        seen: set[str] = set()
        for task in self.tasks:
            if task.task in seen:
                raise ValueError(f"{task.task} is listed twice")
            seen.add(task.task)
            if self.name in (task.task, task.group):
                raise ValueError(f"{self.name} is the suite and one of its tasks; tables could not tell them apart")
        for group in {task.group for task in self.tasks if task.group}:
            members = [task for task in self.tasks if task.group == group]
            if len({(task.language, task.metric) for task in members}) > 1:
                raise ValueError(f"the tasks of {group} have several languages or metrics; a group has one of each")
            if any(task.task == group for task in self.tasks):
                raise ValueError(f"{group} is a task and a group of others; list one of the two")
        return self

    @classmethod
    def find(cls, name: str) -> Self:
        """Return the suite of a name that ships with xdoge, or of a YAML file.

        Raises:
            XDogeError: there is no such suite or file, or it does not hold what it should.
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
            if value.get("tasks"):  # alone first, so that an error counts the tasks as the file does
                cls.parse({key: item for key, item in value.items() if key not in ("extends", "only")}, where=str(path))
            value = cls._extended(dict(value), path, (*below, str(path)))
        return cls.parse(value, where=str(path))

    @classmethod
    def _extended(cls, value: dict[str, Any], path: Path, below: tuple[str, ...]) -> dict[str, Any]:
        """Return what a suite that extends another stands for: those of its tasks that fit `only`, and its own."""
        other, only = value.pop("extends"), value.pop("only", {})
        base = cls._read(str(path.parent / other) if str(other).endswith((".yaml", ".yml")) else str(other), below)
        if not isinstance(only, Mapping) or (unknown := only.keys() - SuiteTask.model_fields.keys()):
            known = ", ".join(SuiteTask.model_fields)
            wrong = (
                f"has {', '.join(sorted(unknown))}, which no task has" if isinstance(only, Mapping) else "is no mapping"
            )
            raise XDogeError(f"{path}: only {wrong}; it takes {known}.")
        kept = [task for task in base.tasks if all(_fits(getattr(task, key), wanted) for key, wanted in only.items())]
        if not kept:
            raise XDogeError(f"{path}: no task of {base.name} fits only {dict(only)}.")
        own = value.get("tasks", [])
        return {"num_fewshot": base.num_fewshot, **value, "tasks": [*(task.model_dump() for task in kept), *own]}


def check_together(suites: Mapping[str, Sequence[SuiteTask]]) -> None:
    """Refuse suites that would give two numbers for one row of a table.

    Args:
        suites: tasks by the suite's name, groups of the harness expanded, examples in the prompt filled in.

    Raises:
        XDogeError: one is called as a task of another, or two ask a task in different ways.
    """
    seen: dict[str, tuple[str, dict[str, Any]]] = {}
    for suite, tasks in suites.items():
        for task in tasks:
            if clash := {task.task, task.group} & suites.keys():
                raise XDogeError(f"{clash.pop()} is a suite and a task of {suite}; {_APART}")
            members = [member.task for member in tasks if member.group == task.group] if task.group else []
            asked = task.model_dump(exclude={"name", "data"}) | {"members": members}
            other, before = seen.setdefault(task.task, (suite, asked))
            if differ := [key for key in asked if asked[key] != before[key]]:
                what = f"the tasks of {task.group}" if differ == ["members"] else f"{differ[0]} of {task.task}"
                raise XDogeError(f"{other} and {suite} differ in {what}, and a table has one number for it; {_APART}")


def covered(outcomes: Iterable[str]) -> bool:
    """Whether enough tasks ran to average over them; `outcomes` are those of all."""
    ran = [outcome == "ran" for outcome in outcomes]
    return sum(ran) >= LEAST_COVERAGE * len(ran)


def is_published(task: str) -> bool:
    """Whether a task is one of the published tables, by its name in the harness."""
    return task in _published()


def suite_names() -> list[str]:
    """Return the names of the suites that ship with xdoge."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


@functools.cache
def _published() -> dict[str, dict[str, Any]]:
    """Return the tasks of the published tables by name, as iberobench.yaml writes them."""
    return {entry["task"]: entry for entry in read_yaml(_FOLDER / "iberobench.yaml")["tasks"]}


def _filled(entry: object, where: str) -> dict[str, Any]:
    """Return a task of a suite, with what it leaves out taken from the published one of that name."""
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
    raise XDogeError(f"{name} is no suite: there are {', '.join(suite_names())}, or name a YAML file{hint}")


def _fits(value: object, wanted: object) -> bool:
    """Whether a field has one of the wanted values, or fits one of the wanted patterns such as belebele_*."""
    alternatives = wanted if isinstance(wanted, list) else [wanted]
    return any(value == match or (value is not None and fnmatchcase(str(value), str(match))) for match in alternatives)
