"""Settings of the baselines: the training of the proxies, which all share, and the settings of each method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from xdoge.errors import XDogeError, require
from xdoge.fit.targets import targets_by_source
from xdoge.models.flops import product_flops
from xdoge.models.recipes import Recipe
from xdoge.training.proxy_settings import ProxySettings, refuse_unknown

if TYPE_CHECKING:
    from xdoge.corpus.store import TokenStore


class BaselineSettings(ProxySettings):
    """The settings of all baselines: the proxy and its training, with the same defaults as `xdoge fit-weights`."""

    method: ClassVar[str]
    """Name of the method, as `learn` takes it."""

    @property
    def n_rows(self) -> int:
        """Number of rows of metrics.jsonl at the end."""
        return self.steps

    def notes(self, store: TokenStore) -> list[str]:
        """Return notes on these settings for this store, a line each."""
        return []


class SteppedSettings(BaselineSettings):
    """Settings of a method that moves its weights at every step of one proxy."""

    eval_every: int = Field(
        gt=0,
        description="steps between validations [a tenth of the steps, or more to keep validation below 10 % of the "
        "time]",
    )
    checkpoint_every: int = Field(gt=0, description="steps between checkpoints [a twentieth of the steps]")
    keep_checkpoints: int = Field(2, gt=0, description="number of latest checkpoints to keep")

    @classmethod
    def defaults(cls, options: Mapping[str, Any], steps: int, k: int) -> dict[str, Any]:
        """Return the defaults of eval_every and checkpoint_every."""
        return {"eval_every": -(-steps // 10), "checkpoint_every": max(1, steps // 20)}

    def parts(self, k: int) -> int:
        """Return the number of equal parts of a batch for k sources."""
        return k

    def check_store(self, store: TokenStore) -> None:
        """Raise XDogeError if the settings do not fit this store."""
        parts = self.parts(len(store.sources))
        if self.batch_size < parts:
            raise XDogeError(
                f"batch_size {self.batch_size} is too small: {self.method} cuts every batch into {parts} parts, one "
                f"for each of {len(store.sources)} sources{' and one for the mix' * (parts > len(store.sources))}."
            )


class DoremiSettings(SteppedSettings):
    """Settings of DoReMi (arXiv:2305.10429)."""

    method = "doremi"

    reference: Literal["proportional", "uniform"] = Field(
        "proportional", description="source weights on which the reference model is trained"
    )
    eta: float = Field(1.0, gt=0, description="η, the step size of the weights")
    smoothing: float = Field(1e-3, ge=0, lt=1, description="c, the fraction of uniform weights mixed in at every step")

    @property
    def n_rows(self) -> int:
        """Number of rows: one for each step of the reference model and of the proxy."""
        return 2 * self.steps

    def learning_flops(self, recipe: Recipe, store: TokenStore) -> int:
        """Return the FLOPs of the reference, of the proxy, and of running the reference on the proxy's text."""
        tokens = self.proxy_tokens
        return self.training_flops(recipe, store, 2 * tokens) + self.training_flops(recipe, store, tokens) // 3


class DogeSettings(SteppedSettings):
    """Settings of DoGE (arXiv:2310.15393) as in its authors' code."""

    method = "doge"

    target: Literal["mix", "sources"] = Field(
        "mix",
        description="gradient against which each source is scored: of one batch of all sources (mix), or the sum of "
        "the sources' gradients (sources)",
    )
    mu: float = Field(0.01, gt=0, description="μ of the Bregman divergence; not the μ of fit-weights")
    smoothing: float = Field(0.0, ge=0, lt=1, description="fraction of uniform weights mixed in at every step")

    def parts(self, k: int) -> int:
        """Return the number of parts: one for each source, and one for the mix if it is the target."""
        return k + (self.target == "mix")

    def learning_flops(self, recipe: Recipe, store: TokenStore) -> int:
        """Return the FLOPs of the proxy and of all inner products between the gradients of the sources and the mix."""
        products = product_flops(
            recipe.parameters(store.vocab_size),
            sources=self.parts(len(store.sources)),
            steps=self.steps,
            halves=False,
            maps=self.steps if self.target == "sources" else 0,
        )
        return super().learning_flops(recipe, store) + products


