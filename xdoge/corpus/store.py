"""Read tokens from disk as sequences of any length.

A store is a folder. `store.json` describes its content. `tokens/<language>/<source>.<split>.arrow` has one row of
`input_ids` per document, including its end-of-document token. Each file is one Arrow record batch, so all tokens of a
source are contiguous on disk. A sequence is a view of them and needs no copy.

The tokens of a source can also be outside the store, for example in files that Megatron-LM wrote. The Arrow file then
contains only `bounds`, the offsets where documents begin and the last one ends. store.json names the files outside.
"""

from __future__ import annotations

import stat
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from xdoge.corpus.external import OUTSIDE, ExternalFile, Joined, Tokens
from xdoge.corpus.token_paths import FLAT
from xdoge.errors import XDogeError, importing
from xdoge.io import read_json, sha256_file
from xdoge.mixtures.checks import is_count
from xdoge.names import check_source, check_text, language_of, shown

if TYPE_CHECKING:
    from xdoge.corpus.tokenizer import Tokenizer

with importing("cli"):
    import pyarrow as pa

SCHEMA = "xdoge.store"
PREPARING = "preparing.json"
"""A store's folder contains this file until the store is finished."""
SHARDS = "shards"
"""Folder in a store for shards that have not been joined yet."""
SPLITS = ("train", "validation")
Split = Literal["train", "validation"]
INSIDE = "delete it and run xdoge prepare again"
"""Advice in messages about a file that differs from store.json."""
_TOKENS = pa.large_list(pa.uint16()), pa.large_list(pa.uint32())


class StoreRow(NamedTuple):
    """One row of `TokenStore.table`. All numbers except `validation_tokens` are about the training split.

    Attributes:
        source: name, "language/source".
        documents: number of documents.
        tokens: number of tokens.
        n_bytes: UTF-8 bytes of text.
        bytes_per_token: n_bytes / tokens.
        share: share of the store's training tokens.
        validation_tokens: tokens of the validation split.
        unknown_share: share of the tokens that are <unk>, None in stores of earlier versions.
    """

    source: str
    documents: int
    tokens: int
    n_bytes: int
    bytes_per_token: float
    share: float
    validation_tokens: int
    unknown_share: float | None


@dataclass(frozen=True)
class _Part:
    """One split of one source, as store.json describes it."""

    file: Path
    sha256: str
    size: int
    documents: int
    tokens: int
    n_bytes: int
    unknown: int | None
    external: tuple[ExternalFile, ...] | None


