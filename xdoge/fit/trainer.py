"""The bi-level fit: a proxy trains on all sources while one weight per source moves towards what helps them all.

Each step draws a batch from every source, forms the gradient products in the proxy's own backward pass, trains the
proxy along Σ α_i g_i and moves α. `fit` is the whole of it; what it reads and writes lies in `run.py`.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xdoge._version import __version__
from xdoge.corpus.store import TokenStore
from xdoge.distributed import Processes, stop_requests
from xdoge.errors import Interrupted, NonFiniteLossError, RankLocalError, XDogeError
from xdoge.fit import reweight
from xdoge.fit.affinity import GradientAffinity
from xdoge.fit.batches import Counts, draw, gradient_weights, sequence_counts
from xdoge.fit.gradients.engine import GradientEngine
from xdoge.fit.gradients.placement import place
from xdoge.fit.gradients.products import SourceBatch, SourceProducts
from xdoge.fit.settings import FitSettings
from xdoge.fit.state import State, from_tensors, to_tensors
from xdoge.fit.targets import TargetRule, TargetState, advance
from xdoge.mixtures.simplex import Floats
from xdoge.mixtures.weights import WeightSet
from xdoge.models.flops import training_flops
from xdoge.models.loss import sequence_nats
from xdoge.models.recipes import Recipe, load_recipe
from xdoge.training.checkpoints import saving_tensors
from xdoge.training.optim import (
    autocasting,
    check_launch,
    learning_rate_ratio,
    make_optimiser,
    pick_autocast,
    pick_device,
)
from xdoge.training.run_folder import RunFolder
from xdoge.training.validation import validation_losses

COLUMNS = ("weight", "score", "loss", "grad_norm")
"""Columns of the trajectory, one (steps, k) array each."""

EVAL_ROWS = 16
"""Sequences per forward pass of an evaluation."""

Row = dict[str, Any]


def fit(
    store: TokenStore,
    settings: FitSettings,
    out: Path | str,
    *,
    resume: bool = False,
    on_step: Callable[[Row], None] = lambda row: None,
    on_note: Callable[[str], None] = lambda text: None,
) -> WeightSet:
    """Learn one weight per source of `store` and return them, written to `out`/weights.json.

    Killed at any moment and resumed, it ends with the same numbers: to the bit on one CPU with the same versions.
    Under torchrun or `accelerate launch` every process calls it and returns the same; each runs its part of every
    batch, and the first writes and reports. How many there are changes the numbers by rounding only.

    Args:
        store: the tokens.
        settings: from `FitSettings.for_store`.
        out: the run folder, empty or new.
        resume: continue the run that lies in `out`.
        on_step: called with each row of metrics.jsonl.
        on_note: called with what the user should know and no row says.

    Raises:
        XDogeError: the folder is taken, or a setting differs from the run's that is resumed.
        NonFiniteLossError: training diverged.
        LostProcessError: another process died.
        Interrupted: SIGINT or SIGTERM came; every finished step is in a checkpoint.
    """
    run, recipe = RunFolder(Path(out)), load_recipe(settings.proxy)
    target_rule = settings.target_rule(store)
    config = resolved_config(store, settings, recipe)
    if target_rule.reference is not None:
        config["reference"] = dict(zip(store.sources, target_rule.reference.tolist(), strict=True))
    processes = Processes.join(cpu=settings.device == "cpu", timeout=settings.timeout)
    first = processes.is_first
    if not first:
        on_step = on_note = _ignore
    check_launch(processes, settings)
    if resume:
        for change in run.check(config) if first else ():
            on_note(f"resuming elsewhere than the run began, so the last digits may differ: {change}")
        if processes.broadcast(run.weights.exists()):
            on_note(f"{run.path} is finished already.")
            with processes.closing_group():
                return WeightSet.load(run.weights)
    elif first:
        run.refuse_taken()
    for line in settings.notes(store):
        on_note(f"note: {line}")
    fitting = _Fit(store, settings, recipe, run, processes, target_rule)
    with processes.closing_group(), run.claimed() if first else contextlib.nullcontext(), stop_requests() as stop:
        if first and not resume:
            run.start(config)
        if resume:
            on_note(f"resuming after step {fitting.rewind(on_note)} of {settings.steps}")
        fitting.train(GradientEngine(fitting.model, len(store.sources), processes=processes), stop, on_step)
        weights = fitting.finish()
    for language, excess in weights.method.get("excess", {}).items():
        if excess is None or excess > fitting.target_rule.allowance:
            what = (
                "could not be estimated"
                if excess is None
                else f"is estimated to end {excess:.1%} above the reference's"
            )
            on_note(f"warning: the loss of {language} {what}; no_worse_than asked for {settings.no_worse_than}")
    return weights


@contextlib.contextmanager
def rank_local_errors() -> Iterator[None]:
    """Let an error in this process's part of the text be told by this process."""
    try:
        yield
    except XDogeError as error:
        raise RankLocalError(str(error)) from error


