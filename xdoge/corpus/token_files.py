"""Read files of consecutive token ids, as OLMo, datatrove and nanoGPT write them.

    .npy    OLMo-core, dolma: only ids. A header of NumPy is allowed too
    .ds     datatrove: ids. The .ds.index of the same name has the end of each document, in tokens, 8 bytes each
    .bin    nanoGPT: only ids. llm.c and modded-nanogpt: a header of 256 integers of 4 bytes, then ids

All are little-endian. If no index gives the ends of documents, they are found by the end-of-document token.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xdoge.errors import XDogeError
from xdoge.io import refuse_pointer

NUMPY = b"\x93NUMPY"
LLM_C: dict[tuple[int, int], np.dtype[Any]] = {(20240520, 1): np.dtype("<u2"), (20240801, 7): np.dtype("<u4")}
"""Type of the ids for each pair of magic number and version at the start of an llm.c header."""
LLM_C_HEADER = 256 * 4
"""Bytes of the header. Its third integer is the number of ids."""
AT_ONCE = 1 << 23
"""Ids that are searched for the end-of-document token at once."""


@dataclass(frozen=True)
class Index:
    """The documents of a file of ids.

    Attributes:
        file: path of the file.
        dtype: type of the ids.
        bounds: (documents + 1,) offsets where documents begin and the last one ends, in ids from the start of the file.
            Empty documents are left out.
        left_out: number of ids after the last document.
    """

    file: Path
    dtype: np.dtype[Any]
    bounds: npt.NDArray[np.int64]
    left_out: int = 0


@dataclass(frozen=True)
class Ids:
    """The location of the ids in a file. The ids themselves have not been read.

    Attributes:
        file: path of the file.
        dtype: type of the ids.
        begin: offset of the first id after a header, in ids.
        stop: offset after the last id.
        bounds: as in `Index`, None if documents are found by the end-of-document token.
        guessed: whether `dtype` is a guess, because nothing states it.
    """

    file: Path
    dtype: np.dtype[Any]
    begin: int
    stop: int
    bounds: npt.NDArray[np.int64] | None = None
    guessed: bool = False


def bounds_of(ends: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the sorted bounds `ends` without those of empty documents."""
    return np.concatenate([ends[:1], ends[1:][ends[1:] > ends[:-1]]])


def open_ids(file: Path, vocab_size: int, dtype: str | None) -> Ids:
    """Return the type and the location of the ids in a file.

    Args:
        file: path of a .npy, .ds or .bin.
        vocab_size: size of the tokenizer's vocabulary. If nothing states the type, it is the smallest one for these
            ids.
        dtype: type that corpus.yaml states, if any.

    Raises:
        XDogeError: the file does not contain ids, is not a whole number of them, or has a damaged header or index.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(LLM_C_HEADER)
    if file.suffix == ".ds":
        ids = _datatrove(file, size)
    elif head.startswith(NUMPY):
        ids = _numpy(file)
    elif file.suffix == ".bin" and len(head) == LLM_C_HEADER and (kind := _llm_c(head)) is not None:
        ids = Ids(file, kind, LLM_C_HEADER // kind.itemsize, size // kind.itemsize)
        if int(np.frombuffer(head, "<i4")[2]) != ids.stop - ids.begin:
            raise XDogeError(f"{file} does not hold as many ids as its header says; it was cut or changed.")
    else:
        guess = np.min_scalar_type(vocab_size - 1)
        guess = guess if file.suffix == ".npy" else np.promote_types(guess, np.uint16)
        kind = np.dtype(dtype or guess).newbyteorder("<")
        ids = Ids(file, kind, 0, size // kind.itemsize, guessed=dtype is None)
    if size % ids.dtype.itemsize:
        raise XDogeError(
            f"{file} has {size:,} bytes, which is not a whole number of {ids.dtype.name} ids. It was cut, "
            "or its ids have another type; set dtype."
        )
    if dtype is not None and ids.dtype != np.dtype(dtype):
        raise XDogeError(f"{file} holds {ids.dtype.name} ids according to its header, but dtype is {dtype}.")
    return ids


def _llm_c(head: bytes) -> np.dtype[Any] | None:
    magic, version = np.frombuffer(head, "<i4")[:2].tolist()
    return LLM_C.get((int(magic), int(version)))


def _numpy(file: Path) -> Ids:
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise XDogeError(f"{file} has a damaged header of NumPy: {error}.") from error
    if array.ndim != 1 or array.dtype.kind not in "iu" or array.dtype != array.dtype.newbyteorder("<"):
        raise XDogeError(
            f"{file} holds {array.dtype.str} of the shape {array.shape}; ids are one row of whole numbers."
        )
    begin = array.offset // array.dtype.itemsize  # a header is a multiple of 64 bytes
    return Ids(file, array.dtype, begin, begin + len(array))


def _datatrove(file: Path, size: int) -> Ids:
    index = file.with_name(f"{file.name}.index")
    refuse_pointer(index)
    if index.stat().st_size % 8:
        raise XDogeError(
            f"{index} has {index.stat().st_size:,} bytes, which is not a whole number of 8-byte integers; it was cut."
        )
    ends = np.fromfile(index, "<u8").astype(np.int64)
    if len(ends) == 0 or ends[0] < 0 or (ends[1:] < ends[:-1]).any() or not ends[-1]:
        raise XDogeError(f"{index} is damaged or empty: its document ends do not increase.")
    itemsize, rest = divmod(size, int(ends[-1]))
    if rest or itemsize not in (1, 2, 4, 8):
        raise XDogeError(
            f"{file} has {size:,} bytes where {index.name} says {int(ends[-1]):,} tokens; one of them was cut, or "
            "belongs to another data set."
        )
    bounds = bounds_of(np.concatenate([np.zeros(1, np.int64), ends]))
    return Ids(file, np.dtype(f"<u{itemsize}"), 0, int(ends[-1]), bounds)


def find_documents(ids: Ids, end: int) -> Index:
    """Return the documents of a file. If it has no index, search for the end-of-document token `end`.

    Several consecutive end-of-document tokens end one document. If the file begins with such tokens, they are left out.
    """
    if ids.bounds is not None:
        return Index(ids.file, ids.dtype, ids.bounds, ids.stop - int(ids.bounds[-1]))
    flat = np.memmap(ids.file, ids.dtype, "r")
    pieces = (
        np.flatnonzero(flat[at : min(at + AT_ONCE, ids.stop)] == end) + at + 1
        for at in range(ids.begin, ids.stop, AT_ONCE)
    )
    after = np.concatenate([np.empty(0, np.int64), *pieces])
    ends = after[np.diff(after, append=-1) != 1]
    bounds = ends if len(after) and after[0] == ids.begin + 1 else np.concatenate([[ids.begin], ends])
    return Index(ids.file, ids.dtype, bounds, ids.stop - int(bounds[-1]))
