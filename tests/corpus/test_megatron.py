"""Megatron-LM data sets as sources, read in place. test_megatron_core.py compares with megatron-core itself."""

from __future__ import annotations

import json
import os
import shutil
import struct
from itertools import accumulate, count

import numpy as np
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from megatron_files import CODES, END, INDEX, TEN, VOCABULARY, WORDS, documents_of, make, write

from xdoge import Mixture, MixtureSampler, XDogeError
from xdoge.corpus import TokenStore, in_place, megatron, prepare
from xdoge.corpus.external import Joined
from xdoge.names import split_source

# --- what is read is what was written ------------------------------------------------------------------------------

documents = st.lists(st.lists(st.integers(0, VOCABULARY - 1), max_size=6), min_size=1, max_size=8)


@pytest.fixture
def written(tmp_path):
    """`write` in the folder of the test."""
    return lambda prefix, *args, **more: write(tmp_path / prefix, *args, **more)


@settings(max_examples=20)
@given(
    files=st.lists(st.tuples(documents, st.sampled_from(list(CODES)), st.integers(1, 3)), min_size=1, max_size=4),
    fraction=st.sampled_from([0.0, 0.1, 0.3]),
    data=st.data(),
)
def test_any_documents_are_read_as_they_are(model, tmp_path_factory, files, fraction, data):
    folder = tmp_path_factory.mktemp("any")
    number = count(3)  # so that no two documents are equal
    files = [
        ([[next(number), *document, END] for document in each], dtype, sentences) for each, dtype, sentences in files
    ]
    for n, (each, dtype, sentences) in enumerate(files):
        write(folder / f"w{n}", each, dtype, sentences=sentences)
    total = sum(len(each) for each, _, _ in files)
    store = make(folder, model, {"wiki": {"megatron": "w*"}}, fraction=fraction)

    kept, held_out = documents_of(store), documents_of(store, split="validation")
    assert len(kept) == round((1 - fraction) * total)
    assert len(kept) + len(held_out) == total
    for each, _, _ in files:  # the last documents of each file are held out
        n = next(n for n in range(len(each), -1, -1) if kept[:n] == each[:n] and held_out[: len(each) - n] == each[n:])
        kept, held_out = kept[n:], held_out[len(each) - n :]
    assert kept == held_out == []

    tokens = [token for document in documents_of(store) for token in document]
    assert store.tokens() == {"eu/wiki": len(tokens)}
    length = data.draw(st.integers(1, len(tokens)))
    rows = np.array(tokens[: len(tokens) // length * length]).reshape(-1, length).tolist()
    assert store.sequence_counts(length) == {"eu/wiki": len(rows)}
    assert store.sequences("eu/wiki", range(len(rows)), length).tolist() == rows
    assert [store.sequence("eu/wiki", n, length).tolist() for n in range(len(rows))] == rows
    shutil.rmtree(folder)


def test_no_token_is_copied(written, made, tmp_path):
    written("w", TEN * 1_000, np.int32)
    store = made({"wiki": {"megatron": "w"}}, fraction=0.1)
    with pytest.raises(ValueError, match="read-only"):
        store.flat("eu/wiki")[0] = 1
    inside = sum(path.stat().st_size for path in (tmp_path / "store/tokens").rglob("*.arrow"))
    assert inside < 10_000 * 8 + 2_000  # where the documents end, and not their 160,000 bytes
    assert np.shares_memory(store.sequence("eu/wiki", 3, 16), store.flat("eu/wiki"))


def test_empty_documents_are_none(written, made):
    written("w", [[], [5, END], [], [], [6, END], []])
    store = made({"wiki": {"megatron": "w"}})
    assert documents_of(store) == [[5, END], [6, END]]


# --- what corpus.yaml can say --------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", ["d/a_document", "d/a_document.bin", "d/a_document.idx", "d/a*", "**/a_*"])
def test_a_prefix_a_file_or_a_pattern_names_a_data_set(written, made, said):
    written("d/a_document")
    assert documents_of(made({"wiki": {"megatron": said}})) == TEN


def test_several_data_sets_are_read_in_the_order_given(written, made):
    for n, name in enumerate("abc"):
        written(name, [[10 + n, END]])
    assert documents_of(made({"wiki": {"megatron": ["c", "[ab]"]}})) == [[12, END], [10, END], [11, END]]


def test_a_fraction_of_many_small_data_sets_is_not_rounded_away(written, made):
    for n in range(20):
        written(f"w{n:02}", [[n, *document[1:]] for document in TEN[:3]])
    store = made({"wiki": {"megatron": "w*"}}, fraction=0.1)
    assert store.documents("validation") == {"eu/wiki": 6}
    assert store.documents() == {"eu/wiki": 54}


def test_documents_that_begin_or_end_in_another_way_than_those_beside_them_are_warned_of(written, made, tmp_path):
    (tmp_path / "b.jsonl").write_text(
        "".join(json.dumps({"text": f"{word} {n}"}) + "\n" for n, word in enumerate(WORDS))
    )
    marked = [[1, *document, END] for document in TEN]
    for documents, words in (
        (marked, ("begin with the special token 1", "two end-of-document")),
        ([[1, *document] for document in TEN], ("begin with the special token 1",)),
        ([[*document, END] for document in TEN], ("two end-of-document",)),
        (TEN, ()),
        ([*marked[:-1], TEN[-1]], ()),
    ):
        written("w", documents)
        store = made({"wiki": {"megatron": "w"}, "web": {"files": "b.jsonl"}}, refresh=True)
        told = [warning for warning in store.warnings if "unlike those of eu/web" in warning]
        assert len(told) == bool(words)
        assert all(word in told[0] for word in words)
    written("w", marked), written("v", marked[1:])
    store = made({"wiki": {"megatron": "w"}, "web": {"megatron": "v"}}, refresh=True)
    assert not any("unlike" in warning for warning in store.warnings)


def test_validation_may_be_data_sets_of_its_own(written, made):
    written("w"), written("v1", [[30, END]], np.int32), written("v2", [[31, END]])
    store = made({"wiki": {"megatron": "w", "validation": ["v1", "v2.bin"]}}, fraction=0.5)
    assert documents_of(store) == TEN
    assert documents_of(store, split="validation") == [[30, END], [31, END]]


@pytest.mark.parametrize(("most", "documents"), [(1, 1), (4, 1), (5, 2), (28, 7), (29, 8), (36, 9), (99, 10)])
def test_max_tokens_takes_the_documents_up_to_the_one_that_reaches_it(written, made, most, documents):
    written("a", TEN[:6]), written("b", TEN[6:])
    assert documents_of(made({"wiki": {"megatron": ["a", "b"], "max_tokens": most}})) == TEN[:documents]


def test_text_and_data_sets_are_sources_side_by_side(written, made, tmp_path):
    written("w", dtype=np.int32)
    (tmp_path / "web.txt").write_text("etxea mendia\nlagun\n")
    store = made({"web": {"files": "web.txt"}, "wiki": {"megatron": "w"}})
    assert store.documents() == {"eu/web": 2, "eu/wiki": 10}
    assert (store.flat("eu/web").dtype, store.flat("eu/wiki").dtype) == (np.uint16, np.int32)
    store.verify()


def test_the_bytes_are_those_of_the_decoded_text(written, made, model, tmp_path, monkeypatch):
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    words = WORDS.split()
    texts = [" ".join(words[: 1 + n % 8]) for n in range(64)]
    every = [[*processor.encode(text), END] for text in texts]
    written("w", every)
    expected = sum(len(text.encode()) for text in texts)
    store = made({"wiki": {"megatron": "w"}})
    assert store.n_bytes() == {"eu/wiki": expected}
    assert store.warnings == (
        "eu/wiki: every document was assigned to training, so its validation loss cannot be measured.",
    )

    monkeypatch.setattr(in_place, "DECODED", store.tokens()["eu/wiki"] // 3)
    store = made({"wiki": {"megatron": "w"}}, fraction=0.25, out="other")
    assert store.n_bytes("validation")["eu/wiki"] == sum(len(text.encode()) for text in texts[48:])  # always whole
    assert store.n_bytes()["eu/wiki"] == pytest.approx(sum(len(text.encode()) for text in texts[:48]), rel=0.1)
    (warning,) = store.warnings
    assert warning.startswith("eu/wiki: its bytes are estimated from ")


# --- the rest of the library reads it as any store -----------------------------------------------------------------


@pytest.fixture
def twins(store, tmp_path, written):
    """The tiny store, and one with the same tokens as Megatron data sets, two files per source."""
    sources = {}
    for source in store.sources:
        each = {split: documents_of(store, source, split) for split in ("train", "validation")}
        half = len(each["train"]) // 2
        for name, some in (("a", each["train"][:half]), ("b", each["train"][half:]), ("v", each["validation"])):
            written(f"{source}-{name}", some, np.int32)
        language, short = split_source(source)
        entry = {"megatron": f"{source}-[ab]", "validation": f"{source}-v"}
        sources.setdefault(language, {"sources": {}})["sources"][short] = entry
    shutil.copy(store.path / "tokenizer/tokenizer.model", tmp_path / "t.model")
    content = {"name": "tiny", "tokenizer": {"sentencepiece": "t.model"}, "languages": sources}
    (tmp_path / "corpus.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return store, prepare(tmp_path / "corpus.yaml", tmp_path / "store", workers=1)


def test_a_fit_reads_of_data_sets_what_it_reads_of_the_text(twins, recipe):
    import torch

    from xdoge.fit.batches import draw
    from xdoge.fit.settings import FitSettings
    from xdoge.training.validation import validation_losses

    batches = [[], []]
    for store, rows in zip(twins, batches, strict=True):
        settings = FitSettings.for_store(store, {"proxy": recipe})
        counts = np.full(4, 30)
        rows.append(draw(store, counts, counts, settings=settings).tolist())
        validation_losses(
            lambda ids, rows=rows: rows.append(ids.tolist()) or torch.zeros(len(ids)), store, 16, most=9, rows=4
        )
    assert isinstance(twins[1].flat("es/web"), Joined)
    assert batches[0] == batches[1]
    assert len(batches[0]) > 4


@pytest.mark.parametrize("documents", ["ignore", "separate"])
def test_a_mixture_of_data_sets_reads_what_it_reads_of_the_text(twins, documents):
    from xdoge.sampling import MixtureDataset

    batches = []
    for store in twins:
        mixture = Mixture.plan(
            dict.fromkeys(store.sources, 1 / 4), available_tokens=store.tokens(), budget_tokens=8_000
        )
        sampler = MixtureSampler(mixture, store.sequence_counts(32), batch_size=8, sequence_length=32)
        batches.append(MixtureDataset(store, sampler, 32, documents=documents)[:])
    assert all((batches[0][name] == batches[1][name]).all() for name in batches[0])


def test_perplexity_is_asked_of_the_same_documents(twins):
    pytest.importorskip("lm_eval")
    from xdoge.eval.documents import StoreText

    texts = [StoreText(store, str(store.path / "tokenizer")).read("eu/wiki") for store in twins]
    assert [tokens.tolist() for tokens in texts[0].tokens] == [tokens.tolist() for tokens in texts[1].tokens]
    assert texts[0].n_bytes.tolist() == texts[1].n_bytes.tolist()


def test_a_model_with_another_tokenizer_is_not_shown_tokens_as_text(twins):
    from xdoge.corpus import Corpus
    from xdoge.eval.documents import validation_texts

    with pytest.raises(XDogeError, match=r"es\.sources\.web has tokens, which another tokenizer cannot read; name"):
        validation_texts(Corpus.load(twins[1].path.parent / "corpus.yaml"))


# --- what is refused -----------------------------------------------------------------------------------------------


def header(**changes):
    def damage(path):
        idx = path.with_suffix(".idx")
        names = ("magic", "version", "code", "sequences", "documents")
        fields = dict(zip(names, INDEX.unpack_from(idx.read_bytes()), strict=True))
        idx.write_bytes(INDEX.pack(*(fields | changes).values()) + idx.read_bytes()[INDEX.size :])

    return damage


def put(at, value, kind="<q"):
    """Overwrite a number in the .idx. 10 lengths begin at byte 34, 10 pointers at 74, 11 bounds at 154."""

    def damage(path):
        data = bytearray(path.with_suffix(".idx").read_bytes())
        struct.pack_into(kind, data, at, value)
        path.with_suffix(".idx").write_bytes(data)

    return damage


def cut(ending, size):
    return lambda path: path.with_suffix(ending).write_bytes(path.with_suffix(ending).read_bytes()[:size])


def longer(ending, more):
    return lambda path: path.with_suffix(ending).write_bytes(path.with_suffix(ending).read_bytes() + more)


BROKEN = {
    "another kind": (header(magic=b"TNTIDX\0\0\0"), r"w\.idx is not the index of a Megatron-LM data set: it does not"),
    "no header": (cut(".idx", 20), r"w\.idx is cut: it has 20 bytes"),
    "empty idx": (cut(".idx", 0), r"w\.idx is not the index of a Megatron-LM data set"),
    "version": (header(version=2), r"w\.idx is of version 2; only version 1, little-endian"),
    "big-endian": (header(version=1 << 56), r"w\.idx is of version 72,057,594,037,927,936; only version 1, little-end"),
    "floats": (header(code=7), r"w\.idx says that w\.bin holds float32; token ids are whole numbers"),
    "no type": (header(code=99), r"w\.idx says that w\.bin holds the unknown type 99"),
    "cut idx": (
        cut(".idx", -8),
        r"w\.idx has 234 bytes where 10 sequences and 11 document bounds take 242",
    ),
    "counts": (header(sequences=1 << 63), r"w\.idx has 242 bytes where 9,223,372,036,854,775,808 sequences"),
    "modes": (longer(".idx", b"\0" * 10), r"w\.idx belongs to a multimodal data set"),
    "cut bin": (cut(".bin", -2), r"w\.bin has 78 bytes where w\.idx says 80; one of them was cut"),
    "long bin": (longer(".bin", b"\2\0"), r"w\.bin has 82 bytes where w\.idx says 80"),
    "past the end": (put(34 + 9 * 4, 5, "<i"), r"w\.bin has 80 bytes where w\.idx says 82"),
    "apart": (put(74 + 9 * 8, 74), r"w\.idx does not list the sequences .* w\.bin"),
    "negative": (put(34, -4, "<i"), r"w\.idx is damaged: a sequence has -4 tokens"),
    "last document": (put(154 + 80, 9), r"w\.idx is damaged: its documents .* 10 sequences"),
    "first document": (put(154, 1), r"w\.idx is damaged: its documents"),
    "order": (put(154 + 8, 7), r"w\.idx is damaged: its documents"),
    "overflow": (lambda path: [put(154 + 8, 2**63 - 1)(path), put(154 + 16, -2)(path)], r"w\.idx is damaged: its doc"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_damaged_data_set_is_refused_in_one_line_before_anything_is_written(written, made, tmp_path, name):
    damage, message = BROKEN[name]
    damage(written("w").with_suffix(".bin"))
    with pytest.raises(
        XDogeError, match=rf"corpus\.yaml: languages\.eu\.sources\.wiki\.megatron: .*{message}"
    ) as caught:
        made({"wiki": {"megatron": "w"}})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "store").exists()


@settings(max_examples=80)
@given(st.data())
def test_no_damage_to_an_index_ends_in_anything_but_one_line(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damage")
    path = write(folder / "w")
    content = bytearray(path.with_suffix(".idx").read_bytes())
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, 241), st.integers(0, 255)), max_size=12)):
        content[at] = value
    path.with_suffix(".idx").write_bytes(content[: data.draw(st.sampled_from([242, 242, 241, 100, 34, 3]))])
    try:
        index = megatron.read_index(path.with_suffix(".bin"))
    except XDogeError:
        return
    assert index.bounds[-1] * index.dtype.itemsize == 80
    assert (np.diff(index.bounds) > 0).all()


def test_a_data_set_without_documents_is_refused(written, made):
    written("w", [])
    with pytest.raises(XDogeError, match=r"w\.bin is empty"):
        made({"wiki": {"megatron": "w"}})


@pytest.mark.parametrize(("dtype", "token"), [(np.uint16, 40), (np.int32, 32_000), (np.int32, -1)])
def test_ids_that_are_not_the_tokenizers_are_refused(written, made, dtype, token):
    written("w", [*TEN, [5, token, END]], dtype)
    with pytest.raises(
        XDogeError, match=rf"holds the token id {token:,}, and the ids of the tokenizer are 0 to 39; name"
    ):
        made({"wiki": {"megatron": "w"}})


@pytest.mark.parametrize("size", [8, 16, 24, 1 << 24])
def test_documents_without_an_end_are_refused(written, made, monkeypatch, size):
    monkeypatch.setattr(in_place, "CHUNK", size)
    written("w", [*TEN, [5, 7], *TEN])
    message = (
        r"w\.bin: document 10 ends with token 7, not with the tokenizer's end-of-document token, 2; use a data set "
    )
    with pytest.raises(XDogeError, match=message + "written with --append-eod"):
        made({"wiki": {"megatron": "w"}})


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({"megatron": "nowhere"}, r"sources\.wiki\.megatron: .*nowhere\.bin does not exist"),
        ({"megatron": "no*"}, r"sources\.wiki\.megatron: 'no\*\.bin' matches no file in"),
        (
            {"megatron": "lone"},
            r"sources\.wiki\.megatron: .*lone\.idx does not exist, and lone\.bin cannot be read witho",
        ),
        ({"megatron": "w", "validation": "x"}, r"sources\.wiki\.validation: .*x\.bin does not exist"),
        ({"megatron": "w", "validation": "w"}, r"w\.bin is in eu/wiki megatron and again in eu/wiki validation"),
        ({"megatron": "w", "files": "a.txt"}, "has both files and megatron"),
        ({"megatron": "w", "text": "body"}, "text is only for files and dataset.* megatron"),
        ({"megatron": "w", "config": "x"}, "config is only for dataset.* megatron"),
        ({"megatron": []}, "must be a path or a list of paths"),
    ],
)
def test_what_corpus_yaml_says_wrong_is_named(written, made, tmp_path, sources, message):
    written("w")
    (tmp_path / "lone.bin").write_bytes(b"x")
    with pytest.raises(XDogeError, match=message):
        made({"wiki": sources})


