"""Verdicts: sentences on what the numbers of a command are worth, and what to do next."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

from xdoge.analysis.models import Measure, measures, score_rows
from xdoge.analysis.shares import Group, Rows, union
from xdoge.analysis.statistics import SIGNIFICANCE, TIE
from xdoge.errors import XDogeError, few
from xdoge.eval.results import ALL, Results
from xdoge.mixtures.mixture import Mixture, Share
from xdoge.mixtures.strategies import strategy_weights
from xdoge.mixtures.weights import Level, WeightSet

SAME = 0.01
"""Total variation below which two mixtures are called the same. We chose this value without a measurement."""

NOISE = 0.1
"""Mean total variation between comparable fits above which their weights are not reliable. Two seeds of a long fit
differ by 0.05 to 0.07 (docs/experiments.md)."""

UNSETTLED = 0.05
"""Largest expected change of a language's weight by one more fit, as a part of the weight, without a warning. We chose
this value without a measurement. Three fits reach it with a standard deviation of 17 % of the mean, five with 27 %."""

MOST_FITS = 100
FEW_DOCUMENTS = 30
"""With fewer documents, a standard error is only a rough estimate."""

POWER = 0.8
"""Probability that the additional text that the verdict advises is enough, if the true difference is the measured
one."""


# Mixtures


def mixture_verdict(mixture: Mixture) -> list[str]:
    """Return sentences on whether the weights or the caps decide a mixture.

    It is compared with equal shares under the same caps.
    """
    equal = _equal_shares(mixture)
    if equal is None:
        return []
    if _asked(mixture, equal) <= SAME:
        held = few([name for name, share in mixture.languages.items() if share.capped])
        return [
            "The weights are equal shares of the "
            f"languages{f', and the caps limit {held}' if held else ''}. Next: plan learned weights, "
            "too; their verdict says whether they change anything."
        ]
    planned, between = _moved(mixture, equal), _moved_between_languages(mixture, equal)
    if planned <= SAME:
        return [
            "The caps decide this mixture, so the weights do not matter here: equal shares under the "
            f"same caps differ in {planned:.2%} of the tokens. Next: use `xdoge mix unimax`. Or allow "
            "more epochs, add text or lower the budget, so that the weights decide."
        ]
    capped = any(share.capped for share in mixture.sources.values())
    if between <= SAME and len(mixture.languages) > 1 and capped:
        return [
            "The caps decide how much each language gets: equal shares under the same caps differ in "
            f"{between:.2%} of the tokens between languages. The weights only divide each language among "
            f"its sources ({planned:.1%} of the tokens). Next: allow more epochs, add text or lower the "
            "budget, so that the weights decide."
        ]
    fixed = [
        f"{name} ({share.weight:.2%})"
        for name, share in mixture.languages.items()
        if share.capped
        and name in equal.languages
        and math.isclose(share.weight, equal.languages[name].weight, rel_tol=SAME)
        and not math.isclose(share.learned_weight, equal.languages[name].learned_weight, rel_tol=SAME)
    ]
    exception = f"They do not matter for {few(fixed)}: with equal shares, the caps give the same."
    return [
        f"The weights matter: equal shares under the same caps would change {planned:.1%} of the tokens.",
        *([exception] if fixed else []),
        "Next: train on this mixture and on `xdoge mix unimax`, to see whether the weights help.",
    ]


def mixtures_verdict(mixtures: Mapping[str, Mixture]) -> list[str]:
    """Return sentences that name the mixtures that the caps decide, and the mixtures that are nearly the same."""
    sentences = []
    equal = {name: plan for name, mixture in mixtures.items() if (plan := _equal_shares(mixture))}
    decided = [
        name for name, plan in equal.items() if _moved(mixtures[name], plan) <= SAME < _asked(mixtures[name], plan)
    ]
    if decided:
        sentences.append(
            f"The caps decide {few(decided)}, so the weights do not matter there: equal shares under the "
            "same caps give the same mixture."
        )
    same = [
        f"{a} and {b}"
        for (a, first), (b, second) in itertools.combinations(mixtures.items(), 2)
        if first.sources.keys() == second.sources.keys() and _moved(first, second) <= SAME
    ]
    if same:
        sentences.append(
            f"These mixtures are nearly the same: {few(same, between='; ')}. Models trained on them would "
            "differ only by chance."
        )
    return sentences


def _equal_shares(mixture: Mixture) -> Mixture | None:
    """Return the mixture of equal language shares for the same sources, budget and caps; None if there is none."""
    used = dict(_used(mixture))
    try:
        return Mixture.plan(
            strategy_weights("uniform", {name: share.available_tokens for name, share in used.items()}),
            available_tokens={name: share.available_tokens for name, share in used.items()},
            budget_tokens=sum(share.tokens for share in used.values()),
            max_epochs=mixture.max_epochs,
            caps={
                name: share.max_epochs
                for name, share in used.items()
                if share.max_epochs is not None and share.max_epochs != mixture.max_epochs
            },
            read_before={name: share.read_before for name, share in used.items()},
            min_share=mixture.min_share,
            level=mixture.level,
        )
    except XDogeError:
        return None


def _used(mixture: Mixture) -> list[tuple[str, Share]]:
    return [(name, share) for name, share in mixture.sources.items() if share.learned_weight or share.tokens]


def _asked(mixture: Mixture, equal: Mixture) -> float:
    """Return the total variation between the weights of two mixtures."""
    return (
        math.fsum(abs(share.learned_weight - equal.sources[name].learned_weight) for name, share in _used(mixture)) / 2
    )


def _moved(mixture: Mixture, other: Mixture) -> float:
    """Return the share of the tokens in which two mixtures differ."""
    return math.fsum(abs(share.weight - other.sources[name].weight) for name, share in _used(mixture)) / 2


def _moved_between_languages(mixture: Mixture, other: Mixture) -> float:
    """Return the share of the tokens in which two mixtures differ by language."""
    theirs = other.languages
    return (
        math.fsum(
            abs(share.weight - theirs[name].weight) for name, share in mixture.languages.items() if name in theirs
        )
        / 2
    )


# Fits


def fits_verdict(groups: Sequence[Group]) -> list[str]:
    """Return sentences: whether the fits of each group agree, and whether groups differ more than their fits do."""
    single = [group for group in groups if not group.of_all]
    sentences = [sentence for group in single for sentence in _agreement(group)]
    for first, second in itertools.combinations(single, 2):
        means = [_mean(group) for group in (first, second)]
        if means[0].sources.keys() != means[1].sources.keys():
            continue
        between, within = means[0].distance(means[1]), max(_apart(first), _apart(second))
        compared = "more than" if between > within else "no more than"
        sentences.append(
            f"The means of {first.name} and {second.name} differ in {between:.0%} of the tokens, {compared} "
            "the fits of one of them "
            f"({within:.0%}){'' if between > within else ', so the difference may be chance'}."
        )
    return sentences


def _apart(group: Group, level: Level = "sources") -> float:
    """Return the total variation between two fits, averaged over all pairs."""
    pairs = list(itertools.combinations(group.sets.values(), 2))
    return math.fsum(a.distance(b, level=level) for a, b in pairs) / len(pairs)


def _mean(group: Group) -> WeightSet:
    """Return the mean of the weights. The fits may have different floors."""
    sets = list(group.sets.values())
    sources = {name: math.fsum(weights.sources[name] for weights in sets) / len(sets) for name in sets[0].sources}
    return WeightSet(group.name, sources)


def _agreement(group: Group) -> list[str]:
    """Return sentences: whether several comparable fits agree, and how many more would make their mean stable."""
    apart, languages = _apart(group), _mean(group).languages
    signal = math.fsum(abs(weight - 1 / len(languages)) for weight in languages.values()) / 2
    finding = f"{len(group.sets)} fits ({group.name}) differ in {apart:.0%} of the tokens (mean total variation)"
    more = more_fits(group)
    settle = (
        f"one more fit would move no language by more than {UNSETTLED:.0%} of its weight"
        if more == 0
        else f"with about {more} more seed{'s' * (more != 1)}, one further fit would move no language by more than "
        f"{UNSETTLED:.0%} of its weight"
        if more is not None
        else f"even with {MOST_FITS} more seeds, one further fit would move a language by more than {UNSETTLED:.0%} of "
        "its weight"
    )
    if apart > NOISE or _apart(group, "languages") > signal > 0:
        why = "" if apart > NOISE else f", but their mean differs from equal shares in only {signal:.0%}"
        return [f"{finding}{why}, so the weights are not reliable. Next: fit for more steps or add seeds; {settle}."]
    return [f"{finding}, so they agree; {settle}. Next: average them with `xdoge merge`."]


def more_fits(group: Group) -> int | None:
    """Return the number of further fits after which one more changes no language by more than 5 % of its weight.

    None if 100 more are not enough.
    """
    n, worst = len(group.sets), max(moves(group).values(), default=0.0)
    for more in range(MOST_FITS + 1):
        if worst * math.sqrt(n * (n + 1) / ((n + more) * (n + more + 1))) <= UNSETTLED:
            return more
    return None


def moves(group: Group) -> dict[str, float]:
    """Return the expected change of each language's mean weight by one more fit, as a part of the mean."""
    n, sets = len(group.sets), list(group.sets.values())
    out = {}
    for language in sets[0].languages:
        values = [weights.languages[language] for weights in sets]
        mean = math.fsum(values) / n
        if mean > 0:
            deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
            out[language] = deviation / math.sqrt(n * (n + 1)) / mean
    return out


