"""Per-source gradients of one call of `GradientEngine.backward`: formed, reduced and summed over processes.

Every process forms the gradients of its own rows only, one slice of a parameter at a time. For each slice the processes
all-reduce Σ τ_i g_i and Σ α_i g_i, and for a Gram matrix the gradients of all sources. `pipelined_reduce.py` sums the
gradients of sources that are on several processes. Each process then reduces the gradients of its own sources to
products. At the end, the products are summed over processes. An all-reduce runs while the next slices and layers are
computed.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from xdoge.distributed import Processes
from xdoge.errors import XDogeError
from xdoge.fit.gradients.hooks import matrix_shape
from xdoge.fit.gradients.pipelined_reduce import PipelinedReduce, SliceMessages
from xdoge.fit.gradients.placement import Placement
from xdoge.fit.gradients.products import SourceBatch, SourceProducts
from xdoge.fit.gradients.segments import Lookup, Piece, RowLayout, Segments, working_dtype

# Shape of the slices, measured with the matrices of small proxies. Narrower slices slow the matrix products down.
# Larger ones do not fit in the cache.
MIN_ROWS = 32
MAX_COLUMNS = 256

IN_FLIGHT = 4
"""Number of all-reduces in flight at once. Each holds the buffer of its slice."""


@dataclass(frozen=True)
class _PendingSlice:
    """A slice whose sums over processes are in flight."""

    work: Any
    sums: torch.Tensor  # (m, n) Σ τ_i g_i, Σ α_i g_i and so on; for a Gram matrix also the gradients of all slots
    grads: torch.Tensor  # (s, n) gradients of this process's segments
    shared: SliceMessages | None  # messages for sources that are on several processes
    write: Callable[[torch.Tensor], None]  # writes the slice of Σ α_i g_i to the parameter's gradient


class GradientAccumulator:
    """The state of one call of `GradientEngine.backward`. The stand-ins of `hooks.py` see it as a `GradientSink`.

    The backward pass starts from the sum of the losses over tokens. The factor 1 / (n_j (T-1)), which turns this sum
    into the mean over source j, is part of the weights and targets.
    """

    def __init__(
        self,
        batch: SourceBatch,
        directions: list[np.ndarray],
        *,
        gram: bool,
        halves: bool,
        device: torch.device,
        chunk_bytes: int,
        checked: set[str],
        processes: Processes,
        placement: Placement,
    ) -> None:
        self.chunk_bytes, self.checked, self.processes = chunk_bytes, checked, processes
        self.counts, self.halves = placement.counts, halves
        k, alone = len(self.counts), processes.world_size == 1
        shared = np.ones(k, dtype=bool) if gram else placement.split
        self.segments = Segments.of(
            self.counts.tolist(),
            halves=halves,
            own=batch.counts,
            before=placement.before(processes.rank).tolist(),
            shared=shared.tolist(),
        )
        # All processes cut parameters into the same slices. The process with most segments decides their size.
        self.width = len(self.segments.slots) if alone else int((placement.rows > 0).sum(1).max()) * (1 + halves)
        self.pipeline = (
            None
            if alone or gram
            else PipelinedReduce(placement, self.segments, processes, halves=halves, device=device)
        )
        self.gram_slots = self.segments.slots if gram else self.segments.slots[:0]
        if gram and not alone:  # all processes send the same rows
            cut = (self.counts > 1) & halves
            self.gram_slots = np.flatnonzero(np.concatenate([self.counts > 0, cut]))
            self.gram_rows = torch.from_numpy(np.searchsorted(self.gram_slots, self.segments.slots)).to(device)
        sources = self.segments.slots % k
        self.n_tokens = batch.input_ids.shape[1]
        scale = 1 / (self.counts[sources] * (self.n_tokens - 1))  # sums over tokens become means over sources
        self.mix = torch.tensor(np.stack(directions)[:, sources] * scale, device=device)  # (m, s)
        self.anchor = torch.zeros((), device=device, requires_grad=True)
        s = len(sources)
        new = partial(torch.zeros, dtype=torch.float64, device=device)
        self.losses, self.squares, self.pairs = new(s), new(s), new(self.segments.n_pairs)
        self.dots = new(s, len(directions))
        self.matrix = new(len(self.gram_slots), len(self.gram_slots))
        self.gram = gram
        self.slice_products: defaultdict[str, list[torch.Tensor]] = defaultdict(list)
        self.pending: deque[_PendingSlice] = deque()
        self.turn = self.received = self.message_bytes = 0
        self.uses: Counter[nn.Parameter] = Counter()
        self.waiting: defaultdict[nn.Parameter, list[Piece]] = defaultdict(list)
        self.layout: RowLayout
        self.is_last = False
        self.in_backward = False

    def begin(self, layout: RowLayout, *, is_last: bool) -> None:
        """Begin the next microbatch."""
        self.layout, self.is_last, self.in_backward = layout, is_last, False

    def add_losses(self, losses: torch.Tensor) -> None:
        """Add the losses of all predicted tokens of the microbatch, (N,)."""
        self.losses += self.layout.sum(losses[:, None].double()).squeeze(1)

    def expect(self, parameter: nn.Parameter) -> None:
        if not self.in_backward:  # activation checkpointing calls this again in backward
            self.uses[parameter] += 1

    def arrive(self, parameter: nn.Parameter, piece: Piece) -> None:
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
        """Settle the parameters with a use that did not affect the loss, and wait for the sums that are in flight."""
        while self.waiting:
            self.settle(*self.waiting.popitem())
        while self.pending:
            self.receive()
        self.add_up()

    @torch.no_grad()
    def settle(self, parameter: nn.Parameter, pieces: list[Piece]) -> None:
        """Form a parameter's gradients per segment from all its uses, slice by slice, and reduce each slice."""
        n, d = matrix_shape(parameter)
        looked_up = None
        if all(isinstance(piece, Lookup) for piece in pieces):  # only rows that were looked up have a gradient
            lookups = [piece for piece in pieces if isinstance(piece, Lookup)]
            looked_up = self.all_looked_up(torch.cat([piece.tokens for piece in lookups]), n)
            pieces = [replace(piece, tokens=torch.searchsorted(looked_up, piece.tokens)) for piece in lookups]
            n = len(looked_up)
        pieces = sorted(pieces, key=lambda piece: not piece.is_whole)
        is_new = parameter.grad is None
        if parameter.grad is None:
            parameter.grad = torch.empty_like(parameter) if looked_up is None else torch.zeros_like(parameter)
        total = parameter.grad.view(-1, d)
        s, dtype = len(self.segments.slots), working_dtype(parameter.dtype)
        mix = self.mix.to(dtype)
        n_columns = min(d, MAX_COLUMNS)
        n_rows = min(n, max(MIN_ROWS, self.chunk_bytes // (self.width * n_columns * dtype.itemsize)))
        buffers = [
            torch.empty(s * n_rows * n_columns, dtype=dtype, device=parameter.device)
            for _ in range(1 if self.processes.world_size == 1 else IN_FLIGHT + 1)
        ]
        for rows in _slices(n, n_rows):
            slabs = [piece.slab(rows) for piece in pieces]
            for columns in _slices(d, n_columns):
                shape = (s, rows.stop - rows.start, columns.stop - columns.start)
                grads = buffers[self.turn % len(buffers)][: math.prod(shape)].view(shape)
                overwrite = pieces[0].is_whole
                if not overwrite:
                    grads.zero_()
                for add in slabs:
                    add(grads, columns, overwrite=overwrite)
                    overwrite = False
                place = looked_up[rows] if looked_up is not None else rows
                self.reduce(grads.view(s, -1), mix, partial(_write_gradient, total, place, columns, is_new))
        self.add_up()

    def all_looked_up(self, tokens: torch.Tensor, n: int) -> torch.Tensor:
        """Return the rows that any process looked up in a table of n rows, in ascending order."""
        if self.processes.world_size == 1:
            return tokens.unique()  # type: ignore[no-untyped-call,no-any-return]
        used = torch.zeros(n, dtype=torch.uint8, device=tokens.device)
        used[tokens] = 1
        self.processes.wait(self.processes.all_reduce_async(used, largest=True))
        return used.nonzero().squeeze(1)

    def reduce(self, grads: torch.Tensor, mix: torch.Tensor, write: Callable[[torch.Tensor], None]) -> None:
        """Take a slice's products and write its training gradient: now, or when its sums have arrived."""
        self.turn += 1
        if self.processes.world_size == 1:
            mixed = mix @ grads  # (m, n) the slices of Σ τ_i g_i, Σ α_i g_i and so on
            self.take_products(grads, mixed, grads if self.gram else grads[:0])
            write(mixed[1])
            return
        sums = grads.new_zeros(len(mix) + len(self.gram_slots), grads.shape[1])
        torch.mm(mix, grads, out=sums[: len(mix)])
        if self.gram:
            sums[len(mix) + self.gram_rows] = grads
        shared = self.pipeline.begin(grads, self.turn) if self.pipeline else None
        rows = len(sums) + (self.pipeline.tail.n_rows if self.pipeline and self.pipeline.tail else 0)
        self.message_bytes += rows * sums.shape[1] * sums.itemsize
        self.pending.append(_PendingSlice(self.processes.all_reduce_async(sums), sums, grads, shared, write))
        if len(self.pending) > IN_FLIGHT:
            self.receive()

    def receive(self) -> None:
        """Wait for the sums of the oldest slice in flight, take its products and write its training gradient."""
        pending = self.pending.popleft()
        self.processes.wait(pending.work)
        self.received += 1
        mine = self.received % self.processes.world_size == self.processes.rank
        if self.pipeline and pending.shared:
            self.pipeline.end(pending.shared, pending.grads)
        m = len(self.mix)
        self.take_products(pending.grads, pending.sums[:m], pending.sums[m:] if mine else pending.sums[:0])
        pending.write(pending.sums[1])

    def take_products(self, grads: torch.Tensor, directions: torch.Tensor, gram_grads: torch.Tensor) -> None:
        """Take the products of one slice.

        Args:
            grads: (s, n) gradients of this process's segments.
            directions: (m, n) sums over sources, with which the products are taken.
            gram_grads: gradients of all slots for the Gram matrix, or no rows.
        """
        self.slice_products["dots"].append(grads @ directions.T)
        self.slice_products["norms"].append(torch.linalg.vector_norm(grads, dim=1))
        if n_pairs := self.segments.n_pairs:
            self.slice_products["pairs"].append((grads[:n_pairs] * grads[-n_pairs:]).sum(1))
        if len(gram_grads):
            self.matrix += gram_grads @ gram_grads.T

    def add_up(self) -> None:
        """Add the products of the slices so far to the totals, in float64."""
        stacked = {key: torch.stack(values).double() for key, values in self.slice_products.items()}
        self.slice_products.clear()
        if stacked:
            self.dots += stacked["dots"].sum(0)
            self.squares += stacked["norms"].square().sum(0)
            if self.segments.n_pairs:
                self.pairs += stacked["pairs"].sum(0)

    def totals(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the sums over all processes: losses (2k,), products with directions (2k, m), products (2k, 2k).

        Without a Gram matrix, the last array has only the products of a slot with itself and of the two halves of a
        source. All other entries are 0.
        """
        k, slots, shared = len(self.counts), self.segments.slots, self.segments.shared
        m = len(self.mix)
        losses, dots, own = np.zeros(2 * k), np.zeros((2 * k, m)), np.zeros((2 * k, 2 * k))
        losses[slots], dots[slots] = self.losses.cpu().numpy(), self.dots.cpu().numpy()
        alone = np.delete(np.arange(len(slots)), shared)
        own[slots[alone], slots[alone]] = self.squares.cpu().numpy()[alone]
        first = slots[: self.segments.n_pairs]
        own[first, first + k] = own[first + k, first] = self.pairs.cpu().numpy()
        if self.gram:
            own[np.ix_(self.gram_slots, self.gram_slots)] = self.matrix.cpu().numpy()
        elif self.pipeline:
            self.pipeline.add_to(own)
        summed = self.processes.all_reduce(np.concatenate([losses, dots.ravel(), own.ravel()]))
        losses, dots, own = np.split(summed, [2 * k, 2 * k * (1 + m)])
        return losses, dots.reshape(2 * k, m), own.reshape(2 * k, 2 * k)

    def products(self) -> SourceProducts:
        """Return losses and products per source, from the totals per segment."""
        losses, dots, own = self.totals()
        k, present = len(self.counts), self.counts > 0
        absent = np.where(present, 0.0, np.nan)
        n_predictions = np.where(present, self.counts, 1) * (self.n_tokens - 1)  # (k,)
        half_products = np.full(k, np.nan)
        cut = np.flatnonzero((self.counts > 1) & self.halves)
        of_halves = self.counts // 2 * -(-self.counts // 2) * (self.n_tokens - 1) ** 2
        half_products[cut] = own[cut, cut + k] / of_halves[cut]
        gram = own.reshape(2, k, 2, k).sum((0, 2)) / n_predictions[:, None] / n_predictions
        along = dots.reshape(2, k, -1).sum(0).T / n_predictions + absent  # (m, k)
        return SourceProducts(
            losses=losses.reshape(2, k).sum(0) / n_predictions + absent,
            scores=along[0],
            progress=along[1],
            reference=along[2] if len(along) > 2 else None,
            square_norms=np.diag(gram) + absent,
            half_products=half_products,
            gram=gram + absent[:, None] + absent if self.gram else None,
        )


def _write_gradient(
    total: torch.Tensor, place: slice | torch.Tensor, columns: slice, is_new: bool, trained: torch.Tensor
) -> None:
    """Write a slice of Σ α_i g_i to the parameter's gradient, or add it if the gradient is not new.

    `place` is a range of rows, or the numbers of the rows that were looked up in an embedding.
    """
    trained = trained.view(-1, columns.stop - columns.start)
    if isinstance(place, torch.Tensor):
        total[:, columns].index_add_(0, place, trained.to(total.dtype))
    elif is_new:
        total[place, columns] = trained
    else:
        total[place, columns] += trained


def _slices(n: int, width: int) -> list[slice]:
    return [slice(start, min(n, start + width)) for start in range(0, n, width)]
