"""Rows, segments, and the forms in which the gradient of a parameter arrives during backward.

A *segment* is a set of neighbouring rows (sequences) whose summed gradient is wanted on its own: all rows of a
source, or one half of them. What a module leaves behind in backward is not a gradient but the two factors of it, a
*piece*: the inputs and output gradients of a linear map, the tokens and output gradients of a look-up. Any slice of
the per-segment gradients can be formed from the pieces when, and only while, it is needed.

Shapes: s segments, B rows in a microbatch, T tokens in a row; a factor has N = B·L rows, L of them per sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Protocol

import numpy as np
import torch
from torch.nn import functional


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the precision gradients are formed and reduced in: at least float32."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


@dataclass(frozen=True)
class Run:
    """Neighbouring segments with equally many rows: their gradients are one batched matrix product."""

    first_row: int
    first_segment: int
    n_segments: int
    rows_each: int


@dataclass(frozen=True)
class Layout:
    """Which segment each row of a microbatch belongs to."""

    runs: tuple[Run, ...]
    n_segments: int  # of the whole batch, those without a row here included
    n_tokens: int  # T

    @cached_property
    def n_rows(self) -> int:
        """B, the rows of this microbatch."""
        return sum(run.n_segments * run.rows_each for run in self.runs)

    @cached_property
    def is_whole(self) -> bool:
        """Whether every segment has a row here, so that a product may overwrite instead of add."""
        return sum(run.n_segments for run in self.runs) == self.n_segments

    def blocks(self) -> list[tuple[int, int, int]]:
        """Return (segment, first row, end row) of every segment that has rows here."""
        return [
            (run.first_segment + i, run.first_row + i * run.rows_each, run.first_row + (i + 1) * run.rows_each)
            for run in self.runs
            for i in range(run.n_segments)
        ]

    def per_row(self, device: torch.device) -> torch.Tensor:
        """Return the segment of each row, (B,)."""
        segments = [segment for segment, start, stop in self.blocks() for _ in range(start, stop)]
        return torch.tensor(segments, device=device)

    def split(self, rows: torch.Tensor, run: Run) -> torch.Tensor:
        """View the part of `rows` (N, d) that belongs to a run as (segments, rows each, d)."""
        per_row = rows.shape[0] // self.n_rows
        part = rows.narrow(0, run.first_row * per_row, run.n_segments * run.rows_each * per_row)
        return part.view(run.n_segments, run.rows_each * per_row, rows.shape[1])

    def sum(self, rows: torch.Tensor) -> torch.Tensor:
        """Sum `rows` (N, d) over each segment, (s, d), in the working precision."""
        out = rows.new_zeros(self.n_segments, rows.shape[1], dtype=working_dtype(rows.dtype))
        for run in self.runs:
            target = out.narrow(0, run.first_segment, run.n_segments)
            torch.sum(self.split(rows, run), dim=1, dtype=out.dtype, out=target)
        return out

    def outer(
        self, left: torch.Tensor, right: torch.Tensor, out: torch.Tensor, columns: slice, *, overwrite: bool
    ) -> None:
        """Add leftᵀ right[:, columns] over each segment's rows to `out`: (N, c), (N, d) → (s, c, columns)."""
        right = right[:, columns]
        for run in self.runs:
            target = out.narrow(0, run.first_segment, run.n_segments)
            a, b = self.split(left, run).mT, self.split(right, run)
            if a.dtype != out.dtype:
                product = torch.bmm(a, b)
                target.copy_(product) if overwrite else target.add_(product)
            elif overwrite:
                torch.bmm(a, b, out=target)
            else:
                target.baddbmm_(a, b)


