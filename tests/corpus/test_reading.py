from __future__ import annotations

import bz2
import csv
import gc
import gzip
import io
import json
import lzma
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as parquet
import pytest

from xdoge.corpus.readers import files as reading
from xdoge.corpus.readers import inputs
from xdoge.corpus.readers.files import BLOCK_BYTES, file_blocks
from xdoge.corpus.readers.hub import dataset_files, open_dataset
from xdoge.corpus.readers.inputs import refuse_empty, scan
from xdoge.corpus.spec import Source, SourceSpec
from xdoge.errors import XDogeError

TEXTS = ["Kaixo, mundua!", "Ola, «mundo»", "tres\nliñas\n", "", 'a "cita", con coma', "NA", "日本語 😀"]
LINES = ["Kaixo, mundua!", "", "Ola, «mundo»", "  ", "日本語 😀"]


def compressed(data: bytes, ending: str) -> bytes:
    if ending in (".zst", ".zstd"):
        return bytes(pa.Codec("zstd").compress(data, asbytes=True))
    return {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}[ending](data)


def as_jsonl(texts: list[str]) -> bytes:
    return b"".join(json.dumps({"id": n, "text": t}).encode() + b"\n" for n, t in enumerate(texts))


def as_csv(texts: list[str], delimiter: str = ",") -> bytes:
    table = io.StringIO()
    writer = csv.writer(table, delimiter=delimiter)
    writer.writerows([["id", "text"], *enumerate(texts)])
    return table.getvalue().encode()


def table(texts: list[str]) -> pa.Table:
    return pa.table({"id": list(range(len(texts))), "text": texts})


def read(path: Path, column: str = "text") -> list[str]:
    return [text for block in file_blocks(path, column) for text in block.texts(column)]


@pytest.mark.parametrize("ending", ["", ".gz", ".zst", ".zstd", ".xz", ".bz2"])
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("a.jsonl", as_jsonl),
        ("a.ndjson", as_jsonl),
        ("a.json", as_jsonl),
        ("a.tsv", lambda texts: as_csv(texts, "\t")),
        ("b.json", lambda texts: json.dumps([{"text": text} for text in texts], indent=2).encode()),
        ("c.json", lambda texts: "\n".join(json.dumps({"text": t}, indent=2) for t in texts).encode()),
        ("a.csv", as_csv),
        ("a.txt", lambda texts: "\n".join(texts).encode()),
    ],
)
def test_every_format_gives_the_same_documents(
    tmp_path: Path, name: str, make: Callable[[list[str]], bytes], ending: str
) -> None:
    texts = LINES if name == "a.txt" else TEXTS
    path = tmp_path / f"{name}{ending}"
    path.write_bytes(compressed(make(texts), ending))
    assert read(path) == texts
    scanned = scan(path, "text", name="here")
    assert (scanned.path, scanned.n_bytes) == ("here", path.stat().st_size)
    if name in ("a.jsonl", "a.json", "a.txt"):
        assert scanned.rows == len(texts)


def test_parquet_and_both_arrow_formats_give_the_same_documents(tmp_path: Path) -> None:
    parquet.write_table(table(TEXTS), tmp_path / "a.parquet", row_group_size=2)
    with pa.ipc.new_stream(tmp_path / "stream.arrow", table(TEXTS).schema) as writer:
        writer.write_table(table(TEXTS), max_chunksize=3)
    with pa.ipc.new_file(tmp_path / "file.arrow", table(TEXTS).schema) as writer:
        writer.write_table(table(TEXTS), max_chunksize=3)
    for path in tmp_path.iterdir():
        assert read(path) == TEXTS
        assert scan(path, "text", name="x").rows == len(TEXTS)


def test_datasets_reads_the_same_documents(tmp_path: Path) -> None:
    import datasets

    texts = [text for text in TEXTS if text not in ("", "NA")]  # pandas reads these two as null
    (tmp_path / "a.jsonl").write_bytes(as_jsonl(texts))
    (tmp_path / "a.csv").write_bytes(as_csv(texts))
    (tmp_path / "a.txt").write_text("\n".join(LINES), encoding="utf-8")
    parquet.write_table(table(texts), tmp_path / "a.parquet")
    for kind, name in (("json", "a.jsonl"), ("csv", "a.csv"), ("text", "a.txt"), ("parquet", "a.parquet")):
        theirs = datasets.load_dataset(
            kind, data_files=str(tmp_path / name), split="train", streaming=True, cache_dir=str(tmp_path / "c")
        )
        assert [row["text"] for row in theirs] == read(tmp_path / name)


