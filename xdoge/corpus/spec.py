"""What text there is: corpus.yaml, validated before anything is read.

`CorpusSpec` is the file as written. `Corpus` is what it means on this machine: paths taken from the folder of
the YAML file, globs expanded, every file found, nothing used twice.
"""

from __future__ import annotations

import contextlib
import glob
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from xdoge.config import Config, Count
from xdoge.errors import MissingExtraError, XDogeError

FORMATS = (".jsonl", ".json", ".csv", ".parquet", ".arrow", ".txt")
COMPRESSED = (".gz", ".zst")
"""Compressions of the formats made of text; Parquet and Arrow compress inside."""

_TEXT_FORMATS = (".jsonl", ".json", ".csv", ".txt")


def _check_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ValueError(f"{name!r} cannot be a name: it becomes a file name, so use letters, digits, '-', '_' and '.'")
    return name


def _check_patterns(value: object) -> object:
    patterns = [value] if isinstance(value, str) else value
    if not isinstance(patterns, list | tuple) or not patterns:
        raise ValueError("must be a path or a list of paths")
    for pattern in patterns:
        if not isinstance(pattern, str) or not pattern.strip():
            raise ValueError(f"{pattern!r} is not a path")
    return tuple(patterns)


Name = Annotated[str, AfterValidator(_check_name)]
Patterns = Annotated[tuple[str, ...], BeforeValidator(_check_patterns)]
"""One path or several, `*`, `?`, `[...]` and `**` allowed."""
Positive = Annotated[Count, Field(gt=0)]


class TrainTokenizer(Config):
    """A SentencePiece model to train on the corpus itself, with as many characters from every language.

    Attributes:
        vocab_size: pieces, the 4 special and (with `byte_fallback`) the 256 byte pieces among them.
        characters_per_language: characters to learn from, spread evenly over a language's sources.
    """

    vocab_size: Count = 16_000
    model_type: Literal["unigram", "bpe"] = "unigram"
    byte_fallback: bool = True
    character_coverage: float = Field(default=0.9998, ge=0.9, le=1.0)
    characters_per_language: Positive = 6_000_000
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        # 4 special pieces, 256 bytes, and some letters; SentencePiece itself says when an alphabet needs more
        least = 300 if self.byte_fallback else 40
        if self.vocab_size < least:
            raise ValueError(f"vocab_size {self.vocab_size} is too small; it must be at least {least}")
        return self


class TokenizerSpec(Config):
    """Where the tokenizer comes from: exactly one of the three."""

    sentencepiece: str | None = None
    huggingface: str | None = None
    train: TrainTokenizer | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = [name for name in ("sentencepiece", "huggingface", "train") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of sentencepiece, huggingface and train, not {' and '.join(given) or 'none'}"
            )
        return self


class ValidationSpec(Config):
    """Documents held out by the hash of their text, the same ones in every run and every source."""

    fraction: float = Field(default=0.005, ge=0.0, le=0.5)


class SourceSpec(Config):
    """One data set of one language.

    Attributes:
        files: paths, relative to the YAML file; their extensions say what they are.
        dataset: name on the Hugging Face Hub, or a local folder laid out like one.
        text: the column that holds the document; a line of a .txt file is one document.
        max_tokens: training tokens to take; reading stops after the document that reaches it.
        validation: files held out instead of a fraction of this source.
    """

    files: Patterns | None = None
    dataset: str | None = None
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    data_dir: str | None = None
    text: str = Field(default="text", min_length=1)
    max_tokens: Positive | None = None
    license: str | None = None
    validation: Patterns | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.files is None and self.dataset is None:
            raise ValueError("needs files or dataset")
        if self.files is not None and self.dataset is not None:
            raise ValueError("has both files and dataset; a source is one of them")
        if self.files is not None:
            for name in ("config", "split", "revision", "data_dir"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} belongs to dataset, and this source has files")
        return self


class LanguageSpec(Config):
    """The sources of one language, and the family it is compared within."""

    family: str | None = None
    sources: dict[Name, SourceSpec] = Field(min_length=1)


class CorpusSpec(Config):
    """corpus.yaml as the user writes it."""

    name: Name
    tokenizer: TokenizerSpec
    validation: ValidationSpec = ValidationSpec()
    languages: dict[Name, LanguageSpec] = Field(min_length=1)


