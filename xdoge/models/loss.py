"""Per-token and per-sequence losses of a causal language model, in nats."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

LOGIT_ROWS = 256
"""Number of predictions whose logits are in memory at once, in float32.

256 rows take 16 MB with a vocabulary of 16,000, which fits into a CPU's cache. Measured on one core, the head and the
softmax of 2,048 positions of width 256 took 0.39 s in groups of 256. They took 0.57 s all at once and 0.56 s in groups
of 64. With a vocabulary of 49,000, all sizes from 128 on took the same time.
"""


def token_nats(outputs: torch.Tensor, targets: torch.Tensor, head: Any = None) -> torch.Tensor:
    """Return the cross-entropy of each prediction: (n,), float32.

    Args:
        outputs: (n, V) logits, or (n, H) last hidden states that `head` maps to logits.
        targets: (n,) token ids.
        head: result of `plain_head`. None if `outputs` are logits.
    """
    parts = zip(torch.split(outputs, LOGIT_ROWS), torch.split(targets, LOGIT_ROWS), strict=True)
    losses = []
    for part, labels in parts:
        logits = (part if head is None else head(part)).float()  # (rows, V)
        losses.append(F.cross_entropy(logits, labels.to(logits.device), reduction="none"))
    return torch.cat(losses)


def sequence_nats(model: torch.nn.Module, rows: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
    """Return the next-token cross-entropy in nats, summed over each sequence: (B,), float64.

    Args:
        model: causal language model of `transformers`.
        rows: (B, T) token ids.
        positions: (B, T) positions of tokens within their documents. With them, `transformers` keeps documents apart,
            and the first token of a document is not scored.
    """
    options = {} if positions is None else {"position_ids": positions[:, :-1]}
    logits = model(input_ids=rows[:, :-1], use_cache=False, **options).logits  # (B, T - 1, V)
    targets = rows[:, 1:]
    losses = token_nats(logits.flatten(0, 1), targets.flatten()).double().view(targets.shape)
    if positions is not None:
        losses = losses.where(positions[:, 1:] != 0, 0.0)
    return losses.sum(-1)


def plain_head(model: Any) -> Any:
    """Return the output embedding if nothing else is between the last hidden state and the logits, else None.

    Some models scale or cap their logits after the head. This is tested with a forward pass over a few tokens.
    """
    find = getattr(model, "get_output_embeddings", None)
    head, body = find() if find is not None else None, getattr(model, "base_model", model)
    if head is None or body is model:
        return None
    with evaluating(model):
        # Several tokens: the embedding of a padding token can be 0, and then capped logits would be 0 as well.
        size, device = model.get_input_embeddings().weight.shape[0], model.device
        probe = torch.arange(min(4, size), device=device)[None]  # (1, 4)
        hidden = getattr(body(input_ids=probe, use_cache=False), "last_hidden_state", None)
        fits = hidden is not None and hidden.shape[-1] == head.weight.shape[-1]  # some models project in between
        same = fits and torch.equal(head(hidden), model(input_ids=probe, use_cache=False).logits)
    return head if same else None


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Switch off dropout and gradients inside the block. The modes of all modules are restored afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def document_positions(bounds: NDArray[np.int64], begin: int, length: int) -> NDArray[np.int64]:
    """Return the position of each token within its document: (T,). The first document counts from the sequence's start.

    Args:
        bounds: (documents + 1,) offsets of documents in the source.
        begin: offset of the sequence in the source.
        length: T, tokens of the sequence.
    """
    inside = bounds[np.searchsorted(bounds, begin, side="right") : np.searchsorted(bounds, begin + length)] - begin
    starts = np.zeros(length, dtype=np.int64)
    starts[inside] = inside
    return np.arange(length) - np.maximum.accumulate(starts)
