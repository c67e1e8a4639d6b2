r"""A small corpus in six languages that needs no download, for the demo and the tests.

The text is synthetic: sentence patterns filled with words from lists, both written for this project in
`lexicon/*.yaml`. It is spelt and inflected as each language asks, it means nothing, and no model learns a language
from it. What it shares with real corpora is what learning a mixture depends on: uneven sizes, two unlike sources per
language, frequent and rare words, Romance languages with common vocabulary and a Basque that stands apart.

A lexicon holds:

    heads, followers    kind of word → form → suffix rules (expression: replacement), the first of which that matches
                        makes the form from the word as listed. A form's name says when it serves (`f.p`, `erg.s`, `p`);
                        the first that fits is taken, so those with a case stand first. The kind `plain` has one form.
    words               kind → class → words, frequent ones first; `person.f` gives them a gender, and `a/b/c` in place
                        of a word spells its forms out
    phrases, sources    patterns, one a line. `{class.tag:marks}` is a slot for a word or a phrase. Words with one tag
                        agree: a head decides gender and number, followers take them. Without a tag it is the phrase's.
                        A lower-case tag is known in its own pattern only; a capital names one thing, in the singular,
                        all document long. Marks ask for a number (`s`, `p`), a case (`erg`) or both.
    sandhi              expression: replacement, over every sentence, in order, such as `\bde el\b: del`
"""

from __future__ import annotations

import functools
import gzip
import itertools
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import yaml

from xdoge.config import read_yaml
from xdoge.errors import XDogeError
from xdoge.io import replacing, write_text

SAMPLE_BYTES: Mapping[str, Mapping[str, int]] = {
    "es": {"news": 450_000, "tales": 250_000},
    "ca": {"news": 230_000, "tales": 120_000},
    "gl": {"news": 110_000, "tales": 70_000},
    "eu": {"news": 70_000, "tales": 100_000},
    "pt": {"news": 310_000, "tales": 190_000},
    "en": {"news": 750_000, "tales": 350_000},
}
"""UTF-8 bytes of text per language and source at scale 1: uneven, as what the web offers is."""

_SLOT = re.compile(r"\{(\w+)(?:\.(\w+))?(?::([\w.]+))?\}")
_FIRST_LETTER = re.compile(r"(?:^|(?<=[«“]))[¿¡]?\w")
_PLURAL_SHARE = 0.25  # of the nouns left free to be either

T = TypeVar("T")
Tag = str | tuple[int, str | int]
Forms = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Word:
    """A word as listed, its gender, empty where it has none, and its spelling per form."""

    name: str
    gender: str
    forms: Mapping[str, str]

    @property
    def has_plural(self) -> bool:
        """Whether any form is for the plural."""
        return any(form.split(".")[-1] == "p" for form in self.forms)


class Slot(NamedTuple):
    """A gap in a pattern. A tag is a text as written, empty for none, and a tuple once its place is known."""

    name: str
    tag: Tag
    marks: frozenset[str]


Pattern = Sequence[str | Slot]


@dataclass(frozen=True)
class Lexicon:
    """One language's file, its words inflected and its patterns parsed."""

    family: str
    kinds: Mapping[str, Forms]
    words: Mapping[str, Sequence[Word]]
    heads: frozenset[str]  # the classes that decide gender and number
    phrases: Mapping[str, Sequence[Pattern]]
    sources: Mapping[str, Mapping[str, Sequence[Pattern]]]
    sandhi: Sequence[tuple[re.Pattern[str], str]]


@dataclass
class _Referent:
    """What a tag stands for: words chosen for it so far, by class, and what they impose on others."""

    gender: str = ""
    number: str = ""
    words: dict[str, Word] = field(default_factory=dict)


def inflect(forms: Forms, entry: str) -> dict[str, str]:
    """Return the spelling of each form of a listed word: by suffix rules, or as `a/b/c` spells them out."""
    if "/" in entry:
        return dict(zip(forms, entry.split("/"), strict=True))
    return {form: _apply_first(rules, entry) for form, rules in forms.items()}


def _apply_first(rules: Mapping[str, str], word: str) -> str:
    for suffix, replacement in rules.items():
        changed, matches = re.subn(suffix, replacement, word, count=1)
        if matches:
            return changed
    return word


def _patterns(text: str) -> Sequence[Pattern]:
    patterns = []
    for line in text.splitlines():
        pieces = _SLOT.split(line)  # literal, name, tag, marks, literal, …
        pattern: list[str | Slot] = [pieces[0]]
        for name, tag, marks, literal in zip(pieces[1::4], pieces[2::4], pieces[3::4], pieces[4::4], strict=True):
            pattern += [Slot(name, tag or "", frozenset(marks.split(".") if marks else ())), literal]
        patterns.append(pattern)
    return patterns


