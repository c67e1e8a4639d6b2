"""The problem of a mixture law: its sources, its evaluations, and which source belongs to which evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FORMS = ("auto", "effective", "process", "log-linear", "lightgbm", "linear")
"""Forms of a law: names of the functions that can be fitted. `auto` combines the smooth ones by cross-validation."""


@dataclass(frozen=True)
class Problem:
    """Names and sizes that every form needs.

    Attributes:
        sources: names of the k sources, in the order of the share columns.
        evaluations: names of the L evaluations, in the order of the loss columns.
        own: for each evaluation, the indices of its own sources; empty if there are none.
        passes: passes over each source at a share of 1, B / U_j, shape (k,); None if token counts are unknown.
        affinity: ln t of each evaluation and source, minus the mean, shape (L, k). It moves the prior mean of the
            transfer (see `xdoge.laws.transfer`). None for the same prior mean everywhere.
        transfer_deviation: standard deviation of the prior of the transfer; None for the default.
    """

    sources: tuple[str, ...]
    evaluations: tuple[str, ...]
    own: tuple[tuple[int, ...], ...]
    passes: tuple[float, ...] | None = None
    affinity: tuple[tuple[float, ...], ...] | None = None
    transfer_deviation: float | None = None

    @property
    def is_own(self) -> NDArray[np.bool_]:
        """Whether source j belongs to evaluation l, shape (L, k)."""
        table = np.zeros((len(self.evaluations), len(self.sources)), dtype=bool)
        for row, columns in enumerate(self.own):
            table[row, list(columns)] = True
        return table

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "sources": list(self.sources),
            "evaluations": list(self.evaluations),
            "own": [list(columns) for columns in self.own],
            "passes": None if self.passes is None else list(self.passes),
            "affinity": None if self.affinity is None else [list(row) for row in self.affinity],
            "transfer_deviation": self.transfer_deviation,
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Problem:
        """Read what `to_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError: the value is something else.
        """
        sources, evaluations = tuple(value["sources"]), tuple(value["evaluations"])
        own = tuple(map(tuple, value["own"]))
        for names in (sources, evaluations):
            if not names or len(set(names)) < len(names) or not all(isinstance(name, str) and name for name in names):
                raise ValueError(f"{list(names)} are not different names")
        if len(own) != len(evaluations) or not are_indices(sum(own, ()), len(sources)):
            raise ValueError(f"own does not name sources of each of the {len(evaluations)} evaluations")
        shape = len(evaluations), len(sources)
        passes, affinity, deviation = value["passes"], value.get("affinity"), value.get("transfer_deviation")
        return cls(
            sources,
            evaluations,
            own,
            None if passes is None else tuple(array_of(passes, len(sources)).tolist()),
            None if affinity is None else tuple(map(tuple, array_of(affinity, *shape).tolist())),
            None if deviation is None else float(array_of(deviation)),
        )


def are_indices(values: Iterable[Any], count: int) -> bool:
    """Whether all values are whole numbers from 0 to `count` - 1."""
    return all(type(value) is int and 0 <= value < count for value in values)


def array_of(value: Any, *shape: int) -> Floats:
    """Return a list of a file as an array of a shape.

    Raises:
        ValueError: the value has another shape, or a number that is not finite.
    """
    array = np.array(value, dtype=np.float64)
    if array.shape != shape or not np.isfinite(array).all():
        raise ValueError(f"numbers of shape {array.shape} stand where finite ones of shape {shape} belong")
    return array


def base_losses(losses: Floats) -> tuple[Floats, Floats]:
    """Return a level below all losses of each evaluation, and the standard deviation of the losses.

    The level is half a standard deviation below the best loss. Errors of a prediction grow with the distance to it, so
    regressions and intervals work with ln(loss - level). Levels from a quarter to a whole standard deviation below the
    best loss gave the same accuracy on RegMix's swarm (docs/explanation/law.md).

    Args:
        losses: shape (n, L).

    Returns:
        Two arrays of shape (L,), in the unit of the losses.
    """
    deviation = losses.std(axis=0)
    return losses.min(axis=0) - 0.5 * deviation, deviation