def test_a_tokenizer_cannot_be_trained_on_tokens(written, tmp_path):
    written("w")
    (tmp_path / "corpus.yaml").write_text(
        "name: t\ntokenizer: {train: {vocab_size: 300}}\nlanguages: {eu: {sources: {wiki: {megatron: w}}}}"
    )
    with pytest.raises(XDogeError, match=r"tokenizer\.train .* eu/wiki"):
        prepare(tmp_path / "corpus.yaml", tmp_path / "store")


# --- what changes later --------------------------------------------------------------------------------------------


def test_the_same_call_again_keeps_what_is_there_and_a_changed_data_set_needs_refresh(written, made, tmp_path):
    written("w")
    made({"wiki": {"megatron": "w"}})
    before = (tmp_path / "store/store.json").read_bytes()
    made({"wiki": {"megatron": "w"}})
    assert (tmp_path / "store/store.json").read_bytes() == before
    written("w", TEN[:5])
    with pytest.raises(
        XDogeError, match=r"w\.bin has 40 bytes where store\.json says 80; .* it lies outside the store"
    ):
        TokenStore.open(tmp_path / "store")
    with pytest.raises(
        XDogeError, match=r"sources\.wiki: w\.bin changed since it was prepared in .*; add refresh=True"
    ):
        made({"wiki": {"megatron": "w"}})
    assert documents_of(made({"wiki": {"megatron": "w"}}, refresh=True)) == TEN[:5]


