"""Text in several columns or nested fields, and documents of several lines, compared with independent readers."""

from __future__ import annotations

import csv
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as parquet
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from xdoge.corpus import prepare
from xdoge.corpus.readers import files as reading
from xdoge.corpus.readers.blocks import Block
from xdoge.corpus.readers.files import file_blocks
from xdoge.corpus.readers.inputs import scan
from xdoge.corpus.spec import Corpus, SourceSpec, TrainTokenizer
from xdoge.corpus.tokenizer import train
from xdoge.errors import XDogeError
from xdoge.eval.documents import validation_texts

characters = st.characters(codec="utf-8", exclude_characters="\0\ufeff\r")
texts = st.text(characters | st.sampled_from(list("\n \"\\,.'\u2028")), max_size=12)
maybe = st.none() | texts
sizes = st.sampled_from([1, 3, 64, 1 << 19])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes")


def write_all(folder: Path, rows: list[Any], schema: pa.Schema | None = None) -> list[Path]:
    """Write rows as JSON lines, a JSON array, Parquet and both kinds of Arrow."""
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (folder / "b.json").write_text(json.dumps(rows, ensure_ascii=False), "utf-8")
    table = pa.Table.from_pylist(rows, schema)
    parquet.write_table(table, folder / "c.parquet", row_group_size=3)
    for name, new in (("d.arrow", pa.ipc.new_stream), ("e.arrow", pa.ipc.new_file)):
        with new(folder / name, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    return [folder / name for name in ("a.jsonl", "b.json", "c.parquet", "d.arrow", "e.arrow")]


def read(path: Path, columns: Any, **more: Any) -> list[str]:
    scan(path, columns, name="x", **more)
    return [text for block in file_blocks(path, columns, **more) for text in block.texts(columns)]


def joined(*parts: str | None) -> str:
    return "\n\n".join(part for part in parts if part is not None and part.strip())


# --- columns ---------------------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(
    rows=st.lists(st.tuples(st.none() | st.fixed_dictionaries({"text": maybe, "title": maybe}), maybe), min_size=1),
    size=sizes,
)
@example(rows=[(None, "a"), ({"text": "b", "title": None}, None)], size=1)
@example(rows=[({"text": None, "title": None}, None)], size=64)
def test_nested_and_joined_columns_are_the_same_in_every_format(folder: Path, rows: list[Any], size: int) -> None:
    struct = pa.struct([("text", pa.string()), ("title", pa.string())])
    schema = pa.schema([("id", pa.int64()), ("data", struct), ("head", pa.string())])
    content = [{"id": n, "data": data, "head": head} for n, (data, head) in enumerate(rows)]
    paths = write_all(folder, content, schema)
    flat = parquet.read_table(folder / "c.parquet").flatten().to_pylist()  # by pyarrow: data.text becomes a column
    nested = [row["data.text"] or "" for row in flat]
    both = [joined(row["head"], row["data.title"], row["data.text"]) for row in flat]
    assert read(folder / "c.parquet", "data.text") == nested
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "BLOCK_BYTES", size)
        for path in paths:
            assert read(path, "data.text") == nested
            assert read(path, ("head", "data.title", "data.text")) == both


@settings(max_examples=20)
@given(rows=st.lists(st.none() | st.lists(maybe, max_size=4), min_size=1, max_size=8), size=sizes)
@example(rows=[["a", "", " ", None, "b"], [], None], size=64)
def test_a_list_of_paragraphs_is_joined_by_blank_lines(folder: Path, rows: list[Any], size: int) -> None:
    schema = pa.schema([("paragraphs", pa.list_(pa.string())), ("title", pa.string())])
    paths = write_all(folder, [{"paragraphs": row, "title": "T"} for row in rows], schema)
    expected = [joined(*(row or [])) for row in rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "BLOCK_BYTES", size)
        for path in paths:
            assert read(path, "paragraphs") == expected
            assert read(path, ("title", "paragraphs")) == [joined("T", text) for text in expected]


