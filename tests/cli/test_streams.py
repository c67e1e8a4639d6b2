"""The environment of a command: closed, full and narrow streams, encodings, odd file names, and an early Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from command_line import one_line

COMMAND = [sys.executable, "-m", "xdoge"]
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture(scope="module")
def counts(tmp_path_factory):
    path = tmp_path_factory.mktemp("counts") / "counts.json"
    path.write_text('{"es/web": "9B", "eu/web": "9B"}')
    return path


@pytest.fixture(scope="module")
def weights(counts):
    path = counts.with_name("weights.json")
    sources = {"es/web": 0.5, "eu/web": 0.5}
    value = {"schema": "xdoge.weights/1", "name": "wëights", "sources": sources, "languages": {"es": 0.5, "eu": 0.5}}
    path.write_text(json.dumps(value))
    return path


def mix(weights, out, *options):
    return ["mix", weights, "--tokens", weights.with_name("counts.json"), "--budget", "10B", "--out", out, *options]


def shell(redirection, words, **environment):
    return subprocess.run(
        ["bash", "-c", f'"$@" {redirection}', "bash", *COMMAND, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_full_stdout_is_one_line_and_the_file_is_there(weights, tmp_path, options):
    done = shell(">/dev/full", mix(weights, tmp_path / "out.json", *options))
    assert done.returncode == 1
    assert "No space left" in one_line(done.stderr)
    assert len(done.stderr.splitlines()) == 1
    assert (tmp_path / "out.json").exists()


def test_closed_streams_are_no_error(weights, tmp_path):
    done = shell("<&- >&- 2>&-", mix(weights, tmp_path / "out.json"))
    assert done.returncode == 0
    assert json.loads((tmp_path / "out.json").read_text())["schema"].startswith("xdoge.mixture/")


def test_a_file_larger_than_allowed_is_one_line(weights, tmp_path):
    done = shell("", [*mix(weights, tmp_path / "out.json")], PYTHONDONTWRITEBYTECODE="1")
    assert done.returncode == 0
    words = " ".join(map(str, [*COMMAND, *mix(weights, tmp_path / "limited.json")]))
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f 0; {words}"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert (done.returncode, "ulimit" in one_line(done.stderr)) == (1, True)
    assert not list(tmp_path.glob("*limited*"))


LARGE = """
import resource, sys
from pathlib import Path
import numpy as np
from safetensors.numpy import save_file
from xdoge.errors import XDogeError
from xdoge.training.checkpoints import saving_tensors
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    with saving_tensors(Path("checkpoint")) as folder:
        save_file({"a": np.zeros(10_000)}, folder / "a.safetensors")
except XDogeError as error:
    print("error:", error)
