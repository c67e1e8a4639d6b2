"""The gradient engine: inner products of the sources' gradients from the backward pass that trains the model.

Let g_i be the gradient of the mean loss of source i, of k. Reweighting needs the products ⟨g_j, Σ_i τ_i g_i⟩, and
training needs Σ_i α_i g_i. The plain way takes k backward passes and a k × P matrix. But one backward pass over a batch
with rows of all sources has everything already. The gradient of a linear map's weight is a sum over rows:

    g = Σ_rows (output gradient)ᵀ (input)

Stopping that sum at the borders between sources gives each source's own gradient, for the same arithmetic. So wherever
backward would form a parameter's gradient, the engine forms it per source, one slice of the parameter at a time, in a
buffer of a few megabytes. It reduces each slice at once to

    its share of the products                added up in float64, a few numbers per source, and
    its slice of Σ_i α_i g_i                 added to `param.grad`.

Beyond what training holds, that buffer is all the memory it needs. A parameter that is used several times (a head tied
to the embedding, a module called twice, microbatches) waits for its last use, since the uses must be summed before
products are taken. The only condition is that no operation mixes rows.

`hooks.py` replaces the modules' forward, `segments.py` has the forms in which gradients arrive, `accumulator.py` forms
and reduces them, and `pipelined_reduce.py` sums the gradients of sources that lie on several processes.
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
"""Size of the per-source gradients formed at once, by kind of device. On a CPU it was measured: larger ones fall out of
the cache. On a GPU it was not: it wants fewer and larger products, and messages of some megabytes."""


class GradientEngine:
    """One forward and one backward pass that give both the training gradient and the sources' products.

    The model is touched only while `backward` runs.

    Args:
        model: a causal language model of transformers, or any module that maps (B, T) token ids to logits.
        n_sources: k.
        processes: those that share each batch; the model is the same on all of them.
        chunk_bytes: size of the buffer in which per-source gradients are formed and reduced; by default as suits the
            model's device.

    Raises:
        XDogeError: a module mixes rows, by name, the model is compiled, or it sees later tokens.
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
                f"no fast way to per-source gradients is known for {listed}; run source by source", stacklevel=2
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
        """Add Σ_j weights_j g_j to the parameters' gradients and return the sources' products.

        With several microbatches the result is that of one: each linear map's inputs and output gradients wait for the
        last microbatch, so their memory is that of the whole batch; that of attention, norms, activation functions and
        logits is one microbatch's.

        Args:
            batch: the rows of all sources; of several processes, each gives its own.
            weights: (k,) α, what each source's gradient counts for in training.
            targets: (k,) τ, what each source counts for in the direction that scores are taken along.
            reference: (k,) other weights to take the sources' progress under, None for none.
            gram: also return all products between sources; costs k per parameter in place of 1.
            halves: also return the products between the two halves of each source's rows.
            microbatches: number of parts that the batch is run in, one after the other.
            autocast: the lower precision of matrix products, such as torch.bfloat16.
            placement: which rows each of several processes has; the same on all of them.

        Raises:
            XDogeError: the batch does not fit, a parameter is used where its gradient cannot be told apart by source.
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
        f"the parameter {name} is used outside the forward of the module that owns it, where its gradient cannot "
        "be told apart by source. Use it through its module only."
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
