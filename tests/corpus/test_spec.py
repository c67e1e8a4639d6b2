from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from xdoge.corpus import Corpus, CorpusSpec
from xdoge.corpus.paths import text_format
from xdoge.corpus.spec import TrainTokenizer
from xdoge.errors import XDogeError


def content() -> dict[str, Any]:
    return {
        "name": "tiny",
        "tokenizer": {"sentencepiece": "tokenizer.model"},
        "languages": {
            "eu": {"family": "isolate", "sources": {"wiki": {"files": "eu/wiki-*.jsonl"}}},
            "gl": {"sources": {"web": {"files": ["gl/a.txt", "gl/b.csv.gz"], "validation": "gl/held.txt"}}},
        },
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("eu/wiki-2.jsonl", "eu/wiki-1.jsonl", "gl/a.txt", "gl/b.csv.gz", "gl/held.txt", "gl/c.docx"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x\n")
    (tmp_path / "empty").mkdir()
    return tmp_path


def write(folder: Path, value: dict[str, Any]) -> Path:
    path = folder / "corpus.yaml"
    path.write_text(yaml.safe_dump(value, sort_keys=False), encoding="utf-8")
    return path


def changed(*keys: str, to: Any) -> dict[str, Any]:
    value = content()
    inner: Any = value
    for key in keys[:-1]:
        inner = inner[key]
    if to is None:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = to
    return value


def test_files_are_found_beside_the_yaml_file_in_order(folder: Path) -> None:
    corpus = Corpus.load(write(folder, content()))
    assert [source.name for source in corpus.sources] == ["eu/wiki", "gl/web"]
    assert [file.name for file in corpus.sources[0].files] == ["wiki-1.jsonl", "wiki-2.jsonl"]
    assert [file.name for file in corpus.sources[1].files] == ["a.txt", "b.csv.gz"]
    assert corpus.sources[1].validation == (folder / "gl/held.txt",)
    assert corpus.sources[0].family == "isolate"


def test_the_defaults_are_those_of_the_manual(folder: Path) -> None:
    spec = CorpusSpec.load(write(folder, content()))
    source = spec.languages["eu"].sources["wiki"]
    assert (spec.validation.fraction, source.text, source.max_tokens) == (0.005, "text", None)
    trained = CorpusSpec.load(write(folder, changed("tokenizer", to={"train": {"seed": 3}}))).tokenizer.train
    assert trained is not None
    assert (trained.vocab_size, trained.model_type, trained.byte_fallback) == (16_000, "unigram", True)


def test_counts_may_be_written_with_units(folder: Path) -> None:
    value = changed("languages", "eu", "sources", "wiki", "max_tokens", to="1.5B")
    assert CorpusSpec.load(write(folder, value)).languages["eu"].sources["wiki"].max_tokens == 1_500_000_000


def test_a_file_with_brackets_in_its_name_is_itself(folder: Path) -> None:
    (folder / "a[1].txt").write_text("x\n")
    value = changed("languages", "eu", "sources", "wiki", "files", to="a[1].txt")
    assert Corpus.load(write(folder, value)).sources[0].files == (folder / "a[1].txt",)


def test_a_local_folder_may_stand_for_a_data_set(folder: Path) -> None:
    value = changed("languages", "eu", "sources", "wiki", to={"dataset": "gl", "config": "default"})
    assert Corpus.load(write(folder, value)).sources[0].dataset == str(folder / "gl")


WIKI = ("languages", "eu", "sources", "wiki")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (changed("toknizer", to={}), r"corpus\.yaml: toknizer is not a known key"),
        (changed(*WIKI, "txt", to="x"), r"languages\.eu\.sources\.wiki\.txt is not a known key"),
        (changed("tokenizer", to=None), r"tokenizer is missing"),
        (changed("languages", to={}), r"languages: .*at least 1"),
        (changed("languages", "eu", "sources", to={}), r"languages\.eu\.sources: .* at least 1"),
        (changed(*WIKI, to={}), r"languages\.eu\.sources\.wiki: needs files, dataset"),
        (changed(*WIKI, "dataset", to="x"), r"sources\.wiki: has both files and dataset"),
        (changed(*WIKI, "config", to="x"), r"sources\.wiki: config is only for dataset"),
        (changed(*WIKI, "files", to=[]), r"sources\.wiki\.files: must be a path or a list of paths"),
        (changed(*WIKI, "files", to=3), r"sources\.wiki\.files: must be a path"),
        (changed(*WIKI, "max_tokens", to="lots"), r"sources\.wiki\.max_tokens: 'lots' is not a count"),
        (changed(*WIKI, "max_tokens", to=0), r"sources\.wiki\.max_tokens: .* above 0"),
        (changed("name", to="a/b"), r"name: 'a/b' cannot be a name: it becomes a file name"),
        (changed("languages", "eu", "sources", to={"../x": {"files": "gl/a.txt"}}), r"'\.\./x' cannot be a name"),
        (changed("validation", to={"fraction": 0.6}), r"validation\.fraction: .*0\.5"),
        (changed("validation", to={"fraction": -0.1}), r"validation\.fraction: .*0"),
        (changed("tokenizer", to={}), r"tokenizer: give exactly one of .*not none"),
        (
            changed("tokenizer", to={"sentencepiece": "a", "huggingface": "b"}),
            r"tokenizer: give exactly one of .*not sentencepiece and huggingface",
        ),
        (
            changed("tokenizer", to={"train": {"vocab_size": 200}}),
            r"tokenizer\.train: vocab_size 200 is too small; it must be at least 300",
        ),
        (changed("tokenizer", to={"train": {"model_type": "word"}}), r"tokenizer\.train\.model_type: .*bpe"),
        (changed(*WIKI, "files", to="eu/news-*.jsonl"), r"wiki\.files: 'eu/news-\*\.jsonl' matches no file in "),
        (changed(*WIKI, "files", to="eu/none.jsonl"), r"wiki\.files: .*eu/none\.jsonl does not exist"),
        (changed(*WIKI, "files", to="empty"), r"wiki\.files: .*empty has no file of text"),
        (changed(*WIKI, "files", to="gl"), r"wiki\.files: .*gl holds a\.txt and b\.csv\.gz"),
        (changed(*WIKI, "files", to="gl/c.docx"), r"wiki\.files: .*c\.docx: not a format that can be read"),
        (changed(*WIKI, "validation", to="eu/v.txt"), r"wiki\.validation: .*eu/v\.txt does not exist"),
        (changed(*WIKI, "files", to="gl/a.txt"), r"gl/a\.txt is in eu/wiki files and again in gl/web files"),
        (changed(*WIKI, "files", to="gl/held.txt"), r"held\.txt is in eu/wiki files and again in gl/web validation"),
        (
            changed(*WIKI, "files", to=["eu/wiki-1.jsonl", "eu/*.jsonl"]),
            r"wiki-1\.jsonl is in eu/wiki files and again in eu/wiki files",
        ),
    ],
)
def test_errors_in_corpus_yaml_are_one_line(folder: Path, value: dict[str, Any], message: str) -> None:
    with pytest.raises(XDogeError, match=message) as caught:
        Corpus.load(write(folder, value))
    assert "\n" not in str(caught.value)


