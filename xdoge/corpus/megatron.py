"""Read the index of Megatron-LM data sets, which gives the documents of a token file.

A data set consists of two files with the same prefix, PREFIX.bin and PREFIX.idx. The .bin contains only token ids. The
.idx, which is little-endian, divides them into sequences and documents:

    9 bytes "MMIDIDX", 0, 0    8 bytes version, 1    1 byte type of the ids
    8 bytes number of sequences, s    8 bytes d, number of documents + 1
    s x int32 tokens of each sequence    s x int64 offset of each sequence in the .bin, in bytes
    d x int64 first sequence of each document, from 0 to s

Most documents are one sequence. Documents that were split into sentences have several.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xdoge.corpus.token_files import Index, bounds_of
from xdoge.errors import XDogeError
from xdoge.io import refuse_pointer

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
"""Integer types by their code in the index. The codes 6 and 7 are floating-point types."""


def read_index(file: Path) -> Index:
    """Return the document bounds of a .bin from its .idx, after checking that the two files match.

    Raises:
        XDogeError: the .idx is of another kind or version, truncated or inconsistent. Or the .bin has another length
            than the .idx says.
    """
    idx = file.with_suffix(".idx")
    refuse_pointer(idx)
    with idx.open("rb") as stream:
        header = stream.read(HEADER.size)
    if not header.startswith(MAGIC):
        raise XDogeError(f"{idx} is not the index of a Megatron-LM data set: it does not begin with MMIDIDX.")
    if len(header) < HEADER.size:
        raise XDogeError(f"{idx} is cut: it has {len(header)} bytes, less than a header.")
    _, version, code, sequences, documents = HEADER.unpack(header)
    if version != 1:
        raise XDogeError(f"{idx} is of version {version:,}; only version 1, little-endian, can be read.")
    if code not in DTYPES:
        kind = {6: "float64", 7: "float32"}.get(code, f"the unknown type {code}")
        raise XDogeError(f"{idx} says that {file.name} holds {kind}; token ids are whole numbers.")
    size, expected = idx.stat().st_size, HEADER.size + 12 * sequences + 8 * documents
    if size == expected + sequences and sequences:
        raise XDogeError(f"{idx} belongs to a multimodal data set; only text data sets can be read.")
    if size != expected:
        raise XDogeError(
            f"{idx} has {size:,} bytes where {sequences:,} sequences and {documents:,} document bounds "
            f"take {expected:,}; it was cut or changed."
        )
    parts = (np.dtype("<i4"), sequences), (np.dtype("<i8"), sequences), (np.dtype("<i8"), documents)
    return _checked(file, idx, np.dtype(DTYPES[code]), *_arrays(idx, parts))


def _checked(
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
        raise XDogeError(f"{idx} does not list the sequences one after the other, as they lie in {file.name}.")
    if not len(begins) or (begins[0], begins[-1]) != (0, len(lengths)) or np.any(begins[1:] < begins[:-1]):
        raise XDogeError(f"{idx} is damaged: its documents do not cover all {len(lengths):,} sequences.")
    size, expected = file.stat().st_size, int(ends[-1]) * dtype.itemsize
    if size != expected:
        raise XDogeError(
            f"{file} has {size:,} bytes where {idx.name} says {expected:,}; one of them was cut, or belongs to "
            "another data set."
        )
    return Index(file, dtype, bounds_of(ends[begins]))


def _arrays(file: Path, parts: Sequence[tuple[np.dtype[Any], int]]) -> Iterator[npt.NDArray[Any]]:
    offset = HEADER.size
    for dtype, count in parts:
        yield np.memmap(file, dtype, "r", offset, (count,)) if count else np.empty(0, dtype)
        offset += count * dtype.itemsize
