"""Encode blocks of text as tokens. `prepare` runs this in several threads."""

from __future__ import annotations

import hashlib
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xdoge.corpus.readers.blocks import Block, TokenBlock, document_texts
from xdoge.corpus.readers.columns import Columns
from xdoge.corpus.tokenizer import Tokenizer

WHITE_SPACE = string.whitespace.encode()
"""ASCII white space. `bytes.translate` removes it at 1.7 GB/s here; `str.split` and `join` take 40 times as long."""


@dataclass(frozen=True)
class Encoded:
    """D documents of some blocks, encoded as tokens.

    Attributes:
        tokens: (tokens,) all documents, one after the other.
        lengths: (D,) tokens of each document.
        n_bytes: (D,) UTF-8 bytes of each document.
        hashes: (D,) 64-bit hash of each document's text. If none are held out by it, white space does not count, as in
            `hashes_of`.
        held_out: (D,) whether each document is for validation.
        rows: number of rows in the blocks, including empty ones.
    """

    tokens: npt.NDArray[Any]
    lengths: npt.NDArray[np.int64]
    n_bytes: npt.NDArray[np.int64]
    hashes: npt.NDArray[np.uint64]
    held_out: npt.NDArray[np.bool_]
    rows: int

    def train_tokens(self) -> int:
        """Return the number of training tokens."""
        return int(self.lengths[~self.held_out].sum())

    def until(self, tokens: int) -> Encoded:
        """Return the documents up to the one with which the number of training tokens reaches `tokens`."""
        sums = np.cumsum(np.where(self.held_out, 0, self.lengths))  # (D,)
        count = int(np.searchsorted(sums, tokens)) + 1
        if count >= len(self.lengths):
            return self
        end = int(self.lengths[:count].sum())
        first = slice(count)
        hashes, held_out = self.hashes[first], self.held_out[first]
        return Encoded(self.tokens[:end], self.lengths[first], self.n_bytes[first], hashes, held_out, self.rows)


def encode(tokenizer: Tokenizer, blocks: Sequence[Block | TokenBlock], columns: Columns, fraction: float) -> Encoded:
    """Return the documents of blocks as tokens. Some are held out for validation, selected by the hash of their text.

    Rows that are null, empty or only white space are skipped.

    Args:
        tokenizer: tokenizer that encodes the text.
        blocks: blocks of text, or a single block of tokens.
        columns: columns of the text.
        fraction: fraction of the documents to hold out.

    Raises:
        XDogeError: a row is damaged, or its value is not text.
    """
    if isinstance(blocks[0], TokenBlock):
        return _encode_tokens(tokenizer, blocks[0], fraction)
    rows = document_texts([block for block in blocks if isinstance(block, Block)], columns)
    texts = [text for text in rows if _is_document(text)]
    tokens, lengths = tokenizer.encode(texts)
    documents = [text.encode("utf-8") for text in texts]
    n_bytes = np.fromiter(map(len, documents), np.int64, count=len(texts))
    hashes = _hash(documents if fraction else map(_without_space, documents))
    return Encoded(tokens, lengths, n_bytes, hashes, hashes < np.uint64(fraction * 2**64), len(rows))


def _encode_tokens(tokenizer: Tokenizer, block: TokenBlock, fraction: float) -> Encoded:
    documents = block.documents()
    texts = tokenizer.decode([document[:-1].tolist() for document in documents])
    hashes = hashes_of(block, "")
    return Encoded(
        np.concatenate([*documents, block.tokens[:0]]).astype(tokenizer.dtype),
        np.fromiter(map(len, documents), np.int64, count=len(documents)),
        np.fromiter((len(text.encode("utf-8", "replace")) for text in texts), np.int64, count=len(documents)),
        hashes,
        hashes < np.uint64(fraction * 2**64),
        block.rows,
    )


def _is_document(text: str) -> bool:
    return bool(text) and not text.isspace()


def hashes_of(block: Block | TokenBlock, columns: Columns) -> npt.NDArray[np.uint64]:
    """Return the 64-bit hash of each document, (D,). Empty rows are skipped.

    White space does not count, so that a text with other line ends or indentation is recognised.
    """
    if isinstance(block, TokenBlock):
        return _hash(document.astype("<u4").tobytes() for document in block.documents())
    return _hash(_without_space(text.encode("utf-8")) for text in block.texts(columns) if _is_document(text))


def _without_space(document: bytes) -> bytes:
    return document.translate(None, WHITE_SPACE)


def _hash(documents: Iterable[bytes]) -> npt.NDArray[np.uint64]:
    digests = [hashlib.blake2b(document, digest_size=8).digest() for document in documents]
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)
