"""Divide a token budget among sources in whole numbers, in proportion to their weights where no cap or floor binds.

This is a weighted UniMax: x_i = min(cap_i, max(floor_i, λ α_i)), where λ is the number that spends the whole budget. Of
all allocations within the caps and floors, it is the KL-closest to the weights. With equal weights and no floors, it is
UniMax. All arithmetic is on integers, since every float is a ratio of integers. The sum is therefore exact at any size
(docs/explanation/method.md, "Allocation").
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from xdoge.errors import XDogeError, argument
from xdoge.mixtures.simplex import as_integers
from xdoge.names import by_language

Amount = float | Fraction


@dataclass(frozen=True)
class Allocation:
    """The division of a budget among names.

    Attributes:
        counts: whole number of tokens per name, in the order of the weights. They sum to the budget.
        capped: names whose cap binds. They would get more without it.
    """

    counts: dict[str, int]
    capped: frozenset[str]


def allocate(
    weights: Mapping[str, Amount],
    budget_tokens: int,
    *,
    caps: Mapping[str, int] | None = None,
    floors: Mapping[str, int] | None = None,
) -> Allocation:
    """Divide a budget in proportion to weights, with a cap and a floor for each name.

    The sum of min(cap_i, max(floor_i, λ α_i)) is piecewise linear in λ. Its slope changes where a name leaves its floor
    or reaches its cap. The algorithm sorts these at most 2 k points once, and walks through them until the budget is
    spent: O(k log k). Fractions of tokens are rounded by largest remainder, ties to the earlier name. Rounding crosses
    no cap and no floor.

    Args:
        weights: α, numbers >= 0 on any scale. A name with weight 0 gets its floor.
        budget_tokens: sum of the counts. `MixtureSampler` passes sequences instead of tokens.
        caps: most tokens of a name. Names that are left out have no cap.
        floors: fewest tokens of a name, 0 for names that are left out.

    Returns:
        Tokens of each name, and the names whose cap binds.

    Raises:
        XDogeError: a floor is above its cap, the floors exceed the budget, or the caps leave part of it unspent.

    Source: Chung et al. 2023, UniMax, arXiv:2304.09151, for equal weights; docs/explanation/method.md for the rest.
    """
    names = list(weights)
    for name in [*(caps or {}), *(floors or {})]:
        if name not in weights:
            raise XDogeError(f"{name} has a cap or a floor, but no weight.")
    parts = as_integers(weights.values())
    low = [(floors or {}).get(name, 0) for name in names]
    high = [(caps or {}).get(name) for name in names]
    for name, least, most in zip(names, low, high, strict=True):
        if least < 0 or (most is not None and most < least):
            raise XDogeError(f"{name}: the floor {least:,} must be >= 0 and at most the cap {most}.")
    if sum(low) > budget_tokens:
        raise XDogeError(f"budget {budget_tokens:,} is less than the floors, which sum to {sum(low):,}.")
    limits = [least if not part else most for part, least, most in zip(parts, low, high, strict=True)]
    spendable = sum(limit for limit in limits if limit is not None)
    if None not in limits and spendable < budget_tokens:
        raise XDogeError(f"budget {budget_tokens:,} cannot be spent: {len(names)} caps give {spendable:,}.")
    over, under = _multiplier(parts, low, high, budget_tokens)  # λ = over / under, λ α_i = over · part / under
    counts, remainders, capped = [], [], set()
    for name, part, least, most in zip(names, parts, low, high, strict=True):
        count, remainder = divmod(over * part, under)
        if count < least:
            count, remainder = least, 0
        elif most is not None and (count > most or (count == most and remainder)):
            capped.add(name)
            count, remainder = most, 0
        counts.append(count)
        remainders.append(remainder)
    left = budget_tokens - sum(counts)
    for i in sorted(range(len(names)), key=lambda i: (-remainders[i], i))[:left]:
        counts[i] += 1
    return Allocation(dict(zip(names, counts, strict=True)), frozenset(capped))


def _multiplier(parts: Sequence[int], low: Sequence[int], high: Sequence[int | None], budget: int) -> tuple[int, int]:
    """Return λ as numerator and denominator, for integer weights `parts`, floors `low` and caps `high`."""
    shift = 2 * max(parts).bit_length()  # two different bound / part differ by at least 2^-shift
    points = []
    for i, (part, least, most) in enumerate(zip(parts, low, high, strict=True)):
        if part and least:
            points.append(((least << shift) // part, 0, i))
        if part and most is not None:
            points.append(((most << shift) // part, 1, i))
    fixed = sum(low)
    free = sum(part for part, least in zip(parts, low, strict=True) if not least)
    last = (0, 1)
    for _, reaches_cap, i in sorted(points):
        bound, part = (high[i] if reaches_cap else low[i]) or 0, parts[i]
        last = (bound, part)
        if fixed * part + free * bound >= budget * part:
            break
        sign = -1 if reaches_cap else 1
        fixed -= sign * bound
        free += sign * part
    return (budget - fixed, free) if free else last


def allocate_by_language(
    weights: Mapping[str, Amount],
    budget_tokens: int,
    *,
    caps: Mapping[str, int] | None = None,
    floors: Mapping[str, int] | None = None,
) -> Allocation:
    """Divide a budget among languages, then the tokens of each language among its sources.

    A language has the summed weights, caps and floors of its sources. Tokens that the cap of a source cuts therefore go
    to other sources of the same language first. Arguments, result and errors are those of `allocate`. Names are
    "language/source".
    """
    languages = by_language(weights)
    caps, floors = caps or {}, floors or {}
    most = {}
    for language, names in languages.items():
        limits = [caps.get(name) if weights[name] else floors.get(name, 0) for name in names]
        if None not in limits:
            most[language] = sum(limit for limit in limits if limit is not None)
    per_language = allocate(
        {language: sum(Fraction(weights[name]) for name in names) for language, names in languages.items()},
        budget_tokens,
        caps=most,
        floors={language: sum(floors.get(name, 0) for name in names) for language, names in languages.items()},
    )
    counts, capped = {}, set[str]()
    for language, names in languages.items():
        per_source = allocate(
            {name: weights[name] for name in names},
            per_language.counts[language],
            caps={name: caps[name] for name in names if name in caps},
            floors={name: floors[name] for name in names if name in floors},
        )
        counts.update(per_source.counts)
        capped |= {name for name in names if weights[name]} if language in per_language.capped else per_source.capped
    return Allocation({name: counts[name] for name in weights}, frozenset(capped))


def unimax(token_counts: Mapping[str, int], *, budget_tokens: int, max_epochs: float) -> Allocation:
    """Divide a token budget among languages as evenly as an epoch cap allows.

    Languages are served from the smallest corpus to the largest. Each gets an equal share of the remaining budget, or
    `max_epochs` passes over its corpus if that is less. If the budget exceeds `max_epochs` passes over all corpora, the
    published algorithm samples languages uniformly. This function raises an error.

    Args:
        token_counts: unique training tokens per language, each > 0.
        budget_tokens: tokens that the run reads, over all languages.
        max_epochs: most passes over any one corpus.

    Returns:
        Tokens per language, in the order of `token_counts`. They sum to `budget_tokens`.

    Raises:
        XDogeError: a count is not positive, or the cap leaves part of the budget unspent.

    Source: Chung et al. 2023, UniMax, algorithm 1, arXiv:2304.09151. The paper counts characters, this function tokens.
    """
    if not token_counts or not 0 < max_epochs < math.inf:
        raise XDogeError(
            f"{len(token_counts)} languages at max_epochs {max_epochs}; there must be some, and a number above 0."
        )
    for name, count in token_counts.items():
        if count <= 0:
            raise XDogeError(f"{name} has {count:,} tokens; a corpus has at least 1.")
    caps = {name: epoch_cap(count, max_epochs) for name, count in token_counts.items()}
    if budget_tokens > sum(caps.values()):
        least = least_max_epochs(token_counts, budget_tokens)
        raise XDogeError(
            f"{argument('budget_tokens')} {budget_tokens:,} cannot be spent: {len(caps)} languages at "
            f"{argument('max_epochs')} {max_epochs:g} give {sum(caps.values()):,}. Raise {argument('max_epochs')} to "
            f"{least:.12g} or lower the budget."
        )
    return allocate(dict.fromkeys(token_counts, 1), budget_tokens, caps=caps)


def epoch_cap(available: int, max_epochs: float) -> int:
    """Return the number of tokens (or sequences) in `max_epochs` passes over `available` of them, rounded down.

    `max_epochs` counts as the decimal number that is written: 0.3 is three tenths, not the float slightly below.
    """
    if max_epochs == int(max_epochs):
        return available * int(max_epochs)
    return int(available * Fraction(repr(float(max_epochs))))


def least_max_epochs(
    available: Mapping[str, int],
    budget_tokens: int,
    *,
    spent: Mapping[str, int] | None = None,
    fixed: int = 0,
) -> float:
    """Return the smallest epoch cap with which `budget_tokens` can be spent, rounded up to a thousandth.

    Args:
        available: unique tokens of the names to which the cap applies; not all 0.
        budget_tokens: tokens to spend.
        spent: tokens of these names that earlier phases of training read.
        fixed: tokens that names with caps of their own can take.
    """
    before = spent or {}

    def spendable(thousandths: int) -> int:
        return fixed + sum(
            max(0, count * thousandths // 1000 - before.get(name, 0)) for name, count in available.items()
        )

    high = 1
    while spendable(high) < budget_tokens:
        high *= 2
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if spendable(middle) < budget_tokens else (low, middle)
    return high / 1000
