"""Train a swarm: every planned run once, by as many processes as share its folder."""

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
"""Seconds between looks at runs that other processes hold."""


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
    """Plan a swarm, train it, and return it; `out` then holds what `MixtureLaw.fit` reads.

    The last file that it writes is summary.json, with the losses of every run.

    Killed at any moment and resumed, it trains what is missing and ends with the same losses. Several calls, also on
    several machines with one file system, may share a folder with `resume`.

    Args:
        store: the tokens.
        settings: from `SwarmSettings.for_store`.
        out: the swarm's folder, empty or new.
        resume: continue the swarm that lies in `out`.
        jobs: trainings at once, each in a process of its own with its part of the cores.
        on_progress: called with every step, counted over all runs.
        on_note: called with what the user should know.

    Raises:
        XDogeError: the folder is taken, settings or store differ from those of the swarm that is resumed, the anchors
            diverged, or the noise is too large.
        Interrupted: SIGINT or SIGTERM came; every finished step is in a checkpoint.
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
    """Wait for the folder, keep other processes out of it, and clear away what a killed one had half written.

    Raises:
        Interrupted: a signal came while another process held it.
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
    """Write the plan of a new swarm, or check that the swarm in a folder is the one that is asked for.

    Raises:
        XDogeError: as `run_swarm` says.
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
            run.refuse_taken()  # another process may have begun one since
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
    """Train runs of a swarm until all have ended; other processes may do the same at the same time."""
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
                on_note(f"{run.name} ended: {mean:.4f} bits per byte in the mean; {done} of {settings.runs} runs")
            break
        else:
            if stop:
                raise Interrupted(stop[0], f"stopped; {argument('resume', True)} continues")
            time.sleep(WAIT)


def _of_diverged(name: str, why: str) -> str:
    return f"warning: {name} diverged ({why}); it is kept and left out of the law"


def _work_in_processes(
    store: TokenStore, out: Path, jobs: int, stop: list[int], on_progress: OnProgress, on_note: OnNote
) -> None:
    """Train with several processes until each has nothing left to do, and tell them to stop if we are told."""
    context = multiprocessing.get_context("spawn")
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    workers = [context.Process(target=_worker, args=(store.path, out, threads), daemon=True) for _ in range(jobs)]
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
            on_note(_of_diverged(name, why) if why else f"{name} ended; {len(results)} of {swarm.settings.runs} runs")
        if results.keys() - ended:
            steps = swarm.settings.steps
            on_progress(Event("step", "swarm", len(results) * steps, swarm.settings.runs * steps, unit="steps"))
        ended = set(results)
        time.sleep(WAIT)
    if stop:
        raise Interrupted(stop[0], f"stopped; {argument('resume', True)} continues")


def _worker(store_path: Path, out: Path, threads: int) -> None:
    """Train runs in a process of its own; messages go to stderr."""
    import torch

    from xdoge.corpus.store import TokenStore

    torch.set_num_threads(threads)
    with stop_requests() as stop, contextlib.suppress(Interrupted, XDogeError):  # the parent says what is wrong
        work(TokenStore.open(store_path), out, stop=stop, on_progress=silent, on_note=silent)
