"""`xdoge prepare`: turn the text of a corpus into a token store."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from xdoge.cli import options
from xdoge.cli.app import app, stdout
from xdoge.cli.tables import empty_table
from xdoge.corpus.store import TokenStore
from xdoge.errors import Interrupted

CELLS = ("{:,}", "{:,}", "{:,}", "{:.2f}", "{:.2%}", "{:,}", "{:.2%}")
"""How the table shows documents, tokens, bytes, bytes per token, share, validation tokens and <unk> of a source."""


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
    rows = store.table()
    _, documents, tokens, n_bytes, _, share, validation_tokens, unknown = zip(*rows, strict=True)
    columns = ["documents", "tokens", "bytes", "bytes/token", "share", "valid. tokens", *["<unk>"] * any(unknown)]
    table = empty_table(("source",), columns, width=max(map(len, store.sources)))
    sums = [sum(documents), sum(tokens), sum(n_bytes), sum(n_bytes) / sum(tokens), sum(share), sum(validation_tokens)]
    sums.append(sum((part or 0) * count for part, count in zip(unknown, tokens, strict=True)) / sum(tokens))
    for name, *numbers in (*rows, ("all", *sums)):
        cells = [template.format(number or 0) for template, number in zip(CELLS, numbers, strict=True)]
        table.add_row(str(name), *cells[: len(columns)], style="bold" if name == "all" else "")
    stdout.print(table)
