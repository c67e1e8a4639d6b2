"""Reading the inputs of a comparison. The content of a file or folder decides its kind, and each input gets a name."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union

from xdoge.config import read_yaml
from xdoge.errors import XDogeError, argument, importing
from xdoge.eval.results import ALL, Results, Row
from xdoge.io import read_json, read_rows, sha256_file, sha256_json
from xdoge.mixtures.mixture import Mixture
from xdoge.mixtures.weights import WeightSet
from xdoge.names import language_of, split_source
from xdoge.train.result import SCHEMA as TRAIN

if TYPE_CHECKING:
    from xdoge.laws.law import MixtureLaw

Kind = Literal["weights", "mixture", "run", "results", "law"]
Comparable = Union[WeightSet, Mixture, Results, "MixtureLaw", Path, str]
"""A string may be NAME=FILE, unless a file of that whole name exists."""

KIND_NAMES = {
    "weights": "weight sets",
    "mixture": "mixtures",
    "run": "training runs",
    "results": "tables",
    "law": "laws",
}


@dataclass(frozen=True)
class TrainRun:
    """A training run, finished or not.

    Attributes:
        name: name of the run in tables.
        path: the run folder.
        config: content of config.yaml, with the final value of every setting.
        rows: rows of metrics.jsonl.
        summary: content of train.json; None before the run is finished.
    """

    name: str
    path: Path
    config: Mapping[str, Any]
    rows: tuple[Mapping[str, Any], ...]
    summary: Mapping[str, Any] | None

    @property
    def budget(self) -> int:
        """Tokens that the finished run has read."""
        settings = self.config["settings"]
        return int(settings["steps"] * settings["batch_size"] * settings["sequence_length"])

    @property
    def validations(self) -> list[Mapping[str, Any]]:
        """Rows with validation losses."""
        return [row for row in self.rows if row.get("validation_by_language")]

    @property
    def text(self) -> tuple[Any, ...]:
        """Values that identify the validation text. Only losses on the same text are compared."""
        settings = self.config["settings"]
        own = [settings.get(key) for key in ("sequence_length", "eval_sequences", "documents")]
        return self.config["store"]["sha256"], *own


@dataclass(frozen=True)
class File:
    """One input and its origin.

    Attributes:
        name: its name in tables.
        kind: "weights", "mixture", "run", "results" or "law".
        path: the path as the user wrote it; empty for a Python object.
        sha256: SHA-256 of the file, or for a run of its train.json; empty for a run that is not finished.
        xdoge_version: version that wrote it.
        created: ISO 8601 time at which it was written.
    """

    name: str
    kind: Kind
    path: str
    sha256: str
    xdoge_version: str = ""
    created: str = ""


@dataclass
class Inputs:
    """Everything that was read, by kind and name.

    Attributes:
        weights: weight sets.
        fits: run folders of the weight sets that were read from a run folder.
        mixtures: planned mixtures.
        runs: training runs.
        laws: mixture laws.
        results: rows of all results.json together, and their settings.
        files: all inputs, in the order of the arguments.
    """

    weights: dict[str, WeightSet] = field(default_factory=dict)
    fits: dict[str, Path] = field(default_factory=dict)
    mixtures: dict[str, Mixture] = field(default_factory=dict)
    runs: dict[str, TrainRun] = field(default_factory=dict)
    laws: dict[str, MixtureLaw] = field(default_factory=dict)
    results: Results = field(default_factory=lambda: Results(()))
    files: list[File] = field(default_factory=list)
    _tables: dict[str, str] = field(default_factory=dict)  # the path of the table that has each model

    def add(self, item: _Item, name: str) -> None:
        """Add an input under a name.

        Raises:
            XDogeError: another input of its kind has this name, or an earlier table has other values for its models.
        """
        value = item.value
        if isinstance(value, Results):
            self._merge(_renamed(value, name) if item.label else value, item.path or "a table")
        else:
            places: dict[str, Any] = {
                "weights": self.weights,
                "mixture": self.mixtures,
                "run": self.runs,
                "law": self.laws,
            }
            place = places[item.kind]
            if name in place:
                before = next(file.path for file in self.files if file.kind == item.kind and file.name == name)
                both = " and ".join(filter(None, (before, item.path)))
                raise XDogeError(
                    f"two {KIND_NAMES[item.kind]} are called {name}{f': {both}' if both else ''}. "
                    "Write NAME=FILE, or in Python {name: file}, to tell them apart."
                )
            if isinstance(value, WeightSet | Mixture | TrainRun):  # a law has no name
                value = dataclasses.replace(value, name=name)
            place[name] = value
        if item.fit is not None:
            self.fits[name] = item.fit
        self.files.append(File(name, item.kind, item.path, item.sha256, *item.made))

    def _merge(self, table: Results, path: str) -> None:
        known = {row.key: row for row in self.results.rows}
        for model in dict.fromkeys(row.model for row in table.rows):
            other = next((row for row in table.rows if row.model == model and known.get(row.key, row) != row), None)
            mine, theirs = (results.settings.get("perplexity", {}).get(model, {}) for results in (self.results, table))
            differ = _measured_otherwise(mine, theirs) if mine and theirs else []
            if other and text_behind(mine, other) != text_behind(theirs, other):
                differ = ["text", *differ]
            if other or differ:
                what = " ".join(other.key[1:]) if other else "perplexity"
                why = f", measured with another {differ[0]}" if differ else ""
                raise XDogeError(
                    f"{self._tables[model]} and {path} have different numbers for {model} ({what}){why}. "
                    "Compare them one at a time, or write NAME=FILE to rename the models of one file."
                )
            self._tables.setdefault(model, path)
        rows = [*self.results.rows, *(row for row in table.rows if row.key not in known)]
        documents = {**self.results.documents, **table.documents}
        self.results = Results(tuple(rows), _merged(self.results.settings, table.settings), documents=documents)


def text_behind(about: Mapping[str, Any], row: Row) -> dict[str, Any]:
    """Return values that identify the text of a row of perplexity, by source.

    Args:
        about: settings of the model's perplexity in results.json.
        row: a row of this model.
    """
    source = split_source(row.task)[1]
    return {
        name: text
        for name, text in about.get("text", {}).items()
        if row.language in (ALL, language_of(name)) and (not source or name == f"{row.language}/{source}")
    }


def _measured_otherwise(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Return the settings in which two measurements of a model's perplexity differ, except the text."""
    both = [{**about.get("settings", {}), **about} for about in (mine, theirs)]
    return [key for key in ("tokenizer", "window", "stride", "precision") if both[0].get(key) != both[1].get(key)]


