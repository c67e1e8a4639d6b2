"""Write the files of a training run: metrics during the run, the model and train.json at its end."""

from __future__ import annotations

import datetime
import math
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xdoge._version import __version__
from xdoge.config import read_yaml
from xdoge.corpus.store import TokenStore
from xdoge.errors import NonFiniteLossError, XDogeError, argument
from xdoge.io import read_json, read_rows, sha256_file, write_json
from xdoge.mixtures.mixture import Mixture
from xdoge.progress import Event, OnNote, OnProgress
from xdoge.sampling.sampler import MixtureSampler
from xdoge.train.result import SCHEMA, TrainResult
from xdoge.train.settings import BatchSplit, TrainSettings
from xdoge.training.checkpoints import SUMS, newest_whole, saving_tensors
from xdoge.training.run_folder import MetricsRow, RunFolder

if TYPE_CHECKING:
    from transformers import Trainer


@dataclass
class RunLog:
    """Inputs, outputs and progress of a training run."""

    run: RunFolder
    store: TokenStore
    mixture: Mixture
    settings: TrainSettings
    sampler: MixtureSampler
    first: bool  # whether this process is rank 0
    parameters: tuple[int, int]  # trained, frozen
    layers: tuple[int, int]  # with a trained parameter, all
    on_progress: OnProgress
    on_note: OnNote
    before: Counter[str] = field(default_factory=Counter)  # sequences read before the run was resumed
    seconds: float = 0.0  # duration before the run was resumed
    began: float = 0.0  # start of this process's training, by time.perf_counter()

    def rewind(self, checkpoint: Path | None) -> None:
        """Restore the counts of a checkpoint, and remove metrics that were written after it."""
        step = step_of(checkpoint)
        if checkpoint:
            self.before.update(read_json(checkpoint / "read.json")["sequences"])
        if not self.first:
            return
        self.run.rewind_metrics(step if checkpoint else -1)
        self.seconds = max((row["seconds"] for row in self.rows()), default=0.0)
        self.on_note(f"resuming after step {step} of {self.settings.steps}")

    def rows(self) -> list[MetricsRow]:
        """Return the rows of metrics.jsonl."""
        return read_rows(self.run.metrics)

    def owes_validation(self, step: int) -> bool:
        """Whether a validation is due after `step` steps and is missing, because the run was stopped before it."""
        due = step % self.settings.eval_every == 0 if step else self.settings.eval_on_start
        return due and not any(row["step"] == step and "validation" in row for row in self.rows())

    def describe(self, split: BatchSplit) -> str:
        """Return a line about parameters, learning rate and batch for the user."""
        trained, frozen = self.parameters
        left = self.sampler.total - self.settings.steps * self.settings.batch_size
        layers = f" (train_only is found in {self.layers[0]} of {self.layers[1]} layers)"
        return (
            f"{trained:,} parameters are trained, {frozen:,} frozen{layers if self.settings.train_only else ''}; "
            f"learning rate {self.settings.learning_rate:.3g}; "
            f"{split.per_device} sequences at once × {split.processes} processes × {split.accumulation} "
            f"accumulated = {self.settings.batch_size}"
            + (f"; {left:,} sequences of the mixture will not be read" if left else "")
        )

    def tokens(self, step: int) -> int:
        """Return the number of tokens read in `step` steps."""
        return step * self.settings.batch_size * self.settings.sequence_length

    def reading(self, counts: Mapping[str, int]) -> MetricsRow:
        """Return the tokens of each source, and the passes over it including earlier phases.

        Args:
            counts: sequences read from each source.
        """
        length = self.settings.sequence_length
        tokens = {source: count * length for source, count in counts.items()}
        return {"tokens_by_source": tokens, "epochs": passes(self.mixture, counts, length)}

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append a row to metrics.jsonl, and report it as progress.

        Raises:
            NonFiniteLossError: a number is NaN or infinite.
        """
        for name, value in [*values.items(), *values.get("validation", {}).items()]:
            if isinstance(value, float) and not math.isfinite(value):
                good = checkpoints(self.run.checkpoints)
                raise NonFiniteLossError(
                    f"step {step}: {name} is {value}. Last good checkpoint: {good[-1] if good else 'none yet'}. Start "
                    "again in another folder with a lower learning_rate or clip; to start from a checkpoint, name it "
                    f"with {argument('model')}. Also check the text."
                )
        if not self.first:
            return
        seconds = self.seconds + time.perf_counter() - self.began
        row = {"step": step, "tokens": self.tokens(step), **values, "seconds": round(seconds, 3)}
        self.run.log(row)
        self.on_progress(Event("step", "train", step, self.settings.steps, unit="steps", row=row))

    def finish(self, trainer: Trainer, counts: Mapping[str, int]) -> TrainResult:
        """Write the model, and train.json last. Return the result.

        Args:
            trainer: trainer with the model.
            counts: sequences read from each source.
        """
        from accelerate.utils import broadcast_object_list  # type: ignore[import-untyped]

        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # a collective: called on every process
        (summary,) = broadcast_object_list([self._summary(counts) if self.first else None])
        if self.first:
            model: Any = trainer.accelerator.unwrap_model(trainer.model)
            model.config.use_cache = True  # Trainer set it to False for training
            shutil.rmtree(self.run.path / "model", ignore_errors=True)
            with saving_tensors(self.run.path / "model") as folder:
                model.save_pretrained(folder, state_dict=state)
                self.store.tokenizer().export(folder)
            write_json(self.run.path / "train.json", summary)
        return TrainResult.of(self.run.path, summary, "trained")

    def _summary(self, counts: Mapping[str, int]) -> dict[str, Any]:
        """Return the content of train.json."""
        settings, steps, reading = self.settings, self.settings.steps, self.reading(counts)
        planned = self.sampler.counts(steps * settings.batch_size)
        config = read_yaml(self.run.path / "config.yaml")
        measured = [row for row in self.rows() if "validation" in row]
        seconds = self.seconds + time.perf_counter() - self.began
        return {
            "schema": f"{SCHEMA}/1",
            "model": {
                "path": "model",
                "from": settings.model,
                "base": {**config["model"], **config["pin"]},
                "trained_parameters": self.parameters[0],
                "frozen_parameters": self.parameters[1],
            },
            "mixture": {**config["mixture"], "sha256": sha256_file(self.run.path / "mixture.json")},
            "store": {
                "name": self.store.name,
                "sha256": self.store.sha256,
                "tokenizer_fingerprint": self.store.tokenizer_fingerprint,
            },
            "tokens_seen": sum(reading["tokens_by_source"].values()),
            "steps": steps,
            "batch_size": settings.batch_size,
            "sequence_length": settings.sequence_length,
            "seed": settings.seed,
            "validation": measured[-1]["validation_by_language"] if measured else {},
            "validation_by_source": measured[-1]["validation"] if measured else {},
            **reading,
            "repeated_beyond_plan": beyond_plan(self.reading(planned)["epochs"], reading["epochs"]),
            "seconds": round(seconds, 3),
            "tokens_per_second": round(sum(reading["tokens_by_source"].values()) / seconds, 1),
            "validation_share": round(sum(row.get("validation_seconds", 0.0) for row in measured) / seconds, 4),
            "xdoge_version": __version__,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }


def checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints, oldest first."""
    return sorted((path for path in folder.glob("checkpoint-*") if (path / SUMS).exists()), key=step_of)


