"""A hook of MkDocs that writes the site's page of commands from the help texts, so that it is always up to date."""

from __future__ import annotations

from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from typer import Context
from typer.cli import get_docs_for_click
from typer.main import get_command

from xdoge.cli import app


def on_files(files: Files, *, config: MkDocsConfig, **_: Any) -> Files:
    """Add reference/commands.md with the help of every command to the files of the site."""
    group = get_command(app)
    for command in group.commands.values():
        command.short_help = (command.help or "").partition("\n\n")[0]  # click would shorten it to 45 characters
    text = get_docs_for_click(obj=group, ctx=Context(group, info_name="xdoge"), name="xdoge", title="Command line")
    for name in group.commands:
        text = text.replace(f"* `{name}`: ", f"* [`{name}`](#xdoge-{name}): ", 1)
    files.append(File.generated(config, "reference/commands.md", content=text))
    return files
