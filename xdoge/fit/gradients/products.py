"""The input and the output of the gradient engine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class SourceBatch:
    """Sequences of several sources, sorted by source. All have T tokens, so there is no padding."""

    input_ids: torch.Tensor  # (B, T) int64
    counts: tuple[int, ...]  # (k,) rows of each source, in order; 0 if the source is absent


@dataclass(frozen=True)
class SourceProducts:
    """Losses and gradient products of a batch, in float64. A source that is absent has NaN.

    g_j is the gradient of the mean next-token loss over the rows of source j, and τ are the targets. Sums over i run
    over the sources that are present.
    """

    losses: np.ndarray  # (k,) mean next-token cross-entropy, nats per token
    scores: np.ndarray  # (k,) ⟨g_j, Σ_i τ_i g_i⟩
    square_norms: np.ndarray  # (k,) |g_j|²
    half_products: np.ndarray  # (k,) ⟨g_j^A, g_j^B⟩ of the halves of j's rows; also NaN for a single row
    gram: np.ndarray | None  # (k, k) ⟨g_i, g_j⟩, None unless asked for
    progress: np.ndarray  # (k,) ⟨g_j, Σ_i α_i g_i⟩, how much the training step lowers each loss
    reference: np.ndarray | None = None  # (k,) progress under the reference weights, None without them
