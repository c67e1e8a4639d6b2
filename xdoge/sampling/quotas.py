"""How many of the first t positions belong to each source, in a closed form that is exact in integers.

A binary tree halves the sources by weight. Through a node pass `total` positions, and `left` of them go to its left
child. Of the first t positions, L(t) = ⌊(t · left + ⌊total / 2⌋) / total⌋ go left. L rises by 0 or 1 with each
position. So no count is negative, the counts sum to t, and at the end they are the quotas. The error of a child is at
most ½ plus a part of its parent's error. This part is at most ⅔ unless the child is a leaf, so every error stays below
2 positions (docs/method.md, "The sampler").
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
"""Positions worked on at once: their arrays stay in a core's cache."""

MOST = 1 << 56
"""Positions: up to here the remainder below fits 64 bits after the floating-point guess, which is off by under 32."""


class _Level(NamedTuple):
    """The m inner nodes of one depth; their children are numbered from `first`, the left ones before the right."""

    nodes: NDArray[np.intp]  # (m,)
    first: int
    left: Counts  # (m, 1)
    total: Counts  # (m, 1)
    ratio: NDArray[np.float64]  # (m, 1)


class Quotas:
    """Counts of k sources among the first t positions, for any t.

    Args:
        counts: (k,) positions of each source among all, >= 0.
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
        """Return how many of the first t positions are of each source, for each t: (k, n) for (n,) in [0, total]."""
        value = np.empty((self._size, positions.size), dtype=np.int64)
        value[0] = positions
        for nodes, first, left, total, ratio in self._levels:
            here = value[nodes]  # (m, n)
            share = (here * ratio).astype(np.int64)  # a guess
            # what the guess leaves over; products wrap round 2^64, the difference is right all the same
            rest = here * left + (total >> 1) - share * total
            share += rest // total
            m = len(nodes)
            value[first : first + m] = share
            np.subtract(here, share, out=value[first + m : first + 2 * m])
        out = np.zeros((len(self.counts), positions.size), dtype=np.int64)
        out[self._sources] = value[self._leaves]
        return out


def _cut(sums: list[int], low: int, high: int) -> int:
    """Return where to cut [low, high), both sides not empty, so that their sums are as equal as can be."""
    twice = sums[low] + sums[high]
    cut = bisect.bisect_left(sums, (twice + 1) // 2, low + 1, high - 1)
    if cut > low + 1 and twice - 2 * sums[cut - 1] <= 2 * sums[cut] - twice:
        return cut - 1
    return cut


@dataclass(frozen=True)
class Stage:
    """A stretch of positions that has one set of quotas, cut into blocks.

    Counts are those of the quotas at the ends of blocks; within a block a keyed permutation gives the order, except
    that a source ends an epoch before it begins the next.

    Attributes:
        start: position of the first.
        stop: position after the last.
        quotas: of the k sources.
        carried: (k,) sequences of each source that were read before.
        sizes: (k,) sequences that each source has.
        block: positions of a block; the last of the quotas may be shorter.
        key: (1,) of the order within blocks.
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
        """Derive the number of the last block and its width."""
        last = (self.quotas.total - 1) // self.block
        widths = self.block, self.quotas.total - last * self.block
        object.__setattr__(self, "_last", last)
        object.__setattr__(self, "_slots", Permutations(widths))

    def read_before(self, position: int) -> tuple[Counts, int]:
        """Return what is read of each source before the block of `position`, (k,), and where that block begins."""
        offset = position - self.start
        within = offset % self.block if offset < self.quotas.total else 0
        read: Counts = self.carried + self.quotas.before(np.array([offset - within]))[:, 0]
        return read, position - within

    def locate(self, positions: Counts) -> tuple[Counts, Counts]:
        """Return the source at each position, and which of its draws that is, from 0: (n,) each."""
        k = len(self.quotas.counts)
        offset = positions - self.start
        block = offset // self.block
        slot = offset - block * self.block
        blocks, which = _distinct(block)  # (b,), (n,)
        before, after = self._edges(blocks)  # (b, k) each
        read, quota = before.ravel(), (after - before).ravel()
        ends = np.cumsum(quota)
        starts = ends - quota  # where each source of each block begins, block after block
        begins = starts[::k]
        keys = mix(self.key, self.start + blocks * self.block)
        last = (blocks == self._last).astype(np.intp)
        width = last[which] if last.any() else 0
        at = begins[which] + self._slots(slot.view(np.uint64), width, keys[which])
        if at.size * 16 < self.block * blocks.size:  # few positions of large blocks
            group = np.searchsorted(ends, at, side="right")
        else:
            group = np.repeat(np.arange(quota.size), quota)[at]
        nth = at - starts[group]
        sizes = np.tile(self.sizes, blocks.size)
        ending = quota > sizes - read % sizes  # an epoch ends before the source's last draw in the block
        if ending.any() and (some := np.flatnonzero(ending[group])).size:
            groups, where = np.unique(group[some], return_inverse=True)
            counts = quota[groups]
            first = np.cumsum(counts) - counts
            of = np.repeat(np.arange(groups.size), counts)
            places = (starts - np.repeat(begins, k))[groups][of] + np.arange(of.size) - first[of]  # slots in the block
            mine = groups[of] // k
            came = self._slots(places.view(np.uint64), last[mine], keys[mine], inverse=True)  # the position of each
            order = np.empty(of.size, dtype=np.int64)
            order[np.lexsort((came, of))] = np.arange(of.size)
            nth[some] = (order - first[of])[first[where] + nth[some]]
        return group % k, read[group] + nth

    def _edges(self, blocks: Counts) -> tuple[Counts, Counts]:
        """Return what is read of each source, `carried` included, before and after each block: (b, k) each."""
        followed = blocks.size > 0 and int(blocks[-1] - blocks[0]) < blocks.size  # each begins where another ends
        edges = np.append(blocks, blocks[-1] + 1) if followed else np.concatenate([blocks, blocks + 1])
        read = self.carried + self.quotas.before(np.minimum(edges * self.block, self.quotas.total)).T
        return read[: blocks.size], read[edges.size - blocks.size :]


def _distinct(blocks: Counts) -> tuple[Counts, NDArray[np.intp]]:
    """Return block numbers in ascending order, no more than there are entries, and where that of each entry stands."""
    if blocks.size and int(blocks.max()) - int(blocks.min()) < blocks.size:
        low = int(blocks.min())
        return np.arange(low, int(blocks.max()) + 1), blocks - low
    return np.unique(blocks, return_inverse=True)
