"""Shards of MosaicML's streaming. The bytes that this file writes were compared with those of MDSWriter 0.13."""

from __future__ import annotations

import gzip
import json
import struct
from itertools import accumulate

import numpy as np
import pytest
from megatron_files import END, TEN, VOCABULARY, documents_of

from xdoge import XDogeError


def encoded(row, encoding):
    """Return ids as the bytes of a column with this encoding."""
    if encoding == "bytes":
        return np.array(row, np.int64).tobytes()
    kind = (encoding.split(":")[1:] or ["int32"])[0]
    head = b"" if ":" in encoding else bytes([33])  # int32
    head += b"" if encoding.count(":") == 2 else bytes([1 << 2, len(row)])  # one axis, its size in one byte
    return head + np.array(row, kind).tobytes()


def shards(folder, rows=TEN, encoding="ndarray:int32", *, column="tokens", compress=False, change=None):
    """Write rows as two shards, with a number in front of the ids of each row."""
    folder.mkdir()
    entries = []
    for n, part in enumerate((rows[:6], rows[6:])):
        values = [encoded(row, encoding) for row in part]
        fixed = len(values[0]) if encoding.count(":") == 2 else None
        samples = [
            (b"" if fixed else struct.pack("<I", len(value))) + struct.pack("<q", at) + value
            for at, value in enumerate(values)
        ]
        bounds = list(accumulate(map(len, samples), initial=4 * (len(samples) + 2)))
        data = struct.pack(f"<{len(bounds) + 1}I", len(samples), *bounds) + b"".join(samples)
        raw, zipped = f"shard.{n:05}.mds", f"shard.{n:05}.mds.gz"
        (folder / (zipped if compress else raw)).write_bytes(gzip.compress(data) if compress else data)
        entries.append(
            {
                "column_encodings": ["int", encoding],
                "column_names": ["n", column],
                "column_sizes": [8, fixed],
                "format": "mds",
                "raw_data": {"basename": raw, "bytes": len(data)},
                "samples": len(samples),
                "version": 2,
                "zip_data": {"basename": zipped} if compress else None,
                **(change or {}),
            }
        )
    (folder / "index.json").write_text(json.dumps({"shards": entries, "version": 2}))


@pytest.mark.parametrize(
    ("encoding", "more"),
    [
        ("ndarray:int32", {}),
        ("ndarray", {"compress": True}),
        ("ndarray:uint16", {"column": "input_ids"}),
        ("ndarray:int64:4", {}),
        ("bytes", {"compress": True}),
    ],
)
def test_shards_hold_the_documents_that_were_written(tmp_path, made, encoding, more):
    shards(tmp_path / "m", encoding=encoding, **more)
    store = made({"wiki": {"tokens": "m"}})
    assert documents_of(store) == TEN
    assert documents_of(made({"wiki": {"tokens": "m*", "column": more.get("column", "tokens")}}, out="again")) == TEN


def test_packed_rows_run_from_one_shard_into_the_next(tmp_path, made):
    stream = [token for document in TEN for token in document]
    shards(tmp_path / "m", [stream[at : at + 5] for at in range(0, 40, 5)])
    assert documents_of(made({"wiki": {"tokens": "m"}})) == TEN


def cut(folder):
    file = folder / "shard.00000.mds"
    file.write_bytes(file.read_bytes()[:-1])


def bend(folder):
    file = folder / "shard.00000.mds"
    file.write_bytes(file.read_bytes()[:8] + struct.pack("<I", 7) + file.read_bytes()[12:])


@pytest.mark.parametrize(
    ("more", "harm", "match"),
    [
        ({}, cut, "bytes where index.json says"),
        ({}, bend, "bounds of its samples do not fit"),
        ({}, lambda folder: (folder / "shard.00001.mds").unlink(), r"shard\.00001\.mds does not exist"),
        ({}, lambda folder: (folder / "index.json").write_text('{"shards": [{}]}'), "damaged"),
        ({"change": {"version": 3}}, None, "version 3"),
        ({"change": {"column_encodings": ["int", "str"]}}, None, "a column of str is not a list of token ids"),
        ({"column": "ids"}, None, r"no column 'tokens'; it has n, ids\. Set column"),
        ({"rows": [*TEN[:9], [5, VOCABULARY, END]]}, None, f"token id {VOCABULARY}"),
    ],
)
def test_damaged_and_foreign_shards_are_refused_in_one_line(tmp_path, made, more, harm, match):
    shards(tmp_path / "m", **more)
    if harm:
        harm(tmp_path / "m")
    with pytest.raises(XDogeError, match=match) as error:
        made({"wiki": {"tokens": "m"}})
    assert "\n" not in str(error.value)
