"""Fixtures that all tests share: a tiny store in three languages, and a recipe of a proxy that trains in a second."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# Tests run in parallel, one per core. More threads per test would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A test run in the background ignores SIGINT, and so would the processes that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Use the same examples every time, and no deadline, since a busy machine is not a bug.
settings.register_profile("xdoge", deadline=None, derandomize=True)
settings.load_profile("xdoge")

WORDS = {
    "es": "casa perro gato verde libro mesa agua tierra camino ciudad",
    "gl": "casa can gato verde libro mesa auga terra camiño cidade",
    "eu": "etxe txakur katu berde liburu mahai ur lur bide hiri",
}
DOCUMENTS = {"es/web": 300, "es/wiki": 120, "gl/wiki": 100, "eu/wiki": 80}

RECIPE = """
name: tiny
hidden_size: 16
intermediate_size: 32
layers: 2
heads: 2
sequence_length: 16
batch_size: 12
steps: 8
learning_rate: 0.01
"""


def write_corpus(folder: Path) -> Path:
    """Write four JSONL sources in three languages and their corpus.yaml; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    for source, count in DOCUMENTS.items():
        words = WORDS[source[:2]].split()
        generator = random.Random(source)
        lines = [json.dumps({"text": " ".join(generator.choices(words, k=12))}) for _ in range(count)]
        (folder / f"{source.replace('/', '-')}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    languages = "".join(
        f"  {language}:\n    sources:\n"
        + "".join(
            f"      {source[3:]}: {{files: {source.replace('/', '-')}.jsonl}}\n"
            for source in DOCUMENTS
            if source.startswith(language)
        )
        for language in WORDS
    )
    path = folder / "corpus.yaml"
    path.write_text(
        "name: tiny\ntokenizer: {train: {vocab_size: 300}}\nvalidation: {fraction: 0.1}\nlanguages:\n" + languages,
        encoding="utf-8",
    )
    return path


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Path of a tiny corpus.yaml. Tests must not change it."""
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def store(corpus, tmp_path_factory):
    """The store of the tiny corpus. Tests must not change it."""
    from xdoge.corpus.prepare import prepare

    return prepare(corpus, tmp_path_factory.mktemp("store") / "store", workers=1)


@pytest.fixture(scope="session")
def recipe(tmp_path_factory):
    """Path of a recipe with a few thousand parameters."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(RECIPE)
    return str(path)


@pytest.fixture
def xdoge(monkeypatch, capsys):
    """A function that runs the command line, and returns the exit status, stdout and stderr."""
    from xdoge import cli

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["xdoge", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err

    return run
