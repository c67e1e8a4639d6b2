"""The plan of a study: its commands, the runs that each of them needs, and the steps that each model trains for."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import yaml

from xdoge.config import read_yaml
from xdoge.corpus.store import TokenStore
from xdoge.errors import XDogeError, require
from xdoge.eval.perplexity import PerplexitySettings
from xdoge.io import read_json, write_json
from xdoge.laws.swarm_settings import SwarmSettings
from xdoge.mixtures.mixture import Mixture
from xdoge.models.initial_model import InitialModel
from xdoge.study.attempts import attempts, failed_runs, refuse_changes
from xdoge.study.spec import FIT, BudgetKind, Strategy, StudySpec, model_path, read_strategies, read_swarm
from xdoge.train.settings import TrainSettings

SCHEMA = "xdoge.study-plan"

OWN = ("model", "seed", "steps", "batch_size", "sequence_length")
"""Settings of training that are top-level keys of study.yaml."""
SHOWN_OF_SWARM = ("proxy", "budget_tokens", "max_epochs")
"""Settings of a swarm that have their own options in `xdoge swarm`."""


@dataclass(frozen=True)
class Run:
    """One command of a study.

    Attributes:
        name: its path in the study's folder, such as "train/uniform/400-steps/seed-0".
        arguments: command-line arguments of `xdoge`.
        file: the last file that the command writes. It exists if and only if the run is finished.
        folder: run folder that `xdoge ... --resume` continues; None for a command that cannot be resumed.
        needs: names of the runs whose files it reads.
        flops: estimate of its FLOPs.
        parallel: whether the command takes --jobs. It then uses all jobs of the study.
    """

    name: str
    arguments: tuple[str, ...]
    file: Path
    folder: Path | None
    needs: tuple[str, ...]
    flops: int
    parallel: bool = False

    @property
    def finished(self) -> bool:
        """Whether the run is finished."""
        return self.file.exists()

    @property
    def command(self) -> str:
        """The command as a line for a shell."""
        return shlex.join(["xdoge", *self.arguments])


@dataclass(frozen=True)
class Trial:
    """One trained model: its strategy, its number of steps and its seed."""

    strategy: str
    steps: int
    seed: int

    @property
    def name(self) -> str:
        """Path of its files in the folders weights, mixtures, train and so on."""
        return f"{self.strategy}/{self.steps}-steps/seed-{self.seed}"


@dataclass(frozen=True)
class StudyPlan:
    """Strategies × seeds, each with the commands for its weights, mixture, training and perplexity."""

    path: Path
    spec: StudySpec
    store: TokenStore
    strategies: Mapping[str, Strategy]
    model: str
    initial: InitialModel
    swarm: SwarmSettings | None = None

    @classmethod
    def load(cls, path: Path | str, *, store: Path | str | None = None) -> Self:
        """Return the plan of a study.yaml, after all checks that are possible before the first run.

        Args:
            path: path of the study.yaml.
            store: token store to use instead of the one that study.yaml names.

        Raises:
            XDogeError: a key, strategy, setting, recipe, budget or the store is wrong.
        """
        path = Path(path)
        values = read_yaml(path) | ({} if store is None else {"store": str(store)})
        spec = StudySpec.parse(values, where=str(path))
        opened = TokenStore.open(path.parent / spec.store if store is None else spec.store)
        require("proxy", "torch", "transformers", "accelerate", "sentencepiece")
        try:
            model = model_path(spec.model, path.parent)
            initial = InitialModel.find(model)
            initial.check(opened, spec.sequence_length or initial.defaults()["sequence_length"])
        except XDogeError as error:
            raise XDogeError(f"{path}: model: {error.message}") from error
        if spec.steps is None and initial.recipe is None:
            raise XDogeError(
                f"{path}: steps is missing; give the number of steps for which each training continues from {model}."
            )
        plan = cls(path, spec, opened, {}, model, initial)
        swarm = read_swarm(
            spec, opened, path.parent, budget_tokens=plan.own_steps * plan.tokens_per_step, where=str(path)
        )
        strategies = read_strategies(spec, opened, path.parent, swarm=swarm, where=str(path))
        plan = replace(plan, strategies=strategies, swarm=swarm)
        plan._check()
        return plan

    def _check(self) -> None:
        """Raise XDogeError for settings that `xdoge train` or `xdoge eval` would refuse."""
        if taken := [key for key in OWN if key in self.spec.training]:
            raise XDogeError(
                f"{self.path}: training sets {taken[0]}, which is a key of the study itself; move it out of training."
            )
        if not self.languages:
            raise XDogeError(f"{self.path}: {self.store.path} has no validation text to measure the models on.")
        window = PerplexitySettings.parse(self.spec.evaluation, where=f"{self.path}: evaluation").window
        if window is not None and window > self.sequence_length:
            raise XDogeError(
                f"{self.path}: evaluation: window {window:,} is longer than the training sequences of "
                f"{self.sequence_length:,} tokens; lower it or leave it out."
            )
        for comparison in self.spec.compare:
            for strategy in self.strategies.values():
                where = f"{self.path}: strategies.{strategy.name}, equal {comparison}"
                steps, k = self.steps(comparison, strategy.name), len(self.store.sources)
                weights = strategy.weights or dict.fromkeys(self.store.sources, 1 / k)
                try:
                    mixture = Mixture.plan(
                        weights,
                        available_tokens=self.store.tokens(),
                        budget_tokens=steps * self.tokens_per_step,
                        max_epochs=strategy.max_epochs,
                        level=strategy.level,
                        sequence_length=self.sequence_length,
                    )
                    own = {"model": self.model, "steps": steps, "batch_size": self.batch_size}
                    values = {**own, **self._training(steps)}
                    TrainSettings.for_run(mixture, self.store, values, where="training")
                except XDogeError as error:
                    raise XDogeError(f"{where}: {error.message}") from error

    @property
    def sequence_length(self) -> int:
        """Tokens per sequence of training."""
        length: int = self.spec.sequence_length or self.initial.defaults()["sequence_length"]
        return length

    @property
    def batch_size(self) -> int:
        """Sequences per step of training."""
        size: int = self.spec.batch_size or self.initial.defaults()["batch_size"]
        return size

    @property
    def own_steps(self) -> int:
        """Steps of training at equal tokens."""
        if self.spec.steps is not None:
            return self.spec.steps
        assert self.initial.recipe  # checked in `load`
        return self.initial.recipe.steps

    @property
    def tokens_per_step(self) -> int:
        """Tokens that a step of training reads."""
        return self.batch_size * self.sequence_length

    @property
    def learning_flops(self) -> int:
        """FLOPs of learning weights, for the strategy that needs most."""
        return max(strategy.flops for strategy in self.strategies.values())

    @property
    def total_flops(self) -> int:
        """FLOPs of each strategy at equal FLOPs: the training at equal tokens plus `learning_flops`."""
        return self.learning_flops + self.training_flops(self.own_steps * self.tokens_per_step)

    @property
    def languages(self) -> tuple[str, ...]:
        """Languages that have validation text."""
        documents, languages = self.store.documents("validation"), self.store.languages
        return tuple(name for name, sources in languages.items() if any(documents[source] for source in sources))

    def training_flops(self, tokens: int) -> int:
        """Return the FLOPs of training the model on that many tokens."""
        length, vocab_size = self.sequence_length, self.store.vocab_size
        return self.initial.training_flops(tokens, sequence_length=length, vocab_size=vocab_size)

    def steps(self, comparison: BudgetKind, strategy: str) -> int:
        """Return the number of steps that a strategy's models train for.

        At equal tokens, all models train for the same number of steps. At equal FLOPs, every strategy has
        `total_flops`. It spends some of them on learning its weights, and the rest on training, in whole steps.
        """
        steps = self.own_steps
        if comparison == "flops":
            spare = self.learning_flops - self.strategies[strategy].flops
            steps += spare // self.training_flops(self.tokens_per_step)
        return steps

    def trials(self) -> dict[Trial, None]:
        """Return every model once, as the keys of a dict.

        They are in the order of the seeds, so that after a stop the finished models can be compared.
        """
        return dict.fromkeys(
            Trial(name, self.steps(comparison, name), seed)
            for seed in self.spec.seeds
            for comparison in self.spec.compare
            for name in self.strategies
        )

    def weights_run(self, strategy: str, seed: int) -> str | None:
        """Return the name of the run that learns a strategy's weights; None if it learns nothing."""
        if self.strategies[strategy].law:
            return f"weights/{strategy}"
        return f"weights/{strategy}/seed-{seed}" if self.strategies[strategy].seeded else None

    def weights_file(self, out: Path, strategy: str, seed: int) -> Path:
        """Return the path of the weights.json of a strategy and seed."""
        return out / (self.weights_run(strategy, seed) or f"weights/{strategy}") / "weights.json"

    def runs(self, out: Path | str) -> dict[str, Run]:
        """Return every run by name, each after the runs that it needs."""
        out = Path(out)
        runs = self.law_runs(out)
        for seed in self.spec.seeds:
            runs += [self._learning(out, name, seed) for name, strategy in self.strategies.items() if strategy.seeded]
        for trial in self.trials():
            runs += self._trial(out, trial)
        return {run.name: run for run in runs}

    def commands(self, out: Path | str) -> list[str]:
        """Return the commands in order, as lines for a shell."""
        return [run.command for run in self.runs(out).values()]

    def _learning(self, out: Path, name: str, seed: int) -> Run:
        strategy, run = self.strategies[name], f"weights/{name}/seed-{seed}"
        settings = dict(strategy.settings)
        method = ["fit-weights"] if strategy.kind == FIT else ["baseline", strategy.kind]
        options = ["--out", str(out / run), "--proxy", settings.pop("proxy"), "--seed", str(seed)]
        arguments = (*method, str(self.store.path), *options, *_assigned(settings))
        return Run(run, arguments, out / run / "weights.json", out / run, (), strategy.flops)

    def law_file(self, out: Path, form: str) -> Path:
        """Return the path of the law.json for a form."""
        return out / "laws" / f"{form}.json"

    def law_runs(self, out: Path) -> list[Run]:
        """Return the runs of the swarm, of each form of law that a strategy uses, and of each strategy's optimum."""
        if self.swarm is None:
            return []
        folder, optima = out / "swarm", {name: strategy.law for name, strategy in self.strategies.items()}
        budget, cap = str(self.swarm.budget_tokens), _passes(self.swarm.max_epochs)
        options = ("--proxy", self.swarm.proxy, "--budget", budget, "--max-epochs", cap)
        others = {key: value for key, value in self.spec.swarm.items() if key not in SHOWN_OF_SWARM}
        arguments = ("swarm", str(self.store.path), "--out", str(folder), *options, *_assigned(others))
        flops = max(self.strategies[name].flops for name, law in optima.items() if law)
        runs = [Run("swarm", arguments, folder / "summary.json", folder, (), flops, parallel=True)]
        for form in dict.fromkeys(law.form for law in optima.values() if law):
            file = self.law_file(out, form)
            fit = ("fit-law", str(folder), "--form", form, "--out", str(file))
            runs.append(Run(f"laws/{form}", fit, file, None, ("swarm",), 0))
        for name, law in optima.items():
            if law:
                file, most = self.weights_file(out, name, 0), self.strategies[name].max_epochs
                capped = () if most is None else ("--max-epochs", _passes(most))
                optimize = ("optimize", str(self.law_file(out, law.form)), *law.options, *capped, "--out", str(file))
                runs.append(Run(f"weights/{name}", optimize, file, None, (f"laws/{law.form}",), 0))
        return runs

    def _trial(self, out: Path, trial: Trial) -> list[Run]:
        strategy, store, tokens = self.strategies[trial.strategy], str(self.store.path), self.tokens_per_step
        mixture, train, results = (f"{kind}/{trial.name}" for kind in ("mixtures", "train", "results"))
        planned, measured = out / f"{mixture}.json", out / f"{results}.json"
        mix = (
            *("mix", str(self.weights_file(out, trial.strategy, trial.seed)), "--store", store),
            *("--budget", str(trial.steps * tokens), "--max-epochs", _passes(strategy.max_epochs)),
            *(("--level", strategy.level) if strategy.level else ()),
            *("--sequence-length", str(self.sequence_length), "--seed", str(trial.seed), "--out", str(planned)),
        )
        training = (
            *("train", str(planned), "--store", store, "--out", str(out / train), "--model", self.model),
            *("--steps", str(trial.steps), "--batch-size", str(self.batch_size), "--seed", str(trial.seed)),
            *_assigned(self._training(trial.steps)),
        )
        model = f"{trial.name}={out / train}"
        measuring = ("eval", model, "--store", store, "--out", str(measured), *_assigned(self.spec.evaluation))
        learned = self.weights_run(trial.strategy, trial.seed)
        cost = self.training_flops(trial.steps * tokens)
        return [
            Run(mixture, mix, planned, None, (learned,) if learned else (), 0),
            Run(train, training, out / train / "train.json", out / train, (mixture,), cost),
            Run(results, measuring, measured, None, (train,), self.training_flops(self._evaluation_tokens) // 3),
        ]

    @property
    def _evaluation_tokens(self) -> int:
        """Return an estimate of the tokens that the model reads in an evaluation, in overlapping windows."""
        settings = PerplexitySettings.parse(self.spec.evaluation, where="evaluation")
        window = settings.window or self.sequence_length
        documents, tokens = self.store.documents("validation"), self.store.tokens("validation")
        most = settings.max_documents or max(documents.values())
        measured = sum(tokens[source] * min(1.0, most / n) for source, n in documents.items() if n)
        return round(measured * window / (settings.stride or window // 2))

    def _training(self, steps: int) -> dict[str, Any]:
        """Return the other settings of a training. It validates only at its end; the study measures each model."""
        return {"sequence_length": self.sequence_length, "eval_every": steps, **self.spec.training}

    def begin(self, out: Path | str) -> dict[str, Run]:
        """Create the study's folder, or check that it belongs to this study; return the runs.

        If the settings of a failed run have changed, its folder is deleted.

        Raises:
            XDogeError: the folder has other content, or it has a run that the study no longer plans.
        """
        out, before, planned = Path(out), *self._plans(Path(out))
        runs = self.runs(out)
        for name in self.check(out):
            if folder := runs[name].folder:
                shutil.rmtree(folder, ignore_errors=True)
        if before != planned:  # tasks of one array do not write it again
            write_json(out / "plan.json", planned)
        for name, strategy in self.strategies.items():
            if strategy.weights and not (free := self.weights_file(out, name, 0)).exists():
                strategy.weights.save(free)
        return runs

    def check(self, out: Path | str) -> list[str]:
        """Check that a folder is empty or belongs to this study; return the failed runs whose settings changed.

        Raises:
            XDogeError: the folder has other content, or it has a run that the study no longer plans.
        """
        out, before, planned = Path(out), *self._plans(Path(out))
        if before is None:
            if out.exists() and (not out.is_dir() or any(out.iterdir())):
                raise XDogeError(f"{out} holds files that are not of a study; name a new or empty folder.")
            return []
        runs, tried = self.runs(out), attempts(out).keys()
        failed = {name for name in failed_runs(out) if name in runs and not runs[name].finished}
        idle = {name for name in before["runs"] if name not in tried and not any(out.glob(f"{name}*"))}
        return refuse_changes(out, self.path, before, planned, open_runs=failed, idle_runs=idle)

    def _plans(self, out: Path) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        """Return the plan in the folder, if any, and the plan of this study."""
        file = out / "plan.json"
        planned = {
            "schema": f"{SCHEMA}/1",
            "store": self.store.sha256,
            "model": self.initial.to_config() | self.initial.pin(),
            "learning": {
                name: dict(strategy.learns_from) for name, strategy in self.strategies.items() if strategy.learns_from
            },
            "runs": {name: self._portable(run) for name, run in self.runs("OUT").items()},
        }
        return read_json(file, schema=SCHEMA) if file.exists() else None, planned

    def _portable(self, run: Run) -> str:
        """Return the command of a run without the path of the store."""
        store = str(self.store.path)
        return shlex.join("STORE" if argument == store else argument for argument in run.arguments)


def _passes(max_epochs: float | None) -> str:
    """Return the value of the option --max-epochs."""
    return "none" if max_epochs is None else f"{max_epochs:g}"


def _assigned(settings: Mapping[str, Any]) -> list[str]:
    """Return settings as `--set` options of the command line."""
    options = []
    for key, value in settings.items():
        text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=2**31)
        options += ["--set", f"{key}={text.removesuffix(chr(10)).removesuffix(chr(10) + '...')}"]
    return options
