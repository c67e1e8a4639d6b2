"""Loss of a causal language model, in nats per sequence."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

LOGIT_ROWS = 256
"""Predictions whose logits are copied at once; as in xdoge/eval/scoring.py, where it was measured."""


def sequence_nats(model: torch.nn.Module, rows: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
    """Return the next-token cross-entropy summed over each sequence of (B, T) token ids: (B,), float64.

    With `positions` (B, T) of tokens within their documents, `transformers` keeps documents apart, and no document's
    first token is scored.
    """
    options = {} if positions is None else {"position_ids": positions[:, :-1]}
    logits = model(input_ids=rows[:, :-1], use_cache=False, **options).logits  # (B, T - 1, V)
    targets = rows[:, 1:]
    parts = zip(torch.split(logits.flatten(0, 1), LOGIT_ROWS), torch.split(targets.flatten(), LOGIT_ROWS), strict=True)
    losses = torch.cat([F.cross_entropy(part.float(), wanted, reduction="none") for part, wanted in parts])
    losses = losses.double().view(targets.shape)
    if positions is not None:
        losses = losses.where(positions[:, 1:] != 0, 0.0)
    return losses.sum(-1)


def document_positions(bounds: NDArray[np.int64], begin: int, length: int) -> NDArray[np.int64]:
    """Return the place of each token of a sequence within its document, from 0 where the sequence begins: (T,).

    Args:
        bounds: where documents begin in the source's tokens.
        begin: where the sequence does.
        length: T.
    """
    inside = bounds[np.searchsorted(bounds, begin, side="right") : np.searchsorted(bounds, begin + length)] - begin
    starts = np.zeros(length, dtype=np.int64)
    starts[inside] = inside
    return np.arange(length) - np.maximum.accumulate(starts)
