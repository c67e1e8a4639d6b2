"""Read and check corpus.yaml, which describes the text of a corpus. No text is read yet.

`CorpusSpec` is the content of the file. `Corpus` adds the files that exist on this machine: relative paths start from
the folder of corpus.yaml, patterns are expanded, and no file is used twice.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from xdoge.config import Config, Seed, count_or
from xdoge.corpus.paths import ARCHIVES, COMPRESSED, find, text_format
from xdoge.corpus.remote import File, RemoteFile
from xdoge.corpus.token_paths import FLAT, find_tokens
from xdoge.errors import MissingExtraError, XDogeError
from xdoge.names import CONTROLS, shown

LONGEST_PART = 255
"""Bytes. Linux allows no longer file names."""


def _check_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ValueError(
            f"{shown(name)} cannot be a name: it becomes a file name, so use letters, digits, '-', '_' and '.'"
        )
    return name


def _check_line(text: str) -> str:
    if CONTROLS.search(text) or any(len(part.encode()) > LONGEST_PART for part in text.split("/")):
        raise ValueError(
            f"{shown(text)} must be one line without control characters, and each part between slashes at "
            f"most {LONGEST_PART} bytes long"
        )
    return text


def _check_patterns(value: object) -> object:
    patterns = [value] if isinstance(value, str) else value
    if not isinstance(patterns, list | tuple) or not patterns:
        raise ValueError("must be a path or a list of paths")
    for pattern in patterns:
        if not isinstance(pattern, str) or not pattern.strip():
            raise ValueError(f"{shown(pattern)} is not a path")
        _check_line(pattern)
    return tuple(patterns)


Name = Annotated[str, AfterValidator(_check_name)]
Line = Annotated[str, AfterValidator(_check_line)]
NamedLine = Annotated[Line, Field(min_length=1)]
Patterns = Annotated[tuple[str, ...], BeforeValidator(_check_patterns)]
"""One path or several. URLs, folders, `*`, `?`, `[...]`, `**` and `{a,b}` are allowed."""
Positive = Annotated[int, Field(gt=0)]


def _check_columns(value: object) -> object:
    if isinstance(value, str):
        return value
    if not isinstance(value, list | tuple) or not value or not all(isinstance(name, str) for name in value):
        raise ValueError("must be a column or a list of columns")
    if len(set(value)) < len(value):
        raise ValueError(f"{shown(value)} names a column twice")
    return value[0] if len(value) == 1 else tuple(value)


Columns = Annotated[NamedLine | tuple[NamedLine, ...], BeforeValidator(_check_columns)]
"""The column of the text, or several whose texts are joined by a blank line. A dot names a field of an object."""
DocumentOf = Literal["line", "blank-line", "file"]
"""Documents of a .txt file are lines, are separated by blank lines, or are whole files."""


CHARACTERS_PER_PIECE = 1_000
"""Characters of each language on which a tokenizer is trained, for each piece of its vocabulary.

