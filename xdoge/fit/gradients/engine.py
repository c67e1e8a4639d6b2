"""The gradient engine: inner products of the sources' gradients from the backward pass that trains the model.

Let g_i be the gradient of the mean loss of source i, for k sources. Reweighting needs the products ⟨g_j, Σ_i τ_i g_i⟩,
and training needs Σ_i α_i g_i. The direct way takes k backward passes and a k × P matrix. One backward pass over a
batch with rows of all sources is enough, because the gradient of a linear map's weight is a sum over rows:

    g = Σ_rows (output gradient)ᵀ (input)

If this sum stops at the borders between sources, it gives the gradient of each source, with the same arithmetic. So
wherever the backward pass would form a parameter's gradient, the engine forms it per source. It takes one slice of the
parameter at a time, in a buffer of a few megabytes. It reduces each slice at once to

    its part of the products                 added up in float64, a few numbers per source, and
    its slice of Σ_i α_i g_i                 added to `param.grad`.

Apart from this buffer, the engine needs no more memory than training. A parameter may be used several times: by a head
tied to the embedding, a module called twice, or microbatches. The engine then waits for the last use, since the uses
must be summed before products are taken. The only condition is that no operation mixes rows.

`hooks.py` replaces the modules' forward. `segments.py` has the forms in which gradients arrive. `accumulator.py` forms
and reduces them. `pipelined_reduce.py` sums the gradients of sources that are on several processes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from xdoge.distributed import ALONE, Processes
from xdoge.errors import XDogeError
from xdoge.fit.gradients.accumulator import GradientAccumulator
from xdoge.fit.gradients.head import head_loss
from xdoge.fit.gradients.hooks import HookedModule, hooked_modules, refuse_compiled
from xdoge.fit.gradients.placement import Placement
from xdoge.fit.gradients.products import SourceBatch, SourceProducts
from xdoge.fit.gradients.segments import working_dtype
from xdoge.models.loss import plain_head
from xdoge.models.probes import refuse_future
from xdoge.training.optim import autocasting

CHUNK_BYTES = {"cpu": 3 * 2**20, "cuda": 64 * 2**20}
"""Size of the per-source gradients formed at once, by type of device. The value for a CPU was measured: larger buffers
do not fit in the cache. The value for a GPU was not measured. GPUs favour few and large products and messages."""


class GradientEngine:
    """Computes the training gradient and the sources' gradient products in one forward and one backward pass.

    The model's forward methods are replaced only while `backward` runs.

    Args:
        model: a causal language model of transformers, or any module that maps (B, T) token ids to logits.
        n_sources: k, the number of sources.
        processes: the processes that share each batch. All of them hold the same model.
        chunk_bytes: size of the buffer in which per-source gradients are formed and reduced. The default depends on the
            model's device.

    Raises:
        XDogeError: a module mixes rows, the model is compiled, or its predictions depend on later tokens.
    """

    def __init__(
        self,
        model: nn.Module,
        n_sources: int,
        *,
        processes: Processes = ALONE,
        chunk_bytes: int | None = None,
    ) -> None:
        self.model = model
        self.n_sources = n_sources
        self.processes = processes
        self.chunk_bytes = chunk_bytes or CHUNK_BYTES.get(next(model.parameters()).device.type, CHUNK_BYTES["cuda"])
        self.message_bytes = 0
        self._hooked = hooked_modules(model)
        refuse_future(model, "the model")
        self._head = self._plain_head()
        self._checked: set[str] = set()
        self.fallbacks = {hooked.name: type(hooked.module).__name__ for hooked in self._hooked if hooked.is_fallback}
        if self.fallbacks:
            listed = ", ".join(f"{name} ({kind})" for name, kind in self.fallbacks.items())
            warnings.warn(
                f"gradients per source of {listed} are computed source by source, which is slow", stacklevel=2
            )

    def backward(
        self,
        batch: SourceBatch,
        *,
        weights: np.ndarray,
        targets: np.ndarray,
        reference: np.ndarray | None = None,
        gram: bool = False,
        halves: bool = True,
        microbatches: int = 1,
        autocast: torch.dtype | None = None,
        placement: Placement | None = None,
    ) -> SourceProducts:
        """Return the sources' losses and gradient products, and add Σ_j weights_j g_j to the parameters' gradients.

        The number of microbatches does not change the result. The inputs and output gradients of linear maps are kept
        until the last microbatch, so they take memory for the whole batch. Attention, norms, activation functions and
        logits take memory for one microbatch only.

        Args:
            batch: the rows of all sources, sorted by source. With several processes, each gives its own rows.
            weights: (k,) α, the weight of each source's gradient in training.
            targets: (k,) τ, the weight of each source's gradient in the scores.
            reference: (k,) weights of the guard. If given, the progress under these weights is returned too.
            gram: whether to return the products between all sources. Products then take k times the arithmetic.
            halves: whether to return the products between the two halves of each source's rows.
            microbatches: number of parts in which the batch is run, one after the other.
            autocast: the lower precision of matrix products, such as torch.bfloat16; None for none.
            placement: which rows each process has. It is the same on all processes.

        Returns:
            Losses, gradient norms and products, each (k,), summed over all processes.

        Raises:
            XDogeError: the batch does not match the arguments, or the model uses a parameter outside its module, so
                that its gradient cannot be separated by source.
        """
        placement = placement or Placement(np.array([batch.counts]))
        _check(batch, weights, targets, self.n_sources, microbatches, placement.rows[self.processes.rank])
        device = next(self.model.parameters()).device
        accumulator = GradientAccumulator(
            batch,
            [targets, weights] + ([] if reference is None else [reference]),
            gram=gram,
            halves=halves,
            device=device,
            chunk_bytes=self.chunk_bytes,
            checked=self._checked,
            processes=self.processes,
            placement=placement,
        )
        n_rows, n_tokens = batch.input_ids.shape
        order = torch.from_numpy(accumulator.segments.order).to(batch.input_ids.device)
        input_ids = batch.input_ids[order].to(device)
        cuts = np.linspace(0, n_rows, min(microbatches, n_rows) + 1).astype(int).tolist()
        with self._patched(accumulator):
            for start, stop in pairwise(cuts):
                accumulator.begin(accumulator.segments.layout(start, stop, n_tokens), is_last=stop == n_rows)
                with autocasting(device, autocast):
                    loss = self._summed_loss(accumulator, input_ids[start:stop], keep=len(cuts) == 2)
                accumulator.in_backward = True
                loss.backward()  # type: ignore[no-untyped-call]
            accumulator.finish()
        self.message_bytes = accumulator.message_bytes
        return accumulator.products()

    def _summed_loss(self, accumulator: GradientAccumulator, input_ids: torch.Tensor, *, keep: bool) -> torch.Tensor:
        targets = input_ids[:, 1:].reshape(-1)
        if self._head is not None:
            hidden = _last_hidden(self.model, input_ids)[:, :-1].reshape(len(targets), -1)
            return head_loss(hidden, targets, self._head, accumulator, keep=keep)
        logits = _logits(self.model, input_ids)[:, :-1].flatten(0, 1)
        losses = functional.cross_entropy(logits.to(working_dtype(logits.dtype)), targets, reduction="none")
        accumulator.add_losses(losses.detach())
        return losses.sum()

    def _plain_head(self) -> nn.Linear | None:
        """Return the head if it is a hooked linear map and alone maps the last hidden states to the logits."""
        head = plain_head(self.model)
        known = any(hooked.module is head and not hooked.is_fallback for hooked in self._hooked)
        return head if known and isinstance(head, nn.Linear) and head.bias is None else None

    @contextmanager
    def _patched(self, accumulator: GradientAccumulator) -> Iterator[None]:
        with ExitStack() as stack:
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    hook = parameter.register_hook(partial(_refuse_stray, name))  # type: ignore[no-untyped-call]
                    stack.callback(hook.remove)
            refuse_compiled(self.model)
            for hooked in self._hooked:
                stack.callback(_replace_forward(hooked, accumulator))
            yield


def _replace_forward(hooked: HookedModule, accumulator: GradientAccumulator) -> Any:
    module, original = hooked.module, hooked.module.forward
    before = vars(module).get("forward")
    trainable = any(parameter.requires_grad for parameter in module.parameters())

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not trainable or not torch.is_grad_enabled():
            return original(*args, **kwargs)
        return hooked.stand_in(accumulator, hooked, original, *args, **kwargs)

    def restore() -> None:
        del module.__dict__["forward"]
        if before is not None:
            module.__dict__["forward"] = before

    module.__dict__["forward"] = forward
    return restore


def _refuse_stray(name: str, grad: torch.Tensor) -> None:
    raise XDogeError(
        f"the parameter {name} is used outside the forward pass of its own module, so its gradient cannot "
        "be split by source. Use it through its module only."
    )


def _last_hidden(model: Any, input_ids: torch.Tensor) -> torch.Tensor:
    hidden: torch.Tensor = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
    return hidden


def _logits(model: nn.Module, input_ids: torch.Tensor) -> torch.Tensor:
    output = model(input_ids=input_ids, use_cache=False) if hasattr(model, "config") else model(input_ids)
    logits: torch.Tensor = output if isinstance(output, torch.Tensor) else output.logits
    return logits


def _check(
    batch: SourceBatch, weights: np.ndarray, targets: np.ndarray, k: int, microbatches: int, own: np.ndarray
) -> None:
    if batch.input_ids.dim() != 2 or batch.input_ids.shape[1] < 2:
        raise XDogeError(f"input_ids has shape {tuple(batch.input_ids.shape)}; it must be (rows, tokens ≥ 2).")
    n_rows = batch.input_ids.shape[0]
    if len(batch.counts) != k or min(batch.counts) < 0 or sum(batch.counts) != n_rows or n_rows == 0:
        raise XDogeError(f"counts {batch.counts} must be {k} numbers ≥ 0 that sum to the batch's {n_rows} rows.")
    if own.tolist() != list(batch.counts):
        raise XDogeError(f"counts {batch.counts} must be this process's rows of the placement, {own.tolist()}.")
    if microbatches < 1:
        raise XDogeError(f"microbatches is {microbatches}; it must be ≥ 1.")
    for name, value in (("weights", weights), ("targets", targets)):
        if np.shape(value) != (k,):
            raise XDogeError(f"{name} has shape {np.shape(value)}; it must be ({k},), one number per source.")
