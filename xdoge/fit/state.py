"""The state of a fit between two steps. A checkpoint holds it as numbers and arrays by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, dataclass, fields
from typing import Any, Self

import numpy as np

from xdoge.fit.affinity import GradientAffinity
from xdoge.fit.batches import Counts
from xdoge.fit.reweight import Weights
from xdoge.fit.targets import TargetState
from xdoge.training.run_folder import Arrays

PARTS = {"weights": ("weights", Weights), "aims": ("targets", TargetState), "transfer": ("affinity", GradientAffinity)}
"""Each part of the state: its name in checkpoints, its field of `State` and its class. Older checkpoints use the same
names, so they do not change. A field whose name in checkpoints differs has it as the `key` of its metadata."""


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
            f"{key}.{_name(field)}": getattr(getattr(self, part), field.name)
            for key, (part, kind) in PARTS.items()
            for field in fields(kind)
        }
        arrays = {"read": self.read} | {key: value for key, value in values.items() if isinstance(value, np.ndarray)}
        return {"step": self.step} | {key: value for key, value in values.items() if key not in arrays}, arrays

    @classmethod
    def from_dict(cls, numbers: Mapping[str, Any], arrays: Arrays) -> Self:
        """Return the state whose `to_dict` gave these numbers and arrays."""
        values = {**numbers, **arrays}
        parts: dict[str, Any] = {
            part: kind(**{field.name: values[f"{key}.{_name(field)}"] for field in fields(kind)})
            for key, (part, kind) in PARTS.items()
        }
        return cls(step=numbers["step"], read=arrays["read"], **parts)


def _name(field: Field[Any]) -> str:
    """Return the name of a field in checkpoints."""
    return str(field.metadata.get("key", field.name))
