"""MosaicML streaming: streams of an epoch."""

from __future__ import annotations

from xdoge.export.request import FOLDER, Export, Request, to_yaml
from xdoge.mixtures.simplex import largest_remainder


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