def good_checkpoint(folder: Path, on_note: OnNote) -> Path | None:
    """Return the newest undamaged checkpoint, None if there is no checkpoint. Remove incomplete ones.

    Raises:
        XDogeError: all checkpoints are damaged.
    """
    complete = checkpoints(folder)
    for path in folder.glob("checkpoint-*"):
        if path not in complete:
            shutil.rmtree(path)
    return newest_whole(complete, on_note)


def step_of(checkpoint: Path | None) -> int:
    """Return the number of steps after which a checkpoint was written, 0 for None."""
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0


def passes(mixture: Mixture, counts: Mapping[str, int], sequence_length: int) -> dict[str, float]:
    """Return the passes over each source, including those of earlier phases.

    Args:
        mixture: mixture of the run.
        counts: sequences read from each source in this run.
        sequence_length: T, tokens per sequence.
    """
    shares = mixture.sources
    return {
        source: (shares[source].read_before + count * sequence_length) / max(1, shares[source].available_tokens)
        for source, count in counts.items()
    }


def beyond_plan(planned: Mapping[str, float], epochs: Mapping[str, float]) -> dict[str, float]:
    """Return the passes over sources in excess of the plan. The result is empty unless xdoge has a bug."""
    return {source: epochs[source] - most for source, most in planned.items() if epochs[source] > most}


def common_budget(runs: Sequence[Path | str]) -> int:
    """Return the number of training tokens of finished runs, which must be the same for all.

    Raises:
        XDogeError: a run is not finished, or the numbers differ.
    """
    seen = {str(run): read_json(Path(run) / "train.json", schema=SCHEMA)["tokens_seen"] for run in runs}
    if len(set(seen.values())) > 1:
        numbers = ", ".join(f"{run} {tokens:,}" for run, tokens in seen.items())
        raise XDogeError(f"the runs have seen different numbers of tokens and cannot be compared: {numbers}.")
    return int(next(iter(seen.values())))
