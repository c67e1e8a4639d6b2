"""Megatron-LM data sets as sources. Their token files stay where they are; they are checked once and never copied.

A data set is two files with one prefix, PREFIX.bin and PREFIX.idx. The .bin is token ids and nothing else; the .idx,
little-endian throughout, says how to cut them:

    9 bytes "MMIDIDX", 0, 0    8 bytes version, 1    1 byte type of the ids
    8 bytes sequences, s       8 bytes d, documents + 1
    s x int32 tokens of each sequence    s x int64 where it begins in the .bin, in bytes
    d x int64 number of the sequence that each document begins with, from 0 to s

Most documents are one sequence; those that were split into sentences are several.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from xdoge.corpus.readers.files import reading
from xdoge.corpus.readers.inputs import Input, hashed, relative
from xdoge.corpus.remote import local
from xdoge.corpus.spec import Source
from xdoge.corpus.tokenizer import PART_OF_LETTER, UNKNOWN_LETTER, Tokenizer
from xdoge.errors import XDogeError
from xdoge.io import refuse_pointer, replacing, sha256_file

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
"""Types of ids by the number that stands for them; 6 and 7 are fractions."""
CHUNK = 1 << 24
"""Bytes of a .bin in memory at once; whole ids, whatever their type."""
DECODED = 20_000_000
"""Tokens of a source's training documents that are decoded to know how many bytes of text a token stands for."""
DECODED_AT_ONCE = 64
"""Documents; SentencePiece decodes three times as fast as one by one."""


@dataclass(frozen=True)
class Index:
    """What an .idx file says about its .bin.

    Attributes:
        file: the .bin.
        dtype: of the ids in it.
        bounds: (documents + 1,) where documents begin and the last one ends, in tokens; empty ones are left out.
    """

    file: Path
    dtype: np.dtype[Any]
    bounds: npt.NDArray[np.int64]

    @classmethod
    def read(cls, file: Path) -> Index:
        """Read the .idx beside a .bin, and check one against the other.

        Raises:
            XDogeError: the .idx is of another kind or version, cut, contradicts itself, or the .bin is not as long
                as it says.
        """
        idx = file.with_suffix(".idx")
        with idx.open("rb") as stream:
            header = stream.read(HEADER.size)
        if not header.startswith(MAGIC):
            raise XDogeError(f"{idx} is not the index of a Megatron-LM data set: it does not begin with MMIDIDX.")
        if len(header) < HEADER.size:
            raise XDogeError(f"{idx} is cut: it has {len(header)} bytes and not even a whole header.")
        _, version, code, sequences, documents = HEADER.unpack(header)
        if version != 1:
            raise XDogeError(f"{idx} is of version {version:,}; only version 1, little-endian, can be read.")
        if code not in DTYPES:
            kind = {6: "float64", 7: "float32"}.get(code, f"the unknown type {code}")
            raise XDogeError(f"{idx} says that {file.name} holds {kind}; token ids are whole numbers.")
        size, expected = idx.stat().st_size, HEADER.size + 12 * sequences + 8 * documents
        if size == expected + sequences and sequences:
            raise XDogeError(f"{idx} is of a multimodal data set; only data sets of text alone can be read.")
        if size != expected:
            raise XDogeError(
                f"{idx} has {size:,} bytes where {sequences:,} sequences and {documents:,} bounds of documents take "
                f"{expected:,}; it was cut or changed."
            )
        parts = (np.dtype("<i4"), sequences), (np.dtype("<i8"), sequences), (np.dtype("<i8"), documents)
        return cls._checked(file, idx, np.dtype(DTYPES[code]), *_arrays(idx, parts))

    @classmethod
    def _checked(
        cls,
        file: Path,
        idx: Path,
        dtype: np.dtype[Any],
        lengths: npt.NDArray[np.int32],
        pointers: npt.NDArray[np.int64],
        begins: npt.NDArray[np.int64],
    ) -> Index:
        ends = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, dtype=np.int64, out=ends[1:])
        if len(lengths) and int(lengths.min()) < 0:
            raise XDogeError(f"{idx} is damaged: a sequence has {int(lengths.min()):,} tokens.")
        if not np.array_equal(pointers, ends[:-1] * dtype.itemsize):
            raise XDogeError(f"{idx} does not say that the sequences lie one after the other in {file.name}.")
        if not len(begins) or (begins[0], begins[-1]) != (0, len(lengths)) or np.any(begins[1:] < begins[:-1]):
            raise XDogeError(
                f"{idx} is damaged: its documents do not go from the first of {len(lengths):,} sequences to the last."
            )
        size, expected = file.stat().st_size, int(ends[-1]) * dtype.itemsize
        if size != expected:
            raise XDogeError(
                f"{file} has {size:,} bytes where {idx.name} says {expected:,}; one of them was cut, or belongs to "
                "another data set."
            )
        bounds = ends[begins]
        return cls(file, dtype, np.concatenate([bounds[:1], bounds[1:][bounds[1:] > bounds[:-1]]]))


