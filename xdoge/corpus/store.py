"""Tokens on disk, as sequences of any length.

A store is a folder: `store.json` says what is in it, and `tokens/<language>/<source>.<split>.arrow` holds one row
of `input_ids` per document, its end-of-document token included. Each file is one Arrow record batch, so all tokens
of a source lie one after the other on disk; a sequence is a view into them and costs no copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from xdoge.errors import XDogeError
from xdoge.files import read_json, sha256_file

if TYPE_CHECKING:
    from xdoge.corpus.tokenizer import Tokenizer

SCHEMA = "xdoge.store"
PREPARING = "preparing.json"
"""Lies in a store's folder until the store is finished."""
SPLITS = ("train", "validation")
Split = Literal["train", "validation"]
Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


class Row(NamedTuple):
    """One line of `TokenStore.table`: of the training split, but for `validation_tokens`."""

    source: str
    documents: int
    tokens: int
    n_bytes: int
    bytes_per_token: float
    share: float
    validation_tokens: int


@dataclass(frozen=True)
class _Part:
    """One file of the store: a source in one split."""

    file: Path
    sha256: str
    size: int
    documents: int
    tokens: int
    n_bytes: int


class TokenStore:
    """The tokens of every source, memory-mapped when first asked for.

    Attributes:
        path: the folder.
        name: of the corpus.
        vocab_size: ids are below it.
        end_of_document: the id that ends every document.
        tokenizer_fingerprint: SHA-256 of the tokenizer's file.
        sha256: of store.json, which names every other file by its own.
        sources: `language/source`, in the order of corpus.yaml.
        languages: each language with its sources.
        families: each language with its family, None where corpus.yaml names none.
        warnings: what prepare found worth saying, one line each.
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
        self._dtype = np.dtype(content["dtype"])
        self._content = content
        self._mapped: dict[tuple[str, str], tuple[Tokens, npt.NDArray[np.int64]]] = {}
        self._parts: dict[tuple[str, str], _Part] = {}
        grouped: dict[str, list[str]] = {}
        self.families = {}
        for source, entry in content["sources"].items():
            grouped.setdefault(entry["language"], []).append(source)
            self.families[entry["language"]] = entry["family"]
            for split in SPLITS:
                part = entry[split]
                self._parts[source, split] = _Part(
                    file=path / part["file"],
                    sha256=part["sha256"],
                    size=part["size"],
                    documents=part["documents"],
                    tokens=part["tokens"],
                    n_bytes=part["n_bytes"],
                )
        self.sources = tuple(content["sources"])
        self.languages = {language: tuple(sources) for language, sources in grouped.items()}

    @classmethod
    def open(cls, path: Path | str) -> TokenStore:
        """Open a finished store; nothing but store.json is read until tokens are asked for.

        Raises:
            XDogeError: there is no finished store, it was written by a newer xdoge, or a file is missing or of
                another size than store.json says.
        """
        path = Path(path)
        manifest = path / "store.json"
        if not manifest.is_file():
            if (path / PREPARING).is_file():
                raise XDogeError(f"{path} is not finished; run the same xdoge prepare again to finish it.")
            raise XDogeError(f"{path} is not a token store: it has no store.json. xdoge prepare makes one.")
        content = read_json(manifest, schema=SCHEMA)
        try:
            store = cls(path, content, sha256=sha256_file(manifest))
        except (KeyError, TypeError, AttributeError) as error:
            raise XDogeError(f"{manifest} is damaged: {error!r}. Prepare the store again.") from error
        for part in store._parts.values():
            try:
                size = part.file.stat().st_size
            except OSError as error:
                raise XDogeError(f"{part.file} is missing from the store; run xdoge prepare again.") from error
            if size != part.size:
                raise XDogeError(
                    f"{part.file} has {size:,} bytes where store.json says {part.size:,}; "
                    "it was cut or changed: delete it and run xdoge prepare again."
                )
        return store

    def __reduce__(self) -> tuple[Any, ...]:
        # a loader's worker maps the files anew: the views themselves would travel as copies
        return TokenStore.open, (self.path,)

    def __repr__(self) -> str:
        """Return name, folder and size on one line."""
        return (
            f"TokenStore({str(self.path)!r}, name={self.name!r}, languages={len(self.languages)}, "
            f"sources={len(self.sources)}, tokens={sum(self.tokens().values()):,}, "
            f"validation_tokens={sum(self.tokens('validation').values()):,}, vocab_size={self.vocab_size:,})"
        )

    def tokens(self, split: Split = "train") -> dict[str, int]:
        """Return the number of tokens per source, end-of-document tokens included."""
        return {source: self._part(source, split).tokens for source in self.sources}

    def documents(self, split: Split = "train") -> dict[str, int]:
        """Return the number of documents per source."""
        return {source: self._part(source, split).documents for source in self.sources}

    def n_bytes(self, split: Split = "train") -> dict[str, int]:
        """Return the number of UTF-8 bytes of text per source."""
        return {source: self._part(source, split).n_bytes for source in self.sources}

    def sequence_counts(self, length: int, split: Split = "train") -> dict[str, int]:
        """Return how many whole sequences of `length` tokens each source has."""
        if length < 1:
            raise XDogeError(f"length is {length}; a sequence has at least 1 token.")
        return {source: tokens // length for source, tokens in self.tokens(split).items()}

    def flat(self, source: str, split: Split = "train") -> Tokens:
        """Return all tokens of a source, a read-only view of the file on disk."""
        return self._map(source, split)[0]

    def document_bounds(self, source: str, split: Split = "train") -> npt.NDArray[np.int64]:
        """Return where documents begin in `flat` and where the last one ends, (documents + 1,)."""
        return self._map(source, split)[1]

    def sequence(self, source: str, index: int, length: int, split: Split = "train") -> Tokens:
        """Return tokens [index * length, (index + 1) * length) of a source as a view, (length,).

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
        """Return several sequences of one source, a copy, (n, length).

        Raises:
            XDogeError: the source lacks one of them.
        """
        flat = self.flat(source, split)
        count = len(flat) // length
        chosen = np.asarray(indices, dtype=np.int64)
        if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < count:
            raise XDogeError(
                f"{source} ({split}) has {count:,} sequences of {length:,} tokens, "
                f"and indices go from {int(chosen.min()):,} to {int(chosen.max()):,}."
            )
        return flat[: count * length].reshape(count, length)[chosen]  # (n, T)

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer the store was made with."""
        from xdoge.corpus.tokenizer import Tokenizer

        return Tokenizer.load(self.path / "tokenizer")

    def verify(self) -> None:
        """Hash every file again.

        Raises:
            XDogeError: a file is not the one that prepare wrote; the line names it.
        """
        for part in self._parts.values():
            if sha256_file(part.file) != part.sha256:
                raise XDogeError(
                    f"{part.file} is not what prepare wrote: its SHA-256 differs from store.json. "
                    "Delete it and run xdoge prepare again."
                )
        if self.tokenizer().fingerprint != self.tokenizer_fingerprint:
            raise XDogeError(
                f"{self.path / 'tokenizer'} is not the tokenizer that made the tokens: its SHA-256 differs."
            )

    def table(self) -> list[Row]:
        """Return one row per source: its training documents, tokens and bytes, and its share of training tokens."""
        total = sum(self.tokens().values())
        rows = []
        for source in self.sources:
            train, validation = (self._part(source, split) for split in SPLITS)
            rows.append(
                Row(
                    source=source,
                    documents=train.documents,
                    tokens=train.tokens,
                    n_bytes=train.n_bytes,
                    bytes_per_token=train.n_bytes / train.tokens,
                    share=train.tokens / total,
                    validation_tokens=validation.tokens,
                )
            )
        return rows

    def _part(self, source: str, split: str) -> _Part:
        try:
            return self._parts[source, split]
        except KeyError:
            if split not in SPLITS:
                raise XDogeError(f"split is {split!r}; a store has {' and '.join(SPLITS)}.") from None
            raise XDogeError(f"{self.path} has no source {source!r}; it has {', '.join(self.sources)}.") from None

    def _map(self, source: str, split: str) -> tuple[Tokens, npt.NDArray[np.int64]]:
        mapped = self._mapped.get((source, split))
        if mapped is None:
            part = self._part(source, split)
            mapped = map_tokens(part.file)
            if (len(mapped[0]), len(mapped[1]) - 1) != (part.tokens, part.documents):
                raise XDogeError(f"{part.file} does not hold what store.json says; run xdoge prepare again.")
            self._mapped[source, split] = mapped
        return mapped


def map_tokens(file: Path) -> tuple[Tokens, npt.NDArray[np.int64]]:
    """Return a token file's tokens and document bounds as views of the file.

    Raises:
        XDogeError: not a token file.
    """
    try:
        with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as reader:
            column = reader.read_next_batch().column("input_ids")
    except (pa.ArrowInvalid, KeyError, StopIteration) as error:
        raise XDogeError(f"{file} is not a token file: {' '.join(str(error).split())}") from error
    flat = column.values.to_numpy(zero_copy_only=True)
    bounds = column.offsets.to_numpy(zero_copy_only=True)
    return flat, bounds
