"""Gradient affinity: inner products and cosines of the sources' gradients, which show which source helps which.

⟨g_i, g_j⟩ > 0 means that a small step on source j lowers the loss on source i. The products are averaged over steps.
A product divided by the lengths of both gradients is the cosine between two sources. The gradient of a language is the
mean of the gradients of its sources, which gives cosines between languages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from xdoge.mixtures.simplex import Floats

if TYPE_CHECKING:
    import pyarrow as pa

    from xdoge.fit.gradients.products import SourceProducts

WINDOWS = 10
"""Number of equal windows that the fit is cut into. They show how affinity changes while the proxy learns."""


@dataclass(frozen=True)
class GradientAffinity:
    """Sums of Gram matrices over the windows of a fit.

    Args:
        products: (WINDOWS, k, k) sums of ⟨g_i, g_j⟩. The diagonal has ⟨g_i^A, g_i^B⟩ between independent halves of the
            batch, which is free of gradient noise. If the source had a single sequence, it has |g_i|².
        counts: (WINDOWS, k, k) number of steps in each sum.
    """

    products: Floats
    counts: Floats

    @classmethod
    def empty(cls, k: int) -> GradientAffinity:
        """Return the sums before the first step."""
        return cls(np.zeros((WINDOWS, k, k)), np.zeros((WINDOWS, k, k)))

    def add(self, products: SourceProducts, *, step: int, steps: int) -> GradientAffinity:
        """Return the sums after `step`, which counts from 1. Its Gram matrix is added to its window."""
        if products.gram is None:
            return self
        gram = products.gram.copy()
        own = np.diagonal(gram)
        np.fill_diagonal(gram, np.where(np.isnan(products.half_products), own, products.half_products))
        seen = ~np.isnan(gram)
        window = (step - 1) * WINDOWS // steps
        sums, counts = self.products.copy(), self.counts.copy()
        sums[window] += np.where(seen, gram, 0.0)
        counts[window] += seen
        return GradientAffinity(sums, counts)

    def to_table(self, sources: Sequence[str], *, steps: int) -> pa.Table:
        """Return one row per window and pair of sources.

        The columns are first_step, last_step, source, other, product (nats²), steps and cosine. The column `steps` is
        the number of steps in which the pair was measured; the argument `steps` is the number of steps of the fit.
        """
        import pyarrow as pa

        names = pa.array(list(sources))
        k = len(sources)
        rows, columns = (axis.ravel().astype(np.int32) for axis in np.indices((k, k)))
        bounds = [-(-window * steps // WINDOWS) for window in range(WINDOWS + 1)]
        means = _ratio(self.products, self.counts)
        tables = [
            pa.table(
                {
                    "first_step": np.full(k * k, bounds[window] + 1),
                    "last_step": np.full(k * k, bounds[window + 1]),
                    "source": pa.DictionaryArray.from_arrays(rows, names),
                    "other": pa.DictionaryArray.from_arrays(columns, names),
                    "product": means[window].ravel(),
                    "steps": self.counts[window].ravel().astype(np.int64),
                    "cosine": cosines(means[window]).ravel(),
                }
            )
            for window in range(WINDOWS)
            if self.counts[window].any()
        ]
        return pa.concat_tables(tables)


def read_products(path: Path, sources: Sequence[str]) -> Floats:
    """Return the mean products over the whole fit, (k, k), from its gram.parquet; NaN for a pair never measured."""
    sums, steps = _read_windows(path, len(sources))
    return _ratio(sums.sum(axis=0), steps.sum(axis=0))


def _read_windows(path: Path, k: int) -> tuple[Floats, Floats]:
    """Return the sums of products in each window, and the number of steps in each sum: both (windows, k, k)."""
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    products, steps = (table[name].to_numpy().reshape(-1, k, k) for name in ("product", "steps"))
    return np.where(steps > 0, products, 0.0) * steps, steps.astype(np.float64)


@dataclass(frozen=True)
class LanguageCosines:
    """Cosines between the gradients of languages, with their standard errors.

    Args:
        languages: L names.
        cosines: (L, L), NaN where noise hides the length of a gradient.
        errors: (L, L) standard errors, NaN with fewer than three windows.
        noise: (L, L) bool, True where the cosine is NaN or does not differ from 0 at the 95 % level.
    """

    languages: tuple[str, ...]
    cosines: Floats
    errors: Floats
    noise: NDArray[np.bool_]

    @classmethod
    def read(cls, path: Path, languages: Mapping[str, Sequence[str]], sources: Sequence[str]) -> LanguageCosines:
        """Return the cosines that a fit's gram.parquet gives.

        The standard errors are jackknife estimates: the cosines are computed again without each window of the fit. They
        include changes of the cosines while the proxy learns.
        """
        from scipy.stats import t

        sums, steps = _read_windows(path, len(sources))
        n = len(sums)

        def cosines_of(totals: Floats, counts: Floats) -> Floats:
            return language_cosines(_ratio(totals, counts), languages, sources)

        total, total_steps = sums.sum(axis=0), steps.sum(axis=0)
        mean, errors = cosines_of(total, total_steps), np.full((len(languages),) * 2, np.nan)
        if n > 2:
            left_out = np.array([cosines_of(total - sums[w], total_steps - steps[w]) for w in range(n)])
            errors = np.sqrt((n - 1) * left_out.var(axis=0))
        with np.errstate(invalid="ignore"):
            significant = np.abs(mean) > t.ppf(0.975, max(1, n - 1)) * errors
        return cls(tuple(languages), mean, errors, ~significant)

    def to_dict(self) -> dict[str, dict[str, dict[str, float | bool | None]]]:
        """Return {language: {other: {cosine, standard_error, noise}}}, with None for NaN."""

        def number(value: float) -> float | None:
            return None if np.isnan(value) else float(value)

        return {
            language: {
                other: {
                    "cosine": number(self.cosines[i, j]),
                    "standard_error": number(self.errors[i, j]),
                    "noise": bool(self.noise[i, j]),
                }
                for j, other in enumerate(self.languages)
            }
            for i, language in enumerate(self.languages)
        }


def cosines(products: Floats) -> Floats:
    """Return products divided by the lengths of both gradients: (k, k).

    The squared lengths are estimates from which noise is removed. With few steps they can be far too small or even
    negative. An entry is NaN if a squared length is not above 0, or if the ratio is outside [-1, 1].
    """
    own = np.diagonal(products)
    with np.errstate(invalid="ignore"):
        length = np.sqrt(np.where(own > 0, own, np.nan))
    ratios: Floats = products / np.outer(length, length)
    return np.where(np.abs(ratios) <= 1 + 1e-9, ratios, np.nan)


def language_cosines(products: Floats, languages: Mapping[str, Sequence[str]], sources: Sequence[str]) -> Floats:
    """Return cosines between languages, (L, L). A language's gradient is the mean over its sources."""
    member = np.array([[source in set(members) for source in sources] for members in languages.values()])
    share = member / member.sum(axis=1, keepdims=True)  # (L, k)
    return cosines(share @ products @ share.T)


def _ratio(sums: Floats, counts: Floats) -> NDArray[np.float64]:
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