def _ignore(_: object) -> None:
    """Say nothing: another process does."""


class _Fit:
    """The proxy, its optimiser and the state of one fit, and what a step does to them: the same on every process."""

    def __init__(
        self,
        store: TokenStore,
        settings: FitSettings,
        recipe: Recipe,
        run: RunFolder,
        processes: Processes,
        target_rule: TargetRule,
    ) -> None:
        self.store, self.settings, self.recipe, self.run = store, settings, recipe, run
        self.processes, self.target_rule = processes, target_rule
        self.rule = settings.rule(store.languages)
        self.device = pick_device(settings.device if processes.world_size == 1 else processes.device)
        self.autocast = pick_autocast(settings.precision, self.device)
        model = recipe.build(vocab_size=store.vocab_size, seed=settings.seed)
        if settings.activation_checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        self.model = model.to(self.device).train()  # type: ignore[arg-type]
        self.optimiser = make_optimiser(self.model, settings)
        self.rate_total = math.fsum(learning_rate_ratio(step, settings) for step in range(1, settings.steps + 1))
        k = len(store.sources)
        self.state = State(
            step=0,
            weights=reweight.Weights.uniform(self.rule.trained),
            read=np.zeros(k, dtype=np.int64),
            targets=TargetState.start(len(store.languages)),
            affinity=GradientAffinity.empty(k),
        )
        self.history = self.run.read_trajectory(0, COLUMNS, k)
        self.seconds = 0.0
        self.saved = 0

    def train(self, engine: GradientEngine, stop: list[int], on_step: Callable[[Row], None]) -> None:
        """Run the steps that are left: draw, gradients, check, save, stop?, descend, reweight, evaluate, log.

        A step's parameters are saved when the next batch has shown that they still give finite losses and gradients.
        """
        settings, began = self.settings, time.perf_counter() - self.seconds
        for step in range(self.state.step + 1, settings.steps + 1):
            weights, read = self.state.weights.now, self.state.read
            counts = sequence_counts(weights, trained=self.rule.trained, settings=settings, step=step)
            targets, mixed = (
                self.state.targets.targets(self.target_rule),
                gradient_weights(weights, counts, settings=settings),
            )
            placement, rank = place(counts, self.processes.world_size), self.processes.rank
            own = placement.rows[rank]
            with rank_local_errors():
                rows = torch.from_numpy(draw(self.store, read + placement.before(rank), own, settings=settings))
            products = engine.backward(
                SourceBatch(input_ids=rows.to(self.device), counts=tuple(own.tolist())),
                weights=mixed,
                targets=targets,
                reference=self.target_rule.reference,
                gram=settings.gram_every > 0 and step % settings.gram_every == 0,
                microbatches=settings.microbatches,
                autocast=self.autocast,
                placement=placement,
            )
            self.refuse_non_finite(step, "loss", products.losses, counts)
            self.refuse_non_finite(step, "gradient norm", products.square_norms, counts)
            signal = self.processes.all_reduce_max(stop[0] if stop else 0)  # which may have come to some of them only
            if (step - 1) % settings.checkpoint_every == 0 or signal:
                self.save()
            if signal:
                raise Interrupted(signal, f"stopped after step {step - 1} of {settings.steps}; --resume continues")
            grad_norm = self.descend(learning_rate_ratio(step, settings))
            moved = self.reweight(step, products, counts, mixed, targets)
            row = self.row(weights, products, targets, moved, grad_norm)
            if step % settings.eval_every == 0 or step == settings.steps:
                row["validation"] = self.evaluate()
            self.seconds = time.perf_counter() - began
            row["seconds"] = round(self.seconds, 3)
            if self.processes.is_first:
                self.run.log(row)
            on_step(row)
        self.save()

    def descend(self, ratio: float) -> float:
        """Take the proxy's step along Σ α_i g_i, clipped; return the gradient's norm before clipping."""
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.learning_rate * ratio
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return float(norm)

    def reweight(
        self, step: int, products: SourceProducts, counts: Counts, mixed: Floats, targets: Floats
    ) -> tuple[Floats, Floats]:
        """Move the weights and everything else that a step moves.

        Args:
            step: its number.
            products: of its batch.
            counts: (k,) its sequences of each source.
            mixed: (k,) what each source's gradient counted for in the training gradient.
            targets: (k,) what each source counted for in the direction of the scores.

        Returns:
            The scores (k,), and the relative progress of the languages (L,).
        """
        rule = replace(self.rule, targets=targets, masses=self.state.targets.masses(self.target_rule))
        eta = learning_rate_ratio(step, self.settings) / self.rate_total
        after, scores = reweight.step(
            self.state.weights,
            products,
            rule=rule,
            eta=eta,
            counts=step > self.settings.burn_in * self.settings.steps,
        )
        affinity = self.state.affinity.add(products, step=step, steps=self.settings.steps)
        moved, progress = advance(self.state.targets, products, mixed, target_rule=self.target_rule, rule=rule, eta=eta)
        self.state = State(step=step, weights=after, read=self.state.read + counts, targets=moved, affinity=affinity)
        return scores, progress

    def row(
        self,
        weights: Floats,
        products: SourceProducts,
        along: Floats,
        found: tuple[Floats, Floats],
        grad_norm: float,
    ) -> Row:
        """Add the step to the trajectory and return its row of metrics.jsonl; `weights` trained `along` targets."""
        now, targets, (scores, progress) = self.state.weights.now, self.rule.targets, found
        seen = ~np.isnan(products.losses)
        losses = np.where(seen, products.losses, 0.0)
        columns = (now, scores, products.losses, np.sqrt(products.square_norms))
        for name, values in zip(COLUMNS, columns, strict=True):
            self.history[name].append(values)
        languages = {
            language: math.fsum(now[self.store.sources.index(source)] for source in sources)
            for language, sources in self.store.languages.items()
        }
        row = {
            "step": self.state.step,
            "loss": float(weights @ losses / weights[seen].sum()),
            "target_loss": float(targets @ losses / targets[seen].sum()) if targets[seen].any() else None,
            "grad_norm": grad_norm,
            "noise_share": reweight.noise_share(products, replace(self.rule, targets=along)),
            "learning_rate": self.settings.learning_rate * learning_rate_ratio(self.state.step, self.settings),
            "tokens": int(self.state.read.sum()) * self.settings.sequence_length,
            "languages": languages,
            "progress": self.by_language(progress),
        }
        moved = self.state.targets
        if self.target_rule.robust:
            row["targets"] = self.by_language(moved.tau)
        if self.target_rule.reference is not None:
            row["excess"], row["multipliers"] = (
                self.by_language(moved.excess()),
                self.by_language(moved.multiplier),
            )
        return row

    def by_language(self, values: Floats) -> dict[str, float | None]:
        """Return a number of each language by its name, None for NaN."""
        return {
            language: None if math.isnan(value) else value
            for language, value in zip(self.store.languages, values.tolist(), strict=True)
        }

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Return the validation loss, nats per token, of each source that has validation sequences."""
        settings = self.settings
        self.model.eval()
        with rank_local_errors():
            losses = validation_losses(
                self.nats,
                self.store,
                settings.sequence_length,
                most=settings.eval_sequences,
                rows=EVAL_ROWS,
                rank=self.processes.rank,
                world_size=self.processes.world_size,
                gather=self.processes.all_gather,
            )
        self.model.train()
        ones = [1] * len(losses)
        self.refuse_non_finite(self.state.step, "validation loss", losses.values(), ones, sources=losses)
        return losses

    def nats(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the next-token cross-entropy summed over each sequence of (B, T) token ids, (B,)."""
        with autocasting(self.device, self.autocast):
            return sequence_nats(self.model, rows.to(self.device))

    def refuse_non_finite(
        self, step: int, what: str, values: Iterable[float], counts: Iterable[int], *, sources: Iterable[str] = ()
    ) -> None:
        """Stop at the first value that is NaN or infinite where there were sequences, before it moves anything."""
        for source, count, value in zip(sources or self.store.sources, counts, values, strict=True):
            if count and not math.isfinite(value):
                good = self.run.latest_checkpoint()
                raise NonFiniteLossError(
                    f"step {step}: the {what} of {source} is {value}. Last good checkpoint: {good or 'none yet'}. "
                    "Lower learning_rate or clip, or look at that source's text."
                )

    def save(self) -> None:
        """Write the trajectory, then a checkpoint, each whole, unless they lie there already."""
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
            tensors=to_tensors(self.model, self.optimiser),
            keep=self.settings.keep_checkpoints,
        )

    def refuse_drift(self) -> None:
        """Stop if the processes' proxies are no longer the same one."""
        with torch.no_grad():
            total = math.fsum(float(parameter.double().sum()) for parameter in self.model.parameters())
        bits = int(np.float64(total).view(np.int64))
        if self.processes.all_reduce_max(bits) != -self.processes.all_reduce_max(-bits):
            raise XDogeError(
                f"after step {self.state.step} the processes hold different proxies, which is a fault of this machine "
                "or of ours; --resume continues from the last checkpoint."
            )

    def rewind(self, on_note: Callable[[str], None]) -> int:
        """Go back to the newest checkpoint that is whole, or to the start where there is none; return its step."""
        first = self.processes.is_first
        folder = self.processes.broadcast(self.run.good_checkpoint(on_note) if first else None)
        if folder is not None:
            if not folder.is_dir():
                raise XDogeError(f"process {self.processes.rank} finds no {folder}; all must see the same run folder.")
            numbers, arrays, tensors = self.run.load_checkpoint(folder)
            from_tensors(self.model, self.optimiser, tensors)
            self.state, self.seconds, self.saved = State.from_dict(numbers, arrays), numbers["seconds"], numbers["step"]
        self.history = self.run.read_trajectory(self.state.step, COLUMNS, len(self.store.sources))
        if first:
            self.run.rewind_metrics(self.state.step)
        return self.state.step

    def found(self) -> dict[str, Any]:
        """Return what the fit found out about the languages, where it followed them."""
        found: dict[str, Any] = {}
        if self.target_rule.robust:
            found["mean_targets"] = self.by_language(self.state.targets.total / self.settings.steps)
        if self.target_rule.reference is not None:
            found["excess"] = self.by_language(self.state.targets.excess())
        return found

    def finish(self) -> WeightSet:
        """Write the proxy, the averaged Gram matrix and, last, the weights."""
        store, settings, run = self.store, self.settings, self.run
        recipe = self.recipe
        parameters, tokens = sum(parameter.numel() for parameter in self.model.parameters()), int(self.state.read.sum())
        tokens *= settings.sequence_length
        weights = WeightSet(
            name=f"{store.name}-{recipe.name}-seed{settings.seed}",
            sources=dict(zip(store.sources, self.state.weights.average.tolist(), strict=True)),
            floor=settings.floor,
            method={**settings.model_dump(mode="json"), **self.found()},
            proxy={
                **recipe.model_dump(mode="json", exclude={"about"}),
                "non_embedding_parameters": recipe.non_embedding_parameters,
                "parameters": parameters,
                "tokens_seen": tokens,
                "flops": training_flops(
                    recipe, tokens, sequence_length=settings.sequence_length, vocab_size=store.vocab_size
                )
                + settings.product_flops(len(store.sources), parameters),
            },
            corpus={"name": store.name, "sha256": store.sha256, "tokens": store.tokens()},
            xdoge_version=__version__,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
        if self.processes.is_first:
            if self.state.affinity.counts.any():
                run.write_gram(self.state.affinity.to_table(store.sources, steps=settings.steps))
            shutil.rmtree(run.proxy, ignore_errors=True)
            with saving_tensors(run.proxy) as folder:
                self.model.save_pretrained(folder)
                store.tokenizer().export(folder)
            weights.save(run.weights)
        return weights


def resolved_config(store: TokenStore, settings: FitSettings, recipe: Recipe) -> dict[str, Any]:
    """Return what config.yaml holds: the store, every setting and the recipe in full."""
    return {
        "store": {"path": str(store.path), "name": store.name, "sha256": store.sha256},
        "settings": settings.model_dump(mode="json"),
        "recipe": recipe.model_dump(mode="json"),
    }
