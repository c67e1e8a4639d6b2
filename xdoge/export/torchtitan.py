"""Export for torchtitan: sources of its interleaved text loader."""

from __future__ import annotations

import json

from xdoge.export.request import FOLDER, Export, Request


def torchtitan(request: Request) -> Export:
    """Weighted sources for torchtitan's interleaved text loader: a piece of Python for a config function.

    Use: as the `dataloader` of a config, with torchtitan 0.3 or newer. Register each data set in `DATASETS` under its
    name in lower case.

    Weights: probabilities of sequences. Each source is packed into sequences before mixing, so they are shares of
    tokens too. torchtitan divides them by their sum. It draws sources at random, with the same generator on all ranks.
    In each step all ranks therefore read the same sources, and a batch can be far from the mixture.

    At the end of a source, torchtitan starts it again in a new order, without limit. The first pass is in the order of
    the file. Training ends after its number of steps. With `infinite=False` it would end as soon as one source ends.

    Paths: "data/{language}/{source}", the `dataset_path`.

    Source: torchtitan/hf_datasets: interleaved.py, text_datasets.py (0.3.0).
    """
    quoted = [
        f"        HFDataSource(dataset={json.dumps(source.lower())}, dataset_path={json.dumps(path)}, "
        f"weight={request.weights[source]!r}),"
        for source, path in request.places(FOLDER).items()
    ]
    lines = [
        "from torchtitan.hf_datasets.text_datasets import HFDataSource, InterleavedHuggingFaceTextDataLoader",
        "",
        "dataloader = InterleavedHuggingFaceTextDataLoader.Config(",
        f"    seed={request.mixture.seed},",
        "    sources=[",
        *quoted,
        "    ],",
        ")",
    ]
    chance = Request(request.mixture, request.paths, None, request.sequence_length).chance_warnings()
    return Export("\n".join(lines) + "\n", ".py", tuple(chance))
