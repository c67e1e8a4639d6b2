"""Parts that all commands share: the application, the output, and checks before a command starts."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from typer.core import TyperGroup
from typer.main import get_command

from xdoge.config import parse_yaml, read_yaml
from xdoge.errors import Interrupted, RankLocalError, XDogeError, XDogeException, require
from xdoge.io import refuse_device
from xdoge.names import shown


class _Output(Console):
    """A console that never cuts numbers off. A table that is too wide for the terminal gets longer lines."""

    def print(self, *objects: Any, **options: Any) -> None:
        for table in objects:
            if isinstance(table, Table):
                wide = self.options.update(max_width=10_000)
                for column in table.columns:
                    if column.no_wrap:  # otherwise, rich only reserves the width of its longest word
                        cells = (column.header, *column.cells)
                        column.min_width = max(Measurement.get(self, wide, cell).maximum for cell in cells)
                self.width = max(self.width, Measurement.get(self, wide, table).minimum)
        super().print(*objects, **options)


LAUNCHER_SECONDS = 5.0
"""A process waits this long for its launcher to stop it. torchrun looks for failed processes ten times a second."""

stdout = _Output(width=None if sys.stdout.isatty() else 120, markup=False)  # a source may be called [/x]

app = typer.Typer(
    name="xdoge",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def refuse_undecoded(arguments: Iterable[str]) -> None:
    """Raise XDogeError for arguments that are not valid text. They could not be printed or stored in a file."""
    for word in arguments:
        if re.search("[\ud800-\udfff]", word):
            raise XDogeError(
                f"the argument {word!a} has bytes that are not text; rename the file in ASCII, or set PYTHONUTF8=1."
            )


def refuse_taken(path: Path | None, force: bool) -> None:
    """Raise XDogeError if a file exists, unless `force` is true, or if the path is not a file."""
    if path is not None and path.is_dir():
        raise XDogeError(f"{path} is a folder; name a file.")
    if path is not None:
        refuse_device(path)
    if path is not None and path.exists() and not force:
        raise XDogeError(f"{path} exists; name another file, or replace it with --force.")


def chosen_settings(config: Path | None, assignments: list[str] | None, flags: dict[str, Any]) -> dict[str, Any]:
    """Return the settings from the settings file, --set and the options. Later ones take precedence."""
    chosen = read_yaml(config) if config else {}
    chosen = chosen.get("settings", chosen)  # also accept the config.yaml of a run
    if not isinstance(chosen, dict):
        raise XDogeError(f"{config}: settings is {shown(chosen)}; it must be a mapping of names to values.")
    chosen = dict(chosen)
    for assignment in assignments or []:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise XDogeError(f"--set {assignment}: write it as KEY=VALUE.")
        chosen[key] = parse_yaml(value, where=f"--set {shown(assignment)}")
    return chosen | {key: value for key, value in flags.items() if value is not None}


def run_settings(
    out: Path, config: Path | None, assignments: list[str] | None, flags: dict[str, Any], *, resume: bool
) -> dict[str, Any]:
    """Return the chosen settings of a run in `out`. A resumed run keeps its earlier settings for all others.

    Raises:
        XDogeError: there is no run to resume, or the folder is not empty.
    """
    from xdoge.training.run_folder import RunFolder

    chosen = chosen_settings(config, assignments, flags)
    require("proxy", "torch", "transformers", "accelerate", "sentencepiece")
    if resume:
        return RunFolder(out).settings() | chosen
    RunFolder(out).refuse_taken()  # in every process, since the others would wait for a first one that failed alone
    return chosen


def as_options(error: XDogeException) -> str:
    """Return a message of the library, with each argument replaced by the option of the running command.

    A setting without an option is written as `--set KEY=VALUE`, if the command has --set.
    """
    command = get_command(app)
    assert isinstance(command, TyperGroup)
    parameters = next((command.commands[word].params for word in sys.argv[1:] if word in command.commands), [])
    options = {parameter.name: _typed(parameter) for parameter in parameters}

    def spell(name: str, value: str | None) -> str:
        option = options.get(name)
        if option is None:
            setting = name if value is None else f"{name}={value}"
            return f"--set {setting}" if value is not None and "assignments" in options else setting
        return option if value in (None, "True") else f"{option} {value}"

    return error.spelled(spell)


def _typed(parameter: Any) -> str:
    """Return the name of an option or an argument in the help, such as `--max-epochs` or `STORE`."""
    if parameter.param_type_name == "argument":
        return getattr(parameter, "metavar", None) or str(parameter.name)
    return str(max(parameter.opts, key=len))


def is_first() -> bool:
    """Return whether this is the first or the only process of a job."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def one_voice() -> Iterator[None]:
    """Let only one process of a node print errors that all processes meet.

    The others wait for the launcher, which stops them once the first process has failed. If nothing stops them, the
    first process did not meet the error, so they print it. A RankLocalError is printed by each process at once.
    """
    alone = os.environ.get("LOCAL_RANK", "0") == "0"
    try:
        yield
    except RankLocalError:
        raise
    except XDogeError as error:
        if alone:
            raise
        try:
            time.sleep(LAUNCHER_SECONDS)
        except (Interrupted, KeyboardInterrupt):
            raise typer.Exit(1) from None
        raise XDogeError(f"process {os.environ.get('RANK')}: {error.message}") from error
    except Interrupted as stop:
        raise (stop if is_first() else typer.Exit(stop.exit_code)) from None
