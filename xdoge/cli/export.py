"""`xdoge export`: a mixture in the file format of another trainer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from xdoge.cli import options
from xdoge.cli.app import app, refuse_taken
from xdoge.corpus.store import TokenStore
from xdoge.errors import XDogeError
from xdoge.export import FORMATS, export
from xdoge.io import write_text
from xdoge.mixtures.mixture import Mixture


@app.command(name="export")
def export_mixture(
    mixture: Annotated[Path, typer.Argument(metavar="MIXTURE.json", help="Mixture written by `xdoge mix`.")],
    to: Annotated[str, typer.Option(metavar="FORMAT", help="The trainer: " + ", ".join(FORMATS) + ".")],
    documents: Annotated[
        Path | None,
        typer.Option(
            "--store",
            help="Token store of the mixture; gives the number of documents, for trainers that draw documents.",
        ),
    ] = None,
    paths: Annotated[
        str | None,
        typer.Option(
            metavar="TEMPLATE",
            help="Path of a source for the trainer, with {language}, {source} and {name} (language/source).",
            show_default="the format's",
        ),
    ] = None,
    sequence_length: Annotated[
        int | None,
        typer.Option(
            parser=options.count(1), metavar="T", help="Tokens per sequence, for trainers that draw sequences."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="File to write.", show_default="stdout")] = None,
    force: options.Force = False,
) -> None:
    """Write a mixture as a configuration for another trainer.

    `xdoge formats` lists the formats. `xdoge formats FORMAT` says how to use the file, what its weights mean, and what
    that trainer does at the end of a source. Warnings on stderr say, with numbers, where that trainer cannot follow the
    mixture exactly.

    **Weights.** Some trainers draw sequences, others draw documents. Give --sequence-length or --store, so that the
    weights are right for what your trainer draws. If both are missing, the weights are shares of tokens, and a warning
    says so where it matters.

    **Examples**

    - `xdoge export mixture.json --to megatron --paths '/data/{language}_{source}_text_document' --out blend.txt`

    - `xdoge export mixture.json --to datasets --store store`
    """
    refuse_taken(out, force)
    planned, counts = Mixture.load(mixture), None
    if documents is not None:
        counts = TokenStore.open(documents).documents()
        if missing := [name for name, share in planned.sources.items() if share.tokens and name not in counts]:
            raise XDogeError(
                f"{documents} has no source {missing[0]}, which {mixture} reads; name the store of that mixture."
            )
    written = export(planned, to, paths=paths, documents=counts, sequence_length=sequence_length)
    if out is None:
        print(written.text, end="")
    else:
        write_text(out, written.text)
        print(out)
    for line in written.warnings:
        print(f"warning: {line}", file=sys.stderr)
