"""Pseudo-random permutations of any size that are computed on demand instead of stored.

A Feistel network permutes the cells (left, right) of a table with a rows and 2^p columns, which is just large enough
for n items. Each round shifts one half by a keyed hash of the other half. That is a bijection for any hash function.
Fewer than 2^p cells are beyond n. If the network sends an item to one of them, it is applied again (cycle walking). The
item at any position of any epoch therefore takes constant time, and a permutation of 10^12 items needs only a key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Words = NDArray[np.uint64]

MULTIPLIERS = tuple(
    np.uint64(odd)
    for odd in (
        0x9E3779B97F4A7C15,
        0xBF58476D1CE4E5B9,
        0x94D049BB133111EB,
        0xD6E8FEB86659FD93,
        0xFF51AFD7ED558CCD,
        0xC4CEB9FE1A85EC53,
    )
)
"""Odd constants of splitmix64 and other well-known mixers, one per round.

Measured on a million items: after four rounds neighbouring pairs are distinguishable from random, after six they are
within the spread of NumPy's permutations.
"""

LEAST_COLUMN_BITS, LEAST_ROWS = 3, 8
"""Smallest table for 2 or more items. With fewer cells, some orders are far more frequent than others."""

_HALF = np.uint64(32)


def derive_key(*parts: int | str) -> int:
    """Return a 64-bit key: a hash of the parts and their order."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def mix(keys: Words, numbers: ArrayLike) -> Words:
    """Return a 64-bit key for each pair of key and number, after broadcasting.

    Keys of different numbers are statistically independent.

    Source: splitmix64, Steele, Lea and Flood 2014.
    """
    x = keys + np.asarray(numbers).astype(np.uint64) * MULTIPLIERS[0]
    x = (x ^ (x >> np.uint64(30))) * MULTIPLIERS[1]
    x = (x ^ (x >> np.uint64(27))) * MULTIPLIERS[2]
    mixed: Words = x ^ (x >> np.uint64(31))
    return mixed


def permute(positions: ArrayLike, n: int, key: int) -> NDArray[np.int64]:
    """Return the images of `positions` under the permutation of range(n) with this key, in the same shape.

    Args:
        positions: integers in [0, n), any shape.
        n: size of the permutation, from 1 to 2**62.
        key: 64-bit key. Each key gives an independent permutation.
    """
    x = np.atleast_1d(np.asarray(positions, dtype=np.uint64))
    return Permutations([n])(x.ravel(), 0, np.full(1, key, dtype=np.uint64)).reshape(np.shape(positions))


class Permutations:
    """Keyed permutations of k sizes, applied to many positions at once.

    Args:
        sizes: (k,) sizes from 1 to 2**62.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        few = [(0, 1) if n <= 1 else (LEAST_COLUMN_BITS, LEAST_ROWS) for n in sizes]
        bits = [max(least, (n - 1).bit_length() // 2) for n, (least, _) in zip(sizes, few, strict=True)]
        rows = [max(least, -(-n >> p)) for n, p, (_, least) in zip(sizes, bits, few, strict=True)]  # ⌈n / 2^p⌉
        self.sizes = np.array(sizes, dtype=np.uint64)
        self._rows = np.array(rows, dtype=np.uint64)  # a
        self._bits = np.array(bits, dtype=np.uint64)  # p
        self._masks = np.array([(1 << p) - 1 for p in bits], dtype=np.uint64)

    def __call__(
        self, x: Words, which: int | NDArray[np.intp], keys: Words, *, inverse: bool = False
    ) -> NDArray[np.int64]:
        """Return the image of each x, or its preimage if `inverse` is true: (n,) int64.

        Args:
            x: (n,) positions, each below its permutation's size.
            which: (n,) index of each position's size, or one index for all.
            keys: (n,) or (1,) uint64.
            inverse: apply the inverse permutation.
        """
        sizes, rows, bits, masks = (
            np.atleast_1d(table[which]) for table in (self.sizes, self._rows, self._bits, self._masks)
        )
        out = _scramble(x, rows, bits, masks, keys, inverse)
        beyond = np.flatnonzero(out >= sizes)
        while beyond.size:
            r, b, m, k = (part if part.size == 1 else part[beyond] for part in (rows, bits, masks, keys))
            moved = out[beyond] = _scramble(out[beyond], r, b, m, k, inverse)
            beyond = beyond[moved >= (sizes if sizes.size == 1 else sizes[beyond])]
        return out.view(np.int64)


def _scramble(x: Words, rows: Words, bits: Words, masks: Words, keys: Words, inverse: bool) -> Words:
    """Return x after the six rounds of the network, or of its inverse.

    The hash of a round is the upper half of the square of (half + key) · multiplier. All operations are in place,
    because allocating a temporary array costs more than the arithmetic.
    """
    left, right = x >> bits, x & masks
    h, t = np.empty_like(x), np.empty_like(x)
    rounds = list(enumerate(MULTIPLIERS))
    for number, multiplier in reversed(rounds) if inverse else rounds:
        np.add(left if number & 1 else right, keys, out=h)
        h *= multiplier
        h *= h
        h >>= _HALF
        if number & 1:
            h &= masks
            right ^= h
            continue
        h *= rows
        h >>= _HALF  # uniform in [0, a)
        if inverse:
            left -= h
            np.add(left, rows, out=t)
        else:
            left += h
            np.subtract(left, rows, out=t)
        np.minimum(left, t, out=left)  # in [0, a): the other of the two wrapped round and is huge
    left <<= bits
    left |= right
    return left