def test_fields_of_lists_of_objects_are_paragraphs(tmp_path: Path) -> None:
    rows = [
        {"page": {"parts": [{"text": "a", "n": 1}, {"text": None, "n": 2}, {"text": "b", "n": 3}]}},
        {"page": {"parts": []}},
        {"page": None},
        {"page": {"parts": None}},
    ]
    for path in write_all(tmp_path, rows):
        assert read(path, "page.parts.text") == ["a\n\nb", "", "", ""]


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"data.text": "right", "data": {"text": "wrong"}}, "data.text"),
        ({"data.text": "right", "id": 1}, "data.text"),
        ({"a.b": {"c": "right"}, "a": {"b": {"c": "wrong"}}}, "a.b.c"),
        ({"a": {"b.c": "right", "b": {"c": "wrong"}}}, "a.b.c"),
    ],
)
def test_a_key_that_has_the_dots_itself_wins(tmp_path: Path, row: Any, column: str) -> None:
    for path in write_all(tmp_path, [row, row]):
        assert read(path, column) == ["right", "right"]


def test_the_dots_are_decided_row_by_row_in_json(tmp_path: Path) -> None:
    rows = [{"d": {"t": "a"}}, {"d.t": "b", "d": {"t": "x"}}, {"d.t": None, "d": {"t": "x"}}, {"d": {"t": "c"}}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read(tmp_path / "a.jsonl", "d.t") == ["a", "b", "", "c"]


def test_columns_of_csv_are_joined_and_their_dots_are_no_paths(tmp_path: Path) -> None:
    rows = [{"title": "A", "data.text": "a\nb"}, {"title": "", "data.text": "c"}, {"title": " ", "data.text": ""}]
    pd.DataFrame(rows).to_csv(tmp_path / "a.csv", index=False)
    pd.DataFrame(rows).to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    for name in ("a.csv", "a.tsv"):
        assert read(tmp_path / name, ("title", "data.text")) == ["A\n\na\nb", "c", ""]
        assert read(tmp_path / name, "title") == ["A", "", " "]


@pytest.mark.parametrize(
    ("rows", "columns", "match"),
    [
        ([{"data": {"body": "a"}, "id": 1}], "data.text", r"'data\.text'; it has data\.body, id"),
        ([{"text": "a"}], ("title", "text"), "'title'; it has text"),
        ([{"data": [{"body": "a"}]}], "data.text", r"it has data\.body"),
        ([{"data": {"text": 3}}], "data.text", "not text"),
        ([{"text": [1, 2]}], "text", "not text"),
        ([{"text": {"a": "b"}}], "text", "not text"),
        ([{"data": "flat"}], "data.text", "no column 'data.text'|no field 'text'"),
    ],
)
def test_a_column_that_is_missing_or_not_text_is_one_line(
    tmp_path: Path, rows: list[Any], columns: Any, match: str
) -> None:
    for path in write_all(tmp_path, rows):
        with pytest.raises(XDogeError, match=match) as error:
            if not any(read(path, columns)):
                raise XDogeError("no text")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ('{"data": {"text": "a", "text": "b"}}', "line 3 has 'text' twice"),
        ('{"data": "flat"}', "line 3: 'flat' has no field 'text'"),
        ('{"data": {"text": {"x": 1}}}', r"line 3: 'data\.text' is .* not text"),
        ('{"data": {"text": "\\ud800"}}', "half a surrogate pair"),
    ],
)
def test_a_bad_row_of_nested_text_is_named(tmp_path: Path, line: str, match: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"data": {"text": "a"}}\n' * 2 + line + "\n")
    with pytest.raises(XDogeError, match=match):
        read(tmp_path / "a.jsonl", "data.text")


def test_binary_parts_are_text_and_a_bad_one_is_named(tmp_path: Path) -> None:
    table = pa.table({"title": [b"A", b"\xff", None], "text": ["a", "b", "c"]})
    parquet.write_table(table.slice(0, 1), tmp_path / "a.parquet")
    parquet.write_table(table, tmp_path / "b.parquet")
    assert read(tmp_path / "a.parquet", ("title", "text")) == ["A\n\na"]
    with pytest.raises(XDogeError, match="row 2 is not UTF-8"):
        read(tmp_path / "b.parquet", ("title", "text"))


def test_nothing_but_the_text_is_read_of_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"data": {"text": "a", "html": "b", "parts": [{"x": "c"}]}, "other": 1}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    asked = []
    whole = parquet.ParquetFile.iter_batches
    monkeypatch.setattr(
        parquet.ParquetFile,
        "iter_batches",
        lambda self, size, columns: asked.append(columns) or whole(self, size, columns=columns),
    )
    assert read(tmp_path / "a.parquet", "data.text") == ["a"]
    assert read(tmp_path / "a.parquet", "data.parts.x") == ["c"]
    assert asked == [["data.text"], ["data.parts"]]


