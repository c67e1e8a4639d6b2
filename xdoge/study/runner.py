"""Run the commands of a study, several at once, each in a process of its own, so that one that fails stops no other.

Under the study's folder each command appends what it prints to logs/NAME.log, and each end of one is a line of
runs.jsonl, which several studies of one folder, as the tasks of a Slurm array, may write to.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from xdoge.distributed import stop_requests
from xdoge.errors import Interrupted
from xdoge.io import disk_errors, locked
from xdoge.study.plan import Run

POLL = 0.05
"""Seconds between looks at the running commands."""


def run_all(
    runs: Iterable[Run],
    out: Path,
    *,
    jobs: int = 1,
    only: Callable[[str], bool] | None = None,
    on_note: Callable[[str], None] = lambda text: None,
) -> list[str]:
    """Run what is not finished, each when those that it needs are, and return the names of those that failed.

    A run that was begun goes on. What needs a failed run is not started, and is among the failed.

    Args:
        runs: each after those that it needs.
        out: the study's folder.
        jobs: commands at once; each gets that part of the cores as threads, unless OMP_NUM_THREADS is set.
        only: which runs to start, by name, as one of several calls that share the folder; None for all, alone.
        on_note: called with a line for each run that ends.

    Raises:
        XDogeError: another process runs this study.
        Interrupted: SIGINT or SIGTERM came. The running commands were told, and have ended.
    """
    session = _Session({run.name: run for run in runs}, out, jobs, only or (lambda name: True), on_note)
    with locked(out) if only is None else contextlib.nullcontext(), stop_requests() as stop, session:
        while session.running or (session.waiting and not stop):
            session.collect(stopping=bool(stop))
            if stop:
                session.tell_to_stop()
            else:
                session.start_what_can()
            time.sleep(POLL)
        if stop:
            raise Interrupted(stop[0], f"stopped with {session.finished} runs finished; the same command goes on")
    return session.failed


class _Session:
    """One call of `run_all`: what waits, what runs, what failed, and how long it took."""

    def __init__(
        self,
        every: Mapping[str, Run],
        out: Path,
        jobs: int,
        only: Callable[[str], bool],
        on_note: Callable[[str], None],
    ) -> None:
        self.every, self.out, self.jobs, self.on_note = every, out, jobs, on_note
        self.waiting = [run for run in every.values() if only(run.name) and not run.finished]
        self.asked = {run.name for run in self.waiting}
        self.running: dict[str, tuple[Run, subprocess.Popen[bytes], float]] = {}
        self.failed: list[str] = []
        self.threads = {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // jobs))}
        self.began, self.told = time.monotonic(), False
        self.done, self.left = 0, sum(run.flops for run in self.waiting)

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        """Leave no process behind, whatever happened."""
        for _, process, _ in self.running.values():
            process.kill()
            process.wait()

    @property
    def finished(self) -> str:
        """How many of all runs are finished."""
        return f"{sum(run.finished for run in self.every.values())} of {len(self.every)}"

    def collect(self, *, stopping: bool) -> None:
        """Write down what ended; what was told to stop has not."""
        for run, process, began in [*self.running.values()]:
            status = process.poll()
            if status is None:
                continue
            del self.running[run.name]
            if not (stopping and status in _STOPPED):
                self._ended(run, status, time.monotonic() - began)

    def _ended(self, run: Run, status: int, seconds: float) -> None:
        good, said = status == 0 and run.finished, last_line(log_of(self.out, run.name))
        row = {"run": run.name, "status": status, "seconds": round(seconds, 1), "last_line": said}
        with disk_errors(self.out), (self.out / "runs.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        if not good:
            self.failed.append(run.name)
        elif run.folder:
            shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)
        self.done += run.flops
        how = f"finished in {clock(seconds)}" if good else f"failed ({status}): {said}"
        self.on_note(f"{run.name} {how}; {self.finished}{self._time_left()}")

    def _time_left(self) -> str:
        """Say how long the rest takes if it computes as fast."""
        if not self.done or not (self.waiting or self.running):
            return ""
        return f", about {clock((time.monotonic() - self.began) * (self.left - self.done) / self.done)} left"

    def start_what_can(self) -> None:
        """Start as many as may run at once of those whose needs are finished; give up those whose needs failed."""
        for run in [*self.waiting]:
            missing = [name for name in run.needs if not self.every[name].finished]
            if any(name in self.failed or name not in self.asked for name in missing):
                self.waiting.remove(run)
                self.failed.append(run.name)
                self.left -= run.flops
                self.on_note(f"{run.name} not started: it needs {missing[0]}, which is not finished")
            elif not missing and len(self.running) < self.jobs:
                self.waiting.remove(run)
                self.running[run.name] = run, start(run, log_of(self.out, run.name), self.threads), time.monotonic()

    def tell_to_stop(self) -> None:
        """Pass the signal on, once."""
        if not self.told:
            self.told = True
            self.on_note(
                f"stopping; running commands write what they need to go on: {', '.join(self.running) or 'none'}"
            )
            for _, process, _ in self.running.values():
                process.terminate()


_STOPPED = (128 + signal.SIGTERM, -signal.SIGTERM)


def start(run: Run, log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a command, or go on with it, in a process group of its own, so that Ctrl-C reaches it through us alone."""
    arguments = arguments_now(run)
    with disk_errors(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            file.write(f"$ {run.command}\n".encode())
            file.flush()
            return subprocess.Popen(
                [sys.executable, "-m", "xdoge", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env={**environment, **os.environ},
                process_group=0,
            )


def arguments_now(run: Run) -> Sequence[str]:
    """Return the arguments of a run, with --resume where it was begun."""
    begun = run.folder is not None and (run.folder / "config.yaml").exists()
    return [*run.arguments, "--resume"] if begun else run.arguments


def log_of(out: Path, name: str) -> Path:
    """Return where a run's output is kept."""
    return out / "logs" / f"{name}.log"


def last_line(log: Path) -> str:
    """Return the last line of a log that says something."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def attempts(out: Path) -> dict[str, dict[str, Any]]:
    """Return how each run that ended, ended last."""
    file, found = out / "runs.jsonl", {}
    for line in file.read_bytes().splitlines() if file.exists() else ():
        with contextlib.suppress(ValueError, TypeError, KeyError):  # cut short by a kill
            row = json.loads(line)
            found[row["run"]] = row
    return found


def clock(seconds: float) -> str:
    """Write seconds as 1:02:03."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
