"""Exports for Hugging Face datasets, LLaMA-Factory and axolotl."""

from __future__ import annotations

import math

from xdoge.errors import XDogeError, argument
from xdoge.export.request import FOLDER, Export, Request, to_json, to_yaml


def datasets(request: Request) -> Export:
    """Probabilities for `datasets.interleave_datasets`: JSON.

    Use: `interleave_datasets(data_sets, **plan["interleave"]).take(plan["rows"])`, with the data sets in the order of
    `sources`. The call of `take` is needed: it ends the run at the budget.

    Weights: probabilities of rows, which must sum to 1. If rows are sequences (give the sequence length), they are
    shares of tokens. If rows are documents (give the documents per source), they are proportional to token share / mean
    document length. Each row is drawn at random. After N rows, a source with probability p is off by about
    √(N p (1 - p)) rows. A source that is planned at its cap exceeds it with probability one half.

    At the end of a source, "all_exhausted" starts it again in the same order. It stops when every source was read at
    least once; by then other sources have been read many times. "first_exhausted" stops when the first source ends.
    "all_exhausted_without_replacement" continues with the other sources in changed proportions.

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

    Use: merge the file into the training configuration, and set `max_steps`. The documents per source must be given.

    Weights: probabilities of documents, because LLaMA-Factory calls `datasets.interleave_datasets` before it tokenises.
    They are proportional to token share / mean document length and sum to 1. Supervised fine-tuning truncates documents
    at `cutoff_len`, which changes the shares of tokens. Pre-training packs documents, which does not.

    At the end of a source, "interleave_over" starts it again, until every source was read at least once. That is the
    length of an epoch. "interleave_under" stops when the first source ends. "interleave_once" continues with the other
    sources in changed proportions.

    Paths: "{language}_{source}", the names in dataset_info.json. They must not contain commas.

    Source: llamafactory/data/data_utils.py, `merge_dataset`; hparams/data_args.py (0.9.5).
    """
    if request.documents is None:
        raise XDogeError(
            "llamafactory draws documents, so it needs shares of documents, not of tokens. Give "
            f"{argument('documents')}, the number of documents of each source."
        )
    documents = Request(request.mixture, request.paths, request.documents)  # rows are documents in any case
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
    """Data sets for axolotl, each repeated as often as the mixture reads it: YAML.

    Use: merge the file into the configuration. Axolotl has no probabilities. Its `weight` (0.20 and newer, not when
    streaming) keeps a fraction of a data set, at most 1. A source with 2.5 passes is therefore listed three times, the
    third time with weight 0.5. One epoch is the mixture's budget.

    Weights: fractions of the rows of a source. The rows are drawn at random, so the fractions are right for tokens too,
    and no number of documents is needed.

    At the end of a source nothing happens, because all rows are shuffled together before training. A row can therefore
    be read twice before another is read once. A second epoch reads the same fractions again.

    Paths: "data/{language}/{source}", a data set of `type: completion` with the text in the column `text`.

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
    """Return a warning if "all_exhausted" would read more than the budget unless it is stopped there."""
    passes = request.passes
    least, most = (choose(passes, key=lambda source: passes[source]) for choose in (min, max))
    if 1 / passes[least] < 1.01:
        return []
    return [
        f"the interleaving ends only after one epoch of {least}. This is {1 / passes[least]:.2f} times "
        f"the budget and {passes[most] / passes[least]:.1f} epochs of {most}. Stop it at the budget."
    ]


def _ends_early(request: Request) -> list[str]:
    """Return a warning if all sources are read more than once, since "all_exhausted" then ends before the budget."""
    passes = request.passes
    least = min(passes, key=lambda source: passes[source])
    if 1 / passes[least] > 0.99:
        return []
    return [
        f"all sources are read more than once ({least} {passes[least]:.2f} times), so the interleaving "
        f"ends after {1 / passes[least]:.0%} of the budget. Repeat each data set "
        f"{math.floor(passes[least]) + 1} times first."
    ]
