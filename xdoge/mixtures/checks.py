"""Checks of the arguments of `Mixture.plan`."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping

from xdoge.errors import MOST_NAMES, XDogeError, argument, names_that_differ
from xdoge.mixtures.allocation import least_max_epochs
from xdoge.mixtures.strategies import rest_hint
from xdoge.mixtures.weights import WeightSet
from xdoge.names import language_of, shown

TOO_MANY = 1 << 63
"""Token counts are below this number, so that they fit into signed 64-bit integers."""


def check_names(
    weights: WeightSet,
    available: Mapping[str, int],
    caps: Mapping[str, float],
    before: Mapping[str, int],
    level: str,
) -> None:
    """Raise XDogeError if weights, token counts, caps and tokens read before name different sources.

    Also check the numbers of tokens and caps, and `level`.
    """
    if differing := names_that_differ("the weights", weights.sources, "the token counts", available):
        hint = rest_hint(weights.sources, available)
        raise XDogeError(f"weights {weights.name!r} and the token counts name different sources; {differing}.{hint}")
    for source, count in available.items():
        if not isinstance(count, int) or count < 0:
            raise XDogeError(f"available_tokens[{source!r}] is {count!r}; it must be a whole number >= 0.")
        if weights.sources[source] and not count:
            raise XDogeError(f"{source} has weight {weights.sources[source]:.4g} and no tokens.")
    known = [*available, *weights.languages]
    for what, names in (("caps", caps), ("read_before", before)):
        for name in names:
            if name not in (known if what == "caps" else available):
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known[:MOST_NAMES])}, ..."
                raise XDogeError(f"{argument(what)} names {name!r}; {hint}")
    for name, limit in caps.items():
        if not (_is_number(limit) and limit >= 0):
            raise XDogeError(f"{argument('caps')} of {name!r} is {limit!r}; it must be a number of epochs >= 0.")
    for name, count in before.items():
        if not isinstance(count, int) or count < 0:
            raise XDogeError(f"read_before[{name!r}] is {count!r}; it must be a whole number >= 0.")
    check_level(level)


def check_level(level: object) -> None:
    """Raise XDogeError if `level` is not "sources" or "languages"."""
    if level not in ("languages", "sources"):
        raise XDogeError(f"{argument('level')} is {shown(level)}; it must be languages or sources.")


def is_count(value: object) -> bool:
    """Whether `value` is an integer from 0 to 2^63 - 1."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < TOO_MANY


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def check_numbers(budget_tokens: int, max_epochs: float | None, min_share: float, *, sources: int) -> None:
    """Raise XDogeError if a number is out of range. `sources` is the number of sources with a weight above 0."""
    if not is_count(budget_tokens) or budget_tokens < 1:
        raise XDogeError(
            f"{argument('budget_tokens')} is {shown(budget_tokens)}; it must be a whole number >= 1, and below 2^63."
        )
    if max_epochs is not None and not (_is_number(max_epochs) and max_epochs > 0):
        raise XDogeError(
            f"{argument('max_epochs')} is {shown(max_epochs)}; it must be a number above 0, or None for no cap."
        )
    if not (_is_number(min_share) and 0 <= min_share <= 1 / sources):
        raise XDogeError(
            f"{argument('min_share')} is {shown(min_share)}; for {sources} sources it must be 0 to "
            f"1/{sources} = {1 / sources:.4g}."
        )


def refuse_unspendable(
    learned: Mapping[str, float],
    budget_tokens: int,
    most: Mapping[str, int],
    available: Mapping[str, int],
    before: Mapping[str, int],
    caps: Mapping[str, float],
    max_epochs: float | None,
) -> None:
    """Raise an error if the caps leave part of the budget unspent.

    The message gives the smallest `max_epochs` that would spend the budget.

    Args:
        learned: weight of each source.
        budget_tokens: tokens that the run trains on.
        most: most tokens of each source that has a cap.
        available: unique tokens of each source.
        before: tokens of each source that earlier phases of training read.
        caps: epoch caps of single sources and languages, in place of `max_epochs`.
        max_epochs: epoch cap of all other sources; None without one.

    Raises:
        XDogeError: the budget cannot be spent.
    """
    used = [source for source, weight in learned.items() if weight]
    if any(source not in most for source in used) or sum(most[source] for source in used) >= budget_tokens:
        return
    general = [source for source in used if source not in caps and language_of(source) not in caps]
    spendable = sum(most[source] for source in used)
    message = f"budget {budget_tokens:,} cannot be spent: {len(used)} sources"
    message += (
        f" at {argument('max_epochs')} {max_epochs:g}"
        if general and max_epochs is not None
        else " at caps of their own"
    )
    message += f", less the {sum(before.values()):,} tokens read before," if any(before.values()) else ""
    message += f" give {spendable:,}."
    if not general:
        raise XDogeError(f"{message} Raise the caps or lower the budget.")
    least = least_max_epochs(
        {source: available[source] for source in general},
        budget_tokens,
        spent=before,
        fixed=sum(most[source] for source in used if source not in general),
    )
    raise XDogeError(f"{message} Raise {argument('max_epochs')} to {least:.12g} or lower the budget.")


def whole_sequences(available: Mapping[str, int], sequence_length: int) -> dict[str, int]:
    """Return the tokens of each source, rounded down to whole sequences.

    Raises:
        XDogeError: `sequence_length` is below 1, or a source has fewer tokens than one sequence.
    """
    if not isinstance(sequence_length, int) or sequence_length < 1:
        raise XDogeError(f"{argument('sequence_length')} is {sequence_length!r}; it must be a whole number >= 1.")
    for source, count in available.items():
        if count < sequence_length:
            raise XDogeError(
                f"{source} has {count:,} tokens, less than one sequence of {sequence_length:,}; use shorter sequences."
            )
    return {source: count // sequence_length * sequence_length for source, count in available.items()}
