"""`xdoge prepare`: turn the text of a corpus into a token store."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xdoge.cli import options
from xdoge.cli.app import app, stdout
from xdoge.cli.tables import empty_table
from xdoge.errors import Interrupted

if TYPE_CHECKING:
    from xdoge.corpus.store import TokenStore


@app.command()
def prepare(
    corpus: Annotated[Path, typer.Argument(metavar="CORPUS.yaml", help="What text there is.")],
    out: Annotated[Path, typer.Option(help="Folder of the token store.")],
    workers: options.Workers = None,
    refresh: Annotated[
        bool, typer.Option(help="Tokenise sources again whose files or settings changed since.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Turn the text of a corpus into a token store.

    Checks every file first, then tokenises source by source on all cores. A run that was killed continues when it is
    started again: finished sources are kept. Prints documents, tokens, bytes, bytes per token and share by source.
    """
    store = prepare_store(corpus, out, workers=workers, refresh=refresh)
    if as_json:
        print(json.dumps([row._asdict() for row in store.table()], indent=2))
    else:
        print_store(store)


def prepare_store(corpus: Path, out: Path, *, workers: int | None = None, refresh: bool = False) -> TokenStore:
    from xdoge.cli.progress import Display
    from xdoge.corpus.prepare import prepare as prepare_corpus

    try:
        with Display() as display:
            store = prepare_corpus(corpus, out, workers=workers, refresh=refresh, on_progress=display.show)
    except KeyboardInterrupt:
        raise Interrupted(2, "interrupted; the same command continues and keeps the finished sources") from None
    for warning in store.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return store


def print_store(store: TokenStore) -> None:
    print(f"{store.name}: {store.path}")
    numbers = ("documents", "tokens", "bytes", "bytes/token", "share", "valid. tokens")
    table = empty_table(("source",), numbers, width=max(map(len, store.sources)))
    rows = store.table()
    for row in rows:
        table.add_row(
            row.source,
            f"{row.documents:,}",
            f"{row.tokens:,}",
            f"{row.n_bytes:,}",
            f"{row.bytes_per_token:.2f}",
            f"{row.share:.2%}",
            f"{row.validation_tokens:,}",
        )
    documents, tokens, n_bytes, held_out = (
        sum(values)
        for values in zip(*((r.documents, r.tokens, r.n_bytes, r.validation_tokens) for r in rows), strict=True)
    )
    total = f"{documents:,}", f"{tokens:,}", f"{n_bytes:,}", f"{n_bytes / tokens:.2f}", "100.00%", f"{held_out:,}"
    table.add_row("all", *total, style="bold")
    stdout.print(table)
