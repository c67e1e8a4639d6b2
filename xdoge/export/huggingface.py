"""Hugging Face datasets, and the trainers that mix with it: LLaMA-Factory and axolotl."""

from __future__ import annotations

import math

from xdoge.errors import XDogeError, argument
from xdoge.export.request import FOLDER, Export, Request, to_json, to_yaml


def datasets(request: Request) -> Export:
    """Probabilities for `datasets.interleave_datasets`: JSON.

    Use: `interleave_datasets(data_sets, **plan["interleave"]).take(plan["rows"])`, with the data sets in the order of
    `sources`. Do take that many rows.

    Weights: chances of rows, which must sum to 1. If rows are sequences (give the sequence length) they are shares of
    tokens; if rows are documents (give the documents per source), of token share / mean document length. Each row is
    drawn at random: after N rows a source of chance p is about √(N p (1 - p)) off, and one planned at its cap passes
    it half the time.

    At the end of a source, "all_exhausted" starts it again, in the same order, and stops when the last source was read
    once: the others have been read many times by then. "first_exhausted" stops at the first end instead, and
    "all_exhausted_without_replacement" goes on with the others in other proportions.

    Paths: "data/{language}/{source}".

    Source: datasets/combine.py and arrow_dataset.py, `_interleave_map_style_datasets` (5.2).
    """
    places = request.places(FOLDER)
    value = {
        "sources": list(places),
        "paths": list(places.values()),
        "interleave": {
            "probabilities": list(request.row_weights.values()),
            "seed": request.mixture.seed,
            "stopping_strategy": "all_exhausted",
        },
        "rows": request.n_rows,
    }
    warnings = [*request.unit_warnings(), *request.chance_warnings(), *_runs_away(request), *_ends_early(request)]
    return Export(to_json(value), ".json", tuple(warnings))


def llamafactory(request: Request) -> Export:
    """Probabilities for LLaMA-Factory: `dataset`, `mix_strategy` and `interleave_probs` as YAML.

    Use: merge into the training file, and set `max_steps`. Needs the documents per source.

    Weights: chances of documents, since LLaMA-Factory mixes with `datasets.interleave_datasets` before it tokenises:
    token share / mean document length, summing to 1. Documents cut at `cutoff_len` in supervised fine-tuning shift
    the shares of tokens; pre-training packs them and does not.

    At the end of a source, "interleave_over" starts it again until the last source was read once; one epoch is that
    long. "interleave_under" stops at the first end, "interleave_once" goes on with the rest in other proportions.

    Paths: "{language}_{source}", the names in dataset_info.json, without commas.

    Source: llamafactory/data/data_utils.py, `merge_dataset`; hparams/data_args.py (0.9.5).
    """
    if request.documents is None:
        raise XDogeError(
            "llamafactory draws documents, and shares of tokens are not shares of documents. Give "
            f"{argument('documents')}, which says how many documents each source has."
        )
    documents = Request(request.mixture, request.paths, request.documents)  # whatever the length of a sequence
    places = documents.places("{language}_{source}")
    for source, name in places.items():
        if "," in name or name != name.strip():
            raise XDogeError(f"data set {name!r} of {source}: LLaMA-Factory splits names at commas; rename it.")
    value = {
        "dataset": ",".join(places.values()),
        "mix_strategy": "interleave_over",
        "interleave_probs": ",".join(map(repr, documents.row_weights.values())),
    }
    warnings = (*documents.chance_warnings(), *_runs_away(documents))
    return Export(to_yaml(value, f"documents to draw: {documents.n_rows}"), ".yaml", warnings)


def axolotl(request: Request) -> Export:
    """Data sets for axolotl, repeated as often as the mixture reads them: YAML.

    Use: merge into the config. Axolotl has no probabilities; its `weight` (0.20 and newer, not when streaming) keeps
    that part of a data set, at most all of it. So a source of 2.5 passes is listed three times, the third time with
    weight 0.5, and one epoch is the mixture's budget.

    Weights: parts of the rows of a source, drawn at random. They hold for tokens as well, so no count of documents is
    needed.

    At the end of a source nothing happens: all rows are laid out and shuffled together before training, so one may
    come twice before another came once. More than one epoch reads the same parts again.

    Paths: "data/{language}/{source}", a data set of `type: completion` with its text in `text`.

    Source: axolotl/utils/data/sft.py, utils/data/shared.py, utils/schemas/datasets.py (0.21).
    """
    entries: list[dict[str, str | float]] = []
    for source, path in request.places(FOLDER).items():
        share = request.shares[source]
        whole, rest = divmod(share.tokens, share.available_tokens)
        entries += [{"path": path, "type": "completion"} for _ in range(whole)]
        entries += [{"path": path, "type": "completion", "weight": rest / share.available_tokens}] if rest else []
    value = {
        "datasets": entries,
        "num_epochs": 1,
        "shuffle_merged_datasets": True,
        "dataset_exact_deduplication": False,
    }
    return Export(to_yaml(value), ".yaml")


def _runs_away(request: Request) -> list[str]:
    """Say what "all_exhausted" reads beyond the budget if it is not stopped there."""
    passes = request.passes
    least, most = (choose(passes, key=lambda source: passes[source]) for choose in (min, max))
    if 1 / passes[least] < 1.01:
        return []
    return [
        f"the interleaving ends only when {least} was read once, after {1 / passes[least]:.2f} times the budget and "
        f"{passes[most] / passes[least]:.1f} passes over {most}: stop it at the budget."
    ]


def _ends_early(request: Request) -> list[str]:
    """Say that "all_exhausted" does not reach the budget, if all sources are read more than once."""
    passes = request.passes
    least = min(passes, key=lambda source: passes[source])
    if 1 / passes[least] > 0.99:
        return []
    return [
        f"all sources are read more than once, {least} {passes[least]:.2f} times: the interleaving ends after "
        f"{1 / passes[least]:.0%} of the budget. Repeat each data set {math.floor(passes[least]) + 1} times first."
    ]
