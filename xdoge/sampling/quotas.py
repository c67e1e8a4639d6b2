"""The number of the first t positions that belong to each source, in closed form and exact in integers.

A binary tree splits the sources into halves of similar weight. A node receives `total` positions, and passes `left` of
them to its left child. Of its first t positions, L(t) = ⌊(t · left + ⌊total / 2⌋) / total⌋ go left. L rises by 0 or 1
with each position. So no count is negative, the counts sum to t, and at the end they are the quotas. The error of a
child is at most ½ plus a fraction of its parent's error. This fraction is at most ⅔ unless the child is a leaf, so
every error is below 2 positions (docs/explanation/method.md, "The sampler").
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xdoge.sampling.permutation import Permutations, Words, mix

Counts = NDArray[np.int64]

CHUNK = 8192
"""Positions that are computed at once. Arrays of this length fit into the cache of a core."""

MOST = 1 << 56
"""Plans have fewer positions than this.

`Quotas.before` corrects a floating-point estimate. Below this limit the estimate is off by less than 32, so the
remainder fits into 64 bits.
"""


class _Level(NamedTuple):
    """The m inner nodes of one depth. Their children are numbered from `first`, all left ones before the right ones."""

    nodes: NDArray[np.intp]  # (m,)
    first: int
    left: Counts  # (m, 1)
    total: Counts  # (m, 1)
    ratio: NDArray[np.float64]  # (m, 1)


class Quotas:
    """Counts of k sources in the first t positions, for any t.

    Args:
        counts: (k,) total positions of each source, >= 0.

    Raises:
        ValueError: there are 2^56 positions or more.
    """

    def __init__(self, counts: Sequence[int]) -> None:
        self.counts = tuple(counts)
        self.total = sum(self.counts)
        if self.total >= MOST:
            raise ValueError(f"{self.total} positions are more than 2^56")
        order = sorted((i for i, count in enumerate(counts) if count), key=lambda i: (-counts[i], i))
        sums = [0, *itertools.accumulate(counts[i] for i in order)]
        self._levels: list[_Level] = []
        leaves: dict[int, int] = {}  # source: node
        here, size = [(0, len(order))], 1
        first = 0
        while here:
            inner = []
            for node, (low, high) in enumerate(here, start=first):
                if high - low == 1:
                    leaves[order[low]] = node
                elif high > low:
                    inner.append((node, low, _cut(sums, low, high), high))
            self._add_level(inner, size, sums)
            here = [(low, cut) for _, low, cut, _ in inner] + [(cut, high) for _, _, cut, high in inner]
            first, size = size, size + len(here)
        self._size = size
        self._sources = np.array(list(leaves), dtype=np.intp)
        self._leaves = np.array(list(leaves.values()), dtype=np.intp)

    def _add_level(self, inner: list[tuple[int, int, int, int]], first: int, sums: list[int]) -> None:
        if inner:
            left = np.array([[sums[cut] - sums[low]] for _, low, cut, _ in inner], dtype=np.int64)
            total = np.array([[sums[high] - sums[low]] for _, low, _, high in inner], dtype=np.int64)
            nodes = np.array([node for node, *_ in inner], dtype=np.intp)
            self._levels.append(_Level(nodes, first, left, total, left / total))

    def before(self, positions: Counts) -> Counts:
        """Return each source's count in the first t positions: (k, n) for (n,) values of t in [0, total]."""
        value = np.empty((self._size, positions.size), dtype=np.int64)
        value[0] = positions
        for nodes, first, left, total, ratio in self._levels:
            here = value[nodes]  # (m, n)
            share = (here * ratio).astype(np.int64)  # floating-point estimate
            # remainder of the estimate: the products wrap round at 2^64, but their difference is right
            rest = here * left + (total >> 1) - share * total
            share += rest // total
            m = len(nodes)
            value[first : first + m] = share
            np.subtract(here, share, out=value[first + m : first + 2 * m])
        out = np.zeros((len(self.counts), positions.size), dtype=np.int64)
        out[self._sources] = value[self._leaves]
        return out


