"""Settings of a training run, their defaults from the model and the mixture, and checks."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict

from pydantic import Field, field_validator

from xdoge.config import MOST_SEQUENCES, MOST_WORKERS, Config, Seed, count_or
from xdoge.errors import XDogeError, argument
from xdoge.mixtures.mixture import Mixture
from xdoge.models.initial_model import InitialModel
from xdoge.training.eval_schedule import eval_schedule, with_schedule

if TYPE_CHECKING:
    from xdoge.corpus.store import TokenStore

Tracker = Literal["tensorboard", "wandb", "trackio"]

ELASTIC = (
    "per_device_batch_size",
    "accumulation",
    "activation_checkpointing",
    "device",
    "workers",
    "checkpoint_every",
    "keep_checkpoints",
    "report_to",
    "eval_every",
    "eval_on_start",
)
"""Settings that may change when a run is resumed, because results depend on them only by rounding."""


class TrainSettings(Config):
    """Every setting of `xdoge train`, with its final value.

    `for_run` fills in what the user left out. Square brackets in a description contain the default that it computes.
    docs/explanation/decisions.md gives the reasons for the defaults.
    """

    model: str = Field(description="a recipe, or the folder or Hub name of a causal language model to continue from")
    seed: Seed = Field(
        0, description="seed of a recipe's initial weights and of dropout; the order of the text comes from the mixture"
    )
    steps: int = Field(gt=0, description="optimiser steps [all that the mixture has tokens for]")
    batch_size: int = Field(
        gt=0,
        lt=MOST_SEQUENCES,
        description="sequences per step, over all processes [the recipe's; 32 for continual pre-training]",
    )
    sequence_length: int = Field(
        ge=2,
        lt=MOST_SEQUENCES,
        description="tokens per sequence [the mixture's, if it was planned with one; else the recipe's, or the "
        "model's context up to 2048]",
    )
    documents: Literal["ignore", "separate"] = Field(
        "ignore",
        description="with separate, tokens do not attend to earlier documents in their sequence, in training and "
        "validation; with ignore, they do",
    )

    learning_rate: float = Field(
        gt=0,
        lt=1e6,
        description="peak learning rate of AdamW [the recipe's; for continual pre-training half of GPT-3's at that "
        "size]",
    )
    warmup: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="fraction of the steps over which the learning rate rises to its peak [0.05; 0.01 for continual "
        "pre-training]",
    )
    final_learning_rate: float = Field(
        0.1, ge=0, le=1, description="learning rate at the end of the cosine decay, as a fraction of the peak"
    )
    weight_decay: float = Field(0.1, ge=0, description="weight decay of AdamW on matrices; norms and biases have none")
    clip: float = Field(1.0, gt=0, description="the gradient is scaled down to this norm if it is larger")
    train_only: str | None = Field(
        None, description="regular expression; only parameters whose names contain a match are trained"
    )

    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="precision of matrix products (weights stay float32); auto is bfloat16 on a GPU that supports it, "
        "else float32",
    )
    activation_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass; takes less memory and more time"
    )
    device: Literal["auto", "cpu"] = Field("auto", description="device to compute on")
    per_device_batch_size: int | None = Field(
        None, gt=0, description="sequences per forward pass on each device [batch_size / processes / accumulation]"
    )
    accumulation: int | None = Field(
        None, gt=0, description="backward passes per step [1, or batch_size / processes / per_device_batch_size]"
    )
    workers: int = Field(
        0, ge=0, le=MOST_WORKERS, description="data loading processes per device; 0 loads in the training process"
    )

    eval_every: int = Field(
        gt=0,
        description="steps between validations [a tenth of the steps, or more to keep validation below 10 % of the "
        "time]",
    )
    eval_on_start: bool = Field(
        description="validate before the first step [yes, if validation stays below 10 % of the time]"
    )
    eval_sequences: int = Field(
        64,
        gt=0,
        description="maximum number of validation sequences per source [64, or fewer to keep validation below 10 % of "
        "the time]",
    )
    checkpoint_every: int = Field(gt=0, description="steps between checkpoints [a twentieth of the steps]")
    keep_checkpoints: int = Field(2, gt=0, description="number of latest checkpoints to keep")
    report_to: tuple[Tracker, ...] = Field(
        (), description="trackers that also get the metrics: tensorboard, wandb, trackio, or a list of them"
    )

    @field_validator("report_to", mode="before")
    @classmethod
    def _one_tracker(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @classmethod
    def for_run(
        cls, mixture: Mixture, store: TokenStore, values: Mapping[str, Any], *, where: str = "settings"
    ) -> Self:
        """Return the user's settings, completed with defaults from the model and the mixture.

        Args:
            mixture: mixture to train on.
            store: token store of the mixture.
            values: any of the fields, at least `model`. The others get defaults.
            where: beginning of error messages, such as the file from which the settings were read.

        Raises:
            XDogeError: `model` is missing or cannot be trained, or a setting is unknown or not allowed. Or the mixture
                was planned for another store or sequence length, or has too few tokens for the steps.
        """
        if "model" not in values:
            example = "a recipe such as 125m, or the folder or Hub name of a model"
            raise XDogeError(f"{argument('model')} is missing: {example}.")
        initial = InitialModel.find(str(values["model"]))
        check_mixture(mixture, store)
        planned = {"sequence_length": mixture.sequence_length} if mixture.sequence_length else {}
        filled = {**initial.defaults(), **planned, **values}
        length, batch = (max(1, count_or(1, filled[key])) for key in ("sequence_length", "batch_size"))
        if initial.model:
            initial.model.check_length("sequence_length", length)
        if planned and length > 1 and length != mixture.sequence_length:
            raise XDogeError(
                f"{argument('sequence_length')} is {length:,}, but {mixture.name!r} was planned for whole "
                f"sequences of {mixture.sequence_length:,} tokens; leave it out, or plan the mixture with "
                f"sequences of {length:,}."
            )
        total = mixture.budget_tokens // length
        if total < batch:
            raise XDogeError(
                f"{mixture.name!r} has {total:,} sequences of {length:,} tokens, less than one "
                f"{argument('batch_size')} of {batch:,}."
            )
        steps = count_or(1, values.get("steps", total // batch))
        every = {"eval_every": 1, "eval_on_start": True, "checkpoint_every": max(1, steps // 20)}
        settings = cls.parse({"steps": steps, **every, **filled}, where=where)
        schedule = eval_schedule(
            settings.model_dump(include=filled.keys() & cls.model_fields.keys()),
            steps=settings.steps,
            batch_size=batch,
            available=store.sequence_counts(length, split="validation").values(),
            most=settings.eval_sequences,
            on_start=True,
        )
        settings = with_schedule(settings, schedule)
        if settings.steps * batch > total:
            raise XDogeError(
                f"{argument('steps')} {settings.steps:,} × batch_size {batch:,} are {settings.steps * batch:,} "
                f"sequences of {length:,} tokens, more than the {total:,} that {mixture.name!r} was planned for; take "
                f"at most {total // batch:,} steps, or plan a larger budget."
            )
        for tracker in settings.report_to:
            if importlib.util.find_spec(tracker) is None:
                raise XDogeError(
                    f"{argument('report_to')} names {tracker}, which is not installed; pip install {tracker}."
                )
        return settings


class TrainValues(TypedDict, total=False):
    """Keyword arguments of `train`: any of the settings. `TrainSettings` describes them."""

    model: str
    seed: int
    steps: int
    batch_size: int
    sequence_length: int
    documents: Literal["ignore", "separate"]
    learning_rate: float
    warmup: float
    final_learning_rate: float
    weight_decay: float
    clip: float
    train_only: str | None
    precision: Literal["auto", "float32", "bfloat16"]
    activation_checkpointing: bool
    device: Literal["auto", "cpu"]
    per_device_batch_size: int | None
    accumulation: int | None
    workers: int
    eval_every: int
    eval_on_start: bool
    eval_sequences: int
    checkpoint_every: int
    keep_checkpoints: int
    report_to: Tracker | Sequence[Tracker]


@dataclass(frozen=True)
class BatchSplit:
    """Division of the global batch into per_device × processes × accumulation sequences.

    Attributes:
        processes: number of processes.
        per_device: sequences per forward pass of a process.
        accumulation: forward passes per step.
    """

    processes: int
    per_device: int
    accumulation: int

    @classmethod
    def of(cls, settings: TrainSettings) -> BatchSplit:
        """Return the division of the batch among the processes that torchrun or accelerate started.

        Raises:
            XDogeError: the product is not the global batch, which is the sampler's block.
        """
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        batch, device, accumulation = settings.batch_size, settings.per_device_batch_size, settings.accumulation
        accumulation = accumulation or max(1, batch // (processes * (device or batch)))
        device = device or max(1, batch // (processes * accumulation))
        if device * processes * accumulation != batch:
            raise XDogeError(
                f"per_device_batch_size {device} × {processes} processes × accumulation {accumulation} = "
                f"{device * processes * accumulation}, but batch_size is {batch}; they must be equal: "
                + (
                    f"start a number of processes that divides {batch}, or use another batch_size."
                    if batch % processes
                    else f"choose per_device_batch_size and accumulation so that their product is {batch // processes}."
                )
            )
        return cls(processes, device, accumulation)


def check_mixture(mixture: Mixture, store: TokenStore) -> None:
    """Raise an error if a mixture was planned for another store.

    Raises:
        XDogeError: the hash or the names of sources differ, or a source has fewer tokens than the plan assumes.
    """
    planned = mixture.corpus.get("sha256")
    if planned is not None and planned != store.sha256:
        raise XDogeError(
            f"mixture {mixture.name!r} was planned for the store {mixture.corpus.get('name')!r} with "
            f"SHA-256 {planned[:12]}, but {store.path} ({store.name!r}) has {store.sha256[:12]}; plan it "
            "again with xdoge mix."
        )
    if only := sorted(set(mixture.sources) ^ set(store.sources)):
        raise XDogeError(
            f"mixture {mixture.name!r} and {store.path} have different sources; only in one of them: {', '.join(only)}."
        )
    for source, tokens in store.tokens().items():
        available = mixture.sources[source].available_tokens
        if available > tokens:
            raise XDogeError(
                f"mixture {mixture.name!r} expects {source} to have {available:,} tokens, but "
                f"{store.path} has {tokens:,}; plan it again with xdoge mix."
            )
