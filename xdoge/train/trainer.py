"""The training of a target model: transformers' Trainer reads a mixture in its order.

Position t of the sampler is sequence t of the run, whatever the processes, so a checkpoint at step n goes on at
position n × batch_size. The run folder holds

config.yaml     store, mixture, model and every setting, resolved; versions at the start
mixture.json    what is read, with the SHA-256 that config.yaml and train.json name
metrics.jsonl   a row a step, and one with "validation", "tokens_by_source" and "epochs" at each evaluation
checkpoints/    the latest, as Trainer writes them: weights in safetensors, and optimiser, schedule and random states in
                torch's own format, which torch reads back as plain tensors only (`weights_only`); with the tokenizer,
                so that --model takes one, read.json, the sequences of each source that training has read, and
                SHA256SUMS of all these files, written last
model/          the trained model in float32, as transformers saves it, with the tokenizer
train.json      what eval and compare need; its presence says that the run is finished
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import textwrap
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list  # type: ignore[import-untyped]
from safetensors import SafetensorError
from torch.utils.data import Subset, get_worker_info
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from xdoge.corpus.store import TokenStore
from xdoge.distributed import stop_requests
from xdoge.errors import Interrupted, XDogeError, argument
from xdoge.io import disk_errors, read_json, sha256_json, write_json
from xdoge.mixtures.mixture import Mixture
from xdoge.models.loss import sequence_nats
from xdoge.models.memory import memory_errors
from xdoge.sampling.dataset import MixtureDataset
from xdoge.sampling.sampler import MixtureSampler
from xdoge.train.initial_model import InitialModel, check_documents, freeze, layers_trained
from xdoge.train.run_log import SCHEMA, Record, Row, checkpoints, good_checkpoint, step_of
from xdoge.train.settings import ELASTIC, BatchSplit, TrainSettings, check_mixture
from xdoge.training.checkpoints import seal
from xdoge.training.optim import BETAS, learning_rate_ratio, pick_autocast
from xdoge.training.run_folder import RunFolder
from xdoge.training.validation import by_language, validation_losses


def train(
    mixture: Mixture,
    store: TokenStore,
    settings: TrainSettings,
    out: Path | str,
    *,
    resume: bool = False,
    on_row: Callable[[Row], None] = lambda row: None,
    on_note: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Train a model on the mixture and return what `out`/train.json holds.

    Under torchrun or `accelerate launch` every process calls it; the first one writes and reports. Killed at any
    moment and resumed, on as many processes or others, it trains on the very same sequences in the same steps.

    Args:
        mixture: what to read.
        store: the tokens.
        settings: from `TrainSettings.for_run`.
        out: the run folder, empty or new.
        resume: continue the run that lies in `out`.
        on_row: called with each row of metrics.jsonl.
        on_note: called with what the user should know and no row says.

    Raises:
        XDogeError: the folder is taken, a setting differs from the run's that is resumed, the processes cannot share
            the batch, or model, mixture and store do not belong together.
        NonFiniteLossError: training diverged.
        MemoryFullError: a device of this process has too little memory.
        Interrupted: SIGINT or SIGTERM came; every finished step is in a checkpoint.
    """
    run, first = RunFolder(Path(out)), os.environ.get("RANK", "0") == "0"
    if not first:
        on_row = on_note = _ignore
    initial = InitialModel.find(settings.model)
    check_mixture(mixture, store)
    initial.check(store, settings.sequence_length)
    split = BatchSplit.of(settings)
    refuse_other_precision(settings)
    sampler = _sampler(mixture, store, settings, on_note)
    config = resolved_config(mixture, store, settings, initial, sampler)
    if resume:
        for change in run.check(config, free=ELASTIC) if first else ():
            on_note(f"resuming elsewhere than the run began, so the last digits may differ: {change}")
        if (run.path / "train.json").exists():
            on_note(f"{run.path} is finished already.")
            return read_json(run.path / "train.json", schema=SCHEMA)
    elif first:
        run.refuse_taken()
    if initial.recipe and Path(initial.name).is_dir():
        on_note(f"note: {initial.name} is taken as the recipe; write ./{initial.name} for the folder of that name")
    disable_progress_bar()  # type: ignore[no-untyped-call]
    set_verbosity_error()  # type: ignore[no-untyped-call]
    model = initial.build(store, sequence_length=settings.sequence_length, seed=settings.seed)
    check_documents(model, settings.documents)
    parameters = freeze(model, settings.train_only)
    layers = layers_trained(model)
    record = Record(run, store, mixture, settings, sampler, first, parameters, layers, on_row, on_note)
    with run.claimed() if first else contextlib.nullcontext(), _process_group(), stop_requests() as stop:
        if first and not resume:
            run.start({**config, "pin": initial.pin()})
        if first and not (run.path / "mixture.json").exists():  # nor where a kill came between the two
            mixture.save(run.path / "mixture.json")
        return _run(record, model, split, stop, resume=resume)


