"""The mean of paired differences, and the interval that Student's t gives it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """The mean of n differences with its confidence interval; low and high are None if n is 1."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def sign(self) -> int:
        """-1 or 1 if the whole interval is below or above 0; 0 if it contains 0 or is not known."""
        if self.low is None or self.high is None:
            return 0
        return (self.low > 0) - (self.high < 0)


def paired(differences: Sequence[float], *, confidence: float = CONFIDENCE) -> Interval:
    """Return the mean of n >= 1 paired differences with Student's interval, n - 1 degrees of freedom.

    It assumes independent and normal differences, which a few seeds can neither confirm nor refute.

    Source: Student 1908, The probable error of a mean.
    """
    from scipy.stats import t

    n = len(differences)
    mean = math.fsum(differences) / n
    if n == 1:
        return Interval(mean, None, None, n)
    variance = math.fsum((difference - mean) ** 2 for difference in differences) / (n - 1)
    half = float(t.ppf((1 + confidence) / 2, n - 1)) * math.sqrt(variance / n)
    return Interval(mean, mean - half, mean + half, n)
