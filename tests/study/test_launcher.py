"""Forked commands behave like new interpreters, and the end of one does not affect the others."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
import yaml

from xdoge.study import Study, runner
from xdoge.study.launcher import Launcher

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="commands are forked on Linux only")


@pytest.fixture
def launcher():
    launcher = Launcher(dict(os.environ), forks=True, modules=("xdoge.cli", "no.such.module"))
    while not launcher.ready():
        time.sleep(0.01)
    assert launcher._server.process.poll() is None  # otherwise a command that waits would make this process wait
    yield launcher
    launcher.close()


def blocked(launcher, tmp_path, name):
    """Start a command that waits for a reader of its log."""
    os.mkfifo(tmp_path / name)
    return launcher.start(["--version"], tmp_path / name)


def test_a_forked_command_prints_and_ends_like_a_new_interpreter(launcher, tmp_path):
    logs, wrong = [tmp_path / "forked", tmp_path / "new"], ["mix", "--bugdet", "1"]
    for log, kind in zip(logs, (launcher, Launcher(dict(os.environ), forks=False)), strict=True):
        log.touch()
        assert kind.start(wrong, log).wait() == 2
    assert logs[0].read_text() == logs[1].read_text()
    assert "Usage: python -m xdoge mix" in logs[0].read_text()
    assert launcher.start(["mix", "nothing.json", "--store", "\udce9"], logs[0]).wait() == 1
    assert logs[0].read_text().splitlines()[-1].startswith("error: the argument ")


def open_files(pid):
    """The inodes of the files that a process holds open. A file may be closed while they are listed."""
    held = set()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            held.add(os.stat(file).st_ino)
    return held


def test_what_an_import_prints_is_no_reply_and_commands_hold_no_pipe_of_the_server(tmp_path, monkeypatch):
    (tmp_path / "talkative.py").write_text("import os; print('hello', flush=True); os.write(1, b'again\\n')")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    launcher = Launcher(environment, forks=True, modules=("xdoge.cli", "talkative"))
    while not launcher.ready():
        time.sleep(0.01)
    command = blocked(launcher, tmp_path, "log")
    assert command.poll() is None
    pipe = os.fstat(launcher._server.process.stdout.fileno()).st_ino
    until = time.monotonic() + 20
    while pipe in (held := open_files(command.pid)):
        assert time.monotonic() < until, held
    command.kill()
    assert command.wait() == -signal.SIGKILL
    launcher.close()


def test_each_command_has_its_own_group_and_takes_the_signals_that_come_at_once(launcher, tmp_path):
    first, second = (blocked(launcher, tmp_path, name) for name in ("first", "second"))
    first.terminate()
    assert first.wait() == -signal.SIGTERM
    assert second.poll() is None
    assert os.getpgid(second.pid) == second.pid
    second.kill()
    assert second.wait() == -signal.SIGKILL


def test_without_the_server_its_commands_end_and_the_next_are_new_interpreters(launcher, tmp_path):
    command = blocked(launcher, tmp_path, "first")
    launcher._server.process.kill()
    launcher._server.process.wait()
    assert command.wait() == -signal.SIGKILL
    (tmp_path / "log").touch()
    assert launcher.ready()
    assert launcher.start(["--version"], tmp_path / "log").wait() == 0


CLOCK = re.compile(r'"?(created|seconds|tokens_per_second|validation_share|sha256)"?: [^,}\n]*|\d{16,}')
"""What differs between two runs of one command: times, and the checksum of a file that has one in it."""


@pytest.mark.slow
def test_a_study_has_the_same_bytes_whether_its_commands_are_forked_or_not(tmp_path, store, recipe, monkeypatch):
    kinds = {"uniform": {"kind": "uniform"}}
    keys = {"store": str(store.path), "proxy": recipe, "model": recipe, "strategies": kinds, "compare": ["tokens"]}
    keys |= {"seeds": [0], "steps": 2, "evaluation": {"max_documents": 2}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(keys))
    written = []
    for forks in (True, False):
        folder = tmp_path / str(forks)
        folder.mkdir()
        monkeypatch.chdir(folder)
        monkeypatch.setattr(runner, "Launcher", lambda environment, forks, now=forks: Launcher(environment, forks=now))
        assert runner.run_all(Study.load(tmp_path / "study.yaml").begin("out").values(), Path("out")) == []
        files = [
            file
            for kind in ("weights", "mixtures", "train", "results")
            for file in (folder / "out" / kind).rglob("*.*")
        ]
        written.append(
            {str(file.relative_to(folder)): CLOCK.sub("", file.read_bytes().decode("latin-1")) for file in files}
        )
    assert written[0] == written[1]
    assert len(written[0]) > 10