# --- documents of several lines --------------------------------------------------------------------------------------

lines = st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp"]), max_size=5), max_size=9)


@settings(max_examples=80)
@given(lines=lines, ending=st.sampled_from(["\n", "\r\n"]), last=st.booleans(), size=sizes)
@example(lines=["", "a", "b", "", " ", "  c", "", ""], ending="\r\n", last=False, size=3)
def test_documents_of_text_files_are_lines_paragraphs_or_files(
    folder: Path, lines: list[str], ending: str, last: bool, size: int
) -> None:
    path = folder / "a.txt"
    path.write_bytes((ending.join(lines) + ending * last).encode())
    text = path.read_text("utf-8")  # Python's own reading, which ends every line with \n
    groups: list[list[str]] = [[]]
    for line in text.split("\n"):
        groups[-1:] = [[*groups[-1], line]] if line.strip(" \t") else [groups[-1], []]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "BLOCK_BYTES", size)
        whole = ["".join(block.texts("text")) for block in file_blocks(path, "text", document="file")]
        assert whole == [text]
        parts = [part for part in read(path, "text", document="blank-line") if part.strip()]
        assert parts == [part for group in groups if (part := "\n".join(group)).strip()]
        if text:
            assert read(path, "text") == text.removesuffix("\n").split("\n")


def test_datasets_makes_the_same_documents_of_text_files(tmp_path: Path) -> None:
    import datasets

    (tmp_path / "a.txt").write_bytes(b"uno\r\ndos\n\n  tres\ncuatro\n\ncinco")
    (tmp_path / "b.txt").write_text("seis\n\nsiete\n")
    for theirs, ours in (("line", "line"), ("paragraph", "blank-line"), ("document", "file")):
        rows = datasets.load_dataset(
            "text",
            data_files=[str(tmp_path / name) for name in ("a.txt", "b.txt")],
            split="train",
            streaming=True,
            sample_by=theirs,
            cache_dir=str(tmp_path / "cache"),
        )
        documents = [text for name in ("a.txt", "b.txt") for text in read(tmp_path / name, "text", document=ours)]
        expected = [row["text"] if theirs == "document" else row["text"].removesuffix("\n") for row in rows]
        assert [text for text in documents if text] == [text for text in expected if text]


def test_byte_order_marks_are_no_part_of_a_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffuno\n\n\ufeffdos\n".encode())
    assert read(tmp_path / "a.txt", "text", document="blank-line") == ["uno", "dos"]
    assert read(tmp_path / "a.txt", "text", document="file") == ["uno\n\ndos\n"]


def test_a_document_over_many_blocks_is_joined_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BLOCK_BYTES", 100)
    (tmp_path / "a.txt").write_text("línea larga de un libro\n" * 5_000 + "\nfin\n")
    blocks: list[Block] = list(file_blocks(tmp_path / "a.txt", "text", document="blank-line"))
    assert [len(text) for block in blocks for text in block.texts("text")] == [24 * 5_000 - 1, 3]
    assert [block.first for block in blocks] == [1, 5_002]


# --- in a corpus -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> bytes:
    words = ["etxea", "mendia", "itsasoa", "eguna", "gaua", "lagun", "handia"]
    texts = [f"{n} {word} {next_word}" for n in range(40) for word, next_word in pairwise(words)]
    return train(texts, TrainTokenizer(vocab_size=300, model_type="bpe"), where="here")


def corpus(folder: Path, model: bytes, source: dict[str, Any], fraction: float = 0.0) -> Path:
    (folder / "t.model").write_bytes(model)
    content = {
        "name": "it",
        "tokenizer": {"sentencepiece": "t.model"},
        "validation": {"fraction": fraction},
        "languages": {"eu": {"sources": {"web": source}}},
    }
    (folder / "corpus.yaml").write_text(yaml.safe_dump(content))
    return folder / "corpus.yaml"


def decoded(store: Any, split: str = "train") -> list[str]:
    flat, bounds = store.flat("eu/web", split), store.document_bounds("eu/web", split).tolist()
    return store.tokenizer().decode([flat[a : b - 1].tolist() for a, b in pairwise(bounds)])


