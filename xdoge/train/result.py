"""What a training ended with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from xdoge.io import read_json

SCHEMA = "xdoge.train"

LATER = ("tokens_per_second", "validation_share")
"""What runs of earlier versions do not tell."""


@dataclass(frozen=True)
class TrainResult:
    """A finished training run.

    Attributes:
        folder: the run folder.
        ended: how the call ended: "trained", or "finished before" if the run that it resumed had nothing left to do.
        model: folder of the trained model, which transformers loads.
        steps: optimiser steps.
        tokens_seen: training tokens read.
        validation: loss of each language in nats per token, at the end.
        validation_by_source: the same of each source.
        tokens_by_source: training tokens read of each source.
        epochs: passes over each source, those of earlier phases included.
        repeated_beyond_plan: passes over a source beyond those planned; any are a bug of xdoge.
        seconds: of training and validation.
        tokens_per_second: training tokens read in these seconds, validation and checkpoints included.
        validation_share: of these seconds that validation took.
        summary: what train.json holds.
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
        """Return the result that a train.json tells of."""
        fields = set(cls.__dataclass_fields__) - {"folder", "ended", "model", "summary"}
        values: dict[str, Any] = {name: summary.get(name) if name in LATER else summary[name] for name in fields}
        return cls(folder=folder, ended=ended, model=folder / "model", summary=summary, **values)

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Read the result of a finished run from its folder.

        Raises:
            XDogeError: the run is not finished, or train.json is damaged.
        """
        folder = Path(folder)
        return cls.of(folder, read_json(folder / "train.json", schema=SCHEMA), "finished before")

    def to_dict(self) -> dict[str, Any]:
        """Return what train.json holds."""
        return dict(self.summary)
