"""Which rows of a step's batch each process runs.

A source whose rows all lie on one process needs no communication: that process forms its gradient alone and knows
|g_j|² and the product of its halves. The gradient of a source that is split must be summed over processes, slice by
slice. So sources stay whole while the processes have about equally much to do; a source that is too large is split.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]

SLACK = 1.1
"""How much more than the mean the busiest process may have to do before sources are split."""


@dataclass(frozen=True)
class Placement:
    """How many rows of each source each process runs. The rows of a source are in the order of the processes."""

    rows: NDArray[np.int64]  # (R, k)

    @property
    def counts(self) -> Counts:
        """The rows of each source in the whole batch, (k,)."""
        counts: Counts = self.rows.sum(0)
        return counts

    @property
    def split(self) -> NDArray[np.bool_]:
        """Which sources lie on more than one process, (k,)."""
        split: NDArray[np.bool_] = (self.rows > 0).sum(0) > 1
        return split

    def before(self, rank: int) -> Counts:
        """Return how many rows of each source lie on the processes before this one, (k,)."""
        counts: Counts = self.rows[:rank].sum(0)
        return counts


def place(counts: Counts, processes: int) -> Placement:
    """Spread a batch over processes: whole sources, the largest first, each to the process with the fewest rows so far.

    If a process then has more than `SLACK` times the mean, or no rows, all processes get equally many rows instead,
    give or take one. A source that does not fit continues in the next process.

    Args:
        counts: (k,) rows of each source; their sum is at least the number of processes.
        processes: R.
    """
    rows = np.zeros((processes, len(counts)), dtype=np.int64)
    order = sorted(np.flatnonzero(counts).tolist(), key=lambda j: -counts[j])
    loads = [(0, rank) for rank in range(processes)]
    for j in order:
        load, rank = heapq.heappop(loads)
        rows[rank, j] = counts[j]
        heapq.heappush(loads, (load + int(counts[j]), rank))
    sums = rows.sum(1)
    if sums.min() > 0 and sums.max() <= SLACK * sums.mean():
        return Placement(rows)
    ends = np.cumsum(counts[order])
    borders = np.arange(processes + 1) * ends[-1] // processes
    low = np.maximum(borders[:-1, None], (ends - counts[order])[None])
    high = np.minimum(borders[1:, None], ends[None])
    rows[:, order] = np.maximum(high - low, 0)
    return Placement(rows)