def _run(record: Record, model: Any, split: BatchSplit, stop: list[int], *, resume: bool) -> dict[str, Any]:
    """Train from the last checkpoint, or from the beginning, to the end or until a signal comes."""
    settings, run = record.settings, record.run
    trainer = _MixtureTrainer(record, model, training_arguments(settings, split, run))
    checkpoint = good_checkpoint(run.checkpoints, record.on_note) if resume and record.first else None
    (checkpoint,) = broadcast_object_list([checkpoint])
    if resume:
        record.rewind(checkpoint)
    (trainer.args.eval_on_start,) = broadcast_object_list([record.owes_validation(step_of(checkpoint))])
    trainer.add_callback(_Schedule(stop, settings))
    record.on_note(record.describe(split))
    advice = (
        f"with {split.per_device} sequences at once; lower {argument('per_device_batch_size')} (the step stays the "
        f"same, in more parts), or set {argument('activation_checkpointing', True)}. Both may change on resuming"
    )
    with _loader_ended(), memory_errors(advice):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    done = trainer.state.global_step
    if done < settings.steps:
        raise Interrupted(stop[0], f"stopped after step {done} of {settings.steps}; --resume continues")
    return record.finish(trainer, trainer.sequences())


def _sampler(
    mixture: Mixture, store: TokenStore, settings: TrainSettings, on_note: Callable[[str], None]
) -> MixtureSampler:
    """Return the order that the run reads in; what is odd about it is noted."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        sampler = MixtureSampler(
            mixture,
            store.sequence_counts(settings.sequence_length),
            batch_size=settings.batch_size,
            sequence_length=settings.sequence_length,
        )
    for warning in caught:
        on_note(f"note: {warning.message}")
    return sampler


@contextlib.contextmanager
def _loader_ended() -> Iterator[None]:
    """Let the loader end its workers after an error too, which holds on to it, for no signal ends them."""
    try:
        yield
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        if isinstance(error, XDogeError) and "in DataLoader worker" in str(error):  # with a traceback, as text
            raise type(error)(str(error).rpartition("Error: ")[2].strip()) from error
        raise


@contextlib.contextmanager
def _whole_or_not(folder: Path) -> Iterator[None]:
    """Take away a checkpoint that could not be written to its end, and say what the disk has to do with it."""
    try:
        with disk_errors(folder):
            yield
    except (XDogeError, SafetensorError, RuntimeError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, SafetensorError) or "inline_container.cc" in str(error):  # a RuntimeError of torch.save
            what = textwrap.shorten(str(error), 200, placeholder=" ...")
            raise XDogeError(
                f"{folder} cannot be written, as when the disk is full ({what}); it was taken away again. Free space, "
                "then --resume."
            ) from error
        raise


class _Labelled(Subset[dict[str, torch.Tensor]]):
    """Items of a `MixtureDataset`, each with the number of its source."""

    dataset: MixtureDataset

    def __getitems__(self, positions: list[int]) -> list[dict[str, torch.Tensor]]:
        if get_worker_info() is not None:  # a scheduler and Ctrl-C signal the loader's workers too
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
        sources = torch.from_numpy(self.dataset.sampler[positions].source)
        items = self.dataset.__getitems__(positions)
        for source, item in zip(sources.tolist(), items, strict=True):
            self.dataset.store.check_ids(self.dataset.sampler.sources[source], item["input_ids"].numpy())
        return [{**item, "source": source} for item, source in zip(items, sources, strict=True)]


class _MixtureTrainer(Trainer):
    """Trainer over a mixture, with our schedule, validation by source and metrics."""

    def __init__(self, record: Record, model: Any, arguments: TrainingArguments) -> None:
        settings = record.settings
        dataset = MixtureDataset(record.store, record.sampler, settings.sequence_length, documents=settings.documents)
        read = _Labelled(dataset, range(settings.steps * settings.batch_size))  # one epoch, to Trainer
        super().__init__(model, arguments, train_dataset=read)
        self.remove_callback(PrinterCallback)  # prints to stdout
        self.record = record
        self.read = torch.zeros(len(record.sampler.sources), dtype=torch.int64, device=arguments.device)
        self.last = record.began = time.perf_counter()
        if self.is_fsdp_enabled and "FULL" not in (kind := str(self.accelerator.state.fsdp_plugin.state_dict_type)):
            raise XDogeError(
                f"fsdp_state_dict_type {kind.rpartition('.')[2]} writes what only pickle reads back, and no "
                "safetensors; set FULL_STATE_DICT in the config of accelerate."
            )
        if (total := self.get_total_train_batch_size(arguments)) != settings.batch_size:
            raise XDogeError(
                f"the processes train on {total} sequences a step, and batch_size is {settings.batch_size}."
            )

    def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any) -> torch.Tensor:
        """Train on a batch, and count what is in it."""
        sources = inputs.pop("source")
        self.read.index_add_(0, sources, torch.ones_like(sources))
        return super().training_step(model, inputs, *rest)

    def sequences(self) -> dict[str, int]:
        """Return the sequences of each source that all processes have trained on since the run began."""
        everyone: Any = self.accelerator.reduce(self.read, "sum")
        named = zip(self.record.sampler.sources, everyone.tolist(), strict=True)
        return {source: self.record.before[source] + count for source, count in named}

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write what was read, the tokenizer and all that Trainer writes, then seal it and drop the oldest."""
        read, record = self.sequences(), self.record
        folder = record.run.checkpoints / f"checkpoint-{self.state.global_step}"
        with _whole_or_not(folder):
            if record.first:
                write_json(folder / "read.json", {"sequences": read})
                record.store.tokenizer().export(folder)
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()  # each has a file in it
            if record.first:
                seal(folder)
        if record.first:
            for old in checkpoints(record.run.checkpoints)[: -record.settings.keep_checkpoints]:
                shutil.rmtree(old)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        optimizer = optimizer or self.optimizer
        assert optimizer is not None
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda done: learning_rate_ratio(done + 1, self.record.settings),
        )
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Hand the logs to the trackers, and write a row of those of a step."""
        super().log(logs, start_time)
        self.state.log_history.clear()  # metrics.jsonl keeps it; here it would grow with each checkpoint
        if "loss" in logs:
            now = time.perf_counter()
            speed = self.record.tokens(1) / (now - self.last)
            self.last = now
            values = {key: float(logs[key]) for key in ("loss", "grad_norm", "learning_rate")}
            self.record.write(self.state.global_step, {**values, "tokens_per_second": round(speed, 1)})

    @torch.no_grad()
    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure the validation loss of each source, in a row of its own."""
        record, settings, model = self.record, self.record.settings, self.model
        assert model is not None
        model.eval()
        losses = validation_losses(
            lambda *batch: sequence_nats(model, *(tensor.to(self.args.device) for tensor in batch)),
            record.store,
            settings.sequence_length,
            most=settings.eval_sequences,
            rows=self.args.per_device_train_batch_size,
            documents=settings.documents,
            rank=self.args.process_index,
            world_size=self.args.world_size,
            gather=self.accelerator.gather,
        )
        languages = by_language(losses, record.store, settings.sequence_length)
        found = {"validation": losses, "validation_by_language": languages}
        record.write(self.state.global_step, {**found, **record.reading(self.sequences())})
        self.last = time.perf_counter()
        metrics = {f"eval_{language}": loss for language, loss in languages.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class _Schedule(TrainerCallback):
    """Evaluates and saves on schedule; when a signal came to any process, saves at once and ends training."""

    def __init__(self, stop: list[int], settings: TrainSettings) -> None:
        self.stop, self.settings = stop, settings

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        number = self.stop[0] if self.stop else 0
        if args.world_size > 1:
            everyone = torch.tensor(number, device=args.device)
            torch.distributed.all_reduce(everyone, op=torch.distributed.ReduceOp.MAX)
            number = int(everyone)
            self.stop[:] = [number] if number else []
        step, last = state.global_step, state.global_step == self.settings.steps
        control.should_evaluate = last or (step % self.settings.eval_every == 0 and not number)
        control.should_save = last or bool(number) or step % self.settings.checkpoint_every == 0
        control.should_training_stop = last or bool(number)


def refuse_other_precision(settings: TrainSettings) -> None:
    """Refuse what `accelerate launch` would compute in, where the setting is another.

    Raises:
        XDogeError: the two differ.
    """
    there = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if there not in ("no", "bf16" if _autocasts(settings) else "no"):
        raise XDogeError(
            f"accelerate is set to mixed_precision {there} (its config, or ACCELERATE_MIXED_PRECISION), and precision "
            f"{settings.precision} is {'bfloat16' if _autocasts(settings) else 'float32'}; set both alike."
        )


def _autocasts(settings: TrainSettings) -> bool:
    cuda = settings.device == "auto" and torch.cuda.is_available()
    return pick_autocast(settings.precision, torch.device("cuda" if cuda else "cpu")) is not None


def training_arguments(settings: TrainSettings, split: BatchSplit, run: RunFolder) -> Any:
    """Return Trainer's arguments: nothing shuffled, one block of the sampler a step, a row of logs a step.

    Raises:
        XDogeError: one process sees several GPUs, among which Trainer would split each batch in its own way.
    """
    if "tensorboard" in settings.report_to:  # Trainer's own choice is a folder beside the caller
        os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(run.path / "tensorboard"))
    arguments = TrainingArguments(
        output_dir=str(run.checkpoints),
        run_name=run.path.name,
        train_sampling_strategy="sequential",
        dataloader_drop_last=True,
        dataloader_num_workers=settings.workers,
        dataloader_pin_memory=settings.device == "auto" and torch.cuda.is_available(),
        remove_unused_columns=False,  # they would take the number of the source
        per_device_train_batch_size=split.per_device,
        gradient_accumulation_steps=split.accumulation,
        max_steps=settings.steps,
        seed=settings.seed,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        max_grad_norm=settings.clip,
        ddp_find_unused_parameters=False,
        bf16=_autocasts(settings),
        use_cpu=settings.device == "cpu",
        activation_checkpointing=settings.activation_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if settings.activation_checkpointing else None,
        save_steps=settings.checkpoint_every,  # as `_Schedule` says
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=list(settings.report_to) or "none",
        disable_tqdm=True,
        log_level="error",
    )
    if arguments.n_gpu > 1:
        raise XDogeError(
            f"one process sees {arguments.n_gpu} GPUs; start one for each with torchrun --nproc-per-node "
            f"{arguments.n_gpu} -m xdoge train ..., or leave it one with CUDA_VISIBLE_DEVICES=0."
        )
    return arguments


def resolved_config(
    mixture: Mixture, store: TokenStore, settings: TrainSettings, initial: InitialModel, sampler: MixtureSampler
) -> dict[str, Any]:
    """Return what config.yaml holds: store, mixture, model and every setting."""
    plan = sampler.fingerprint  # the same for the same plan made again; the file's SHA-256 has its date in it
    return {
        "store": {"path": str(store.path), "name": store.name, "sha256": store.sha256},
        "mixture": {"name": mixture.name, "sha256": sha256_json(mixture.to_dict()), "plan": plan},
        "settings": settings.model_dump(mode="json"),
        "model": initial.to_config(),
    }


@contextlib.contextmanager
def _process_group() -> Iterator[None]:
    """End the process group that Trainer begins, unless there was one before or training failed."""
    before = torch.distributed.is_available() and torch.distributed.is_initialized()
    try:
        yield
    except Interrupted:
        _leave(before)
        raise
    _leave(before)


def _leave(before: bool) -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized() and not before:
        torch.distributed.destroy_process_group()


def _ignore(_: object) -> None:
    """Say nothing: another process does."""