def test_a_source_may_turn_from_text_into_a_data_set_and_back(written, made, tmp_path):
    written("w")
    (tmp_path / "a.txt").write_text("etxea mendia\n")
    made({"wiki": {"files": "a.txt"}})
    assert documents_of(made({"wiki": {"megatron": "w"}}, refresh=True)) == TEN
    assert made({"wiki": {"files": "a.txt"}}, refresh=True).flat("eu/wiki").dtype == np.uint16


def test_a_missing_or_changed_data_set_is_found_by_the_store(written, made, tmp_path):
    path = written("w").with_suffix(".bin")
    store = made({"wiki": {"megatron": "w"}}, fraction=0.2)
    store.verify()
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        XDogeError, match=r"w\.bin is not what prepare read: its SHA-256 differs from store\.json; it li"
    ):
        store.verify()
    path.unlink()
    with pytest.raises(XDogeError, match=r"w\.bin is missing from the store; it lies outside the store"):
        TokenStore.open(tmp_path / "store")


@pytest.mark.parametrize("absolute", [False, True])
def test_paths_in_the_store_are_relative_or_absolute_as_they_were_given(written, made, tmp_path, absolute):
    path = written("data/w")
    made({"wiki": {"megatron": str(path) if absolute else "data/w"}})
    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.move(tmp_path / "store", moved / "store")
    if not absolute:
        shutil.move(tmp_path / "data", moved / "data")
    assert documents_of(TokenStore.open(moved / "store")) == TEN


