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
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Unpack

import torch
from accelerate.utils import broadcast_object_list  # type: ignore[import-untyped]
from transformers import TrainingArguments
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from xdoge.corpus.store import TokenStore
from xdoge.distributed import Processes, stop_requests
from xdoge.errors import Interrupted, XDogeError, argument
from xdoge.io import sha256_json
from xdoge.mixtures.mixture import Mixture
from xdoge.models.initial_model import InitialModel, freeze, layers_trained
from xdoge.models.memory import memory_errors
from xdoge.models.probes import refuse_leaks, refuse_other_loss
from xdoge.progress import OnNote, OnProgress, silent
from xdoge.sampling.sampler import MixtureSampler
from xdoge.train.mixture_trainer import MixtureTrainer, Schedule
from xdoge.train.result import TrainResult
from xdoge.train.run_log import RunLog, good_checkpoint, step_of
from xdoge.train.settings import ELASTIC, BatchSplit, TrainSettings, TrainValues, check_mixture
from xdoge.training.optim import BETAS, pick_autocast
from xdoge.training.run_folder import RunFolder, decisive

TIMEOUT = 1800.0
"""Seconds that a process waits for the others, as transformers has it."""


def train(
    mixture: Mixture,
    store: TokenStore,
    settings: TrainSettings | None = None,
    *,
    out: Path | str,
    resume: bool = False,
    on_progress: OnProgress = silent,
    on_note: OnNote = silent,
    **values: Unpack[TrainValues],
) -> TrainResult:
    """Train a model on the mixture.

    Under torchrun or `accelerate launch` every process calls it and returns the same; the first one writes and reports.
    Killed at any moment and resumed, on as many processes or others, it trains on the very same sequences in the same
    steps.

    Args:
        mixture: what to read.
        store: the tokens.
        settings: from `TrainSettings.for_run`; None to make them of `values`.
        out: the run folder, empty or new.
        resume: continue the run that lies in `out`, with its settings where `values` has no others.
        on_progress: called with a "step" for each row of metrics.jsonl: one a step, and one for each validation.
        on_note: called with what the user should know and no row says.
        values: any fields of `TrainSettings`, such as model="1m" and steps=300.

    Raises:
        XDogeError: a setting is wrong, the folder is taken, a setting differs from the run's that is resumed, the
            processes cannot share the batch, or model, mixture and store do not belong together.
        NonFiniteLossError: training diverged.
        MemoryFullError: a device of this process has too little memory.
        Interrupted: SIGINT or SIGTERM came; every finished step is in a checkpoint.
    """
    run = RunFolder(Path(out))
    if settings is None:
        earlier = run.settings() if resume else {}
        settings = TrainSettings.for_run(mixture, store, {**earlier, **values})
    elif values:
        raise XDogeError(f"settings holds every setting already; leave out {', '.join(values)}, or settings.")
    initial = InitialModel.find(settings.model)
    check_mixture(mixture, store)
    initial.check(store, settings.sequence_length)
    split = BatchSplit.of(settings)
    refuse_other_precision(settings)
    first = os.environ.get("RANK", "0") == "0"
    if not first:
        on_progress = on_note = silent
    sampler, notes = _sampler(mixture, store, settings)
    config = resolved_config(mixture, store, settings, initial, sampler)
    processes = Processes.join(cpu=settings.device == "cpu", timeout=TIMEOUT)
    processes.refuse_differences({**decisive(config), "resume": resume})
    if resume:
        notes += processes.on_first(lambda: run.check(config, free=ELASTIC))
        if (run.path / "train.json").exists():
            on_note(f"{run.path} is finished already.")
            processes.end_group_at_exit()
            return TrainResult.load(run.path)
    else:
        processes.on_first(run.refuse_taken)
    for line in notes:
        on_note(line)
    if initial.recipe and Path(initial.name).is_dir():
        on_note(f"note: {initial.name} is taken as the recipe; write ./{initial.name} for the folder of that name")
    disable_progress_bar()  # type: ignore[no-untyped-call]
    set_verbosity_error()  # type: ignore[no-untyped-call]
    model = initial.build(store, sequence_length=settings.sequence_length, seed=settings.seed)
    if settings.documents == "separate":
        refuse_leaks(model, length=settings.sequence_length)
    parts = split.processes * split.accumulation
    refuse_other_loss(model, initial.name, parts=parts, length=settings.sequence_length)
    parameters = freeze(model, settings.train_only)
    layers = layers_trained(model)
    run_log = RunLog(run, store, mixture, settings, sampler, first, parameters, layers, on_progress, on_note)
    with processes.within_on_first(run.claimed()), processes.closing_group(), stop_requests() as stop:
        if not resume:
            processes.on_first(lambda: run.start({**config, "pin": initial.pin()}))
        if first and not (run.path / "mixture.json").exists():  # nor where a kill came between the two
            mixture.save(run.path / "mixture.json")
        checkpoint = processes.on_first(lambda: good_checkpoint(run.checkpoints, on_note) if resume else None)
        return _run(run_log, model, split, stop, checkpoint, resume=resume)


def _run(
    run_log: RunLog, model: Any, split: BatchSplit, stop: list[int], checkpoint: Path | None, *, resume: bool
) -> TrainResult:
    """Train from the last checkpoint, or from the beginning, to the end or until a signal comes."""
    settings, run = run_log.settings, run_log.run
    trainer = MixtureTrainer(run_log, model, training_arguments(settings, split, run))
    if resume:
        run_log.rewind(checkpoint)
    (trainer.args.eval_on_start,) = broadcast_object_list([run_log.owes_validation(step_of(checkpoint))])
    trainer.add_callback(Schedule(stop, settings))
    run_log.on_note(run_log.describe(split))
    advice = (
        f"with {split.per_device} sequences at once; lower {argument('per_device_batch_size')} (the step stays the "
        f"same, in more parts), or set {argument('activation_checkpointing', True)}. Both may change on resuming"
    )
    with _loader_ended(), memory_errors(advice):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    done = trainer.state.global_step
    if done < settings.steps:
        raise Interrupted(
            stop[0], f"stopped after step {done} of {settings.steps}; {argument('resume', True)} continues"
        )
    return run_log.finish(trainer, trainer.sequences())


def _sampler(mixture: Mixture, store: TokenStore, settings: TrainSettings) -> tuple[MixtureSampler, list[str]]:
    """Return the order that the run reads in, and a line for each thing that is odd about it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        sampler = MixtureSampler(
            mixture,
            store.sequence_counts(settings.sequence_length),
            batch_size=settings.batch_size,
            sequence_length=settings.sequence_length,
        )
    return sampler, [f"note: {warning.message}" for warning in caught]


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
        use_cpu=settings.device == "cpu" or (split.processes > 1 and not torch.cuda.is_available()),
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