def _arrays(file: Path, parts: Sequence[tuple[np.dtype[Any], int]]) -> Iterator[npt.NDArray[Any]]:
    offset = HEADER.size
    for dtype, count in parts:
        yield np.memmap(file, dtype, "r", offset, (count,)) if count else np.empty(0, dtype)
        offset += count * dtype.itemsize


def scan(file: Path, tokenizer: Tokenizer, *, name: str) -> Input:
    """Hash a .bin or .idx, and check in one pass over a .bin that its ids fit the tokenizer.

    Raises:
        XDogeError: the two files do not fit, there is no token, an id is outside the vocabulary, or a document does
            not end with the tokenizer's end-of-document token.
    """
    with reading(file):
        refuse_pointer(file)
        return hashed(file, name=name) if file.suffix == ".idx" else _scan(file, tokenizer, name)


def _scan(file: Path, tokenizer: Tokenizer, name: str) -> Input:
    stat, digest = file.stat(), hashlib.sha256()  # before the bytes: a later change then shows in the time
    index = Index.read(file)
    ends, done, last = index.bounds[1:] - 1, 0, 0
    if not len(ends):
        raise XDogeError(f"{file} is empty.")
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
            ids = np.frombuffer(chunk, index.dtype, len(chunk) // index.dtype.itemsize)
            for token in (int(ids.min()), int(ids.max())):
                if not 0 <= token < tokenizer.vocab_size:
                    raise XDogeError(
                        f"{file} holds the token id {token:,}, and the ids of the tokenizer are 0 to "
                        f"{tokenizer.vocab_size - 1:,}; name the tokenizer that made the data set."
                    )
            here = ends[last : np.searchsorted(ends, done + len(ids))]
            wrong = np.flatnonzero(ids[here - done] != tokenizer.end_of_document)
            if len(wrong):
                raise XDogeError(
                    f"{file}: document {last + int(wrong[0]):,} ends with token {ids[here[wrong[0]] - done]}, not with "
                    f"the tokenizer's end-of-document token, {tokenizer.end_of_document}; use a data set written with "
                    "--append-eod, and the tokenizer that made it."
                )
            done, last = done + len(ids), last + len(here)
    return Input(name, len(ends), stat.st_size, stat.st_mtime_ns, digest.hexdigest())


# --- what a store says of them ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Piece:
    """Documents [first, stop) of one data set."""

    index: Index
    first: int
    stop: int

    @property
    def bounds(self) -> npt.NDArray[np.int64]:
        return self.index.bounds[self.first : self.stop + 1]

    @property
    def tokens(self) -> int:
        return int(self.bounds[-1] - self.bounds[0])

    def until(self, tokens: int) -> _Piece:
        """Return the documents up to the one that reaches `tokens`."""
        ends = self.bounds[1:] - self.bounds[0]
        return _Piece(self.index, self.first, min(self.stop, self.first + int(np.searchsorted(ends, tokens)) + 1))


def refer(
    source: Source,
    out: Path,
    *,
    inputs: Mapping[Path, Input],
    files: Mapping[str, str],
    fraction: float,
    tokenizer: Tokenizer,
) -> dict[str, dict[str, Any]]:
    """Write where the documents of each split end into the store, and return what store.json says of them.

    Held out are documents at the end of each data set, the share `fraction` of all, as Megatron's own --split does:
    the tokens of a split then lie together and need no copy.

    Args:
        source: with data sets as its files.
        out: folder of the store.
        inputs: what `scan` said of each file.
        files: where each split's bounds go, inside the store.
        fraction: of the documents to hold out; 0 with data sets for validation.
        tokenizer: the one that made the tokens.
    """
    pieces = dict(zip(files, _splits(source, fraction), strict=True))
    if not any(piece.tokens for piece in pieces["train"]):
        raise XDogeError(f"{source.field('train')}: no document to train on: every document fell to validation.")
    named = {"train": source.spec.megatron, "validation": source.spec.validation or source.spec.megatron}
    parts = {}
    for split, file in files.items():
        absolute = any(Path(pattern).is_absolute() for pattern in named[split] or ())
        tokens = sum(piece.tokens for piece in pieces[split])
        content = _content(pieces[split], tokenizer, DECODED if split == "train" else tokens)
        parts[split] = {
            **_write_bounds(out / file, pieces[split]),
            "file": file,
            "tokens": tokens,
            **content,
            "raw": [
                {
                    "file": str(piece.index.file.resolve()) if absolute else relative(piece.index.file, out),
                    "dtype": piece.index.dtype.name,
                    "size": inputs[piece.index.file].n_bytes,
                    "sha256": inputs[piece.index.file].sha256,
                    "begin": int(piece.bounds[0]),
                    "end": int(piece.bounds[-1]),
                }
                for piece in pieces[split]
                if piece.tokens
            ],
        }
    return parts


def _splits(source: Source, fraction: float) -> tuple[list[_Piece], list[_Piece]]:
    indices = [Index.read(local(file)) for file in source.files if file.name.endswith(".bin")]
    counts = [len(index.bounds) - 1 for index in indices]
    # rounded over all data sets, so that a share of many small ones is not rounded away in each
    kept = np.diff(np.rint((1 - fraction) * np.cumsum([0, *counts]))).astype(int).tolist()
    train = [_Piece(index, 0, stop) for index, stop in zip(indices, kept, strict=True)]
    held_out = [_Piece(index, stop, count) for index, stop, count in zip(indices, kept, counts, strict=True)]
    for file in source.validation:
        if file.name.endswith(".bin"):
            index = Index.read(local(file))
            held_out.append(_Piece(index, 0, len(index.bounds) - 1))
    if (left := source.spec.max_tokens) is not None:
        taken = []
        for piece in train:
            if left > 0:
                taken.append(piece.until(left))
                left -= taken[-1].tokens
        train = taken
    return train, held_out


def _write_bounds(path: Path, pieces: Sequence[_Piece]) -> dict[str, Any]:
    lengths = [np.diff(piece.bounds) for piece in pieces]
    bounds = np.cumsum(np.concatenate([np.zeros(1, np.int64), *lengths]))
    batch = pa.record_batch([pa.array(bounds)], names=["bounds"])
    with replacing(path) as file, pa.ipc.new_stream(pa.PythonFile(file, mode="w"), batch.schema) as writer:
        writer.write_batch(batch)
    return {"documents": len(bounds) - 1, "size": path.stat().st_size, "sha256": sha256_file(path)}


def _content(pieces: Sequence[_Piece], tokenizer: Tokenizer, most: int) -> dict[str, Any]:
    """Return what the decoded text says: about `most` tokens are decoded, of documents evenly apart.

    `n_bytes` are those of the text, `decoded` the tokens looked at, `begin` a special token that all documents
    begin with, `end_twice` whether all end with two end-of-document tokens, `unknown` and `single_bytes` are tokens.
    """
    tokens = sum(piece.tokens for piece in pieces)
    step = max(1, -(-tokens // max(1, most)))
    n_bytes = decoded = 0
    kinds, firsts, end_twice = np.zeros(3, dtype=np.int64), set(), tokens > 0
    for piece in pieces:
        ids = np.memmap(piece.index.file, piece.index.dtype, "r")
        begins, ends = piece.bounds[:-1:step], piece.bounds[1::step]
        decoded += int((ends - begins).sum())
        for at in range(0, len(begins), DECODED_AT_ONCE):
            chosen = slice(at, at + DECODED_AT_ONCE)
            documents = [
                ids[begin : end - 1].tolist()
                for begin, end in zip(begins[chosen].tolist(), ends[chosen].tolist(), strict=True)
            ]
            n_bytes += sum(len(text.encode("utf-8", "replace")) for text in tokenizer.decode(documents))
            kinds += np.bincount(tokenizer.letters[list(chain.from_iterable(documents))], minlength=3)
            firsts |= {document[0] if document else None for document in documents}
            end_twice = end_twice and all(document[-1:] == [tokenizer.end_of_document] for document in documents)
    first = firsts.pop() if len(firsts) == 1 else None
    scale = tokens / max(1, decoded)
    return {
        "n_bytes": round(n_bytes * scale),
        "decoded": decoded,
        "unknown": round(int(kinds[UNKNOWN_LETTER]) * scale),
        "single_bytes": round(int(kinds[PART_OF_LETTER]) * scale),
        "begin": first if first is not None and tokenizer.decode([[first]]) == [""] else None,
        "end_twice": end_twice,
    }
