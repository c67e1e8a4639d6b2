"""Rows of token ids as sources, from files that `datasets` wrote."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron_files import END, TEN, VOCABULARY, WORDS, documents_of

from xdoge import XDogeError
from xdoge.corpus.spec import Corpus
from xdoge.corpus.token_rows import RowTokens, ends_of, scan_rows
from xdoge.eval.documents import validation_texts

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import datasets

OPEN = [document[:-1] for document in TEN]


def packed(documents, length):
    """Return the concatenated documents as rows of equal length. The last row can be shorter."""
    stream = [token for document in documents for token in document]
    return [stream[at : at + length] for at in range(0, len(stream), length)]


def saved(folder, rows, kind="list", **columns):
    """Write rows with save_to_disk and to_parquet, with the types that `datasets` gives them after a map."""
    features = None
    if kind != "list":
        number = datasets.Value("uint16" if kind == "uint16" else "int32")
        features = datasets.Features({"input_ids": (datasets.LargeList if kind == "large" else datasets.List)(number)})
    data = datasets.Dataset.from_dict({"input_ids": rows, **columns}, features=features)
    data.save_to_disk(str(folder / "saved"), num_shards=min(3, len(rows)))
    data.to_parquet(str(folder / "rows.parquet"))
    return ["saved", "rows.parquet", "saved/*.arrow"]


@pytest.mark.parametrize(
    ("rows", "kind"),
    [(TEN, "list"), (TEN, "large"), (OPEN, "uint16"), (packed(TEN, 7), "list"), (packed(TEN, 8), "large")],
)
def test_documents_are_those_that_datasets_wrote(tmp_path, made, rows, kind):
    for named in saved(tmp_path, rows, kind):
        store = made({"wiki": {"tokens": named}}, refresh=True)
        assert documents_of(store) == TEN
        said = " ".join(store.warnings)
        assert ("added" in said) == (rows == OPEN)
        assert ("one stream" in said) == (rows not in (TEN, OPEN) and len(rows[0]) == 7)
        assert sum(store.n_bytes().values()) == sum(len(text.encode()) for text in store.tokenizer().decode(OPEN))
        store.verify()


@settings(max_examples=40)
@given(
    documents=st.lists(st.lists(st.integers(3, VOCABULARY - 1), min_size=1, max_size=6), min_size=2, max_size=9),
    length=st.integers(1, 9),
    batch=st.integers(1, 4),
)
def test_any_stream_is_cut_where_its_documents_end(tokenizer, tmp_path_factory, documents, length, batch):
    folder = tmp_path_factory.mktemp("any")
    documents = [[*document, END] for document in documents]
    rows = packed(documents, length)
    table = pa.table({"input_ids": pa.array(rows, pa.list_(pa.int32()))})
    with pa.ipc.new_stream(folder / "a.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=batch)
    entry, tally = scan_rows(folder / "a.arrow", tokenizer, column=None, name="a")
    assert entry.rows == len(rows)
    ends = [row[-1] == END for row in rows]
    if not all(ends) and not any(END in row[:-1] for row in rows):
        with pytest.raises(XDogeError, match=f"{sum(ends)} of {len(rows)} rows end with"):
            RowTokens([tally], tokenizer, None)
        return
    blocks = RowTokens([tally], tokenizer, None).blocks((folder / "a.arrow",))
    assert [document.tolist() for block in blocks for document in block.documents()] == documents


def test_a_token_that_ends_documents_several_times_ends_one(made, tmp_path):
    assert ends_of(np.array([END, 5, END, END, 6, END, 7]), END).tolist() == [1, 4, 6]
    assert ends_of(np.array([5, 6]), END).tolist() == []
    assert ends_of(np.array([5, END, END]), END, [2, 3]).tolist() == [2, 3]


def test_tokens_after_the_last_end_are_left_out_and_reported(tmp_path, made):
    saved(tmp_path, packed([*TEN, [9, 9]], 6))
    store = made({"wiki": {"tokens": "rows.parquet"}})
    assert documents_of(store) == TEN
    assert "2 tokens after the last end-of-document token were left out" in " ".join(store.warnings)


def test_rows_without_tokens_are_no_documents(tmp_path, made):
    saved(tmp_path, [[], TEN[0], [END], [], TEN[1]])
    store = made({"wiki": {"tokens": "saved"}})
    assert documents_of(store) == TEN[:2]
    assert "3 empty rows left out" in " ".join(store.warnings)


def test_documents_are_held_out_and_counted_as_text_is(tmp_path, made):
    rows = [[3 + n // 30, 3 + n % 30, END] for n in range(600)]
    saved(tmp_path, rows)
    store = made({"wiki": {"tokens": "saved", "max_tokens": 600}}, fraction=0.2)
    train_set, held_out = documents_of(store), documents_of(store, split="validation")
    assert len(train_set) == 200
    assert 20 < len(held_out) < 80
    assert sorted(train_set + held_out) == rows[: len(train_set) + len(held_out)]
    again = made({"wiki": {"tokens": "rows.parquet", "max_tokens": 600}}, fraction=0.2, out="again")
    assert documents_of(again) == train_set  # by the hash of the tokens, whatever the format


def test_validation_rows_are_held_out_and_may_not_be_training_rows(tmp_path, made):
    for name, rows in (("a", TEN), ("b", [[5, 5, END], [6, 6, END]]), ("c", [TEN[0], TEN[1]])):
        saved(tmp_path, rows)
        (tmp_path / "rows.parquet").rename(tmp_path / f"{name}.parquet")
    store = made({"wiki": {"tokens": "a.parquet", "validation": "b.parquet"}})
    assert documents_of(store, split="validation") == [[5, 5, END], [6, 6, END]]
    with pytest.raises(XDogeError, match="2 of the 2 documents of its validation files"):
        made({"wiki": {"tokens": "a.parquet", "validation": "c.parquet"}}, out="other")


def test_rows_that_begin_with_a_special_token_beside_text_are_warned_of(tmp_path, made):
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": f"{w} {n}"}) + "\n" for n, w in enumerate(WORDS)))
    saved(tmp_path, [[1, *document, END] for document in TEN])
    store = made({"wiki": {"tokens": "saved"}, "web": {"files": "b.jsonl"}})
    assert "begin with the special token 1 and end with two end-of-document" in " ".join(store.warnings)


def test_a_column_of_another_name_can_be_named(tmp_path, made):
    parquet.write_table(pa.table({"tokens": TEN, "id": range(10)}), tmp_path / "a.parquet")
    assert documents_of(made({"wiki": {"tokens": "a.parquet", "column": "tokens"}})) == TEN
    with pytest.raises(XDogeError, match=r"no column 'input_ids'.* it has tokens, id\. Set column"):
        made({"wiki": {"tokens": "a.parquet"}}, out="other")


@pytest.mark.parametrize(
    ("table", "match"),
    [
        ({"input_ids": [[1, VOCABULARY, END]]}, f"token id {VOCABULARY}, and the ids of the tokenizer are 0 to"),
        ({"input_ids": [[1, -100, END]]}, "token id -100"),
        ({"input_ids": [[1, None, END]]}, "null among its token ids"),
        ({"input_ids": [["a"]]}, "not a list of token ids"),
        ({"input_ids": [1, 2]}, "not a list of token ids"),
        ({"input_ids": [[5, END], [5, 6, 7], [6, END]]}, r"2 of 3 rows end with .* 2, and row 2 does not"),
        ({"input_ids": [[5, 6, END], [5, END, END]], "attention_mask": [[1, 1, 1], [1, 1, 0]]}, "row 2 is padded"),
    ],
)
def test_rows_that_cannot_be_right_are_refused_in_one_line(tmp_path, made, table, match):
    parquet.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(XDogeError, match=match) as error:
        made({"wiki": {"tokens": "a.parquet"}})
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"{tmp_path}/corpus.yaml: languages.eu.sources.wiki.tokens: ")


def test_damaged_files_and_folders_are_refused_in_one_line(tmp_path, made):
    saved(tmp_path, TEN)
    whole = (tmp_path / "rows.parquet").read_bytes()
    (tmp_path / "rows.parquet").write_bytes(whole[:-9])
    arrow = next((tmp_path / "saved").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:-8])
    for named, match in (("rows.parquet", "cannot be read"), ("saved", "no end marker")):
        with pytest.raises(XDogeError, match=match):
            made({"wiki": {"tokens": named}})
    arrow.unlink()
    with pytest.raises(XDogeError, match="incomplete"):
        made({"wiki": {"tokens": "saved"}})
    (tmp_path / "saved/state.json").write_text("{}")
    with pytest.raises(XDogeError, match="damaged state"):
        made({"wiki": {"tokens": "saved"}})


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ({"tokens": "both"}, r"has the splits train, test; name one, .*both/train"),
        ({"tokens": "."}, "neither save_to_disk nor streaming wrote it"),
        ({"tokens": "none*"}, "'none.*' matches no file of tokens"),
        ({"tokens": "a.jsonl"}, "not a file of tokens"),
        ({"tokens": "saved", "text": "body"}, "text is only for files and dataset"),
        ({"files": "a.jsonl", "column": "x"}, "column is only for tokens"),
        ({"files": "a.jsonl", "tokens": "saved"}, "has both files and tokens"),
    ],
)
def test_paths_without_tokens_are_refused(tmp_path, made, source, match):
    saved(tmp_path, TEN)
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    part = datasets.Dataset.from_dict({"input_ids": TEN})
    datasets.DatasetDict({"train": part, "test": part}).save_to_disk(str(tmp_path / "both"))
    with pytest.raises(XDogeError, match=match):
        made({"wiki": source})


def test_a_changed_file_is_noticed_and_the_rest_is_kept(tmp_path, made):
    saved(tmp_path, TEN)
    before = made({"wiki": {"tokens": "rows.parquet"}})
    assert made({"wiki": {"tokens": "rows.parquet"}}).sha256 == before.sha256
    saved(tmp_path, TEN[:9])
    with pytest.raises(XDogeError, match="rows.parquet changed"):
        made({"wiki": {"tokens": "rows.parquet"}})


def test_another_tokenizer_is_told_that_it_cannot_read_tokens(tmp_path, made):
    saved(tmp_path, TEN)
    made({"wiki": {"tokens": "saved"}})
    with pytest.raises(XDogeError, match="has tokens, which another tokenizer cannot read"):
        validation_texts(Corpus.load(tmp_path / "corpus.yaml"))
