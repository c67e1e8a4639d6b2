"""`xdoge mix`: plan from weights how many tokens a run reads of each source."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from xdoge.analysis.tables import predicted_losses_table
from xdoge.analysis.verdicts import mixture_verdict, predictions_verdict
from xdoge.cli import options
from xdoge.cli.app import app, as_options, refuse_taken, stdout
from xdoge.cli.tables import empty_table, print_table, print_verdict
from xdoge.config import parse_count
from xdoge.corpus.store import TokenStore
from xdoge.errors import XDogeError
from xdoge.io import read_json
from xdoge.mixtures.mixture import DEFAULT_MAX_EPOCHS, Mixture, Share, as_epochs
from xdoge.mixtures.reading import read_weights
from xdoge.mixtures.strategies import DEFAULT_TEMPERATURE, STRATEGIES, strategy_weights
from xdoge.mixtures.weights import Level, WeightSet
from xdoge.names import language_of

Store = Annotated[Path | None, typer.Option(help="Token store that the run will read; gives the sizes.")]

_MIX_HELP = f"""Turn weights into training tokens per source, with a cap on repetition.

Each source gets tokens in proportion to its weight, up to its cap: the maximum number of times that the run may read
the source. The tokens above a cap go to other sources, so that all tokens sum to the budget. Of all mixtures within
the caps, this one is nearest to the weights (KL divergence). If the budget is larger than all caps together, the error
names the smallest --max-epochs that suffices.

**Weights** are one of:

- a weights.json, or a run folder of `fit-weights`;

- a JSON file by language, {{"es": 0.3, ...}}, or by source, {{"es/web": 0.2, ...}};

- a CSV file with the shares of one mixture, as `optimize` writes;

- a strategy, which uses only the number n of tokens of each language: `uniform`, equal shares; `proportional`, p ∝ n;
`temperature`, p ∝ n^(1/τ); or `unimax`, equal shares within the caps (arXiv:2304.09151).

The weight of a language is divided among its sources in proportion to their tokens. Every language or source of the
store needs a weight; with `--rest-zero` a missing weight is 0.

**Sizes** are numbers of training tokens. They come from --store or, without a store, from --tokens: JSON
{{"es/web": 1200000000, ...}} or CSV with the columns source and tokens. Numbers may be written 500M, 1.2B or 2T.

**What it prints.** For each language and source: its weight, its planned share of the budget, and the ratio of both;
its tokens in this run, and those available; how often it is read at the end of the run (epochs), and the part of it
that is never read (unread); and its cap, if the cap limits it.

**The verdict** says whether the weights or the caps decide the mixture. It compares the mixture with equal shares of
languages within the same caps, and names the languages that get the same share in both.

**Warnings** name three things: sources that are read more than {DEFAULT_MAX_EPOCHS:g} times; sources of which less than
1 % is read; and languages whose weight the caps cut by more than a quarter.

**--law** shows the losses that a law of `xdoge fit-law` predicts for each mixture, and their differences to equal
shares with 90 % intervals. If the law has shares of languages, those of a language's sources are added up.

**Examples**

- `xdoge mix runs/60m/weights.json --store store --budget 100B --out mixture.json`

- `xdoge mix unimax --store store --budget 100B --max-epochs 1,2,4,8`

- `xdoge mix runs/60m --tokens counts.csv --budget 2T --cap eu=8 --cap en/web=1 --out mixture.json`

- `xdoge mix runs/60m --store store --budget 20B --after phase1.json --out phase2.json`

