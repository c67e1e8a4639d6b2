"""`xdoge formats`: what `xdoge export` can write."""

from __future__ import annotations

from typing import Annotated

import typer

from xdoge.cli.app import app, stdout
from xdoge.cli.tables import empty_table
from xdoge.errors import XDogeError
from xdoge.export import FORMATS


@app.command()
def formats(
    name: Annotated[str | None, typer.Argument(metavar="FORMAT", help="Format to explain.", show_default=False)] = None,
) -> None:
    """List the formats of `xdoge export`, or explain one of them."""
    if name is None:
        table = empty_table(("format", "what it writes"))
        for key, function in FORMATS.items():
            table.add_row(key, (function.__doc__ or "").strip().split("\n")[0])
        stdout.print(table)
    elif name in FORMATS:
        print("\n".join(line.removeprefix("    ") for line in (FORMATS[name].__doc__ or "").strip().split("\n")))
    else:
        raise XDogeError(f"format {name!r} is unknown; known: {', '.join(FORMATS)}.")
