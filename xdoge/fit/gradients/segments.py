"""Segments of a batch, and the pieces from which a parameter's gradient is formed for each segment.

A *segment* is a set of neighbouring rows (sequences) whose gradients are summed: all rows of a source, or one half of
them. In the backward pass a module hands over a *piece*: the two factors of its gradient instead of the
gradient. For a linear map these are the inputs and the output gradients. For an embedding they are the tokens and the
output gradients. A slice of the per-segment gradients is formed from the pieces when it is needed, and then dropped.

Shapes: s segments, B rows in a microbatch, T tokens in a row. A factor has N rows, equally many for each sequence;
usually N = B·T.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Protocol

import numpy as np
import torch
from torch.nn import functional


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the precision in which gradients of this dtype are formed and reduced: at least float32."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


@dataclass(frozen=True)
class EqualSegments:
    """Neighbouring segments with equally many rows. One batched matrix product forms their gradients."""

    first_row: int
    first_segment: int
    n_segments: int
    rows_each: int


@dataclass(frozen=True)
class RowLayout:
    """Which segment each row of a microbatch belongs to."""

    groups: tuple[EqualSegments, ...]
    n_segments: int  # of the whole batch, including segments without a row in this microbatch
    n_tokens: int  # T

    @cached_property
    def n_rows(self) -> int:
        """B, the number of rows of this microbatch."""
        return sum(group.n_segments * group.rows_each for group in self.groups)

    @cached_property
    def is_whole(self) -> bool:
        """Whether every segment has a row here, so that a product may overwrite the buffer instead of adding to it."""
        return sum(group.n_segments for group in self.groups) == self.n_segments

    def blocks(self) -> list[tuple[int, int, int]]:
        """Return (segment, first row, end row) of every segment that has rows here."""
        blocks = []
        for group in self.groups:
            for i in range(group.n_segments):
                start = group.first_row + i * group.rows_each
                blocks.append((group.first_segment + i, start, start + group.rows_each))
        return blocks

    def per_row(self, device: torch.device) -> torch.Tensor:
        """Return the segment of each row, (B,)."""
        segments = [segment for segment, start, stop in self.blocks() for _ in range(start, stop)]
        return torch.tensor(segments, device=device)

    def split(self, rows: torch.Tensor, group: EqualSegments) -> torch.Tensor:
        """Return a view of the group's part of `rows`, (N, d), as (segments, rows per segment, d)."""
        per_row = rows.shape[0] // self.n_rows
        part = rows.narrow(0, group.first_row * per_row, group.n_segments * group.rows_each * per_row)
        return part.view(group.n_segments, group.rows_each * per_row, rows.shape[1])

    def sum(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the sum of `rows`, (N, d), over each segment, (s, d), in the working precision."""
        out = rows.new_zeros(self.n_segments, rows.shape[1], dtype=working_dtype(rows.dtype))
        for group in self.groups:
            target = out.narrow(0, group.first_segment, group.n_segments)
            torch.sum(self.split(rows, group), dim=1, dtype=out.dtype, out=target)
        return out

    def outer(
        self, left: torch.Tensor, right: torch.Tensor, out: torch.Tensor, columns: slice, *, overwrite: bool
    ) -> None:
        """Add leftᵀ right[:, columns], summed over each segment's rows, to `out`: (N, c), (N, d) → (s, c, columns)."""
        right = right[:, columns]
        for group in self.groups:
            target = out.narrow(0, group.first_segment, group.n_segments)
            a, b = self.split(left, group).mT, self.split(right, group)
            if a.dtype != out.dtype:
                product = torch.bmm(a, b)
                target.copy_(product) if overwrite else target.add_(product)
            elif overwrite:
                torch.bmm(a, b, out=target)
            else:
                target.baddbmm_(a, b)


@dataclass(frozen=True)
class Segments:
    """The segments of a process's rows, and the order in which the rows are run.

    A source is *whole* if no other process has rows of it. The segments come in three parts:

    1. the first halves of the whole sources,
    2. the segments of all other sources,
    3. the second halves of those whole sources that have at least two rows.

    Segment i of part 1 and segment i of part 3 belong to the same source. Within each part, segments of equal length
    are neighbours.

    A segment's *slot* is the number of its source, plus k for a second half. It is the same on all processes.
    """

    slots: np.ndarray  # (s,) below 2k
    n_rows: np.ndarray  # (s,) rows of each segment
    order: np.ndarray  # (B,) this process's rows in the order of the segments
    n_pairs: int  # number of whole sources that are cut into halves
    shared: slice  # the segments of sources that are on several processes

    @classmethod
    def of(
        cls,
        counts: Sequence[int],
        *,
        halves: bool,
        own: Sequence[int] | None = None,
        before: Sequence[int] | None = None,
        shared: Sequence[bool] | None = None,
    ) -> Segments:
        """Return the segments of this process's rows.

        Args:
            counts: (k,) rows of each source over all processes.
            halves: whether to cut sources with at least two rows into halves.
            own: (k,) rows on this process; by default all.
            before: (k,) rows on the processes before this one; by default none.
            shared: (k,) sources whose segments go into the middle part; by default none.
        """
        k = len(counts)
        own, before, shared = own or counts, before or [0] * k, shared or [False] * k
        starts = np.concatenate([[0], np.cumsum(own)]).tolist()
        first, middle, second = [], [], []
        for j in sorted((j for j in range(k) if own[j]), key=lambda j: -own[j]):
            start, stop = starts[j], starts[j + 1]
            half = -(-counts[j] // 2) if halves else counts[j]
            cut = start + min(max(half - before[j], 0), own[j])
            if shared[j]:
                middle += [part for part in ((j, start, cut), (k + j, cut, stop)) if part[1] < part[2]]
                continue
            first.append((j, start, cut))
            if cut < stop:
                second.append((k + j, cut, stop))
        middle.sort(key=lambda part: part[1] - part[2])
        segments = first + middle + second
        return cls(
            slots=np.array([slot for slot, _, _ in segments], dtype=np.int64),
            n_rows=np.array([stop - start for _, start, stop in segments], dtype=np.int64),
            order=np.concatenate([np.arange(start, stop) for _, start, stop in segments]),
            n_pairs=len(second),
            shared=slice(len(first), len(first) + len(middle)),
        )

    def layout(self, first_row: int, end_row: int, n_tokens: int) -> RowLayout:
        """Return the layout of a microbatch: the rows [first_row, end_row) of the ordered batch."""
        ends = np.cumsum(self.n_rows)
        inside = np.minimum(ends, end_row) - np.maximum(ends - self.n_rows, first_row)  # (s,) ≤ 0 if no row is inside
        groups: list[EqualSegments] = []
        row = 0
        for segment, rows in enumerate(inside.tolist()):
            if rows <= 0:
                continue
            if groups and groups[-1].rows_each == rows:
                groups[-1] = replace(groups[-1], n_segments=groups[-1].n_segments + 1)
            else:
                groups.append(EqualSegments(row, segment, 1, rows))
            row += rows
        return RowLayout(groups=tuple(groups), n_segments=len(self.n_rows), n_tokens=n_tokens)


Slab = Callable[..., None]
"""add(out, columns, overwrite=...): add a slice (s, rows, columns) of the per-segment gradients to `out`."""


class Piece(Protocol):
    """The gradient of one use of a parameter in one microbatch. The parameter is viewed as a matrix (n, d)."""

    @property
    def is_whole(self) -> bool:
        """Whether the piece covers every entry of every segment's gradient, so that it may overwrite the buffer."""

    def slab(self, rows: slice) -> Slab:
        """Prepare some of the n rows of the gradient. The function returned forms them, a few columns at a time."""


@dataclass(frozen=True)
class Product:
    """The gradient of a linear map, leftᵀ right, with output gradients (N, n) on the left and inputs (N, d)."""

    left: torch.Tensor
    right: torch.Tensor
    layout: RowLayout

    @property
    def is_whole(self) -> bool:
        return self.layout.is_whole

    def slab(self, rows: slice) -> Slab:
        return partial(self.layout.outer, self.left[:, rows], self.right)


@dataclass(frozen=True)
class LogitProduct:
    """The gradient of the output head. Its left factor, softmax minus one-hot, is recomputed for each vocabulary slice.

    It holds N·d numbers instead of N·V, and costs one more product with the head's weight.
    """

    hidden: torch.Tensor  # (N, d)
    weight: torch.Tensor  # (V, d)
    log_norm: torch.Tensor  # (N,) log-sum-exp of the logits
    targets: torch.Tensor  # (N,)
    layout: RowLayout

    @property
    def is_whole(self) -> bool:
        return self.layout.is_whole

    def slab(self, rows: slice) -> Slab:
        logits = functional.linear(self.hidden, self.weight[rows])
        left = logits.to(working_dtype(logits.dtype)).sub_(self.log_norm[:, None]).exp_()
        here = ((self.targets >= rows.start) & (self.targets < rows.stop)).nonzero().squeeze(1)
        left[here, self.targets[here] - rows.start] -= 1
        return partial(self.layout.outer, left.to(self.hidden.dtype), self.hidden)


@dataclass(frozen=True)
class Lookup:
    """The gradient of an embedding: output gradients, sorted by the row of the table that they belong to."""

    tokens: torch.Tensor  # (N,) ascending
    segments: torch.Tensor  # (N,)
    grads: torch.Tensor  # (N, d)
    is_whole = False

    @classmethod
    def of(cls, tokens: torch.Tensor, grads: torch.Tensor, layout: RowLayout) -> Lookup:
        """Return the piece for tokens (N,) and output gradients (N, d) in the order of the batch."""
        segments = layout.per_row(tokens.device).repeat_interleave(len(tokens) // layout.n_rows)
        tokens, order = torch.sort(tokens, stable=True)
        return cls(tokens, segments[order], grads[order])

    def slab(self, rows: slice) -> Slab:
        bounds = torch.tensor([rows.start, rows.stop], device=self.tokens.device)
        start, stop = torch.searchsorted(self.tokens, bounds).tolist()
        index = self.segments[start:stop] * (rows.stop - rows.start) + self.tokens[start:stop] - rows.start
        grads = self.grads[start:stop]

        def add(out: torch.Tensor, columns: slice, *, overwrite: bool) -> None:
            out.view(-1, out.shape[-1]).index_add_(0, index, grads[:, columns].to(out.dtype))

        return add


@dataclass(frozen=True)
class Dense:
    """Per-segment gradients that are formed already, (s, n, d): of biases, norm gains and the slower fallback."""

    grads: torch.Tensor
    is_whole = False

    def slab(self, rows: slice) -> Slab:

        def add(out: torch.Tensor, columns: slice, *, overwrite: bool) -> None:
            out.add_(self.grads[:, rows, columns])

        return add