class RegmixSettings(BaselineSettings):
    """Settings of RegMix (arXiv:2407.01492)."""

    method = "regmix"

    proxy: str = Field("1m", description="the tiny models: the name of a recipe, or a YAML file with one")
    runs: int = Field(512, ge=10, lt=10**6, description="number of tiny models; each trains on its own mixture")
    targets: Literal["sources", "languages"] | dict[str, float] = Field(
        "languages",
        description="the regression predicts the mean validation loss of languages (all equally), sources (all "
        "equally), or {NAME: τ}",
    )
    regressor: Literal["lightgbm", "linear"] = Field("lightgbm", description="model of the regression")
    temperature: float = Field(
        0.5,
        gt=0,
        le=1,
        description="mixtures are drawn around the shares of the corpus, raised to this power and normalised",
    )
    least_strength: float = Field(
        0.1, gt=0, description="lowest concentration of the Dirichlet distribution of mixtures"
    )
    greatest_strength: float = Field(
        5.0, gt=0, description="highest concentration of the Dirichlet distribution of mixtures"
    )
    simulations: int = Field(100_000, gt=0, lt=10**9, description="number of mixtures whose loss is predicted")
    best: int = Field(
        128, gt=0, description="number of mixtures, those with the lowest predicted loss, that are averaged"
    )

    @property
    def n_rows(self) -> int:
        """Number of rows: one for each tiny model."""
        return self.runs

    def require_libraries(self) -> None:
        """Raise MissingExtraError if a library is missing that the regression needs after all trainings."""
        if self.regressor == "lightgbm":
            require("baselines", "lightgbm")

    def learning_flops(self, recipe: Recipe, store: TokenStore) -> int:
        """Return the FLOPs of training all tiny models and of their validation losses."""
        available = store.sequence_counts(self.sequence_length, split="validation").values()
        scored = sum(min(count, self.eval_sequences) for count in available) * self.sequence_length
        trained = self.training_flops(recipe, store, self.runs * self.proxy_tokens)
        return trained + self.training_flops(recipe, store, self.runs * scored) // 3

    def target_weights(self, store: TokenStore) -> dict[str, float]:
        """Return τ of each source with a target above 0 and validation text. They sum to 1."""
        targets = targets_by_source(self.targets, store.languages)
        available = store.sequence_counts(self.sequence_length, split="validation")
        measured = {source: weight for source, weight in targets.items() if weight and available.get(source)}
        total = sum(measured.values())
        return {source: weight / total for source, weight in measured.items()}

    def notes(self, store: TokenStore) -> list[str]:
        """Return notes on sources that are missing in the target, and on too few runs."""
        lines = []
        silent = [s for s, n in store.sequence_counts(self.sequence_length, split="validation").items() if n == 0]
        if silent:
            lines.append(f"no validation sequence of {self.sequence_length} tokens, so no target: {', '.join(silent)}")
        if self.runs < 5 * len(store.sources):
            lines.append(
                f"{self.runs} runs are few to regress on the weights of {len(store.sources)} sources; RegMix's authors "
                "took 512 for 17"
            )
        return lines

    def check_store(self, store: TokenStore) -> None:
        """Raise XDogeError if the settings do not fit this store."""
        targets = self.targets if isinstance(self.targets, dict) else {}
        refuse_unknown("targets", targets, [*store.languages, *store.sources])
        available = store.sequence_counts(self.sequence_length, split="validation")
        for source, weight in targets.items():
            if weight < 0:
                raise XDogeError(f"targets[{source!r}] is {weight:g}; it must be >= 0.")
            if weight and not available.get(source, 1):
                raise XDogeError(
                    f"targets names {source!r}, which has no validation sequence of {self.sequence_length} tokens, and "
                    "RegMix learns from validation losses. Lower sequence_length, or leave the target out."
                )
        if not self.target_weights(store):
            raise XDogeError(
                f"no target has a validation sequence of {self.sequence_length} tokens, and RegMix learns from "
                "validation losses. Lower sequence_length."
            )
        if self.least_strength > self.greatest_strength:
            raise XDogeError(
                f"least_strength {self.least_strength:g} is above greatest_strength {self.greatest_strength:g}."
            )
        if self.best > self.simulations:
            raise XDogeError(f"best {self.best:,} is more than the {self.simulations:,} simulations.")
