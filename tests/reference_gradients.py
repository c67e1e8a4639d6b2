"""A simple reference for the sources' gradients: one backward pass per source, as the rows of a k × P matrix."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from xdoge.fit.gradients.products import SourceBatch, SourceProducts


def mean_loss(model: nn.Module, input_ids: torch.Tensor) -> torch.Tensor:
    """Return the mean next-token cross-entropy, in the precision of the logits but at least float32."""
    output = model(input_ids=input_ids, use_cache=False) if hasattr(model, "config") else model(input_ids)
    logits = output if isinstance(output, torch.Tensor) else output.logits
    logits = logits[:, :-1].flatten(0, 1)
    return functional.cross_entropy(
        logits.to(torch.promote_types(logits.dtype, torch.float32)), input_ids[:, 1:].flatten()
    )


def flat_gradient(
    model: nn.Module,
    input_ids: torch.Tensor,
    *,
    autocast: torch.dtype | None = None,
    out: torch.Tensor | None = None,
) -> tuple[float, torch.Tensor]:
    """Return the mean loss of rows, and its gradient as a vector (P,), which is written to `out` if it is not None."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with nullcontext() if autocast is None else torch.autocast("cpu", autocast):
        loss = mean_loss(model, input_ids)
    grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    sizes = [parameter.numel() for parameter in parameters]
    out = torch.empty(sum(sizes), dtype=parameters[0].dtype) if out is None else out
    for slot, grad in zip(out.split(sizes), grads, strict=True):
        slot.zero_() if grad is None else slot.copy_(grad.flatten())
    return loss.item(), out


def source_rows(batch: SourceBatch) -> list[torch.Tensor]:
    """Return the rows of each source, (n_j, T)."""
    return list(torch.split(batch.input_ids, list(batch.counts)))


def source_gradients(
    model: nn.Module, batch: SourceBatch, *, autocast: torch.dtype | None = None, out: torch.Tensor | None = None
) -> tuple[np.ndarray, torch.Tensor]:
    """Return losses (k,), NaN for absent sources, and gradients (k, P), which are written to `out` if it is given."""
    n_parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    dtype = next(model.parameters()).dtype
    losses = np.full(len(batch.counts), np.nan)
    grads = torch.empty(len(batch.counts), n_parameters, dtype=dtype) if out is None else out
    for j, rows in enumerate(source_rows(batch)):
        if len(rows):
            losses[j], _ = flat_gradient(model, rows, autocast=autocast, out=grads[j])
        else:
            grads[j] = 0
    return losses, grads


def half_products(model: nn.Module, batch: SourceBatch) -> np.ndarray:
    """Return ⟨g_j^A, g_j^B⟩ between the halves of each source's rows, (k,). It is NaN with fewer than two rows."""
    products = np.full(len(batch.counts), np.nan)
    for j, rows in enumerate(source_rows(batch)):
        if len(rows) >= 2:
            cut = -(-len(rows) // 2)
            first, second = flat_gradient(model, rows[:cut])[1], flat_gradient(model, rows[cut:])[1]
            products[j] = (first.double() @ second.double()).item()
    return products


def reference_step(
    model: nn.Module, batch: SourceBatch, *, weights: np.ndarray, targets: np.ndarray
) -> tuple[SourceProducts, torch.Tensor]:
    """Return the expected result of `GradientEngine.backward`, and the gradient that it must add, as a vector (P,)."""
    losses, grads = source_gradients(model, batch)
    gram = (grads.double() @ grads.double().T).numpy()
    absent = np.where(np.array(batch.counts) > 0, 0.0, np.nan)
    products = SourceProducts(
        losses=losses,
        scores=gram @ targets + absent,
        square_norms=np.diag(gram) + absent,
        half_products=half_products(model, batch),
        gram=gram + absent[:, None] + absent,
        progress=gram @ weights + absent,
    )
    return products, torch.from_numpy(weights).to(grads.dtype) @ grads
