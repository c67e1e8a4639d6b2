"""The tasks of lm-eval by name, built with questions from files or the Hub.

The tasks are those of lm-eval and those in the folder `tasks` beside this file. An index of all tasks of lm-eval takes
half a minute to build. So only the folders whose YAML files define one of the names are indexed.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import io
import json
import logging
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal
from unittest import mock

from xdoge.errors import Interrupted, XDogeError, importing
from xdoge.eval.lm_eval.bridge import bridged
from xdoge.eval.suite import HarnessSettings, SuiteTask
from xdoge.io import sha256_file

OWN_TASKS = Path(__file__).with_name("tasks")
_SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
Fault = Literal["no data", "broken upstream", "wrong suite", "failed"]


class TaskError(XDogeError):
    """A task cannot be built. The message is one line, and `outcome` says whose fault it is."""

    def __init__(self, outcome: Fault, reason: str) -> None:
        super().__init__(reason)
        self.outcome = outcome


@dataclass(frozen=True)
class TaskData:
    """The source of a task's questions.

    Attributes:
        dataset: name of the data set on the Hub, from the configuration of the harness.
        config: configuration of the data set; None for its default.
        options: further options of the data set.
        splits: splits that the task reads; the one with the questions is first.
        files: local files by split; empty if the questions come from the Hub.
        examples: split of the examples in the prompt; "fixed" if the task itself contains them.
    """

    dataset: str
    config: str | None
    options: Mapping[str, Any]
    splits: tuple[str, ...]
    files: Mapping[str, Path]
    examples: str

    def identity(self) -> dict[str, Any]:
        """Return values that change whenever the questions change."""
        if self.files:
            return {"files": {split: _sha256(path, path.stat().st_mtime_ns) for split, path in self.files.items()}}
        return {"dataset": self.dataset, "config": self.config, "options": str(dict(self.options))}

    def load(self) -> None:
        """Load the data set from the Hub or its cache. Code that comes with a data set is never run.

        Raises:
            TaskError: the data set cannot be loaded.
        """
        import datasets

        try:
            with quiet():
                datasets.load_dataset(self.dataset, self.config, **self.options)
        except Interrupted:
            raise
        except Exception as error:  # whatever `datasets` and its many file formats raise
            raise TaskError(*_blame(error, self)) from error


class Catalogue:
    """The tasks with given names, and their configurations.

    Args:
        names: names of tasks, groups or tags.
    """

    def __init__(self, names: Iterable[str]) -> None:
        with importing("eval"):
            from lm_eval.tasks import TaskManager
        self._names = list(names)
        with quiet():
            self._manager = TaskManager(include_defaults=False, include_path=list(map(str, _folders(self._names))))
            if any(name not in self._manager.task_index and _is_tag(name) for name in self._names):
                self._manager = TaskManager(include_path=str(OWN_TASKS))  # only the whole index has tags

    def members(self, name: str) -> list[str]:
        """Return the tasks of a group or tag; the name itself for a task; an empty list for an unknown name."""
        entry = self._manager.task_index.get(name)
        if entry is None:
            return []
        if entry.kind.name == "TAG":
            return sorted(entry.tags)
        if entry.kind.name != "GROUP":
            return [name]
        children = entry.cfg.get("task") or []
        if not all(isinstance(child, str) for child in children):
            raise XDogeError(f"the group {name} changes the settings of its tasks; list the tasks themselves.")
        return [member for child in children for member in Catalogue([child]).members(child)]

    def unknown(self, name: str) -> str:
        """Return a message that there is no task of this name, with the names of similar tasks."""
        near = difflib.get_close_matches(name, sorted(set().union(*_definitions().values())), n=1)
        return f"lm-eval {version('lm_eval')} has no task {name}" + (f"; did you mean {near[0]}?" if near else ".")

    def data(self, task: SuiteTask, local_data: Path | None) -> TaskData:
        """Return the source of a task's questions: its folder in the local data if there is one, else the Hub.

        Raises:
            TaskError: the task is unknown, or the folder lacks the split with the questions.
        """
        config = self._config(task.task)
        folder = local_data / task.folder if local_data else None
        files = {path.stem: path for path in sorted(folder.glob("*.jsonl"))} if folder else {}
        questions = config.get("test_split") or config.get("validation_split")
        if questions is None:
            raise TaskError("broken upstream", f"{task.task} has no split with questions")
        if files and questions not in files:
            raise TaskError("no data", f"{folder} has no {questions}.jsonl")
        fewshot = config.get("fewshot_config") or {}
        wanted = [config.get("fewshot_split") or fewshot.get("split"), *(config.get(key) for key in _SPLITS[:2])]
        known = [split for split in wanted if split and (split in files or not files)]
        examples = "fixed" if fewshot.get("samples") and not wanted[0] else (known or [questions])[0]
        splits = dict.fromkeys([questions, *([] if examples == "fixed" else [examples])])
        return TaskData(
            config.get("dataset_path") or "",
            config.get("dataset_name"),
            {k: v for k, v in (config.get("dataset_kwargs") or {}).items() if k != "trust_remote_code"},
            tuple(splits),
            {split: files[split] for split in splits} if files else {},
            examples,
        )

    def num_fewshot(self, task: SuiteTask, default: int, settings: HarnessSettings) -> int:
        """Return the number of examples in the prompt; 0 if the task is defined without examples."""
        if self._config(task.task).get("num_fewshot") == 0:
            return 0
        chosen = settings.num_fewshot if settings.num_fewshot is not None else task.num_fewshot
        return default if chosen is None else chosen

    def version(self, task: SuiteTask) -> str:
        """Return the version of the task's definition."""
        return str((self._config(task.task).get("metadata") or {}).get("version", ""))

    def build(self, task: SuiteTask, data: TaskData, *, num_fewshot: int, seed: int) -> Any:
        """Return a task of the harness, with its questions loaded and its first prompt built.

        Raises:
            TaskError: the task cannot be built.
        """
        spec = {"group": "xdoge", "task": [{"task": task.task, **self._overrides(task, data)}]}
        try:
            with quiet(), bridged():
                built = self._manager.load(spec)["tasks"][task.task]
        except Interrupted:
            raise
        except Exception as error:  # the Python files of a task can raise anything
            raise TaskError(*_blame(error, data)) from error
        if task.output_type != built.OUTPUT_TYPE:
            raise TaskError("wrong suite", f"{task.task} is {built.OUTPUT_TYPE}, not {task.output_type}")
        if task.metric not in built.aggregation():
            has = ", ".join(built.aggregation())
            raise TaskError("wrong suite", f"{task.task} has no metric {task.metric}; it has {has}")
        if data.examples == data.splits[0]:
            built.fewshot_cfg.split = built.config.test_split  # so that no question is an example of itself
        pool = len(built.sampler.df) - (data.examples == data.splits[0])
        if num_fewshot > pool:
            raise TaskError(
                "no data", f"its {data.examples} split has {pool} examples for the prompt, not {num_fewshot}"
            )
        built.set_config(key="num_fewshot", value=num_fewshot)
        built.set_fewshot_seed(seed=seed)
        return built

    def _config(self, name: str) -> dict[str, Any]:
        entry = self._manager.task_index.get(name)
        if entry is None or entry.cfg is None:
            raise TaskError("broken upstream", f"lm-eval {version('lm_eval')} has no task of that name")
        config: dict[str, Any] = entry.cfg
        return config

    def _overrides(self, task: SuiteTask, data: TaskData) -> dict[str, Any]:
        config = self._config(task.task)
        if not data.files:
            return {"dataset_kwargs": dict(data.options) or None}
        missing = {key: None for key in _SPLITS if config.get(key) and config[key] not in data.files}
        fewshot = {key: value for key, value in (config.get("fewshot_config") or {}).items() if key != "split"}
        own = {"fewshot_config": fewshot or None, "fewshot_split": data.examples} if data.examples != "fixed" else {}
        return {"custom_dataset": partial(_read, dict(data.files)), "dataset_kwargs": None, **missing, **own}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the harness's logs, warnings, progress bars and prints."""
    import datasets
    from tqdm import std  # type: ignore[import-untyped]

    draw = std.tqdm.__init__

    def hidden(self: Any, *arguments: Any, **options: Any) -> None:
        draw(self, *arguments, **{**options, "disable": True})

    loggers = {logging.getLogger(name): logging.getLogger(name).level for name in ("lm_eval", "datasets", "absl")}
    shown = datasets.utils.is_progress_bar_enabled()
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        datasets.disable_progress_bars()
        with (
            mock.patch.object(std.tqdm, "__init__", hidden),
            contextlib.redirect_stdout(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in loggers.items():
            logger.setLevel(level)
        if shown:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Let the libraries read only the cache of the Hub. Without a network, each request would take half a minute."""
    import datasets
    import huggingface_hub

    with (
        mock.patch.object(datasets.config, "HF_HUB_OFFLINE", True),
        mock.patch.object(huggingface_hub.constants, "HF_HUB_OFFLINE", True),
    ):
        yield


def is_unreachable(error: BaseException | None) -> bool:
    """Return whether an error, or one of its causes, says that there is no network."""
    while error is not None:
        if isinstance(error, ConnectionError) or "Connect" in type(error).__name__:
            return True
        error = error.__cause__ or error.__context__
    return False


def _folders(names: Iterable[str]) -> list[Path]:
    """Return the folders with YAML files that define one of the names. If two define a name, lm-eval takes the last."""
    wanted = set(names)
    return sorted({path.parent for path, defined in _definitions().items() if wanted & defined}, reverse=True)


def _is_tag(name: str) -> bool:
    """Return whether a file of lm-eval has this tag."""
    tag = re.compile(rf"^(?:tag:|\s*-)[ \t]*[\"']?{re.escape(name)}[\"']?[ \t]*$", flags=re.MULTILINE)
    files = (path for root in _roots() for path in root.rglob("*") if path.suffix in ("", ".yaml") and path.is_file())
    return any(tag.search(path.read_text(encoding="utf-8", errors="replace")) for path in files)


@cache
def _definitions() -> dict[Path, frozenset[str]]:
    """Return the tasks and groups that each YAML file defines. The files are searched as text, not parsed."""
    defined = re.compile(r"^(?:task|group):[ \t]*[\"']?([\w.-]+)", flags=re.MULTILINE)
    return {
        path: frozenset(defined.findall(path.read_text(encoding="utf-8", errors="replace")))
        for root in _roots()
        for path in root.rglob("*.yaml")
    }


def _roots() -> tuple[Path, ...]:
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).with_name("tasks"), OWN_TASKS


def _read(files: Mapping[str, Path], **_: Any) -> dict[str, Any]:
    """Return the rows of JSONL files by split. Each split has its own column types."""
    import datasets

    return {split: datasets.Dataset.from_dict(_columns(path)) for split, path in files.items()}


def _columns(path: Path) -> dict[str, list[Any]]:
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise XDogeError(f"{path}, line {number}, is not JSON") from error
            if not isinstance(row, dict):
                raise XDogeError(f"{path}, line {number}, is not an object")
            rows.append(row)
    if not rows:
        raise XDogeError(f"{path} has no rows")
    return {key: [row.get(key) for row in rows] for key in dict.fromkeys(key for row in rows for key in row)}


def _blame(error: Exception, data: TaskData) -> tuple[Fault, str]:
    """Return the outcome and the reason of an error in building a task."""
    message = " ".join(str(error).split())
    if isinstance(error, XDogeError):
        return "no data", message
    if data.files:
        folder = next(iter(data.files.values())).parent
        if type(error).__name__ == "UndefinedError" or isinstance(error, KeyError):
            return "no data", f"{folder} lacks a column: {message}"
        if isinstance(error, IndexError | ValueError):
            return "no data", f"{folder} has rows that do not fit the task: {message}"[:200]
        return "broken upstream", one_line(error)
    if "scripts are no longer supported" in message:
        return "broken upstream", f"{data.dataset} needs a loading script, which `datasets` no longer runs"
    if is_unreachable(error) or isinstance(error, OSError) or "Couldn't find cache" in message:
        return "no data", "neither among the local data nor in the cache of the Hub" + (
            "" if is_unreachable(error) else f": {message}"[:160]
        )
    return "broken upstream", one_line(error)


def one_line(error: Exception) -> str:
    """Return the type and the message of an error, in one line of at most 200 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


@cache
def _sha256(path: Path, changed: int) -> str:
    return sha256_file(path)