# Laws


def predictions_verdict(rows: Rows, law: str) -> list[str]:
    """Return a sentence: which mixtures have a predicted mean loss that differs significantly from equal shares."""
    lower, undecided, higher = "significantly lower", "undecided", "significantly higher"
    words: dict[str, list[str]] = {lower: [], undecided: [], higher: []}
    for row in rows:
        if row["evaluation"] == "mean" and row["difference_low"] < row["difference_high"]:
            half = (row["difference_high"] - row["difference_low"]) / 2
            number = f"{row['difference']:+.4f}".replace("-", "−")
            described = f"{row['mixture']} ({number} ± {half:.4f})"
            word = lower if row["difference_high"] < 0 else higher if row["difference_low"] > 0 else undecided
            words[word].append(described)
    parts = [f"{word}: {few(names)}" for word, names in words.items() if names]
    return [f"Mean loss predicted by {law}, compared with equal shares: {'; '.join(parts)}."] if parts else []


# Models


def scores_verdict(results: Results, *, baseline: str | None) -> list[str]:
    """Return sentences: which differences between models are significant, and what would decide the others.

    Without a baseline, models are compared with the first one.
    """
    models = union([row.model] for row in results.rows)
    if not models:
        return []
    if len(models) == 1:
        return _alone(results)
    baseline = models[0] if baseline is None else baseline
    rows = score_rows(results, baseline=baseline)
    sentences = [
        sentence
        for measure in measures(results)
        if not measure.metric.startswith("perplexity") and not measure.metric.startswith("bits_relative")
        for model in models
        if (sentence := _against(rows, measure, model, baseline))
    ]
    if not sentences:
        return [f"Nothing can be compared with {baseline}, so no difference can be judged."]
    return [
        *sentences,
        "These errors cover the choice of documents and questions, but not the seed of the training. "
        "Next: train more seeds of both mixtures, for example with `xdoge study`, before you conclude that one "
        "is better. It says how many seeds would decide.",
    ]