def test_a_data_set_may_be_links_to_files_of_other_names(written, made, tmp_path):
    path = written("data/blob")
    (tmp_path / "linked").mkdir()
    for ending in (".bin", ".idx"):
        path.with_suffix(ending).rename(tmp_path / f"data/{ending[1:]}-0123")
        (tmp_path / f"linked/w{ending}").symlink_to(tmp_path / f"data/{ending[1:]}-0123")
    store = made({"wiki": {"megatron": "linked/w"}})
    assert documents_of(store) == TEN
    store.verify()


def test_a_store_that_was_moved_away_from_its_data_set_is_prepared_again(written, made, tmp_path):
    written("w")
    made({"wiki": {"megatron": "w"}})
    (tmp_path / "deep").mkdir()
    shutil.move(tmp_path / "store", tmp_path / "deep/store")
    with pytest.raises(XDogeError, match=r"w\.bin is missing"):
        TokenStore.open(tmp_path / "deep/store")
    assert documents_of(made({"wiki": {"megatron": "w"}}, out="deep/store")) == TEN


def test_a_data_set_cut_while_the_store_is_open_is_named(written, made):
    path = written("w").with_suffix(".bin")
    store = made({"wiki": {"megatron": "w"}})
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(XDogeError, match=r"w\.bin cannot be mapped: .* it lies outside the store"):
        store.flat("eu/wiki")


