"""Sources whose tokens stay in the files that another tool wrote. The files are checked once and never copied."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from xdoge.corpus import megatron
from xdoge.corpus.readers.files import reading
from xdoge.corpus.readers.inputs import Input, hashed, relative
from xdoge.corpus.remote import local
from xdoge.corpus.spec import Source
from xdoge.corpus.token_files import Ids, Index, find_documents, open_ids
from xdoge.corpus.token_paths import is_side
from xdoge.corpus.tokenizer import PART_OF_LETTER, UNKNOWN_LETTER, Tokenizer
from xdoge.errors import XDogeError
from xdoge.io import refuse_pointer, replacing, sha256_file

CHUNK = 1 << 24
"""Bytes of a file that are read at once, a multiple of the size of every id type."""
LEAST_WIDE = 8
"""Minimum number of ids for the check whether every second id is 0. In a shorter file that can be chance."""
DECODED = 20_000_000
"""Training tokens per source that are decoded to estimate the bytes of text per token."""
DECODED_AT_ONCE = 64
"""Documents that are decoded at once. SentencePiece is three times as fast as with one at a time."""


def scan(file: Path, tokenizer: Tokenizer, *, name: str, dtype: str | None = None) -> Input:
    """Return the hash and size of a file of ids or bounds, after checking in one pass that the ids fit the tokenizer.

    Raises:
        XDogeError: the file is damaged, does not match its index file, or has no tokens. Or an id is outside the
            vocabulary, a document does not end with the tokenizer's end-of-document token, or the ids seem to have
            another type.
    """
    with reading(file):
        refuse_pointer(file)
        return hashed(file, name=name) if is_side(file) else _scan(file, tokenizer, name, dtype)


def _open(file: Path, tokenizer: Tokenizer, dtype: str | None) -> Ids:
    if file.suffix == ".bin" and file.with_suffix(".idx").is_file():
        index = megatron.read_index(file)
        return Ids(file, index.dtype, 0, int(index.bounds[-1]), index.bounds)
    return open_ids(file, tokenizer.vocab_size, dtype)


def _scan(file: Path, tokenizer: Tokenizer, name: str, dtype: str | None) -> Input:
    stat, digest = file.stat(), hashlib.sha256()  # before reading, so that a later change has a later time
    where = _open(file, tokenizer, dtype)
    ends = where.bounds[1:] - 1 if where.bounds is not None else None
    if where.stop == where.begin or (ends is not None and not len(ends)):
        raise XDogeError(f"{file} is empty.")
    done, last, wide = 0, 0, where.stop >= LEAST_WIDE
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
            ids = np.frombuffer(chunk, where.dtype, len(chunk) // where.dtype.itemsize)
            _refuse_foreign(ids[max(0, where.begin - done) :], tokenizer, where)
            wide = wide and not ids[1::2].any()
            if ends is None:
                last += int((ids[max(0, where.begin - done) :] == tokenizer.end_of_document).sum())
            else:
                here = ends[last : np.searchsorted(ends, done + len(ids))]
                wrong = np.flatnonzero(ids[here - done] != tokenizer.end_of_document)
                if len(wrong):
                    raise XDogeError(
                        f"{file}: document {last + int(wrong[0]):,} ends with token {ids[here[wrong[0]] - done]}, not "
                        f"with the tokenizer's end-of-document token, {tokenizer.end_of_document}; use a data set "
                        "written with --append-eod or an eos_token, and the tokenizer that made it."
                    )
                last += len(here)
            done += len(ids)
    if where.guessed and wide:
        raise XDogeError(
            f"{file} was read as {where.dtype.name}, but every second id is 0, so its ids are wider; set "
            f"dtype: uint{16 * where.dtype.itemsize}."
        )
    if not last:
        raise XDogeError(
            f"{file} has no end-of-document token, {tokenizer.end_of_document}; name the tokenizer that "
            "made it." + _advice(where)
        )
    return Input(name, last, stat.st_size, stat.st_mtime_ns, digest.hexdigest())


def _refuse_foreign(ids: npt.NDArray[Any], tokenizer: Tokenizer, where: Ids) -> None:
    for token in (int(ids.min()), int(ids.max())) if len(ids) else ():
        if not 0 <= token < tokenizer.vocab_size:
            raise XDogeError(
                f"{where.file} holds the token id {token:,}, and the ids of the tokenizer are 0 to "
                f"{tokenizer.vocab_size - 1:,}; name the tokenizer that made the data set.{_advice(where)}"
            )


def _advice(where: Ids) -> str:
    return f" Set dtype: if its ids are not {where.dtype.name}." if where.guessed else ""


def _index(file: Path, tokenizer: Tokenizer, dtype: str | None) -> Index:
    return find_documents(_open(file, tokenizer, dtype), tokenizer.end_of_document)


# --- their entries in store.json -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Piece:
    """Documents [first, stop) of one file of tokens."""

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
        """Return the documents up to the one with which the number of tokens reaches `tokens`."""
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
    """Write the document bounds of each split into the store, and return the splits' entries for store.json.

    The documents at the end of each file are held out, as Megatron's own --split does. The tokens of a split are then
    contiguous and need no copy.

    Args:
        source: source whose files stay where they are.
        out: folder of the store.
        inputs: result of `scan` for each file.
        files: path inside the store for the bounds of each split.
        fraction: fraction of the documents to hold out. It is 0 if the source has validation files.
        tokenizer: tokenizer that made the tokens.

    Raises:
        XDogeError: no training document is left.
    """
    indices, held_out = (
        [_index(local(file), tokenizer, source.spec.dtype) for file in part if not is_side(file.name)]
        for part in (source.files, source.validation)
    )
    pieces = dict(zip(files, _splits(source, indices, held_out, fraction), strict=True))
    left_out = {"train": indices, "validation": held_out}
    if not any(piece.tokens for piece in pieces["train"]):
        raise XDogeError(
            f"{source.field('train')}: no document to train on: every document was assigned to validation."
        )
    files_of = source.spec.megatron or source.spec.tokens
    named = {"train": files_of, "validation": source.spec.validation or files_of}
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
            "left_out": sum(index.left_out for index in left_out[split]),
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


def _splits(
    source: Source, indices: Sequence[Index], validation: Sequence[Index], fraction: float
) -> tuple[list[_Piece], list[_Piece]]:
    counts = [len(index.bounds) - 1 for index in indices]
    # Round cumulative counts: with many small files, rounding each file by itself could hold out nothing at all.
    kept = np.diff(np.rint((1 - fraction) * np.cumsum([0, *counts]))).astype(int).tolist()
    train = [_Piece(index, 0, stop) for index, stop in zip(indices, kept, strict=True)]
    held_out = [_Piece(index, stop, count) for index, stop, count in zip(indices, kept, counts, strict=True)]
    held_out += [_Piece(index, 0, len(index.bounds) - 1) for index in validation]
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
    """Return statistics of the decoded text for store.json. About `most` tokens of evenly spaced documents are decoded.

    `n_bytes` are the bytes of the text, extrapolated to all documents. `decoded` is the number of tokens that were
    decoded. `unknown` and `single_bytes` are numbers of tokens, extrapolated too. `begin` is a special token with which
    all documents begin, or None. `end_twice` says whether all documents end with two end-of-document tokens.
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
