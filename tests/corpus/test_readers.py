"""Compare each reader with an independent one for the same format, on generated files."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as parquet
import pytest
import zstandard
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from xdoge.corpus.readers import files as reading
from xdoge.corpus.readers.files import file_blocks
from xdoge.corpus.readers.inputs import scan
from xdoge.corpus.spec import PLAIN_CSV, CsvSpec
from xdoge.errors import XDogeError

characters = st.characters(codec="utf-8", exclude_characters="\0\ufeff")
texts = st.text(characters | st.sampled_from(list("\"\\,;\n\r\t '\u2028\x85")), max_size=30)
awkward = st.sampled_from(
    ["NA", "null", "NaN", "2024-01-01", "007", "1e5", "true", "\\N", '"', '\\"', "\r\n", " ", "\u2028"]
)
documents = st.lists(texts | awkward, min_size=1, max_size=12)
sizes = st.sampled_from([1, 2, 3, 7, 64, 1 << 19])


def read(path: Path, spec: CsvSpec = PLAIN_CSV) -> list[str]:
    return [text for block in file_blocks(path, "text", spec) for text in block.texts("text")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("generated")


@settings(max_examples=150)
@given(
    documents=documents,
    ending=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
)
@example(documents=["a", ""], ending="\n", quoting=csv.QUOTE_ALL)
def test_csv_is_read_as_pandas_does(folder: Path, documents: list[str], ending: str, quoting: Any) -> None:
    path = folder / "a.csv"
    rows = pd.DataFrame({"id": range(len(documents)), "text": documents, "x": "é"})
    rows.to_csv(path, index=False, lineterminator=ending, quoting=quoting)
    theirs = pd.read_csv(path, dtype=str, keep_default_na=False, na_filter=False)
    bare_return = quoting == csv.QUOTE_MINIMAL and any("\r" in text for text in documents)
    if not bare_return:  # pandas neither quotes nor reads these
        assert list(theirs["text"]) == documents
    try:
        assert read(path) == documents
    except XDogeError:
        assert bare_return


@settings(max_examples=100)
@given(documents=documents, delimiter=st.sampled_from([",", ";", "\t", "|"]))
def test_csv_with_escapes_is_read_as_it_was_written(folder: Path, documents: list[str], delimiter: str) -> None:
    path = folder / "b.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(
            file, delimiter=delimiter, escapechar="\\", doublequote=False, quoting=csv.QUOTE_ALL, lineterminator="\n"
        )
        writer.writerows([["id", "text"], *enumerate(documents)])
    assert read(path, CsvSpec(delimiter=delimiter, escape="\\")) == documents


@settings(max_examples=100)
@given(
    documents=documents,
    ascii_only=st.booleans(),
    size=sizes,
    ending=st.sampled_from(["\n", "\r\n", "\n\n", "\n\ufeff"]),
)
def test_json_lines_are_read_as_python_does(
    folder: Path, documents: list[str], ascii_only: bool, size: int, ending: str
) -> None:
    rows = [
        json.dumps({"id": n, "text": text, "x": [None, {"text": 1}][n % 2]}, ensure_ascii=ascii_only)
        for n, text in enumerate(documents)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "BLOCK_BYTES", size)
        for name in ("a.jsonl", "a.json"):
            (folder / name).write_bytes(ending.join([*rows, ""]).encode())
            assert read(folder / name) == documents
    (folder / "b.json").write_text(json.dumps([json.loads(row) for row in rows], ensure_ascii=ascii_only), "utf-8")
    assert read(folder / "b.json") == documents
    assert list(pd.read_json(folder / "b.json", dtype=False)["text"]) == documents


@settings(max_examples=100)
@given(
    documents=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0\ufeff\n\r"), max_size=20), min_size=1
    ),
    size=sizes,
)
def test_lines_are_read_as_python_does(folder: Path, documents: list[str], size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "BLOCK_BYTES", size)
        for ending in ("\n", "\r\n"):
            (folder / "a.txt").write_bytes("".join(text + ending for text in documents).encode())
            with (folder / "a.txt").open(encoding="utf-8") as file:
                assert read(folder / "a.txt") == [line.removesuffix("\n") for line in file] == documents


@settings(max_examples=50)
@given(
    documents=st.lists(st.none() | texts | awkward, min_size=1, max_size=12),
    kind=st.sampled_from(
        [pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.string())]
    ),
    rows=st.integers(1, 5),
    compression=st.sampled_from(["none", "snappy", "zstd", "gzip"]),
)
def test_tables_are_read_as_pyarrow_does(
    folder: Path, documents: list[str | None], kind: pa.DataType, rows: int, compression: str
) -> None:
    table = pa.table({"text": pa.array(documents, pa.string()).cast(kind), "id": list(range(len(documents)))})
    parquet.write_table(
        table, folder / "a.parquet", row_group_size=rows, compression=compression, write_page_checksum=rows % 2 == 0
    )
    with pa.ipc.new_stream(folder / "a.arrow", table.schema) as writer:
        writer.write_table(table.slice(0, 0))
        writer.write_table(table, max_chunksize=rows)
    for name in ("a.parquet", "a.arrow"):
        assert scan(folder / name, "text", name=name).rows == len(documents)
        assert read(folder / name) == [text or "" for text in documents]


@settings(max_examples=50)
@given(
    parts=st.lists(st.binary(max_size=3000), min_size=1, max_size=4),
    compress=st.sampled_from([gzip.compress, zstandard.ZstdCompressor().compress, lzma.compress, bz2.compress]),
    padding=st.sampled_from([0, 1, 1023, 1024, 1025, 5000]),
    data=st.data(),
)
def test_compressed_data_is_whole_or_refused(
    folder: Path, parts: list[bytes], compress: Callable[[bytes], bytes], padding: int, data: st.DataObject
) -> None:
    members = [compress(part) for part in parts]
    whole, path = b"".join(members), folder / "a.bin"
    path.write_bytes(whole + b"\0" * padding)
    with reading.reading(path), reading.open_bytes(path, "") as stream:
        assert stream.read() == b"".join(parts)
    assume(len(whole) > 10)  # so that the first bytes say how it is compressed
    cut = data.draw(st.integers(10, len(whole) - 1))
    path.write_bytes(whole[:cut])
    ends = [sum(map(len, members[:n])) for n in range(len(members) + 1)]
    try:
        with reading.reading(path), reading.open_bytes(path, "") as stream:
            assert stream.read() == b"".join(parts[: ends.index(cut)])  # a cut between members cannot be seen
    except XDogeError:
        assert cut not in ends


@settings(max_examples=10)
@given(documents=st.lists(texts.filter(str.strip), min_size=1, max_size=12))
def test_json_and_parquet_are_read_as_datasets_does(folder: Path, documents: list[str]) -> None:
    import datasets

    (folder / "c.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    parquet.write_table(pa.table({"text": documents}), folder / "c.parquet")
    for kind, name in (("json", "c.jsonl"), ("parquet", "c.parquet")):
        theirs = datasets.load_dataset(
            kind, data_files=str(folder / name), split="train", streaming=True, cache_dir=str(folder / "cache")
        )
        assert [row["text"] for row in theirs] == read(folder / name) == documents
