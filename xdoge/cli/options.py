"""The options that several commands take."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from xdoge.config import MOST_WORKERS, parse_count
from xdoge.training.proxy_settings import ProxySettings

PROXY = str(ProxySettings.model_fields["proxy"].default)
"""The default proxy, for help texts."""


def count(least: int | None = None, most: int | None = None) -> Callable[[int | str], int]:
    """Return a parser of whole numbers such as 500, 6e3 or 2K. It refuses numbers below `least` or above `most`."""

    def parse(text: int | str) -> int:
        try:
            number = int(text) if re.fullmatch(r"\s*-\d+\s*", str(text)) else parse_count(text)
        except ValueError as error:
            raise typer.BadParameter(f"{error}.") from error
        if least is not None and number < least:
            raise typer.BadParameter(f"{number} is too small; it must be at least {least}.")
        if most is not None and number > most:
            raise typer.BadParameter(f"{number} is too large; it must be at most {most}.")
        return number

    return parse


def number(text: float | str) -> float:
    """Return a text as a number."""
    try:
        return float(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a number.") from error


def one_of(*choices: str) -> Callable[[str], str]:
    """Return a parser that refuses all texts but the choices."""

    def parse(text: str) -> str:
        if text not in choices:
            raise typer.BadParameter(f"{text!r} is unknown; it must be {' or '.join(choices)}.")
        return text

    return parse


Workers = Annotated[
    int | None,
    typer.Option(
        parser=count(1, MOST_WORKERS), metavar="N", help="Number of threads that tokenise.", show_default="all cores"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
ConfigFile = Annotated[Path | None, typer.Option(metavar="FILE", help="YAML file with settings.")]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting; may be repeated.")
]
RunPath = Annotated[Path, typer.Option(metavar="RUN", help="Run folder; must be new or empty, except with --resume.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in RUN, with its settings.")]


def proxy(default: str = PROXY) -> Any:
    """Return the option for a proxy. The settings have its default; the option only shows it."""
    text = "Proxy model: 1m, 7m, 15m, 60m, 125m, 250m, 500m, 900m, or a YAML file."
    return typer.Option(metavar="NAME|FILE", help=text, show_default=default)


Proxy = Annotated[str | None, proxy()]
ProxySeed = Annotated[
    int | None,
    typer.Option(
        parser=count(),
        metavar="S",
        help="Seed of the proxies' initial weights and of the order of the text.",
        show_default="0",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")]
Law = Annotated[
    Path | None, typer.Option("--law", metavar="LAW.json", help="Also show the losses that this law predicts.")
]
