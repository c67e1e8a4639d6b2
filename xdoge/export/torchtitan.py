"""torchtitan: sources of its interleaved text loader."""

from __future__ import annotations

import json

from xdoge.export.request import FOLDER, Export, Request


def torchtitan(request: Request) -> Export:
    """Weighted sources for torchtitan's interleaved text loader: a piece of Python for a config function.

    Use: as the `dataloader` of a config, torchtitan 0.3 and newer, with each data set registered in `DATASETS` under
    its name in lower case.

    Weights: chances of sequences, since each source is packed into sequences before they are mixed, and so shares of
    tokens; torchtitan divides them by their sum. Sources are drawn at random with the same generator on all ranks: in
    each step all ranks read the same sources, and a batch is far from the mixture.

    At the end of a source it starts again, without limit, in a new order (the first pass is in the order of the file):
    training stops at its steps. With `infinite=False` it would stop when the first source ends.

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
