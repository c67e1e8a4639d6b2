"""The command line. A command reads its arguments, calls one function and prints what this returns.

Results go to stdout, progress and messages to stderr. The exit status is 0 for success, 1 for an error that the user
can put right, and 2 for wrong usage. After a signal it is 128 plus the signal's number, which is 130 for Ctrl-C. An
error is one line.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from types import FrameType
from typing import Annotated

import typer

from xdoge._version import __version__
from xdoge.cli import (  # noqa: F401  # each registers its command
    baseline,
    card,
    compare,
    demo,
    eval,
    export,
    fit_law,
    fit_weights,
    formats,
    merge,
    mix,
    optimize,
    plan,
    predict,
    prepare,
    study,
    swarm,
    train,
)
from xdoge.cli.app import app, as_options, refuse_undecoded
from xdoge.errors import Interrupted, XDogeError

ORDER = (
    "demo", "prepare", "fit-weights", "baseline", "merge", "swarm", "fit-law", "predict", "optimize", "mix",
    "export", "formats", "train", "eval", "compare", "card", "study", "plan",
)  # fmt: skip
"""Order of the commands in the help. It follows the usual order of work."""

app.registered_commands.sort(key=lambda command: ORDER.index(command.name or command.callback.__name__))  # type: ignore[union-attr]


def main() -> None:
    """Run the command line and exit as the module docstring says."""
    try:
        _run()
    except KeyboardInterrupt:  # also while an error is formatted
        sys.exit(_say("Aborted.", 130))


def _run() -> None:
    signal.signal(signal.SIGTERM, _terminate)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # escape characters that the terminal's encoding lacks
            stream.reconfigure(errors="backslashreplace")
    try:
        refuse_undecoded(sys.argv[1:])
        try:
            app()
        finally:
            sys.stdout.flush()
    except XDogeError as error:
        sys.exit(_say(f"error: {as_options(error)}", 1))
    except Interrupted as stop:
        sys.exit(_say(as_options(stop), stop.exit_code))
    except MemoryError as error:
        sys.exit(_say(f"error: this process has too little memory. {error}".rstrip(), 1))
    except RuntimeError as error:
        if "can't start new thread" not in str(error):
            raise
        sys.exit(_say("error: this process cannot start another thread; see ulimit -u and ulimit -v.", 1))
    except ImportError as error:  # of a library that is there, as when memory is short
        if isinstance(error, ModuleNotFoundError) or (error.name or "xdoge").partition(".")[0] == "xdoge":
            raise
        hint = "Its version may not fit, or memory is short (ulimit -v)."
        sys.exit(_say(f"error: {error.name} cannot be loaded: {error}. {hint}", 1))
    except OSError as error:
        if error.filename is None:  # a closed stream; Python would write to it again at exit
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        what = "the output" if error.filename is None else os.fsdecode(error.filename)
        sys.exit(_say(f"error: {what} cannot be read or written: {error.strerror or error}.", 1))


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number, "terminated; no file is half-written. Run the same command again to continue.")


def _say(text: str, status: int) -> int:
    print(" ".join(text.split("\n")), file=sys.stderr)
    return status


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Decide how much of each language a multilingual language model is trained on.

    **The usual way.** `xdoge prepare` turns text into a token store. `xdoge swarm` trains small models on many
    mixtures. `xdoge fit-law` fits a function from the mixture to the losses of these models, and `xdoge optimize` finds
    the mixture with the lowest predicted loss. `xdoge mix` turns its shares into tokens per source.

    **Cheaper.** `xdoge mix unimax` needs sizes only and trains nothing. `xdoge fit-weights` learns the shares with a
    single small model, and shows which languages help each other.

    **With the mixture.** `xdoge train` trains a model on it, and `xdoge export` writes it for another trainer. `xdoge
    eval` measures perplexity and benchmarks, and `xdoge compare` shows results side by side.

    Try `xdoge demo` first.
    """
