"""A fit on several processes: it gives the same weights, and resumes after a process dies, hangs or is stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import forked
import numpy as np
import pytest
import ranks
from fit_runs import metrics, same_run

SETTINGS = ("steps=8", "mu=0.5", "checkpoint_every=2", "eval_every=4", "gram_every=2", "timeout=10")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Job:
    """Processes of one fit, started as torchrun starts them."""

    def __init__(
        self, count: int, store: Path, recipe: str, out: Path, *options: str, of_last: Sequence[object] = ()
    ) -> None:
        self.log = out.with_name(f"{out.name}-{time.monotonic_ns()}")
        arguments: list[object] = ["--out", out, "--proxy", recipe]
        for setting in SETTINGS:
            arguments += ["--set", setting]
        arguments += options
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        self.processes: list[BaseProcess] = []
        for rank in range(count):
            names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
            own = {name: str(value) for name, value in names.items()}
            printed = Path(f"{self.log}.{rank}")
            special = of_last if of_last and rank == count - 1 else [store]
            words = ("fit-weights", *arguments, *special)
            self.processes.append(forked.start(*words, printed=printed, environment=meeting | own))

    def printed(self, rank: int) -> str:
        return Path(f"{self.log}.{rank}").read_text()

    def end(self) -> list[int | None]:
        """Return the exit status of each process."""
        for process in self.processes:
            process.join(60)
        return [process.exitcode for process in self.processes]


def until(out: Path, step: int) -> None:
    """Wait until a fit has a checkpoint of `step` or a later one."""
    begun = time.monotonic()
    while not any(int(path.name[5:]) >= step for path in (out / "checkpoints").glob("step-*")):
        assert time.monotonic() < begun + 60
        time.sleep(0.002)


def longer(recipe: str, out: Path) -> str:
    """Return a recipe with larger batches, so that its steps are long enough to be interrupted."""
    path = out.with_suffix(".yaml")
    path.write_text(Path(recipe).read_text().replace("batch_size: 12", "batch_size: 96"))
    return str(path)


@pytest.fixture(scope="module")
def two(store, recipe, tmp_path_factory):
    """A finished run on two processes without any interruption; tests only read it."""
    out = tmp_path_factory.mktemp("two") / "run"
    job = Job(2, store.path, longer(recipe, out), out)
    assert job.end() == [0, 0], job.printed(0)
    assert "weights" in job.printed(0)
    assert job.printed(1) == ""
    return out


def test_two_processes_learn_the_same_weights_as_one(two, store, tmp_path):
    job = Job(1, store.path, str(two.with_suffix(".yaml")), tmp_path / "one")
    assert job.end() == [0], job.printed(0)
    ours, theirs = (json.loads((run / "weights.json").read_text()) for run in (two, tmp_path / "one"))
    np.testing.assert_allclose(list(ours["sources"].values()), list(theirs["sources"].values()), rtol=1e-5)
    for a, b in zip(metrics(two), metrics(tmp_path / "one"), strict=True):
        assert a["tokens"] == b["tokens"]
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a.get("validation", {}) == pytest.approx(b.get("validation", {}), rel=1e-5)


def test_a_process_that_dies_is_named_and_stops_the_others_and_resume_is_exact(two, store, tmp_path):
    out, recipe = tmp_path / "run", str(two.with_suffix(".yaml"))
    for step, dies, survives in ((2, 1, 0), (4, 0, 1)):
        job = Job(2, store.path, recipe, out, *(["--resume"] if step > 2 else []))
        until(out, step)
        os.kill(job.processes[dies].pid, signal.SIGKILL)
        assert sorted(job.end()) == [-9, 1]
        assert f"process {dies} of 2 (numbered from 0) died" in job.printed(survives)
        assert "Traceback" not in job.printed(survives)
    job = Job(2, store.path, recipe, out, "--resume")
    assert job.end() == [0, 0], job.printed(0)
    assert "resuming after step" in job.printed(0)
    same_run(two, out)


def test_a_process_that_hangs_is_named_after_the_timeout(two, store, tmp_path):
    job = Job(2, store.path, str(two.with_suffix(".yaml")), tmp_path / "run")
    until(tmp_path / "run", 2)
    os.kill(job.processes[1].pid, signal.SIGSTOP)
    job.processes[0].join(30)
    os.kill(job.processes[1].pid, signal.SIGKILL)
    assert job.end() == [1, -9]
    assert "process 1 of 2 (numbered from 0) died or no longer answers" in job.printed(0)


def test_the_others_obey_sigterm_while_one_process_is_stopped(two, store, tmp_path):
    job = Job(2, store.path, str(two.with_suffix(".yaml")), tmp_path / "run", "--set", "timeout=100")
    until(tmp_path / "run", 2)
    os.kill(job.processes[1].pid, signal.SIGSTOP)
    time.sleep(1)
    os.kill(job.processes[0].pid, signal.SIGTERM)
    job.processes[0].join(25)
    os.kill(job.processes[1].pid, signal.SIGKILL)
    assert job.end() == [143, -9], job.printed(0)
    assert "Traceback" not in job.printed(0)


def test_a_signal_to_one_process_stops_all_after_the_same_step(two, store, tmp_path):
    out, recipe = tmp_path / "run", str(two.with_suffix(".yaml"))
    job = Job(2, store.path, recipe, out)
    until(out, 2)
    for _ in range(2):  # the signal of the scheduler, then that of torchrun
        os.kill(job.processes[1].pid, signal.SIGTERM)
    assert job.end() == [143, 143], job.printed(0)
    assert "--resume continues" in job.printed(0)
    job = Job(1, store.path, recipe, out, "--resume")  # and on fewer processes
    assert job.end() == [0], job.printed(0)
    assert "processes 2 → 1" in job.printed(0)
    ours, theirs = (json.loads((run / "weights.json").read_text()) for run in (out, two))
    np.testing.assert_allclose(list(ours["sources"].values()), list(theirs["sources"].values()), rtol=1e-5)


def test_a_process_that_alone_refuses_to_start_says_why(two, store, tmp_path):
    recipe, nowhere = str(two.with_suffix(".yaml")), tmp_path / "nowhere"
    job = Job(2, store.path, recipe, tmp_path / "run", of_last=[nowhere])
    job.processes[1].join(60)
    job.processes[0].terminate()
    assert job.end()[1] == 1
    assert job.printed(1).startswith("error: process 1: ")
    assert str(nowhere) in job.printed(1)
    assert job.printed(1).count("\n") == 1


def test_settings_that_do_not_allow_several_processes_are_refused_in_one_line(two, store, tmp_path):
    job = Job(2, Path("corpus.yaml"), str(two.with_suffix(".yaml")), tmp_path / "run")
    assert job.end() == [1, 1]
    assert (
        job.printed(0)
        == "error: corpus.yaml: several processes need a token store; make one with xdoge prepare first.\n"
    )
    assert job.printed(1) == job.printed(0).replace("error: ", "error: process 1: ")  # no launcher stopped it
    job = Job(2, store.path, str(two.with_suffix(".yaml")), tmp_path / "run", "--set", "device=cuda:0")
    assert set(job.end()) == {1}
    assert "device cuda:0" in job.printed(0)


def test_one_process_can_run_several_fits(store, recipe, tmp_path):
    port, context = free_port(), forked.context()
    arguments = (2, port, str(store.path), recipe, str(tmp_path))
    started = [context.Process(target=ranks.fit_twice, args=(rank, *arguments)) for rank in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [0, 0]
    same_run(tmp_path / "first", tmp_path / "second")


def test_a_process_with_another_store_or_other_settings_is_named_before_the_run_starts(store, recipe, tmp_path):
    stale = shutil.copytree(store.path, tmp_path / "stale")
    content = json.loads((stale / "store.json").read_text())
    (stale / "store.json").write_text(json.dumps({**content, "name": "older"}))
    for number, (corpus, options, key) in enumerate(
        [(stale, (), "store.sha256"), (store.path, ("--set", "floor=0.01"), "settings.floor")]
    ):
        out = tmp_path / f"run{number}"
        job = Job(2, store.path, recipe, out, of_last=[corpus, *options])
        assert job.end() == [1, 1]
        assert "process 1 of 2" in job.printed(0)
        assert key in job.printed(0)
        assert not out.exists()
