"""`xdoge prepare`: turn the text of a corpus into a token store."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xdoge.cli import options
from xdoge.cli.app import app, stdout
from xdoge.cli.tables import empty_table
from xdoge.corpus.store import TokenStore
from xdoge.errors import Interrupted, XDogeError

if TYPE_CHECKING:
    from xdoge.cli.progress import Display
    from xdoge.corpus.shards import Shard

CELLS = ("{:,}", "{:,}", "{:,}", "{:.2f}", "{:.2%}", "{:,}", "{:.2%}")
"""Formats of the cells: documents, tokens, bytes, bytes per token, share, validation tokens and share of <unk>."""


@app.command()
def prepare(
    corpus: Annotated[
        Path, typer.Argument(metavar="CORPUS.yaml", help="YAML file with languages, sources and tokenizer.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the token store.")],
    workers: options.Workers = None,
    refresh: Annotated[
        bool, typer.Option(help="Tokenise sources again whose files or settings changed, instead of stopping.")
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(metavar="K/N", help="Prepare part K of N parts.", show_default="from the Slurm array, if any"),
    ] = None,
    join: Annotated[bool, typer.Option("--join", help="Join the parts that --shard prepared.")] = False,
    as_json: options.Json = False,
) -> None:
    """Turn the text of a corpus into a token store.

    CORPUS.yaml lists the languages, the files of each source, and the tokenizer:

        tokenizer: {sentencepiece: tokenizer.model}

        languages: {eu: {sources: {wiki: {files: "eu/*.parquet", text: text}}}}

    This source is then called eu/wiki. docs/how-to/prepare.md has all keys. By default 0.5 % of the documents become
    validation text.

    `prepare` checks every file first, then tokenises one source after the other on all cores. At the end it prints
    training documents, tokens, bytes, bytes per token, share of the tokens, and validation tokens of each source. After
    a kill, run the same command again. It keeps the sources that are finished.

    **Several nodes.** Run the command with the same --out and `--shard 1/16` on the first node, `--shard 2/16` on the
    second, and so on. A task of a Slurm array takes its part from the task number; `--shard 1/1` overrides this. When
    all parts are finished, run the command once with `--join`. The store has the same bytes as one made by one process.
    """
    if join and shard is not None:
        raise XDogeError("--join cannot be used with --shard; it joins all parts.")
    if join and refresh:
        raise XDogeError("--join cannot be used with --refresh; use --refresh with --shard.")
    part = None if join else _shard(shard, out)
    if part is not None:
        counts = prepare_shard(corpus, out, part, workers=workers, refresh=refresh)
        if as_json:
            print(json.dumps({"shard": str(part), **counts}, indent=2))
        else:
            print("{}: {files:,} files, {documents:,} documents, {tokens:,} tokens".format(part, **counts))
            print(f"When all {part.count} parts are finished, run: xdoge prepare {corpus} --out {out} --join")
        return
    store = prepare_store(corpus, out, workers=workers, refresh=refresh, join=join)
    if as_json:
        print(json.dumps([row._asdict() for row in store.table()], indent=2))
    else:
        print_store(store)


def _shard(option: str | None, out: Path) -> Shard | None:
    """Return the part to prepare, from --shard or the variables of a Slurm array; None for the whole corpus."""
    from xdoge.corpus.shards import Shard

    if option is not None:
        shard = Shard.parse(option)
    else:
        names = [f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "COUNT", "MIN", "STEP")]
        if names[0] not in os.environ or (out / "store.json").exists():  # each task of an array may call it again
            return None
        values = [os.environ.get(name, default) for name, default in zip(names, ("", "", "0", "1"), strict=True)]
        variables = ", ".join(f"{name}={value}" for name, value in zip(names, values, strict=True))
        try:
            task, count, least, step = map(int, values)
            shard = Shard((task - least) // step + 1, count)
        except (ValueError, ZeroDivisionError, XDogeError) as error:
            raise XDogeError(
                f"the variables {variables} do not give a part; use --shard K/N, or --shard 1/1 for the whole corpus."
            ) from error
        print(f"preparing part {shard} (from {variables}); --shard overrides this", file=sys.stderr)
    return None if shard.count == 1 else shard


def prepare_shard(corpus: Path, out: Path, shard: Shard, *, workers: int | None, refresh: bool) -> dict[str, int]:
    from xdoge.corpus.shards import prepare_shard

    with _showing() as display:
        return asdict(prepare_shard(corpus, out, shard, workers=workers, refresh=refresh, on_progress=display.show))


@contextlib.contextmanager
def _showing() -> Iterator[Display]:
    from xdoge.cli.progress import Display

    try:
        with Display() as display:
            yield display
    except KeyboardInterrupt:
        raise Interrupted(
            2, "interrupted; finished sources are kept. Run the same command again to continue."
        ) from None


def prepare_store(
    corpus: Path, out: Path, *, workers: int | None = None, refresh: bool = False, join: bool = False
) -> TokenStore:
    from xdoge.corpus.prepare import prepare as prepare_corpus
    from xdoge.corpus.shards import join_shards

    with _showing() as display:
        if join:
            store = join_shards(corpus, out, workers=workers, on_progress=display.show)
        else:
            store = prepare_corpus(corpus, out, workers=workers, refresh=refresh, on_progress=display.show)
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