@dataclass(frozen=True)
class Segments:
    """The segments of a process's rows and the order these are run in.

    First come the first halves of the sources that lie here whole, then the segments of those that other processes
    have rows of too, then the second halves of the whole ones that have two rows. Segment i of the first halves and
    segment i of the second are the same source's. Within each, segments of equal length are neighbours.

    A segment's *slot* is the number of its source, plus k for a second half: the same on all processes.
    """

    slots: np.ndarray  # (s,) below 2k
    n_rows: np.ndarray  # (s,) rows of each segment
    order: np.ndarray  # (B,) this process's rows in the order of the segments
    n_pairs: int  # whole sources cut in two halves
    shared: slice  # the segments of sources that lie on several processes

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
        """Cut sources into halves, or leave them whole.

        Args:
            counts: (k,) rows of each source on all processes.
            halves: whether to cut those with two rows or more.
            own: (k,) those of this process; all of them where it is alone.
            before: (k,) those of the processes before this one.
            shared: (k,) whose segments stand in the middle.
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

    def layout(self, first_row: int, end_row: int, n_tokens: int) -> Layout:
        """Describe the rows [first_row, end_row) of the ordered batch as a microbatch of its own."""
        ends = np.cumsum(self.n_rows)
        inside = np.minimum(ends, end_row) - np.maximum(ends - self.n_rows, first_row)  # (s,) ≤ 0: none
        runs: list[Run] = []
        row = 0
        for segment, rows in enumerate(inside.tolist()):
            if rows <= 0:
                continue
            if runs and runs[-1].rows_each == rows:
                runs[-1] = Run(runs[-1].first_row, runs[-1].first_segment, runs[-1].n_segments + 1, rows)
            else:
                runs.append(Run(row, segment, 1, rows))
            row += rows
        return Layout(runs=tuple(runs), n_segments=len(self.n_rows), n_tokens=n_tokens)


Slab = Callable[..., None]
"""add(out, columns, overwrite=...): add a slice (s, rows, columns) of the per-segment gradients to `out`."""


class Piece(Protocol):
    """One use of a parameter in one microbatch; the parameter is seen as a matrix (n, d)."""

    @property
    def is_whole(self) -> bool:
        """Whether the piece gives every entry of every segment's gradient, so that it may overwrite."""

    def slab(self, rows: slice) -> Slab:
        """Prepare some of the n rows of the gradient; what comes out forms them, a few columns at a time."""


@dataclass(frozen=True)
class Product:
    """A linear map's gradient, leftᵀ right: output gradients (N, n) and inputs (N, d)."""

    left: torch.Tensor
    right: torch.Tensor
    layout: Layout

    @property
    def is_whole(self) -> bool:
        """See `Piece`."""
        return self.layout.is_whole

    def slab(self, rows: slice) -> Slab:
        """See `Piece`."""
        return partial(self.layout.outer, self.left[:, rows], self.right)


@dataclass(frozen=True)
class LogitProduct:
    """The head's gradient with its left factor, softmax minus one-hot, made anew for each slice of the vocabulary.

    It holds N·d numbers in place of N·V, for one more product with the head's weight.
    """

    hidden: torch.Tensor  # (N, d)
    weight: torch.Tensor  # (V, d)
    log_norm: torch.Tensor  # (N,) log-sum-exp of the logits
    targets: torch.Tensor  # (N,)
    layout: Layout

    @property
    def is_whole(self) -> bool:
        """See `Piece`."""
        return self.layout.is_whole

    def slab(self, rows: slice) -> Slab:
        """See `Piece`."""
        logits = functional.linear(self.hidden, self.weight[rows])
        left = logits.to(working_dtype(logits.dtype)).sub_(self.log_norm[:, None]).exp_()
        here = ((self.targets >= rows.start) & (self.targets < rows.stop)).nonzero().squeeze(1)
        left[here, self.targets[here] - rows.start] -= 1
        return partial(self.layout.outer, left.to(self.hidden.dtype), self.hidden)


@dataclass(frozen=True)
class Lookup:
    """An embedding's gradient: output gradients that belong to rows of the table, sorted by row."""

    tokens: torch.Tensor  # (N,) ascending
    segments: torch.Tensor  # (N,)
    grads: torch.Tensor  # (N, d)
    is_whole = False

    @classmethod
    def of(cls, tokens: torch.Tensor, grads: torch.Tensor, layout: Layout) -> Lookup:
        """Sort what arrived row by row of the batch."""
        segments = layout.per_row(tokens.device).repeat_interleave(len(tokens) // layout.n_rows)
        tokens, order = torch.sort(tokens, stable=True)
        return cls(tokens, segments[order], grads[order])

    def slab(self, rows: slice) -> Slab:
        """See `Piece`."""
        bounds = torch.tensor([rows.start, rows.stop], device=self.tokens.device)
        start, stop = torch.searchsorted(self.tokens, bounds).tolist()
        index = self.segments[start:stop] * (rows.stop - rows.start) + self.tokens[start:stop] - rows.start
        grads = self.grads[start:stop]

        def add(out: torch.Tensor, columns: slice, *, overwrite: bool) -> None:
            out.view(-1, out.shape[-1]).index_add_(0, index, grads[:, columns].to(out.dtype))

        return add


@dataclass(frozen=True)
class Dense:
    """Per-segment gradients that are there already, (s, n, d): biases, norm gains, the exact slower path."""

    grads: torch.Tensor
    is_whole = False

    def slab(self, rows: slice) -> Slab:
        """See `Piece`."""

        def add(out: torch.Tensor, columns: slice, *, overwrite: bool) -> None:
            out.add_(self.grads[:, rows, columns])

        return add
