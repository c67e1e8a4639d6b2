"""The options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Workers = Annotated[int | None, typer.Option(min=1, help="Threads that tokenise.", show_default="all cores")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
ConfigFile = Annotated[Path | None, typer.Option(metavar="FILE", help="YAML file with any of the settings.")]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting; may be repeated.")
]
RunPath = Annotated[Path, typer.Option(metavar="RUN", help="Run folder; new or empty, unless --resume.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in RUN, with its settings.")]
Proxy = Annotated[
    str | None,
    typer.Option(metavar="NAME|FILE", help="Proxy model: 1m 7m 15m 60m 125m 250m 500m 900m, or a YAML file."),
]
ProxySeed = Annotated[
    int | None, typer.Option(metavar="S", help="Seed of the initial weights of proxies and of the order of text.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")]
Law = Annotated[
    Path | None, typer.Option("--law", metavar="LAW.json", help="Show the losses that this law predicts, too.")
]
