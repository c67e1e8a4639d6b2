"""What a plan refuses, in the words of whoever asked for it."""

from __future__ import annotations

import math
from collections.abc import Mapping

from xdoge.errors import XDogeError
from xdoge.mixtures.allocation import least_max_epochs
from xdoge.mixtures.weights import WeightSet


def check_names(
    weights: WeightSet,
    available: Mapping[str, int],
    caps: Mapping[str, float],
    before: Mapping[str, int],
    level: str,
) -> None:
    """Refuse names that do not fit together."""
    if only := sorted(set(weights.sources) ^ set(available)):
        raise XDogeError(
            f"weights {weights.name!r} and the token counts name different sources; in one of them only: "
            f"{', '.join(only)}."
        )
    for source, count in available.items():
        if not isinstance(count, int) or count < 0:
            raise XDogeError(f"available_tokens[{source!r}] is {count!r}; it must be a whole number >= 0.")
        if weights.sources[source] and not count:
            raise XDogeError(f"{source} has weight {weights.sources[source]:.4g} and no tokens.")
    known = [*available, *weights.languages]
    for what, names in (("caps", caps), ("read_before", before)):
        for name in names:
            if name not in (known if what == "caps" else available):
                raise XDogeError(f"{what} names {name!r}; known: {', '.join(known)}.")
    for name, limit in caps.items():
        if not (math.isfinite(limit) and limit >= 0):
            raise XDogeError(f"caps[{name!r}] is {limit}; passes over a source are a number >= 0.")
    for name, count in before.items():
        if not isinstance(count, int) or count < 0:
            raise XDogeError(f"read_before[{name!r}] is {count!r}; it must be a whole number >= 0.")
    if level not in ("languages", "sources"):
        raise XDogeError(f"level is {level!r}; it must be languages or sources.")


def check_numbers(budget: int, max_epochs: float | None, min_share: float) -> None:
    if not isinstance(budget, int) or budget < 1:
        raise XDogeError(f"budget_tokens is {budget!r}; it must be a whole number >= 1.")
    if max_epochs is not None and not (math.isfinite(max_epochs) and max_epochs > 0):
        raise XDogeError(f"max_epochs is {max_epochs}; it must be a number above 0, or None for no cap.")
    if not 0 <= min_share < 1:
        raise XDogeError(f"min_share is {min_share}; it must be >= 0 and below 1.")


def refuse_unspendable(
    learned: Mapping[str, float],
    budget: int,
    most: Mapping[str, int],
    available: Mapping[str, int],
    before: Mapping[str, int],
    caps: Mapping[str, float],
    max_epochs: float | None,
) -> None:
    """Refuse a budget above what the caps leave, with the least `max_epochs` that would spend it."""
    used = [source for source, weight in learned.items() if weight]
    if any(source not in most for source in used) or sum(most[source] for source in used) >= budget:
        return
    general = [source for source in used if source not in caps and source.partition("/")[0] not in caps]
    spendable = sum(most[source] for source in used)
    message = f"budget {budget:,} cannot be spent: {len(used)} sources"
    message += f" at max_epochs {max_epochs:g}" if general and max_epochs is not None else " at caps of their own"
    message += f", less the {sum(before.values()):,} tokens read before," if any(before.values()) else ""
    message += f" give {spendable:,}."
    if not general:
        raise XDogeError(f"{message} Raise the caps or lower the budget.")
    least = least_max_epochs(
        {source: available[source] for source in general},
        budget,
        spent=before,
        fixed=sum(most[source] for source in used if source not in general),
    )
    raise XDogeError(f"{message} Raise max_epochs to {least:.12g} or lower the budget.")
