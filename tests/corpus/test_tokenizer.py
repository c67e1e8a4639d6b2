from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from xdoge.corpus import Tokenizer
from xdoge.corpus.spec import TokenizerSpec, TrainTokenizer
from xdoge.corpus.tokenizer import huggingface, level, load_tokenizer, sample, saved, sentencepiece_model, train
from xdoge.errors import Interrupted, XDogeError

WORDS = {
    "eu": ["etxea", "mendia", "itsasoa", "eguna", "gaua", "lagun", "handia", "txikia", "berria", "ura", "sua"],
    "gl": ["casa", "monte", "mar", "día", "noite", "amigo", "grande", "pequeno", "novo", "auga", "lume"],
}


def texts(seed: int = 0, count: int = 300) -> list[str]:
    draw = random.Random(seed)
    return [
        "\n".join(" ".join(draw.choices(words, k=9)) + "." for _ in range(draw.randint(1, 4)))
        for _ in range(count)
        for words in WORDS.values()
    ]


@pytest.fixture(scope="module")
def model() -> bytes:
    return train(texts(), TrainTokenizer(vocab_size=304), where="here")


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer whose template adds <s>, as in many published models."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts(), trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    backend.enable_truncation(max_length=16)
    folder = tmp_path_factory.mktemp("hf")
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    return folder


def test_a_vocabulary_beyond_the_text_is_refused_whatever_its_size():
    with pytest.raises(XDogeError, match="here"):
        train(texts(), TrainTokenizer(vocab_size=2**30 - 1), where="here")


def test_every_document_ends_with_its_end_token(model: bytes) -> None:
    tokenizer = sentencepiece_model(model, where="here")
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    documents = ["etxea mendia", "x", *texts(1, 5), "日本語 <s> </s>"]
    tokens, lengths = tokenizer.encode(documents)
    expected = [[*theirs.encode(document), 2] for document in documents]
    assert tokens.tolist() == list(chain.from_iterable(expected))
    assert lengths.tolist() == [len(ids) for ids in expected]
    assert tokens.dtype == np.uint16
    assert (tokenizer.end_of_document, tokenizer.vocab_size, tokenizer.kind) == (2, 304, "sentencepiece")


def test_no_documents_give_no_tokens(model: bytes, hugging_face: Path) -> None:
    for tokenizer in (sentencepiece_model(model, where="here"), tokenizer_of(hugging_face)):
        tokens, lengths = tokenizer.encode([])
        assert (len(tokens), len(lengths)) == (0, 0)


def tokenizer_of(folder: Path) -> Tokenizer:
    return load_tokenizer(TokenizerSpec(huggingface=folder.name), folder.parent)