class TokenStore:
    """The tokens of all sources, on disk. A source is memory-mapped when it is first accessed.

    Use `TokenStore.open` to open a store. Tokens are integers, usually of type uint16 or uint32. `split` is
    "train" or "validation".

    Attributes:
        path: folder of the store.
        name: name of the corpus.
        vocab_size: size of the vocabulary. All ids are smaller.
        end_of_document: id that ends every document.
        tokenizer_fingerprint: SHA-256 of the tokenizer's file.
        sha256: SHA-256 of store.json, which has the SHA-256 of every other file.
        sources: names, `language/source`, in the order of corpus.yaml.
        languages: sources of each language.
        families: language family of each language, None if corpus.yaml does not give it.
        warnings: warnings of `prepare`, one line each.
    """

    path: Path
    name: str
    vocab_size: int
    end_of_document: int
    tokenizer_fingerprint: str
    sha256: str
    sources: tuple[str, ...]
    languages: dict[str, tuple[str, ...]]
    families: dict[str, str | None]
    warnings: tuple[str, ...]

    def __init__(self, path: Path, content: dict[str, Any], *, sha256: str) -> None:
        self.path = path
        self.sha256 = sha256
        self.name = content["name"]
        tokenizer = content["tokenizer"]
        self.vocab_size = tokenizer["vocab_size"]
        self.end_of_document = tokenizer["end_of_document"]
        self.tokenizer_fingerprint = tokenizer["fingerprint"]
        self.warnings = tuple(content["warnings"])
        self._content = content
        self._mapped: dict[tuple[str, str], tuple[Tokens | Joined, npt.NDArray[np.int64]]] = {}
        self._parts: dict[tuple[str, str], _Part] = {}
        grouped: dict[str, list[str]] = {}
        self.families = {}
        for text in (self.name, self.tokenizer_fingerprint, content["corpus"]["sha256"], *self.warnings):
            check_text("a name or warning", text)
        _check_counts(self.vocab_size, self.end_of_document)
        if not self.end_of_document < self.vocab_size <= 1 << 32:
            raise ValueError("end_of_document is not below vocab_size, or that is above 2^32")
        for source, entry in content["sources"].items():
            check_source(source, where="sources")
            language, family = language_of(source), entry["family"]
            for what, text in (("family", family), ("license", entry["license"])):
                check_text(f"the {what} of {source}", "" if text is None else text)
            if not isinstance(entry["inputs"], list):
                raise TypeError(f"the inputs of {source} are not a list")
            grouped.setdefault(language, []).append(source)
            self.families[language] = family
            for split in SPLITS:
                part = entry[split]
                if part["file"] != (file := f"tokens/{source}.{split}.arrow"):
                    raise XDogeError(f"the tokens of {source} are said to be in {shown(part['file'])}, not in {file}.")
                _check_counts(part["size"], part["documents"], part["tokens"], part["n_bytes"], part.get("unknown", 0))
                self._parts[source, split] = _Part(
                    file=path / part["file"],
                    sha256=part["sha256"],
                    size=part["size"],
                    documents=part["documents"],
                    tokens=part["tokens"],
                    n_bytes=part["n_bytes"],
                    unknown=part.get("unknown"),
                    external=_external_files(path, part["raw"]) if "raw" in part else None,
                )
        self.sources = tuple(content["sources"])
        self.languages = {language: tuple(sources) for language, sources in grouped.items()}

    @classmethod
    def open(cls, path: Path | str) -> TokenStore:
        """Open a finished store. Only store.json is read at this time.

        Raises:
            XDogeError: there is no finished store, or it has a newer schema. Or a file is missing, or its size differs
                from store.json.
        """
        path = Path(path)
        manifest = path / "store.json"
        if not manifest.is_file():
            if (path / SHARDS).is_dir():
                raise XDogeError(f"{path} holds parts that are not joined; run xdoge prepare with --join.")
            if (path / PREPARING).is_file():
                raise XDogeError(f"{path} is not finished; run the same xdoge prepare again to finish it.")
            raise XDogeError(f"{path} is not a token store: it has no store.json. xdoge prepare makes one.")
        content = read_json(manifest, schema=SCHEMA)
        try:
            store = cls(path, content, sha256=sha256_file(manifest))
        except XDogeError as error:
            raise XDogeError(f"{manifest}: {error.message}") from error
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise XDogeError(f"{manifest} is damaged: {shown(error)}. Prepare the store again.") from error
        for file, size, _, remedy in store._files():
            try:
                status = file.stat()
            except OSError as error:
                raise XDogeError(f"{file} is missing from the store; {remedy}.") from error
            if not stat.S_ISREG(status.st_mode):  # reading a pipe would block, a device has no end
                raise XDogeError(f"{file} is not a file or a link to a file; {remedy}.")
            if status.st_size != size:
                raise XDogeError(
                    f"{file} has {status.st_size:,} bytes where store.json says {size:,}; "
                    f"it was cut or changed: {remedy}."
                )
        return store

    def __reduce__(self) -> tuple[Any, ...]:
        # A data loader's worker opens the store again. Pickling the memory maps would copy all tokens.
        return TokenStore.open, (self.path,)

    def __repr__(self) -> str:
        """Return the name, the folder and the numbers of languages, sources and tokens."""
        return (
            f"TokenStore({str(self.path)!r}, name={self.name!r}, languages={len(self.languages)}, "
            f"sources={len(self.sources)}, tokens={sum(self.tokens().values()):,}, "
            f"validation_tokens={sum(self.tokens('validation').values()):,}, vocab_size={self.vocab_size:,})"
        )

    def tokens(self, split: Split = "train") -> dict[str, int]:
        """Return the number of tokens per source, including end-of-document tokens."""
        return {source: self._part(source, split).tokens for source in self.sources}

    def documents(self, split: Split = "train") -> dict[str, int]:
        """Return the number of documents per source."""
        return {source: self._part(source, split).documents for source in self.sources}

    def n_bytes(self, split: Split = "train") -> dict[str, int]:
        """Return the number of UTF-8 bytes of text per source."""
        return {source: self._part(source, split).n_bytes for source in self.sources}

    def sequence_counts(self, length: int, split: Split = "train") -> dict[str, int]:
        """Return the number of whole sequences of `length` tokens per source."""
        if length < 1:
            raise XDogeError(f"length is {length}; a sequence has at least 1 token.")
        return {source: tokens // length for source, tokens in self.tokens(split).items()}

    def flat(self, source: str, split: Split = "train") -> Tokens | Joined:
        """Return all tokens of a source, (tokens,), as a read-only view of the file.

        If the source has several files, the result is a `Joined`, which can be sliced like an array.
        """
        return self._map(source, split)[0]

    def document_bounds(self, source: str, split: Split = "train") -> npt.NDArray[np.int64]:
        """Return the offsets in `flat` where documents begin and the last one ends, (documents + 1,)."""
        return self._map(source, split)[1]

    def sequence(self, source: str, index: int, length: int, split: Split = "train") -> Tokens:
        """Return tokens [index * length, (index + 1) * length) of a source, (length,).

        The result is a view, or a copy if the sequence crosses the boundary of two files.

        Raises:
            XDogeError: the source has no such sequence.
        """
        flat = self.flat(source, split)
        count = len(flat) // length
        if not 0 <= index < count:
            raise XDogeError(
                f"{source} ({split}) has {count:,} sequences of {length:,} tokens, so there is no index {index:,}."
            )
        return flat[index * length : (index + 1) * length]

    def sequences(
        self, source: str, indices: Sequence[int] | npt.NDArray[np.integer], length: int, split: Split = "train"
    ) -> Tokens:
        """Return several sequences of one source as a copy, (n, length).

        Raises:
            XDogeError: the source does not have all of them.
        """
        flat = self.flat(source, split)
        count = len(flat) // length
        chosen = np.asarray(indices, dtype=np.int64)
        if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < count:
            raise XDogeError(
                f"{source} ({split}) has {count:,} sequences of {length:,} tokens, "
                f"and indices go from {int(chosen.min()):,} to {int(chosen.max()):,}."
            )
        if isinstance(flat, Joined):
            rows = [flat[i * length : (i + 1) * length] for i in chosen.tolist()]
            return np.concatenate([*rows, flat[:0]]).reshape(-1, length)  # (n, T)
        return flat[: count * length].reshape(count, length)[chosen]  # (n, T)

    def check_ids(self, source: str, ids: Tokens, split: Split = "train") -> None:
        """Raise an error if ids are outside the vocabulary, on which a model would fail.

        Raises:
            XDogeError: an id is outside the vocabulary, so the file was damaged after it was written.
        """
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < self.vocab_size:
            wrong = int(ids.min()) if ids.min() < 0 else int(ids.max())
            part = self._part(source, split)
            files = " or ".join(str(entry.file) for entry in part.external or ()) or part.file
            raise XDogeError(
                f"{files} is damaged: it gives the token id {wrong:,}, but the vocabulary has "
                f"{self.vocab_size:,} tokens. xdoge fit-weights --verify checks every file of {self.path}."
            )

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer with which the store was made."""
        from xdoge.corpus.tokenizer import Tokenizer

        return Tokenizer.load(self.path / "tokenizer")

    def verify(self) -> None:
        """Compare the SHA-256 of every file with store.json.

        Raises:
            XDogeError: a file differs from the one that `prepare` wrote. The message names it.
        """
        for file, _, sha256, remedy in self._files():
            if sha256_file(file) != sha256:
                did = "read" if remedy == OUTSIDE else "wrote"
                raise XDogeError(f"{file} is not what prepare {did}: its SHA-256 differs from store.json; {remedy}.")
        if self.tokenizer().fingerprint != self.tokenizer_fingerprint:
            raise XDogeError(
                f"{self.path / 'tokenizer'} is not the tokenizer that made the tokens: its SHA-256 differs."
            )

    def table(self) -> list[StoreRow]:
        """Return one row per source, with numbers of documents, tokens and bytes."""
        total = sum(self.tokens().values())
        rows = []
        for source in self.sources:
            train, validation = (self._part(source, split) for split in SPLITS)
            rows.append(
                StoreRow(
                    source=source,
                    documents=train.documents,
                    tokens=train.tokens,
                    n_bytes=train.n_bytes,
                    bytes_per_token=train.n_bytes / train.tokens,
                    share=train.tokens / total,
                    validation_tokens=validation.tokens,
                    unknown_share=None if train.unknown is None else train.unknown / train.tokens,
                )
            )
        return rows

    def _files(self) -> list[tuple[Path, int, str, str]]:
        """Return each file once, with its size, its SHA-256 and the advice for a message if it differs."""
        files = {}
        for part in self._parts.values():
            files[part.file] = (part.file, part.size, part.sha256, INSIDE)
            files.update((entry.file, (entry.file, entry.size, entry.sha256, OUTSIDE)) for entry in part.external or ())
        return list(files.values())

    def _part(self, source: str, split: str) -> _Part:
        try:
            return self._parts[source, split]
        except KeyError:
            if split not in SPLITS:
                raise XDogeError(f"split is {split!r}; a store has {' and '.join(SPLITS)}.") from None
            raise XDogeError(f"{self.path} has no source {source!r}; it has {', '.join(self.sources)}.") from None

    def _map(self, source: str, split: str) -> tuple[Tokens | Joined, npt.NDArray[np.int64]]:
        mapped = self._mapped.get((source, split))
        if mapped is None:
            part = self._part(source, split)
            mapped = map_tokens(part.file) if part.external is None else _map_external(part.file, part.external)
            if (len(mapped[0]), len(mapped[1]) - 1) != (part.tokens, part.documents):
                raise XDogeError(f"{part.file} does not hold what store.json says; run xdoge prepare again.")
            self._mapped[source, split] = mapped
        return mapped


def map_tokens(file: Path) -> tuple[Tokens, npt.NDArray[np.int64]]:
    """Return the tokens, (tokens,), and the document bounds, (documents + 1,), of a token file as views of the file.

    Raises:
        XDogeError: the file is not a token file.
    """
    column = _column(file, "input_ids", _TOKENS)
    return column.values.to_numpy(zero_copy_only=True), column.offsets.to_numpy(zero_copy_only=True)


def _map_external(file: Path, external: Sequence[ExternalFile]) -> tuple[Tokens | Joined, npt.NDArray[np.int64]]:
    parts = [part.map() for part in external] or [np.empty(0, dtype=np.uint16)]
    bounds = _column(file, "bounds", (pa.int64(),)).to_numpy(zero_copy_only=True)
    return parts[0] if len(parts) == 1 else Joined(parts), bounds


def _column(file: Path, name: str, types: Sequence[pa.DataType]) -> Any:
    try:
        with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as reader:
            column = reader.read_next_batch().column(name)
        column.validate(full=True)  # checks lengths and offsets, which can be wrong in a damaged file
    except (pa.ArrowException, OSError, KeyError, StopIteration) as error:
        message = textwrap.shorten(str(error), 200, placeholder=" ...")
        raise XDogeError(f"{file} is not a token file: {message}") from error
    if column.type not in types or column.null_count:
        actual = f"{str(column.type)[:80]} with {column.null_count:,} nulls"
        raise XDogeError(f"{file} is not a token file: {name} is {actual}.")
    return column


def _check_counts(*values: object) -> None:
    for value in values:
        if not is_count(value):
            raise TypeError(f"{shown(value)} is not a count")


def _external_files(folder: Path, entries: list[dict[str, Any]]) -> tuple[ExternalFile, ...]:
    files = tuple(
        ExternalFile(**{**entry, "file": folder / entry["file"], "dtype": np.dtype(entry["dtype"])})
        for entry in entries
    )
    for part in files:
        _check_counts(part.begin, part.end, part.size)
        check_text("a raw file", str(part.file))
        if part.file.suffix not in FLAT:
            raise XDogeError(f"{part.file} cannot hold tokens; only {', '.join(FLAT)} files can.")
        if part.dtype.kind not in "iu" or not 0 <= part.begin <= part.end <= part.size // part.dtype.itemsize:
            raise TypeError(f"{part.file} cannot hold {part.dtype} tokens {part.begin:,} to {part.end:,}")
    return files
