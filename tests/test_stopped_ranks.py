"""`train` and `eval` on several processes, where one is stopped or differs from the others."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path

import forked
import pytest

from xdoge import Mixture

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def commands(store, recipe, tmp_path_factory):
    """The words of each command, and for each an option that only one process gets, with its name in the message."""
    at = tmp_path_factory.mktemp("jobs")
    budget = {"budget_tokens": 2_000_000, "max_epochs": 1_000}
    plan = Mixture.plan(dict.fromkeys(store.sources, 0.25), available_tokens=store.tokens(), **budget)
    plan.save(at / "mixture.json")
    common = ["--store", store.path, "--set", "device=cpu"]
    train = ["train", at / "mixture.json", *common, "--model", recipe, "--set", "workers=0"]
    printed = at / "log"
    process = forked.start(*train, "--out", at / "run", "--steps", 2, printed=printed)
    process.join(120)
    assert process.exitcode == 0, printed.read_text()
    model = at / "run"
    return {
        "train": (train, ("--set", "learning_rate=0.5"), "learning_rate"),
        "eval": (["eval", model, *common], ("--max-documents", "3"), "max_documents"),
    }


def start(words: Sequence[object], out: Path, *, of_last: Sequence[object] = ()) -> tuple[list, list[Path]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    processes, logs = [], []
    for rank in range(2):
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        own = {name: str(value) for name, value in names.items()}
        logs.append(out.with_name(f"{out.name}-{rank}.log"))
        more = of_last if rank else ()
        processes.append(forked.start(*words, *more, "--out", out, printed=logs[-1], environment=meeting | own))
    return processes, logs


@pytest.mark.parametrize("command", ["train", "eval"])
def test_a_process_with_other_settings_is_named(commands, command, tmp_path):
    words, different, key = commands[command]
    processes, logs = start(words, tmp_path / "out", of_last=different)
    for process in processes:
        process.join(120)
    said = logs[0].read_text()
    assert [process.exitcode for process in processes] == [1, 1], said
    assert "process 1 of 2" in said
    assert key in said
    assert "Traceback" not in said + logs[1].read_text()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["train", "eval"])
@pytest.mark.parametrize("moment", ["before they meet", "later"])
def test_a_stopped_process_does_not_prevent_others_from_obeying_sigterm(commands, command, moment, tmp_path):
    words, _, _ = commands[command]
    processes, logs = start(words, tmp_path / "out")
    if moment == "later":
        begun = time.monotonic()
        while not (logs[0].exists() and logs[0].read_text()) and not (tmp_path / "out").exists():
            assert time.monotonic() < begun + 60
            time.sleep(0.01)
    os.kill(processes[1].pid, signal.SIGSTOP)
    time.sleep(3)
    os.kill(processes[0].pid, signal.SIGTERM)
    processes[0].join(60)
    os.kill(processes[1].pid, signal.SIGKILL)
    processes[1].join()
    said = logs[0].read_text()
    assert processes[0].exitcode == 143, said
    assert "Traceback" not in said