@dataclass(frozen=True)
class Source:
    """One source with its files found.

    Attributes:
        name: `language/source`.
        where: file and key that errors begin with: `corpus.yaml: languages.LANGUAGE.sources.SOURCE`.
        files: the files to read, sorted within each pattern; empty for a data set.
        validation: files held out; empty when the hash decides.
        dataset: name or, when a folder of that name lies beside the YAML file, its path.
    """

    name: str
    where: str
    language: str
    family: str | None
    spec: SourceSpec
    files: tuple[Path, ...]
    validation: tuple[Path, ...]
    dataset: str | None

    def field(self, split: str) -> str:
        """Return `where` with the key that a split's text comes from."""
        kind = "files" if self.dataset is None else "dataset"
        return f"{self.where}.{'validation' if split == 'validation' else kind}"


@dataclass(frozen=True)
class Corpus:
    """A corpus.yaml whose files are all there."""

    path: Path
    spec: CorpusSpec
    sources: tuple[Source, ...]

    @classmethod
    def load(cls, path: Path | str) -> Corpus:
        """Read and check corpus.yaml without opening any of its text.

        Raises:
            XDogeError: a key, a value, a missing file, a pattern that matches nothing, an unknown extension, or
                text that would be read twice; the line names file, language, source and field.
        """
        path = Path(path)
        spec = CorpusSpec.load(path)
        sources = []
        for language, entry in spec.languages.items():
            for short, source in entry.sources.items():
                where = f"{path}: languages.{language}.sources.{short}"
                dataset = source.dataset
                if dataset is not None and (path.parent / dataset).is_dir():
                    dataset = str(path.parent / dataset)
                sources.append(
                    Source(
                        name=f"{language}/{short}",
                        where=where,
                        language=language,
                        family=entry.family,
                        spec=source,
                        files=_find(source.files or (), path.parent, where=f"{where}.files"),
                        validation=_find(source.validation or (), path.parent, where=f"{where}.validation"),
                        dataset=dataset,
                    )
                )
        _refuse_twice(path, sources)
        return cls(path=path, spec=spec, sources=tuple(sources))

    @property
    def folder(self) -> Path:
        """The folder that relative paths start from."""
        return self.path.parent


@contextlib.contextmanager
def naming(where: str) -> Iterator[None]:
    """Put the place in corpus.yaml that named a thing in front of an error about it."""
    try:
        yield
    except MissingExtraError:
        raise  # it is about the machine
    except XDogeError as error:
        raise XDogeError(f"{where}: {error}") from error


def text_format(path: Path | str) -> tuple[str, str]:
    """Return a file's format and compression by its extensions, such as (".jsonl", ".gz") or (".csv", "").

    Raises:
        XDogeError: not a format that can be read.
    """
    name = Path(path).name.lower()
    compression = next((ending for ending in COMPRESSED if name.endswith(ending)), "")
    stem = name.removesuffix(compression)
    kind = next((ending for ending in FORMATS if stem.endswith(ending)), "")
    if not kind or (compression and kind not in _TEXT_FORMATS):
        raise XDogeError(
            f"{path}: not a format that can be read; use {', '.join(FORMATS)}, "
            f"the first two, .csv and .txt also with {' or '.join(COMPRESSED)}."
        )
    return kind, compression


def _find(patterns: Iterable[str], folder: Path, *, where: str) -> tuple[Path, ...]:
    found: list[Path] = []
    for pattern in patterns:
        matches = [Path(match) for match in sorted(glob.glob(str(folder / pattern), recursive=True))]
        if (folder / pattern).exists():  # a name with [brackets] in it
            matches = [folder / pattern]
        files = [match for match in matches if match.is_file()]
        if not files:
            if glob.has_magic(pattern):
                raise XDogeError(f"{where}: {pattern!r} matches no file in {folder.resolve()}.")
            kind = "is a folder, not a file" if (folder / pattern).is_dir() else "does not exist"
            raise XDogeError(f"{where}: {folder / pattern} {kind}.")
        for file in files:
            with naming(where):
                text_format(file)
        found.extend(files)
    return tuple(found)


def _refuse_twice(path: Path, sources: Iterable[Source]) -> None:
    """The same text in two sources would be two weights for one thing, and validation text seen in training."""
    seen: dict[Any, str] = {}
    for source in sources:
        spec = source.spec
        places: list[tuple[Any, str, str]] = [
            *((file.resolve(), str(file), f"{source.name} files") for file in source.files),
            *((file.resolve(), str(file), f"{source.name} validation") for file in source.validation),
        ]
        if source.dataset is not None:
            key = (source.dataset, spec.config, spec.split, spec.data_dir)
            told = f"dataset {spec.dataset} (config {spec.config}, split {spec.split})"
            places.append((key, told, f"{source.name} dataset"))
        for key, told, place in places:
            if key in seen:
                raise XDogeError(f"{path}: {told} is in {seen[key]} and again in {place}; leave one out.")
            seen[key] = place
