"""Settings of a swarm: their meaning, their defaults for a recipe and a corpus, and their checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, field_validator

from xdoge.config import Seed, count_or
from xdoge.errors import XDogeError, argument
from xdoge.models.initial_model import InitialModel
from xdoge.training.proxy_settings import ProxySettings

if TYPE_CHECKING:
    from xdoge.corpus.store import TokenStore


AROUND_OPTIMUM = 0.25
"""Share of the runs near the optimum among all runs that are neither anchors nor contrasts."""


class SwarmSettings(ProxySettings):
    """Every setting of `xdoge swarm`, with its final value. `for_store` fills in what the user left out."""

    proxy: str = Field(
        "125m",
        description="proxy model: the name of a recipe, a YAML file with one, or a trained model that every run "
        "continues from",
    )
    budget_tokens: int = Field(gt=0, description="training tokens of the large run that you plan")
    max_epochs: float | None = Field(
        8.0, gt=0, description="maximum number of epochs of a source in the large run, or none"
    )
    runs: int = Field(gt=0, lt=10**6, description="number of trainings [9 + 5 × number of shares]")
    level: Literal["languages", "sources"] = Field(
        "languages",
        description="whose shares vary: languages or sources. With languages, the sources of a language are mixed in "
        "proportion to their tokens",
    )
    seed: Seed = Field(0, description="seed that draws the mixtures and chooses the part of each source")
    seeds: tuple[Seed, ...] = Field(
        (0, 1, 2, 3),
        min_length=2,
        description="seeds of the proxies; two anchor mixtures are trained with each seed, all other mixtures with "
        "the first",
    )
    held_out: float = Field(
        0.2, ge=0, lt=1, description="fraction of the runs that no law is fitted to; they measure the error of the law"
    )
    affinity: str | None = Field(
        None,
        description="run folder of a fit; its gradients tell the law beforehand which source helps which language",
    )
    averaging: float = Field(
        0.1, ge=0, le=1, description="fraction of the steps at the end whose model weights are averaged"
    )
    eval_sequences: int = Field(256, gt=0, description="maximum number of validation sequences per source")
    checkpoint_every: int = Field(gt=0, description="steps between checkpoints [a tenth of the steps]")

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if min(seeds) < 0 or len(set(seeds)) < len(seeds):
            raise ValueError(f"{list(seeds)} must be different and >= 0")
        return seeds

    @classmethod
    def for_store(cls, store: TokenStore, values: Mapping[str, Any], *, where: str = "settings") -> Self:
        """Return settings for a store: the user's values, and the proxy's defaults for all others.

        Raises:
            XDogeError: a setting is unknown or not allowed, or the store has too little text for it.
        """
        proxy = InitialModel.find(str(values.get("proxy", cls.model_fields["proxy"].default)))
        units = store.languages if values.get("level", "languages") == "languages" else store.sources
        if proxy.recipe is None and "steps" not in values:
            raise XDogeError(
                f"{where}: {argument('steps')} is missing; give the number of steps for which each run "
                f"continues from {proxy.name}."
            )
        defaults = proxy.defaults() | ({"steps": proxy.recipe.steps} if proxy.recipe else {})
        steps = count_or(1, values.get("steps", defaults.get("steps")))
        defaults["runs"] = 9 + 5 * len(units)
        defaults["checkpoint_every"] = max(1, steps // 10)
        settings = cls.parse({**defaults, **values}, where=where)
        proxy.check(store, settings.sequence_length)
        settings._check(store, len(units), where)
        return settings

    def _check(self, store: TokenStore, units: int, where: str) -> None:
        if units < 2:
            raise XDogeError(f"{where}: {store.path} has only one share to vary; a mixture law needs two.")
        least = self.anchors + 2 * units
        if self.runs < least:
            raise XDogeError(
                f"{where}: {argument('runs')} is {self.runs}, but {units} shares need at least {least}: "
                f"{self.anchors} anchors, and a run with a high and one with a low value of each share."
            )
        design, near = self.stages(units)
        held_out, fewest = self.held_out_of(design) + self.held_out_of(near), fewest_runs(units)
        if self.runs - held_out < fewest:
            raise XDogeError(
                f"{where}: {argument('held_out')} takes {held_out} of {self.runs} {argument('runs')}, but "
                f"a law of {units} shares needs at least {fewest} runs. Train more runs or hold out fewer."
            )
        for source, count in store.sequence_counts(self.sequence_length).items():
            if not count:
                raise XDogeError(f"{source} has no sequence of {self.sequence_length} tokens; lower sequence_length.")
        heard = store.sequence_counts(self.sequence_length, split="validation")
        for language, sources in store.languages.items():
            if not any(heard[source] for source in sources):
                raise XDogeError(
                    f"{language} has no validation sequence of {self.sequence_length} tokens, so no loss can be "
                    "measured. Lower sequence_length or prepare the store with more validation text."
                )

    def flops(self, vocab_size: int) -> int:
        """Return the FLOPs of all trainings, without validation."""
        tokens, length = self.runs * self.proxy_tokens, self.sequence_length
        return InitialModel.find(self.proxy).training_flops(tokens, sequence_length=length, vocab_size=vocab_size)

    @property
    def anchors(self) -> int:
        """Number of trainings on anchors."""
        return 2 * len(self.seeds) + 1

    def stages(self, units: int) -> tuple[int, int]:
        """Return the number of trainings in the design, with contrasts, and the number near the optimum."""
        near = round(AROUND_OPTIMUM * (self.runs - self.anchors - 2 * units))
        return self.runs - self.anchors - near, near

    def held_out_of(self, count: int) -> int:
        """Return how many of `count` trainings are held out. Anchors never are, so the share of others is higher."""
        return min(count, round(count * self.held_out * self.runs / (self.runs - self.anchors)))

    @property
    def proxy_tokens(self) -> int:
        """Tokens that each proxy trains on."""
        return self.steps * self.batch_size * self.sequence_length

    def sequences_seen(self, store: TokenStore) -> dict[str, int]:
        """Return how many sequences of each source the proxies see. With these they repeat text like the target run."""
        share = min(1.0, self.proxy_tokens / self.budget_tokens)
        counts = store.sequence_counts(self.sequence_length)
        return {source: min(count, max(1, round(count * share))) for source, count in counts.items()}

    def notes(self, store: TokenStore) -> list[str]:
        """Return notes for the user on these settings, before the swarm starts."""
        lines = []
        if self.proxy_tokens > self.budget_tokens:
            lines.append(
                f"each proxy trains on {self.proxy_tokens:,} tokens, more than the budget of "
                f"{self.budget_tokens:,}, so it repeats its text more often than the target run"
            )
        rough = {source: n for source, n in self.sequences_seen(store).items() if n < 8}
        if rough:
            lines.append(
                f"the proxies read fewer than 8 different sequences of {', '.join(rough)}, so their "
                "epochs are only approximate; use a proxy that trains on more tokens"
            )
        return lines


def fewest_runs(units: int) -> int:
    """Return the least number of trainings for a law over `units` shares."""
    from xdoge.laws.fitted import FEWEST_RUNS

    return max(FEWEST_RUNS, units)
