"""Train a target model on a mixture with transformers' Trainer.

Position t of the sampler is sequence t of the run for any number of processes. A run that is resumed from a checkpoint
after n steps therefore continues at position n × batch_size. These are the files in the run folder:

config.yaml     store, mixture, model and all resolved settings; versions of libraries
mixture.json    the mixture, whose SHA-256 is in train.json
metrics.jsonl   a row per step, and a row with "validation", "tokens_by_source" and "epochs" per evaluation
checkpoints/    the latest checkpoints of Trainer. Weights are in safetensors. States of optimiser, schedule and random
                generators are in torch's format and loaded with `weights_only`. Each also has the tokenizer, so that
                --model accepts it, read.json with the sequences read from each source, and SHA256SUMS, written last
model/          the trained model in float32, in the format of transformers, with the tokenizer
train.json      the result for `xdoge eval` and `xdoge compare`. It exists only if the run is finished
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
from xdoge.training.eval_schedule import with_schedule_of_run
from xdoge.training.optim import BETAS, pick_autocast
from xdoge.training.run_folder import RunFolder, decisive

TIMEOUT = 1800.0
"""Seconds for which a process waits for others, the default of transformers."""


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
    """Train a model on a mixture.

    Under torchrun or `accelerate launch`, every process calls this function and gets the same result. Rank 0 writes
    files and reports. A run that is killed and resumed trains on the same sequences in the same steps, even if the
    number of processes changes.

    Args:
        mixture: mixture to train on.
        store: token store of the mixture.
        settings: result of `TrainSettings.for_run`. None means that `values` has the settings.
        out: run folder, which must be new or empty.
        resume: continue the run in `out`. Its settings are used unless `values` has others.
        on_progress: called with a "step" event for each row of metrics.jsonl: one per step, and one per evaluation.
        on_note: called with sentences for the user.
        values: any fields of `TrainSettings`, for example model="1m" and steps=300.

    Returns:
        The result, with the folder of the model and its validation losses.

    Raises:
        XDogeError: a setting is wrong, or differs from that of the resumed run. Or the folder is not empty, the
            processes cannot share the batch, or model, mixture and store do not match.
        NonFiniteLossError: training diverged.
        MemoryFullError: the device of this process has too little memory.
        Interrupted: SIGINT or SIGTERM arrived. Every finished step is in a checkpoint.
    """
    run = RunFolder(Path(out))
    if settings is None:
        earlier = run.settings() if resume else {}
        settings = TrainSettings.for_run(mixture, store, {**earlier, **values})
    elif values:
        raise XDogeError(f"settings holds every setting already; leave out {', '.join(values)}, or settings.")
    elif resume:
        settings = with_schedule_of_run(settings, run.settings())
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
        on_note(
            f"note: {initial.name} is read as the name of a recipe; write ./{initial.name} for the folder of that name"
        )
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
        if first and not (run.path / "mixture.json").exists():  # also after a kill between the two writes
            mixture.save(run.path / "mixture.json")
        checkpoint = processes.on_first(lambda: good_checkpoint(run.checkpoints, on_note) if resume else None)
        return _run(run_log, model, split, stop, checkpoint, resume=resume)


def _run(
    run_log: RunLog, model: Any, split: BatchSplit, stop: list[int], checkpoint: Path | None, *, resume: bool
) -> TrainResult:
    """Train from the last checkpoint, or from the start, until the end or until a signal arrives."""
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
    """Return the sampler of the run, and its warnings as lines for the user."""
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
    """End the workers of the data loader after an error.

    The traceback keeps the loader alive, and the workers ignore signals. Clearing the frames lets the loader end them.
    """
    try:
        yield
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        if isinstance(error, XDogeError) and "in DataLoader worker" in str(error):  # its text contains a traceback
            raise type(error)(str(error).rpartition("Error: ")[2].strip()) from error
        raise


def refuse_other_precision(settings: TrainSettings) -> None:
    """Raise an error if the precision of `accelerate launch` differs from the setting.

    Raises:
        XDogeError: the two differ.
    """
    launch = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launch not in ("no", "bf16" if _autocasts(settings) else "no"):
        raise XDogeError(
            f"accelerate is set to mixed_precision {launch} (its config, or ACCELERATE_MIXED_PRECISION), "
            f"but precision {settings.precision} is {'bfloat16' if _autocasts(settings) else 'float32'}; "
            "use the same for both."
        )


def _autocasts(settings: TrainSettings) -> bool:
    cuda = settings.device == "auto" and torch.cuda.is_available()
    return pick_autocast(settings.precision, torch.device("cuda" if cuda else "cpu")) is not None


def training_arguments(settings: TrainSettings, split: BatchSplit, run: RunFolder) -> Any:
    """Return the arguments of Trainer: no shuffling, one block of the sampler per step, logs at every step.

    Raises:
        XDogeError: one process sees several GPUs. Trainer would divide each batch among them in its own way.
    """
    if "tensorboard" in settings.report_to:  # Trainer's default is the working directory
        os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(run.path / "tensorboard"))
    arguments = TrainingArguments(
        output_dir=str(run.checkpoints),
        run_name=run.path.name,
        train_sampling_strategy="sequential",
        dataloader_drop_last=True,
        dataloader_num_workers=settings.workers,
        dataloader_pin_memory=settings.device == "auto" and torch.cuda.is_available(),
        remove_unused_columns=False,  # keeps the index of the source
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
        save_steps=settings.checkpoint_every,  # the interval that `Schedule` uses
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=list(settings.report_to) or "none",
        disable_tqdm=True,
        log_level="error",
    )
    if arguments.n_gpu > 1:
        raise XDogeError(
            f"one process sees {arguments.n_gpu} GPUs; start one process for each with torchrun "
            f"--nproc-per-node {arguments.n_gpu} -m xdoge train ..., or use a single GPU with "
            "CUDA_VISIBLE_DEVICES=0."
        )
    return arguments


def resolved_config(
    mixture: Mixture, store: TokenStore, settings: TrainSettings, initial: InitialModel, sampler: MixtureSampler
) -> dict[str, Any]:
    """Return the content of config.yaml: store, mixture, model and all settings."""
    plan = sampler.fingerprint  # equal for equal plans, while the SHA-256 of the file also depends on its date
    return {
        "store": {"path": str(store.path), "name": store.name, "sha256": store.sha256},
        "mixture": {"name": mixture.name, "sha256": sha256_json(mixture.to_dict()), "plan": plan},
        "settings": settings.model_dump(mode="json"),
        "model": initial.to_config(),
    }
