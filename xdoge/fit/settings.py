"""Settings of a fit: their meaning, their defaults for a recipe and a corpus, and their checks."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args

import numpy as np
from pydantic import Field, field_validator

from xdoge.errors import XDogeError, argument, few, names_that_differ
from xdoge.fit.reweight import Normalisation, Rule, Score
from xdoge.fit.targets import TargetRule, language_shares, targets_by_source
from xdoge.mixtures.reading import read_source_weights
from xdoge.mixtures.simplex import Floats, project
from xdoge.mixtures.strategies import STRATEGIES, strategy_weights
from xdoge.mixtures.weights import Level, WeightSet
from xdoge.models.flops import product_flops
from xdoge.models.recipes import Recipe
from xdoge.training.proxy_settings import Languages, ProxySettings, refuse_unknown

if TYPE_CHECKING:
    from xdoge.corpus.store import TokenStore

FEW_SEQUENCES = 20
"""Below this many sequences, drawing without replacement biases ⟨g^A, g^B⟩ noticeably (docs/explanation/method.md)."""

INITIAL: tuple[Level, ...] = get_args(Level)
"""Values of `initial` other than a file: what gets equal weights at the start."""

FLOOR_SHARE = 1 / 20
"""Default floor as a part of the equal share 1 / k. It is far below 1 / k, and a source at the floor can still grow."""

SAVES_MEMORY = ("microbatches", "activation_checkpointing")
"""Settings that may differ when a run is resumed. They only change the memory that a step takes, and rounding."""


class FitOptions(TypedDict, total=False):
    """The settings that `fit` takes by name. `FitSettings` describes and checks each."""

    proxy: str
    seed: int
    steps: int
    batch_size: int
    sequence_length: int
    learning_rate: float
    warmup: float
    final_learning_rate: float
    weight_decay: float
    clip: float
    precision: Literal["auto", "float32", "bfloat16"]
    device: str
    eval_sequences: int
    initial: str
    floor: float
    mu: float
    score: Score
    targets: Literal["sources", "languages", "robust"] | Mapping[str, float]
    no_worse_than: str | None
    target_budget: int | str | None
    held_out: Sequence[str]
    normalise: Normalisation
    burn_in: float
    batch: Literal["stratified", "sampled"]
    microbatches: int
    timeout: float
    activation_checkpointing: bool
    eval_every: int
    checkpoint_every: int
    keep_checkpoints: int
    gram_every: int


class FitSettings(ProxySettings):
    """Every setting of `xdoge fit-weights`, with its final value.

    `for_store` fills in what the user left out. Square brackets in a description contain the default that it computes.
    docs/explanation/decisions.md gives the reasons for the defaults.
    """

    initial: str = Field(
        "languages",
        description="weights at the start: languages (the same for every language; within each, in proportion to the "
        "tokens of its sources), sources (the same for every source), or a file of weights, as for `xdoge mix`",
    )
    floor: float = Field(ge=0, description="γ, the minimum weight of each source; below 1/k for k sources [1/(20 k)]")
    mu: float = Field(
        0.1,
        gt=0,
        description="μ: if the mean score of one source is above that of another by μ, the ratio of their weights "
        "grows by the factor e over the fit. A smaller μ moves the weights further",
    )
    score: Score = Field(
        "unbiased",
        description="how the squared gradient norm of a source is estimated: from two independent halves of the batch "
        "(unbiased), or from one batch as in the paper (paper)",
    )
    targets: Literal["sources", "languages", "robust"] | dict[str, float] = Field(
        "languages",
        description="whose loss counts: languages (all equally), sources (all equally), robust (more weight on the "
        "languages whose losses fall slowest), or {NAME: τ} for sources and languages",
    )
    no_worse_than: str | None = Field(
        None,
        description="limit on each language's estimated final loss: REFERENCE:PERCENT, such as uniform:1% for at "
        "most 1 % above its loss with uniform weights. REFERENCE is a strategy of xdoge mix or a file of weights",
    )
    target_budget: int | None = Field(
        None,
        gt=0,
        description="training tokens of the run that the weights are for; the proxy then trains on a part of each "
        "source, small enough that it repeats this part as often as the run will repeat the source",
    )
    held_out: tuple[str, ...] = Field(
        (), description="sources whose loss counts as a target, but which the proxy never trains on"
    )
    normalise: Normalisation = Field(
        "mean_square",
        description="what the scores are divided by: a running mean of the squared gradient norm (mean_square), or "
        "nothing (none)",
    )
    burn_in: float = Field(
        0.0, ge=0, lt=1, description="fraction of the steps at the start that is left out of the average of the weights"
    )

    batch: Literal["stratified", "sampled"] = Field(
        "stratified",
        description="stratified: every batch has sequences of every source; sampled: sources are drawn by weight",
    )
    microbatches: int = Field(1, gt=0, description="number of parts into which a batch is split to save memory")

    timeout: float = Field(600, gt=0, description="seconds after which a process stops waiting for the others")
    activation_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass; takes less memory and more time"
    )

    eval_every: int = Field(
        gt=0,
        description="steps between validations [a tenth of the steps, or more to keep validation below 10 % of the "
        "time]",
    )
    checkpoint_every: int = Field(gt=0, description="steps between checkpoints [a twentieth of the steps]")
    keep_checkpoints: int = Field(2, gt=0, description="number of latest checkpoints to keep")
    gram_every: int = Field(
        ge=0,
        description="steps between measurements of the Gram matrix of the gradients; 0 measures none [a hundredth of "
        "the steps]",
    )

    @field_validator("targets")
    @classmethod
    def _some_target(cls, value: Any) -> Any:
        if isinstance(value, dict) and (min(value.values(), default=0) < 0 or not any(value.values())):
            raise ValueError(f"{value} must be >= 0 and not all zero")
        return value

    @classmethod
    def defaults(cls, options: Mapping[str, Any], steps: int, k: int) -> dict[str, Any]:
        """Return the defaults that depend on the number of steps and of sources: floor, eval_every and so on."""
        held_out = options.get("held_out")
        return {
            "floor": FLOOR_SHARE / max(1, k - len(held_out if isinstance(held_out, list | tuple) else ())),
            "eval_every": -(-steps // 10),
            "checkpoint_every": max(1, steps // 20),
            "gram_every": max(1, steps // 100),
        }

    def target_rule(self, store: TokenStore) -> TargetRule:
        """Return the rule by which the targets of the languages move.

        Raises:
            XDogeError: the reference of `no_worse_than` has other sources than the store.
        """
        rule = self.rule(store.languages)
        reference, allowance = None, TargetRule.allowance
        if self.no_worse_than is not None:
            name, _, percent = self.no_worse_than.rpartition(":")
            allowance = float(percent.removesuffix("%")) / 100
            trained = self._trained_tokens(store)
            known = name in STRATEGIES
            weights = strategy_weights(name, trained) if known else read_source_weights(name, trained)
            if difference := names_that_differ(name, [s for s, w in weights.sources.items() if w], "the fit", trained):
                raise XDogeError(
                    f"no_worse_than {self.no_worse_than!r} and the fit have different sources: {difference}."
                )
            reference = np.array([weights.sources.get(source, 0.0) for source in store.sources])
        return TargetRule(
            shares=language_shares(_positions(store.languages), rule.targets),
            base=rule.targets,
            robust=self.targets == "robust",
            mu=self.mu,
            reference=reference,
            allowance=allowance,
        )

    def initial_weights(self, store: TokenStore) -> Floats:
        """Return the weights that the fit starts at, (k,): 0 for held-out sources, at least the floor for the others.

        Raises:
            XDogeError: the file that `initial` names has other sources, or gives a source no weight while there is no
                floor.
        """
        trained, masses = self._trained_tokens(store), self._initial_masses(store)
        if self.initial not in INITIAL:
            named = [source for source in masses if source not in self.held_out]
            if difference := names_that_differ(self.initial, named, "the fit", trained):
                raise XDogeError(
                    f"{argument('initial', self.initial)} and the fit have different sources: {difference}."
                )
            if not self.floor and (stuck := [source for source in trained if not masses[source]]):
                raise XDogeError(
                    f"{argument('initial', self.initial)} gives {stuck[0]} no weight, and without a floor "
                    f"its weight would stay 0; set {argument('floor')} above 0, or list {stuck[0]} in "
                    "held_out."
                )
        projected = project([masses[source] for source in trained], floor=self.floor)
        weights = dict(zip(trained, projected.tolist(), strict=True))
        return np.array([weights.get(source, 0.0) for source in store.sources])

    def _initial_masses(self, store: TokenStore) -> Mapping[str, float]:
        """Return the initial weight of each source by name, before the floor is applied."""
        if self.initial in INITIAL:
            return strategy_weights("uniform", self._trained_tokens(store), level=self.initial).sources
        return read_source_weights(self.initial, self._trained_tokens(store)).sources

    def _trained_tokens(self, store: TokenStore) -> dict[str, int]:
        """Return the training tokens of each source that the proxy trains on."""
        return {source: n for source, n in store.tokens().items() if source not in self.held_out}

    def sequences_seen(self, store: TokenStore) -> dict[str, int]:
        """Return how many sequences of each source the proxy sees: all, or fewer with `target_budget`.

        With `target_budget`, the proxy repeats each source as often as the target run will. Held-out targets are not
        reduced, since the target run never reads them.
        """
        counts = store.sequence_counts(self.sequence_length)
        if self.target_budget is None:
            return counts
        share = self.proxy_tokens / self.target_budget
        return {
            source: n if source in self.held_out else min(n, max(self.least_sequences, round(n * share)))
            for source, n in counts.items()
        }

    @property
    def least_sequences(self) -> int:
        """Least number of sequences of each source in a stratified batch. The unbiased score needs two halves."""
        return 2 if self.score == "unbiased" else 1

    def learning_flops(self, recipe: Recipe, store: TokenStore) -> int:
        """Return the FLOPs of training the proxy and of all inner products between the sources' gradients."""
        products = product_flops(
            recipe.parameters(store.vocab_size),
            sources=len(store.sources),
            steps=self.steps,
            directions=2 + (self.no_worse_than is not None),
            maps=self.steps // self.gram_every if self.gram_every else 0,
        )
        return super().learning_flops(recipe, store) + products

    @property
    def memory_advice(self) -> str:
        """The end of the error message for a step that needs more memory than the device has."""
        rows = -(-self.batch_size // self.microbatches)
        return (
            f"with {rows} sequences of {self.sequence_length} tokens at once; add "
            f"{argument('microbatches', 2 * self.microbatches)} or {argument('activation_checkpointing', True)} to "
            f"{argument('resume', True)}, or take a smaller {argument('proxy')}"
        )

    def rule(self, languages: Languages) -> Rule:
        """Return the settings of the outer steps. Their arrays have the sources in the order of `languages`."""
        sources = [source for members in languages.values() for source in members]
        by_source = targets_by_source(self.targets, languages)
        targets = np.array([by_source.get(source, 0.0) for source in sources])
        return Rule(
            targets=targets,
            trained=np.array([source not in self.held_out for source in sources]),
            floor=self.floor,
            mu=self.mu,
            score=self.score,
            normalise=self.normalise,
            shares=language_shares(_positions(languages), targets).mean(axis=0),
        )

    def notes(self, store: TokenStore) -> list[str]:
        """Return notes on these settings for this store, a line each, such as sources with few sequences."""
        lines = []
        silent = [s for s, n in store.sequence_counts(self.sequence_length, split="validation").items() if n == 0]
        if silent:
            lines.append(
                f"no validation sequence of {self.sequence_length} tokens, so no validation loss, for "
                f"{', '.join(silent)}"
            )
        counts = self.sequences_seen(store)
        short = [f"{source} ({count})" for source, count in counts.items() if count < FEW_SEQUENCES]
        if short and self.score == "unbiased":
            lines.append(
                f"the own gradient product is estimated too low for sources with few sequences: {', '.join(short)}"
            )
        if self.initial not in INITIAL:
            masses, weights = self._initial_masses(store), self.initial_weights(store).tolist()
            total = sum(masses[source] for source in self._trained_tokens(store))
            lifted = [
                f"{source} from {masses[source] / total:.4g} to {weight:.4g}"
                for source, weight in zip(store.sources, weights, strict=True)
                if source not in self.held_out and masses[source] / total < weight == self.floor
            ]
            if lifted:
                lines.append(f"weights of {self.initial} below the floor were raised: {few(lifted)}")
        if self.batch == "sampled" and self.score == "unbiased" and self.floor * self.batch_size < 1:
            lines.append(
                f"a source at the floor is scored only in the few batches of {self.batch_size} that have "
                "two of its sequences; batch: stratified scores all sources in all batches"
            )
        return lines

    def warnings(self, weights: WeightSet, rule: TargetRule) -> list[str]:
        """Return a line for each language whose estimated loss ends above the limit of `no_worse_than`."""
        lines = []
        for language, excess in weights.method.get("excess", {}).items():
            if excess is None or excess > rule.allowance:
                how = (
                    f"is estimated to end {excess:.1%} above the reference's"
                    if excess is not None
                    else "could not be estimated"
                )
                lines.append(f"the loss of {language} {how}; no_worse_than asked for {self.no_worse_than}")
        return lines

    def check_sources(self, languages: Languages) -> None:
        """Raise XDogeError if the settings do not fit these sources, or contradict each other."""
        sources = [source for members in languages.values() for source in members]
        refuse_unknown("held_out", self.held_out, sources)
        refuse_unknown("targets", self.targets if isinstance(self.targets, dict) else (), [*languages, *sources])
        rule = self.rule(languages)
        k = int(rule.trained.sum())
        if k == 0:
            raise XDogeError("held_out leaves no source to train on.")
        if self.floor * k >= 1:
            raise XDogeError(
                f"floor {self.floor:g} is too high for {k} sources: it must be below 1/{k} = {1 / k:.6g}, "
                "and well below that to leave anything to learn."
            )
        for source in self.held_out:
            if rule.targets[sources.index(source)] == 0:
                raise XDogeError(f"held_out names {source!r}, which is not a target, so it would not be used.")
        if self.target_budget is not None and self.target_budget <= self.proxy_tokens:
            raise XDogeError(
                f"target_budget {self.target_budget:,} is not larger than the {self.proxy_tokens:,} "
                "tokens that the proxy trains on, so it has no effect; leave it out."
            )
        if self.no_worse_than is not None and not re.fullmatch(r".+:(?=.*[1-9])\d+(\.\d+)?%", self.no_worse_than):
            raise XDogeError(
                f"no_worse_than {self.no_worse_than!r} must be REFERENCE:PERCENT, above 0, such as uniform:1% "
                f"(REFERENCE: {', '.join(STRATEGIES)}, or a file of weights)."
            )
        moving = self.targets == "robust" or self.no_worse_than is not None
        if moving and self.batch == "sampled":
            raise XDogeError(
                "batch sampled shows some languages in some steps only, so their progress cannot be followed; "
                "targets robust and no_worse_than need batch: stratified."
            )
        if self.initial not in INITIAL and not Path(self.initial).exists():
            raise XDogeError(
                f"{argument('initial')} is {self.initial!r}; it must be languages, sources or a file of weights."
            )
        name = (self.no_worse_than or "").rpartition(":")[0]
        if name and name not in STRATEGIES and not Path(name).exists():
            raise XDogeError(
                f"no_worse_than names {name!r}, which is neither a strategy ({', '.join(STRATEGIES)}) nor a file."
            )
        if moving and self.normalise == "none":
            raise XDogeError("normalise none keeps the scale of targets, and moving targets have none; leave it out.")
        least = self.least_sequences
        if self.batch == "stratified" and self.batch_size < least * len(sources):
            raise XDogeError(
                f"batch_size {self.batch_size} is too small: {len(sources)} sources with at least {least} "
                f"sequences each (batch {self.batch}, score {self.score}) need {least * len(sources)}."
            )
        if self.batch == "sampled" and self.batch_size <= least * len(self.held_out):
            raise XDogeError(f"batch_size {self.batch_size} has no room for other sequences than those of held_out.")


def _positions(languages: Languages) -> list[list[int]]:
    """Return the positions of each language's sources in the order of the languages."""
    position = itertools.count()
    return [[next(position) for _ in sources] for sources in languages.values()]
