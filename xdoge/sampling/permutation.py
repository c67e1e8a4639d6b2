"""Random permutations of any size that are computed, not stored.

A Feistel network permutes the cells (left, right) of a table with a rows and 2^p columns, just large enough for n
items. Each round shifts one half by a keyed hash of the other half, which is a bijection whatever the hash. Fewer than
2^p cells lie beyond n; the network is applied again until it leaves them. So the item at any position of any epoch is
known at once, and a permutation of 10^12 items costs one key.
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
"""One round each: odd numbers without structure, those of splitmix64 and of known mixers. After four rounds
neighbouring pairs of a million items are measurably not random, after six they are within the spread of NumPy's."""

LEAST_COLUMN_BITS, LEAST_ROWS = 3, 8
"""Of the table for 2 items and more: on fewer cells the network makes some orders far more often than others."""

_HALF = np.uint64(32)


def derive_key(*parts: int | str) -> int:
    """Return a 64-bit key that depends on every part and on their order."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def mix(keys: Words, numbers: ArrayLike) -> Words:
    """Return a key for each number, any two of them unrelated (splitmix64: Steele, Lea, Flood 2014), in one shape."""
    x = keys + np.asarray(numbers).astype(np.uint64) * MULTIPLIERS[0]
    x = (x ^ (x >> np.uint64(30))) * MULTIPLIERS[1]
    x = (x ^ (x >> np.uint64(27))) * MULTIPLIERS[2]
    mixed: Words = x ^ (x >> np.uint64(31))
    return mixed


def permute(positions: ArrayLike, n: int, key: int) -> NDArray[np.int64]:
    """Return where the permutation of range(n) with this key sends each of `positions`.

    Args:
        positions: integers in [0, n), any shape.
        n: size of the permutation, from 1 to 2**62.
        key: 64 bits; another key is another, independent permutation.
    """
    x = np.atleast_1d(np.asarray(positions, dtype=np.uint64))
    return Permutations([n])(x.ravel(), 0, np.full(1, key, dtype=np.uint64)).reshape(np.shape(positions))


class Permutations:
    """Keyed permutations of several sizes, applied to many positions at once.

    Args:
        sizes: (k,) each from 1 to 2**62.
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
        """Return where each x goes, or with `inverse` where it came from: (n,).

        Args:
            x: (n,) positions, each below the size it belongs to.
            which: (n,) indices of the size of each, or one for all.
            keys: (n,) or (1,) uint64.
            inverse: undo the permutation.
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
    """Six rounds; the hash is the upper half of the square of (half + key) · multiplier.

    Every line works in place: at this size a temporary array costs more than its arithmetic.
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
        np.minimum(left, t, out=left)  # the one of both that did not wrap round to a huge number is in [0, a)
    left <<= bits
    left |= right
    return left
