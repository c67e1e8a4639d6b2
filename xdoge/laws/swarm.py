"""Trains a swarm. Any number of processes may share its folder; each planned run is trained once."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from xdoge.distributed import stop_requests
from xdoge.errors import FolderInUseError, Interrupted, XDogeError, argument
from xdoge.io import write_json
from xdoge.models.initial_model import InitialModel
from xdoge.progress import Event, OnNote, OnProgress, silent
from xdoge.training.run_folder import RunFolder, version_changes, versions

if TYPE_CHECKING:
    from xdoge.corpus.store import TokenStore

from xdoge.laws.swarm_plan import Swarm
from xdoge.laws.swarm_settings import SwarmSettings

SCHEMA = "xdoge.swarm-results"

WAIT = 1.0
"""Seconds between checks of the runs that other processes train."""


def run_swarm(
    store: TokenStore,
    settings: SwarmSettings,
    out: Path | str,
    *,
    resume: bool = False,
    jobs: int = 1,
    on_progress: OnProgress = silent,
    on_note: OnNote = silent,
) -> Swarm:
    """Plan a swarm, train all its runs, and return it. `Swarm.fit` then fits a law to the runs.

    The last file written is summary.json, with the losses of every run.

    A swarm may be killed at any moment and resumed. It then trains the missing runs and ends with the same losses. With
    `resume`, several calls may share a folder, also on several machines with a common file system.

    Args:
        store: the token store.
        settings: settings from `SwarmSettings.for_store`.
        out: folder of the swarm, new or empty.
        resume: whether to continue the swarm in `out`.
        jobs: number of trainings at once. Each runs in its own process, with an equal part of the cores.
        on_progress: called after every step, counted over all runs.
        on_note: called with each sentence that the user should read.

    Raises:
        XDogeError: the folder is not empty, settings or store differ from those of the swarm that is resumed, the
            anchors diverged, or seeds differ more than mixtures.
        Interrupted: SIGINT or SIGTERM stopped the swarm. Every finished step is in a checkpoint.
    """
    from xdoge.models.initial_model import InitialModel
    from xdoge.models.memory import memory_errors
    from xdoge.training.optim import pick_device
    from xdoge.training.pace import Pace

    out = Path(out)
    begin(store, settings, out, resume=resume, on_note=on_note)
    for line in settings.notes(store):
        on_note(f"note: {line}")
    pace = Pace(
        settings.flops(store.vocab_size),
        store,
        on_progress,
        on_note,
        proxies=settings.runs,
        from_scratch=InitialModel.find(settings.proxy).recipe is not None,
    )
    with stop_requests() as stop, memory_errors(settings.memory_advice):
        pace.expect(pick_device(settings.device))
        if jobs > 1:
            _work_in_processes(store, out, jobs, stop, pace.show, on_note)
        work(store, out, stop=stop, on_progress=pace.show, on_note=on_note)
        with _claimed(out, stop):
            swarm = Swarm.load(out)
            losses = {name: dict(result.losses) for name, result in swarm.results().items()}
            write_json(out / "summary.json", {"schema": f"{SCHEMA}/1", "flops": swarm.flops(), "losses": losses})
    return swarm


@contextlib.contextmanager
def _claimed(out: Path, stop: list[int]) -> Iterator[None]:
    """Wait for the lock of the folder, hold it, and delete half-written files of a killed process.

    Raises:
        Interrupted: a signal came while another process held the lock.
    """
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(RunFolder(out).claimed())
                break
            except FolderInUseError:
                if stop:
                    raise Interrupted(stop[0], f"stopped; {argument('resume', True)} continues") from None
                time.sleep(WAIT / 10)
        yield


def begin(store: TokenStore, settings: SwarmSettings, out: Path, *, resume: bool, on_note: OnNote = silent) -> Swarm:
    """Write the plan of a new swarm, or check that the swarm in a folder has these settings; return the swarm.

    Raises:
        XDogeError: the folder is not empty, or the settings or the store differ from those of the swarm in it.
    """
    if not resume:
        run = RunFolder(out)
        if (out / "swarm.json").exists():
            raise XDogeError(
                f"{out} holds a swarm. Continue it with {argument('resume', True)}, or name another folder."
            )
        run.refuse_taken()
        swarm = Swarm.plan(store, settings, out)
        swarm.versions = versions()
        with run.claimed():
            run.refuse_taken()  # another process may have started one meanwhile
            swarm.save()
        return swarm
    swarm = Swarm.load(out)
    if swarm.store_sha256 != store.sha256:
        raise XDogeError(f"{out} was begun with another token store than {store.path}.")
    before, now = swarm.settings.model_dump(mode="json"), settings.model_dump(mode="json")
    changed = [f"{key} was {before[key]!r}, is now {now[key]!r}" for key in now if before[key] != now[key]]
    if changed:
        raise XDogeError(f"{out} cannot be resumed with other settings: {'; '.join(changed)}.")
    if InitialModel.find(settings.proxy).pin() != swarm.proxy:
        raise XDogeError(f"the files of {argument('proxy')} {settings.proxy} changed since {out} was begun.")
    for line in version_changes(swarm.versions, versions() if swarm.versions else {}):
        on_note(line)
    return swarm


def work(store: TokenStore, out: Path, *, stop: list[int], on_progress: OnProgress, on_note: OnNote) -> None:
    """Train runs of a swarm until all have ended. Other processes may do the same at the same time."""
    from xdoge.laws.swarm_run import train_run

    saved: set[str] | None = None
    while True:
        with _claimed(out, stop):
            swarm = Swarm.load(out)
            waiting = swarm.advance(on_note)
            if (now := set(swarm.results())) != saved:
                swarm.save()
                saved = now
        if not waiting:
            return
        settings = swarm.settings
        total, ended = settings.runs * settings.steps, len(swarm.results()) * settings.steps

        def show(event: Event, *, ended: int = ended, total: int = total) -> None:
            on_progress(replace(event, name="swarm", done=ended + event.done, total=total))

        for run in waiting:
            try:
                folder = swarm.folder(run)
                weights = swarm.weights(run)
                result = train_run(
                    store, settings, weights, folder, seed=run.seed, stop=stop, on_progress=show, on_note=on_note
                )
            except FolderInUseError:
                continue
            done = len(swarm.results())
            if result.diverged:
                on_note(_of_diverged(run.name, result.diverged))
            else:
                mean = sum(result.losses.values()) / len(result.losses)
                on_note(f"{run.name} finished: mean {mean:.4f} bits per byte; {done} of {settings.runs} runs")
            break
        else:
            if stop:
                raise Interrupted(stop[0], f"stopped; {argument('resume', True)} continues")
            time.sleep(WAIT)


def _of_diverged(name: str, why: str) -> str:
    return f"warning: {name} diverged ({why}); its result is kept but not used for the law"


def _work_in_processes(
    store: TokenStore, out: Path, jobs: int, stop: list[int], on_progress: OnProgress, on_note: OnNote
) -> None:
    """Train with several processes until all runs have ended. A signal to this process is passed on to them."""
    context = multiprocessing.get_context("spawn")
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    workers = [
        context.Process(target=_worker, args=(store.path, out, threads, environment), daemon=True)
        for environment in worker_environments(jobs, device=Swarm.load(out).settings.device)
    ]
    for worker in workers:
        worker.start()
    ended: set[str] = set()
    while any(worker.is_alive() for worker in workers):
        if stop:
            for worker in workers:
                worker.terminate()
        swarm = Swarm.load(out)
        results = swarm.results()
        for name in results.keys() - ended:
            why = results[name].diverged
            on_note(
                _of_diverged(name, why) if why else f"{name} finished; {len(results)} of {swarm.settings.runs} runs"
            )
        if results.keys() - ended:
            steps = swarm.settings.steps
            on_progress(Event("step", "swarm", len(results) * steps, swarm.settings.runs * steps, unit="steps"))
        ended = set(results)
        time.sleep(WAIT)
    if stop:
        raise Interrupted(stop[0], f"stopped; {argument('resume', True)} continues")


def worker_environments(jobs: int, *, device: str) -> list[dict[str, str]]:
    """Return the environment variables of each of some workers, which share the visible GPUs evenly.

    Args:
        jobs: number of workers.
        device: setting of the swarm; any other than "auto" or "cuda" holds for all workers.
    """
    import torch

    if device not in ("auto", "cuda") or (count := torch.cuda.device_count()) < 2:
        return [{} for _ in range(jobs)]
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    names = visible[:count] or [str(number) for number in range(count)]
    return [{"CUDA_VISIBLE_DEVICES": names[number % len(names)]} for number in range(jobs)]


def _worker(store_path: Path, out: Path, threads: int, environment: dict[str, str]) -> None:
    """Train runs in a child process. Messages go to stderr."""
    os.environ.update(environment)  # before CUDA starts
    import torch

    from xdoge.corpus.store import TokenStore

    torch.set_num_threads(threads)
    with stop_requests() as stop, contextlib.suppress(Interrupted, XDogeError):  # the parent reports these
        work(TokenStore.open(store_path), out, stop=stop, on_progress=silent, on_note=silent)
