"""The result of a fit or a baseline, and the weight set that it writes."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xdoge._version import __version__
from xdoge.corpus.store import TokenStore
from xdoge.fit.verdict import fit_verdict
from xdoge.io import read_rows
from xdoge.mixtures.simplex import Floats
from xdoge.mixtures.weights import WeightSet
from xdoge.models.recipes import Recipe
from xdoge.training.proxy_settings import ProxySettings
from xdoge.training.run_folder import RunFolder


@dataclass(frozen=True)
class FitResult:
    """Learned weights, and how the run that learned them ended.

    Attributes:
        weights: one weight per source, as `path`/weights.json holds them.
        path: the run folder.
        steps: steps that the proxy took; for RegMix, the number of models trained.
        seconds: run time, summed over the first call and those that resumed it.
        resumed: whether this call continued an earlier one.
        finished_before: whether the run was finished already, so that this call only read the weights.
        verdict: what the weights are worth and what to do next, a sentence each. Only the first process has it.
    """

    weights: WeightSet
    path: Path
    steps: int
    seconds: float
    resumed: bool = False
    finished_before: bool = False
    verdict: tuple[str, ...] = ()

    @classmethod
    def read(cls, run: RunFolder, store: TokenStore) -> FitResult:
        """Return the result of a run that is finished."""
        last = (read_rows(run.metrics) or [{}])[-1]
        weights = WeightSet.load(run.weights)
        return cls(
            weights,
            run.path,
            last.get("step", 0),
            last.get("seconds", 0.0),
            resumed=True,
            finished_before=True,
            verdict=tuple(fit_verdict(weights, run, store)),
        )


def resolved_config(store: TokenStore, settings: ProxySettings, recipe: Recipe) -> dict[str, Any]:
    """Return the content of config.yaml: the store, every setting and the full recipe."""
    return {
        "store": {"path": str(store.path), "name": store.name, "sha256": store.sha256},
        "settings": settings.model_dump(mode="json"),
        "recipe": recipe.model_dump(mode="json"),
    }


def learned_weights(
    weights: Floats,
    store: TokenStore,
    settings: ProxySettings,
    recipe: Recipe,
    *,
    method: Mapping[str, Any],
    floor: float,
    tokens: int,
    proxy: Mapping[str, Any] | None = None,
) -> WeightSet:
    """Return the weight set that weights.json holds, with the method that learned it and its cost.

    Args:
        weights: (k,) the learned weights.
        store: the token store that they were learned on.
        settings: settings of the fit or the baseline.
        recipe: recipe of the proxy.
        method: every setting. For a baseline, `baseline` is its name.
        floor: least weight that a source could have.
        tokens: tokens that all proxies were trained on.
        proxy: further entries for `proxy` in weights.json.
    """
    name = [store.name, *([method["baseline"]] if "baseline" in method else []), recipe.name, f"seed{settings.seed}"]
    return WeightSet(
        name="-".join(name),
        sources=dict(zip(store.sources, weights.tolist(), strict=True)),
        floor=floor,
        method=dict(method),
        proxy={
            **recipe.model_dump(mode="json", exclude={"about"}),
            "non_embedding_parameters": recipe.non_embedding_parameters,
            "parameters": recipe.parameters(store.vocab_size),
            "tokens_seen": tokens,
            "flops": settings.learning_flops(recipe, store),
            **(proxy or {}),
        },
        corpus={"name": store.name, "sha256": store.sha256, "tokens": store.tokens()},
        xdoge_version=__version__,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def language_weights(store: TokenStore, weights: Floats) -> dict[str, float]:
    """Return the weight of each language: the sum over its sources of `weights`, (k,)."""
    return {
        language: math.fsum(float(weights[store.sources.index(source)]) for source in sources)
        for language, sources in store.languages.items()
    }