@dataclass(frozen=True)
class _Item:
    """One input without a final name.

    Attributes:
        label: the name that the user gave it; None without one.
        made: version of xdoge that wrote it, and the time.
        fit: the run folder of a weight set, if it was read from one.
    """

    kind: Kind
    value: WeightSet | Mixture | TrainRun | Results | MixtureLaw
    label: str | None
    path: str
    sha256: str
    made: tuple[str, str]
    fit: Path | None = None


def read_all(inputs: Iterable[Comparable | tuple[str | None, Comparable]]) -> Inputs:
    """Return all inputs of a comparison, read and named.

    The user may name an input with "NAME=FILE" or a pair. Otherwise, a file or folder is named by the last parts of its
    path, as many as make the name unique within its kind. A Python object has its own name.

    Raises:
        XDogeError: there is no input, a file is of another kind, or two inputs have the same name.
    """
    items = [_read(*value) if isinstance(value, tuple) else _read(None, value) for value in inputs]
    if not items:
        raise XDogeError("nothing to compare; name weights.json, mixture.json, results.json, law.json or run folders.")
    named = Inputs()
    for item in items:
        others = [_parts(other.path) for other in items if other.kind == item.kind and other.path and not other.label]
        own = _end(_parts(item.path), others) if item.path else str(getattr(item.value, "name", item.kind))
        named.add(item, item.label or own)
    return named


def check_baseline(names: Sequence[str], baseline: str | None) -> None:
    """Raise XDogeError if `baseline` is neither None nor one of the names that are compared."""
    if baseline is not None and baseline not in names:
        raise XDogeError(
            f"{argument('baseline', baseline)} is not among the compared items; choose one of {', '.join(names)}."
        )


