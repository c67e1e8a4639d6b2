"""Export for Grain: weights of `MapDataset.mix`."""

from __future__ import annotations

from xdoge.export.request import FOLDER, Export, Request, to_json


def grain(request: Request) -> Export:
    """Weights for Grain's `MapDataset.mix`: JSON.

    Use: `grain.MapDataset.mix(data_sets, plan["weights"])[: plan["rows"]]`. Apply `.seed(s).shuffle().repeat()` to each
    data set first. Mix before you slice for the ranks. Otherwise all ranks draw the same source in the same step.

    Weights: shares of rows. If rows are sequences (give the sequence length), they are shares of tokens. If rows are
    documents (give the documents per source), they are proportional to token share / mean document length. Grain scales
    the weights so that the smallest is 100, and rounds all down to integers. This changes them by up to 1 %. No weight
    may be 0.

    At the end of a source: with `.repeat()`, a source starts again without limit, each time in a new order. Without it,
    the mix ends silently as soon as one source ends.

    Paths: "data/{language}/{source}".

    Source: grain/_src/python/dataset/transformations: mix.py, shuffle.py (0.2.18).
    """
    places = request.places(FOLDER)
    value = {
        "sources": list(places),
        "paths": list(places.values()),
        "weights": list(request.row_weights.values()),
        "rows": request.n_rows,
        "seed": request.mixture.seed,
    }
    return Export(to_json(value), ".json", (*request.unit_warnings(), *_cut_to_integers(request)))


def _cut_to_integers(request: Request) -> list[str]:
    """Return warnings if Grain's rounding changes a weight by more than 0.1 %, or exceeds an epoch cap."""
    wanted = request.row_weights
    scale = 100 / min(wanted.values())
    whole = {source: int(weight * scale) for source, weight in wanted.items()}  # as Grain computes it
    total = sum(whole.values())
    factor = {source: whole[source] / total / weight for source, weight in wanted.items()}
    worst = max(factor, key=lambda source: abs(factor[source] - 1))
    lines = []
    if abs(factor[worst] - 1) > 0.001:
        lines.append(
            f"Grain truncates the weights to integers: {whole[worst]:,} of {total:,} for {worst}, which "
            f"changes its rows by {factor[worst] - 1:+.2%}."
        )
    for source, share in request.shares.items():
        epochs = (share.read_before + share.tokens * factor[source]) / share.available_tokens
        if share.max_epochs is not None and epochs > share.max_epochs * 1.0005:
            lines.append(
                f"with these weights {source} is read {epochs:.3f} times, above its cap of {share.max_epochs:g}."
            )
    return lines
