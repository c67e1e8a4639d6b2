"""Messages of the library name arguments; the command line shows the options that set them."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
import typer
from typer.main import get_command

import xdoge as package
from xdoge.baselines import METHODS
from xdoge.cli import app
from xdoge.cli.app import as_options, one_voice
from xdoge.errors import Interrupted, XDogeError, argument
from xdoge.eval.perplexity import PerplexitySettings
from xdoge.eval.suite import HarnessSettings
from xdoge.fit.settings import FitSettings
from xdoge.mixtures.mixture import Mixture
from xdoge.train.settings import TrainSettings

SETTINGS = {
    "fit-weights": [FitSettings],
    "baseline": list(METHODS.values()),
    "train": [TrainSettings],
    "eval": [PerplexitySettings, HarnessSettings],
}
"""The settings that `--set` of a command accepts."""

RAISED_BY = {
    "corpus": {"prepare", "fit-weights", "eval", "train"},
    "mixtures": {"mix"},
    "export": {"export"},
    "sampling": {"train"},
    "models": {"fit-weights", "baseline", "train", "eval"},
    "training": {"fit-weights", "baseline", "train"},
    "fit": {"fit-weights"},
    "baselines": {"baseline"},
    "train": {"train"},
    "eval": {"eval"},
    "analysis": {"compare"},
    "study": {"study"},
}
"""The commands that show messages of each room of the library."""


@pytest.fixture
def said(monkeypatch):
    """A function that returns a message as a command shows it."""

    def run(command, error):
        monkeypatch.setattr(sys, "argv", ["xdoge", *command.split()])
        return as_options(error)

    return run


def test_python_shows_the_argument_and_the_command_its_option(said):
    with pytest.raises(XDogeError) as caught:
        Mixture.plan({"es": 1.0}, available_tokens={"es/web": 10}, budget_tokens=100, max_epochs=4)
    assert str(caught.value).endswith("at max_epochs 4 give 40. Raise max_epochs to 10 or lower the budget.")
    assert said("mix uniform", caught.value).endswith(
        "at --max-epochs 4 give 40. Raise --max-epochs to 10 or lower the budget."
    )


@pytest.mark.parametrize(
    ("command", "text", "shown"),
    [
        ("mix", argument("budget_tokens"), "--budget"),
        ("mix", argument("caps"), "--cap"),
        ("mix", argument("weights"), "WEIGHTS.json|STRATEGY"),
        ("train", argument("resume", True), "--resume"),
        ("train", argument("steps", 5), "--steps 5"),
        ("train", argument("documents", "ignore"), "--set documents=ignore"),
        ("train", argument("documents"), "documents"),
        ("compare", argument("documents", "ignore"), "documents=ignore"),
        ("--help", argument("max_epochs"), "max_epochs"),
    ],
)
def test_an_argument_is_shown_as_the_command_takes_it(said, command, text, shown):
    assert said(command, XDogeError(f"Change {text}.")) == f"Change {shown}."
    assert said(command, Interrupted(2, f"Change {text}.")) == f"Change {shown}."


def named_arguments():
    """Yield file, line and name of each `argument("name")` in the library."""
    root = Path(package.__file__).parent
    for file in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "argument":
                (name, *_) = node.args
                if isinstance(name, ast.Constant):
                    yield file.relative_to(root), node.lineno, name.value


def test_every_argument_that_a_message_names_is_an_option_or_a_setting():
    commands = get_command(app).commands
    known = {
        name: {parameter.name for parameter in command.params}.union(*(s.model_fields for s in SETTINGS.get(name, [])))
        for name, command in commands.items()
    }
    named = list(named_arguments())
    assert len(named) > 10
    unknown = [
        f"{file}:{line}: {name}"
        for file, line, name in named
        if not any(name in known[command] for command in RAISED_BY.get(file.parts[0], known))
    ]
    assert unknown == []


@pytest.mark.parametrize("stopped", [False, True])
def test_a_later_process_says_why_it_refuses_unless_the_launcher_stops_it(monkeypatch, stopped):
    def sleep(seconds):
        if stopped:
            raise Interrupted(15, "terminated")

    monkeypatch.setenv("RANK", "9")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr("time.sleep", sleep)
    with pytest.raises(typer.Exit if stopped else XDogeError) as caught, one_voice():
        raise XDogeError("nowhere does not exist.")
    assert stopped or str(caught.value) == "process 9: nowhere does not exist."
