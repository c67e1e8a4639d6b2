"""Load every file in examples/, and run those that need no network."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import yaml
from tiny_models import save_byte_tokenizer

from xdoge.corpus import Corpus, CorpusSpec, TokenStore
from xdoge.corpus.prepare import prepare
from xdoge.errors import XDogeError

EXAMPLES = Path(__file__).parent.parent / "examples"
IBERIAN = EXAMPLES / "iberian/corpus.yaml"
WIKIPEDIA = {"id": "1", "url": "https://example.org", "title": "title"}
FINEWEB2 = {
    "id": "<urn:uuid:1>",
    "dump": "CC-MAIN-2024-10",
    "url": "https://example.org",
    "date": "2024-02-21T00:00:00Z",
    "file_path": "s3://commoncrawl/x.warc.gz",
    "language": "glg",
    "language_score": 0.98,
    "language_script": "Latn",
    "minhash_cluster_size": 3,
    "top_langs": "{}",
}
FINEWEB_EDU = {
    **{key: FINEWEB2[key] for key in ("id", "dump", "url", "file_path", "language", "language_score")},
    "token_count": 9,
    "score": 3.2,
    "int_score": 3,
}


def documents(config: str) -> list[str]:
    return [f"{config} {n} " + "palabra etxea house " * (n % 9) for n in range(300)]


def write_data_set(folder: Path, configs: dict[str, str], columns: dict[str, Any]) -> None:
    """Write two Parquet files for each config, at the paths that the data set's card states."""
    card = {
        "configs": [
            {"config_name": config, "data_files": [{"split": "train", "path": f"{place}/*"}]}
            for config, place in configs.items()
        ]
    }
    for config, place in configs.items():
        (folder / place).mkdir(parents=True)
        texts = documents(config)
        for number, part in enumerate((texts[:200], texts[200:])):
            rows = [{**columns, "text": text} for text in part]
            parquet.write_table(pa.Table.from_pylist(rows), folder / place / f"{number:03}.parquet", row_group_size=50)
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n")


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's unchanged corpus.yaml, next to folders with the names of its data sets."""
    folder = tmp_path_factory.mktemp("iberian")
    shutil.copy(IBERIAN, folder)
    codes = ("spa_Latn", "cat_Latn", "glg_Latn", "eus_Latn", "por_Latn")
    write_data_set(folder / "HuggingFaceFW/fineweb-2", {code: f"data/{code}/train" for code in codes}, FINEWEB2)
    write_data_set(folder / "HuggingFaceFW/fineweb-edu", {"sample-100BT": "sample/100BT"}, FINEWEB_EDU)
    dumps = [f"20231101.{language}" for language in ("en", "es", "ca", "gl", "eu", "pt")]
    write_data_set(folder / "wikimedia/wikipedia", {dump: dump for dump in dumps}, WIKIPEDIA)
    save_byte_tokenizer(folder / "BSC-LT/salamandra-2b")
    return folder


@pytest.fixture(scope="module")
def store(mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return prepare(mirror / "corpus.yaml", tmp_path_factory.mktemp("out") / "store", workers=2)


def test_every_corpus_in_the_examples_is_valid() -> None:
    paths = sorted(EXAMPLES.rglob("corpus.yaml"))
    assert IBERIAN in paths
    for path in paths:
        Corpus.load(path)


def test_the_reference_case_names_the_data_sets_it_is_about() -> None:
    spec = CorpusSpec.load(IBERIAN)
    assert list(spec.languages) == ["en", "es", "ca", "gl", "eu", "pt"]
    used = {(source.dataset, source.config) for entry in spec.languages.values() for source in entry.sources.values()}
    assert len(used) == 12
    assert {dataset for dataset, _ in used} == {
        "HuggingFaceFW/fineweb-edu",
        "HuggingFaceFW/fineweb-2",
        "wikimedia/wikipedia",
    }
    assert spec.tokenizer.huggingface == "BSC-LT/salamandra-2b"


def test_the_reference_case_runs_on_local_files_laid_out_like_its_data_sets(store: TokenStore) -> None:
    assert len(store.sources) == 12
    tokenizer = store.tokenizer()
    for source in store.sources:
        total = store.documents()[source] + store.documents("validation")[source]
        assert total == 300, source
    flat, bounds = store.flat("gl/fineweb"), store.document_bounds("gl/fineweb")
    first, last = documents("glg_Latn")[0], documents("glg_Latn")[-1]
    assert flat[: bounds[1]].tolist() == tokenizer.encode([first])[0].tolist()
    assert flat[bounds[-2] :].tolist() == tokenizer.encode([last])[0].tolist()


def test_the_files_of_a_local_data_set_are_watched(mirror: Path, store: TokenStore) -> None:
    assert prepare(mirror / "corpus.yaml", store.path, workers=2).sha256 == store.sha256
    file = mirror / "HuggingFaceFW/fineweb-2/data/glg_Latn/train/001.parquet"
    before = file.read_bytes()
    parquet.write_table(pa.Table.from_pylist([{**FINEWEB2, "text": "outro texto"}] * 9), file)
    with pytest.raises(XDogeError, match=r"gl\.sources\.fineweb: .*train/001\.parquet changed since it"):
        prepare(mirror / "corpus.yaml", store.path, workers=2)
    file.write_bytes(before)
    added = file.with_name("002.parquet")
    added.write_bytes(before)
    with pytest.raises(XDogeError, match=r"gl\.sources\.fineweb: .*train/002\.parquet was added since it"):
        prepare(mirror / "corpus.yaml", store.path, workers=2)
    added.unlink()
    file.unlink()
    with pytest.raises(XDogeError, match=r"gl\.sources\.fineweb: .*train/001\.parquet was removed since it"):
        prepare(mirror / "corpus.yaml", store.path, workers=2)
    file.write_bytes(before)
    assert prepare(mirror / "corpus.yaml", store.path, workers=2).sha256 == store.sha256
