"""The settings of a study.yaml, and its strategies with their costs, checked against the store."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, field_validator

from xdoge.baselines import METHODS, BaselineSettings
from xdoge.baselines.options import RegmixSettings
from xdoge.config import Config, Seed
from xdoge.errors import XDogeError, require
from xdoge.fit.settings import INITIAL, FitSettings
from xdoge.laws.problem import FORMS
from xdoge.laws.swarm_settings import SwarmSettings
from xdoge.mixtures.mixture import DEFAULT_MAX_EPOCHS
from xdoge.mixtures.strategies import STRATEGIES, strategy_weights
from xdoge.mixtures.weights import Level, WeightSet
from xdoge.models.initial_model import InitialModel
from xdoge.models.recipes import load_recipe, recipe_names

if TYPE_CHECKING:
    from xdoge.corpus.store import TokenStore

FIT = "fit"
LAW = "law"
KINDS = (*STRATEGIES, FIT, LAW, *METHODS)

BudgetKind = Literal["tokens", "flops"]
"""What the models of a comparison have the same number of."""

Passes = Annotated[
    Annotated[float, Field(gt=0)] | None, BeforeValidator(lambda value: None if value == "none" else value)
]


class StudySpec(Config):
    """The content of study.yaml. The recipe of the model decides settings of the training that are left out."""

    store: Path = Field(description="token store; relative paths start at the folder of STUDY.yaml")
    proxy: str = Field(description="proxy of the strategies that learn: the name of a recipe, or a YAML file with one")
    model: str = Field(
        description="model that is trained on every mixture: the name of a recipe, a YAML file with one, or a "
        "trained model"
    )
    seeds: tuple[Seed, ...] = Field(
        min_length=1,
        description="list of seeds; with each, one proxy and one model per strategy are trained. A seed sets the "
        "initial weights and the order of the text",
    )
    steps: int | None = Field(
        None,
        gt=0,
        description="training steps of each model at equal tokens; required if model is a trained model [the recipe's]",
    )
    batch_size: int | None = Field(None, gt=0, description="sequences per training step [the model's]")
    sequence_length: int | None = Field(None, ge=2, description="tokens per training sequence [the model's]")
    max_epochs: Passes = Field(
        DEFAULT_MAX_EPOCHS,
        description="maximum number of epochs of a source, or none; a strategy may have its own [4]",
    )
    relative_to: str = Field("uniform", description="strategy to which all others are compared")
    compare: tuple[BudgetKind, ...] = Field(
        ("tokens", "flops"), min_length=1, description="what is equal for all strategies: tokens, flops or both [both]"
    )
    learning: dict[str, Any] = Field(
        default_factory=dict,
        description="settings that all strategies of kind fit, doremi, regmix and doge share [none]",
    )
    swarm: dict[str, Any] = Field(
        default_factory=dict,
        description="settings of `xdoge swarm` for the swarm that all strategies of kind law share [none]",
    )
    training: dict[str, Any] = Field(default_factory=dict, description="other settings of `xdoge train` [none]")
    evaluation: dict[str, Any] = Field(
        default_factory=dict, description="settings of the perplexity, as in `xdoge eval` [none]"
    )
    strategies: dict[str, dict[str, Any]] = Field(
        min_length=1, description="a mapping of NAME: {kind: KIND, SETTING: VALUE, ...}"
    )

    @field_validator("compare", mode="before")
    @classmethod
    def _one_or_both(cls, value: Any) -> Any:
        return {"both": get_args(BudgetKind)}.get(value, (value,)) if isinstance(value, str) else value

    @field_validator("seeds", "compare")
    @classmethod
    def _once(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if twice := [value for value in dict.fromkeys(values) if values.count(value) > 1]:
            raise ValueError(f"{twice[0]} is given twice")
        if any(isinstance(value, int) and value < 0 for value in values):
            raise ValueError(f"{list(values)} must be >= 0")
        return values

    @field_validator("strategies")
    @classmethod
    def _nameable(cls, strategies: dict[str, Any]) -> dict[str, Any]:
        for name in strategies:
            if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
                raise ValueError(f"the name {name!r} may contain only letters, digits, - _ and .")
        return strategies


class _BySize(Config):
    """Settings of a strategy that computes weights from the sizes of the sources."""

    level: Level = "languages"
    temperature: float | None = None


class LawSettings(Config):
    """Settings of a strategy that uses the best mixture under a mixture law. They are options of `xdoge optimize`."""

    form: Literal[FORMS] = "auto"  # type: ignore[valid-type]
    objective: Literal["mean", "worst"] = "mean"
    no_worse_than: str | None = None
    mean_no_worse_than: str | None = None
    force_optimum: bool = False

    @property
    def options(self) -> list[str]:
        """Return the options that follow `xdoge optimize LAW`."""
        limits = {"--no-worse-than": self.no_worse_than, "--mean-no-worse-than": self.mean_no_worse_than}
        words = [word for option, limit in limits.items() if limit is not None for word in (option, limit)]
        return ["--objective", self.objective, *words, *(["--force-optimum"] if self.force_optimum else [])]

    def check(self) -> None:
        """Raise XDogeError if a limit cannot be read, or if the library of the form is missing."""
        from xdoge.laws.optimize import parse_limit

        for key in ("no_worse_than", "mean_no_worse_than"):
            parse_limit(key, getattr(self, key))
        if self.form == "lightgbm":
            require("baselines", "lightgbm")


class _OwnEpochs(Config, extra="ignore"):
    max_epochs: Passes = None


@dataclass(frozen=True)
class Strategy:
    """A way to choose weights.

    Attributes:
        name: name in the study.
        kind: one of `KINDS`.
        flops: FLOPs of learning the weights with one seed, or for a law of the whole swarm; 0 if nothing is learned.
        max_epochs: most passes over a source in its mixtures.
        level: whether languages or sources share the budget under that cap. Only strategies that compute weights from
            sizes, and laws, have a level.
        weights: weights computed from sizes, the same for every seed; None if the strategy learns.
        settings: settings of a strategy that learns, as in study.yaml.
        learns_from: contents of the files that the settings name: the proxy's recipe and the reference's weights.
        law: settings of a strategy with a law, whose weights are the same for every seed; None for any other.
    """

    name: str
    kind: str
    flops: int = 0
    max_epochs: float | None = None
    level: Level | None = None
    weights: WeightSet | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    learns_from: Mapping[str, Any] = field(default_factory=dict)
    law: LawSettings | None = None

    @property
    def seeded(self) -> bool:
        """Whether the weights differ between seeds."""
        return self.weights is None and self.law is None


def read_swarm(
    spec: StudySpec, store: TokenStore, folder: Path, *, budget_tokens: int, where: str
) -> SwarmSettings | None:
    """Return the settings of the swarm that all laws of a study share; None if the study has no law.

    Args:
        spec: the study.
        store: the token store.
        folder: folder to which paths of recipes are relative.
        budget_tokens: default of the budget that the law is for.
        where: name of the study in error messages.

    Raises:
        XDogeError: a setting is unknown or not allowed, or the store has too little text for it.
    """
    if not any(entry.get("kind") == LAW for entry in spec.strategies.values()):
        return None
    common = {"proxy": spec.proxy, "budget_tokens": budget_tokens, "max_epochs": spec.max_epochs}
    values = {**common, **spec.swarm}
    values["proxy"] = model_path(str(values["proxy"]), folder)
    if values["max_epochs"] == "none":
        values["max_epochs"] = None
    return SwarmSettings.for_store(store, values, where=f"{where}: swarm")


def read_strategies(
    spec: StudySpec, store: TokenStore, folder: Path, *, swarm: SwarmSettings | None, where: str
) -> dict[str, Strategy]:
    """Return every strategy by name, in the order of the study. Paths of recipes are relative to `folder`.

    Every law has the cost of the whole `swarm`, since a single law would need it too.

    Raises:
        XDogeError: a kind or setting is unknown, or does not fit the store. The message names the strategy.
    """
    strategies = {}
    for name, entry in spec.strategies.items():
        here, settings = f"{where}: strategies.{name}", dict(entry)
        kind = settings.pop("kind", None)
        if kind not in KINDS:
            raise XDogeError(f"{here}: kind is {kind!r}; it must be one of {', '.join(KINDS)}.")
        epochs = _OwnEpochs.parse(settings, where=here).max_epochs if "max_epochs" in settings else spec.max_epochs
        settings.pop("max_epochs", None)
        if kind == LAW:
            law = LawSettings.parse(settings, where=here)
            try:
                law.check()
            except XDogeError as error:
                raise XDogeError(f"{here}: {error.message}") from error
            assert swarm
            proxy = InitialModel.find(swarm.proxy)
            strategies[name] = Strategy(
                name,
                kind,
                flops=swarm.flops(store.vocab_size),
                max_epochs=epochs,
                level=swarm.level,
                learns_from={"proxy": proxy.to_config() | proxy.pin()},
                law=law,
            )
            continue
        if kind not in STRATEGIES:
            complete = {"proxy": spec.proxy, **spec.learning, **settings}
            complete["proxy"] = recipe_path(str(complete["proxy"]), folder)
            reference, colon, allowance = str(complete.get("no_worse_than") or "").rpartition(":")
            if colon and reference not in STRATEGIES:
                complete["no_worse_than"] = f"{_from(folder, reference)}:{allowance}"
            if complete.get("initial", "languages") not in INITIAL:
                complete["initial"] = _from(folder, str(complete["initial"]))
            strategies[name] = _learned(name, kind, complete, store, epochs, seed=spec.seeds[0], where=here)
            continue
        by_size = _BySize.parse(settings, where=here)
        try:
            weights = strategy_weights(kind, store.tokens(), level=by_size.level, temperature=by_size.temperature)
        except XDogeError as error:
            raise XDogeError(f"{here}: {error.message}") from error
        strategies[name] = Strategy(name, kind, max_epochs=epochs, level=by_size.level, weights=weights)
    if spec.relative_to not in strategies:
        raise XDogeError(
            f"{where}: relative_to is {spec.relative_to!r}; name one of its strategies: {', '.join(strategies)}."
        )
    return strategies


def _learned(
    name: str,
    kind: str,
    values: dict[str, Any],
    store: TokenStore,
    max_epochs: float | None,
    *,
    seed: int,
    where: str,
) -> Strategy:
    if "seed" in values:
        raise XDogeError(f"{where}: a strategy has no setting seed; it is trained with each of the study's seeds.")
    settings: FitSettings | BaselineSettings
    learns_from: dict[str, Any] = {}
    try:
        if kind == FIT:
            settings = FitSettings.for_store(store, {"seed": seed, **values}, where="settings")
            reference = settings.target_rule(store).reference
            learns_from["reference"] = None if reference is None else reference.tolist()
            learns_from["initial"] = settings.initial_weights(store).tolist()
        else:
            settings = METHODS[kind].for_store(store, {"seed": seed, **values}, where="settings")
    except XDogeError as error:
        raise XDogeError(f"{where}: {error.message.removeprefix('settings: ')}") from error
    if isinstance(settings, RegmixSettings):
        settings.require_libraries()
    recipe = load_recipe(settings.proxy)
    learns_from["proxy"] = recipe.model_dump(mode="json")
    flops = settings.learning_flops(recipe, store)
    return Strategy(name, kind, flops=flops, max_epochs=max_epochs, settings=values, learns_from=learns_from)


def model_path(name: str, folder: Path) -> str:
    """Return the path of a recipe's file or of a model's folder, relative to `folder`, as an absolute path.

    Names of recipes and of models on the Hub stay as they are.
    """
    return _from(folder, name) if name not in recipe_names() and (folder / name).is_dir() else recipe_path(name, folder)


def recipe_path(name: str, folder: Path) -> str:
    """Return a recipe's name as it is, and the path of a recipe's file, relative to `folder`, as an absolute path."""
    return name if name in recipe_names() or Path(name).suffix not in (".yaml", ".yml") else _from(folder, name)


def _from(folder: Path, path: str) -> str:
    return str((folder / path).resolve())
