"""A pipelined reduction: gradients of sources that lie on several processes are summed from each process to the next.

A source that is too large for one process continues in the next one, and so on. So a process shares at most two
sources: its *head*, which continues from the process before, and its *tail*, which continues in the process after.
They may be the same source. For each slice of a parameter a process receives the partial sum of its head and adds its
own gradient. If the source ends here, the process takes the products of the sum; otherwise it sends the sum on. So a
process sends the slices of one source at most, the rows of its two halves, however many processes there are.
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
class SliceMessages:
    """The messages about one slice of a parameter that are under way."""

    number: int
    received: torch.Tensor | None = None  # where the head's partial sum arrives
    receiving: Any = None
    sent: torch.Tensor | None = None  # kept alive until it has been sent
    sending: Any = None


class PipelinedReduce:
    """The head and the tail of one process, and the products of a head that ends on it."""

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
        """Ask for the slice of the head, and send that of a tail that begins here."""
        messages, rank = SliceMessages(number), self.processes.rank
        if self.head is not None:
            messages.received = grads.new_empty(self.head.n_rows, grads.shape[1])
            messages.receiving = self.processes.receive_async(messages.received, rank - 1, number)
        if self.tail is not None and not self.continues:
            messages.sent = self.tail.add(grads, grads.new_zeros(self.tail.n_rows, grads.shape[1]))
            messages.sending = self.processes.send_async(messages.sent, rank + 1, number)
        return messages

    def end(self, messages: SliceMessages, grads: torch.Tensor) -> None:
        """Add this process's gradient to the head's partial sum; send the sum on, or take its products."""
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
        """Put the products of a head that ends here into those of all slots, (2k, 2k)."""
        if self.head is None or self.continues:
            return
        j, k = self.head.source, len(own) // 2
        first, second, both = self.products.tolist()
        own[j, j] = first
        if self.head.n_rows == 2:
            own[j + k, j + k], own[j, j + k], own[j + k, j] = second, both, both
