"""Inner products of the sources' gradients, out of the one backward pass that trains the model.

The reweighting step needs, for k sources with gradients g_i of their mean losses, the products ⟨g_j, Σ_i τ_i g_i⟩, and
training needs Σ_i α_i g_i. Done plainly that is k backward passes and a k × P matrix. But a backward pass over a batch
that holds rows of all sources has everything already: the gradient of a linear map's weight is a sum over rows,

    g = Σ_rows (output gradient)ᵀ (input),

and stopping that sum at the borders between sources gives each source's own gradient, for the same arithmetic. So, in
backward, wherever a parameter's gradient would be formed, this module forms it per source, a slice of the parameter
at a time in a buffer of a few megabytes, and reduces the slice at once to

    its share of the products                added up in float64, a few numbers per source, and
    its slice of Σ_i α_i g_i                 added to `param.grad`.

No more than that buffer is ever held beyond what training holds. Parameters that are used more than once (a head tied
to the embedding, a module called twice, microbatches) wait until their last use has arrived, for the uses must be
summed before products are taken. The one condition is that no operation mixes rows.

`segments.py` has the rows and the forms in which gradients arrive, `taps.py` what stands in for each module's forward.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from xdoge.errors import XDogeError
from xdoge.proxy.segments import Layout, Lookup, Piece, Segments, working_dtype
from xdoge.proxy.taps import Site, find_sites, head_loss, matrix_shape, refuse_compiled

# Shape of the slices, measured on the shapes of small proxies: narrower slices slow the matrix products down, larger
# ones fall out of the cache.
CHUNK_BYTES = 3 * 2**20
MIN_ROWS = 32
MAX_COLUMNS = 256


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


class OnePass:
    """One forward and one backward pass that give both the training gradient and the sources' products.

    The model is touched only while `backward` runs.

    Args:
        model: a causal language model of transformers, or any module that maps (B, T) token ids to logits.
        n_sources: k.
        chunk_bytes: size of the buffer in which per-source gradients are formed and reduced.

    Raises:
        XDogeError: a module mixes rows, by name, or the model is compiled.
    """

    def __init__(self, model: nn.Module, n_sources: int, *, chunk_bytes: int = CHUNK_BYTES) -> None:
        self.model = model
        self.n_sources = n_sources
        self.chunk_bytes = chunk_bytes
        self._sites = find_sites(model)
        self._head = self._plain_head()
        self._checked: set[str] = set()
        self.fallbacks = {site.name: type(site.module).__name__ for site in self._sites if site.is_fallback}
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
        gram: bool = False,
        halves: bool = True,
        microbatches: int = 1,
        autocast: torch.dtype | None = None,
    ) -> SourceProducts:
        """Add Σ_j weights_j g_j to the parameters' gradients and return the sources' products.

        With several microbatches the result is that of one: each linear map's inputs and output gradients wait for the
        last microbatch, so their memory is that of the whole batch; that of attention, norms, activation functions and
        logits is one microbatch's.

        Args:
            batch: the rows of all sources.
            weights: (k,) α, what each source's gradient counts for in training.
            targets: (k,) τ, what each source counts for in the direction that scores are taken along.
            gram: also return all products between sources; costs k per parameter in place of 1.
            halves: also return the products between the two halves of each source's rows.
            microbatches: number of parts that the batch is run in, one after the other.
            autocast: the lower precision of matrix products, such as torch.bfloat16.

        Raises:
            XDogeError: the batch does not fit, a parameter is used where its gradient cannot be told apart by source.
        """
        _check(batch, weights, targets, self.n_sources, microbatches)
        device = next(self.model.parameters()).device
        run = _Pass(batch, weights, targets, gram=gram, halves=halves, device=device)
        run.checked, run.chunk_bytes = self._checked, self.chunk_bytes
        n_rows, n_tokens = batch.input_ids.shape
        order = torch.from_numpy(run.segments.order).to(batch.input_ids.device)
        input_ids = batch.input_ids[order].to(device)
        cuts = np.linspace(0, n_rows, min(microbatches, n_rows) + 1).astype(int).tolist()
        with self._patched(run):
            for start, stop in pairwise(cuts):
                run.begin(run.segments.layout(start, stop, n_tokens), is_last=stop == n_rows)
                context = nullcontext() if autocast is None else torch.autocast(device.type, autocast)
                with context:
                    loss = self._summed_loss(run, input_ids[start:stop], keep=len(cuts) == 2)
                run.in_backward = True
                loss.backward()  # type: ignore[no-untyped-call]
            run.finish()
        return run.products(n_tokens)

    def _summed_loss(self, run: _Pass, input_ids: torch.Tensor, *, keep: bool) -> torch.Tensor:
        targets = input_ids[:, 1:].reshape(-1)
        if self._head is not None:
            hidden = _last_hidden(self.model, input_ids)[:, :-1].reshape(len(targets), -1)
            return head_loss(hidden, targets, self._head, run, keep=keep)
        logits = _logits(self.model, input_ids)[:, :-1].flatten(0, 1)
        losses = functional.cross_entropy(logits.to(working_dtype(logits.dtype)), targets, reduction="none")
        run.add_losses(losses.detach())
        return losses.sum()

    def _plain_head(self) -> nn.Linear | None:
        """Return the head if logits are nothing but the head's map of the last hidden states: found by trying."""
        find = getattr(self.model, "get_output_embeddings", None)
        head = find() if find is not None else None
        known = any(site.module is head and not site.is_fallback for site in self._sites)
        base = getattr(self.model, "base_model", self.model)
        if not known or not isinstance(head, nn.Linear) or head.bias is not None or base is self.model:
            return None
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            with torch.no_grad():
                probe = torch.zeros(1, 2, dtype=torch.int64, device=head.weight.device)
                same = torch.equal(head(_last_hidden(self.model, probe)), _logits(self.model, probe))
        finally:
            for module, mode in modes:
                module.training = mode
        return head if same else None

    @contextmanager
    def _patched(self, run: _Pass) -> Iterator[None]:
        with ExitStack() as stack:
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    hook = parameter.register_hook(partial(_refuse_stray, name))  # type: ignore[no-untyped-call]
                    stack.callback(hook.remove)
            refuse_compiled(self.model)
            for site in self._sites:
                stack.callback(_replace_forward(site, run))
            yield


