"""The command line: its output streams, its exit status, and errors in one line before long work."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from command_line import one_line
from conftest import write_corpus


def test_prepare_prints_a_table_of_sources(xdoge, corpus, tmp_path):
    status, out, _ = xdoge("prepare", corpus, "--out", tmp_path / "store", "--workers", 1)
    assert status == 0
    for word in ("source", "documents", "tokens", "bytes/token", "share", "es/web", "eu/wiki"):
        assert word in out
    status, out, _ = xdoge("prepare", corpus, "--out", tmp_path / "store", "--workers", 1, "--json")
    rows = json.loads(out)
    assert sum(row["share"] for row in rows) == pytest.approx(1)


def test_fit_weights_prints_weights_and_path(xdoge, store, recipe, tmp_path):
    run = tmp_path / "run"
    status, out, err = xdoge(
        "fit-weights", store.path, "--out", run, "--proxy", recipe, "--steps", 4, "--set", "mu=0.2"
    )
    assert status == 0
    assert "share of corpus" in out
    assert "Cosines of the languages' loss gradients" in out
    assert str(run / "weights.json") in out
    assert "mu: 0.2" in err  # the resolved config
    assert "hidden_size: 16" in err  # with the recipe
    assert "step 4/4" in err
    assert "ETA" in err
    assert " ±" in out
    assert out.splitlines()[-1].startswith("verdict: These weights")
    assert "Next: " in out.splitlines()[-1]


def test_stdout_has_only_json_with_the_json_option(xdoge, store, recipe, tmp_path):
    command = ["fit-weights", store.path, "--out", tmp_path / "run", "--proxy", recipe, "--steps", 2, "--json"]
    _, out, _ = xdoge(*command)
    answer = json.loads(out)
    assert sum(answer["sources"].values()) == pytest.approx(1)
    assert sum(answer["languages"].values()) == pytest.approx(1)
    assert set(answer["cosines"]["es"]["eu"]) == {"cosine", "standard_error", "noise"}
    assert answer["verdict"].startswith("These weights")
    assert xdoge(*command, "--resume")[1] == out


@pytest.mark.parametrize(
    ("command", "default"), [("fit-weights", "125m"), ("baseline", "125m, for regmix 1m"), ("swarm", "125m")]
)
def test_help_shows_the_default_proxy(xdoge, command, default):
    status, out, _ = xdoge(command, "--help")
    assert status == 0
    assert f"(default: ({default}))" in " ".join(out.split()).replace("[", "(").replace("]", ")")


def test_resume_alone_takes_the_settings_from_the_run(xdoge, store, recipe, tmp_path):
    command = ["fit-weights", store.path, "--out", tmp_path / "run"]
    assert xdoge(*command, "--proxy", recipe, "--steps", 3, "--set", "mu=0.7")[0] == 0
    status, _, err = xdoge(*command, "--resume")
    assert status == 0
    assert "is finished already" in err
    assert "mu:" not in err
    status, _, err = xdoge(*command, "--resume", "--seed", 5)
    assert status == 1
    assert one_line(err).endswith("cannot be resumed with other settings: settings.seed was 0, is now 5.")


def test_a_corpus_is_prepared_into_the_run(xdoge, corpus, recipe, tmp_path):
    command = ["fit-weights", corpus, "--out", tmp_path / "run", "--proxy", recipe, "--steps", 2, "--workers", 1]
    assert xdoge(*command)[0] == 0
    assert (tmp_path / "run" / "store" / "store.json").exists()
    assert (tmp_path / "run" / "weights.json").exists()
    status, _, err = xdoge(*command)
    assert (status, "is not empty" in one_line(err)) == (1, True)


def test_options_win_over_set_and_set_over_the_file(xdoge, store, recipe, tmp_path):
    (tmp_path / "fit.yaml").write_text(f"proxy: {recipe}\nsteps: 9\nmu: 0.3\nseed: 5\n")
    command = ["fit-weights", store.path, "--out", tmp_path / "run", "--config", tmp_path / "fit.yaml"]
    assert xdoge(*command, "--set", "mu=0.4", "--set", "steps=8", "--steps", 2)[0] == 0
    method = json.loads((tmp_path / "run" / "weights.json").read_text())["method"]
    assert (method["steps"], method["mu"], method["seed"]) == (2, 0.4, 5)


def test_help_reads_like_a_manual(xdoge):
    status, out, _ = xdoge("fit-weights", "--help")
    assert status == 0
    for word in ("What it reads", "What it writes", "Stopping", "Settings", "Examples", "mu", "held_out", "--resume"):
        assert word in out


@pytest.mark.parametrize(
    "arguments", [["fit-weights"], ["nonsense"], ["prepare", "c.yaml"], ["fit-weights", "s", "--x"]]
)
def test_wrong_usage_exits_with_2(xdoge, arguments):
    assert xdoge(*arguments)[0] == 2


def test_version_is_printed(xdoge):
    import xdoge as package

    assert xdoge("--version")[:2] == (0, package.__version__ + "\n")


def bad_bytes(folder):
    path = folder / "gl-wiki.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[6] = b'{"text": "\xff"}\n'
    path.write_bytes(b"".join(lines))


def misspelt_key(folder):
    path = folder / "corpus.yaml"
    path.write_text(path.read_text().replace("name:", "nam:"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [(misspelt_key, "corpus.yaml: nam is not a known key"), (bad_bytes, r"gl-wiki.jsonl.*line 7")],
)
def test_a_bad_corpus_is_one_line_and_leaves_nothing(xdoge, tmp_path, spoil, message):
    corpus = write_corpus(tmp_path / "corpus")
    spoil(tmp_path / "corpus")
    status, out, err = xdoge("prepare", corpus, "--out", tmp_path / "store", "--workers", 1)
    assert status == 1
    assert out == ""
    assert re.search(message, one_line(err)), err
    assert not (tmp_path / "store" / "store.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--floor", "0.25"], "floor 0.25 is too high for 4 sources"),
        (["--steps", "0"], "steps: it must be above 0"),
        (["--set", "sequence_length=100000"], "es/web is too short"),
        (["--set", "nonsense=1"], "settings: nonsense is not a known key"),
        (["--set", "mu"], "--set mu: write it as KEY=VALUE"),
        (["--set", "mu=["], r"--set 'mu=\[' is not YAML"),
        (["--proxy", "3b"], "recipe '3b' is unknown; the recipes are 1m"),
        (["--config", "no.yaml"], "no.yaml does not exist"),
        (["--resume"], "holds no run to resume"),
    ],
)
def test_bad_settings_are_one_line_before_anything_is_written(xdoge, store, recipe, tmp_path, arguments, message):
    options = [] if "--proxy" in arguments else ["--proxy", recipe]
    status, out, err = xdoge("fit-weights", store.path, "--out", tmp_path / "run", *options, *arguments)
    assert (status, out) == (1, "")
    assert re.search(message, one_line(err)), err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--floor", "0.9"], "floor 0.9 is too high for 4 sources"),
        (["--set", "held_out=[xx/none]"], "held_out names 'xx/none'"),
        (["--resume"], "holds no run to resume"),
    ],
)
def test_a_bad_setting_is_found_before_a_corpus_is_prepared(xdoge, corpus, recipe, tmp_path, arguments, message):
    command = ["fit-weights", corpus, "--out", tmp_path / "run", "--proxy", recipe]
    status, _, err = xdoge(*command, *arguments)
    assert status == 1
    assert re.search(message, one_line(err)), err
    assert not (tmp_path / "run").exists()


def test_the_config_of_a_run_can_start_another(xdoge, store, recipe, tmp_path):
    command = ["fit-weights", store.path, "--out", tmp_path / "one", "--proxy", recipe, "--steps", 2]
    assert xdoge(*command, "--set", "mu=0.7")[0] == 0
    again = ["fit-weights", store.path, "--out", tmp_path / "two", "--config", tmp_path / "one" / "config.yaml"]
    assert xdoge(*again)[0] == 0
    first, second = (json.loads((tmp_path / name / "weights.json").read_text()) for name in ("one", "two"))
    assert first["sources"] == second["sources"]


def test_warnings_of_prepare_are_also_shown_with_json(xdoge, tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    path = tmp_path / "corpus" / "gl-wiki.jsonl"
    path.write_text(path.read_text() + '{"text": ""}\n')
    _, out, err = xdoge("prepare", corpus, "--out", tmp_path / "store", "--workers", 1, "--json")
    assert "warning: gl/wiki: 1 empty rows left out" in err
    json.loads(out)


@pytest.mark.parametrize("command", ["prepare", "fit-weights"])
def test_impossible_paths_are_one_line(xdoge, corpus, store, recipe, tmp_path, command):
    (tmp_path / "file").write_text("")
    options = ["--proxy", recipe, "--steps", 2] if command == "fit-weights" else ["--workers", 1]
    read = {"prepare": corpus, "fit-weights": store.path}[command]
    status, _, err = xdoge(command, read, "--out", tmp_path / "file" / "x", *options)
    assert status == 1
    assert "file" in one_line(err)
    status, _, err = xdoge("prepare", corpus / "corpus.yaml", "--out", tmp_path / "out")
    assert status == 1
    assert "cannot be read: Not a directory" in one_line(err)


def test_a_folder_that_is_not_a_store_is_refused(xdoge, tmp_path):
    status, _, err = xdoge("fit-weights", tmp_path / "nothing", "--out", tmp_path / "run")
    assert status == 1
    assert "nothing is not a token store" in one_line(err)


@pytest.mark.skipif("XDOGE_REAL_DATA" not in os.environ, reason="XDOGE_REAL_DATA names no folder of real text")
def test_all_commands_run_on_real_text(xdoge, tmp_path):
    """Take a few steps on all 28 sources of the real corpus; docs/experiments.md has a whole fit."""
    corpus = os.path.join(os.environ["XDOGE_REAL_DATA"], "corpus", "corpus.yaml")
    assert xdoge("prepare", corpus, "--out", tmp_path / "store")[0] == 0
    settings = ["--set", "sequence_length=32", "--set", "eval_sequences=1", "--set", "batch_size=56"]
    command = ["fit-weights", tmp_path / "store", "--out", tmp_path / "run", "--proxy", "1m", "--steps", 3, *settings]
    assert xdoge(*command, "--floor", 0.002)[0] == 0
    weights = json.loads((tmp_path / "run" / "weights.json").read_text())
    assert len(weights["sources"]) == 28
    assert set(weights["languages"]) == {"en", "es", "ca", "pt", "eu", "gl"}
    assert min(weights["sources"].values()) >= 0.002


STILL_ENCODING = """
import sys, threading
from xdoge import cli
from xdoge.errors import ABANDONED
threading.Thread(target=threading.Event().wait, name=ABANDONED, daemon=True).start()
sys.argv[1:] = ["prepare", "missing.yaml", "--out", "store"]
try:
    cli.main()
except SystemExit as stop:
    print(stop.code)
"""


def test_the_command_line_called_from_python_never_ends_the_process(tmp_path):
    done = subprocess.run([sys.executable, "-c", STILL_ENCODING], capture_output=True, text=True, cwd=tmp_path)
    assert (done.stdout, len(done.stderr.splitlines())) == ("1\n", 1)