def test_fields_that_come_late_or_change_type_do_no_harm(tmp_path: Path) -> None:
    rows = [{"text": "a", "x": None}, {"x": 1, "text": "b"}, {"text": "c", "x": "s", "late": [1]}, {"x": {"text": 1}}]
    path = tmp_path / "a.jsonl"
    path.write_text("\n\n".join(map(json.dumps, rows)))
    assert read(path) == ["a", "b", "c", ""]


def test_a_document_may_be_longer_than_a_block(tmp_path: Path) -> None:
    texts = ["x", "ñ" * (2 * BLOCK_BYTES), "y"]
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in texts), encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps([{"text": text} for text in texts], ensure_ascii=False), "utf-8")
    assert read(tmp_path / "a.jsonl") == texts
    assert read(tmp_path / "b.json") == texts


def layouts(texts: list[str]) -> dict[str, str]:
    objects = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    return {
        "array on one line": f"[{', '.join(objects)}]",
        "array over lines": "[\n" + ",\n".join(objects) + "\n]\n",
        "objects on one line": " ".join(objects),
        "objects over lines": "\n".join(json.dumps({"text": text}, indent=1, ensure_ascii=False) for text in texts),
        "object a line": "\n".join(objects),
    }


@pytest.mark.parametrize("layout", layouts([]))
def test_a_json_file_is_never_held_whole(tmp_path: Path, layout: str) -> None:
    texts = [f"{n} " + "día " * 200 for n in range(14_000)]
    path = tmp_path / "a.json"
    path.write_text("\n" + layouts(texts)[layout], encoding="utf-8")
    assert path.stat().st_size > 24 * BLOCK_BYTES
    tracemalloc.start()
    try:
        scan(path, "text", name="a")
        count = sum(len(block.texts("text")) for block in file_blocks(path, "text"))
        assert tracemalloc.get_traced_memory()[1] < 8 * BLOCK_BYTES
    finally:
        tracemalloc.stop()
    assert count == len(texts)


def test_a_text_is_checked_in_pieces_much_smaller_than_a_block(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("día 😀 " * 400_000 + "\n", encoding="utf-8")
    assert path.stat().st_size > 6 * BLOCK_BYTES
    tracemalloc.start()
    try:
        assert scan(path, "text", name="a").rows == 1
        assert tracemalloc.get_traced_memory()[1] < BLOCK_BYTES  # its SHA-256 takes half of that
    finally:
        tracemalloc.stop()


def test_a_bad_value_ends_reading_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"text": "a"}, {"text" "b"}' + ', {"text": "c"}' * 500_000 + "]")
    read_so_far = []
    chunks = reading.chunks_of

    def counted(stream: pa.NativeFile, n_bytes: int) -> Iterator[bytes]:
        for chunk in chunks(stream, n_bytes):
            read_so_far.append(len(chunk))
            yield chunk

    monkeypatch.setattr(reading, "chunks_of", counted)
    with pytest.raises(XDogeError, match=r"a\.json: row 2 is not JSON \(Expecting ':' delimiter"):
        read(path)
    assert sum(read_so_far) < path.stat().st_size / 4


@pytest.mark.parametrize("layout", layouts([]))
@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
def test_json_may_be_cut_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, size: int) -> None:
    monkeypatch.setattr(reading, "BLOCK_BYTES", size)
    texts = ["[ñ]", "", '\\ "é" 😀 \n\t\u2028 \x00', "  ]  ", "x" * 40, "día"]
    value = (
        layouts(texts)[layout].replace("día", "d\\u00eda").replace('"}', '", "n": [-1.5e+3, true, null, -Infinity]}')
    )
    for start in ("", "\n \n", "\ufeff"):
        (tmp_path / "a.json").write_text(start + value, encoding="utf-8")
        assert read(tmp_path / "a.json") == texts
        scan(tmp_path / "a.json", "text", name="a")


