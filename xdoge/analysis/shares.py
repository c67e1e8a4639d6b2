"""Weight sets and mixtures side by side: differences, distances, and whether several fits agree."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xdoge.analysis.statistics import TIE, rank_correlations
from xdoge.mixtures.mixture import Mixture
from xdoge.mixtures.weights import WeightSet
from xdoge.names import language_of

Rows = list[dict[str, Any]]

UNITS = {
    "total_variation": "share of tokens",
    "jensen_shannon": "bits",
    "kendall_tau_b": "",
    "spearman_rho": "",
}
"""The unit of each distance; rank correlations have no unit."""


@dataclass(frozen=True)
class Group:
    """Weight sets learned on the same corpus: of several seeds, proxy sizes or settings.

    Attributes:
        name: "proxy NAME" or "all proxies", with the number of the corpus if there are several.
        sets: the weight sets by name.
        differ: settings of the fit or the proxy in which the sets differ.
        of_all: whether it has the sets of all proxies. Each proxy may also have its own group.
    """

    name: str
    sets: Mapping[str, WeightSet]
    differ: tuple[str, ...]
    of_all: bool = False


def planned(mixture: Mixture) -> WeightSet:
    """Return the shares that a mixture plans, as a weight set."""
    shares = {source: share.weight for source, share in mixture.sources.items()}
    return WeightSet(mixture.name, shares, corpus=mixture.corpus)


def weight_rows(sets: Mapping[str, WeightSet], *, baseline: str | None) -> Rows:
    """Return a row for each set and language or source, with the difference to the baseline's weight."""
    base = sets.get(baseline or "")
    rows = []
    for name, weight_set in sets.items():
        spread = {"sources": weight_set.spread or {}, "languages": (weight_set.spread or {}).get("languages", {})}
        for level in ("languages", "sources"):
            shares, deviation = getattr(weight_set, level), spread[level].get("standard_deviation", {})
            others = getattr(base, level) if base is not None else {}
            for key, weight in shares.items():
                rows.append(
                    {
                        "set": name,
                        "level": level[:-1],
                        "language": language_of(key),
                        "source": key if level == "sources" else None,
                        "weight": weight,
                        "standard_deviation": deviation.get(key),
                        "baseline": baseline if base is not None else None,
                        "difference": weight - others[key] if key in others else None,
                    }
                )
    return rows


def distance_rows(sets: Mapping[str, WeightSet]) -> Rows:
    """Return a row for each pair of sets, level and distance. Pairs with other languages or sources are left out."""
    rows = []
    for (name, first), (other_name, second) in itertools.combinations(sets.items(), 2):
        for level in ("languages", "sources"):
            mine, theirs = getattr(first, level), getattr(second, level)
            if mine.keys() != theirs.keys():
                continue
            tau, rho = rank_correlations(list(mine.values()), [theirs[key] for key in mine])
            values = {
                "total_variation": first.distance(second, level=level),
                "jensen_shannon": first.distance(second, metric="jensen_shannon", level=level) / math.log(2),
                "kendall_tau_b": tau,
                "spearman_rho": rho,
            }
            rows += [
                {"set": name, "other": other_name, "level": level[:-1], "metric": metric, "value": value, "unit": unit}
                for (metric, value), unit in zip(values.items(), UNITS.values(), strict=True)
            ]
    return rows


def groups(sets: Mapping[str, WeightSet]) -> list[Group]:
    """Return the groups of learned sets: for each corpus, those of each proxy and those of all proxies.

    Fits in a group estimate the same weights. Fits that differ in a setting of `QUESTION` are in different groups.
    Strategies and averages are left out, since no single fit learned them. A group has at least two sets.
    """
    learned = _learned(sets)
    summarised = []
    corpora = _grouped(learned, _corpus)
    for number, ((digest, _), names) in enumerate(corpora.items(), 1):
        where = f", corpus {number} ({str(digest)[:12]})" if len(corpora) > 1 else ""
        other = _other_questions({name: learned[name] for name in names})
        for of_question in _grouped({name: learned[name] for name in names}, _question).values():
            corpus = {name: learned[name] for name in of_question}
            method = corpus[of_question[0]].method
            asked = "".join(f", {key} {'default' if method.get(key) is None else method[key]}" for key in other)
            proxies = _grouped(corpus, lambda weights: weights.proxy.get("name", "?"))
            parts = [(f"proxy {proxy}", members, False) for proxy, members in proxies.items()]
            parts += [("all proxies", of_question, True)] if len(proxies) > 1 else []
            for called, members, every in parts:
                some = {name: corpus[name] for name in members}
                if len(some) > 1:
                    summarised.append(Group(called + asked + where, some, _differing(list(some.values())), every))
    return summarised


def group_of(fits: Mapping[str, WeightSet]) -> Group:
    """Return all fits as one group, even if they differ in settings of `QUESTION`."""
    proxies = union([str(weights.proxy.get("name", "?"))] for weights in fits.values())
    name = f"proxy {proxies[0]}" if len(proxies) == 1 else "all proxies"
    return Group(name, fits, _differing(list(fits.values())), len(proxies) > 1)


QUESTION = (
    *("baseline", "initial", "targets", "no_worse_than", "target_budget", "held_out", "score", "mu", "normalise"),
    *("burn_in", "batch"),
)
"""Settings that change what a fit estimates. The seed, the proxy and the settings of its recipe do not."""


def question_notes(fits: Mapping[str, WeightSet]) -> list[str]:
    """Return a line if fits do not estimate the same thing."""
    other = _other_questions(fits)
    return [f"the fits differ in {', '.join(other)}, so they do not estimate the same weights."] if other else []


