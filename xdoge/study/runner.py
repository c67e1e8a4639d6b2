"""Runs the commands of a study, several at once. Each has its own process, so a failed command stops no other.

Each command appends its output to logs/NAME.log in the study's folder. When a command ends, a line is added to
runs.jsonl. Several processes, such as the tasks of a Slurm array, may do this.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from xdoge.distributed import stop_requests
from xdoge.errors import Interrupted
from xdoge.io import disk_errors, in_use, locked
from xdoge.progress import OnNote, silent
from xdoge.study.attempts import failed_runs, note_attempt
from xdoge.study.launcher import Command, Launcher
from xdoge.study.plan import Run

POLL = 0.05
"""Seconds between checks of the running commands."""
QUIET = 10.0
"""Seconds without a note, after which the last line of each running command is shown."""


def run_all(
    runs: Iterable[Run],
    out: Path,
    *,
    jobs: int = 1,
    only: Callable[[str], bool] | None = None,
    on_note: OnNote = silent,
) -> list[str]:
    """Run every run that is not finished, after the runs that it needs, and return the names of those that failed.

    A run that was begun continues. A run that needs a failed one is not started and counts as failed.

    Args:
        runs: the runs, each after the runs that it needs.
        out: the study's folder.
        jobs: number of commands at once. Each gets 1/jobs of the cores as threads, unless OMP_NUM_THREADS is set.
        only: returns whether to start a run, from its name, for several calls that share the folder. None starts all
            runs, and locks the folder.
        on_note: called with a line for each run that ends.

    Raises:
        XDogeError: another process runs this study.
        Interrupted: SIGINT or SIGTERM came. It was passed on to the running commands, and they have ended.
    """
    session = _Session({run.name: run for run in runs}, out, jobs, only or (lambda name: True), on_note)
    lock = locked(out) if only is None else contextlib.nullcontext()
    with lock, stop_requests() as stop, contextlib.closing(session):
        while session.running or (session.waiting and not stop):
            session.collect(stopping=bool(stop))
            if stop:
                session.tell_to_stop()
            else:
                session.start_what_can()
                session.tell_progress()
            time.sleep(POLL)
        if stop:
            raise Interrupted(
                stop[0], f"stopped; {session.finished} runs are finished. Run the same command again to continue."
            )
    return session.failed


class _Session:
    """State of one call of `run_all`: the waiting, running and failed runs, and their durations."""

    def __init__(
        self, runs: Mapping[str, Run], out: Path, jobs: int, only: Callable[[str], bool], on_note: OnNote
    ) -> None:
        self.runs, self.out, self.jobs, self.on_note = runs, out, jobs, on_note
        self.waiting = [run for run in runs.values() if only(run.name) and not run.finished]
        for run in runs.values():
            if run.finished and run.folder:  # perhaps by a command of an earlier, killed call
                shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)
        self.asked = {run.name for run in self.waiting}
        self.last_note = time.monotonic()
        self.running: dict[str, tuple[Run, Command, float]] = {}
        self.failed: list[str] = []
        threads = {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // jobs))}
        self.launcher = Launcher({**threads, **os.environ}, forks=len(self.waiting) > 1)
        self.began, self.was_stopped = time.monotonic(), False
        self.done, self.left = 0, sum(run.flops for run in self.waiting)

    def close(self) -> None:
        """Kill all commands that still run, and end the launcher."""
        for _, process, _ in self.running.values():
            process.kill()
            process.wait()
        self.launcher.close()

    @property
    def finished(self) -> str:
        """How many of all runs are finished, as text. A run counts only after `collect`."""
        finished = sum(run.finished and name not in self.running for name, run in self.runs.items())
        return f"{finished} of {len(self.runs)}"

    def collect(self, *, stopping: bool) -> None:
        """Record the commands that ended, except those that were told to stop."""
        for run, process, began in [*self.running.values()]:
            status = process.poll()
            if status is None:
                continue
            del self.running[run.name]
            if not (stopping and status in _STOPPED):
                self._ended(run, status, time.monotonic() - began)

    def _ended(self, run: Run, status: int, seconds: float) -> None:
        good, message = status == 0 and run.finished, last_line(log_of(self.out, run.name))
        given_up: dict[str, list[str]] = {}
        note_attempt(self.out, run.name, status=status, seconds=round(seconds, 1), last_line=message)
        if not good:
            self.failed.append(run.name)
            given_up = self._give_up()
        elif run.folder:
            shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)
        self.done += run.flops
        how = f"finished in {clock(seconds)}" if good else f"failed ({status}): {message.removesuffix('.')}"
        self.on_note(f"{run.name} {how}; {self.finished}{self._time_left()}")
        self._tell_given_up(given_up)
        self.last_note = time.monotonic()

    def tell_progress(self) -> None:
        """Show how far the running commands are, if nothing was said for a while."""
        if time.monotonic() - self.last_note >= QUIET:
            for name in self.running:
                self.on_note(f"{name}: {last_line(log_of(self.out, name))}")
            self.last_note = time.monotonic()

    def _give_up(self) -> dict[str, list[str]]:
        """Drop the waiting runs that need a run which failed or was not asked for; return their names by that run."""
        given_up: dict[str, list[str]] = {}
        cause: dict[str, str] = {}
        for run in [*self.waiting]:
            missing = [name for name in run.needs if not self.runs[name].finished]
            lost = next((name for name in missing if name in self.failed or name not in self.asked), None)
            if lost is not None and not run.finished:
                cause[run.name] = cause.get(lost, lost)
                given_up.setdefault(cause[run.name], []).append(run.name)
                self.waiting.remove(run)
                self.failed.append(run.name)
                self.left -= run.flops
        return given_up

    def _tell_given_up(self, given_up: Mapping[str, Sequence[str]]) -> None:
        for cause, names in given_up.items():
            more = f" and {len(names) - 1} more" * (len(names) > 1)
            they = "they need" if more else "it needs"
            self.on_note(f"{names[0]}{more} not started: {they} {cause}, which is not finished")

    def _time_left(self) -> str:
        """Return an estimate of the time for the remaining runs, as text."""
        if not self.done or not (self.waiting or self.running):
            return ""
        return f", about {clock((time.monotonic() - self.began) * (self.left - self.done) / self.done)} left"

    def start_what_can(self) -> None:
        """Start runs whose needs are finished, at most `jobs` at once. Runs whose needs failed count as failed."""
        self._tell_given_up(self._give_up())
        for run in [*self.waiting]:
            if run.folder and in_use(run.folder):
                continue  # a command of an earlier, killed call still runs
            if run.finished:
                self.waiting.remove(run)
                self.left -= run.flops
                shutil.rmtree(run.folder / "checkpoints", ignore_errors=True) if run.folder else None
                continue
            missing = [name for name in run.needs if not self.runs[name].finished]
            if not missing and self._busy + self._jobs_of(run) <= self.jobs:
                asked = replace(run, arguments=(*run.arguments, "--jobs", str(self.jobs))) if run.parallel else run
                if (command := start(asked, log_of(self.out, run.name), self.launcher)) is None:
                    return
                if run.name in failed_runs(self.out):  # an entry with no status: it runs again
                    note_attempt(self.out, run.name, status=None, seconds=0.0, last_line="running again")
                self.waiting.remove(run)
                self.running[run.name] = asked, command, time.monotonic()

    @property
    def _busy(self) -> int:
        """Return the number of jobs of the running commands."""
        return sum(self._jobs_of(run) for run, _, _ in self.running.values())

    def _jobs_of(self, run: Run) -> int:
        return self.jobs if run.parallel else 1

    def tell_to_stop(self) -> None:
        """Pass the signal on to the running commands, once."""
        if not self.was_stopped:
            self.was_stopped = True
            self.on_note(f"stopping; these commands save their state first: {', '.join(self.running) or 'none'}")
            for _, process, _ in self.running.values():
                process.terminate()


_STOPPED = (128 + signal.SIGTERM, -signal.SIGTERM)


def start(run: Run, log: Path, launcher: Launcher) -> Command | None:
    """Start or continue a command, and return it; None if the launcher is not ready yet."""
    if not launcher.ready():
        return None
    with disk_errors(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            file.write(f"$ {run.command}\n".encode())
        return launcher.start(arguments_now(run), log)


def arguments_now(run: Run) -> Sequence[str]:
    """Return the arguments of a run, with --resume if it was started before."""
    begun = run.folder is not None and any((run.folder / name).exists() for name in ("config.yaml", "swarm.json"))
    return [*run.arguments, "--resume"] if begun else run.arguments


def log_of(out: Path, name: str) -> Path:
    """Return the path of a run's log."""
    return out / "logs" / f"{name}.log"


def last_line(log: Path) -> str:
    """Return the last line of a log that is not blank."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def clock(seconds: float) -> str:
    """Return seconds in the form 1:02:03."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