def test_an_invalid_byte_is_found_where_chunks_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "SCAN_BYTES", 4)
    for name, data, message in (
        ("a.txt", b"a\nb\nc\xc3x\n", "line 3 is not UTF-8 .byte 0xc3: invalid continuation byte"),
        ("b.txt", b"a\n\n\nb\n\xe2\x82", "line 5 is not UTF-8 .byte 0xe2: unexpected end of data"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(XDogeError, match=message):
            scan(tmp_path / name, "text", name="a")


def test_many_documents_come_in_order_over_many_blocks(tmp_path: Path) -> None:
    texts = [f"documento {n} " + "palabra " * (n % 50) for n in range(20_000)]
    (tmp_path / "a.jsonl").write_bytes(as_jsonl(texts))
    (tmp_path / "b.json").write_text(json.dumps([{"text": text} for text in texts]))
    parquet.write_table(table(texts), tmp_path / "a.parquet")
    for path in tmp_path.iterdir():
        blocks = list(file_blocks(path, "text"))
        assert len(blocks) > 5
        assert [text for block in blocks for text in block.texts("text")] == texts
        counts = [len(block.texts("text")) for block in blocks]
        assert [block.first for block in blocks] == [1 + sum(counts[:n]) for n in range(len(counts))]


def test_byte_order_marks_and_carriage_returns_are_not_text(tmp_path: Path) -> None:
    bom = b"\xef\xbb\xbf"
    for name, data in (
        ("a.txt", b"a\r\nb\r\n"),
        ("a.jsonl", b'{"text": "a"}\r\n{"text": "b"}\r\n'),
        ("a.json", b'[{"text": "a"},\r\n{"text": "b"}]'),
        ("a.csv", b"text\r\na\r\nb\r\n"),
    ):
        (tmp_path / name).write_bytes(bom + data)
        scan(tmp_path / name, "text", name=name)
        assert read(tmp_path / name) == ["a", "b"]


def test_gzip_members_one_after_the_other_are_one_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"a\n", mtime=0) + gzip.compress(b"b\n"))
    assert read(path) == ["a", "b"]


def test_what_pyarrow_refuses_and_python_takes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a", "x": NaN}\n{"text": "c"}\n')
    assert read(path) == ["a", "c"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b"", r"a\.jsonl is empty: it has no rows"),
        ("a.txt", b"\n \n\n", r"a\.txt is empty: it has no rows"),
        ("a.jsonl.gz", gzip.compress(b"", mtime=0), r"a\.jsonl\.gz is empty: it has no rows"),
        ("a.csv", b"text\n", r"a\.csv is empty: it has no rows"),
        ("a.json", b"[]", r"a\.json is empty: it has no rows"),
        ("a.jsonl", b'{"body": "x", "id": 1}\n', r"has no column 'text'; it has body, id\. Set text: COLUMN"),
        ("a.csv", b"body,id\nx,1\n", r"has no column 'text'; it has body, id"),
        (
            "a.csv",
            b"a long line " * 900 + b"\n1\n",
            r"has no column 'text'; it has (a long line ?){25}\.\.\.\. Set text",
        ),
        ("a.json", b'[{"body": "x"}]', r"has no column 'text'; it has body"),
        ("a.txt", b"one\ntwo\nthr\xff\n", r"a\.txt: line 3 is not UTF-8 \(byte 0xff: invalid start byte\)"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n', r"a\.jsonl: line 2 is not UTF-8 \(byte 0xe9"),
        ("a.csv.gz", gzip.compress(b"text\n\xc3\n", mtime=0), r"a\.csv\.gz: line 2 is not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": 3}\n', r"a\.jsonl: line 3: 'text' is '3', which is not text"),
        ("a.jsonl", b'{"text": "a"}\nnonsense\n', r"a\.jsonl: line 2 is not JSON"),
        ("a.jsonl", b'{"text": "a"}\n["a"]\n', r"a\.jsonl: line 2 is a JSON list, not an object"),
        ("a.jsonl", b'{"text": "\\ud83d"}\n', r"a\.jsonl: line 1: 'text' has half a surrogate pair"),
        ("a.json", b'[{"text": "a"}, {"text"', r"a\.json: row 2 is not JSON"),
        ("a.json", b'[{"text": "a"}, 7]', r"a\.json: row 2 is a JSON int, not an object"),
        ("a.jsonl.gz", gzip.compress(as_jsonl(TEXTS), mtime=0)[:-12], r"a\.jsonl\.gz cannot be read: .*ends before"),
        ("a.jsonl.zst", b"not zstd", r"a\.jsonl\.zst cannot be read"),
        ("a.parquet", b"PAR1 not really", r"a\.parquet cannot be read"),
        ("a.arrow", b"not arrow at all", r"a\.arrow cannot be read"),
    ],
)
def test_a_bad_file_is_found_before_the_work(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(XDogeError, match=message) as caught:
        refuse_empty([scan(path, "text", name=name)])
    assert "\n" not in str(caught.value)


def test_an_invalid_byte_far_into_a_file_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"palabra palabra\n" * 100_000 + b"\xff\n")
    with pytest.raises(XDogeError, match="line 100001 is not UTF-8"):
        scan(path, "text", name="a")


