"""transformers' Trainer on a mixture, with xdoge's order, schedule, validation by source, metrics and checkpoints."""

from __future__ import annotations

import contextlib
import shutil
import signal
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.utils.data import Subset, get_worker_info
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from xdoge.errors import XDogeError, argument
from xdoge.io import disk_errors, write_json
from xdoge.models.loss import sequence_nats
from xdoge.sampling.dataset import MixtureDataset
from xdoge.train.run_log import RunLog, checkpoints
from xdoge.train.settings import TrainSettings
from xdoge.training.checkpoints import seal
from xdoge.training.optim import learning_rate_ratio
from xdoge.training.validation import by_language, validation_losses


class _Labelled(Subset[dict[str, torch.Tensor]]):
    """A `MixtureDataset` whose items also have the index of their source."""

    dataset: MixtureDataset

    def __getitems__(self, positions: list[int]) -> list[dict[str, torch.Tensor]]:
        if get_worker_info() is not None:  # workers get signals of Ctrl-C and of schedulers too
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
        sources = torch.from_numpy(self.dataset.sampler[positions].source)
        items = self.dataset.__getitems__(positions)
        for source, item in zip(sources.tolist(), items, strict=True):
            self.dataset.store.check_ids(self.dataset.sampler.sources[source], item["input_ids"].numpy())
        return [{**item, "source": source} for item, source in zip(items, sources, strict=True)]


class MixtureTrainer(Trainer):
    """transformers' Trainer on a mixture, with xdoge's schedule, validation by source and metrics."""

    def __init__(self, run_log: RunLog, model: Any, arguments: TrainingArguments) -> None:
        settings = run_log.settings
        dataset = MixtureDataset(run_log.store, run_log.sampler, settings.sequence_length, documents=settings.documents)
        read = _Labelled(dataset, range(settings.steps * settings.batch_size))  # for Trainer, the run is one epoch
        super().__init__(model, arguments, train_dataset=read)
        self.remove_callback(PrinterCallback)  # prints to stdout
        self.run_log = run_log
        self.read = torch.zeros(len(run_log.sampler.sources), dtype=torch.int64, device=arguments.device)
        self.last = run_log.began = time.perf_counter()
        if self.is_fsdp_enabled and "FULL" not in (kind := str(self.accelerator.state.fsdp_plugin.state_dict_type)):
            raise XDogeError(
                f"fsdp_state_dict_type {kind.rpartition('.')[2]} writes what only pickle reads back, and no "
                "safetensors; set FULL_STATE_DICT in the config of accelerate."
            )
        if (total := self.get_total_train_batch_size(arguments)) != settings.batch_size:
            raise XDogeError(
                f"the processes train on {total} sequences per step, but batch_size is {settings.batch_size}."
            )

    def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any) -> torch.Tensor:
        """Train on a batch, and count its sequences of each source."""
        sources = inputs.pop("source")
        self.read.index_add_(0, sources, torch.ones_like(sources))
        return super().training_step(model, inputs, *rest)

    def sequences(self) -> dict[str, int]:
        """Return the number of sequences of each source on which all processes have trained since the run began."""
        total: Any = self.accelerator.reduce(self.read, "sum")
        named = zip(self.run_log.sampler.sources, total.tolist(), strict=True)
        return {source: self.run_log.before[source] + count for source, count in named}

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write Trainer's checkpoint with the tokenizer and the counts, then its checksums, and remove old ones."""
        read, run_log = self.sequences(), self.run_log
        folder = run_log.run.checkpoints / f"checkpoint-{self.state.global_step}"
        with _whole_or_not(folder):
            if run_log.first:
                write_json(folder / "read.json", {"sequences": read})
                run_log.store.tokenizer().export(folder)
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()  # every process writes a file
            if run_log.first:
                seal(folder)
        if run_log.first:
            for old in checkpoints(run_log.run.checkpoints)[: -run_log.settings.keep_checkpoints]:
                shutil.rmtree(old)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        optimizer = optimizer or self.optimizer
        assert optimizer is not None
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda done: learning_rate_ratio(done + 1, self.run_log.settings),
        )
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Pass the logs to the trackers. Write a row to metrics.jsonl if they are about a step."""
        super().log(logs, start_time)
        self.state.log_history.clear()  # metrics.jsonl has it; here it would enlarge every checkpoint
        if "loss" in logs:
            now = time.perf_counter()
            speed = self.run_log.tokens(1) / (now - self.last)
            self.last = now
            values = {key: float(logs[key]) for key in ("loss", "grad_norm", "learning_rate")}
            self.run_log.write(self.state.global_step, {**values, "tokens_per_second": round(speed, 1)})

    @torch.no_grad()
    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Compute the validation loss of each source, and write it as a row of metrics.jsonl."""
        run_log, settings, model = self.run_log, self.run_log.settings, self.model
        assert model is not None
        began = time.perf_counter()
        model.eval()
        losses = validation_losses(
            lambda *batch: sequence_nats(model, *(tensor.to(self.args.device) for tensor in batch)),
            run_log.store,
            settings.sequence_length,
            most=settings.eval_sequences,
            rows=self.args.per_device_train_batch_size,
            documents=settings.documents,
            rank=self.args.process_index,
            world_size=self.args.world_size,
            gather=self.accelerator.gather,
        )
        languages = by_language(losses, run_log.store, settings.sequence_length)
        values = {
            "validation": losses,
            "validation_by_language": languages,
            "validation_seconds": round(time.perf_counter() - began, 3),
            **run_log.reading(self.sequences()),
        }
        run_log.write(self.state.global_step, values)
        self.last = time.perf_counter()
        metrics = {f"eval_{language}": loss for language, loss in languages.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class Schedule(TrainerCallback):
    """Evaluates and saves at the scheduled steps. If any process got a signal, saves at once and ends training."""

    def __init__(self, stop: list[int], settings: TrainSettings) -> None:
        self.stop, self.settings = stop, settings

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        number = self.stop[0] if self.stop else 0
        if args.world_size > 1:
            largest = torch.tensor(number, device=args.device)
            torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX)
            number = int(largest)
            self.stop[:] = [number] if number else []
        step, last = state.global_step, state.global_step == self.settings.steps
        control.should_evaluate = last or (step % self.settings.eval_every == 0 and not number)
        control.should_save = last or bool(number) or step % self.settings.checkpoint_every == 0
        control.should_training_stop = last or bool(number)


@contextlib.contextmanager
def _whole_or_not(folder: Path) -> Iterator[None]:
    """Remove a checkpoint that could not be written completely, and report problems of the disk."""
    try:
        with disk_errors(folder):
            yield
    except (XDogeError, SafetensorError, RuntimeError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, SafetensorError) or "inline_container.cc" in str(error):  # a RuntimeError of torch.save
            what = textwrap.shorten(str(error), 200, placeholder=" ...")
            raise XDogeError(
                f"{folder} cannot be written, perhaps because the disk is full ({what}); it was removed. "
                f"Free space, then continue with {argument('resume', True)}."
            ) from error
        raise
