"""Which sequences a step trains on: a pure function of the settings, the weights and the counts read before."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xdoge.corpus.store import TokenStore
from xdoge.fit.settings import FitSettings
from xdoge.mixtures.simplex import Floats, largest_remainder, project
from xdoge.sampling.permutation import derive_key, permute
from xdoge.training.proxy_settings import ProxySettings

Counts = NDArray[np.int64]
Mask = NDArray[np.bool_]


def sequence_counts(weights: Floats, *, trained: Mask, settings: FitSettings, step: int) -> Counts:
    """Return how many sequences of each source the batch of a step holds.

    With `batch: stratified`, each source gets its share of the batch, rounded, but at least 1 sequence (2 for the
    unbiased score). With `batch: sampled`, the counts are drawn from the weights. A held-out target has no weight and
    always gets the minimum.

    Args:
        weights: (k,) α_t.
        trained: (k,) False for held-out targets.
        settings: of the fit.
        step: number of the step, which seeds the draw.
    """
    least, k, size = settings.least_sequences, weights.size, settings.batch_size
    if settings.batch == "stratified":
        shares = project(weights, floor=least / size) if least * k < size else np.full(k, 1 / k)
        above = np.maximum(shares * size - least, 0.0)
        return least + np.array(largest_remainder(above, size - least * k) if above.any() else [0] * k)
    counts = np.where(trained, 0, least)
    generator = np.random.Generator(np.random.Philox(key=[settings.seed, step]))
    counts[trained] = generator.multinomial(size - counts.sum(), weights[trained] / weights.sum())
    return counts


def gradient_weights(weights: Floats, counts: Counts, *, settings: FitSettings) -> Floats:
    """Return the weight of each source's mean gradient in the proxy's step, (k,), so that its expectation is Σ α_i g_i.

    In a stratified batch the weights are α. In a sampled batch the draw has applied α already, so the weights are the
    sources' shares of the batch.
    """
    if settings.batch == "stratified":
        return weights
    drawn = np.where(weights > 0, counts, 0)
    share: Floats = drawn / drawn.sum()
    return share


def draw(store: TokenStore, read: Counts, counts: Counts, *, settings: ProxySettings) -> NDArray[np.int64]:
    """Return the batch's token ids, rows sorted by source: (B, T).

    Each epoch of a source reads its sequences in a new random order, and no sequence comes twice in an epoch. With
    `target_budget` the proxy sees only a part of a source's sequences, and this part stays the same over all epochs.

    Args:
        store: the tokens.
        read: (k,) sequences of each source that earlier steps read.
        counts: (k,) sequences of each source in this batch.
        settings: of the fit.
    """
    length = settings.sequence_length
    available, seen = store.sequence_counts(length), settings.sequences_seen(store)
    rows = []
    for source, start, count in zip(store.sources, read.tolist(), counts.tolist(), strict=True):
        n = seen[source]
        positions = np.arange(start, start + count)
        indices = np.empty(count, dtype=np.int64)
        for epoch in np.unique(positions // n).tolist():
            here = positions // n == epoch
            indices[here] = permute(positions[here] % n, n, derive_key(settings.seed, source, epoch))
        if n < available[source]:
            indices = permute(indices, available[source], derive_key(settings.seed, source, "seen"))
        rows.append(store.sequences(source, indices, length))
        store.check_ids(source, rows[-1])
    return np.concatenate(rows).astype(np.int64)