def pooling_notes(sets: Mapping[str, WeightSet]) -> list[str]:
    """Return a line for each corpus whose fits estimate different things, so that they are not summarised together."""
    learned = _learned(sets)
    lines = []
    for names in _grouped(learned, _corpus).values():
        if other := _other_questions({name: learned[name] for name in names}):
            lines.append(
                f"{', '.join(names)} differ in {', '.join(other)}, so they do not estimate the same "
                "weights; only fits with the same value of these settings are summarised together."
            )
    return lines


def summary_rows(group: Group) -> Rows:
    """Return a row for each language and source: mean, standard deviation, least and greatest weight."""
    rows = []
    sets = list(group.sets.values())
    for level in ("languages", "sources"):
        for key in getattr(sets[0], level):
            values = np.array([getattr(weights, level)[key] for weights in sets])
            rows.append(
                {
                    "group": group.name,
                    "sets": len(sets),
                    "level": level[:-1],
                    "language": language_of(key),
                    "source": key if level == "sources" else None,
                    "mean": float(values.mean()),
                    "standard_deviation": float(values.std(ddof=1)),
                    "least": float(values.min()),
                    "greatest": float(values.max()),
                }
            )
    return rows


def order_rows(group: Group) -> Rows:
    """Return a row for each pair of languages: in how many sets the first has the larger weight, and by how much.

    The language with the larger mean comes first. Two languages swap if the sets order them differently.
    """
    sets = list(group.sets.values())
    languages = {name: np.array([weights.languages[name] for weights in sets]) for name in sets[0].languages}
    rows = []
    for above, below in itertools.combinations(sorted(languages, key=lambda name: -languages[name].mean()), 2):
        differences = languages[above] - languages[below]
        rows.append(
            {
                "group": group.name,
                "sets": len(differences),
                "language": above,
                "other": below,
                "sets_above": int((differences > TIE).sum()),
                "sets_below": int((differences < -TIE).sum()),
                "swaps": bool((differences > TIE).any() and (differences < -TIE).any()),
                "mean_difference": float(differences.mean()),
                "standard_deviation": float(differences.std(ddof=1)),
            }
        )
    return rows


def agreement(group: Group) -> float | None:
    """Return Kendall's τ-b between the orders of languages, averaged over all pairs of sets; None without an order."""
    taus = [
        rank_correlations(list(first.languages.values()), list(second.languages.values()))[0]
        for first, second in itertools.combinations([_ordered(weights, group) for weights in group.sets.values()], 2)
    ]
    known = [tau for tau in taus if tau is not None]
    return math.fsum(known) / len(known) if known else None


def mixture_rows(mixtures: Mapping[str, Mixture]) -> Rows:
    """Return a row for each mixture and language or source, with its values in mixture.json."""
    rows: Rows = []
    for name, mixture in mixtures.items():
        value = mixture.to_dict()
        for level in ("languages", "sources"):
            rows += [
                {
                    "mixture": name,
                    "level": level[:-1],
                    "language": language_of(key),
                    "source": key if level == "sources" else None,
                    **entry,
                }
                for key, entry in value[level].items()
            ]
    return rows


def notes(sets: Mapping[str, WeightSet]) -> list[str]:
    """Return why weight sets are hard to compare: different corpora, or different languages and sources."""
    lines = []
    digests: dict[str, list[str]] = {}
    for name, weights in sets.items():
        if digest := weights.corpus.get("sha256"):
            digests.setdefault(digest, []).append(name)
    if len(digests) > 1:
        stores = "; ".join(f"{', '.join(names)}: store {digest[:12]}" for digest, names in digests.items())
        lines.append(f"the weights are of different corpora, whose sources may hold different text: {stores}.")
    if len({frozenset(weights.sources) for weights in sets.values()}) > 1:
        lines.append(
            "the weight sets name different sources; – marks a source that a set does not have, and "
            "distances are given only between sets with the same sources."
        )
    return lines


def _learned(sets: Mapping[str, WeightSet]) -> dict[str, WeightSet]:
    """Return the sets that a single fit learned."""
    return {name: weights for name, weights in sets.items() if weights.proxy and weights.spread is None}


def _corpus(weights: WeightSet) -> tuple[Any, frozenset[str]]:
    return weights.corpus.get("sha256"), frozenset(weights.sources)


def _question(weights: WeightSet) -> tuple[str, ...]:
    return tuple(repr(weights.method.get(key)) for key in QUESTION)


def _other_questions(fits: Mapping[str, WeightSet]) -> list[str]:
    """Return the settings in which fits differ and that change what they estimate."""
    return [key for key in QUESTION if len({repr(fit.method.get(key)) for fit in fits.values()}) > 1]


def _ordered(weights: WeightSet, group: Group) -> WeightSet:
    """Return the set with its sources in the order of the group's first."""
    first = next(iter(group.sets.values()))
    return WeightSet(weights.name, {source: weights.sources[source] for source in first.sources})


def _differing(sets: Sequence[WeightSet]) -> tuple[str, ...]:
    differing = []
    for part in ("method", "proxy"):
        keys = dict.fromkeys(key for weights in sets for key in getattr(weights, part))
        for key in keys:
            values = [getattr(weights, part).get(key) for weights in sets]
            if any(value != values[0] for value in values):
                differing.append(key)
    return tuple(dict.fromkeys(differing))


def _grouped(sets: Mapping[str, WeightSet], key: Any) -> dict[Any, list[str]]:
    grouped: dict[Any, list[str]] = {}
    for name, weights in sets.items():
        grouped.setdefault(key(weights), []).append(name)
    return grouped


def union(names: Iterable[Iterable[str]]) -> list[str]:
    """Return every name once, in the order of first appearance."""
    return list(dict.fromkeys(itertools.chain.from_iterable(names)))
