"""Encode a block of text as tokens, the work that `prepare` spreads over threads."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xdoge.corpus.readers.files import Block
from xdoge.corpus.tokenizer import Tokenizer


@dataclass(frozen=True)
class Encoded:
    """A block's documents as tokens; D documents.

    Attributes:
        tokens: (tokens,) one document after the other.
        lengths: (D,) tokens of each.
        n_bytes: (D,) UTF-8 bytes of each.
        held_out: (D,) whether it is for validation.
        rows: rows the block had, empty ones too.
    """

    tokens: npt.NDArray[Any]
    lengths: npt.NDArray[np.int64]
    n_bytes: npt.NDArray[np.int64]
    held_out: npt.NDArray[np.bool_]
    rows: int

    def train_tokens(self) -> int:
        """Return how many of the tokens are for training."""
        return int(self.lengths[~self.held_out].sum())

    def until(self, tokens: int) -> Encoded:
        """Return the documents up to the first at which the training tokens reach `tokens`."""
        sums = np.cumsum(np.where(self.held_out, 0, self.lengths))  # (D,)
        count = int(np.searchsorted(sums, tokens)) + 1
        if count >= len(self.lengths):
            return self
        end = int(self.lengths[:count].sum())
        return Encoded(self.tokens[:end], self.lengths[:count], self.n_bytes[:count], self.held_out[:count], self.rows)


def encode(tokenizer: Tokenizer, block: Block, column: str, fraction: float) -> Encoded:
    """Return a block's documents as tokens, the share `fraction` of them held out by the hash of their text.

    Rows that are null, empty or white space are no documents.

    Raises:
        XDogeError: a row is damaged or its text is not text.
    """
    rows = block.texts(column)
    texts = [text for text in rows if text and not text.isspace()]
    encoded = [text.encode("utf-8") for text in texts]
    tokens, lengths = tokenizer.encode(texts)
    held_out = np.zeros(len(texts), dtype=bool)
    if fraction > 0:
        bound = int(fraction * 2**64)
        held_out[:] = [_hash(data) < bound for data in encoded]
    return Encoded(tokens, lengths, np.fromiter(map(len, encoded), np.int64, count=len(encoded)), held_out, len(rows))


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")
