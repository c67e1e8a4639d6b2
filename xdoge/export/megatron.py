"""Megatron-LM, Megatron-Bridge and nanotron: blends of tokenised files."""

from __future__ import annotations

import math

from xdoge.errors import XDogeError
from xdoge.export.request import Export, Request, to_json, to_yaml

BLEND_PATH = "data/{language}/{source}_text_document"
SURPLUS = 1.005
"""Megatron builds 0.5 % more of each source than it draws (`mid_level_dataset_surplus`)."""

SEPARATE_BELOW = 0.8
"""Megatron keeps a last pass apart if less than this part of it is used (`GPTDataset`)."""


def megatron(request: Request) -> Export:
    """Blend for Megatron-LM and NeMo: a line "weight path" per source.

    Use: `--data-args-path FILE`, or `--data-path $(cat FILE)`. NeMo's `PreTrainingDataModule(paths=...)`, `data_prefix`
    of NeMo 1 and `GPTDatasetConfig(data_path=...)` of Megatron-Bridge take the same list of weights and paths. Train
    for budget / sequence length samples.

    Weights: shares of sequences, all equally long, and so of tokens; Megatron divides them by their sum, and none may
    be 0. Position by position it draws the source that is furthest behind: after any number of sequences each source
    is within 2 of its share (1.45 at most, measured with 3 to 1,000 sources).

    At the end of a source it starts again, without limit or word. The documents of all passes are shuffled together,
    apart from a last pass of which less than 80 % is needed: one may come twice before another came once.

    Paths: "data/{language}/{source}_text_document", the prefix of a .bin and an .idx file, without white space.

    Source: megatron/core/datasets: blended_dataset.py, helpers.cpp, gpt_dataset.py, utils.py (0.16 to 0.19).
    """
    return Export("\n".join(" ".join(pair) for pair in _pairs(request)) + "\n", ".txt", _shuffled_together(request))


def megatron_json(request: Request) -> Export:
    """Blend for Megatron-LM with data of its own for each split: a JSON file.

    Use: `--per-split-data-args-path FILE`. "train" holds weights and paths in turn; "valid" and "test", which Megatron
    asks for, are null: put lists of paths there to evaluate. All else is as in megatron.

    Weights, the end of a source, paths: as in megatron.

    Source: megatron/training/utils/common_utils.py, `get_blend_and_blend_per_split` (0.19).
    """
    train = [item for pair in _pairs(request) for item in pair]
    return Export(to_json({"train": train, "valid": None, "test": None}), ".json", _shuffled_together(request))


def megatron_bridge(request: Request) -> Export:
    """Epochs for a blend of Hugging Face data sets in Megatron-Bridge's fine-tuning: YAML.

    Use: the fields of `DirectHFSFTDatasetConfig`, in versions after 0.6.2. To pre-train with Megatron-Bridge, take
    megatron: `GPTDatasetConfig` has weights of sequences.

    Weights: passes over the rows of a source. They hold for tokens as well, so no count of documents is needed: 2.5
    takes all rows twice and a random half of them again. One pass over the blend is the mixture's budget.

    At the end of a source nothing happens: the blend is laid out and shuffled beforehand, rows of all passes together,
    held in memory. Past its end it starts again in the same order, and each source is then read twice as often.

    Paths: "data/{language}/{source}", what `datasets.load_dataset` takes as its first argument.

    Source: src/megatron/bridge/data: sources/hf.py, builders/direct_hf_sft.py, datasets/direct_sft.py.
    """
    places = request.places("data/{language}/{source}")
    value = {
        "source": [{"path_or_dataset": path} for path in places.values()],
        "source_weights": list(request.passes.values()),
        "blend_seed": request.mixture.seed,
    }
    return Export(to_yaml(value), ".yaml")


def nanotron(request: Request) -> Export:
    """Nanoset of nanotron: `data_stages` with folders and weights, as YAML.

    Use: as the `data_stages` of a run's config; train for budget / sequence length / global batch steps. Needs
    nanotron from its repository: version 0.4 on PyPI knows no weights.

    Weights: shares of sequences, all equally long, and so of tokens; nanotron divides them by their sum. A source
    furthest behind is drawn next.

    At the end of a source it starts again, without limit or word. The order is laid out for as many sequences as all
    sources hold, shuffled once, and played again as it is when it ends: a run longer than that reads the same part of
    its under-read sources again and never the rest. Versions that read with `tokenized_bytes` instead go through the
    files in order and stop with an IndexError where a source would start again.

    Paths: "data/{language}/{source}", a folder of .ds files that datatrove tokenised.

    Source: src/nanotron: data/nanoset.py, data/tokenized_bytes.py, config/config.py; datatrove/utils/dataset.py.
    """
    places = request.places("data/{language}/{source}")
    dataset = {"dataset_folder": list(places.values()), "dataset_weights": list(request.weights.values())}
    stage = {
        "name": request.mixture.name,
        "start_training_step": 1,
        "data": {"dataset": dataset, "num_loading_workers": 1, "seed": request.mixture.seed},
    }
    return Export(to_yaml({"data_stages": [stage]}), ".yaml", _played_again(request))


def _pairs(request: Request) -> list[tuple[str, str]]:
    """Return weight and path of each source as text."""
    places = request.places(BLEND_PATH)
    for source, path in places.items():
        if not path or len(path.split()) != 1:
            raise XDogeError(f"path {path!r} of {source}: Megatron splits its list at white space; rename the path.")
    return [(repr(weight), places[source]) for source, weight in request.weights.items()]


def _shuffled_together(request: Request) -> tuple[str, ...]:
    """Say which sources Megatron does not read pass by pass."""
    mixed = {}
    for source, passes in request.passes.items():
        built = passes * SURPLUS
        last = built - (math.ceil(built) - 1)
        together = math.ceil(built) - (last < SEPARATE_BELOW)
        if together > 1:
            mixed[source] = together
    if not mixed:
        return ()
    most = max(mixed, key=lambda source: mixed[source])
    return (
        f"{len(mixed)} of {len(request.passes)} sources: some documents come again before others came once; Megatron "
        f"shuffles {mixed[most]} passes over {most} together, which is read {request.passes[most]:.2f} times.",
    )


def _played_again(request: Request) -> tuple[str, ...]:
    """Say what nanotron never reads, where the run is longer than its order."""
    held = sum(share.available_tokens for share in request.shares.values())
    cycles = request.mixture.budget_tokens / held
    if cycles <= 1:
        return ()
    read = {source: passes / cycles for source, passes in request.passes.items()}
    least = min(read, key=lambda source: read[source])
    return (
        f"the budget is {cycles:.2f} times the {held:,} tokens of the sources, and Nanoset plays the order of so many "
        f"tokens again: of {least} it reads {min(1.0, read[least]):.1%} {cycles:.2f} times over, where the plan reads "
        f"{min(1.0, request.passes[least]):.1%}.",
    )