@functools.cache
def load_lexicon(language: str) -> Lexicon:
    """Return the lexicon of one of the sample's languages.

    Raises:
        XDogeError: the sample has no such language.
    """
    if language not in SAMPLE_BYTES:
        raise XDogeError(f"the sample has no language {language!r}, only {', '.join(SAMPLE_BYTES)}.")
    raw = read_yaml(Path(__file__).with_name("lexicon") / f"{language}.yaml")
    kinds: dict[str, Forms] = {"plain": {"": {}}, **raw["heads"], **raw["followers"]}
    ranked: dict[str, list[tuple[float, Word]]] = {}
    heads = set()
    for kind, classes in raw["words"].items():
        for key, listed in classes.items():
            name, _, gender = key.partition(".")
            entries = listed.split(", ")
            for rank, entry in enumerate(entries):
                word = Word(entry, gender, inflect(kinds[kind], entry))
                ranked.setdefault(name, []).append((rank / len(entries), word))
            if kind in raw["heads"]:
                heads.add(name)
    return Lexicon(
        family=raw["family"],
        kinds=kinds,
        # Genders are interleaved, since words further down are drawn less often.
        words={name: [word for _, word in sorted(pairs, key=lambda p: p[0])] for name, pairs in ranked.items()},
        heads=frozenset(heads),
        phrases={name: _patterns(text) for name, text in raw["phrases"].items()},
        sources={
            source: {part: _patterns(text) for part, text in parts.items()} for source, parts in raw["sources"].items()
        },
        sandhi=[(re.compile(pattern), replacement) for pattern, replacement in raw["sandhi"].items()],
    )


@functools.cache
def _fitting(forms: tuple[str, ...], features: frozenset[str]) -> str:
    """Return the first form whose every part is among the features."""
    for form in forms:
        if features.issuperset(form.split(".")):
            return form
    raise ValueError(f"none of the forms {forms} fits {sorted(features)}")