def _alone(results: Results) -> list[str]:
    """Return sentences on the errors of the values of a single model."""
    shown = {(measure.task, measure.metric): measure.title for measure in measures(results)[:1]}
    rows = [row for row in results.rows if (row.task, row.metric) in shown and row.language != ALL]
    known = [row for row in rows if row.stderr is not None and row.value]
    if not known:
        return ["No number has a standard error. Next: measure more documents or questions."]
    widest = max(known, key=lambda row: (row.stderr or 0.0) / abs(row.value))
    half = SIGNIFICANCE * (widest.stderr or 0.0)
    thin = [row.language for row in rows if row.n < FEW_DOCUMENTS]
    rough = f" Fewer than {FEW_DOCUMENTS} documents or questions were measured in {few(thin)}." if thin else ""
    return [
        f"The least certain number is that of {widest.language}: {widest.value:.3f} ± {half:.3f} "
        f"({half / abs(widest.value):.1%}).{rough} Next: measure another model on the same text with "
        "--baseline; differences on the same documents are far more certain."
    ]


def _against(rows: Rows, measure: Measure, model: str, baseline: str) -> str:
    """Return a sentence: which differences of a model in one measure are significant; empty if none can be compared."""
    kept = [
        row
        for row in rows
        if (row["task"], row["metric"], row["model"]) == (measure.task, measure.metric, model)
        and row["difference"] is not None
    ]
    if not kept:
        return ""
    parts = []
    for word, chosen in (
        ("significantly better", [row for row in kept if row["exceeds"] and row["better"]]),
        ("significantly worse", [row for row in kept if row["exceeds"] and not row["better"]]),
        ("undecided", [row for row in kept if row["exceeds"] is not None and not row["exceeds"]]),
        ("not judged (no standard error)", [row for row in kept if row["exceeds"] is None]),
    ):
        if chosen:
            described = [_language(row, _more_text(row) if word == "undecided" else "") for row in chosen]
            parts.append(f"{word} in {few(described)}")
    return f"{measure.title.partition(',')[0].capitalize()} of {model} against {baseline}: {'; '.join(parts)}."


def _language(row: Mapping[str, Any], decides: str) -> str:
    name = "the average" if row["language"] == ALL else str(row["language"])
    change = f"{row['difference']:+.1f} points" if row["change"] is None else f"{row['change']:+.1%}"
    return f"{name} ({change.replace('-', '−')}{decides and f', {decides}'})"


def _more_text(row: Mapping[str, Any]) -> str:
    """Return how much more text or how many more questions would show this difference with a probability of 80 %."""
    if not row["difference_stderr"] or not row["difference"]:
        return ""
    needed = ((SIGNIFICANCE + NormalDist().inv_cdf(POWER)) * row["difference_stderr"] / abs(row["difference"])) ** 2
    if abs(row["difference"]) < TIE or needed > 100:
        return "practically equal"
    what = "text" if row["paired"] or "perplexity" in row["task"] else "number of questions"
    return f"{max(2, math.ceil(needed))} times the {what} would decide"