def test_a_bad_row_far_into_a_file_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "palabra"}\n' * 100_000 + b'{"text": [3]}\n')
    with pytest.raises(XDogeError, match=r"line 100001: 'text' is '3', which is not text"):
        read(path)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_tables_are_checked_for_their_column(tmp_path: Path, name: str) -> None:
    def write(value: pa.Table) -> Path:
        if name.endswith("parquet"):
            parquet.write_table(value, tmp_path / name)
        else:
            with pa.ipc.new_stream(tmp_path / name, value.schema) as writer:
                writer.write_table(value)
        return tmp_path / name

    with pytest.raises(XDogeError, match=r"has no column 'text'; it has body, id\. Set text: COLUMN"):
        scan(write(pa.table({"body": ["a"], "id": [1]})), "text", name=name)
    with pytest.raises(XDogeError, match=r"the column 'text' is int64, not text"):
        scan(write(pa.table({"text": [1]})), "text", name=name)
    with pytest.raises(XDogeError, match=r"is empty: it has no rows"):
        refuse_empty([scan(write(pa.table({"text": pa.array([], pa.string())})), "text", name=name)])
    broken = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.array([0, 1, 2], pa.int32()).buffers()[1], pa.py_buffer(b"a\xff")]
    )
    with pytest.raises(XDogeError, match=rf"{name}: row 2 is not UTF-8"):
        read(write(pa.table({"text": broken})))


def test_all_kinds_of_text_columns_are_text(tmp_path: Path) -> None:
    kinds = [pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.string_view()]
    kinds += [pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.binary()), pa.binary_view()]
    for number, kind in enumerate(kinds):
        values = pa.array(["a", None, "b"]).cast(kind)
        with pa.ipc.new_stream(tmp_path / f"{number}.arrow", pa.schema([("text", kind)])) as writer:
            writer.write_table(pa.table({"text": values}))
        scan(tmp_path / f"{number}.arrow", "text", name="x")
        assert read(tmp_path / f"{number}.arrow") == ["a", "", "b"]


def hub(folder: Path, **settings: object) -> Source:
    spec = SourceSpec.model_validate({"dataset": "hub", **settings})
    return Source(
        "eu/web", "c.yaml: languages.eu.sources.web", "eu", None, spec, files=(), validation=(), dataset=str(folder)
    )


