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
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    k = len(sources)
    products, steps = (table[name].to_numpy().reshape(-1, k, k) for name in ("product", "steps"))
    return _ratio(np.nansum(products * steps, axis=0), steps.sum(axis=0).astype(np.float64))


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
