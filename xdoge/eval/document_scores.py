"""The negative log-likelihood of each document under a model, and the Parquet file that stores it.

With these scores, models that were measured on the same documents are compared document by document. For results.json,
the file is results.documents.parquet. It has a row per model, source and document, with the document's id (null without
one), nats, tokens, words and n_bytes.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xdoge.errors import XDogeError
from xdoge.io import replacing

SUMS = ("nats", "tokens", "words", "n_bytes")
_KEYS = ("model", "source", "id")


@dataclass(frozen=True)
class SourceScores:
    """Scores of D documents of a source.

    Attributes:
        totals: nats, tokens, words and UTF-8 bytes of each document, (D, 4).
        ids: id of each document; None without one. Translations of a document have the same id.
    """

    totals: NDArray[np.float64]
    ids: tuple[str | None, ...]

    def nats_by_id(self) -> dict[str, float]:
        """Return the nats of each document with a unique id, by id."""
        counts = Counter(self.ids)
        pairs = zip(self.ids, self.totals[:, 0].tolist(), strict=True)
        return {name: nats for name, nats in pairs if name is not None and counts[name] == 1}


DocumentScores = Mapping[str, Mapping[str, SourceScores]]
"""Scores by model and source."""


def documents_file(results: Path) -> Path:
    """Return the path of the file with the documents of a results.json."""
    return results.with_name(f"{results.name.removesuffix('.json')}.documents.parquet")


def save_documents(path: Path, documents: DocumentScores) -> None:
    """Write the file of the documents. It is never half-written. Without documents, remove an earlier file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts = [(model, source, scores) for model, by in documents.items() for source, scores in by.items()]
    if not parts:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        return
    totals = np.concatenate([scores.totals for *_, scores in parts])
    keys = [[m, s, name] for m, s, scores in parts for name in scores.ids]
    columns = {name: pa.array(column, pa.string()) for name, column in zip(_KEYS, zip(*keys, strict=True), strict=True)}
    columns |= {name: pa.array(totals[:, n]) for n, name in enumerate(SUMS)}
    with replacing(path) as file:
        pq.write_table(pa.table(columns), file, write_page_checksum=True)


def load_documents(path: Path) -> DocumentScores:
    """Return the documents of a results.json; empty if it has no such file.

    Raises:
        XDogeError: the file is damaged or has other content.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.exists():
        return {}
    try:
        table = pq.read_table(path, columns=[*_KEYS, *SUMS], page_checksum_verification=True)
        models, sources, ids = (table.column(name).to_pylist() for name in _KEYS)
        totals = np.stack([table.column(name).to_numpy().astype(np.float64) for name in SUMS], axis=1)
    except (OSError, pa.ArrowException, ValueError) as error:
        raise XDogeError(f"{path} is damaged; measure again, or remove it to compare without it.") from error
    places: dict[tuple[str, str], list[int]] = {}
    for place, key in enumerate(zip(models, sources, strict=True)):
        places.setdefault(key, []).append(place)
    documents: dict[str, dict[str, SourceScores]] = {}
    for (model, source), rows in places.items():
        scores = SourceScores(totals[rows], tuple(ids[row] for row in rows))
        documents.setdefault(model, {})[source] = scores
    return documents
