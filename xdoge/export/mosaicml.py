"""Exports for MosaicML streaming: the streams of an epoch."""

from __future__ import annotations

from xdoge.export.request import FOLDER, Export, Request, to_yaml
from xdoge.mixtures.simplex import largest_remainder


def mosaicml(request: Request) -> Export:
    """Streams for MosaicML streaming, each with `choose` or `repeat`: YAML.

    Use: as the `streams` of an LLM Foundry data set, or `Stream(**fields)` for each. One epoch is the mixture's budget.

    Weights: with a sequence length, `choose` is the exact number of sequences to take from each source. Without it,
    `repeat` is the number of passes over the samples of a source, rounded down to whole samples. `repeat` is right for
    sequences and for documents.

    At the end of a source nothing happens, because the epoch is laid out in advance. It has whole passes and, for the
    rest, a random part without repetition. All passes are shuffled together. The next epoch does the same again.

    Paths: "data/{language}/{source}", the `local` folder of the MDS shards. Set `remote` yourself.

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
    warnings = [f"left out, because the mixture reads less than a sequence of {length:,} tokens: {', '.join(short)}."]
    return Export(to_yaml({"streams": chosen}), ".yaml", tuple(warnings if short else ()))


def mosaicml_proportion(request: Request) -> Export:
    """Streams for MosaicML streaming with `proportion`, for runs whose length is set elsewhere: YAML.

    Use: as in the format mosaicml, which is exact and usually the better choice. The file has `epoch_size` if the
    number of rows in the budget is known.

    Weights: shares of samples, which streaming divides by their sum. If samples are sequences (give the sequence
    length), they are shares of tokens. If samples are documents (give the documents per source), they are proportional
    to token share / mean document length.

    At the end of a source nothing happens: each epoch takes whole passes and, for the rest, a random part. Without
    `epoch_size`, an epoch has as many samples as all data together, and each epoch draws a new random part. Over
    several epochs, some samples are therefore read again before others are read once.

    Paths: "data/{language}/{source}", the `local` folder of the MDS shards. Set `remote` yourself.

    Source: streaming/base/stream.py, `Stream.apply_weights` (0.13).
    """
    places = request.places(FOLDER)
    weights = request.row_weights
    streams = {source: {"local": path, "proportion": weights[source]} for source, path in places.items()}
    value = {"streams": streams} | ({} if request.n_rows is None else {"epoch_size": request.n_rows})
    return Export(to_yaml(value), ".yaml", tuple(request.unit_warnings()))
