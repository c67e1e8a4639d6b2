"""The verdict on a fit: what its weights are worth and what to do next, in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from xdoge.errors import few
from xdoge.mixtures.weights import WeightSet
from xdoge.names import language_of
from xdoge.training.run_folder import RunFolder

if TYPE_CHECKING:
    from xdoge.corpus.store import TokenStore

MOVING = 0.05
"""Most total variation between the weights of the last tenth of the steps and the mean over all steps, for weights that
count as settled. Fits of 400 steps that had settled differed by 0.02 to 0.05. Fits that were still moving away from
their start differed by 0.08 to 0.12 (docs/experiments.md)."""

SHORT = 0.25
"""Least part of its recipe's tokens, and of its steps, that a proxy should have trained on. We chose this value without
a measurement."""

FEW_STEPS = 40
"""Least number of steps that tells whether the weights settled: the last tenth of fewer steps has at most three. We
chose this value without a measurement."""

REPEATED = 50
"""Ratio of a source's weight to its share of the corpus from which on the verdict warns of repetition. A run of as many
tokens as the corpus has repeats such a source about 50 times."""


def fit_verdict(weights: WeightSet, run: RunFolder, store: TokenStore) -> list[str]:
    """Return two sentences: what the weights of one fit are worth, and what to do next.

    Args:
        weights: the weights that the fit learned.
        run: the run folder, with the trajectory.
        store: the token store that they were learned on.
    """
    faults: dict[str, str] = {}  # what is wrong: what helps
    praise = "pass the checks of this verdict"
    steps, of_recipe = weights.method["steps"], weights.proxy["steps"]
    if run.trajectory.exists():
        distance, language, last = _moved(weights, run)
        praise = "settled (the last tenth of the steps agrees with the mean over all steps)"
        if steps < FEW_STEPS:
            praise = f"come from {steps} step{'s' * (steps != 1)}, too few to tell whether they settled"
        if distance > MOVING:
            faults[
                f"they were still moving ({language} has {last:.3f} over the last tenth of the steps and "
                f"{weights[language]:.3f} in the mean over all steps)"
            ] = "take more steps" + " or leave out the first steps with burn_in" * ("burn_in" in weights.method)
    if (part := _part_of_recipe(weights)) < SHORT:
        faults[f"the proxy trained on only {part:.2g} of its recipe's tokens"] = (
            "use the recipe's steps and sequence_length, or a smaller proxy"
        )
    elif steps < SHORT * of_recipe:
        faults[f"the proxy trained for only {steps:,} steps of the {of_recipe:,} in its recipe"] = (
            "use the recipe's steps"
        )
    length = int(weights.method["sequence_length"])
    silent = [source for source, n in store.sequence_counts(length, split="validation").items() if not n]
    if silent:
        faults[f"the loss of {few(silent)} was not measured, because there is no validation sequence"] = (
            "prepare the store with more validation text, or lower sequence_length"
        )
    if repeated := _repeated(weights):
        named = [f"{source} {times:,.0f} times" for source, times in repeated.items()]
        faults[
            f"some weights are far above the share of the corpus ({few(named)}), so a run would repeat that text"
        ] = "cap the epochs with xdoge mix --max-epochs"
    what = (
        f"These weights are preliminary: {'; '.join(faults)}."
        if faults
        else f"These weights {praise}. They come from one seed, and another seed gives other weights."
    )
    return [what, f"Next: {'; '.join([*faults.values(), 'fit two more seeds and average them with xdoge merge'])}."]


def _moved(weights: WeightSet, run: RunFolder) -> tuple[float, str, float]:
    """Return how far the last tenth of the steps is from the learned weights, and the language that differs most.

    Returns:
        The total variation over languages; the language that differs most; its weight over the last tenth.
    """
    import pyarrow.parquet as pq

    table = pq.read_table(run.trajectory, columns=["weight"])
    trajectory = table["weight"].to_numpy().reshape(-1, len(weights.sources))  # (steps, k)
    last = trajectory[-max(1, len(trajectory) // 10) :].mean(axis=0)  # (k,)
    by_language: dict[str, float] = {}
    for source, weight in zip(weights.sources, last.tolist(), strict=True):
        by_language[language_of(source)] = by_language.get(language_of(source), 0.0) + weight
    changes = {language: weight - weights[language] for language, weight in by_language.items()}
    most = max(changes, key=lambda language: abs(changes[language]))
    return float(np.abs(list(changes.values())).sum() / 2), most, by_language[most]


def _part_of_recipe(weights: WeightSet) -> float:
    """Return the tokens that one proxy trained on, divided by the tokens of its recipe."""

    def tokens(settings: Mapping[str, int]) -> int:
        return settings["steps"] * settings["batch_size"] * settings["sequence_length"]

    return tokens(weights.method) / tokens(weights.proxy)


def _repeated(weights: WeightSet) -> dict[str, float]:
    """Return the ratio of weight to share of the corpus, for each source where it is `REPEATED` or more."""
    tokens = weights.corpus["tokens"]
    total = sum(tokens.values())
    ratios = {source: weight * total / tokens[source] for source, weight in weights.sources.items() if tokens[source]}
    return {source: ratio for source, ratio in sorted(ratios.items(), key=lambda item: -item[1]) if ratio >= REPEATED}
