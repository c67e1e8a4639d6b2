"""Mixers that take files and how often to read them: MosaicML streaming, OLMo-core; and a table for all others."""

from __future__ import annotations

import csv as csv_file
import io
import math

from xdoge.export.request import Export, Request, to_yaml
from xdoge.mixtures.simplex import largest_remainder

FOLDER = "data/{language}/{source}"


def mosaicml(request: Request) -> Export:
    """Streams for MosaicML streaming, each with `choose` or `repeat`: YAML.

    Use: as the `streams` of an LLM Foundry data set, or `Stream(**fields)` for each. One epoch is the mixture's budget.

    Weights: with a sequence length, `choose`: how many sequences to take of each source, exact to the last. Without,
    `repeat`: passes over the samples of a source, right for sequences and documents alike, cut to whole samples.

    At the end of a source nothing happens: the epoch is laid out beforehand, whole passes and a random part for the
    rest, never a sample twice within a pass; passes are shuffled together. The next epoch does the same again.

    Paths: "data/{language}/{source}", the `local` folder of MDS shards; set `remote` yourself.

    Source: streaming/base: stream.py, sampling.py, dataset.py (0.13).
    """
    places = request.places(FOLDER)
    length = request.sequence_length
    if length is None:
        streams = {source: {"local": places[source], "repeat": passes} for source, passes in request.passes.items()}
        return Export(to_yaml({"streams": streams}), ".yaml")
    tokens = [share.tokens for share in request.shares.values()]
    counts = dict(zip(places, largest_remainder(tokens, request.mixture.budget_tokens // length), strict=True))
    chosen = {source: {"local": places[source], "choose": count} for source, count in counts.items() if count}
    short = [source for source, count in counts.items() if not count]
    warnings = [f"left out, since the plan reads less than a sequence of {length:,} tokens: {', '.join(short)}."]
    return Export(to_yaml({"streams": chosen}), ".yaml", tuple(warnings if short else ()))


def mosaicml_proportion(request: Request) -> Export:
    """Streams for MosaicML streaming with `proportion`, for runs whose length is set elsewhere: YAML.

    Use: as mosaicml; `epoch_size` is there if the rows of the budget are known. Prefer mosaicml, which is exact.

    Weights: shares of samples, which streaming divides by their sum. If samples are sequences (give the sequence
    length) they are shares of tokens; if documents (give the documents per source), of token share / mean document
    length.

    At the end of a source nothing happens: each epoch takes whole passes and a random part for the rest. Without
    `epoch_size` an epoch is as long as all data, and the random part is drawn anew in each: over several epochs some
    samples come again before others came once.

    Paths: "data/{language}/{source}", the `local` folder of MDS shards; set `remote` yourself.

    Source: streaming/base/stream.py, `Stream.apply_weights` (0.13).
    """
    places = request.places(FOLDER)
    weights = request.row_weights
    streams = {source: {"local": path, "proportion": weights[source]} for source, path in places.items()}
    value = {"streams": streams} | ({} if request.n_rows is None else {"epoch_size": request.n_rows})
    return Export(to_yaml(value), ".yaml", tuple(request.unit_warnings()))


def olmo_core(request: Request) -> Export:
    """Source mixture of OLMo-core, a `SourceMixtureList`: YAML.

    Use: `SourceMixtureDatasetConfig(source_list=SourceMixtureList.from_yaml(FILE), requested_tokens=BUDGET, ...)`; the
    budget is the first line of the file.

    Weights: shares of tokens, in sequences, which must sum to 1 within 1e-5. `max_repetition_ratio` is the cap of the
    source, at least 1: OLMo-core refuses to start if the files hold too little for that many passes.

    At the end of a source nothing happens: whole passes and the rest are laid out beforehand. The rest is the first
    part of each file, not a random one: text that comes late in a file of an under-read source is never read, so
    shuffle the files. The loader shuffles all passes together.

    Paths: "data/{language}/{source}/*.npy", a file or a pattern of files of token numbers.

    Source: olmo_core/data: source_mixture.py, numpy_dataset.py, `NumpyFSLDatasetMixture` (3.0.0).
    """
    places = request.places("data/{language}/{source}/*.npy")
    passes = request.passes
    entries = []
    for source, share in request.shares.items():
        most = share.max_epochs if share.max_epochs is not None else math.ceil(passes[source])
        entries.append(
            {
                "source_name": source,
                "target_ratio": share.weight,
                "paths": [places[source]],
                "max_repetition_ratio": max(1.0, float(most)),
            }
        )
    least = min(passes, key=lambda source: passes[source])
    partly = sum(value < 1 for value in passes.values())
    warnings = [
        f"{partly} of {len(passes)} sources are not read whole: OLMo-core reads the first part of each file, "
        f"{passes[least]:.1%} of {least}, and never the rest."
    ]
    text = to_yaml({"sources": entries}, f"requested_tokens: {request.mixture.budget_tokens}")
    return Export(text, ".yaml", tuple(warnings if partly else ()))


def csv(request: Request) -> Export:
    """A table, for trainers that are not listed: CSV, a row per source, those not read included.

    Columns: source, language, path, weight (share of the run's tokens), tokens (of this run), available_tokens,
    read_before (tokens), epochs (at the end, earlier phases included), max_epochs, capped; with a sequence length
    sequences, with documents document_weight, the share of draws where documents are drawn.

    Weights: of tokens. The end of a source is for the reader of the table to decide.

    Paths: "data/{language}/{source}".
    """
    places = request.places(FOLDER, every=True)
    drawn = Request(request.mixture, documents=request.documents).row_weights
    rows = []
    for source, share in request.mixture.sources.items():
        row: dict[str, str | float | None] = {
            "source": source,
            "language": source.partition("/")[0],
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