class _Author:
    """Writes one document, remembering whom its capital tags stand for."""

    def __init__(self, lexicon: Lexicon, draw: Callable[[], float]) -> None:
        self._lexicon = lexicon
        self._draw = draw  # uniform in [0, 1)
        self._referents: dict[Tag, _Referent] = {}
        self._scopes = itertools.count()

    def document(self, source: str) -> str:
        """Return 2 to 6 paragraphs of 2 to 6 sentences, short ones more often."""
        parts = self._lexicon.sources[source]
        lengths = [2 + self._skewed(5) for _ in range(2 + self._skewed(5))]
        patterns = [self._choose(parts["open"])]
        while len(patterns) < sum(lengths) - 1:
            # No pattern comes again within two thirds of the list, as no writer would have it.
            recent = patterns[-(len(parts["body"]) * 2 // 3) :]
            patterns.append(self._choose([pattern for pattern in parts["body"] if pattern not in recent]))
        sentences = iter([self._sentence(pattern) for pattern in [*patterns, self._choose(parts["close"])]])
        return "\n\n".join(" ".join(itertools.islice(sentences, length)) for length in lengths)

    def _choose(self, options: Sequence[T]) -> T:
        return options[int(self._draw() * len(options))]

    def _skewed(self, n: int) -> int:
        """Return a number under n, small ones more often: words then differ in frequency, as they do."""
        u = self._draw()
        return int(u * u * n)

    def _sentence(self, pattern: Pattern) -> str:
        parts = list(self._expand(pattern, tag=None, marks=frozenset()))
        # Heads are chosen before anything is spelt, for an article precedes its noun; those of capital tags first,
        # for they may have been chosen sentences ago.
        heads = [part for part in parts if isinstance(part, Slot) and part.name in self._lexicon.heads]
        taken: set[str] = set()
        for slot in sorted(heads, key=lambda slot: not isinstance(slot.tag, str)):
            self._refer(slot, taken)
        text = "".join(self._spell(part) if isinstance(part, Slot) else part for part in parts)
        for expression, replacement in self._lexicon.sandhi:
            text = expression.sub(replacement, text)
        return _FIRST_LETTER.sub(lambda match: match[0].upper(), text)

    def _expand(self, pattern: Pattern, *, tag: Tag | None, marks: frozenset[str]) -> Iterator[str | Slot]:
        """Yield the pattern with phrases replaced by their own parts, down to words, and with tags made unambiguous.

        What an outer slot asked for, by `tag` and `marks`, is for the slots without a tag of their own.
        """
        scope = next(self._scopes)
        for i, part in enumerate(pattern):
            if isinstance(part, str):
                yield part
                continue
            if not part.tag:
                slot = Slot(part.name, tag or (scope, i), part.marks | marks)
            elif isinstance(part.tag, str) and not part.tag.isupper():
                slot = part._replace(tag=(scope, part.tag))
            else:
                slot = part
            if slot.name in self._lexicon.phrases:
                phrase = self._choose(self._lexicon.phrases[slot.name])
                yield from self._expand(phrase, tag=slot.tag, marks=slot.marks)
            else:
                yield slot

    def _refer(self, slot: Slot, taken: set[str]) -> None:
        """Choose a head's word, none that the sentence has already; a tag's first decides gender and number."""
        referent = self._referents.setdefault(slot.tag, _Referent())
        if slot.name not in referent.words:
            words = [
                word
                for word in self._lexicon.words[slot.name]
                if word.name not in taken and referent.gender in ("", word.gender)
            ]
            word = referent.words[slot.name] = words[self._skewed(len(words))]
            if not referent.number:
                free = word.has_plural and not isinstance(slot.tag, str) and "s" not in slot.marks
                plural = "p" in slot.marks or (free and self._draw() < _PLURAL_SHARE)
                referent.gender, referent.number = word.gender, "p" if plural else "s"
        taken.add(referent.words[slot.name].name)

    def _spell(self, slot: Slot) -> str:
        referent = self._referents.get(slot.tag, _Referent())
        words = self._lexicon.words[slot.name]
        word = referent.words.get(slot.name) or words[self._skewed(len(words))]
        return word.forms[_fitting(tuple(word.forms), slot.marks | {referent.gender, referent.number, ""})]


def generate(language: str, source: str, *, seed: int = 0) -> Iterator[str]:
    """Yield documents without end, always the same ones for a seed.

    Args:
        language: one of `SAMPLE_BYTES`.
        source: "news" or "tales".
        seed: any whole number.

    Raises:
        XDogeError: the sample has no such language or source.
    """
    lexicon = load_lexicon(language)
    if source not in lexicon.sources:
        raise XDogeError(f"the sample has no source {source!r}, only {', '.join(lexicon.sources)}.")
    # Python promises the same random() for the same text seed in every version, and nothing about choice().
    draw = random.Random(f"xdoge sample {language}/{source} {seed}").random
    return (_Author(lexicon, draw).document(source) for _ in itertools.count())


def write_sample(folder: Path, *, seed: int = 0, scale: float = 1.0) -> Path:
    """Write the sample corpora and their corpus.yaml into a folder; return the path of corpus.yaml.

    Files are `<language>/news.jsonl` and `<language>/tales.jsonl.gz`, a document {"id", "text"} a line.
    The text depends on seed and scale alone, whatever the machine or the Python; the bytes of the gzip files also on
    the zlib that packs them.

    Args:
        folder: made if missing; files of these names in it are replaced.
        seed: another seed, other documents.
        scale: 1 gives `SAMPLE_BYTES` of text, 3 MB in all; every source has at least one document.

    Raises:
        XDogeError: the scale is not above 0, or the folder cannot be written.
    """
    if not 0 < scale < float("inf"):
        raise XDogeError(f"scale is {scale}; it must be above 0, and 1 gives 3 MB of text.")
    languages: dict[str, object] = {}
    for language, sizes in SAMPLE_BYTES.items():
        sources = {}
        for source, n_bytes in sizes.items():
            name = f"{language}/{source}.jsonl" + (".gz" if source == "tales" else "")
            with replacing(folder / name) as file:
                lines = _json_lines(language, source, seed=seed, n_bytes=n_bytes * scale)
                if source == "tales":
                    # A file name or time in the header would make the bytes differ from run to run.
                    with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
                        packed.writelines(lines)
                else:
                    file.writelines(lines)
            sources[source] = {"files": name, "text": "text", "license": "apache-2.0"}
        languages[language] = {"family": load_lexicon(language).family, "sources": sources}
    spec = {
        "name": "sample",
        "tokenizer": {"train": {"vocab_size": 4000}},
        "validation": {"fraction": 0.05},
        "languages": languages,
    }
    path = folder / "corpus.yaml"
    write_text(path, yaml.safe_dump(spec, sort_keys=False, allow_unicode=True))
    return path


def _json_lines(language: str, source: str, *, seed: int, n_bytes: float) -> Iterator[bytes]:
    """Yield documents as lines of JSON until their texts fill `n_bytes`."""
    written = 0
    for i, text in enumerate(generate(language, source, seed=seed)):
        line = {"id": f"{language}-{source}-{i}", "text": text}
        yield json.dumps(line, ensure_ascii=False).encode() + b"\n"
        written += len(text.encode())
        if written >= n_bytes:
            return
