"""Exact arithmetic on the probability simplex: the floored KL projection, and rounding shares to counts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xdoge.errors import XDogeError

Floats = NDArray[np.float64]


def project(masses: ArrayLike, *, floor: ArrayLike = 0.0) -> Floats:
    """Return the point of the floored simplex that is KL-closest to `masses`.

    This solves argmin_p KL(p ‖ q) subject to Σ p = 1, p ≥ γ, for q proportional to `masses`. The solution is
    p_i = max(γ_i, c q_i). The sources at their floor are those with the largest γ_i / q_i, so one sort determines c.

    Args:
        masses: (k,) finite numbers >= 0, on any scale. A mass of 0 gets exactly its floor.
        floor: γ, one number or (k,) numbers >= 0, with a sum below 1.

    Returns:
        (k,) float64 that sums to 1 within rounding. Every entry is >= its floor.

    Raises:
        XDogeError: the floors sum to 1 or more, or the masses are all zero, negative or not finite.

    Source: docs/explanation/method.md, "The floored projection".
    """
    q = np.asarray(masses, dtype=np.float64)
    floors = np.broadcast_to(np.asarray(floor, dtype=np.float64), q.shape)
    if q.ndim != 1 or q.size == 0 or not np.all(np.isfinite(q)) or np.any(q < 0) or q.max() == 0:
        raise XDogeError(f"masses must be finite, >= 0 and not all zero; got {q.tolist()}.")
    if np.any(floors < 0) or floors.sum() >= 1:
        raise XDogeError(
            f"floors sum to {floors.sum():g} over {q.size} sources; they must be >= 0 and sum to less than 1 "
            f"(one floor for all: below 1/{q.size} = {1 / q.size:g})."
        )
    q = q / q.max()
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = np.where(floors > 0, floors / q, np.where(q > 0, 0.0, np.inf))
    order = np.argsort(-ratio, kind="stable")  # sources at their floor come first
    spent = np.concatenate([[0.0], np.cumsum(floors[order])[:-1]])  # floors of all earlier sources
    shared = np.cumsum(q[order][::-1])[::-1]  # mass of this source and all later ones
    positive = shared > 0
    with np.errstate(over="ignore"):
        c = np.where(positive, (1.0 - spent) / np.where(positive, shared, 1.0), np.inf)
    first = int(np.argmax(c >= ratio[order]))  # here c lifts this and every later source above its floor
    projected: Floats = np.maximum(floors, c[first] * q)
    return projected


def largest_remainder(shares: Sequence[float | Fraction] | Floats, total: int) -> list[int]:
    """Return integers in proportion to `shares` that sum to `total` exactly, each within 1 of its quota.

    Quotas are rounded down, and the remaining units go to the largest remainders, ties to the earlier source. The
    result is exact at any size, because the arithmetic is on integers.

    Args:
        shares: k numbers >= 0, not all zero. Only their proportions matter.
        total: sum of the result, >= 0.

    Raises:
        XDogeError: a share is negative or not finite, or all are zero.
    """
    parts = as_integers(shares)
    whole = sum(parts)
    if whole == 0:
        raise XDogeError(f"shares must be finite, >= 0 and not all zero; got {list(shares)}.")
    counts, remainders = zip(*(divmod(part * total, whole) for part in parts), strict=True)
    left = total - sum(counts)
    gets_one = set(sorted(range(len(parts)), key=lambda i: (-remainders[i], i))[:left])
    return [count + (i in gets_one) for i, count in enumerate(counts)]


def as_integers(shares: Iterable[float | Fraction]) -> list[int]:
    """Return integers in exactly the proportions of `shares`.

    They exist because every float, integer and `Fraction` is a ratio of integers.

    Raises:
        XDogeError: a share is negative or not finite, or there is no share.
    """
    values = [share if isinstance(share, int | Fraction) else float(share) for share in shares]
    if not values or not all(math.isfinite(value) and value >= 0 for value in values):
        raise XDogeError(f"shares must be finite and >= 0; got {values}.")
    ratios = [value.as_integer_ratio() for value in values]
    scale = math.lcm(*(denominator for _, denominator in ratios))
    return [numerator * (scale // denominator) for numerator, denominator in ratios]
