"""`xdoge card`: a data card of a mixture, for people outside the project."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xdoge.cli import options
from xdoge.cli.app import app, refuse_taken
from xdoge.corpus.store import TokenStore
from xdoge.io import write_text
from xdoge.mixtures.mixture import Mixture
from xdoge.mixtures.weights import WeightSet


@app.command()
def card(
    mixture: Annotated[
        Path,
        typer.Argument(metavar="MIXTURE.json|RUN", help="Mixture written by `xdoge mix`, or a run of `xdoge train`."),
    ],
    store: Annotated[
        Path | None, typer.Option(help="Token store of the mixture; adds origins, licences, sizes and tokenizer.")
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(metavar="WEIGHTS.json|RUN", help="Weights of the mixture; adds how they were learned."),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="File to write.", show_default="stdout")] = None,
    force: options.Force = False,
) -> None:
    """Write a data card of a mixture in Markdown: languages, sources, licences, tokens, epochs, hashes.

    The headings follow the AI Office's template for the public summary of training content (Regulation (EU) 2024/1689,
    Article 53(1)(d)). The card fills in what is known from the files that you name, and marks what the provider of the
    model must add.

    **Examples**

    - `xdoge card mixture.json --store store --weights runs/60m --out CARD.md`
    """
    from xdoge.analysis.card import mixture_card

    refuse_taken(out, force)
    text = mixture_card(
        Mixture.load(mixture),
        store=TokenStore.open(store) if store is not None else None,
        weights=WeightSet.load(weights) if weights is not None else None,
    )
    if out is None:
        print(text, end="")
    else:
        write_text(out, text)
        print(out)
