"""Which rows of a step's batch each process runs.

A source whose rows are all on one process needs no communication. That process forms the source's gradient alone, with
|g_j|² and the product of its halves. The gradient of a source that is split must be summed over processes, slice by
slice. So sources stay whole as long as the processes have about equal work. A source that is too large is split.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]

SLACK = 1.1
"""Most rows of the busiest process, as a multiple of the mean, before sources are split."""


@dataclass(frozen=True)
class Placement:
    """How many rows of each source each process runs. The first process has the first rows of a source, and so on."""

    rows: NDArray[np.int64]  # (R, k) for R processes

    @property
    def counts(self) -> Counts:
        """The rows of each source in the whole batch, (k,)."""
        counts: Counts = self.rows.sum(0)
        return counts

    @property
    def split(self) -> NDArray[np.bool_]:
        """Which sources are on more than one process, (k,)."""
        split: NDArray[np.bool_] = (self.rows > 0).sum(0) > 1
        return split

    def before(self, rank: int) -> Counts:
        """Return how many rows of each source are on the processes before `rank`, (k,)."""
        counts: Counts = self.rows[:rank].sum(0)
        return counts


def place(counts: Counts, processes: int) -> Placement:
    """Return which rows of a batch each process runs.

    Sources stay whole. The largest comes first, and each goes to the process with the fewest rows so far. If a process
    then has no rows, or more than `SLACK` times the mean, the rows are split evenly instead, to within one row. A
    source that does not fit on a process then continues on the next.

    Args:
        counts: (k,) rows of each source; their sum is at least the number of processes.
        processes: R, the number of processes.
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
