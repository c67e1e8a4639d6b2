"""Weights computed from the sizes of sources, without a proxy model. Learned weights are compared with them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Literal, get_args

from xdoge.errors import XDogeError, argument, names_that_differ
from xdoge.mixtures.weights import Level, WeightSet
from xdoge.names import language_of

Strategy = Literal["uniform", "proportional", "temperature", "unimax"]
STRATEGIES: tuple[str, ...] = get_args(Strategy)

DEFAULT_TEMPERATURE = 10 / 3
"""p ∝ n^0.3, as in XLM-R (Conneau et al. 2020, arXiv:1911.02116) and mT5 (Xue et al. 2021, arXiv:2010.11934)."""


def strategy_weights(
    strategy: str,
    available_tokens: Mapping[str, int],
    *,
    level: Level = "languages",
    temperature: float | None = None,
) -> WeightSet:
    """Return the weights of a strategy that uses only the sizes n of languages or sources.

    - "uniform": equal weights.
    - "proportional": p ∝ n.
    - "temperature": p ∝ n^(1/τ). τ = 1 is proportional. A larger τ is closer to uniform.
    - "unimax": equal weights. `Mixture.plan` applies the epoch cap, which turns them into UniMax.

    Args:
        strategy: one of the names above.
        available_tokens: unique training tokens per "language/source".
        level: compute weights of languages or of sources. The weight of a language is divided among its sources in
            proportion to their tokens.
        temperature: τ >= 1, for "temperature" only. Default: 10/3.

    Raises:
        XDogeError: the strategy is unknown, or the temperature is below 1 or given for another strategy.
    """
    if strategy not in STRATEGIES:
        raise XDogeError(f"strategy {strategy!r} is unknown; the strategies are {', '.join(STRATEGIES)}.")
    if strategy != "temperature" and temperature is not None:
        raise XDogeError(
            f"{argument('temperature')} is for the strategy temperature, not for {strategy}; leave it out."
        )
    tau = DEFAULT_TEMPERATURE if temperature is None else temperature
    if not 1 <= tau < math.inf:
        raise XDogeError(f"{argument('temperature')} is {tau:g}; it must be at least 1 (1 is proportional).")
    exponent = {"proportional": 1.0, "temperature": 1 / tau}.get(strategy, 0.0)
    groups = available_tokens if level == "sources" else _by_language(available_tokens)
    masses = {name: count**exponent if count else 0.0 for name, count in groups.items()}
    if empty := [name for name, mass in masses.items() if not mass]:
        raise XDogeError(f"{empty[0]} has no tokens.")
    total = math.fsum(masses.values())
    shares = {name: mass / total for name, mass in masses.items()}
    settings = {"strategy": strategy, "level": level} | ({"temperature": tau} if strategy == "temperature" else {})
    return WeightSet(
        name=strategy,
        sources=shares if level == "sources" else spread_by_size(shares, available_tokens),
        method=settings,
        corpus={"tokens": dict(available_tokens)},
    )


def spread_by_size(languages: Mapping[str, float], available_tokens: Mapping[str, int]) -> dict[str, float]:
    """Return weights per source: the weight of each language, divided among its sources by their tokens.

    This is the mixture Σ_ℓ ᾱ_ℓ UNIF(S_ℓ) of the XDoGE paper (arXiv:2512.10545). All tokens of a language have the same
    probability.

    Raises:
        XDogeError: the languages are not those of the sources, or a language with a weight above 0 has no tokens.
    """
    sizes = _by_language(available_tokens)
    if differing := names_that_differ("the weights", languages, "the token counts", sizes):
        hint = rest_hint(languages, sizes)
        raise XDogeError(f"weights and token counts name different languages; {differing}.{hint}")
    for language, weight in languages.items():
        if weight and not sizes[language]:
            raise XDogeError(f"{language} has weight {weight:g} and no tokens.")
    return {
        source: languages[language] * (count / sizes[language] if sizes[language] else 0.0)
        for source, count in available_tokens.items()
        for language in [language_of(source)]
    }


def with_zeros(
    weights: WeightSet | Mapping[str, float], available_tokens: Mapping[str, int]
) -> WeightSet | dict[str, float]:
    """Return the weights, with weight 0 for languages or sources of `available_tokens` that they do not name."""
    named = weights.sources if isinstance(weights, WeightSet) else weights
    by_source = any("/" in name for name in named)
    filled = {**{name if by_source else language_of(name): 0.0 for name in available_tokens}, **named}
    return replace(weights, sources=filled) if isinstance(weights, WeightSet) else filled


def rest_hint(weights: Collection[str], names: Collection[str]) -> str:
    """Return a hint at `rest_zero` for an error message, or "" if `rest_zero` would not help.

    It helps if the weights name some of `names` and nothing else.
    """
    return f" {argument('rest_zero', True)} reads nothing of them." * (not set(weights) - set(names))


def _by_language(available_tokens: Mapping[str, int]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for source, count in available_tokens.items():
        language = language_of(source)
        sizes[language] = sizes.get(language, 0) + count
    return sizes
