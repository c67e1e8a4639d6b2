"""The mean of paired differences over seeds, and its interval over seeds and documents.

All models of a study are measured on the same documents. So a difference has two independent causes of error: the
choice of seeds and the choice of documents. With n seeds and D documents, the variance of the mean is

    V = seed² / n + document² / D + interaction² / (n D).

The variance of the n differences, divided by n, estimates the sum of the first and the last term. The bootstrap of the
mean difference over documents estimates the sum of the last two. Both contain the interaction. The bootstraps of the
single seeds show how large it is, so that it is counted only once. The degrees of freedom are Satterthwaite's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
POWER = 0.8
"""Probability that the seeds of `Interval.more_seeds` are enough, if the true difference is the measured one."""
MOST_SEEDS = 100
"""Largest number of further seeds that is advised."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """The mean of n paired differences with its 95 % confidence interval, in the unit of the differences.

    The difference is *significant* if the whole interval lies above 0 or below 0.

    Attributes:
        mean: mean of the differences.
        low: lower end; None if n is 1.
        high: upper end; None if n is 1.
        n: number of seeds.
        seed_stderr: standard error of the mean over seeds; None if n is 1.
        document_stderr: standard error from the choice of documents; None if unknown.
        documents: number of documents.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    seed_stderr: float | None = None
    document_stderr: float | None = None
    documents: int = 0

    @property
    def sign(self) -> int:
        """-1 if the whole interval is below 0, 1 if it is above 0; 0 if it contains 0 or is unknown."""
        if self.low is None or self.high is None:
            return 0
        return (self.low > 0) - (self.high < 0)

    @property
    def more_seeds(self) -> int | None:
        """Number of further seeds with which a difference of this size is significant with a probability of 80 %.

        None if the interval does not contain 0, if n is 1, or if even `MOST_SEEDS` more are not enough.
        """
        if self.seed_stderr is None or self.sign:
            return None
        for n in range(self.n + 1, self.n + MOST_SEEDS + 1):
            of_seeds = self.seed_stderr**2 * self.n / n
            error, quantile = _combined(of_seeds, n, self.document_stderr, self.documents, CONFIDENCE)
            if abs(self.mean) > (quantile + NormalDist().inv_cdf(POWER)) * error:
                return n - self.n
        return None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**vars(self), "more_seeds": self.more_seeds}


def paired(
    differences: Sequence[float],
    resampled: Floats | None = None,
    *,
    documents: int = 0,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Return the mean of n >= 1 paired differences with its interval.

    Without `resampled`, it is Student's interval over seeds with n - 1 degrees of freedom. This interval assumes
    independent and normal differences. A few seeds can neither confirm nor refute this assumption.

    Args:
        differences: a difference for each seed, (n,).
        resampled: the differences on R resamples of the documents, (n, R). All seeds have the same resamples.
        documents: number of documents, D; needed with `resampled`.
        confidence: probability that the interval contains the true difference.

    Source: Student 1908, The probable error of a mean; Satterthwaite 1946, An approximate distribution of estimates of
    variance components; for seeds crossed with documents, Owen 2007, The pigeonhole bootstrap, arXiv:0712.1111.
    """
    n = len(differences)
    mean = math.fsum(differences) / n
    if n == 1:
        return Interval(mean, None, None, n)
    of_seeds = math.fsum((difference - mean) ** 2 for difference in differences) / (n - 1) / n
    of_documents = None if resampled is None or documents < 2 else _document_variance(resampled)
    document_stderr = None if of_documents is None else math.sqrt(of_documents)
    error, quantile = _combined(of_seeds, n, document_stderr, documents, confidence)
    half = quantile * error
    behind = 0 if document_stderr is None else documents
    return Interval(mean, mean - half, mean + half, n, math.sqrt(of_seeds), document_stderr, behind)


def _document_variance(resampled: Floats) -> float:
    """Return the variance of the mean difference over documents, without the interaction that the seeds show too."""
    n = len(resampled)
    of_mean, of_one = float(resampled.mean(axis=0).var(ddof=1)), float(resampled.var(axis=1, ddof=1).mean())
    interaction = max(0.0, (of_one - of_mean) / (n - 1))  # of the mean: interaction² / (n D)
    return max(0.0, of_mean - interaction)


def _combined(
    of_seeds: float, n: int, document_stderr: float | None, documents: int, confidence: float
) -> tuple[float, float]:
    """Return the standard error from both causes, and the quantile: half the interval divided by the standard error."""
    from scipy.stats import t

    of_documents = 0.0 if document_stderr is None else document_stderr**2
    variance = of_seeds + of_documents
    freedom = float(n - 1)
    if of_documents and variance:
        freedom = variance**2 / (of_seeds**2 / (n - 1) + of_documents**2 / max(1, documents - 1))
    return math.sqrt(variance), float(t.ppf((1 + confidence) / 2, freedom))
