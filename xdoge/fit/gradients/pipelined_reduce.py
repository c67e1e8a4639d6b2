"""A pipelined reduction: each process adds its gradient of a split source and passes the sum on to the next process.

A source that is too large for one process continues on the next one. So a process shares at most two sources: its
*head*, which continues from the process before, and its *tail*, which continues on the process after. They may be the
same source.

For each slice of a parameter, a process receives the partial sum of its head and adds its own gradient. If the source
ends here, the process computes the products of the sum. Otherwise it sends the sum on. So a process sends the slices of
at most one source (two rows, if the source has halves), whatever the number of processes.
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
class SharedSource:
    """A source that a process shares with a neighbour.

    Args:
        source: its number, from 0 to k - 1.
        n_rows: 2 if the source is cut into halves, else 1.
        segments: the numbers of this process's segments of the source.
        halves: for each of these segments the half that it belongs to, 0 or 1.
    """

    source: int
    n_rows: int
    segments: torch.Tensor
    halves: torch.Tensor

    def add(self, grads: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Add this process's gradients of the halves to `out`, (n_rows, n)."""
        return out.index_add_(0, self.halves, grads[self.segments])


@dataclass
class SliceMessages:
    """In-flight messages for one slice of a parameter."""

    number: int
    received: torch.Tensor | None = None  # buffer for the head's partial sum
    receiving: Any = None
    sent: torch.Tensor | None = None  # referenced here until it has been sent
    sending: Any = None


class PipelinedReduce:
    """The head and the tail of one process, with the products of a head that ends on this process."""

    def __init__(
        self, placement: Placement, segments: Segments, processes: Processes, *, halves: bool, device: torch.device
    ) -> None:
        self.processes, self.device = processes, device
        counts, own, before = placement.counts, placement.rows[processes.rank], placement.before(processes.rank)
        k, shared = len(counts), segments.shared

        def shared_source(sources: np.ndarray) -> SharedSource | None:
            if not len(sources):
                return None
            (j,) = sources.tolist()
            mine = [i for i in range(shared.start, shared.stop) if segments.slots[i] % k == j]
            halves_of_mine = torch.from_numpy(segments.slots[mine] // k).to(device)
            n_rows = 2 if halves and counts[j] > 1 else 1
            return SharedSource(j, n_rows, torch.tensor(mine, device=device), halves_of_mine)

        self.head = shared_source(np.flatnonzero((own > 0) & (before > 0)))
        self.tail = shared_source(np.flatnonzero((own > 0) & (before + own < counts)))
        self.continues = self.head is not None and self.tail is not None and self.head.source == self.tail.source
        # |A|², |B|², ⟨A, B⟩ of a head that ends here
        self.products = torch.zeros(3, dtype=torch.float64, device=device)

    def begin(self, grads: torch.Tensor, number: int) -> SliceMessages:
        """Start to receive the slice of the head, and to send the slice of a tail that begins here."""
        messages, rank = SliceMessages(number), self.processes.rank
        if self.head is not None:
            messages.received = grads.new_empty(self.head.n_rows, grads.shape[1])
            messages.receiving = self.processes.receive_async(messages.received, rank - 1, number)
        if self.tail is not None and not self.continues:
            messages.sent = self.tail.add(grads, grads.new_zeros(self.tail.n_rows, grads.shape[1]))
            messages.sending = self.processes.send_async(messages.sent, rank + 1, number)
        return messages

    def end(self, messages: SliceMessages, grads: torch.Tensor) -> None:
        """Add this process's gradient to the head's partial sum. Send the sum on, or compute its products."""
        if self.head is not None:
            assert messages.received is not None
            self.processes.wait(messages.receiving)
            total = self.head.add(grads, messages.received)
            if self.continues:
                messages.sent = total
                messages.sending = self.processes.send_async(total, self.processes.rank + 1, messages.number)
            else:
                gram = (total @ total.T).double()
                self.products[: len(total)] += gram.diagonal()
                self.products[2] += gram[0, -1]
        if messages.sending is not None:
            self.processes.wait(messages.sending)

    def add_to(self, own: np.ndarray) -> None:
        """Write the products of a head that ends here into `own`, the products of all slots, (2k, 2k)."""
        if self.head is None or self.continues:
            return
        j, k = self.head.source, len(own) // 2
        first, second, both = self.products.tolist()
        own[j, j] = first
        if self.head.n_rows == 2:
            own[j + k, j + k], own[j, j + k], own[j + k, j] = second, both, both
