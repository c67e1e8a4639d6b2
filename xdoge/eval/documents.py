"""The documents that a model predicts: their tokens in the model's own tokenizer, and their words and bytes.

A model reads a token store directly if it was trained with the tokenizer of the store. Any other model reads the text
itself, from files. In both cases, a document has the tokens of its text only. The end-of-document token of a store is
left out. It has no bytes, and the text that other models read does not contain it.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from xdoge.corpus.paths import text_format
from xdoge.corpus.readers.columns import Columns
from xdoge.corpus.readers.files import file_blocks, reading
from xdoge.corpus.readers.inputs import Input, refuse_empty, scan
from xdoge.corpus.remote import File, local
from xdoge.corpus.spec import PLAIN_CSV, Corpus, CsvSpec, DocumentOf
from xdoge.corpus.store import TokenStore
from xdoge.corpus.threads import encoders
from xdoge.errors import XDogeError
from xdoge.models.tokenizers import check_tokenizer, model_tokenizer
from xdoge.sampling.permutation import derive_key


@dataclass(frozen=True)
class Text:
    """The text files of one source.

    Attributes:
        files: JSONL, JSON, CSV, Parquet, Arrow or text files. JSONL, Arrow and text files may be compressed. A row is a
            document.
        column: the column with the documents, or several columns whose texts are joined, as `text` in corpus.yaml.
        id: column of JSONL and Parquet files with an id of the document. Translations of a document have the same id.
            None for text without translations. A file may lack the column.
        csv: format of CSV files.
        document: what a document of a .txt file is.
    """

    files: tuple[File, ...]
    column: Columns = "text"
    id: str | None = "id"
    csv: CsvSpec = PLAIN_CSV
    document: DocumentOf = "line"

    def scan(self, file: File) -> Input:
        """Return one of the files with its hash, after a check of its format."""
        return scan(file, self.column, name=str(file), csv=self.csv, document=self.document)

    def rows(self, file: File) -> list[str]:
        """Return the rows of one of the files."""
        blocks = file_blocks(file, self.column, self.csv, self.document)
        return [row for block in blocks for row in block.texts(self.column)]


@dataclass(frozen=True)
class Documents:
    """D documents of one source.

    Attributes:
        tokens: token ids of each document, (T,) with a different T for each.
        words: (D,) number of words, separated by white space.
        n_bytes: (D,) number of UTF-8 bytes.
        ids: id of each document; None without one. Translations of a document have the same id.
    """

    tokens: Sequence[NDArray[Any]]
    words: NDArray[np.float64]
    n_bytes: NDArray[np.float64]
    ids: Sequence[str | None]

    def some(self, most: int | None) -> Documents:
        """Return at most `most` documents: those whose ids, or numbers without ids, have the smallest hashes."""
        if most is None or len(self.tokens) <= most:
            return self
        hashes = [derive_key("documents", str(n if name is None else name)) for n, name in enumerate(self.ids)]
        chosen = sorted(sorted(range(len(hashes)), key=hashes.__getitem__)[:most])
        return Documents(
            [self.tokens[i] for i in chosen], self.words[chosen], self.n_bytes[chosen], [self.ids[i] for i in chosen]
        )


class StoreText:
    """The validation split of a token store.

    Raises:
        XDogeError: the tokenizer of the store is not that of the model.
    """

    def __init__(self, store: TokenStore, model: str) -> None:
        advice = (
            "Give the validation text as files, which each model reads with its own tokenizer, and compare "
            "bits per byte."
        )
        check_tokenizer(store, model, advice=advice)
        self.store = store
        self.fingerprint, self.end_of_document = store.tokenizer_fingerprint, store.end_of_document
        counts = store.documents("validation")
        self.sources = [source for source in store.sources if counts[source]]
        self.empty = [source for source in store.sources if not counts[source]]
        self._decode = store.tokenizer().decode

    def identity(self, source: str) -> dict[str, Any]:
        """Return values that change whenever the text changes."""
        return {"store": self.store.sha256, "source": source}

    def read(self, source: str) -> Documents:
        """Return the documents of a source.

        Words and bytes are counted in the decoded tokens. These can differ from the text if the tokenizer normalises
        it. So the bytes are scaled to the sum that the store has counted.
        """
        flat = self.store.flat(source, "validation")
        self.store.check_ids(source, flat[:], "validation")
        bounds = self.store.document_bounds(source, "validation").tolist()
        tokens = [flat[start : end - 1] for start, end in itertools.pairwise(bounds)]
        with encoders(1) as pool:
            texts = pool.submit(self._decode, [document.tolist() for document in tokens]).result()
        n_bytes = _count(len(text.encode("utf-8", "replace")) for text in texts)
        n_bytes *= self.store.n_bytes("validation")[source] / n_bytes.sum()
        return Documents(tokens, _count(len(text.split()) for text in texts), n_bytes, [None] * len(tokens))


class FileText:
    """Text files, read with the model's own tokenizer.

    Raises:
        XDogeError: a name is not allowed for a source, a file cannot be read, or the model has no tokenizer.
    """

    empty: Sequence[str] = ()

    def __init__(self, texts: Mapping[str, Text], model: str) -> None:
        for source in texts:
            if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", source):
                raise XDogeError(f"{source!r} cannot be a source; write LANGUAGE or LANGUAGE/NAME, such as es/web.")
        self.tokenizer = model_tokenizer(model)
        self.fingerprint, self.end_of_document = self.tokenizer.fingerprint, self.tokenizer.end_of_document
        self.sources = list(texts)
        self._texts = texts
        self._inputs = {source: [text.scan(file) for file in text.files] for source, text in texts.items()}
        for inputs in self._inputs.values():
            refuse_empty(inputs)

    def identity(self, source: str) -> dict[str, Any]:
        """Return values that change whenever the text, or the way it is read, changes."""
        text = self._texts[source]
        return {
            "files": [asdict(file)["sha256"] for file in self._inputs[source]],
            "column": text.column,
            "id": text.id,
            **({} if text.csv == PLAIN_CSV else {"csv": text.csv.model_dump()}),
            **({} if text.document == "line" else {"document": text.document}),
            "tokenizer": self.fingerprint,
        }

    def read(self, source: str) -> Documents:
        """Return the documents of a source. Rows that are null, empty or white space are skipped.

        Raises:
            XDogeError: a row is damaged.
        """
        text = self._texts[source]
        pairs: list[tuple[str, str | None]] = []
        for file in text.files:
            rows = text.rows(file)
            names = _ids(file, text.id) if text.id else None
            pairs += [pair for pair in zip(rows, names or [None] * len(rows), strict=True) if pair[0].strip()]
        texts = [row for row, _ in pairs]
        with encoders(1) as pool:  # so that a signal stops it at once
            flat, lengths = pool.submit(self.tokenizer.encode, texts).result()
        ends = np.cumsum(lengths).tolist()
        return Documents(
            [flat[end - length : end - 1] for end, length in zip(ends, lengths.tolist(), strict=True)],
            _count(len(row.split()) for row in texts),
            _count(len(row.encode("utf-8")) for row in texts),
            [name for _, name in pairs],
        )


def validation_texts(corpus: Corpus) -> dict[str, Text]:
    """Return the validation files of a corpus.yaml, for a model with another tokenizer than the store's.

    Raises:
        XDogeError: a source is not text, or it has no validation files. Its validation documents are then chosen by
            hash, and only the store holds them.
    """
    for source in corpus.sources:
        if source.spec.has_tokens:
            raise XDogeError(f"{source.where} has tokens, which another tokenizer cannot read; name the text itself.")
        if not source.validation:
            raise XDogeError(f"{source.where} has no validation files; name the text of {source.name} itself.")
    return {
        source.name: Text(source.validation, source.spec.text, csv=source.spec.csv, document=source.spec.document)
        for source in corpus.sources
    }


def _ids(path: File, column: str) -> list[str | None] | None:
    """Return the id of every row; None if the format or the file has no ids."""
    kind, _ = text_format(path)
    if kind == ".parquet":
        with reading(path), pa.parquet.ParquetFile(local(path)) as parquet:
            if column not in parquet.schema_arrow.names:
                return None
            values = parquet.read(columns=[column]).column(0).to_pylist()
    elif kind == ".jsonl":
        lines = (line for block in file_blocks(path, column) for line in block.data.split(b"\n"))
        values = [json.loads(line.removeprefix(b"\xef\xbb\xbf")).get(column) for line in lines if line.strip()]
    else:
        return None
    return [None if value is None else str(value) for value in values]


def _count(numbers: Any) -> NDArray[np.float64]:
    return np.fromiter(numbers, dtype=np.float64)
