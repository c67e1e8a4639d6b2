"""A table of the mixture, for trainers that have no export of their own."""

from __future__ import annotations

import csv as csv_file
import io

from xdoge.export.request import FOLDER, Export, Request
from xdoge.names import language_of


def csv(request: Request) -> Export:
    """CSV table for trainers that are not listed here, with one row per source, including sources that are not read.

    Columns: source, language, path, weight (share of the run's tokens), tokens (read in this run), available_tokens,
    read_before (tokens), epochs (at the end of the run, including earlier phases), max_epochs, capped. If the sequence
    length is given, there is a column sequences. If documents are given, there is a column document_weight: the share
    of draws, for a trainer that draws documents.

    Weights: shares of tokens. What happens at the end of a source depends on the program that reads the table.

    Paths: "data/{language}/{source}".
    """
    places = request.places(FOLDER, every=True)
    drawn = Request(request.mixture, documents=request.documents).row_weights
    rows = []
    for source, share in request.mixture.sources.items():
        row: dict[str, str | float | None] = {
            "source": source,
            "language": language_of(source),
            "path": places[source],
            "weight": share.weight,
            "tokens": share.tokens,
            "available_tokens": share.available_tokens,
            "read_before": share.read_before,
            "epochs": share.epochs,
            "max_epochs": share.max_epochs,
            "capped": str(share.capped).lower(),
        }
        if request.sequence_length is not None:
            row["sequences"] = share.tokens // request.sequence_length
        if request.documents is not None:
            row["document_weight"] = drawn.get(source, 0.0)
        rows.append(row)
    file = io.StringIO()
    writer = csv_file.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return Export(file.getvalue(), ".csv")