@pytest.mark.parametrize("kind", ["files", "dataset", "Hub"])
def test_a_store_holds_the_joined_text_however_it_is_named(
    tmp_path: Path, model: bytes, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"title": "mendia", "data": {"text": f"etxea {n}"}} for n in range(3)]
    (tmp_path / "d").mkdir()
    parquet.write_table(pa.Table.from_pylist([*rows, {"title": None, "data": None}]), tmp_path / "d/a.parquet")
    where = {"files": "d/*.parquet"} if kind == "files" else {"dataset": "d"}
    if kind == "Hub":
        monkeypatch.setattr("xdoge.corpus.work.dataset_files", lambda _: ())
    path = corpus(tmp_path, model, {**where, "text": ["title", "data.text"]})
    store = prepare(path, tmp_path / "store", workers=1)
    assert [text.split() for text in decoded(store)] == [["mendia", "etxea", str(n)] for n in range(3)]
    assert store.warnings[0] == "eu/web: 1 empty rows left out."
    assert prepare(path, tmp_path / "store", workers=1).sha256 == store.sha256  # nothing changed
    path = corpus(tmp_path, model, {**where, "text": "data.text"})
    with pytest.raises(XDogeError, match="text changed from"):
        prepare(path, tmp_path / "store", workers=1)


def test_a_store_of_books_has_a_document_for_each_file(tmp_path: Path, model: bytes) -> None:
    (tmp_path / "d").mkdir()
    for n in range(3):
        (tmp_path / f"d/{n}.txt").write_text(f"etxea {n}\n\nmendia\n")
    for document, count in (("file", 3), ("blank-line", 6), ("line", 6)):
        for source in ({"files": "d/*.txt"}, {"dataset": "d"}):
            path = corpus(tmp_path, model, {**source, "document": document})
            store = prepare(path, tmp_path / "store", workers=1, refresh=True)
            assert store.documents() == {"eu/web": count}


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ({"files": "a.jsonl", "document": "file"}, r"web\.document: file is only for \.txt files"),
        ({"files": "a.txt", "document": "paragraph"}, "document"),
        ({"dataset": "d", "document": "file"}, r"\.txt files"),
        ({"megatron": "m", "document": "file"}, "document is only for files and dataset"),
        ({"files": "a.jsonl", "text": []}, "a column or a list of columns"),
        ({"files": "a.jsonl", "text": ["a", "a"]}, "twice"),
        ({"files": "a.jsonl", "text": ["a", 3]}, "a column or a list of columns"),
    ],
)
def test_incompatible_settings_are_refused(tmp_path: Path, model: bytes, source: Any, match: str) -> None:
    for name in ("a.jsonl", "d/a.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"text": "etxea"}\n')
    (tmp_path / "a.txt").write_text("etxea\n")
    with pytest.raises(XDogeError, match=match):
        prepare(corpus(tmp_path, model, source), tmp_path / "store", workers=1)


def test_one_column_in_a_list_is_that_column() -> None:
    assert SourceSpec(files="a.jsonl", text=["body"]).text == "body"


@pytest.mark.parametrize(
    ("name", "content", "more"),
    [
        ("a.csv", 'id;titulo;texto\n1;A;"b ""c"""\n', {"csv": {"delimiter": ";"}, "text": ["titulo", "texto"]}),
        ("a.csv", 'id,text\n1,"A\n\nb \\"c\\""\n', {"csv": {"escape": "\\"}}),
        ("a.jsonl", json.dumps({"d": {"p": ["A", 'b "c"']}}) + "\n", {"text": "d.p"}),
        ("a.txt", 'A\n\nb "c"', {"document": "file"}),
    ],
)
def test_perplexity_reads_validation_text_as_the_corpus_says(
    tmp_path: Path, model: bytes, name: str, content: str, more: dict[str, Any]
) -> None:
    (tmp_path / name).write_text(content, newline="")
    (tmp_path / f"t{name}").write_text(content.replace("b", "d"), newline="")
    path = corpus(tmp_path, model, {"files": f"t{name}", "validation": name, **more})
    text = validation_texts(Corpus.load(path))["eu/web"]
    text.scan(tmp_path / name)
    assert text.rows(tmp_path / name) == ['A\n\nb "c"']


def test_a_wide_csv_file_is_read_as_python_does(tmp_path: Path) -> None:
    rows = [[str(n), "t", f"x{n}"] for n in range(300)]
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "a", "b"], *rows])
    assert read(tmp_path / "a.csv", ("b", "a")) == [f"{b}\n\n{a}" for _, a, b in rows]