def _replace_forward(site: Site, run: _Pass) -> Any:
    module, original = site.module, site.module.forward
    before = vars(module).get("forward")
    trainable = any(parameter.requires_grad for parameter in module.parameters())

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not trainable or not torch.is_grad_enabled():
            return original(*args, **kwargs)
        return site.stand_in(run, site, original, *args, **kwargs)

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


def _check(batch: SourceBatch, weights: np.ndarray, targets: np.ndarray, k: int, microbatches: int) -> None:
    if batch.input_ids.dim() != 2 or batch.input_ids.shape[1] < 2:
        raise XDogeError(f"input_ids has shape {tuple(batch.input_ids.shape)}; it must be (rows, tokens ≥ 2).")
    n_rows = batch.input_ids.shape[0]
    if len(batch.counts) != k or min(batch.counts) < 0 or sum(batch.counts) != n_rows or n_rows == 0:
        raise XDogeError(f"counts {batch.counts} must be {k} numbers ≥ 0 that sum to the batch's {n_rows} rows.")
    if microbatches < 1:
        raise XDogeError(f"microbatches is {microbatches}; it must be ≥ 1.")
    for name, value in (("weights", weights), ("targets", targets)):
        if np.shape(value) != (k,):
            raise XDogeError(f"{name} has shape {np.shape(value)}; it must be ({k},), one number per source.")


def _slices(n: int, width: int) -> list[slice]:
    return [slice(start, min(n, start + width)) for start in range(0, n, width)]


