"""The fit: it trains a proxy on all sources and learns one weight per source, so that the target losses fall fastest.

Each step draws a batch with all sources and forms the gradient products in the proxy's backward pass. It then trains
the proxy along Σ α_i g_i, and moves α. `Trainer.train` is the loop. `fit` is the public function around it.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch

from xdoge.corpus.store import TokenStore
from xdoge.distributed import Processes, stop_requests
from xdoge.errors import Interrupted, NonFiniteLossError, RankLocalError, XDogeError, argument
from xdoge.fit import reweight
from xdoge.fit.affinity import GradientAffinity
from xdoge.fit.batches import Counts, draw, gradient_weights, sequence_counts
from xdoge.fit.gradients.engine import GradientEngine
from xdoge.fit.gradients.placement import Placement, place
from xdoge.fit.gradients.products import SourceBatch, SourceProducts
from xdoge.fit.result import FitResult, language_weights, learned_weights, resolved_config
from xdoge.fit.settings import SAVES_MEMORY, FitOptions, FitSettings
from xdoge.fit.state import State
from xdoge.fit.targets import TargetRule, TargetState, advance
from xdoge.fit.verdict import fit_verdict
from xdoge.mixtures.simplex import Floats
from xdoge.mixtures.weights import WeightSet
from xdoge.models.memory import memory_errors
from xdoge.models.recipes import load_recipe
from xdoge.progress import Event, OnNote, OnProgress, silent
from xdoge.training.checkpoints import saving_tensors
from xdoge.training.eval_schedule import with_schedule_of_run
from xdoge.training.optim import check_launch, learning_rate_ratio
from xdoge.training.pace import Pace
from xdoge.training.proxy import Proxy
from xdoge.training.proxy_settings import ELASTIC
from xdoge.training.run_folder import MetricsRow, RunFolder, decisive

COLUMNS = ("weight", "score", "loss", "grad_norm")
"""Columns of the trajectory. Each is an array (steps, k)."""


def fit(
    store: TokenStore,
    settings: FitSettings | None = None,
    *,
    out: Path | str,
    resume: bool = False,
    on_progress: OnProgress = silent,
    on_note: OnNote = silent,
    **options: Unpack[FitOptions],
) -> FitResult:
    """Learn one weight per source of `store`, and write the weights to `out`/weights.json.

    A proxy model trains on all sources. Each step raises the weight of the sources whose gradients lower the target
    loss most. The result is the mean of the weights over the steps.

    A run may be killed at any moment and resumed. It then gives the same numbers as an uninterrupted run, bit for bit
    on one CPU with the same versions.

    Under torchrun or `accelerate launch`, every process calls this function and returns the same weights. Each process
    runs its part of every batch. The first process writes the files and reports. The number of processes changes the
    results by rounding only.

    Args:
        store: the token store.
        settings: complete settings from `FitSettings.for_store`. Give either these or `options`.
        out: the run folder, new or empty.
        resume: whether to continue the run in `out`. It keeps its settings, except those that `options` names.
        on_progress: called after each step with an `Event` that has its row of metrics.jsonl.
        on_note: called with each sentence that the user should read.
        **options: settings by name, such as `proxy="1m", steps=300`. All others get their defaults.

    Returns:
        The weights, the run folder, the steps and seconds that the run took, and a verdict in words.

    Raises:
        XDogeError: a setting is unknown or not allowed, the folder is not empty, or a setting differs from the run that
            is resumed.
        NonFiniteLossError: a loss or a gradient is NaN or infinite.
        MemoryFullError: the device of this process has too little memory.
        LostProcessError: another process died.
        Interrupted: SIGINT or SIGTERM stopped the run. Every finished step is in a checkpoint.

    Source: XDoGE (Lacunza et al. 2025, arXiv:2512.10545) and DoGE (Fan et al. 2023, arXiv:2310.15393). "The outer step"
    in docs/explanation/method.md derives the update, and docs/explanation/decisions.md lists the differences.

    Example:
        ```python
        from xdoge import TokenStore, fit

        result = fit(TokenStore.open("store"), proxy="1m", steps=300, out="runs/1m")
        result.weights.languages
        ```
    """
    run = RunFolder(Path(out))
    if settings is None:
        settings = FitSettings.for_store(store, (run.settings() if resume else {}) | dict(options))
    elif options:
        raise XDogeError(f"{', '.join(options)} and settings are both given; give complete settings, or options alone.")
    elif resume:
        settings = with_schedule_of_run(settings, run.settings())
    recipe, target_rule = load_recipe(settings.proxy), settings.target_rule(store)
    config = resolved_config(store, settings, recipe)
    initial = settings.initial_weights(store)
    config["initial"] = dict(zip(store.sources, initial.tolist(), strict=True))
    if target_rule.reference is not None:
        config["reference"] = dict(zip(store.sources, target_rule.reference.tolist(), strict=True))
    processes = Processes.join(cpu=settings.device == "cpu", timeout=settings.timeout)
    first = processes.is_first
    if not first:
        on_progress = on_note = silent
    check_launch(processes, settings)
    processes.refuse_differences({**decisive(config), "resume": resume})
    changes: list[str] = []
    if resume:
        changes = processes.on_first(lambda: run.check(config, free=(*ELASTIC, *SAVES_MEMORY)))
        if processes.broadcast(run.weights.exists()):
            for line in (*changes, f"{run.path} is finished already."):
                on_note(line)
            with processes.closing_group():
                result = FitResult.read(run, store)
                return result if first else replace(result, verdict=())
    else:
        processes.on_first(run.refuse_taken)
    for line in settings.notes(store):
        on_note(f"note: {line}")
    with memory_errors(settings.memory_advice):
        trainer = Trainer(Proxy(store, settings, recipe, processes=processes), settings, target_rule, run, initial)
    pace = Pace(settings.learning_flops(recipe, store), store, on_progress, on_note)
    with (
        processes.closing_group(),
        processes.within_on_first(run.claimed()),
        stop_requests() as stop,
        memory_errors(settings.memory_advice),
    ):
        if resume:
            begun = trainer.rewind(on_note)
            for line in (*changes, f"resuming after step {begun} of {settings.steps}"):
                on_note(line)
        else:
            processes.on_first(lambda: run.start(config))
        pace.expect(trainer.proxy.device)
        trainer.train(stop, pace.show)
        weights = trainer.finish()
    for line in settings.warnings(weights, target_rule):
        on_note(f"warning: {line}")
    verdict = fit_verdict(weights, run, store) if first else []
    return FitResult(weights, run.path, settings.steps, trainer.seconds, resumed=resume, verdict=tuple(verdict))


@contextlib.contextmanager
def rank_local_errors() -> Iterator[None]:
    """Turn an XDogeError into a RankLocalError: other processes read other text and may not meet this error."""
    try:
        yield
    except XDogeError as error:
        raise RankLocalError(error.message) from error


@dataclass(frozen=True)
class Batch:
    """The batch of a step, with the weights and targets of its sources."""

    counts: Counts  # (k,) sequences of each source, over all processes
    placement: Placement
    rows: SourceBatch  # rows of this process
    weights: Floats  # (k,) weights of the sources' mean gradients in the training gradient
    targets: Floats  # (k,) τ of the step


class Trainer:
    """The proxy and the state of one fit, and its loop. All processes hold the same proxy and state."""

    def __init__(
        self, proxy: Proxy, settings: FitSettings, target_rule: TargetRule, run: RunFolder, initial: Floats
    ) -> None:
        self.proxy, self.settings, self.run, self.target_rule = proxy, settings, run, target_rule
        self.store, self.processes = proxy.store, proxy.processes
        self.rule = settings.rule(self.store.languages)
        if settings.activation_checkpointing:
            proxy.model.activation_checkpointing_enable({"use_reentrant": False})
        self.rate_total = math.fsum(learning_rate_ratio(step, settings) for step in range(1, settings.steps + 1))
        k = len(self.store.sources)
        self.state = State(
            step=0,
            weights=reweight.Weights.start(initial),
            read=np.zeros(k, dtype=np.int64),
            targets=TargetState.start(len(self.store.languages)),
            affinity=GradientAffinity.empty(k),
        )
        self.history = self.run.read_trajectory(0, COLUMNS, k)
        self.seconds = 0.0
        self.saved = 0

    def train(self, stop: list[int], on_progress: OnProgress) -> None:
        """Run the remaining steps: draw, gradients, save, stop?, update, reweight, evaluate, log.

        The parameters of a step are saved in the next step, after its batch has given finite losses and gradients.
        """
        settings, started = self.settings, time.perf_counter() - self.seconds
        engine = GradientEngine(self.proxy.model, len(self.store.sources), processes=self.processes)
        for step in range(self.state.step + 1, settings.steps + 1):
            batch = self.draw(step)
            products = self.gradients(engine, step, batch)
            signal = self.processes.all_reduce_max(stop[0] if stop else 0)  # a signal may reach only some processes
            if (step - 1) % settings.checkpoint_every == 0 or signal:
                self.save()
            if signal:
                done = f"stopped after step {step - 1} of {settings.steps}"
                raise Interrupted(signal, f"{done}; {argument('resume', True)} continues")
            grad_norm, learning_rate = self.proxy.clip_gradients(), self.proxy.update(step)
            before = self.state.weights.now
            scores, progress = self.reweight(step, products, batch)
            row = self.row(before, products, batch, scores, progress, grad_norm=grad_norm, learning_rate=learning_rate)
            if step % settings.eval_every == 0 or step == settings.steps:
                row |= self.evaluate()
            self.seconds = time.perf_counter() - started
            row["seconds"] = round(self.seconds, 3)
            if self.processes.is_first:
                self.run.log(row)
            on_progress(Event("step", "fit", done=step, total=settings.steps, unit="steps", row=row))
        self.save()

    def draw(self, step: int) -> Batch:
        """Return the step's batch: sequences per source according to α_t, and the rows that this process runs."""
        settings, state, rank = self.settings, self.state, self.processes.rank
        counts = sequence_counts(state.weights.now, trained=self.rule.trained, settings=settings, step=step)
        placement = place(counts, self.processes.world_size)
        own = placement.rows[rank]
        with rank_local_errors():
            rows = torch.from_numpy(draw(self.store, state.read + placement.before(rank), own, settings=settings))
        return Batch(
            counts=counts,
            placement=placement,
            rows=SourceBatch(input_ids=rows.to(self.proxy.device), counts=tuple(own.tolist())),
            weights=gradient_weights(state.weights.now, counts, settings=settings),
            targets=state.targets.targets(self.target_rule),
        )

    def gradients(self, engine: GradientEngine, step: int, batch: Batch) -> SourceProducts:
        """Set the parameters' training gradient, and return the losses and gradient products, all finite.

        Raises:
            NonFiniteLossError: a loss or a gradient norm is NaN or infinite.
        """
        settings = self.settings
        products = engine.backward(
            batch.rows,
            weights=batch.weights,
            targets=batch.targets,
            reference=self.target_rule.reference,
            gram=settings.gram_every > 0 and step % settings.gram_every == 0,
            microbatches=settings.microbatches,
            autocast=self.proxy.autocast,
            placement=batch.placement,
        )
        drawn = [source for source, count in zip(self.store.sources, batch.counts, strict=True) if count]
        for what, values in (("loss", products.losses), ("gradient norm", products.square_norms)):
            self.refuse_non_finite(step, what, zip(drawn, values[batch.counts > 0].tolist(), strict=True))
        return products

    def reweight(self, step: int, products: SourceProducts, batch: Batch) -> tuple[Floats, Floats]:
        """Update the weights, the targets and the affinity; return scores (k,) and relative progress (L,)."""
        state = self.state
        rule = replace(self.rule, targets=batch.targets, masses=state.targets.masses(self.target_rule))
        eta = learning_rate_ratio(step, self.settings) / self.rate_total
        counts = step > self.settings.burn_in * self.settings.steps
        weights, scores = reweight.step(state.weights, products, rule=rule, eta=eta, counts=counts)
        targets, progress = advance(
            state.targets, products, batch.weights, target_rule=self.target_rule, rule=rule, eta=eta
        )
        affinity = state.affinity.add(products, step=step, steps=self.settings.steps)
        self.state = State(step, state.read + batch.counts, weights, targets, affinity)
        return scores, progress

    def row(
        self,
        before: Floats,
        products: SourceProducts,
        batch: Batch,
        scores: Floats,
        progress: Floats,
        **optimiser: float,
    ) -> MetricsRow:
        """Add the step to the trajectory, and return its row of metrics.jsonl. `before` is α_t, (k,)."""
        now, targets = self.state.weights.now, self.rule.targets
        columns = (now, scores, products.losses, np.sqrt(products.square_norms))
        for name, values in zip(COLUMNS, columns, strict=True):
            self.history[name].append(values)
        seen = ~np.isnan(products.losses)
        losses = np.where(seen, products.losses, 0.0)
        moved = self.state.targets
        row: MetricsRow = {
            "step": self.state.step,
            "loss": float(before @ losses / before[seen].sum()),
            "target_loss": float(targets @ losses / targets[seen].sum()) if targets[seen].any() else None,
            **optimiser,
            "noise_share": reweight.noise_share(products, replace(self.rule, targets=batch.targets)),
            "tokens": int(self.state.read.sum()) * self.settings.sequence_length,
            "languages": language_weights(self.store, now),
            "progress": self.by_language(progress),
        }
        if self.target_rule.robust:
            row["targets"] = self.by_language(moved.tau)
        if self.target_rule.reference is not None:
            row |= {"excess": self.by_language(moved.excess()), "multipliers": self.by_language(moved.multiplier)}
        return row

    def by_language(self, values: Floats) -> dict[str, float | None]:
        """Return values (L,) by the names of the languages, with None for NaN."""
        numbers = (None if math.isnan(value) else value for value in values.tolist())
        return dict(zip(self.store.languages, numbers, strict=True))

    def evaluate(self) -> MetricsRow:
        """Return the validation loss of each source that has validation sequences, nats per token, and the seconds."""
        began = time.perf_counter()
        with rank_local_errors():
            losses = self.proxy.validation_losses()
        self.refuse_non_finite(self.state.step, "validation loss", losses.items())
        return {"validation": losses, "validation_seconds": round(time.perf_counter() - began, 3)}

    def refuse_non_finite(self, step: int, what: str, values: Iterable[tuple[str, float]]) -> None:
        """Raise NonFiniteLossError for the first source whose value is NaN or infinite."""
        for source, value in values:
            if not math.isfinite(value):
                good = self.run.latest_checkpoint()
                raise NonFiniteLossError(
                    f"step {step}: the {what} of {source} is {value}. Last good checkpoint: {good or 'none yet'}. "
                    "Lower learning_rate or clip, or look at that source's text."
                )

    def save(self) -> None:
        """Write the trajectory and then a checkpoint, unless this step is saved already. Both are written whole."""
        if self.state.step == self.saved:
            return
        self.saved = self.state.step
        self.refuse_drift()
        if not self.processes.is_first:
            return
        history = {name: np.array(values) for name, values in self.history.items()}
        self.run.write_trajectory(history, self.store.sources)
        numbers, arrays = self.state.to_dict()
        self.run.save_checkpoint(
            self.state.step,
            numbers={**numbers, "seconds": self.seconds},
            arrays=arrays,
            tensors=self.proxy.tensors(),
            keep=self.settings.keep_checkpoints,
        )

    def refuse_drift(self) -> None:
        """Raise XDogeError if the proxies of the processes differ."""
        with torch.no_grad():
            total = math.fsum(float(parameter.double().sum()) for parameter in self.proxy.model.parameters())
        bits = int(np.float64(total).view(np.int64))
        if self.processes.all_reduce_max(bits) != -self.processes.all_reduce_max(-bits):
            raise XDogeError(
                f"after step {self.state.step} the processes hold different proxies, which is a fault of "
                f"this machine or a bug; {argument('resume', True)} continues from the last checkpoint."
            )

    def rewind(self, on_note: OnNote) -> int:
        """Load the newest undamaged checkpoint and return its step; without any, start from step 0."""
        first = self.processes.is_first
        folder = self.processes.on_first(lambda: self.run.good_checkpoint(on_note))
        if folder is not None:
            if not folder.is_dir():
                raise XDogeError(f"process {self.processes.rank} cannot see {folder}; all need the same run folder.")
            numbers, arrays, tensors = self.run.load_checkpoint(folder)
            self.proxy.load_tensors(tensors)
            self.state, self.seconds, self.saved = State.from_dict(numbers, arrays), numbers["seconds"], numbers["step"]
        self.history = self.run.read_trajectory(self.state.step, COLUMNS, len(self.store.sources))
        if first:
            self.run.rewind_metrics(self.state.step)
        return self.state.step

    def finish(self) -> WeightSet:
        """Write the averaged Gram matrix, the proxy and, last, the weights; return the weights."""
        store, settings, run, state = self.store, self.settings, self.run, self.state
        method: dict[str, Any] = settings.model_dump(mode="json")
        if self.target_rule.robust:
            method["mean_targets"] = self.by_language(state.targets.total / settings.steps)
        if self.target_rule.reference is not None:
            method["excess"] = self.by_language(state.targets.excess())
        assert self.proxy.recipe
        weights = learned_weights(
            state.weights.average,
            store,
            settings,
            self.proxy.recipe,
            method=method,
            floor=settings.floor,
            tokens=int(state.read.sum()) * settings.sequence_length,
        )
        if self.processes.is_first:
            if state.affinity.counts.any():
                run.write_gram(state.affinity.to_table(store.sources, steps=settings.steps))
            shutil.rmtree(run.proxy, ignore_errors=True)
            with saving_tensors(run.proxy) as folder:
                self.proxy.model.save_pretrained(folder)
                store.tokenizer().export(folder)
            weights.save(run.weights)
        return weights
