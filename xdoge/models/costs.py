"""Estimate the cost of training in advance: FLOPs, hours and node-hours of the runs in a plan.yaml.

The FLOPs of training on D tokens, forward and backward, are counted in two ways. A multiplication and an addition are
two FLOPs.

- **6 N D** is the usual approximation. For a recipe, N leaves out the embedding and the head, as in Kaplan et al. 2020
  (arXiv:2001.08361, section 2.1) and in the recipes' names. For a bare count such as "7B", N is that count. By custom
  it means all parameters (Hoffmann et al. 2022, arXiv:2203.15556).
- **exact** counts every matrix product of a Llama (`training_flops`), including attention and the head. With a large
  vocabulary, the head of a small proxy costs more than its layers.

Hours are computed from the exact count if a recipe gives the shape, else from 6 N D. If your achieved FLOP/s was
measured as tokens/s × 6 N, give `parameters` instead of `model`, because the exact count is larger.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from xdoge.config import Config
from xdoge.errors import XDogeError
from xdoge.models.flops import training_flops
from xdoge.models.recipes import load_recipe

Positive = Annotated[int, Field(gt=0)]


def _at_least_a_gigaflop(value: int) -> int:
    if value < 10**9:
        raise ValueError(f"{value} FLOP/s is too slow for a GPU; write FLOP/s such as 365T for 365 TFLOP/s")
    return value


Speed = Annotated[int, AfterValidator(_at_least_a_gigaflop)]


class Hardware(Config):
    """Hardware of the runs: GPUs per node, and FLOP/s of one GPU, either achieved or as peak × utilisation."""

    achieved: Speed | None = None
    peak: Speed | None = None
    utilisation: float | None = Field(default=None, ge=1e-6, le=1)
    gpus_per_node: int = Field(gt=0, lt=10**6)

    @model_validator(mode="after")
    def _one_speed(self) -> Self:
        named = self.achieved is not None, self.peak is not None, self.utilisation is not None
        if named not in ((True, False, False), (False, True, True)):
            raise ValueError("give either achieved, or peak and utilisation: FLOP/s per GPU such as 365T")
        return self

    @property
    def flops_per_gpu(self) -> float:
        """FLOP/s that one GPU achieves."""
        return float(self.achieved or (self.peak or 0) * (self.utilisation or 0))


class RunSpec(Config):
    """One entry of `runs` in plan.yaml. It gives a recipe, a parameter count, or the hours of a run."""

    model: str | None = None
    parameters: Positive | None = None
    hours: float | None = Field(default=None, ge=0.01, lt=1e12)
    tokens: Positive | None = None
    sequence_length: int | None = Field(default=None, ge=2)
    achieved: Speed | None = None
    nodes: float = Field(default=1, gt=0, lt=1e9)
    runs: int = Field(default=1, gt=0, lt=10**9)

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        kinds = ("model", "parameters", "hours")
        named = [kind for kind in kinds if getattr(self, kind) is not None]
        if len(named) != 1:
            raise ValueError(f"give one of {', '.join(kinds)} (got {' and '.join(named) or 'none'})")
        taken = {"model": ("tokens", "sequence_length", "achieved"), "parameters": ("tokens", "achieved"), "hours": ()}
        for key in ("tokens", "sequence_length", "achieved"):
            if getattr(self, key) is not None and key not in taken[named[0]]:
                raise ValueError(f"{key} has no effect in a row with {named[0]}; remove one of them")
        if self.parameters is not None and self.tokens is None:
            raise ValueError("tokens is missing; only a recipe has a default")
        return self


class PlanSpec(Config):
    """The content of plan.yaml."""

    hardware: Hardware | None = None
    vocab_size: Positive | None = None
    runs: dict[str, RunSpec] = Field(min_length=1)

    @field_validator("runs")
    @classmethod
    def _nameable(cls, runs: dict[str, RunSpec]) -> dict[str, RunSpec]:
        for name in runs:
            if not re.fullmatch(r"[\w/.-]+", name):
                raise ValueError(f"the name {name!r} may contain only letters, digits, - _ . and /")
        return runs


@dataclass(frozen=True)
class Cost:
    """A row of the plan. FLOPs, tokens and hours are those of a single run, and are not rounded."""

    name: str
    model: str | None  # recipe, as written
    parameters: int | None  # N: without embeddings for a recipe, as given otherwise
    tokens: int | None  # D
    flops_6nd: int | None
    flops_exact: int | None  # None where no shape is known
    flops_per_gpu: float | None  # FLOP/s
    hours: float
    nodes: float
    runs: int
    node_hours: float  # hours × nodes × runs

    def rounded(self) -> Cost:
        """Return the row as tables show it. Node-hours are computed from the rounded hours, so that the table adds up.

        Computed hours are rounded to integers from ten on, and below ten to hundredths, but at least to 0.01. Hours
        that the user gave and node-hours are rounded to hundredths.
        """
        whole = self.flops_per_gpu is not None and self.hours >= 10
        hours = float(round(self.hours)) if whole else max(round(self.hours, 2), 0.01)
        return replace(self, hours=hours, node_hours=round(hours * self.nodes * self.runs, 2))


def read_costs(path: Path | str) -> list[Cost]:
    """Return a row for each run in a plan.yaml, in its order.

    ```yaml
    hardware: {achieved: 365T, gpus_per_node: 4}   # or {peak: 989T, utilisation: 0.4, ...}: FLOP/s of one GPU
    vocab_size: 256000                             # for rows that name a recipe
    runs:
      proxies: {model: 125m, nodes: 0.25, runs: 5}   # tokens: the recipe's own, unless given; one GPU of a node's four
      targets: {parameters: 7B, tokens: 2T, nodes: 8, runs: 4}
      evaluations: {hours: 8, runs: 32}
    ```

    `achieved` in a run replaces the hardware's FLOP/s, for small models that achieve less.

    Raises:
        XDogeError: the file is not a plan, a run needs a value that is missing, or a recipe does not exist.
    """
    spec = PlanSpec.load(path)
    return [_cost(name, run, spec, where=f"{path}: runs.{name}") for name, run in spec.runs.items()]


def _cost(name: str, run: RunSpec, spec: PlanSpec, *, where: str) -> Cost:
    parameters = tokens = flops_6nd = exact = speed = None
    if run.hours is not None:
        hours = run.hours
    else:
        if spec.hardware is None:
            raise XDogeError(
                f"{where} needs hardware: for its hours add hardware: {{achieved: 365T, gpus_per_node: 4}}."
            )
        parameters, tokens, exact = _work(run, spec, where=where)
        flops_6nd = 6 * parameters * tokens
        speed = float(run.achieved or spec.hardware.flops_per_gpu)
        hours = (exact or flops_6nd) / (speed * _gpus(run, spec.hardware, where=where)) / 3600
    return Cost(
        name=name,
        model=run.model,
        parameters=parameters,
        tokens=tokens,
        flops_6nd=flops_6nd,
        flops_exact=exact,
        flops_per_gpu=speed,
        hours=hours,
        nodes=run.nodes,
        runs=run.runs,
        node_hours=hours * run.nodes * run.runs,
    )


def _gpus(run: RunSpec, hardware: Hardware, *, where: str) -> int:
    """Return the number of GPUs of a run. A run can use a part of a node, but not a part of a GPU."""
    exact = run.nodes * hardware.gpus_per_node
    if round(exact) < 1 or abs(exact - round(exact)) > 0.01:
        raise XDogeError(
            f"{where}.nodes: {run.nodes:g} nodes of {hardware.gpus_per_node} GPUs are {exact:g} GPUs; "
            "a whole number is needed."
        )
    return round(exact)


def _work(run: RunSpec, spec: PlanSpec, *, where: str) -> tuple[int, int, int | None]:
    """Return N, D and the exact FLOPs of a run that is not given in hours. The FLOPs are None without a recipe."""
    if run.model is None:
        return run.parameters or 0, run.tokens or 0, None
    try:
        recipe = load_recipe(run.model)
    except XDogeError as error:
        raise XDogeError(f"{where}.model: {error} For a bare count write parameters: 7B.") from error
    if spec.vocab_size is None:
        raise XDogeError(f"{where} needs vocab_size: for the cost of the recipe's head add vocab_size: 256000.")
    tokens = run.tokens or recipe.steps * recipe.batch_size * recipe.sequence_length
    length = run.sequence_length or recipe.sequence_length
    exact = training_flops(recipe, tokens, sequence_length=length, vocab_size=spec.vocab_size)
    return recipe.non_embedding_parameters, tokens, exact


def totals(costs: Sequence[Cost]) -> dict[str, float]:
    """Return the sums of runs and node_hours over all rows."""
    return {"runs": sum(cost.runs for cost in costs), "node_hours": math.fsum(cost.node_hours for cost in costs)}


def costs_to_dict(costs: Sequence[Cost]) -> dict[str, Any]:
    """Return rows and totals for JSON, without rounding."""
    return {"rows": [asdict(cost) for cost in costs], "totals": totals(costs)}
