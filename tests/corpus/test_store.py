from __future__ import annotations

import json
import pickle
import shutil
import time
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xdoge.corpus import TokenStore, prepare
from xdoge.corpus.spec import TrainTokenizer
from xdoge.corpus.tokenizer import train
from xdoge.errors import XDogeError
from xdoge.names import split_source

WORDS = {
    "eu/wiki": ["etxea", "mendia", "itsasoa", "eguna", "gaua", "lagun", "handia", "txikia"],
    "gl/web": ["casa", "monte", "mar", "noite", "amigo", "grande", "pequeno", "auga"],
}
TEXTS = {
    source: [f"{n} " + " ".join(words[(n * k) % 8] for k in range(1, 3 + n % 6)) for n in range(100)]
    for source, words in WORDS.items()
}
EVERY = [text for texts in TEXTS.values() for text in texts]


def make(folder: Path) -> Path:
    lines = ["name: tiny", "tokenizer: {sentencepiece: t.model}", "validation: {fraction: 0.1}", "languages:"]
    for source, texts in TEXTS.items():
        language, name = split_source(source)
        (folder / f"{language}.txt").write_text("\n".join(texts))
        lines += [f"  {language}:", f"    sources: {{{name}: {{files: {language}.txt, license: cc0}}}}"]
    (folder / "corpus.yaml").write_text("\n".join(lines))
    (folder / "t.model").write_bytes(train(EVERY, TrainTokenizer(vocab_size=40, byte_fallback=False), where="here"))
    return prepare(folder / "corpus.yaml", folder / "store", workers=1).path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return TokenStore.open(make(tmp_path_factory.mktemp("corpus")))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path)


@cache
def joined(store: TokenStore, source: str, split: str) -> list[int]:
    """Return the source's tokens, encoded again from its documents. The validation split tells which are held out."""
    tokenizer = store.tokenizer()
    ids = [tokenizer.encode([text])[0].tolist() for text in TEXTS[source]]
    flat, bounds = store.flat(source, "validation"), store.document_bounds(source, "validation")
    held = [flat[a:b].tolist() for a, b in pairwise(bounds)]
    return [token for document in ids if (document in held) == (split == "validation") for token in document]


def test_a_store_has_a_repr(store: TokenStore) -> None:
    assert (store.name, store.vocab_size, store.end_of_document) == ("tiny", 40, 2)
    assert store.sources == ("eu/wiki", "gl/web")
    assert store.languages == {"eu": ("eu/wiki",), "gl": ("gl/web",)}
    assert repr(store).startswith(f"TokenStore({str(store.path)!r}, name='tiny', languages=2, sources=2, tokens=")
    assert len(store.sha256) == 64


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("source", list(TEXTS))
@given(data=st.data())
def test_sequences_are_pieces_of_the_documents_in_order(
    store: TokenStore, source: str, split: str, data: st.DataObject
) -> None:
    expected = joined(store, source, split)
    length = data.draw(st.integers(1, len(expected)))
    count = store.sequence_counts(length, split)[source]
    assert count == len(expected) // length
    index = data.draw(st.integers(0, count - 1))
    sequence = store.sequence(source, index, length, split)
    assert sequence.tolist() == expected[index * length : (index + 1) * length]
    assert np.shares_memory(sequence, store.flat(source, split))
    indices = data.draw(st.lists(st.integers(0, count - 1), max_size=5))
    several = store.sequences(source, indices, length, split)
    assert several.shape == (len(indices), length)
    assert several.tolist() == [store.sequence(source, i, length, split).tolist() for i in indices]


def test_the_counts_agree_with_the_documents(store: TokenStore) -> None:
    for source, texts in TEXTS.items():
        documents = [store.documents(split)[source] for split in ("train", "validation")]
        assert sum(documents) == len(texts)
        assert min(documents) > 0
        assert sum(store.n_bytes(split)[source] for split in ("train", "validation")) == sum(map(len, texts))
        for split in ("train", "validation"):
            bounds = store.document_bounds(source, split)
            assert len(bounds) == store.documents(split)[source] + 1
            assert (bounds[0], bounds[-1]) == (0, store.tokens(split)[source])
            assert bounds.dtype == np.int64
            ends = store.flat(source, split) == store.end_of_document
            assert np.flatnonzero(ends).tolist() == (bounds[1:] - 1).tolist()


