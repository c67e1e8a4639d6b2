"""Sources that lie on several processes: their gradients are summed from each process to the next.

A source too large for one process goes on in the next one, and so on, so a process shares at most two sources: its
*head*, which goes on from the one before, and its *tail*, which goes on in the one after (they may be the same). Of
each slice of a parameter a process takes what the one before has of its head, adds its own, and either hands it on or,
where the source ends, has all of it and takes its products. So it sends the slices of one source at most, the rows of
its two halves, however many processes there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from xdoge.distributed import Processes
from xdoge.fit.gradients.placement import Placement
from xdoge.fit.gradients.segments import Segments


@dataclass(frozen=True)
class Link:
    """One source that a process shares with a neighbour.

    Args:
        source: its number.
        n_rows: 2 where it is cut into halves, else 1.
        segments: this process's segments of it.
        halves: which half each of them is, 0 or 1.
    """

    source: int
    n_rows: int
    segments: torch.Tensor
    halves: torch.Tensor

    def add(self, grads: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Add this process's gradients of the halves to `out`, (n_rows, n)."""
        return out.index_add_(0, self.halves, grads[self.segments])


@dataclass
class Slice:
    """What of one slice is under way from the process before and to the one after."""

    number: int
    partial: torch.Tensor | None = None
    arriving: Any = None
    leaving: Any = None
    held: torch.Tensor | None = None  # what leaves, kept alive until it has left


class Chain:
    """The head and the tail of one process."""

    def __init__(
        self, placement: Placement, segments: Segments, processes: Processes, *, halves: bool, device: torch.device
    ) -> None:
        self.processes, self.device = processes, device
        counts, own, before = placement.counts, placement.rows[processes.rank], placement.before(processes.rank)
        k, shared = len(counts), segments.shared

        def link(sources: np.ndarray) -> Link | None:
            if not len(sources):
                return None
            (j,) = sources.tolist()
            mine = [i for i in range(shared.start, shared.stop) if segments.slots[i] % k == j]
            where = [int(segments.slots[i] // k) for i in mine]
            n_rows = 2 if halves and counts[j] > 1 else 1
            return Link(j, n_rows, torch.tensor(mine, device=device), torch.tensor(where, device=device))

        self.head = link(np.flatnonzero((own > 0) & (before > 0)))
        self.tail = link(np.flatnonzero((own > 0) & (before + own < counts)))
        self.spans = self.head is not None and self.tail is not None and self.head.source == self.tail.source
        self.products = torch.zeros(
            3, dtype=torch.float64, device=device
        )  # |A|², |B|², ⟨A, B⟩ of a head that ends here

    def begin(self, grads: torch.Tensor, number: int) -> Slice:
        """Ask for the slice of the head, and send that of a tail that begins here."""
        found, rank = Slice(number), self.processes.rank
        if self.head is not None:
            found.partial = grads.new_empty(self.head.n_rows, grads.shape[1])
            found.arriving = self.processes.receive_async(found.partial, rank - 1, number)
        if self.tail is not None and not self.spans:
            found.held = self.tail.add(grads, grads.new_zeros(self.tail.n_rows, grads.shape[1]))
            found.leaving = self.processes.send_async(found.held, rank + 1, number)
        return found

    def end(self, found: Slice, grads: torch.Tensor) -> None:
        """Add to the slice of the head what is here of it; hand it on, or take its products."""
        if self.head is not None:
            assert found.partial is not None
            self.processes.wait(found.arriving)
            whole = self.head.add(grads, found.partial)
            if self.spans:
                found.held = whole
                found.leaving = self.processes.send_async(whole, self.processes.rank + 1, found.number)
            else:
                gram = (whole @ whole.T).double()
                self.products[: len(whole)] += gram.diagonal()
                self.products[2] += gram[0, -1]
        if found.leaving is not None:
            self.processes.wait(found.leaving)

    def add_to(self, own: np.ndarray) -> None:
        """Put the products of a head that ends here into those of all slots, (2k, 2k)."""
        if self.head is None or self.spans:
            return
        j, k = self.head.source, len(own) // 2
        first, second, both = self.products.tolist()
        own[j, j] = first
        if self.head.n_rows == 2:
            own[j + k, j + k], own[j, j + k], own[j + k, j] = second, both, both
