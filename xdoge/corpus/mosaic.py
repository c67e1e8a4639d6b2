"""Read token ids from shards of MosaicML's streaming (MDS). The file index.json in the same folder describes them.

A shard is little-endian. It begins with 4 bytes for the number of samples s. Then follow (s + 1) x 4 bytes with the
offsets where samples begin and the last one ends, and then the samples. A sample begins with 4 bytes for the size of
each column that has no fixed size. Then follow the values of all columns. An array whose column does not state type and
shape begins with two bytes. The first is the type, the second the number of axes and the width of their sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xdoge.corpus.readers.streams import open_bytes
from xdoge.corpus.token_paths import shard_names
from xdoge.errors import XDogeError
from xdoge.io import read_json

TYPES = {8: "u1", 9: "i1", 16: "u2", 17: "i2", 32: "u4", 33: "i4", 64: "u8", 65: "i8"}
"""Integer types by their code in an array."""
BYTES = np.dtype("<i8")
"""Type of the ids in a column of plain bytes, as llm-foundry writes them."""


def read_shard(file: Path, column: str | None) -> Iterator[npt.NDArray[Any]]:
    """Yield the ids of each sample of a shard.

    Args:
        file: the shard, which may be compressed.
        column: column of the ids. None means input_ids, or tokens if there is no input_ids.

    Raises:
        XDogeError: index.json does not describe the shard, or the shard has no such column of ids or is truncated.
    """
    index = read_json(file.with_name("index.json"))
    try:
        shard = next(shard for shard in index["shards"] if file.name in shard_names(shard))
        names, encodings, fixed = (shard[f"column_{key}"] for key in ("names", "encodings", "sizes"))
        if shard["format"] != "mds" or shard["version"] != 2:
            raise XDogeError(f"{file} is of version {shard['version']}; only shards of version 2 can be read.")
        if column is None:
            column = "input_ids" if "input_ids" in names else "tokens"
        if column not in names:
            raise XDogeError(f"{file} has no column {column!r}; it has {', '.join(names)}. Set column: NAME.")
        at = names.index(column)
        with open_bytes(file, "") as stream:
            data = stream.read()
        if len(data) != shard["raw_data"]["bytes"]:
            raise XDogeError(f"{file} has {len(data):,} bytes where index.json says {shard['raw_data']['bytes']:,}.")
        for sample in _samples(data, int(shard["samples"])):
            free = iter(np.frombuffer(sample, "<u4", sum(size is None for size in fixed)).tolist())
            sizes = [next(free) if size is None else size for size in fixed]
            begin = 4 * sum(size is None for size in fixed) + sum(sizes[:at])
            yield _ids(sample[begin : begin + sizes[at]], encodings[at])
    except (KeyError, TypeError, ValueError, IndexError, StopIteration) as error:
        raise XDogeError(f"{file} is damaged, or index.json does not describe it: {error}.") from error


def _samples(data: bytes, count: int) -> Iterator[bytes]:
    bounds = np.frombuffer(data, "<u4", count + 2)
    if bounds[0] != count or bounds[-1] != len(data) or (bounds[2:] < bounds[1:-1]).any():
        raise ValueError("the bounds of its samples do not fit")
    for begin, end in zip(bounds[1:-1].tolist(), bounds[2:].tolist(), strict=True):
        yield data[begin:end]


def _ids(value: bytes, encoding: str) -> npt.NDArray[Any]:
    kind, _, rest = encoding.partition(":")
    if kind == "bytes":
        return np.frombuffer(value, BYTES)
    name, _, shape = rest.partition(":")
    if kind != "ndarray" or "," in shape:
        raise ValueError(f"a column of {encoding} is not a list of token ids")
    at = 0
    if not name:
        name, at = TYPES[value[0]], 1
    if not shape:
        axes, width = value[at] >> 2, 1 << value[at] % 4
        if axes != 1:
            raise ValueError(f"an array has {axes} axes")
        at += 1 + width
    dtype = np.dtype(name).newbyteorder("<")
    if dtype.kind not in "iu":
        raise ValueError(f"a column of {encoding} is not a list of token ids")
    return np.frombuffer(value[at:], dtype)