"""


def test_a_checkpoint_larger_than_allowed_is_one_line(tmp_path):
    done = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ("ulimit -f" in one_line(done.stdout), done.stderr) == (True, "")
    assert not list(tmp_path.iterdir())


def test_threads_that_cannot_start_are_one_line(xdoge, corpus, tmp_path, monkeypatch):
    def start(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", start)
    status, _, err = xdoge("prepare", corpus, "--out", tmp_path / "store")
    assert (status, "ulimit" in one_line(err)) == (1, True)


class NoMemory:
    """Finds a library as Python does where its shared object does not fit into memory."""

    def find_spec(self, name, *_):
        if name == "sentencepiece":
            raise ImportError("x.so: failed to map segment from shared object", name=name)


def test_a_library_that_does_not_fit_into_memory_is_not_called_missing(xdoge, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.meta_path", [NoMemory(), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "sentencepiece", raising=False)
    status, _, err = xdoge("prepare", corpus, "--out", tmp_path / "store")
    assert (status, "failed to map" in one_line(err)) == (1, True)


def test_characters_that_an_encoding_lacks_are_escaped(weights, tmp_path):
    done = shell("", mix(weights, tmp_path / "out.json"), **ASCII)
    assert (done.returncode, done.stderr) == (0, "")
    assert "w\\xebights" in done.stdout
    done = shell("", mix(weights, tmp_path / "out2.json", "--json"), **ASCII)
    assert json.loads(done.stdout)["name"] == json.loads((tmp_path / "out.json").read_text())["name"]


def test_no_number_is_cut_off_on_a_narrow_terminal(weights, tmp_path, xdoge, monkeypatch):
    from xdoge.cli.app import stdout

    wide = xdoge(*mix(weights, tmp_path / "wide.json"))[1]
    monkeypatch.setattr(stdout, "_width", 40)
    narrow = xdoge(*mix(weights, tmp_path / "narrow.json"))[1]
    assert "…" not in narrow
    numbers = {word for word in wide.split() if word[0].isdigit() and "wide" not in word}
    assert numbers <= set(narrow.split())


def test_no_column_of_several_words_is_cut_off_on_a_narrow_terminal(capsys, monkeypatch):
    from xdoge.cli.app import stdout
    from xdoge.cli.tables import empty_table

    names = [f"≤ {epochs} epoch{'s' * (epochs > 1)}: planned" for epochs in (1, 2, 4, 8)]
    table = empty_table(("source",), names)
    table.add_row("eu/web", *("−6.7 ± 13.9" for _ in names))
    monkeypatch.setattr(stdout, "_width", 40)
    stdout.print(table)
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert all(name in shown for name in names)
    assert shown.count("−6.7 ± 13.9") == len(names)


@pytest.mark.parametrize("name", ["a" * 250 + ".json", "a" * 300])
@pytest.mark.parametrize("command", ["mix", "export"])
def test_names_that_are_too_long_are_one_line(weights, tmp_path, xdoge, command, name):
    if command == "mix":
        words = mix(weights, tmp_path / name)
    else:
        assert xdoge(*mix(weights, tmp_path / "mixture.json"))[0] == 0
        words = ["export", tmp_path / "mixture.json", "--to", "csv", "--out", tmp_path / name]
    status, _, err = xdoge(*words)
    assert (status, "too long" in one_line(err)) == (1, True)


def test_a_name_that_is_not_utf8_is_one_line(weights, tmp_path):
    done = subprocess.run(
        [*map(os.fsencode, [*COMMAND, *map(str, mix(weights, tmp_path / "out"))]), b"--name", b"\xff"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "udcff" in one_line(done.stderr)) == (1, True)


@pytest.mark.parametrize("out", ["", ".", "..", "/"])
def test_a_folder_in_place_of_a_file_is_one_line(weights, xdoge, tmp_path, out):
    (tmp_path / "text.txt").write_text("one line\n")
    words = ["eval", "model", "--text", f"en={tmp_path / 'text.txt'}", "--out", out]
    for status, _, err in (xdoge(*words), xdoge(*mix(weights, out, "--force"))):
        assert (status, "is a folder" in one_line(err)) == (1, True)


def test_no_device_is_replaced(weights, xdoge, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/null", tmp_path / "pipe"):
        status, _, err = xdoge(*mix(weights, path, "--force"))
        assert (status, str(path) in one_line(err)) == (1, True)
        assert not os.path.isfile(path)


@pytest.mark.slow
@pytest.mark.parametrize("words", [["formats"], ["mix", "missing.json"], ["fit-weights", "missing", "--out", "run"]])
def test_ctrl_c_while_libraries_are_imported_gives_no_traceback(words, tmp_path):
    for delay in (0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 2):
        code = f"import sys; from xdoge.__main__ import main; sys.argv[1:] = {words}; print('.', flush=True); main()"
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, **pipes)
        process.stdout.readline()  # before that, Python itself is starting
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert b"Traceback" not in err, (delay, err)
        assert process.returncode in (0, 1, 2, 130, -signal.SIGINT)


def test_ctrl_c_while_an_error_is_formatted_gives_no_traceback(monkeypatch, xdoge):
    def interrupted(error):
        raise KeyboardInterrupt

    monkeypatch.setattr("xdoge.cli.as_options", interrupted)
    status, _, err = xdoge("predict", "missing.json", "uniform")
    assert (status, err) == (130, "Aborted.\n")
