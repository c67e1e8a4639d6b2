"""Settings for training a proxy, which fits, baselines and swarms share, and the resulting FLOPs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field

from xdoge.config import MOST_SEQUENCES, Config, Seed, count_or
from xdoge.errors import XDogeError, argument, likely_name
from xdoge.models.flops import training_flops
from xdoge.models.recipes import Recipe, load_recipe, recipe_names
from xdoge.training.eval_schedule import eval_schedule, with_schedule

if TYPE_CHECKING:
    from xdoge.corpus.store import TokenStore

Languages = Mapping[str, Sequence[str]]
"""Sources of each language."""


ELASTIC = ("eval_every", "checkpoint_every", "keep_checkpoints")
"""Settings that may change when a run is resumed, because the weights do not depend on them."""


def refuse_unknown(key: str, chosen: Iterable[str], sources: Collection[str]) -> None:
    """Raise XDogeError if a setting names a source or language that is not in `sources`.

    Args:
        key: name of the setting, for the message.
        chosen: names in the setting.
        sources: sources or languages of the corpus.
    """
    for source in chosen:
        if source not in sources:
            raise XDogeError(f"{key} names {source!r}, which the corpus does not have{likely_name(source, sources)}")


class ProxySettings(Config):
    """Settings for training a proxy, in fits, baselines and swarms."""

    proxy: str = Field("125m", description="proxy model: the name of a recipe, or a YAML file with one")
    seed: Seed = Field(0, description="seed of the proxy's initial weights and of the order of the sequences")
    steps: int = Field(gt=0, description="optimiser steps [the recipe's]")
    batch_size: int = Field(
        gt=0, lt=MOST_SEQUENCES, description="sequences per step [the recipe's, but at least 2 per source]"
    )
    sequence_length: int = Field(ge=2, lt=MOST_SEQUENCES, description="tokens per sequence [the recipe's]")
    learning_rate: float = Field(gt=0, lt=1e6, description="peak learning rate of AdamW [the recipe's]")
    warmup: float = Field(
        0.05, ge=0, lt=1, description="fraction of the steps over which the learning rate rises to its peak"
    )
    final_learning_rate: float = Field(
        0.1, ge=0, le=1, description="learning rate at the end of the cosine decay, as a fraction of the peak"
    )
    weight_decay: float = Field(0.1, ge=0, description="weight decay of AdamW on matrices; norms and biases have none")
    clip: float = Field(1.0, gt=0, description="the proxy's gradient is scaled down to this norm if it is larger")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="precision of matrix products; auto is bfloat16 on a GPU that supports it, else float32"
    )
    device: str = Field("auto", description="device to compute on: auto, cpu, cuda or cuda:N")
    eval_sequences: int = Field(
        16,
        gt=0,
        description="maximum number of validation sequences per source [16, or fewer to keep validation below 10 % of "
        "the time]",
    )

    @classmethod
    def for_store(cls, store: TokenStore, options: Mapping[str, Any], *, where: str = "settings") -> Self:
        """Return settings that are completed from the recipe and the corpus, and checked against the store.

        Args:
            store: token store to train on.
            options: any of the fields. The others get defaults.
            where: beginning of error messages, such as the file from which the settings were read.

        Raises:
            XDogeError: a setting is unknown or not allowed, or does not suit the store.
        """
        settings = cls.for_sources(store.languages, options, where=where)
        if "eval_every" in cls.model_fields:
            schedule = eval_schedule(
                settings.model_dump(include=options.keys() & cls.model_fields.keys()),
                steps=settings.steps,
                batch_size=settings.batch_size,
                available=store.sequence_counts(settings.sequence_length, split="validation").values(),
                most=settings.eval_sequences,
            )
            settings = with_schedule(settings, schedule)
        for source, count in store.sequence_counts(settings.sequence_length).items():
            if count < settings.least_sequences:
                raise XDogeError(
                    f"{source} is too short: its {store.tokens()[source]} tokens make {count} sequences of "
                    f"{settings.sequence_length}, and at least {settings.least_sequences} are needed. "
                    "Lower sequence_length or leave it out."
                )
        settings.check_store(store)
        return settings

    @classmethod
    def for_sources(cls, languages: Languages, options: Mapping[str, Any], *, where: str = "settings") -> Self:
        """Return settings for these sources without a store, so that nothing about the text is checked.

        Args:
            languages: sources of each language.
            options: any of the fields. The others get defaults.
            where: beginning of error messages.

        Raises:
            XDogeError: a setting is unknown or not allowed.
        """
        k = sum(map(len, languages.values()))
        proxy = str(options.get("proxy", cls.model_fields["proxy"].default))
        recipe_named = proxy in recipe_names() or Path(proxy).suffix in (".yaml", ".yml")
        if not recipe_named and (Path(proxy).is_dir() or "/" in proxy):
            raise XDogeError(
                f"{argument('proxy')} {proxy!r} is no recipe; this command trains a proxy from scratch, by a recipe "
                f"({', '.join(recipe_names())}) or a .yaml file of one. A swarm can continue from a trained model."
            )
        recipe = load_recipe(proxy)
        steps = count_or(recipe.steps, options.get("steps", recipe.steps))
        values = {
            **{key: getattr(recipe, key) for key in ("steps", "sequence_length", "learning_rate")},
            "batch_size": max(recipe.batch_size, 2 * k),
            **cls.defaults(options, steps, k),
            **options,
        }
        settings = cls.parse(values, where=where)
        settings.check_sources(languages)
        return settings

    @classmethod
    def defaults(cls, options: Mapping[str, Any], steps: int, k: int) -> dict[str, Any]:
        """Return defaults of a subclass's settings that depend on the number of steps and on k sources."""
        return {}

    @property
    def least_sequences(self) -> int:
        """Smallest number of sequences that each source must have."""
        return 1

    def check_sources(self, languages: Languages) -> None:
        """Raise XDogeError if the settings do not suit these sources. Subclasses override it."""

    def check_store(self, store: TokenStore) -> None:
        """Raise XDogeError if the settings do not suit this store. Subclasses override it."""

    def sequences_seen(self, store: TokenStore) -> dict[str, int]:
        """Return the number of sequences per source that the proxy can read: all of them."""
        return store.sequence_counts(self.sequence_length)

    @property
    def proxy_tokens(self) -> int:
        """Tokens that one proxy trains on."""
        return self.steps * self.batch_size * self.sequence_length

    @property
    def memory_advice(self) -> str:
        """End of the error message if a step needs more memory than the device has."""
        return (
            f"with {self.batch_size} sequences of {self.sequence_length} tokens at once; lower "
            f"{argument('batch_size')} or take a smaller {argument('proxy')}"
        )

    def training_flops(self, recipe: Recipe, store: TokenStore, tokens: int) -> int:
        """Return the FLOPs of training on `tokens` tokens. A forward pass alone is a third of them."""
        return training_flops(recipe, tokens, sequence_length=self.sequence_length, vocab_size=store.vocab_size)

    def learning_flops(self, recipe: Recipe, store: TokenStore) -> int:
        """Return the exact FLOPs of learning weights with these settings, computed in advance.

        They include all models that are trained or run to learn the weights. weights.json has them as
        `proxy["flops"]`.
        """
        return self.training_flops(recipe, store, self.proxy_tokens)