With 1,000 pieces and six languages, held-out text had 2.28 bytes per token, and 2.30 with six times as many characters
(docs/experiments.md).
"""

MOST_CHARACTERS = 6_000_000
"""Most characters of a language on which a tokenizer is trained by default."""


class TrainTokenizer(Config):
    """Settings for a SentencePiece model that is trained on the corpus, with equally many characters of each language.

    Attributes:
        vocab_size: number of pieces, including the 4 special pieces and (with `byte_fallback`) the 256 byte pieces.
        model_type: algorithm of SentencePiece.
        byte_fallback: encode unknown characters as bytes instead of <unk>.
        character_coverage: share of the characters of the text that get pieces.
        characters_per_language: characters for training, spread evenly over the sources of a language. Default: 1,000
            per piece, at most 6 million. The selection does not depend on the order of the text.
        seed: seed of the selection of text.
    """

    vocab_size: Annotated[int, Field(lt=1 << 30)] = 16_000  # beyond, SentencePiece overflows and never ends
    model_type: Literal["unigram", "bpe"] = "unigram"
    byte_fallback: bool = True
    character_coverage: float = Field(default=0.9998, ge=0.9, le=1.0)
    characters_per_language: Positive = MOST_CHARACTERS
    seed: Seed = 0

    @model_validator(mode="before")
    @classmethod
    def _bound(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "characters_per_language" in value:
            return value
        pieces = max(1, count_or(16_000, value.get("vocab_size", 16_000)))
        return {**value, "characters_per_language": min(MOST_CHARACTERS, CHARACTERS_PER_PIECE * pieces)}

    @model_validator(mode="after")
    def _check(self) -> Self:
        # 4 special pieces, 256 bytes and some letters. SentencePiece reports an error if an alphabet needs more.
        least = 300 if self.byte_fallback else 40
        if self.vocab_size < least:
            raise ValueError(f"vocab_size {self.vocab_size} is too small; it must be at least {least}")
        return self


class TokenizerSpec(Config):
    """Origin of the tokenizer: exactly one of the three must be given.

    Attributes:
        sentencepiece: path or URL of a SentencePiece model.
        huggingface: name on the Hugging Face Hub, or a local folder.
        train: settings to train a new one.
    """

    sentencepiece: Line | None = None
    huggingface: Line | None = None
    train: TrainTokenizer | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        kinds = [name for name in ("sentencepiece", "huggingface", "train") if getattr(self, name) is not None]
        if len(kinds) != 1:
            raise ValueError(
                f"give exactly one of sentencepiece, huggingface and train, not {' and '.join(kinds) or 'none'}"
            )
        return self


class ValidationSpec(Config):
    """Settings of the validation split.

    Documents are selected by the hash of their text. The same text is therefore held out in every run and every source.
    In sources whose tokens are read in place, the last documents of each file are held out, as Megatron's --split does.

    Attributes:
        fraction: fraction of the documents to hold out, in sources without validation files.
        overlap: fraction of the documents in validation files that may also be training documents of the source.
    """

    fraction: float = Field(default=0.005, ge=0.0, le=0.5)
    overlap: float = Field(default=0.1, ge=0.0, le=1.0)


class CsvSpec(Config):
    """Dialect of CSV files that deviate from RFC 4180.

    Attributes:
        delimiter: character between two values.
        escape: character that removes the special meaning of the next one, such as the backslash in files of Spark and
            MySQL. None means that a quote inside a quoted value is doubled.
        quote: character around values that hold delimiters or line breaks. None means that quotes are ordinary text, as
            in many .tsv files.
    """

    delimiter: str = Field(default=",", min_length=1, max_length=1)
    escape: str | None = Field(default=None, min_length=1, max_length=1)
    quote: str | None = Field(default='"', min_length=1, max_length=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        characters = {"delimiter": self.delimiter, "escape": self.escape, "quote": self.quote}
        for name, character in characters.items():
            if character is not None and character in "\r\n ":
                raise ValueError(f"{name} cannot be {character!r}")
            if twins := [other for other in characters if character and characters[other] == character][1:]:
                raise ValueError(f"{name} and {twins[0]} are both {character!r}")
        return self


PLAIN_CSV = CsvSpec()


KINDS = ("files", "dataset", "megatron", "tokens")
"""Keys of a source that name its documents. Each source has exactly one of them."""


class SourceSpec(Config):
    """One source of one language.

    Attributes:
        files: paths, folders or patterns, relative to the YAML file, or URLs. Extensions give the format.
        dataset: name on the Hugging Face Hub, or a local folder with the layout of a data set.
        megatron: prefixes of Megatron-LM data sets (PREFIX.bin and PREFIX.idx), made with the corpus's tokenizer.
        tokens: files or folders of token ids that other tools wrote, made with the corpus's tokenizer.
        column: column of the token ids, for `tokens`. None means input_ids. For MosaicML's streaming, it means tokens
            if there is no input_ids.
        dtype: type of the ids, for files of `tokens` that do not state it. None means the smallest type that holds the
            tokenizer's ids.
        config: name of the configuration of `dataset`.
        split: split of `dataset`.
        revision: revision of `dataset` on the Hub.
        data_dir: folder inside `dataset`.
        text: column with the text, or several that are joined. `data.text` is a field of a nested object.
        document: unit of a .txt file that is a document.
        csv: dialect of .csv files.
        max_tokens: training tokens to read. Reading stops after the document with which this number is reached.
        license: licence of the text, for the data card.
        validation: files to hold out, instead of a fraction of this source. For `megatron` these are prefixes.
    """

    files: Patterns | None = None
    dataset: Line | None = None
    megatron: Patterns | None = None
    tokens: Patterns | None = None
    column: NamedLine | None = None
    dtype: Literal["uint8", "uint16", "uint32", "uint64", "int16", "int32", "int64"] | None = None
    config: Line | None = None
    split: Line = "train"
    revision: Line | None = None
    data_dir: Line | None = None
    text: Columns = "text"
    document: DocumentOf = "line"
    csv: CsvSpec = PLAIN_CSV
    max_tokens: Positive | None = None
    license: Line | None = None
    validation: Patterns | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        kinds = [name for name in KINDS if getattr(self, name) is not None]
        if not kinds:
            raise ValueError("needs files, dataset, megatron or tokens")
        if len(kinds) > 1:
            raise ValueError(f"has both {' and '.join(kinds)}; a source has only one of them")
        foreign = [] if self.dataset else ["config", "split", "revision", "data_dir"]
        foreign += ["text", "document"] if self.has_tokens else []
        foreign += [] if self.tokens else ["column", "dtype"]
        for name in foreign:
            if getattr(self, name) != type(self).model_fields[name].default:
                homes = {"files and dataset": ("text", "document"), "tokens": ("column", "dtype")}
                home = next((home for home, names in homes.items() if name in names), "dataset")
                raise ValueError(f"{name} is only for {home}, and this source has {kinds[0]}")
        return self

    @property
    def kind(self) -> str:
        """The key that names the documents, one of `KINDS`."""
        return next(name for name in KINDS if getattr(self, name) is not None)

    @property
    def has_tokens(self) -> bool:
        """Whether the source consists of tokens instead of text."""
        return self.kind in ("megatron", "tokens")


class LanguageSpec(Config):
    """The sources of one language, and the name of its language family."""

    family: Line | None = None
    sources: dict[Name, SourceSpec] = Field(min_length=1)


class CorpusSpec(Config):
    """The content of corpus.yaml.

    Attributes:
        name: name of the corpus.
        tokenizer: origin of the tokenizer.
        validation: settings of the validation split.
        languages: sources by language.
    """

    name: Name
    tokenizer: TokenizerSpec
    validation: ValidationSpec = ValidationSpec()
    languages: dict[Name, LanguageSpec] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for language, entry in self.languages.items():
            for name, source in entry.sources.items():
                if source.has_tokens and self.tokenizer.train:
                    raise ValueError(
                        f"tokenizer.train cannot be used with {language}/{name}, which is tokenised "
                        "already; name the tokenizer that made its tokens"
                    )
        return self


@dataclass(frozen=True)
class Source:
    """One source with the list of its files.

    Attributes:
        name: `language/source`.
        where: file and key with which errors begin: `corpus.yaml: languages.LANGUAGE.sources.SOURCE`.
        language: name of the language.
        family: its language family, if any.
        spec: the source in corpus.yaml.
        files: files to read, sorted within each pattern, each .bin before its .idx. Empty for a data set.
        validation: files to hold out. Empty if documents are held out by their hash.
        dataset: name on the Hub, or the path of a folder with that name next to the YAML file.
        whole: in a shard, the source of which this is a part.
    """

    name: str
    where: str
    language: str
    family: str | None
    spec: SourceSpec
    files: tuple[File, ...]
    validation: tuple[File, ...]
    dataset: str | None
    whole: Source | None = None

    @property
    def in_place(self) -> bool:
        """Whether the tokens are read in place instead of being copied into the store."""
        return self.spec.kind == "megatron" or any(file.name.endswith(FLAT) for file in self.files)

    def field(self, split: str) -> str:
        """Return `where`, extended by the key that names the text of a split."""
        return f"{self.where}.{'validation' if split == 'validation' else self.spec.kind}"


@dataclass(frozen=True)
class Corpus:
    """A checked corpus.yaml whose files all exist.

    Attributes:
        path: path of corpus.yaml.
        spec: its content.
        sources: all sources, in its order.
    """

    path: Path
    spec: CorpusSpec
    sources: tuple[Source, ...]

    @classmethod
    def load(cls, path: Path | str) -> Corpus:
        """Read and check corpus.yaml without opening the files of text.

        Raises:
            XDogeError: a key or value is not allowed, a file is missing, a pattern matches nothing, an extension is
                unknown, or text would be read twice. The message names file, language, source and field.
        """
        path = Path(path)
        spec = CorpusSpec.load(path)
        try:
            sources = tuple(cls._sources(path, spec))
            _refuse_twice(path, sources)
        except OSError as error:
            raise XDogeError(f"{path}: {error.filename} cannot be read: {str(error.strerror).lower()}.") from error
        return cls(path=path, spec=spec, sources=sources)

    @staticmethod
    def _sources(path: Path, spec: CorpusSpec) -> Iterator[Source]:
        for language, named in spec.languages.items():
            for short, source in named.sources.items():
                where = f"{path}: languages.{language}.sources.{short}"
                dataset = source.dataset
                if dataset is not None and (path.parent / dataset).is_dir():
                    dataset = str(path.parent / dataset)
                finder = {"megatron": _find_megatron, "tokens": find_tokens}.get(source.kind, _find_text)
                entry = Source(
                    name=f"{language}/{short}",
                    where=where,
                    language=language,
                    family=named.family,
                    spec=source,
                    files=finder(
                        source.megatron or source.tokens or source.files or (),
                        path.parent,
                        where=f"{where}.{source.kind}",
                    ),
                    validation=finder(source.validation or (), path.parent, where=f"{where}.validation"),
                    dataset=dataset,
                )
                files = (*entry.files, *entry.validation)
                if (
                    source.document != "line"
                    and files
                    and not any(text_format(file)[0] in (".txt", *ARCHIVES) for file in files)
                ):
                    raise XDogeError(
                        f"{where}.document: {source.document} is only for .txt files, not {files[0]}; in "
                        "other formats each row is a document."
                    )
                yield entry

    @property
    def folder(self) -> Path:
        """The folder of corpus.yaml, to which relative paths refer."""
        return self.path.parent


@contextlib.contextmanager
def naming(where: str) -> Iterator[None]:
    """Prefix errors with `where`, the place in corpus.yaml that they are about."""
    try:
        yield
    except MissingExtraError:
        raise  # not about corpus.yaml
    except XDogeError as error:
        raise XDogeError(f"{where}: {error.message}") from error
    except (FileNotFoundError, PermissionError) as error:  # an input, since nothing is written here
        what = os.fsdecode(error.filename) if error.filename else str(error)
        why = "was removed" if isinstance(error, FileNotFoundError) else "can no longer be read"
        raise XDogeError(f"{where}: {what} {why} while it was in use; put it back and run again.") from error


def _find_text(patterns: Iterable[str], folder: Path, *, where: str) -> tuple[File, ...]:
    with naming(where):
        files = find(patterns, folder)
        for file in files:
            text_format(file)
    return files


def _find_megatron(patterns: Iterable[str], folder: Path, *, where: str) -> tuple[Path, ...]:
    prefixes = [pattern.removesuffix(".bin").removesuffix(".idx") for pattern in patterns]
    with naming(where):
        bins = find([f"{prefix}.bin" for prefix in prefixes], folder)
    files: list[Path] = []
    for file in bins:
        if isinstance(file, RemoteFile):
            raise XDogeError(
                f"{where}: {file}: token files are mapped into memory, so they must be local; copy them to a disk."
            )
        files += [file, file.with_suffix(".idx")]
        if not files[-1].is_file():
            raise XDogeError(f"{where}: {files[-1]} does not exist, and {file.name} cannot be read without it.")
    return tuple(files)


def _resolved(files: Iterable[File]) -> Iterator[tuple[File, File]]:
    """Yield each file twice: with symbolic links resolved, and as it is named. Each folder is resolved only once."""
    folders: dict[Path, Path] = {}
    for file in files:
        if isinstance(file, RemoteFile):
            yield file, file
            continue
        if file.parent not in folders:
            folders[file.parent] = file.parent.resolve()
        yield (file.resolve() if file.is_symlink() else folders[file.parent] / file.name), file


def _plain(file: File) -> str:
    """Return the name of a file without its compression: a.jsonl.gz beside a.jsonl has the same text."""
    name = str(file)
    return next((name.removesuffix(ending) for ending in COMPRESSED if name.endswith(ending)), name)


def _refuse_twice(path: Path, sources: Iterable[Source]) -> None:
    """Raise XDogeError if text is named twice. It would get two weights, or validation text would be trained on."""
    seen: dict[Any, tuple[str, str]] = {}
    for source in sources:
        spec = source.spec
        places: list[tuple[Any, str, str]] = [
            *((_plain(real), str(file), f"{source.name} {spec.kind}") for real, file in _resolved(source.files)),
            *((_plain(real), str(file), f"{source.name} validation") for real, file in _resolved(source.validation)),
        ]
        if source.dataset is not None:
            for split in spec.split.split("+"):
                key = (source.dataset, spec.config, split.strip(), spec.data_dir)
                label = f"dataset {spec.dataset} (config {spec.config}, split {split.strip()})"
                places.append((key, label, f"{source.name} dataset"))
        for key, label, place in places:
            if key in seen:
                first, home = seen[key]
                twice = f"is in {home} and again in {place}"
                if label != first:  # a link, or the same name with another compression
                    twice = f"in {place} should have the same text as {first} in {home}"
                raise XDogeError(f"{path}: {label} {twice}; leave one out.")
            seen[key] = label, place
