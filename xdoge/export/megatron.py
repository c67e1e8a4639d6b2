"""Exports for Megatron-LM, NeMo and Megatron-Bridge: blends of tokenised files."""

from __future__ import annotations

import math

from xdoge.errors import XDogeError
from xdoge.export.request import Export, Request, to_json

BLEND_PATH = "data/{language}/{source}_text_document"
SURPLUS = 1.005
"""Megatron builds 0.5 % more of each source than it draws (`mid_level_dataset_surplus`)."""

SEPARATE_BELOW = 0.8
"""Megatron shuffles a last pass separately if it uses less than this fraction of it (`GPTDataset`)."""


def megatron(request: Request) -> Export:
    """Blend for Megatron-LM and NeMo, with one line "weight path" per source.

    Use: `--data-args-path FILE`, or `--data-path $(cat FILE)`. NeMo's `PreTrainingDataModule(paths=...)`, `data_prefix`
    of NeMo 1 and `GPTDatasetConfig(data_path=...)` of Megatron-Bridge take the same list of weights and paths. Set
    `--train-samples` to budget / sequence length.

    Weights: shares of sequences. All sequences have the same length, so they are shares of tokens too. Megatron divides
    the weights by their sum, and none may be 0. At each position it draws the source that is furthest behind its share.
    After any number of sequences, each source is within 2 sequences of its share. With 3 to 1,000 sources we measured
    at most 1.45.

    At the end of a source, Megatron starts it again silently and without limit. It shuffles the documents of all passes
    together. A document can therefore be read twice before another is read once. Only a last pass of which less than
    80 % is needed is shuffled on its own.

    Paths: "data/{language}/{source}_text_document", the common prefix of a .bin and an .idx file. White space is not
    allowed.

    Source: megatron/core/datasets: blended_dataset.py, helpers.cpp, gpt_dataset.py, utils.py (0.16 to 0.19).
    """
    return Export("\n".join(" ".join(pair) for pair in _pairs(request)) + "\n", ".txt", _shuffled_together(request))


def megatron_json(request: Request) -> Export:
    """Blend for Megatron-LM with separate data for each split: a JSON file.

    Use: `--per-split-data-args-path FILE`. "train" lists a weight and a path in turn. Megatron requires "valid" and
    "test" too. They are null here. To evaluate, replace them by lists of paths.

    Weights, paths, and what happens at the end of a source: as in the format megatron.

    Source: megatron/training/utils/common_utils.py, `get_blend_and_blend_per_split` (0.19).
    """
    train = [item for pair in _pairs(request) for item in pair]
    return Export(to_json({"train": train, "valid": None, "test": None}), ".json", _shuffled_together(request))


def _pairs(request: Request) -> list[tuple[str, str]]:
    """Return the weight and the path of each source as text."""
    places = request.places(BLEND_PATH)
    for source, path in places.items():
        if not path or len(path.split()) != 1:
            raise XDogeError(f"path {path!r} of {source}: Megatron splits its list at white space; rename the path.")
    return [(repr(weight), places[source]) for source, weight in request.weights.items()]


def _shuffled_together(request: Request) -> tuple[str, ...]:
    """Return a warning if Megatron shuffles several passes over a source together."""
    mixed = {}
    for source, passes in request.passes.items():
        built = passes * SURPLUS
        last = built - (math.ceil(built) - 1)
        shuffled = math.ceil(built) - (last < SEPARATE_BELOW)
        if shuffled > 1:
            mixed[source] = shuffled
    if not mixed:
        return ()
    most = max(mixed, key=lambda source: mixed[source])
    return (
        f"in {len(mixed)} of {len(request.passes)} sources some documents repeat before others are read "
        f"once: Megatron shuffles {mixed[most]} epochs of {most} together, and reads it "
        f"{request.passes[most]:.2f} times.",
    )
