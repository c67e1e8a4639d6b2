"""The result of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from xdoge.io import read_json

SCHEMA = "xdoge.train"

LATER = ("tokens_per_second", "validation_share")
"""Keys that train.json of earlier versions does not have."""


@dataclass(frozen=True)
class TrainResult:
    """The result of a finished training run.

    Attributes:
        folder: run folder.
        ended: "trained", or "finished before" if the resumed run was finished already.
        model: folder of the trained model, in the format of transformers.
        steps: number of optimiser steps.
        tokens_seen: number of training tokens read.
        validation: final validation loss of each language, nats per token.
        validation_by_source: final validation loss of each source, nats per token.
        tokens_by_source: training tokens read from each source.
        epochs: passes over each source, including those of earlier phases.
        repeated_beyond_plan: passes over sources in excess of the plan. It is empty unless xdoge has a bug.
        seconds: duration of training, including validation and checkpoints.
        tokens_per_second: tokens_seen / seconds, None for runs of earlier versions.
        validation_share: share of the duration that validation took, None for runs of earlier versions.
        summary: content of train.json.
    """

    folder: Path
    ended: Literal["trained", "finished before"]
    model: Path
    steps: int
    tokens_seen: int
    validation: Mapping[str, float]
    validation_by_source: Mapping[str, float]
    tokens_by_source: Mapping[str, int]
    epochs: Mapping[str, float]
    repeated_beyond_plan: Mapping[str, float]
    seconds: float
    tokens_per_second: float | None
    validation_share: float | None
    summary: Mapping[str, Any]

    @classmethod
    def of(cls, folder: Path, summary: Mapping[str, Any], ended: Literal["trained", "finished before"]) -> Self:
        """Return the result for a run folder and the content of its train.json."""
        fields = set(cls.__dataclass_fields__) - {"folder", "ended", "model", "summary"}
        values: dict[str, Any] = {name: summary.get(name) if name in LATER else summary[name] for name in fields}
        return cls(folder=folder, ended=ended, model=folder / "model", summary=summary, **values)

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Return the result of the finished run in a folder.

        Raises:
            XDogeError: the run is not finished, or train.json is damaged.
        """
        folder = Path(folder)
        return cls.of(folder, read_json(folder / "train.json", schema=SCHEMA), "finished before")

    def to_dict(self) -> dict[str, Any]:
        """Return the content of train.json."""
        return dict(self.summary)