def test_a_local_data_set_is_streamed_and_hashed(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: eus_Latn\n  data_files:\n  - split: train\n    path: data/eus/train/*\n---\n"
    )
    (tmp_path / "data/eus/train").mkdir(parents=True)
    texts = [f"testua {n}" for n in range(600)]
    parquet.write_table(table(texts), tmp_path / "data/eus/train/0.parquet", row_group_size=100)
    data = open_dataset(hub(tmp_path, config="eus_Latn"), tmp_path)
    assert [text for block in data.blocks() for text in block.texts("text")] == texts
    assert [(entry.path, len(entry.sha256 or "")) for entry in data.inputs] == [("data/eus/train/0.parquet", 64)]
    with pytest.raises(XDogeError, match=r"^hub config glg_Latn cannot be read: .*glg_Latn.*not found"):
        open_dataset(hub(tmp_path, config="glg_Latn"), tmp_path)
    with pytest.raises(XDogeError, match=r"hub config eus_Latn cannot be read: .*split"):
        open_dataset(hub(tmp_path, config="eus_Latn", split="test"), tmp_path)
    with pytest.raises(XDogeError, match=r"config eus_Latn has no column 'body'; it has id, text"):
        open_dataset(hub(tmp_path, config="eus_Latn", text="body"), tmp_path)
    with pytest.raises(XDogeError, match=r"config eus_Latn: the column 'id' is int64, not text"):
        open_dataset(hub(tmp_path, config="eus_Latn", text="id"), tmp_path)


def test_a_local_data_set_may_tell_its_columns_only_when_read(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a\nb\n")
    data = open_dataset(hub(tmp_path), tmp_path)
    assert [text for block in data.blocks() for text in block.texts("text")] == ["a", "b"]


def test_files_of_a_local_data_set_are_read_as_files(tmp_path: Path) -> None:
    (tmp_path / "train-0.jsonl").write_text('{"text": "a", "meta": null}\n')
    (tmp_path / "train-1.jsonl").write_text('{"text": "b", "meta": {"b": ["x"]}, "more": 1}\n')
    (tmp_path / "validation.jsonl").write_text('{"text": "c"}\n')
    for split, names in (
        ("train", ["train-0.jsonl", "train-1.jsonl"]),
        ("validation", ["validation.jsonl"]),
        ("train+validation", ["train-0.jsonl", "train-1.jsonl", "validation.jsonl"]),
        ("validation + train", ["validation.jsonl", "train-0.jsonl", "train-1.jsonl"]),
        ("all", ["train-0.jsonl", "train-1.jsonl", "validation.jsonl"]),
    ):
        files = dataset_files(hub(tmp_path, split=split))
        assert [file.name for file in files] == names
        assert [entry.path for entry in open_dataset(hub(tmp_path, split=split), tmp_path).inputs] == names
    for split, token in (
        ("train[:10%]", "max_tokens"),
        ("train+test", "'test'; it has train, validation"),
        ("train+train", "twice"),
    ):
        with pytest.raises(XDogeError, match=token):
            dataset_files(hub(tmp_path, split=split))


def test_a_local_data_set_of_another_dialect_is_streamed_by_datasets(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text('{"data": [{"text": "a, b"}]}')
    assert len(dataset_files(hub(tmp_path))) == 1
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: train.json\n  field: data\n---\n"
    )
    assert dataset_files(hub(tmp_path)) == ()
    data = open_dataset(hub(tmp_path), tmp_path)
    assert [text for block in data.blocks() for text in block.texts("text")] == ["a, b"]


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # datasets does not close the files that it looks into
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "features", ["", "dataset_info:\n  features:\n  - {name: text, dtype: string}\n  - {name: k, dtype: float64}\n"]
)
def test_datasets_converts_no_text_of_csv(tmp_path: Path, features: str) -> None:
    texts = ["NA", "null", "007", "1.50", "2024-01-01"]
    (tmp_path / "train.csv").write_text("k;text\n" + "".join(f"{n or ''};{text}\n" for n, text in enumerate(texts)))
    (tmp_path / "README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  data_files: train.csv\n  sep: ';'\n{features}---\n"
    )
    data = open_dataset(hub(tmp_path), tmp_path)
    assert [text for block in data.blocks() for text in block.texts("text")] == texts
    with pytest.raises(XDogeError, match=r"no column 'body'; it has"):
        open_dataset(hub(tmp_path, text="body"), tmp_path)
    del data
    gc.collect()  # here, where the warning about the open file is ignored, and not in a later test


def test_whatever_datasets_raises_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fail(*_: object, **__: object) -> None:
        raise errors[0]

    errors: list[Exception] = []
    for error in (TypeError("a\n  b"), AttributeError("a b"), Exception("a b"), NotImplementedError("a b")):
        errors[:] = [error]
        monkeypatch.setattr(datasets, "load_dataset_builder", fail)
        with pytest.raises(XDogeError, match=r"^hub cannot be read: a b$"):
            open_dataset(hub(tmp_path), tmp_path)


def test_shards_without_rows_are_streamed_too(tmp_path: Path) -> None:
    parquet.write_table(table(["a"]), tmp_path / "train-0.parquet")
    parquet.write_table(table([])[:0].cast(table(["a"]).schema), tmp_path / "train-1.parquet")
    data = open_dataset(hub(tmp_path), tmp_path)
    assert [text for block in data.blocks() for text in block.texts("text")] == ["a"]


def test_a_data_set_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(XDogeError, match=r"^hub cannot be read"):
        open_dataset(hub(tmp_path), tmp_path)


def test_a_row_nested_without_end_far_into_a_file_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "x"}\n' * 3000 + b'{"text": "x", "deep": ' + b"[" * 200_000 + b"\n")
    with pytest.raises(XDogeError, match="line 3001 is not JSON"):
        read(path)
