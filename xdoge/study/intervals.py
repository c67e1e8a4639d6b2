"""The mean of paired differences over seeds, and its interval over seeds and documents.

All models of a study are measured on the same documents. So a difference has two independent causes of error: the
seeds that were trained, and the documents that were measured. With n seeds and D documents the variance of the mean is

    V = seed² / n + document² / D + interaction² / (n D).

The variance of the n differences, over n, estimates the first and the last term. The bootstrap over documents of the
mean difference estimates the last two. The interaction stands in both, and the bootstraps of the single seeds show how
large it is, so that it is counted once. The degrees of freedom are Satterthwaite's.
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
"""Chance that the seeds which `Interval.more_seeds` names decide, if the difference is as large as it looks."""
MOST_SEEDS = 100
"""Beyond this many, more seeds are no advice."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """The mean of n paired differences with its confidence interval.

    Attributes:
        mean: of the differences.
        low: lower end; None if n is 1.
        high: upper end; None if n is 1.
        n: seeds.
        seed_stderr: standard error of the mean over seeds; None if n is 1.
        document_stderr: standard error from the choice of documents; None where it is not known.
        documents: behind it.
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
        """-1 or 1 if the whole interval is below or above 0; 0 if it contains 0 or is not known."""
        if self.low is None or self.high is None:
            return 0
        return (self.low > 0) - (self.high < 0)

    @property
    def more_seeds(self) -> int | None:
        """How many more seeds would show a difference of this size to be real, with a chance of 80 %.

        None where the interval does not contain 0, where n is 1, and where even `MOST_SEEDS` more would not do.
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

    Without `resampled` it is Student's interval over seeds, n - 1 degrees of freedom. It assumes independent and normal
    differences, which a few seeds can neither confirm nor refute.

    Args:
        differences: one for each seed, (n,).
        resampled: each of them on R drawings of the same documents with replacement, (n, R).
        documents: behind the differences, D; needed with `resampled`.
        confidence: of the interval.

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
    """Return the standard error of both causes, and the quantile that half of the interval is in units of it."""
    from scipy.stats import t

    of_documents = 0.0 if document_stderr is None else document_stderr**2
    variance = of_seeds + of_documents
    freedom = float(n - 1)
    if of_documents and variance:
        freedom = variance**2 / (of_seeds**2 / (n - 1) + of_documents**2 / max(1, documents - 1))
    return math.sqrt(variance), float(t.ppf((1 + confidence) / 2, freedom))
