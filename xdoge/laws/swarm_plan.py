"""The plan of a swarm: small trainings on designed mixtures, from which a mixture law is fitted.

The folder of a swarm holds `swarm.json`, which is the plan: settings, mixtures and the measured noise. It has a run
folder for each training under `runs/`, and `mixtures.csv` and `losses.csv` with the runs that did not diverge. The
held-out runs, which no law is fitted to, are in `held_out_mixtures.csv` and `held_out_losses.csv`.

Any number of processes may work on one folder. Each takes the next free run. Runs are planned in three stages:

1. *anchors*: equal, proportional and temperature shares. The first two have several seeds, for the repeat noise.
2. *design*: each language with a large share once and a small share once, then points of a D-optimal design.
3. *optimum*: points near the optimum of a law that is fitted to the earlier runs, without the held-out ones.

Every run sees the same part of each source. It is so small that a share means as many epochs as in the target run.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from xdoge._version import __version__
from xdoge.errors import XDogeError, argument
from xdoge.io import read_json, write_json, write_text
from xdoge.laws.design import candidates, candidates_near, contrasts, most_informative, prior_law
from xdoge.laws.problem import Floats, Problem
from xdoge.laws.scores import Scores, score
from xdoge.laws.transfer import read_affinity
from xdoge.mixtures.strategies import strategy_weights
from xdoge.models.initial_model import InitialModel
from xdoge.names import language_of
from xdoge.progress import OnNote, OnProgress, silent

if TYPE_CHECKING:
    from xdoge.corpus.store import TokenStore
    from xdoge.laws.law import MixtureLaw
    from xdoge.laws.swarm_run import RunResult

from xdoge.laws.swarm_settings import SwarmSettings, fewest_runs

SCHEMA = "xdoge.swarm"
Stage = Literal["anchors", "design", "optimum"]

BEYOND_CAP = 2.0
"""Factor by which mixtures of the design may exceed the cap on repetition. An optimum at the cap is then inside the
range of the runs."""
ALIKE = 0.15
"""Total variation below which proportional shares are too near to equal shares to be an anchor too."""
TEMPERATURE = 3.33
"""Temperature of the third anchor."""


@dataclass(frozen=True)
class PlannedRun:
    """One training of a swarm."""

    name: str
    stage: Stage
    seed: int
    shares: tuple[float, ...]
    held_out: bool = False


@dataclass(frozen=True)
class Noise:
    """Noise measured on the anchors: standard deviations of the mean loss over languages, in bits per byte.

    Attributes:
        repeats: standard deviation over seeds of one mixture.
        mixtures: standard deviation over mixtures, with the part due to seeds removed.
    """

    repeats: float
    mixtures: float

    @property
    def suffices(self) -> bool:
        """Whether mixtures differ more than seeds do."""
        return self.repeats < self.mixtures


@dataclass(frozen=True)
class HeldOut:
    """Scores of a law on the held-out runs.

    Attributes:
        runs: number of held-out runs.
        scores: scores of the predictions, in bits per byte.
        noise: standard deviation of the mean loss over seeds; None if unknown.
    """

    runs: int
    scores: Scores
    noise: float | None


@dataclass
class Swarm:
    """The plan of a swarm and its folder.

    Attributes:
        path: the folder.
        settings: the settings, with their final values.
        store_name: name of the token store.
        store_sha256: SHA-256 of the token store.
        units: names of the shares: languages or sources.
        members: the sources of each unit, with their parts of its share.
        languages: names of the evaluations.
        tokens: unique training tokens of each unit.
        runs: the runs planned so far.
        noise: noise of the anchors; None before they are trained.
        vocab_size: vocabulary size of the store's tokenizer.
        affinity: gradient affinity of a fit, shape (L, k); None without such a fit.
        seen_tokens: unique tokens of each unit that the proxies see; empty in a swarm of an earlier xdoge.
        proxy: identity of the model files that every run continues from; empty for a recipe.
        versions: versions of Python and the libraries when the swarm was started.
    """

    path: Path
    settings: SwarmSettings
    store_name: str
    store_sha256: str
    units: tuple[str, ...]
    members: dict[str, dict[str, float]]
    languages: tuple[str, ...]
    tokens: dict[str, int]
    runs: list[PlannedRun] = field(default_factory=list)
    noise: Noise | None = None
    vocab_size: int = 0
    affinity: Floats | None = None
    seen_tokens: dict[str, int] = field(default_factory=dict)
    proxy: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def plan(cls, store: TokenStore, settings: SwarmSettings, path: Path) -> Self:
        """Return a swarm with its anchors planned. It writes nothing."""
        counts = store.tokens()
        if settings.level == "languages":
            groups = {language: tuple(sources) for language, sources in store.languages.items()}
        else:
            groups = {source: (source,) for source in store.sources}
        members = {}
        for unit, sources in groups.items():
            total = sum(counts[source] for source in sources)
            members[unit] = {source: counts[source] / total for source in sources}
        seen = settings.sequences_seen(store)
        swarm = cls(
            path=path,
            settings=settings,
            store_name=store.name,
            store_sha256=store.sha256,
            units=tuple(groups),
            members=members,
            languages=tuple(store.languages),
            tokens={unit: sum(counts[source] for source in sources) for unit, sources in groups.items()},
            vocab_size=store.vocab_size,
            proxy=InitialModel.find(settings.proxy).pin(),
            seen_tokens={
                unit: sum(seen[source] for source in sources) * settings.sequence_length
                for unit, sources in groups.items()
            },
        )
        if settings.affinity is not None:
            swarm.affinity = swarm._read_affinity(settings.affinity)
        swarm.runs += swarm._anchors()
        swarm.runs += swarm._design()
        return swarm

    def _read_affinity(self, run: Path | str) -> Floats:
        return read_affinity(run, self.units, self.languages, self.members)

    def _anchors(self) -> list[PlannedRun]:
        """Return the anchors.

        If the sizes hardly differ, a mixture with a large share of the smallest unit replaces proportional shares.
        """
        sizes = {source: self.tokens[unit] * part for unit in self.units for source, part in self.members[unit].items()}
        whole = {source: round(size) for source, size in sizes.items()}
        shares: dict[str, Floats] = {}
        for strategy in ("uniform", "proportional", "temperature"):
            temperature = TEMPERATURE if strategy == "temperature" else None
            weights = strategy_weights(strategy, whole, temperature=temperature).sources
            shares[strategy] = np.array([sum(weights[source] for source in self.members[unit]) for unit in self.units])
        if np.abs(shares["uniform"] - shares["proportional"]).sum() / 2 < ALIKE:
            smallest = min(range(len(self.units)), key=lambda number: self.tokens[self.units[number]])
            del shares["proportional"]
            shares["contrast"] = contrasts(len(self.units), self.most)[smallest]
        seeds = self.settings.seeds
        return [
            PlannedRun(f"{name}-{seed}", "anchors", seed, tuple(row.tolist()))
            for name, row in shares.items()
            for seed in (seeds if name != "temperature" else seeds[:1])
        ]

    def _design(self) -> list[PlannedRun]:
        """Return the contrasts and the points of the design. They need no results of earlier runs."""
        settings, most, k = self.settings, self.most, len(self.units)
        contrast = contrasts(k, most)
        names = [f"{unit.replace('/', '.')}-{what}" for what in ("rich", "poor") for unit in self.units]
        count = settings.stages(k)[0] - 2 * k
        trained = np.vstack([[run.shares for run in self.runs], contrast])
        pool = candidates(k, most, seed=settings.seed)
        points = most_informative(prior_law(self.problem, self.affinity), trained, pool, count)
        names += [f"design-{number:02}" for number in range(len(points))]
        rows = np.vstack([contrast, points]).tolist()
        runs = [
            PlannedRun(name, "design", settings.seeds[0], tuple(row)) for name, row in zip(names, rows, strict=True)
        ]
        return self._hold_out(runs, key=3)

    def plan_optimum(self, on_note: OnNote = silent) -> None:
        """Plan the runs near the optimum of a law that is fitted to the earlier runs, without the held-out ones.

        If too many runs diverged to fit a law, points of the design are planned instead, and none is held out.
        """
        settings, most = self.settings, self.most
        count = settings.runs - len(self.runs)
        if count <= 0:
            return
        from xdoge.laws.optimize import best_shares

        trained = np.array([run.shares for run in self.runs])
        rows: list[Floats] = []
        stage: Stage = "optimum"
        try:
            law = self.fit(validate_rivals=False)
            optima = [best_shares(law, objective) for objective in ("mean", "worst")]
        except XDogeError as error:
            on_note(f"warning: no law can be fitted yet ({error}), so the last runs are not placed near its optimum")
            stage, optima = "design", []
            pool = candidates(len(self.units), most, seed=settings.seed + 1)
            rows.append(most_informative(prior_law(self.problem, self.affinity), trained, pool, count))
        for number, optimum in enumerate(optima):
            part = count // 2 if number else count - count // 2
            pool = candidates_near(optimum, most, seed=settings.seed + number)
            known = np.vstack([trained, *rows]) if rows else trained
            rows.append(most_informative(prior_law(self.problem, self.affinity), known, pool, part))
        first = sum(run.name.startswith(f"{stage}-") for run in self.runs)
        runs = [
            PlannedRun(f"{stage}-{first + number:02}", stage, settings.seeds[0], tuple(row))
            for number, row in enumerate(np.vstack(rows).tolist())
        ]
        self.runs += self._hold_out(runs, key=4) if stage == "optimum" else runs

    def _hold_out(self, runs: list[PlannedRun], *, key: int) -> list[PlannedRun]:
        """Return the runs with a random part marked as held out. Their losses are only used to report errors."""
        generator = np.random.Generator(np.random.Philox(key=[self.settings.seed, key]))
        chosen = set(generator.permutation(len(runs))[: self.settings.held_out_of(len(runs))].tolist())
        return [replace(run, held_out=number in chosen) for number, run in enumerate(runs)]

    @property
    def passes(self) -> dict[str, float]:
        """Passes over each unit in the target run at a share of 1."""
        return {unit: self.settings.budget_tokens / tokens for unit, tokens in self.tokens.items()}

    @property
    def passes_of_proxies(self) -> dict[str, float]:
        """Passes over each unit in the proxies at a share of 1. Proxies read whole sequences."""
        if not self.seen_tokens:
            return self.passes
        return {unit: self.settings.proxy_tokens / tokens for unit, tokens in self.seen_tokens.items()}

    @property
    def most(self) -> Floats:
        """Largest share of each unit in the design, shape (k,)."""
        cap = self.settings.max_epochs
        if cap is None:
            return np.ones(len(self.units))
        allowed = np.array([cap / self.passes[unit] for unit in self.units])
        if np.minimum(1.0, allowed).sum() < 1 - 1e-9:
            least = self.settings.budget_tokens / sum(self.tokens.values())
            raise XDogeError(
                f"{argument('budget_tokens')} {self.settings.budget_tokens:,} cannot be spent within "
                f"{argument('max_epochs')} {cap:g}; it takes at least {least:.3g} epochs of all text."
            )
        return np.minimum(1.0, BEYOND_CAP * allowed)

    @property
    def problem(self) -> Problem:
        """The problem of the law: shares, evaluations, own sources and passes."""
        languages = [language_of(unit) for unit in self.units]
        own = tuple(
            tuple(number for number, language in enumerate(languages) if language == evaluation)
            for evaluation in self.languages
        )
        return Problem(self.units, self.languages, own, tuple(self.passes[unit] for unit in self.units))

    def fit(
        self,
        *,
        form: str = "auto",
        validate_rivals: bool = True,
        affinity: Path | str | None = None,
        on_progress: OnProgress = silent,
    ) -> MixtureLaw:
        """Return the law that is fitted to the runs that did not diverge and are not held out.

        Args:
            form: one of `xdoge.laws.problem.FORMS`.
            validate_rivals: whether to cross-validate the other forms too.
            affinity: folder of a fit. Its gradient affinity moves the prior of the transfer if that lowers the
                cross-validated error. The default is the fit that the swarm was planned with, if any.
            on_progress: called after each fit of a form.

        Raises:
            XDogeError: too few runs ended without diverging, or `MixtureLaw.fit` refuses them.
        """
        from xdoge.laws.law import LawSettings, MixtureLaw

        mixtures, losses = self.table()
        if len(mixtures) < (fewest := fewest_runs(len(self.units))):
            raise XDogeError(
                f"{self.path}: {len(mixtures)} runs finished without diverging, but a law needs at least {fewest}."
            )
        settings = LawSettings(
            tokens=self.tokens,
            budget_tokens=self.settings.budget_tokens,
            validate_rivals=validate_rivals,
            members=self.members if self.settings.level == "languages" else None,
            affinity=self.affinity if affinity is None else self._read_affinity(affinity),
            run_passes=self.passes_of_proxies,
        )
        return MixtureLaw.fit(
            np.array([[row[unit] for unit in self.units] for row in mixtures.values()]),
            np.array([[losses[name][language] for language in self.languages] for name in mixtures]),
            sources=self.units,
            evaluations=self.languages,
            form=form,
            settings=settings,
            on_progress=on_progress,
        )

    def validate(self, law: MixtureLaw) -> HeldOut | None:
        """Return the scores of a law on the held-out runs; None if none of them has losses."""
        mixtures, losses = self.table(held_out=True)
        if not mixtures:
            return None
        prediction = law.of_runs.predict(np.array([[row[unit] for unit in self.units] for row in mixtures.values()]))
        measured = np.array([[losses[name][language] for language in self.languages] for name in mixtures])
        half = (prediction.high - prediction.low) / 2
        noise = self.noise.repeats if self.noise and math.isfinite(self.noise.repeats) else None
        return HeldOut(len(mixtures), score(prediction.predicted, measured, half), noise)

    def notes(self) -> list[str]:
        """Return notes on the runs that diverged and the runs that are missing."""
        results = self.results()
        lines = [
            f"{name} diverged ({result.diverged}) and is left out"
            for name, result in results.items()
            if result.diverged
        ]
        if missing := self.settings.runs - len(results):
            lines.append(f"{missing} of {self.settings.runs} runs are not finished: resume the swarm to train them")
        if self.noise and not self.noise.suffices:
            lines.append(f"{self.describe_noise()}: do not trust a law fitted to these runs")
        return lines

    def weights(self, run: PlannedRun) -> dict[str, float]:
        """Return the share of every source in a run."""
        return {
            source: share * part
            for unit, share in zip(self.units, run.shares, strict=True)
            for source, part in self.members[unit].items()
        }

    def folder(self, run: PlannedRun) -> Path:
        """Return the folder of a run."""
        return self.path / "runs" / run.name

    def results(self) -> dict[str, RunResult]:
        """Return the results of the runs that have ended, including diverged runs, by name."""
        from xdoge.laws.swarm_run import RunResult

        results = {run.name: RunResult.load(self.folder(run)) for run in self.runs}
        return {name: result for name, result in results.items() if result}

    def table(self, *, held_out: bool = False) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
        """Return mixtures and losses, by run, of the runs that did not diverge and are (or are not) held out."""
        results = self.results()
        runs = [run for run in self.runs if run.held_out == held_out and run.name in results]
        runs = [run for run in runs if results[run.name].diverged is None]
        mixtures = {
            run.name: {
                unit: math.fsum(results[run.name].shares.get(source, 0.0) for source in self.members[unit])
                for unit in self.units
            }
            for run in runs
        }
        return mixtures, {run.name: dict(results[run.name].losses) for run in runs}

    def measure_noise(self) -> Noise | None:
        """Return the noise of the anchors; None before they are trained.

        Raises:
            XDogeError: too many anchors diverged.
        """
        results = self.results()
        anchors = [run for run in self.runs if run.stage == "anchors"]
        if any(run.name not in results for run in anchors):
            return None
        groups: dict[tuple[float, ...], list[float]] = {}
        for run in anchors:
            if results[run.name].diverged is None:
                groups.setdefault(run.shares, []).append(float(np.mean(list(results[run.name].losses.values()))))
        repeated = [values for values in groups.values() if len(values) > 1]
        if not repeated or len(groups) < 2:
            diverged = [f"{run.name} ({why})" for run in anchors if (why := results[run.name].diverged)]
            raise XDogeError(
                f"{self.path}: too many anchors diverged to measure the noise: {', '.join(diverged)}. Train at a lower "
                f"{argument('learning_rate')}, in a new folder."
            )
        degrees = sum(len(values) - 1 for values in repeated)
        squares = sum(float(((np.array(values) - np.mean(values)) ** 2).sum()) for values in repeated)
        of_means = float(np.var([np.mean(values) for values in groups.values()], ddof=1))
        of_seeds = squares / degrees * float(np.mean([1 / len(values) for values in groups.values()]))
        return Noise(math.sqrt(squares / degrees), math.sqrt(max(0.0, of_means - of_seeds)))

    def flops(self) -> int:
        """Return the exact FLOPs of all trainings, without validation."""
        return self.settings.flops(self.vocab_size)

    def save(self) -> None:
        """Write swarm.json, and the CSV files with the runs that did not diverge."""
        value = {
            "schema": f"{SCHEMA}/1",
            "settings": self.settings.model_dump(mode="json"),
            "store": {"name": self.store_name, "sha256": self.store_sha256, "vocab_size": self.vocab_size},
            "units": self.members,
            "tokens": self.tokens,
            "languages": list(self.languages),
            "affinity": None if self.affinity is None else self.affinity.tolist(),
            "runs": [asdict(run) for run in self.runs],
            "noise": asdict(self.noise) if self.noise else None,
            "seen_tokens": self.seen_tokens,
            "proxy": self.proxy,
            "versions": self.versions,
            "xdoge_version": __version__,
        }
        write_json(self.path / "swarm.json", value)
        for held_out, prefix in ((False, ""), (True, "held_out_")):
            mixtures, losses = self.table(held_out=held_out)
            _write_csv(self.path / f"{prefix}mixtures.csv", mixtures, self.units)
            _write_csv(self.path / f"{prefix}losses.csv", losses, self.languages)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Return the swarm of a folder.

        Raises:
            XDogeError: the folder does not hold a swarm, or the swarm has a newer schema.
        """
        path = Path(path)
        value = read_json(path / "swarm.json", schema=SCHEMA)
        store = value["store"]
        return cls(
            path=path,
            settings=SwarmSettings.parse(value["settings"], where=str(path / "swarm.json")),
            store_name=store["name"],
            store_sha256=store["sha256"],
            units=tuple(value["units"]),
            members=value["units"],
            languages=tuple(value["languages"]),
            tokens=value["tokens"],
            runs=[PlannedRun(**{**run, "shares": tuple(run["shares"])}) for run in value["runs"]],
            noise=Noise(**value["noise"]) if value["noise"] else None,
            vocab_size=store["vocab_size"],
            affinity=None if value.get("affinity") is None else np.array(value["affinity"], dtype=np.float64),
            seen_tokens=value.get("seen_tokens", {}),
            proxy=value.get("proxy", {}),
            versions=value.get("versions", {}),
        )

    def advance(self, on_note: OnNote = silent) -> list[PlannedRun]:
        """Return the runs that may be trained now. Plan the next stage if all runs so far have ended.

        Raises:
            XDogeError: the anchors diverged, or they differ more between seeds than between mixtures.
        """
        results = self.results()
        if self.noise is None and (noise := self.measure_noise()):
            self.noise = noise
            self.save()
            on_note(f"noise: {self.describe_noise()}")
        if self.noise and not self.noise.suffices:
            raise XDogeError(
                f"{self.path}: {self.describe_noise()}. Seeds change the losses more than mixtures do, so no law can "
                "be learned. Start another swarm with more steps, a lower learning_rate, a larger averaging or more "
                "eval_sequences."
            )
        waiting = [run for run in self.runs if run.name not in results]
        if self.noise is None:
            return [run for run in waiting if run.stage == "anchors"]
        if not waiting and len(self.runs) < self.settings.runs:
            self.plan_optimum(on_note)
            self.save()
            return [run for run in self.runs if run.name not in results]
        return waiting

    def describe_noise(self) -> str:
        """Return the noise of the anchors in words."""
        assert self.noise
        seeds = f"the mean loss of one mixture varies by {self.noise.repeats:.4f} bits per byte from seed to seed"
        if not self.noise.mixtures:
            return f"{seeds} (standard deviation), and the losses of the first mixtures differ by no more than that"
        return f"{seeds}, and by {self.noise.mixtures:.4f} between the first mixtures (standard deviations)"


def _write_csv(path: Path, rows: Mapping[str, Mapping[str, float]], columns: Sequence[str]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", *columns])
    writer.writerows([name, *(repr(row.get(column, math.nan)) for column in columns)] for name, row in rows.items())
    write_text(path, text.getvalue())
