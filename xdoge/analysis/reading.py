"""The files that are compared, told apart by what they hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from xdoge.config import read_yaml
from xdoge.errors import XDogeError
from xdoge.eval.results import Results, Row
from xdoge.files import read_json, sha256_file, sha256_json
from xdoge.mixtures.plan import Mixture
from xdoge.mixtures.weights import WeightSet
from xdoge.train.record import SCHEMA as TRAIN
from xdoge.train.record import read_rows

Kind = Literal["weights", "mixture", "run", "results"]
Source = WeightSet | Mixture | Results | Path | str

CALLED: dict[str, str] = {"weights": "weight sets", "mixture": "mixtures", "run": "training runs", "results": "tables"}


@dataclass(frozen=True)
class TrainRun:
    """A training run, finished or not.

    Attributes:
        name: what to call it in tables.
        path: its folder.
        config: config.yaml, every setting as resolved.
        rows: of metrics.jsonl.
        summary: train.json; None before the run is finished.
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
        """What the validation losses of two runs must have in common to be compared."""
        settings = self.config["settings"]
        return self.config["store"]["sha256"], settings["sequence_length"], settings["eval_sequences"]


@dataclass(frozen=True)
class File:
    """One thing that was compared, and where it came from.

    Attributes:
        name: what it is called in tables.
        kind: "weights", "mixture", "run" or "results".
        path: as the user wrote it; empty for a Python object.
        sha256: of the file; of a run, of its train.json; empty for a run that is not finished.
        xdoge_version: that wrote it.
        created: when, ISO 8601.
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
        fits: run folders of those weight sets that were given as one.
        mixtures: planned mixtures.
        runs: training runs.
        results: rows of all results.json together, and their settings.
        files: all of them, in the order given.
    """

    weights: dict[str, WeightSet] = field(default_factory=dict)
    fits: dict[str, Path] = field(default_factory=dict)
    mixtures: dict[str, Mixture] = field(default_factory=dict)
    runs: dict[str, TrainRun] = field(default_factory=dict)
    results: Results = field(default_factory=lambda: Results(()))
    files: list[File] = field(default_factory=list)

    def add(self, given: Source, name: str | None = None) -> None:
        """Read a file, a run folder, or what Python holds of one.

        Raises:
            XDogeError: it is none of those kinds, or another of its kind has its name.
        """
        if isinstance(given, WeightSet | Mixture | Results):
            self._add(given, name, path="", digest=sha256_json(given.to_json()))
            return
        path = Path(given)
        if path.is_dir() and _is_training(path):
            run = read_run(path, name)
            self._put(self.runs, "run", run.name, run, str(given))
            summary, file = run.summary or {}, path / "train.json"
            about = {key: summary.get(key, "") for key in ("xdoge_version", "created")}
            self.files.append(File(run.name, "run", str(given), sha256_file(file) if summary else "", **about))
            return
        file = path / "weights.json" if path.is_dir() else path
        found = WeightSet.load(path) if path.is_dir() else _load(path)
        self._add(found, name, path=str(given), digest=sha256_file(file))
        folder = file.parent
        if isinstance(found, WeightSet) and (folder / "trajectory.parquet").exists():
            self.fits[name or found.name] = folder

    def _add(self, found: WeightSet | Mixture | Results, name: str | None, *, path: str, digest: str) -> None:
        if isinstance(found, WeightSet):
            found, kind = dataclasses.replace(found, name=name or found.name), "weights"
            self._put(self.weights, kind, found.name, found, path)
        elif isinstance(found, Mixture):
            found, kind = dataclasses.replace(found, name=name or found.name), "mixture"
            self._put(self.mixtures, kind, found.name, found, path)
        else:
            kind = "results"
            found = _renamed(found, name) if name else found
            self._merge(found, path)
        called = name or (path if isinstance(found, Results) else found.name)
        self.files.append(File(called, kind, path, digest, found.xdoge_version, found.created))  # type: ignore[arg-type]

    def _put(self, place: dict[str, _Kept], kind: str, name: str, value: _Kept, path: str) -> None:
        if name in place:
            before = next(file.path for file in self.files if file.kind == kind and file.name == name)
            both = " and ".join(filter(None, (before, path)))
            raise XDogeError(
                f"two {CALLED[kind]} are called {name}{f': {both}' if both else ''}. "
                "Write NAME=FILE, or in Python {name: file}, to tell them apart."
            )
        place[name] = value

    def _merge(self, found: Results, path: str) -> None:
        known = {row.key: row for row in self.results.rows}
        for row in found.rows:
            if row.key in known and known[row.key] != row:
                raise XDogeError(
                    f"{path or 'a table'} has another number than the tables before it for {' '.join(row.key)}. "
                    "Write NAME=FILE to tell its models apart."
                )
        rows = [*self.results.rows, *(row for row in found.rows if row.key not in known)]
        self.results = Results(tuple(rows), _merged(self.results.settings, found.settings))


_Kept = TypeVar("_Kept", WeightSet, Mixture, TrainRun)


def read_all(given: Iterable[Source | tuple[str | None, Source]]) -> Inputs:
    """Read everything that is to be compared; what stands in a pair is called by the name before it.

    Raises:
        XDogeError: there is nothing, a file is of another kind, or names clash.
    """
    inputs = Inputs()
    for one in given:
        name, source = one if isinstance(one, tuple) else (None, one)
        inputs.add(source, name)
    if not inputs.files:
        raise XDogeError("there is nothing to compare; name weights.json, mixture.json, results.json or run folders.")
    return inputs


def read_run(path: Path, name: str | None = None) -> TrainRun:
    """Read the folder of `xdoge train`.

    Raises:
        XDogeError: a file in it is missing or of a newer schema.
    """
    file = path / "train.json"
    return TrainRun(
        name=name or path.resolve().name,
        path=path,
        config=read_yaml(path / "config.yaml"),
        rows=tuple(read_rows(path / "metrics.jsonl")),
        summary=read_json(file, schema=TRAIN) if file.exists() else None,
    )


def _is_training(path: Path) -> bool:
    return (path / "config.yaml").exists() and "mixture" in read_yaml(path / "config.yaml")


def _load(path: Path) -> WeightSet | Mixture | Results:
    value = read_json(path)
    kinds = {"xdoge.weights": WeightSet, "xdoge.mixture": Mixture, "xdoge.results": Results}
    schema = str(value.get("schema", "")).partition("/")[0]
    if schema == TRAIN:
        raise XDogeError(f"{path} is part of a training run; name its folder, {path.parent}.")
    if schema not in kinds:
        raise XDogeError(
            f"{path} cannot be compared; weights.json, mixture.json, results.json, and run folders of fit-weights and "
            "train can."
        )
    return kinds[schema].load(path)  # type: ignore[attr-defined, no-any-return]


def _renamed(results: Results, name: str) -> Results:
    """Call the model of a table, or each of several after it, by the name given to the file."""
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
    return Results(tuple(rows), settings, results.xdoge_version, results.created)


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested settings, down to those of one model."""
    merged = dict(first)
    for key, value in second.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged
