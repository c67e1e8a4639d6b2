"""The state of a fit between two steps. A checkpoint holds it as numbers and arrays by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np

from xdoge.fit.affinity import GradientAffinity
from xdoge.fit.batches import Counts
from xdoge.fit.reweight import Weights
from xdoge.fit.targets import TargetState
from xdoge.training.run_folder import Arrays

PARTS = {"weights": Weights, "targets": TargetState, "affinity": GradientAffinity}


@dataclass(frozen=True)
class State:
    """Everything that the next step depends on, besides the proxy and its optimiser."""

    step: int
    read: Counts  # (k,) sequences of each source trained on so far
    weights: Weights
    targets: TargetState
    affinity: GradientAffinity

    def to_dict(self) -> tuple[dict[str, Any], Arrays]:
        """Return the numbers and the arrays of all parts, under names such as "weights.now"."""
        values = {
            f"{part}.{field.name}": getattr(getattr(self, part), field.name)
            for part, kind in PARTS.items()
            for field in fields(kind)
        }
        arrays = {"read": self.read} | {key: value for key, value in values.items() if isinstance(value, np.ndarray)}
        return {"step": self.step} | {key: value for key, value in values.items() if key not in arrays}, arrays

    @classmethod
    def from_dict(cls, numbers: Mapping[str, Any], arrays: Arrays) -> Self:
        """Return the state whose `to_dict` gave these numbers and arrays."""
        values = {**numbers, **arrays}
        parts: dict[str, Any] = {
            part: kind(**{field.name: values[f"{part}.{field.name}"] for field in fields(kind)})
            for part, kind in PARTS.items()
        }
        return cls(step=numbers["step"], read=arrays["read"], **parts)
