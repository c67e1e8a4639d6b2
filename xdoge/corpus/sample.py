"""A small corpus in six languages that needs no download, for the demo and the tests.

The text is synthetic: sentence patterns filled with words, both written for this project in `sample.yaml`. The words
agree in gender and take the articles and endings of their language. The text means nothing, and no model learns a
language from it. It shares with real corpora what matters for a mixture: sizes are uneven, each language has two
unlike sources, frequent and rare words exist, four languages are related, and Basque stands apart.

sample.yaml holds:

    words        classes of words; a line has one concept in all languages, `masculine|feminine` where it inflects
    languages    for each language its sentence patterns by source, and its contractions (expression: replacement).
                 `{hero}` is a slot for a word of that class. Nouns are listed with their article.
"""

from __future__ import annotations

import functools
import gzip
import itertools
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from xdoge.config import read_yaml
from xdoge.errors import XDogeError
from xdoge.io import replacing, write_text

SAMPLE_BYTES: Mapping[str, Mapping[str, int]] = {
    "es": {"news": 120_000, "tales": 60_000},
    "ca": {"news": 40_000, "tales": 25_000},
    "gl": {"news": 5_000, "tales": 4_000},
    "eu": {"news": 2_500, "tales": 2_500},
    "pt": {"news": 70_000, "tales": 40_000},
    "en": {"news": 300_000, "tales": 150_000},
}
"""UTF-8 bytes of training text per language and source at scale 1: uneven, as what the web offers is."""

VALIDATION_BYTES = 12_000
"""UTF-8 bytes of validation text per source at scale 1: alike, so that small languages are measured as well."""

_FEMININE = re.compile(r"la |a |l'\w*a$")  # as the articles of Spanish, Catalan, Galician and Portuguese say
_FIRST_LETTER = re.compile(r"^[«“]?\w|[¿]\w")

Words = Mapping[str, Sequence[str]]


@functools.cache
def _contents() -> Any:
    return read_yaml(Path(__file__).with_suffix(".yaml"))


@functools.cache
def _words(language: str) -> Words:
    """Return the words of a language by class, frequent ones first."""
    contents = _contents()
    column = list(contents["languages"]).index(language)
    return {name: [row.split(", ")[column] for row in rows.splitlines()] for name, rows in contents["words"].items()}


def generate(language: str, source: str, *, seed: int = 0) -> Iterator[str]:
    """Yield documents without end, always the same ones for a seed.

    Args:
        language: one of `SAMPLE_BYTES`.
        source: "news" or "tales".
        seed: any whole number.

    Raises:
        XDogeError: the sample has no such language or source.
    """
    if language not in SAMPLE_BYTES:
        raise XDogeError(f"the sample has no language {language!r}, only {', '.join(SAMPLE_BYTES)}.")
    if source not in SAMPLE_BYTES[language]:
        raise XDogeError(f"the sample has no source {source!r}, only {', '.join(SAMPLE_BYTES[language])}.")
    # Python promises the same random() for the same text seed in every version, and nothing about choice().
    draw = random.Random(f"xdoge sample {language}/{source} {seed}").random
    return (_document(language, source, draw) for _ in itertools.count())


def _document(language: str, source: str, draw: Callable[[], float]) -> str:
    """Return 4 to 8 sentences of different patterns."""
    rules = _contents()["languages"][language]
    patterns = rules[source].splitlines()
    count = 4 + int(5 * draw())
    used: list[str] = []
    while len(used) < count:
        used.append(_choose(patterns, used, draw))
    return " ".join(_sentence(pattern, _words(language), rules["contractions"], draw) for pattern in used)


def _choose(options: Sequence[str], used: Sequence[str], draw: Callable[[], float]) -> str:
    """Return an option that was not used, those at the front more often: words differ in frequency, as they do."""
    free = [option for option in options if option not in used]
    return free[int(len(free) * draw() ** 2)]


def _sentence(pattern: str, words: Words, contractions: Mapping[str, str], draw: Callable[[], float]) -> str:
    """Return a pattern with its slots filled by different words; adjectives agree with the noun before them."""
    used: list[str] = []

    def spell(slot: re.Match[str]) -> str:
        word = _choose(words[slot[1]], used, draw)
        masculine, _, feminine = word.partition("|")
        agrees = feminine and _FEMININE.match(used[-1])
        used.append(word)
        return feminine if agrees else masculine

    text = re.sub(r"\{(\w+)\}", spell, pattern)
    for expression, replacement in contractions.items():
        text = re.sub(expression, replacement, text)
    return _FIRST_LETTER.sub(lambda match: match[0].upper(), text, count=1)


def write_sample(folder: Path, *, seed: int = 0, scale: float = 1.0) -> Path:
    """Write the sample corpora and their corpus.yaml into a folder; return the path of corpus.yaml.

    Files are `<language>/news.jsonl` and `<language>/tales.jsonl.gz`, a document {"id", "text"} a line, and the
    validation text of each source in `<language>/<source>.validation.jsonl`.
    The text depends on seed and scale alone, whatever the machine or the Python; the bytes of the gzip files also on
    the zlib that packs them.

    Args:
        folder: made if missing; files of these names in it are replaced.
        seed: another seed, other documents.
        scale: 1 gives `SAMPLE_BYTES` of text, 0.8 MB in all; every file has at least one document.

    Raises:
        XDogeError: the scale is not above 0, or the folder cannot be written.
    """
    if not 0 < scale < float("inf"):
        raise XDogeError(f"scale is {scale}; it must be above 0, and 1 gives 0.8 MB of text.")
    languages: dict[str, Any] = {}
    for language, sizes in SAMPLE_BYTES.items():
        family = _contents()["languages"][language]["family"]
        languages[language] = {"family": family, "sources": {}}
        for source, n_bytes in sizes.items():
            name = f"{language}/{source}.jsonl" + (".gz" if source == "tales" else "")
            validation = f"{language}/{source}.validation.jsonl"
            lines = _json_lines(language, source, seed=seed)
            with replacing(folder / validation) as file:
                file.writelines(_until(lines, VALIDATION_BYTES * scale))
            with replacing(folder / name) as file:
                if source == "tales":
                    # A file name or time in the header would make the bytes differ from run to run.
                    with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
                        packed.writelines(_until(lines, n_bytes * scale))
                else:
                    file.writelines(_until(lines, n_bytes * scale))
            about = {"files": name, "validation": validation, "text": "text", "license": "apache-2.0"}
            languages[language]["sources"][source] = about
    spec = {"name": "sample", "tokenizer": {"train": {"vocab_size": 1000}}, "languages": languages}
    path = folder / "corpus.yaml"
    write_text(path, yaml.safe_dump(spec, sort_keys=False, allow_unicode=True))
    return path


def _json_lines(language: str, source: str, *, seed: int) -> Iterator[tuple[int, bytes]]:
    """Yield documents without end: the bytes of the text, and the document as a line of JSON."""
    for i, text in enumerate(generate(language, source, seed=seed)):
        line = {"id": f"{language}-{source}-{i}", "text": text}
        yield len(text.encode()), json.dumps(line, ensure_ascii=False).encode() + b"\n"


def _until(lines: Iterator[tuple[int, bytes]], n_bytes: float) -> Iterator[bytes]:
    """Yield the next lines until their texts fill `n_bytes`."""
    written = 0
    for size, line in lines:
        yield line
        written += size
        if written >= n_bytes:
            return