class _Pass:
    """The state of one call of `OnePass.backward`.

    The loss that is propagated back is the plain sum over tokens; the 1/(n_j (T-1)) that makes means of it enters with
    the weights and targets, at no cost.
    """

    def __init__(
        self,
        batch: SourceBatch,
        weights: np.ndarray,
        targets: np.ndarray,
        *,
        gram: bool,
        halves: bool,
        device: torch.device,
    ) -> None:
        self.counts = np.array(batch.counts)
        self.segments = Segments.of(batch.counts, halves=halves)
        self.chunk_bytes = CHUNK_BYTES
        self.checked: set[str] = set()
        sources, s = self.segments.sources, len(self.segments.sources)
        n_tokens = batch.input_ids.shape[1]
        scale = 1 / (self.counts[sources] * (n_tokens - 1))  # sums over tokens become means over sources
        mix = np.stack([np.asarray(targets)[sources], np.asarray(weights)[sources]]) * scale
        self.mix = torch.tensor(mix, device=device)  # (2, s)
        self.anchor = torch.zeros((), device=device, requires_grad=True)
        new = partial(torch.zeros, dtype=torch.float64, device=device)
        self.losses, self.squares = new(s), new(s)
        self.dots, self.pairs = new(s), new(self.segments.n_pairs)
        self.matrix = new(s, s) if gram else None
        self.noted: defaultdict[str, list[torch.Tensor]] = defaultdict(list)
        self.uses: Counter[nn.Parameter] = Counter()
        self.waiting: defaultdict[nn.Parameter, list[Piece]] = defaultdict(list)
        self.layout: Layout
        self.is_last = False
        self.in_backward = False

    def begin(self, layout: Layout, *, is_last: bool) -> None:
        """Turn to the next microbatch."""
        self.layout, self.is_last, self.in_backward = layout, is_last, False

    def add_losses(self, losses: torch.Tensor) -> None:
        """Take the loss of every token, (N,)."""
        self.losses += self.layout.sum(losses[:, None].double()).squeeze(1)

    def expect(self, parameter: nn.Parameter) -> None:
        """See `Tap`."""
        if not self.in_backward:  # what a checkpoint runs again in backward is no new use
            self.uses[parameter] += 1

    def arrive(self, parameter: nn.Parameter, piece: Piece) -> None:
        """See `Tap`."""
        self.uses[parameter] -= 1
        if self.uses[parameter] < 0:
            raise XDogeError(
                "a parameter's gradient arrived more often than the parameter was used, as happens with reentrant "
                'activation checkpointing; give it {"use_reentrant": False}.'
            )
        self.waiting[parameter].append(piece)
        if self.is_last and self.uses[parameter] == 0:
            self.settle(parameter, self.waiting.pop(parameter))

    def finish(self) -> None:
        """Settle the parameters of which some use did not reach the loss."""
        while self.waiting:
            self.settle(*self.waiting.popitem())

    @torch.no_grad()
    def settle(self, parameter: nn.Parameter, pieces: list[Piece]) -> None:
        """Form a parameter's gradient per segment from all its uses, slice by slice, and reduce each slice."""
        n, d = matrix_shape(parameter)
        looked_up = None
        if all(isinstance(piece, Lookup) for piece in pieces):  # only rows that were looked up have a gradient
            lookups = [piece for piece in pieces if isinstance(piece, Lookup)]
            looked_up = torch.unique(torch.cat([piece.tokens for piece in lookups]))
            pieces = [replace(piece, tokens=torch.searchsorted(looked_up, piece.tokens)) for piece in lookups]
            n = len(looked_up)
        pieces = sorted(pieces, key=lambda piece: not piece.is_whole)
        is_new = parameter.grad is None
        if parameter.grad is None:
            parameter.grad = torch.empty_like(parameter) if looked_up is None else torch.zeros_like(parameter)
        total = parameter.grad.view(-1, d)
        s, dtype = len(self.segments.sources), working_dtype(parameter.dtype)
        mix = self.mix.to(dtype)
        n_columns = min(d, MAX_COLUMNS)
        n_rows = min(n, max(MIN_ROWS, self.chunk_bytes // (s * n_columns * dtype.itemsize)))
        buffer = torch.empty(s * n_rows * n_columns, dtype=dtype, device=parameter.device)
        for rows in _slices(n, n_rows):
            slabs = [piece.slab(rows) for piece in pieces]
            for columns in _slices(d, n_columns):
                shape = (s, rows.stop - rows.start, columns.stop - columns.start)
                grads = buffer[: math.prod(shape)].view(shape)
                overwrite = pieces[0].is_whole
                if not overwrite:
                    grads.zero_()
                for add in slabs:
                    add(grads, columns, overwrite=overwrite)
                    overwrite = False
                trained = self.reduce(grads.view(s, -1), mix).view(shape[1:])
                if looked_up is not None:
                    total[:, columns].index_add_(0, looked_up[rows], trained.to(total.dtype))
                elif is_new:
                    total[rows, columns] = trained
                else:
                    total[rows, columns] += trained
        self.fold()

    def reduce(self, grads: torch.Tensor, mix: torch.Tensor) -> torch.Tensor:
        """Note a slice's products and return its training gradient: (s, n) → (n,)."""
        if self.matrix is not None:
            self.matrix += grads @ grads.T
            return torch.mv(grads.T, mix[1])
        mixed = mix @ grads  # (2, n) the slices of Σ τ_i g_i and Σ α_i g_i
        self.noted["dots"].append(grads @ mixed[0])
        self.noted["norms"].append(torch.linalg.vector_norm(grads, dim=1))
        if n_pairs := self.segments.n_pairs:
            self.noted["pairs"].append((grads[:n_pairs] * grads[-n_pairs:]).sum(1))
        return mixed[1]

    def fold(self) -> None:
        """Add what was noted of a parameter's slices to the totals, in float64."""
        noted = {key: torch.stack(values).double() for key, values in self.noted.items()}
        self.noted.clear()
        if noted:
            self.dots += noted["dots"].sum(0)
            self.squares += noted["norms"].square().sum(0)
            if self.segments.n_pairs:
                self.pairs += noted["pairs"].sum(0)

    def products(self, n_tokens: int) -> SourceProducts:
        """Bring the segments' sums together into those of the sources."""
        segments, k = self.segments, len(self.counts)
        present, n_pairs = self.counts > 0, segments.n_pairs
        n_predictions = np.where(present, self.counts * (n_tokens - 1), np.nan)  # (k,)
        join = np.zeros((k, len(segments.sources)))  # segment sums → source means
        join[segments.sources, np.arange(len(segments.sources))] = 1
        join /= np.where(present, n_predictions, 1)[:, None]
        targets = self.mix[0].cpu().numpy()  # (s,) τ/n
        absent = np.where(present, 0.0, np.nan)
        gram = None
        if self.matrix is not None:
            matrix = self.matrix.cpu().numpy()
            dots, squares = matrix @ targets, np.diag(matrix)
            pairs = np.diag(matrix[:n_pairs, len(matrix) - n_pairs :])
            gram = join @ matrix @ join.T + absent[:, None] + absent
        else:
            dots, squares, pairs = (t.cpu().numpy() for t in (self.dots, self.squares, self.pairs))
        square_norms = join**2 @ squares
        half_products = np.full(k, np.nan)
        split = segments.sources[:n_pairs]
        square_norms[split] += 2 * pairs / n_predictions[split] ** 2
        rows = segments.n_rows * (n_tokens - 1)
        half_products[split] = pairs / (rows[:n_pairs] * rows[len(rows) - n_pairs :])
        return SourceProducts(
            losses=join @ self.losses.cpu().numpy() + absent,
            scores=join @ dots + absent,
            square_norms=square_norms + absent,
            half_products=half_products,
            gram=gram,
        )