def test_a_file_beside_its_compressed_copy_is_refused(folder: Path) -> None:
    for name in ("eu/x.jsonl", "eu/x.jsonl.gz"):
        (folder / name).write_bytes(b"")
    with pytest.raises(XDogeError, match=r"x\.jsonl\.gz in eu/wiki files .*eu/x\.jsonl in eu/wiki files"):
        Corpus.load(write(folder, changed(*WIKI, "files", to="eu/x.*")))


def test_one_data_set_cannot_be_two_sources(folder: Path) -> None:
    value = content()
    hub = {"dataset": "org/web", "config": "eu"}
    value["languages"]["eu"]["sources"] = {"a": hub, "b": {**hub, "license": "odc-by"}}
    with pytest.raises(XDogeError, match=r"org/web \(config eu, split train\) is in eu/a dataset and again in eu/b"):
        Corpus.load(write(folder, value))
    value["languages"]["eu"]["sources"]["b"] = {**hub, "split": "test"}
    assert len(Corpus.load(write(folder, value)).sources) == 3


def test_norwegian_has_to_be_quoted(folder: Path) -> None:
    path = write(folder, content())
    path.write_text(path.read_text().replace("gl:", "no:"))
    with pytest.raises(XDogeError, match='YAML reads the bare key `no` as false; write "no" in quotes'):
        Corpus.load(path)


def test_a_key_given_twice_is_refused(folder: Path) -> None:
    path = write(folder, content())
    path.write_text(path.read_text().replace("gl:", "eu:"))
    with pytest.raises(XDogeError, match="'eu' is given twice"):
        Corpus.load(path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.JSONL", (".jsonl", "")), ("a.b.json.zst", (".json", ".zst")), ("x.parquet", (".parquet", ""))],
)
def test_the_extension_says_what_a_file_is(name: str, expected: tuple[str, str]) -> None:
    assert text_format(name) == expected


@pytest.mark.parametrize("name", ["a.parquet.gz", "a.gz", "a", "jsonl"])
def test_other_extensions_are_refused(name: str) -> None:
    with pytest.raises(XDogeError, match="not a format that can be read; use .jsonl"):
        text_format(name)


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("xdoge.corpus.spec", ["torch", "datasets", "transformers", "sentencepiece"]),
        ("xdoge.corpus.prepare", ["torch", "datasets", "transformers", "sentencepiece", "pandas"]),
        ("xdoge.corpus.store", ["torch", "datasets", "transformers", "sentencepiece", "pydantic", "yaml"]),
    ],
)
def test_importing_stays_light(module: str, heavy: list[str]) -> None:
    code = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_package_has_no_other_names() -> None:
    import xdoge.corpus

    with pytest.raises(AttributeError, match="has no attribute 'Stor'"):
        _ = xdoge.corpus.Stor


@pytest.mark.parametrize(
    ("written", "characters"),
    [
        ({"vocab_size": 1000}, 1_000_000),
        ({"vocab_size": "2K"}, 2_000_000),
        ({}, 6_000_000),
        ({"vocab_size": 64_000}, 6_000_000),
        ({"vocab_size": 1000, "characters_per_language": "3e6"}, 3_000_000),
    ],
)
def test_a_tokenizer_learns_from_a_bounded_sample(written, characters):
    assert TrainTokenizer.parse(written, where="tokenizer.train").characters_per_language == characters