def _cut(sums: list[int], low: int, high: int) -> int:
    """Return the index that splits [low, high) into two non-empty parts whose sums are as equal as possible."""
    twice = sums[low] + sums[high]
    cut = bisect.bisect_left(sums, (twice + 1) // 2, low + 1, high - 1)
    if cut > low + 1 and twice - 2 * sums[cut - 1] <= 2 * sums[cut] - twice:
        return cut - 1
    return cut


@dataclass(frozen=True)
class Stage:
    """A range of positions with one set of quotas, divided into blocks.

    At the end of each block, the counts are those of the quotas. Within a block, a keyed permutation gives the order,
    except that a source finishes an epoch before it starts the next.

    Attributes:
        start: first position.
        stop: position after the last one.
        quotas: quotas of the k sources.
        carried: (k,) sequences of each source that were read before this stage.
        sizes: (k,) sequences of each source.
        block: positions of a block. The last block may be shorter.
        key: (1,) key of the order within blocks.
    """

    start: int
    stop: int
    quotas: Quotas
    carried: Counts
    sizes: Counts
    block: int
    key: Words
    _last: int = field(init=False)
    _slots: Permutations = field(init=False)

    def __post_init__(self) -> None:
        """Compute the number of the last block, and permutations for full blocks and for the last one."""
        last = (self.quotas.total - 1) // self.block
        widths = self.block, self.quotas.total - last * self.block
        object.__setattr__(self, "_last", last)
        object.__setattr__(self, "_slots", Permutations(widths))

    def read_before(self, position: int) -> tuple[Counts, int]:
        """Return the sequences of each source read before the block of `position`, (k,), and the block's start."""
        offset = position - self.start
        within = offset % self.block if offset < self.quotas.total else 0
        read: Counts = self.carried + self.quotas.before(np.array([offset - within]))[:, 0]
        return read, position - within

    def locate(self, positions: Counts) -> tuple[Counts, Counts]:
        """Return the source at each position, and how many draws of that source came before it: (n,) each."""
        k = len(self.quotas.counts)
        offset = positions - self.start
        block = offset // self.block
        slot = offset - block * self.block
        blocks, which = _distinct(block)  # (b,), (n,)
        before, after = self._edges(blocks)  # (b, k) each
        read, quota = before.ravel(), (after - before).ravel()
        ends = np.cumsum(quota)
        starts = ends - quota  # start of each source's slots, block after block
        begins = starts[::k]
        keys = mix(self.key, self.start + blocks * self.block)
        last = (blocks == self._last).astype(np.intp)
        width = last[which] if last.any() else 0
        at = begins[which] + self._slots(slot.view(np.uint64), width, keys[which])
        if at.size * 16 < self.block * blocks.size:  # few positions in large blocks
            group = np.searchsorted(ends, at, side="right")
        else:
            group = np.repeat(np.arange(quota.size), quota)[at]
        nth = at - starts[group]
        sizes = np.tile(self.sizes, blocks.size)
        ending = quota > sizes - read % sizes  # an epoch of the source ends inside the block
        if ending.any() and (affected := np.flatnonzero(ending[group])).size:
            groups, where = np.unique(group[affected], return_inverse=True)
            counts = quota[groups]
            first = np.cumsum(counts) - counts
            owner = np.repeat(np.arange(groups.size), counts)
            slots = (starts - np.repeat(begins, k))[groups][owner] + np.arange(owner.size) - first[owner]
            number = groups[owner] // k  # of the block
            places = self._slots(slots.view(np.uint64), last[number], keys[number], inverse=True)  # of each slot
            order = np.empty(owner.size, dtype=np.int64)
            order[np.lexsort((places, owner))] = np.arange(owner.size)
            nth[affected] = (order - first[owner])[first[where] + nth[affected]]
        return group % k, read[group] + nth

    def _edges(self, blocks: Counts) -> tuple[Counts, Counts]:
        """Return the sequences of each source read before and after each block, including `carried`: (b, k) each."""
        followed = blocks.size > 0 and int(blocks[-1] - blocks[0]) < blocks.size  # consecutive blocks share edges
        edges = np.append(blocks, blocks[-1] + 1) if followed else np.concatenate([blocks, blocks + 1])
        read = self.carried + self.quotas.before(np.minimum(edges * self.block, self.quotas.total)).T
        return read[: blocks.size], read[edges.size - blocks.size :]


def _distinct(blocks: Counts) -> tuple[Counts, NDArray[np.intp]]:
    """Return ascending block numbers, (b,), and for each entry the index of its number, (n,). b is at most n.

    If the numbers are dense, this avoids the sort of `np.unique`. The result then includes numbers in between.
    """
    if blocks.size and int(blocks.max()) - int(blocks.min()) < blocks.size:
        low = int(blocks.min())
        return np.arange(low, int(blocks.max()) + 1), blocks - low
    return np.unique(blocks, return_inverse=True)