- `xdoge mix uniform --store store --budget 100B --max-epochs 2,4,8 --law law.json`
"""


@app.command(help=_MIX_HELP)
def mix(  # an option for each setting of a plan
    weights: Annotated[
        str,
        typer.Argument(metavar="WEIGHTS.json|STRATEGY", help="Weights, or the name of a strategy.", show_default=False),
    ],
    budget_tokens: Annotated[
        str, typer.Option("--budget", metavar="TOKENS", help="Training tokens of the run: 500M, 100B, 2T.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="MIXTURE.json", help="File to write; without it the mixture is only printed.")
    ] = None,
    store: Store = None,
    tokens: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Sizes of the sources, JSON or CSV; in place of --store.")
    ] = None,
    max_epochs: Annotated[
        str,
        typer.Option(
            metavar="N[,N...]",
            help="Maximum epochs of a source, or none. Several values, without --out, are shown side by side.",
        ),
    ] = f"{DEFAULT_MAX_EPOCHS:g}",
    caps: Annotated[
        list[str] | None,
        typer.Option(
            "--cap",
            metavar="NAME=N",
            help="Maximum epochs of one source, or of each source of a language, in place of --max-epochs; may be "
            "repeated.",
        ),
    ] = None,
    after: Annotated[
        Path | None,
        typer.Option(
            metavar="MIXTURE.json", help="Mixture of the previous phase of training. Its tokens count towards the caps."
        ),
    ] = None,
    min_share: Annotated[
        float,
        typer.Option(
            parser=options.number,
            metavar="G",
            help="Minimum share of the budget for each source with a weight above 0, if its cap allows it.",
        ),
    ] = 0.0,
    level: Annotated[
        Level | None,
        typer.Option(
            parser=options.one_of("languages", "sources"),
            metavar="languages|sources",
            help="Who gets the tokens above a cap. sources: all other sources; languages: first the other sources of "
            "the same language.",
            show_default="sources; languages for weights by language and for strategies",
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            parser=options.number,
            metavar="τ",
            help="Temperature τ of the strategy `temperature`, at least 1; higher is nearer to equal shares.",
            show_default=f"{DEFAULT_TEMPERATURE:.3g}",
        ),
    ] = None,
    rest_zero: Annotated[
        bool,
        typer.Option(
            "--rest-zero", help="Read nothing from languages or sources without a weight, instead of an error."
        ),
    ] = False,
    sequence_length: Annotated[
        int | None,
        typer.Option(
            parser=options.count(1),
            metavar="T",
            help="Count only whole sequences of T tokens as available, as a data loader does.",
            show_default="all tokens",
        ),
    ] = None,
    law: options.Law = None,
    seed: Annotated[
        int,
        typer.Option(
            parser=options.count(), metavar="S", help="Seed of the order in which the sampler reads sequences."
        ),
    ] = 0,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    limits = [_limit(part) for part in max_epochs.split(",")]
    if len(limits) > 1 and out is not None:
        raise XDogeError("--out writes one mixture; give one value of --max-epochs.")
    refuse_taken(out, force)
    fitted = None
    if law is not None:
        from xdoge.laws.law import MixtureLaw

        fitted = MixtureLaw.load(law)
    available, corpus = _available(store, tokens)
    followed, by_size = _weights(weights, available, temperature)
    common: dict[str, Any] = {
        "available_tokens": available,
        "budget_tokens": _count(budget_tokens, "--budget"),
        "caps": _caps(caps or []),
        "read_before": _read_before(after, available),
        "min_share": min_share,
        "level": level or ("languages" if by_size else None),
        "seed": seed,
        "corpus": corpus,
        "sequence_length": sequence_length,
        "rest_zero": rest_zero,
    }
    name = (
        weights if weights in STRATEGIES else (followed.name if isinstance(followed, WeightSet) else Path(weights).stem)
    )
    planned, refused = [], []
    for limit in limits:
        try:
            planned.append(Mixture.plan(followed, max_epochs=limit, name=name, **common))
        except XDogeError as error:
            refused.append(f"--max-epochs {_epochs(limit)}: " * (len(limits) > 1) + as_options(error))
    if not planned:
        raise XDogeError(" ".join(refused))
    if out is not None:
        planned[0].save(out)
    several = len(limits) > 1
    called = [_at_most(mixture) if several else mixture.name for mixture in planned]
    predicted = None if fitted is None else fitted.prediction_table(dict(zip(called, planned, strict=True)))
    rows = {name: [row for row in predicted.rows if row["mixture"] == name] if predicted else [] for name in called}
    verdicts = {
        name: [*mixture_verdict(mixture), *predictions_verdict(rows[name], str(law))]
        for name, mixture in zip(called, planned, strict=True)
    }
    if as_json:
        values = [
            mixture.to_dict()
            | ({"law": {"rows": rows[name], "notes": list(predicted.notes)}} if predicted else {})
            | {"verdict": " ".join(verdicts[name])}
            for name, mixture in zip(called, planned, strict=True)
        ]
        print(json.dumps(values if several else values[0], indent=2))
    else:
        print_mixtures(planned)
        if predicted and predicted.rows:
            print_table(predicted_losses_table(predicted.rows, str(law)))
        for name, sentences in verdicts.items():
            print_verdict(sentences, name if several else "")
    notes = predicted.notes if predicted else ()
    for line in [*refused, *_warnings(planned), *_other_corpus(followed, corpus), *notes]:
        print(f"warning: {line}", file=sys.stderr)
    if out is None:
        print("nothing was written; add --out MIXTURE.json to write the mixture.", file=sys.stderr)
    elif not as_json:
        print(out)


def _count(text: object, what: str) -> int:
    try:
        return parse_count(text)
    except ValueError as error:
        raise XDogeError(f"{what}: {error}.") from error


def _number(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise XDogeError(f"{what}: {text!r} is not a number.") from error


def _limit(text: str) -> float | None:
    return None if text.strip().lower() == "none" else _number(text, "--max-epochs")


def _caps(assignments: Sequence[str]) -> dict[str, float]:
    caps = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise XDogeError(f"--cap {assignment}: write it as NAME=N, such as eu/wiki=8.")
        if name in caps:
            raise XDogeError(f"--cap {name} is given twice.")
        caps[name] = _number(value, f"--cap {assignment}")
    return caps


def _available(store: Path | None, counts: Path | None) -> tuple[dict[str, int], dict[str, Any]]:
    """Return unique training tokens by source, and the identity of the store or file that they come from."""
    if store is not None and counts is not None:
        raise XDogeError("--store and --tokens both give the sizes of the sources; leave one of them out.")
    if store is not None:
        opened = TokenStore.open(store)
        return opened.tokens(), {"name": opened.name, "sha256": opened.sha256}
    if counts is None:
        raise XDogeError("give the sizes of the sources with --store STORE, or with --tokens FILE.")
    return _read_counts(counts), {}


def _read_counts(path: Path) -> dict[str, int]:
    """Return token counts from JSON such as {"es/web": "1.2B"}, or from CSV with the columns source and tokens."""
    if path.is_dir():
        raise XDogeError(f"{path} is a folder; --tokens names a file of counts, --store a token store.")
    if path.suffix == ".csv":
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = list(csv.DictReader(file, strict=True))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise XDogeError(f"{path} cannot be read: {error}.") from error
        if not rows or not {"source", "tokens"} <= set(rows[0]):
            raise XDogeError(f"{path} needs a header with the columns source and tokens, and one line per source.")
        pairs = [(row["source"], row["tokens"]) for row in rows]
    else:
        pairs = list(read_json(path).items())
    names = [name for name, _ in pairs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise XDogeError(f"{path}: {twice[0]} is given twice.")
    if not pairs:
        raise XDogeError(f"{path} names no source.")
    for name in names:
        if "/" not in name:
            raise XDogeError(f"{path}: {name!r}; a source is named language/source, as in 'eu/wikipedia'.")
    return {name: _count(value, f"{path}: {name}") for name, value in pairs}


def _weights(
    argument: str, available: Mapping[str, int], temperature: float | None
) -> tuple[WeightSet | dict[str, float], bool]:
    """Return the weights that the first argument names, and whether it is a strategy."""
    if argument in STRATEGIES:
        return strategy_weights(argument, available, temperature=temperature), True
    if temperature is not None:
        raise XDogeError("--temperature is only for the strategy temperature; leave it out.")
    path = Path(argument)
    if not path.exists():
        raise XDogeError(f"{argument} is neither a file nor a strategy; the strategies are {', '.join(STRATEGIES)}.")
    return read_weights(path), False


def _read_before(earlier: Path | None, available: Mapping[str, int]) -> dict[str, int]:
    """Return the tokens of each source that were read by the end of the earlier phase."""
    if earlier is None:
        return {}
    sources = Mixture.load(earlier).sources
    if unknown := sorted(set(sources) - set(available)):
        raise XDogeError(
            f"{earlier} reads {unknown[0]}, which has no token count here; it was planned for another corpus."
        )
    return {source: share.read_before + share.tokens for source, share in sources.items()}


def _other_corpus(weights: WeightSet | Mapping[str, float], corpus: Mapping[str, Any]) -> list[str]:
    """Return a note if the weights were learned on other text than that of the store."""
    learned = weights.corpus if isinstance(weights, WeightSet) else {}
    if not (corpus and learned.get("sha256")) or learned["sha256"] == corpus["sha256"]:
        return []
    return [f"the weights were learned on another store ({learned.get('name')}, SHA-256 {learned['sha256'][:12]})."]


def _epochs(limit: float | None) -> str:
    return "none" if limit is None else f"{limit:g}"


def _warnings(mixtures: Sequence[Mixture]) -> list[str]:
    if len(mixtures) == 1:
        return mixtures[0].warnings()
    return [f"max_epochs {_epochs(mixture.max_epochs)}: {line}" for mixture in mixtures for line in mixture.warnings()]


def print_mixtures(mixtures: Sequence[Mixture]) -> None:
    """Print one mixture in full, or several side by side."""
    first = mixtures[0]
    print(f"{first.name}: {first.budget_tokens:,} tokens" + _sentence(first) * (len(mixtures) == 1))
    numbers = ["planned", "planned / weight", "tokens", "available", "epochs", "unread", "cap"]
    if len(mixtures) > 1:
        numbers = [name for mixture in mixtures for name in (f"{_at_most(mixture)}: planned", "epochs")]
    table = empty_table(("source",), ("weight", *numbers), width=2 + max(map(len, first.sources)))
    cells = _full_cells if len(mixtures) == 1 else _short_cells
    languages = [mixture.languages for mixture in mixtures]
    for language in sorted(languages[0], key=lambda name: -languages[0][name].tokens):
        table.add_row(language, *cells([shares[language] for shares in languages]), style="bold")
        for source in first.sources:
            if language_of(source) == language:
                table.add_row(f"  {source}", *cells([mixture.sources[source] for mixture in mixtures]))
    table.add_section()
    table.add_row("total", *_totals(mixtures), style="bold")
    stdout.print(table)
    if len(mixtures) > 1:
        print("*: limited by the cap")


def _sentence(mixture: Mixture) -> str:
    moved, cap = math.fsum(abs(share.moved) for share in mixture.sources.values()) / 2, mixture.max_epochs
    limit = "no cap" if cap is None else f"at most {cap:g} epoch{'s' * (cap != 1)} unless --cap says otherwise"
    read = sum(share.read_before for share in mixture.sources.values())
    before = f" after {read:,} in earlier phases, which count towards the epochs" if read else ""
    return f"{before}, {limit}; caps and rounding move {moved:.2%} of the tokens"


def _at_most(mixture: Mixture) -> str:
    cap = mixture.max_epochs
    return "no cap" if cap is None else f"≤ {cap:g} epoch{'s' * (cap != 1)}"


def _full_cells(shares: Sequence[Share]) -> list[str]:
    (share,) = shares
    ratio = f"{share.weight / share.learned_weight:.2f}" if share.learned_weight else "–"
    limit = f"at {share.max_epochs:g}" if share.capped and share.max_epochs is not None else "in part" * share.capped
    return [
        f"{share.learned_weight:.4f}",
        f"{share.weight:.4f}",
        ratio,
        f"{share.tokens:,}",
        f"{share.available_tokens:,}",
        as_epochs(share.epochs),
        f"{share.unread:.1%}",
        limit,
    ]


def _totals(mixtures: Sequence[Mixture]) -> list[str]:
    """Return the cells of the last row: sums, and the mean number of passes over all text."""
    available = sum(share.available_tokens for share in mixtures[0].sources.values())
    read = [sum(share.read_before + share.tokens for share in mixture.sources.values()) for mixture in mixtures]
    epochs = [as_epochs(tokens / available) for tokens in read]
    total = f"{math.fsum(share.learned_weight for share in mixtures[0].sources.values()):.4f}"
    if len(mixtures) > 1:
        return [total, *(cell for passes in epochs for cell in ("1.0000", passes))]
    unread = math.fsum(share.unread * share.available_tokens for share in mixtures[0].sources.values()) / available
    return [total, "1.0000", "", f"{mixtures[0].budget_tokens:,}", f"{available:,}", epochs[0], f"{unread:.1%}", ""]


def _short_cells(shares: Sequence[Share]) -> list[str]:
    cells = [f"{shares[0].learned_weight:.4f}"]
    for share in shares:
        cells += [f"{share.weight:.4f}", as_epochs(share.epochs) + "*" * share.capped]
    return cells
