"""What the gradient engine reads and what it returns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class SourceBatch:
    """Rows of several sources, sorted by source, all of T tokens: no padding."""

    input_ids: torch.Tensor  # (B, T) int64
    counts: tuple[int, ...]  # rows of each of the k sources, in order; 0: absent


@dataclass(frozen=True)
class SourceProducts:
    """Losses and gradient products of a batch, in float64; NaN for a source that is absent.

    g_j is the gradient of the mean next-token loss of source j's rows; τ the targets; i runs over present sources.
    """

    losses: np.ndarray  # (k,) mean next-token cross-entropy, nats per token
    scores: np.ndarray  # (k,) ⟨g_j, Σ_i τ_i g_i⟩
    square_norms: np.ndarray  # (k,) |g_j|²
    half_products: np.ndarray  # (k,) ⟨g_j^A, g_j^B⟩ of the halves of j's rows; NaN too with fewer than two rows
    gram: np.ndarray | None  # (k, k) ⟨g_i, g_j⟩, where asked for
    progress: np.ndarray  # (k,) ⟨g_j, Σ_i α_i g_i⟩, how much the training step lowers each loss
    reference: np.ndarray | None = None  # (k,) the same with reference weights, where asked for