@pytest.mark.parametrize(
    ("key", "value"),
    [("dtype", "O"), ("dtype", "float32"), ("dtype", "bogus"), ("begin", -1), ("end", 41), ("end", None), ("more", 1)],
)
def test_a_store_that_names_its_raw_files_wrongly_is_damaged(written, made, tmp_path, key, value):
    written("w")
    made({"wiki": {"megatron": "w"}})
    manifest = tmp_path / "store/store.json"
    content = json.loads(manifest.read_text())
    content["sources"]["eu/wiki"]["train"]["raw"][0][key] = value
    manifest.write_text(json.dumps(content))
    with pytest.raises(XDogeError, match=r"store\.json is damaged: TypeError"):
        TokenStore.open(tmp_path / "store")


def test_mapped_files_are_not_kept_open(written, made):
    for n in range(20):
        written(f"w{n}", [[n, 7, 8, END]])
    store = made({"wiki": {"megatron": "w*"}})
    before = len(os.listdir("/proc/self/fd"))
    assert len(store.flat("eu/wiki")) == 20 * 4
    assert len(os.listdir("/proc/self/fd")) == before


# --- several files as one --------------------------------------------------------------------------------------------


@given(
    lengths=st.lists(st.integers(0, 4), min_size=1, max_size=5),
    begin=st.integers(-25, 25) | st.none(),
    end=st.integers(-25, 25) | st.none(),
)
@example(lengths=[0, 0], begin=None, end=None)
def test_joined_files_are_sliced_like_one_array(lengths, begin, end):
    whole = np.arange(sum(lengths))
    ends = list(accumulate(lengths))
    joined = Joined([whole[stop - length : stop] for stop, length in zip(ends, lengths, strict=True)])
    assert len(joined) == len(whole)
    assert joined[begin:end].tolist() == whole[begin:end].tolist()
    with pytest.raises(ValueError, match="one after the other"):
        joined[::2]