def test_a_hugging_face_tokenizer_gives_the_ids_of_auto_tokenizer(hugging_face: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(hugging_face, split_special_tokens=True)
    documents = [*texts(2, 20), "日本語 <s> a </s> b", "kaixo " * 100]
    expected = [[*ids, 1] for ids in theirs(documents, add_special_tokens=False)["input_ids"]]
    tokenizer = tokenizer_of(hugging_face)
    tokenizer.save(tmp_path / "saved")
    for loaded in (tokenizer, Tokenizer.load(tmp_path / "saved")):
        tokens, lengths = loaded.encode(documents)
        assert tokens.tolist() == list(chain.from_iterable(expected))
        assert lengths.tolist() == [len(ids) for ids in expected]
        assert (loaded.end_of_document, loaded.vocab_size, loaded.kind) == (1, len(theirs), "huggingface")
        assert loaded.fingerprint == tokenizer.fingerprint
    again, before = (AutoTokenizer.from_pretrained(folder) for folder in (tmp_path / "saved", hugging_face))
    assert again(documents)["input_ids"] == before(documents)["input_ids"]


def test_decoding_gives_the_text_without_special_tokens(model: bytes, hugging_face: Path, tmp_path: Path) -> None:
    from transformers import ByT5Tokenizer

    ByT5Tokenizer().save_pretrained(tmp_path / "bytes")
    tokenizer_of(hugging_face).save(tmp_path / "saved")
    documents = [*(text.replace("\n", " ") for text in texts(3, 5)), "日本語 , don 't", ""]
    for loaded, first in (
        (sentencepiece_model(model, where="here"), 1),
        (tokenizer_of(hugging_face), 0),
        (Tokenizer.load(tmp_path / "saved"), 0),
        (tokenizer_of(tmp_path / "bytes"), 0),
    ):
        tokens = [[first, *loaded.encode([document])[0].tolist()] for document in documents]
        assert loaded.decode(tokens) == documents


@pytest.mark.parametrize("split", [False, True])
def test_the_name_of_a_special_token_inside_a_text_is_text(hugging_face: Path, tmp_path: Path, split: bool) -> None:
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(hugging_face, split_special_tokens=split).save_pretrained(tmp_path / "model")
    tokenizer = tokenizer_of(tmp_path / "model")
    tokenizer.save(tmp_path / "saved")
    text = "a </s> b <s>"
    for loaded in (tokenizer, Tokenizer.load(tmp_path / "saved"), huggingface(str(tmp_path / "saved"))):
        ids = loaded.encode([text])[0].tolist()
        assert ids[-1] == loaded.end_of_document == 1
        assert not {0, 1} & set(ids[:-1])
        assert loaded.decode([ids]) == [text]


def test_ordinary_text_has_the_same_tokens_as_with_special_tokens_parsed(hugging_face: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(hugging_face)
    documents = [*texts(4, 50), "日本語 a<b, x > y </ s>", "  two  spaces\t\n"]
    expected = theirs(documents, add_special_tokens=False)["input_ids"]
    tokens, _ = tokenizer_of(hugging_face).encode(documents)
    assert tokens.tolist() == list(chain.from_iterable([*ids, 1] for ids in expected))


@pytest.mark.parametrize("text", ["[1, 2]", "null", "{"])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config.json"])
def test_a_file_of_a_hugging_face_tokenizer_that_is_no_object_is_refused_by_name(
    hugging_face: Path, tmp_path: Path, name: str, text: str
) -> None:
    shutil.copytree(hugging_face, tmp_path / "model")
    (tmp_path / "model" / name).write_text(text)
    with pytest.raises(XDogeError, match=f"model/{name} .*JSON"):
        tokenizer_of(tmp_path / "model")


def test_a_tokenizer_written_in_python_works_too(tmp_path: Path) -> None:
    from transformers import ByT5Tokenizer

    ByT5Tokenizer().save_pretrained(tmp_path / "bytes")
    tokenizer = tokenizer_of(tmp_path / "bytes")
    tokenizer.save(tmp_path / "saved")
    for loaded in (tokenizer, Tokenizer.load(tmp_path / "saved")):
        assert loaded.encode(["ab", "é"])[0].tolist() == [100, 101, 1, 198, 172, 1]
        assert loaded.encode(["</s>"])[0].tolist() == [63, 50, 118, 65, 1]
        assert loaded.fingerprint == tokenizer.fingerprint


def test_a_saved_model_is_the_same_and_loads_without_transformers(model: bytes, tmp_path: Path) -> None:
    tokenizer = sentencepiece_model(model, where="here")
    tokenizer.save(tmp_path / "t", settings={"train": {"seed": 1}})
    assert (tmp_path / "t/tokenizer.model").read_bytes() == model
    again = Tokenizer.load(tmp_path / "t")
    assert (again.fingerprint, again.vocab_size) == (tokenizer.fingerprint, tokenizer.vocab_size)
    assert repr(again) == f"Tokenizer(sentencepiece, vocab_size=304, fingerprint={again.fingerprint[:12]})"
    note = saved(tmp_path / "t")
    assert note is not None
    assert note["settings"] == {"train": {"seed": 1}}
    assert saved(tmp_path) is None


def test_large_vocabularies_take_four_bytes() -> None:
    def tokenizer(vocab_size: int) -> Tokenizer:
        return Tokenizer(
            "huggingface",
            encoder=lambda texts: [[vocab_size - 1] for _ in texts],
            decoder=lambda documents: ["" for _ in documents],
            vocab_size=vocab_size,
            end_of_document=1,
            fingerprint="",
            write=lambda folder: None,
        )

    assert tokenizer(65_536).encode(["x"])[0].tolist() == [65_535, 1]
    assert tokenizer(65_536).dtype == np.uint16
    assert tokenizer(65_537).encode(["x"])[0].tolist() == [65_536, 1]
    assert tokenizer(65_537).dtype == np.uint32


def test_an_invalid_tokenizer_is_one_line(model: bytes, hugging_face: Path, tmp_path: Path) -> None:
    (tmp_path / "text.model").write_text("I am not a model")
    (tmp_path / "empty.model").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/tokenizer.json").write_text('{"version": "1.0"}')
    no_end = json.loads((hugging_face / "tokenizer_config.json").read_text())
    del no_end["eos_token"]
    (tmp_path / "endless").mkdir()
    (tmp_path / "endless/tokenizer.json").write_text((hugging_face / "tokenizer.json").read_text())
    (tmp_path / "endless/tokenizer_config.json").write_text(json.dumps(no_end))
    for settings, message in (
        ({"sentencepiece": "text.model"}, r"^.*text\.model is not a SentencePiece model"),
        ({"sentencepiece": "empty.model"}, r"^.*empty\.model is not a SentencePiece model"),
        ({"sentencepiece": "none.model"}, r"^.*none\.model: no such file or directory"),
        ({"sentencepiece": "folder"}, r"^.*folder: is a directory"),
        ({"huggingface": "folder"}, r"^.*folder cannot be read as a Hugging Face tokenizer: "),
        ({"huggingface": "broken"}, r"^.*broken cannot be read as a Hugging Face tokenizer: "),
        ({"huggingface": "endless"}, r"^.*endless has no end-of-sentence token .*; set eos_token"),
    ):
        with pytest.raises(XDogeError, match=message) as caught:
            load_tokenizer(TokenizerSpec.model_validate(settings), tmp_path)
        assert "\n" not in str(caught.value)


def test_a_signal_while_loading_a_tokenizer_is_not_reported_as_its_error(
    hugging_face: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    def stop(name: str, **_: object) -> None:
        raise Interrupted(15, "terminated")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", stop)
    with pytest.raises(Interrupted, match="terminated"):
        tokenizer_of(hugging_face)


@pytest.mark.parametrize("stop", [Interrupted(15, "terminated"), KeyboardInterrupt()])
def test_a_signal_while_training_a_tokenizer_is_not_reported_as_an_error_of_the_text(stop: BaseException) -> None:
    def interrupted() -> Iterator[str]:
        yield from texts(1)
        raise stop

    with pytest.raises(type(stop)):
        train(interrupted(), TrainTokenizer(vocab_size=304), where="here")


def test_a_model_without_an_end_is_refused() -> None:
    import io

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts()), model_writer=model, vocab_size=40, eos_id=-1, minloglevel=2
    )
    with pytest.raises(XDogeError, match="here has no end-of-sentence piece to end documents with"):
        sentencepiece_model(model.getvalue(), where="here")


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_training_gives_the_same_model_twice(kind: str) -> None:
    spec = TrainTokenizer.model_validate({"vocab_size": 304, "model_type": kind})
    model = train(texts(), spec, where="here")
    assert model == train(texts(), spec, where="here")
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert [processor.id_to_piece(n) for n in range(4)] == ["<unk>", "<s>", "</s>", "<pad>"]
    assert processor.vocab_size() == 304
    assert 0 not in processor.encode("日本語")  # bytes, not <unk>


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_too_large_a_vocabulary_says_the_largest_that_works(kind: str) -> None:
    spec = TrainTokenizer.model_validate({"vocab_size": 9_000, "model_type": kind})
    with pytest.raises(XDogeError, match="here: vocab_size 9000 is more than the text gives") as caught:
        train(texts(), spec, where="here")
    match = re.search(r"at most (\d+) works\.$", str(caught.value))
    assert match is not None
    largest = TrainTokenizer.model_validate({"vocab_size": int(match[1]), "model_type": kind})
    assert sentencepiece_model(train(texts(), largest, where="here"), where="it").vocab_size == int(match[1])


def test_too_many_letters_for_the_vocabulary_are_reported() -> None:
    letters = "".join(chr(0x4E00 + n) for n in range(200))
    with pytest.raises(XDogeError, match=r"vocab_size 300 cannot hold the letters of the text; use more than \d+"):
        train([letters] * 20, TrainTokenizer(vocab_size=300, character_coverage=1.0), where="here")


@given(st.lists(st.text(max_size=9), unique=True), st.integers(1, 60), st.randoms())
def test_a_sample_does_not_depend_on_the_order(documents: list[str], characters: int, draw: random.Random) -> None:
    chosen = sample(documents, characters=characters, seed=7)
    shuffled = draw.sample(documents, len(documents))
    assert [text for text in sample(shuffled, characters=characters, seed=7) if text] == [t for t in chosen if t]
    total = sum(map(len, documents))
    assert sum(map(len, chosen)) >= min(characters, total)
    if total > characters:  # without its last document it would be short
        assert sum(map(len, chosen[:-1])) < characters


def test_another_seed_draws_another_sample() -> None:
    documents = texts(3)
    assert sample(documents, characters=500, seed=0) != sample(documents, characters=500, seed=1)


@given(st.lists(st.lists(st.text(min_size=1, max_size=5), max_size=12), min_size=1, max_size=4), st.integers(1, 80))
def test_leveling_shares_evenly_what_small_sources_allow(samples: list[list[str]], characters: int) -> None:
    chosen = level(samples, characters=characters)
    sizes = [sum(map(len, part)) for part in chosen]
    full = [sum(map(len, part)) for part in samples]
    longest = 5
    assert all(part == whole[: len(part)] for part, whole in zip(chosen, samples, strict=True))
    assert sum(sizes) >= min(characters, sum(full)) - longest * len(samples)
    assert sum(sizes) <= characters + longest * len(samples)
    cut = [size for size, whole in zip(sizes, full, strict=True) if size < whole]
    assert all(size <= min(cut) + longest * len(samples) for size in sizes if cut)


def test_lines_that_sentencepiece_would_leave_out_are_cut() -> None:
    lines = texts()
    book = " ".join(lines[1::2]).replace("\n", " ") * 8
    assert len(book.encode()) > 1 << 16
    for documents in ([*lines[::2], book], [book]):
        tokenizer = sentencepiece_model(train(documents, TrainTokenizer(vocab_size=320), where="here"), where="here")
        tokens, _ = tokenizer.encode([lines[1]])
        assert len(lines[1].encode()) / len(tokens) > 3  # letter by letter it was 1


@pytest.mark.parametrize("old", [False, True])
def test_dropout_of_a_tokenizer_is_off(hugging_face: Path, tmp_path: Path, old: bool) -> None:
    content = json.loads((hugging_face / "tokenizer.json").read_text())
    clean = load_tokenizer(TokenizerSpec(huggingface=hugging_face.name), hugging_face.parent)
    content["model"]["dropout"] = 0.5
    folder = tmp_path / "hf"
    folder.mkdir()
    for file in hugging_face.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = load_tokenizer(TokenizerSpec(huggingface="hf"), tmp_path)
    assert tokenizer.fingerprint == clean.fingerprint
    tokenizer.save(tmp_path / "saved")
    if old:  # saved by an earlier version
        (tmp_path / "saved/tokenizer.json").write_text(json.dumps({**content, "truncation": None}))
    for loaded in (tokenizer, Tokenizer.load(tmp_path / "saved")):
        for text in texts(count=20):
            assert loaded.encode([text])[0].tolist() == clean.encode([text])[0].tolist()


@pytest.mark.parametrize("name", ["tokenizer.model", "hf"])
def test_a_tokenizer_that_is_a_pointer_of_git_lfs_is_named(tmp_path: Path, hugging_face: Path, name: str) -> None:
    file = tmp_path / name
    if name == "hf":
        file.mkdir()
        (file / "tokenizer_config.json").write_bytes((hugging_face / "tokenizer_config.json").read_bytes())
        file /= "tokenizer.json"
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:46\nsize 1\n")
    spec = TokenizerSpec(huggingface=name) if name == "hf" else TokenizerSpec(sentencepiece=name)
    with pytest.raises(XDogeError, match="Git LFS pointer") as caught:
        load_tokenizer(spec, tmp_path)
    assert file.name in str(caught.value)
