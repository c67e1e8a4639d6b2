"""A random permutation of any size that is computed, not stored.

A Feistel network scrambles the pairs (left, right) of a rectangle a × b just large enough to hold n items: one
half is shifted by a keyed hash of the other, in turn, which is a bijection whatever the hash. The fewer than a
cells beyond n are walked over by applying the network again. So the item at any position of any epoch is known at
once, and a permutation of 10^12 items costs six keys.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

ROUNDS = 6
"""Neighbouring pairs of a million items are far from random after two rounds (chi-square 10,196, expected 226) and
within the spread of NumPy's permutations after four; six leave a margin (tests/test_shuffle.py)."""


def derive_key(*parts: int | str) -> bytes:
    """Return 48 key bytes that depend on every part and on their order."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=8 * ROUNDS).digest()


def permute(positions: ArrayLike, n: int, key: bytes) -> NDArray[np.int64]:
    """Return where the permutation of range(n) with this key sends each of `positions`.

    Args:
        positions: integers in [0, n), any shape.
        n: size of the permutation, from 1 to 2**62.
        key: from `derive_key`; another key is another, independent permutation.
    """
    shape = np.shape(positions)
    x = np.asarray(positions, dtype=np.uint64).reshape(-1)
    width = math.isqrt(n - 1) + 1  # a
    height = -(-n // width)  # b, with a·b - n < a cells to walk over
    a, b = np.uint64(width), np.uint64(height)
    keys = np.frombuffer(key, dtype="<u8")
    out = _scramble(x, a, b, keys)
    beyond = out >= n
    while np.any(beyond):
        out[beyond] = _scramble(out[beyond], a, b, keys)
        beyond = out >= n
    return out.astype(np.int64).reshape(shape)


def _scramble(x: NDArray[np.uint64], a: np.uint64, b: np.uint64, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    left, right = x // b, x % b  # in [0, a), [0, b)
    for even, odd in zip(keys[::2], keys[1::2], strict=True):
        left = (left + _hash(right ^ even) % a) % a
        right = (right + _hash(left ^ odd) % b) % b
    return left * b + right


def _hash(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix 64 bits so that each output bit depends on each input bit (the splitmix64 finaliser)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
