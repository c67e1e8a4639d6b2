"""The output head and its cross-entropy as one operation, which does not have to keep the logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from xdoge.fit.gradients.hooks import GradientSink, expect_gradients, lowered
from xdoge.fit.gradients.segments import LogitProduct, Piece, Product, working_dtype


def head_loss(
    hidden: torch.Tensor, targets: torch.Tensor, head: nn.Linear, sink: GradientSink, *, keep: bool
) -> torch.Tensor:
    """Return the cross-entropy of `targets` (N,) under the logits of `head` for `hidden` (N, d), summed, in nats.

    If `keep` is True, the gradient of the logits (N, V) is kept for the backward pass instead of being recomputed.
    """
    expect_gradients(sink, head)
    loss: torch.Tensor = HeadLoss.apply(hidden, sink.anchor, targets, head, sink, keep)  # type: ignore[no-untyped-call]
    return loss


class HeadLoss(torch.autograd.Function):
    """The summed next-token loss of a head without bias. The logits are computed for a few tokens at a time.

    Each slice of logits is turned at once into its loss, its gradient (softmax minus one-hot) and the hidden states'
    gradient. An ordinary cross-entropy makes three copies of (N, V). This function keeps one if `keep` is true, and
    otherwise none: the backward pass then recomputes the slices that the weight's gradient needs.
    """

    SLICE_BYTES = 32 * 2**20

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        anchor: torch.Tensor,
        targets: torch.Tensor,
        module: nn.Linear,
        sink: GradientSink,
        keep: bool,
    ) -> torch.Tensor:
        ctx.sink, ctx.module, ctx.dtype = sink, module, hidden.dtype
        h, weight = lowered(hidden), lowered(module.weight)
        n, vocabulary = len(h), len(weight)
        exact = working_dtype(h.dtype)
        n_slice = min(n, max(1, HeadLoss.SLICE_BYTES // (vocabulary * exact.itemsize)))
        keep = keep and module.weight.requires_grad
        kept = h.new_empty(n, vocabulary) if keep else None
        slices = h.new_empty(2, n_slice, vocabulary, dtype=exact)
        hidden_grad, losses, log_norm = torch.empty_like(h), h.new_empty(n, dtype=exact), h.new_empty(n, dtype=exact)
        for start in range(0, n, n_slice):
            part = slice(start, min(n, start + n_slice))
            target = targets[part, None]
            logits, log_p = slices[0, : part.stop - start], slices[1, : part.stop - start]
            if h.dtype == exact:
                torch.mm(h[part], weight.T, out=logits)
                log_p = log_p if kept is None else kept[part]
            else:
                logits.copy_(torch.mm(h[part], weight.T))
            torch.log_softmax(logits, dim=1, out=log_p)
            losses[part] = -log_p.gather(1, target).squeeze(1)
            log_norm[part] = losses[part] + logits.gather(1, target).squeeze(1)
            logits_grad = log_p.exp_()
            logits_grad.scatter_add_(1, target, -torch.ones_like(target, dtype=exact))
            if h.dtype != exact:
                logits_grad = logits_grad.to(h.dtype)
                if kept is not None:
                    kept[part] = logits_grad
            torch.mm(logits_grad, weight, out=hidden_grad[part])
        ctx.save_for_backward(h, weight, targets, hidden_grad, log_norm, kept)
        sink.add_losses(losses)
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        h, weight, targets, hidden_grad, log_norm, kept = ctx.saved_tensors
        sink, parameter = ctx.sink, ctx.module.weight
        if parameter.requires_grad:
            piece: Piece = (
                LogitProduct(h, weight, log_norm, targets, sink.layout)
                if kept is None
                else Product(kept, h, sink.layout)
            )
            sink.arrive(parameter, piece)
        return hidden_grad.to(ctx.dtype), None, None, None, None, None
