"""A small corpus in six languages that needs no download, for the demo and the tests.

The text is synthetic: sentence patterns are filled with words. Both were written for this project and are in
`sample.yaml`. The words agree in gender, and have the articles and endings of their language. The text means nothing,
and no model learns a language from it. It shares with real corpora what matters for a mixture: sizes are uneven, each
language has two different sources, and words are frequent or rare. Four languages are related, and Basque is not.

sample.yaml contains:

    words        classes of words. A line has one concept in all languages, `masculine|feminine` if it inflects
    languages    sentence patterns by source, and contractions (expression: replacement), for each language.
                 `{hero}` is a slot for a word of that class. Nouns have their article
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
"""UTF-8 bytes of training text per language and source at scale 1. They are uneven, as in text from the web."""

VALIDATION_BYTES = 12_000
"""UTF-8 bytes of validation text per source at scale 1. They are equal, so that small languages are measured too."""

_FEMININE = re.compile(r"la |a |l'\w*a$")  # marked by the articles of Spanish, Catalan, Galician and Portuguese
_FIRST_LETTER = re.compile(r"^[«“]?\w|[¿]\w")

Words = Mapping[str, Sequence[str]]


@functools.cache
def _contents() -> Any:
    return read_yaml(Path(__file__).with_suffix(".yaml"))


@functools.cache
def _words(language: str) -> Words:
    """Return the words of a language by class. Frequent words come first."""
    contents = _contents()
    column = list(contents["languages"]).index(language)
    return {name: [row.split(", ")[column] for row in rows.splitlines()] for name, rows in contents["words"].items()}


def generate(language: str, source: str, *, seed: int = 0) -> Iterator[str]:
    """Yield an endless stream of documents, which depends only on the seed.

    Args:
        language: one of `SAMPLE_BYTES`.
        source: "news" or "tales".
        seed: any integer.

    Raises:
        XDogeError: the sample has no such language or source.
    """
    if language not in SAMPLE_BYTES:
        raise XDogeError(f"the sample has no language {language!r}, only {', '.join(SAMPLE_BYTES)}.")
    if source not in SAMPLE_BYTES[language]:
        raise XDogeError(f"the sample has no source {source!r}, only {', '.join(SAMPLE_BYTES[language])}.")
    # For the same text seed, random() gives the same numbers in every version of Python. choice() may change.
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
    """Return an unused option. The first ones are more likely, so that words differ in frequency."""
    free = [option for option in options if option not in used]
    return free[int(len(free) * draw() ** 2)]


def _sentence(pattern: str, words: Words, contractions: Mapping[str, str], draw: Callable[[], float]) -> str:
    """Return a pattern whose slots are filled with different words. Adjectives agree with the noun before them."""
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
    """Write the sample corpus and its corpus.yaml into a folder. Return the path of corpus.yaml.

    The files are `<language>/news.jsonl` and `<language>/tales.jsonl.gz`, with one document {"id", "text"} per line.
    The validation text of each source is in `<language>/<source>.validation.jsonl`. The text depends only on seed and
    scale, not on the machine or the version of Python. The bytes of the gzip files also depend on the zlib library.

    Args:
        folder: folder to write to. It is created if it does not exist. Files with these names are replaced.
        seed: seed of the documents.
        scale: factor of the size. 1 gives `SAMPLE_BYTES` of text, 0.8 MB in total. Every file has at least one
            document.

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
    """Yield an endless stream of documents: the number of bytes of the text, and the document as a line of JSON."""
    for i, text in enumerate(generate(language, source, seed=seed)):
        line = {"id": f"{language}-{source}-{i}", "text": text}
        yield len(text.encode()), json.dumps(line, ensure_ascii=False).encode() + b"\n"


def _until(lines: Iterator[tuple[int, bytes]], n_bytes: float) -> Iterator[bytes]:
    """Yield lines until their texts have `n_bytes`."""
    written = 0
    for size, line in lines:
        yield line
        written += size
        if written >= n_bytes:
            return
