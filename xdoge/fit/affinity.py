"""Gradient affinity: which sources help which, as inner products and cosines of their gradients over the fit.

⟨g_i, g_j⟩ > 0 means that a small step on source j lowers the loss on source i. The products are averaged over steps.
Divided by the lengths of both gradients they are cosines between sources, and summed over sources, between languages.
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
"""The fit is cut into this many equal windows, to show how affinity changes while the proxy learns."""


@dataclass(frozen=True)
class GradientAffinity:
    """Sums of Gram matrices over the windows of a fit.

    Args:
        products: (WINDOWS, k, k) sums of ⟨g_i, g_j⟩; on the diagonal of ⟨g_i^A, g_i^B⟩ between independent halves
            of the batch, which holds no gradient noise, wherever a source had two sequences.
        counts: (WINDOWS, k, k) number of steps in each sum.
    """

    products: Floats
    counts: Floats

    @classmethod
    def empty(cls, k: int) -> GradientAffinity:
        """No step seen yet."""
        return cls(np.zeros((WINDOWS, k, k)), np.zeros((WINDOWS, k, k)))

    def add(self, products: SourceProducts, *, step: int, steps: int) -> GradientAffinity:
        """Return the sums with the Gram matrix of one step, numbered from 1, added to its window."""
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
        """Return one row per window and pair: first_step, last_step, source, other, product (nats²), cosine.

        `steps` is the number of steps in which the pair was measured.
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
    """Return the (k, k) mean products over the whole fit from its gram.parquet, NaN where never measured."""
    sums, steps = _read_windows(path, len(sources))
    return _ratio(sums.sum(axis=0), steps.sum(axis=0))


def _read_windows(path: Path, k: int) -> tuple[Floats, Floats]:
    """Return the sums of products in each window and the number of steps in them, both (windows, k, k)."""
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    products, steps = (table[name].to_numpy().reshape(-1, k, k) for name in ("product", "steps"))
    return np.where(steps > 0, products, 0.0) * steps, steps.astype(np.float64)


@dataclass(frozen=True)
class LanguageCosines:
    """Cosines between the gradients of languages, and how sure they are.

    Args:
        languages: L names.
        cosines: (L, L), NaN where noise leaves a length unknown.
        errors: (L, L) standard errors, NaN with fewer than three windows.
        noise: (L, L) bool: no cosine, or one that is not told apart from 0 at 95 %.
    """

    languages: tuple[str, ...]
    cosines: Floats
    errors: Floats
    noise: NDArray[np.bool_]

    @classmethod
    def read(cls, path: Path, languages: Mapping[str, Sequence[str]], sources: Sequence[str]) -> LanguageCosines:
        """Read them from the gram.parquet of a fit.

        The standard errors are those of the jackknife: the cosines are computed anew without each window of the fit.
        What changes while the proxy learns counts as error, too.
        """
        from scipy.stats import t

        sums, steps = _read_windows(path, len(sources))
        n = len(sums)

        def of(totals: Floats, counts: Floats) -> Floats:
            return language_cosines(_ratio(totals, counts), languages, sources)

        mean, errors = of(sums.sum(axis=0), steps.sum(axis=0)), np.full((len(languages),) * 2, np.nan)
        if n > 2:
            without = np.array([of(sums.sum(axis=0) - sums[w], steps.sum(axis=0) - steps[w]) for w in range(n)])
            errors = np.sqrt((n - 1) * without.var(axis=0))
        with np.errstate(invalid="ignore"):
            told_apart = np.abs(mean) > t.ppf(0.975, max(1, n - 1)) * errors
        return cls(tuple(languages), mean, errors, ~told_apart)

    def to_dict(self) -> dict[str, dict[str, dict[str, float | bool | None]]]:
        """Return cosine, standard_error and noise of each pair, by the names of both languages; None for NaN."""

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

    The lengths are estimates without the gradients' noise, and can come out far too small or even negative. The entry
    is NaN where a length is not above 0 or the ratio is not between -1 and 1: so few steps do not tell.
    """
    own = np.diagonal(products)
    with np.errstate(invalid="ignore"):
        length = np.sqrt(np.where(own > 0, own, np.nan))
    ratios: Floats = products / np.outer(length, length)
    return np.where(np.abs(ratios) <= 1 + 1e-9, ratios, np.nan)


def language_cosines(products: Floats, languages: Mapping[str, Sequence[str]], sources: Sequence[str]) -> Floats:
    """Return cosines between languages, (L, L): each language's gradient is the mean over its sources."""
    member = np.array([[source in set(members) for source in sources] for members in languages.values()])
    share = member / member.sum(axis=1, keepdims=True)  # (L, k)
    return cosines(share @ products @ share.T)


def _ratio(sums: Floats, counts: Floats) -> NDArray[np.float64]:
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