def test_tokens_are_read_only_views_of_the_file(store: TokenStore) -> None:
    flat = store.flat("eu/wiki")
    assert flat.dtype == np.uint16
    assert flat is store.flat("eu/wiki")
    with pytest.raises(ValueError, match="read-only"):
        flat[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        store.document_bounds("eu/wiki")[0] = 1


def test_the_table_is_of_the_text_that_is_trained_on(store: TokenStore) -> None:
    rows = store.table()
    assert [row.source for row in rows] == list(TEXTS)
    assert sum(row.share for row in rows) == pytest.approx(1)
    for row in rows:
        assert row.tokens == store.tokens()[row.source]
        assert row.validation_tokens == store.tokens("validation")[row.source]
        assert row.documents == store.documents()[row.source]
        assert row.bytes_per_token == row.n_bytes / row.tokens


def test_a_pickled_store_opens_the_files_again(store: TokenStore) -> None:
    store.flat("eu/wiki")
    packed = pickle.dumps(store)
    assert len(packed) < 500
    again = pickle.loads(packed)
    assert again.sha256 == store.sha256
    assert again.flat("eu/wiki").tolist() == store.flat("eu/wiki").tolist()


def test_opening_reads_store_json_only(folder: Path) -> None:
    content = json.loads((folder / "store.json").read_text())
    wiki, content["sources"] = content["sources"]["eu/wiki"], {}
    for n in range(28):
        content["sources"][f"eu/s{n}"] = entry = json.loads(json.dumps(wiki).replace("eu/wiki", f"eu/s{n}"))
        for split in ("train", "validation"):
            shutil.copy(folder / wiki[split]["file"], folder / entry[split]["file"])
    (folder / "store.json").write_text(json.dumps(content))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        TokenStore.open(folder)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.05


def test_invalid_arguments_are_refused_in_one_line(store: TokenStore) -> None:
    count = store.sequence_counts(8)["eu/wiki"]
    with pytest.raises(XDogeError, match=rf"eu/wiki \(train\) has {count} sequences of 8 tokens, so .* index {count}"):
        store.sequence("eu/wiki", count, 8)
    with pytest.raises(XDogeError, match="there is no index -1"):
        store.sequence("eu/wiki", -1, 8)
    with pytest.raises(XDogeError, match=rf"has {count} sequences of 8 tokens, and indices go from 0 to {count}"):
        store.sequences("eu/wiki", [0, count], 8)
    with pytest.raises(XDogeError, match="indices go from -1 to 0"):
        store.sequences("eu/wiki", [0, -1], 8)
    with pytest.raises(XDogeError, match="has no source 'eu/web'; it has eu/wiki, gl/web"):
        store.flat("eu/web")
    with pytest.raises(XDogeError, match="split is 'test'; a store has train and validation"):
        store.tokens("test")  # type: ignore[arg-type]
    with pytest.raises(XDogeError, match="length is 0; a sequence has at least 1 token"):
        store.sequence_counts(0)


def test_a_folder_that_is_not_a_store_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(XDogeError, match=r"not a token store: it has no store\.json"):
        TokenStore.open(tmp_path / "nowhere")
    manifest = folder / "store.json"
    text = manifest.read_text()
    manifest.write_text(text.replace("xdoge.store/1", "xdoge.store/2"))
    with pytest.raises(XDogeError, match="newer than xdoge.store/1"):
        TokenStore.open(folder)
    manifest.write_text(text.replace("xdoge.store/1", "xdoge.weights/1"))
    with pytest.raises(XDogeError, match="this is another kind of file"):
        TokenStore.open(folder)
    manifest.write_text(text.replace('"tokenizer"', '"tokeniser"'))
    with pytest.raises(XDogeError, match=r"store\.json is damaged: KeyError\('tokenizer'\)"):
        TokenStore.open(folder)
    manifest.write_text(text[:100])
    with pytest.raises(XDogeError, match=r"store\.json is not JSON"):
        TokenStore.open(folder)


def test_cut_and_missing_files_are_named_when_opened(folder: Path) -> None:
    file = folder / "tokens/gl/web.train.arrow"
    data = file.read_bytes()
    file.write_bytes(data[:-64])
    with pytest.raises(XDogeError, match=r"gl/web\.train\.arrow has [\d,]+ bytes where store\.json says [\d,]+"):
        TokenStore.open(folder)
    file.unlink()
    with pytest.raises(XDogeError, match=r"gl/web\.train\.arrow is missing from the store"):
        TokenStore.open(folder)


def test_verifying_finds_one_changed_byte(folder: Path) -> None:
    store = TokenStore.open(folder)
    store.verify()
    file = folder / "tokens/gl/web.validation.arrow"
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    with pytest.raises(XDogeError, match=r"gl/web\.validation\.arrow is not what prepare wrote: its SHA-256 differs"):
        store.verify()


def test_verifying_finds_another_tokenizer(folder: Path) -> None:
    other = train(EVERY, TrainTokenizer(vocab_size=42, byte_fallback=False), where="here")
    (folder / "tokenizer/tokenizer.model").write_bytes(other)
    with pytest.raises(XDogeError, match="tokenizer is not the tokenizer that made the tokens"):
        TokenStore.open(folder).verify()


def test_a_file_of_the_right_size_that_is_no_token_file_is_named(folder: Path) -> None:
    file = folder / "tokens/gl/web.train.arrow"
    file.write_bytes(b"x" * file.stat().st_size)
    with pytest.raises(XDogeError, match=r"gl/web\.train\.arrow is not a token file"):
        TokenStore.open(folder).flat("gl/web")


def test_a_negative_token_is_refused(store):
    with pytest.raises(XDogeError, match=r"wiki\.train\.arrow is damaged: .* token id -1"):
        store.check_ids("eu/wiki", np.array([3, -1], dtype=np.int32))