def _read(label: str | None, source: Comparable) -> _Item:
    if not isinstance(source, Path | str):
        return _item(source, label, path="", digest=sha256_json(source.to_dict()))
    if label is None and isinstance(source, str) and "=" in source and not Path(source).exists():
        label, _, source = source.rpartition("=")
        if not label.strip():
            raise XDogeError(f"={source} has no name before the equals sign; write NAME=FILE, or the file alone.")
    path = Path(source)
    config = path / "config.yaml"
    if config.exists() and "mixture" in read_yaml(config):
        run, file = read_run(path), path / "train.json"
        digest, summary = (sha256_file(file), run.summary) if run.summary else ("", {})
        made = (summary.get("xdoge_version", ""), summary.get("created", ""))
        return _Item("run", run, label, str(source), digest, made)
    file = path / "weights.json" if path.is_dir() else path
    value = WeightSet.load(path) if path.is_dir() else _load(path)
    fit = file.parent if isinstance(value, WeightSet) and (file.parent / "trajectory.parquet").exists() else None
    return dataclasses.replace(_item(value, label, path=str(source), digest=sha256_file(file)), fit=fit)


def _item(value: WeightSet | Mixture | Results | MixtureLaw, label: str | None, *, path: str, digest: str) -> _Item:
    kinds: dict[type, Kind] = {WeightSet: "weights", Mixture: "mixture", Results: "results"}
    made = getattr(value, "xdoge_version", ""), getattr(value, "created", "")
    return _Item(kinds.get(type(value), "law"), value, label, path, digest, made)


def _parts(path: str) -> list[str]:
    """Return the parts of a path from which its name is made. RUN/weights.json is named after the folder."""
    full = Path(path) if Path(path).name not in ("", "..") else Path(path).resolve()
    *folders, last = [part for part in full.parts if part not in (full.anchor, "..")] or [str(full)]
    generic = last in ("weights.json", "mixture.json", "results.json") and folders
    return folders if generic else [*folders, last.removesuffix(".json")]


def _end(parts: Sequence[str], others: Iterable[Sequence[str]]) -> str:
    """Return the shortest end of a path that no other path has."""
    differing = [other for other in others if other != parts]
    ends = (parts[-depth:] for depth in range(1, len(parts)))
    return "/".join(next((end for end in ends if all(other[-len(end) :] != end for other in differing)), parts))


def read_run(path: Path) -> TrainRun:
    """Return the training run in a folder of `xdoge train`.

    Raises:
        XDogeError: a file in it is missing or of a newer schema.
    """
    file = path / "train.json"
    return TrainRun(
        name=path.resolve().name,
        path=path,
        config=read_yaml(path / "config.yaml"),
        rows=tuple(read_rows(path / "metrics.jsonl")),
        summary=read_json(file, schema=TRAIN) if file.exists() else None,
    )


def _load(path: Path) -> WeightSet | Mixture | Results | MixtureLaw:
    value = read_json(path)
    kinds = {"xdoge.weights": WeightSet, "xdoge.mixture": Mixture, "xdoge.results": Results}
    schema = str(value.get("schema", "")).partition("/")[0]
    if schema == TRAIN:
        raise XDogeError(f"{path} is a file of a training run; name its folder, {path.parent}.")
    if schema == "xdoge.law":
        with importing("cli"):
            from xdoge.laws.law import MixtureLaw
        return MixtureLaw.load(path)
    if schema not in kinds:
        raise XDogeError(
            f"{path} cannot be compared; name a weights.json, mixture.json, results.json or law.json, or "
            "a run folder of fit-weights or train."
        )
    return kinds[schema].load(path)  # type: ignore[attr-defined, no-any-return]


def _renamed(results: Results, name: str) -> Results:
    """Return the table with its model named after the file. With several models, the file's name is put before each."""
    models = dict.fromkeys(row.model for row in results.rows)
    names = {model: name if len(models) == 1 else f"{name}/{model}" for model in models}
    rows = [Row(**{**dataclasses.asdict(row), "model": names[row.model]}) for row in results.rows]
    settings = dict(results.settings)
    if "perplexity" in settings:
        settings["perplexity"] = {names.get(model, model): about for model, about in settings["perplexity"].items()}
    if "benchmarks" in settings:
        settings["benchmarks"] = {
            suite: {names.get(model, model): about for model, about in models.items()}
            for suite, models in settings["benchmarks"].items()
        }
    documents = {names.get(model, model): scores for model, scores in results.documents.items()}
    return Results(tuple(rows), settings, results.xdoge_version, results.created, documents)


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested settings, down to those of one model."""
    merged = dict(first)
    for key, value in second.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged
