"""The mixture card: a description in Markdown of the text that a run trains on, for people outside the project.

Its headings come from the European AI Office's template for the public summary of training content (Article 53(1)(d) of
Regulation (EU) 2024/1689; Commission, 24 July 2025). It has only the headings about which a mixture has information.
What only the provider of the model knows is marked as `OPEN`, so that nobody mistakes the card for the summary itself.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence

from xdoge._version import __version__
from xdoge.config import read_yaml
from xdoge.corpus.store import TokenStore
from xdoge.errors import XDogeError
from xdoge.io import read_json, sha256_json
from xdoge.mixtures.mixture import Mixture, Share, as_epochs
from xdoge.mixtures.strategies import STRATEGIES, strategy_weights
from xdoge.mixtures.weights import WeightSet
from xdoge.names import split_source

OPEN = "*To be stated by the provider.*"
UNKNOWN = "not stated"

_METHOD = ("score", "targets", "steps", "batch", "batch_size", "sequence_length", "mu", "learning_rate", "seed")
"""Settings of a fit that the card shows. weights.json has all."""


def mixture_card(mixture: Mixture, *, store: TokenStore | None = None, weights: WeightSet | None = None) -> str:
    """Return the card of a mixture as Markdown.

    Args:
        mixture: the mixture.
        store: the token store that it was planned for. Without it, the card does not state the origin, licence and size
            of the sources.
        weights: the weights that it follows. Without them, the card does not state how they were learned.

    Raises:
        XDogeError: the store or the weights are not those of the mixture.
    """
    _check(mixture, store, weights)
    origins = _origins(store) if store else {}
    languages = sorted(mixture.languages.items(), key=lambda item: -item[1].tokens)
    parts = [
        f"# Training data of {_text(mixture.name)}",
        f"Mixture card made by xdoge {__version__}. The headings follow the AI Office's template for the "
        "public summary of training content (Regulation (EU) 2024/1689, Article 53(1)(d)). Where the "
        "mixture has no information, the provider of the model must add it.",
        "## 1. General information",
        f"### 1.1 Provider identification\n\n{OPEN}",
        f"### 1.2 Model identification\n\n{OPEN} Its training data is the mixture {_code(mixture.name)}, planned "
        f"{mixture.created[:10] or 'at an unknown date'}.",
        "### 1.3 Modalities, overall training data size and other characteristics",
        _size(mixture, store),
        _table(
            ("language", "family", "share", "training tokens", "text available, tokens", "epochs"),
            [[language, *_language(share, store, language)] for language, share in languages],
        ),
        "## 2. List of data sources",
        _sources(mixture, store, origins),
        "## 3. Data processing aspects",
        f"### 3.1 Respect of reservation of rights from the text and data mining exception\n\n{OPEN}",
        _licences(mixture, origins),
        f"### 3.2 Removal of illegal content\n\n{OPEN}",
        "### 3.3 Other information\n\n#### How the shares were found",
        _learned(mixture, weights),
        "#### Repetition",
        _repetition(mixture),
        "#### Files",
        _files(mixture, store),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _check(mixture: Mixture, store: TokenStore | None, weights: WeightSet | None) -> None:
    if store is not None:
        stated = mixture.corpus.get("sha256")
        if stated is not None and stated != store.sha256:
            raise XDogeError(
                f"{store.path} is not the store that the mixture {mixture.name} was planned for: its store.json has "
                f"SHA-256 {store.sha256[:12]}, not {stated[:12]}."
            )
        if missing := sorted(set(mixture.sources) - set(store.sources)):
            raise XDogeError(f"{store.path} has no {missing[0]}, which the mixture {mixture.name} reads.")
    if weights is not None and (digest := sha256_json(weights.to_dict())) != mixture.weights.get("sha256"):
        raise XDogeError(
            f"weights {weights.name!r} are not those that the mixture {mixture.name} follows: SHA-256 {digest[:12]}, "
            f"not {str(mixture.weights.get('sha256'))[:12]}."
        )


def _origins(store: TokenStore) -> dict[str, dict[str, str]]:
    """Return origin and licence of each source, from store.json and the corpus.yaml beside it."""
    entries = read_json(store.path / "store.json")["sources"]
    languages = read_yaml(store.path / "corpus.yaml").get("languages", {})
    origins = {}
    for source, entry in entries.items():
        language, short = split_source(source)
        spec = languages.get(language, {}).get("sources", {}).get(short, {})
        parts = [spec.get(key) for key in ("dataset", "config", "revision")]
        files = len(entry["inputs"])
        origins[source] = {
            "dataset": ", ".join(str(part) for part in parts if part) if parts[0] else "",
            "files": f"{files:,} file{'s' * (files != 1)}",
            "license": entry["license"] or UNKNOWN,
        }
    return origins


def _size(mixture: Mixture, store: TokenStore | None) -> str:
    shares = mixture.sources.values()
    distinct = sum(min(share.available_tokens, share.read_before + share.tokens) for share in shares)
    before = sum(share.read_before for share in shares)
    earlier = f", after {before:,} tokens of earlier phases" if before else ""
    lines = [
        "- Modality: text.",
        f"- Training data size: {mixture.budget_tokens:,} tokens{earlier}, read from {distinct:,} unique "
        f"tokens of the {sum(share.available_tokens for share in shares):,} available.",
        f"- Languages: {len(mixture.languages)}; sources: {len(mixture.sources)}.",
    ]
    if store is not None:
        tokenizer = read_json(store.path / "store.json")["tokenizer"]
        lines.append(
            f"- Tokenizer: {tokenizer['kind']}, {store.vocab_size:,} tokens, SHA-256 {_code(tokenizer['fingerprint'])}."
        )
    lines += [f"- Types of content: {OPEN}", f"- Latest date of data acquisition: {OPEN}"]
    return "\n".join(lines)


def _language(share: Share, store: TokenStore | None, language: str) -> list[str]:
    family = (store.families.get(language) if store else None) or UNKNOWN
    return [family, f"{share.weight:.2%}", f"{share.tokens:,}", f"{share.available_tokens:,}", as_epochs(share.epochs)]


def _sources(mixture: Mixture, store: TokenStore | None, origins: Mapping[str, Mapping[str, str]]) -> str:
    public = [source for source in mixture.sources if origins.get(source, {}).get("dataset")]
    other = [source for source in mixture.sources if source not in public]
    of_public = (
        "### 2.1 Publicly available datasets\n\nNames are those on the Hugging Face Hub, or of the "
        "folder that was read."
    )
    of_other = (
        "### 2.2 to 2.6 Private, crawled, user, synthetic and other data\n\nThese sources were read from "
        f"files. Their origin, and the heading (2.1 to 2.6) under which each belongs: {OPEN}"
    )
    if not origins:
        of_other = f"### 2.1 to 2.6 All data\n\nOrigin and licence: {OPEN}"
    parts = []
    for heading, sources in ((of_public, public), (of_other, other)):
        if sources:
            parts += [heading, _source_table(mixture, store, origins, sources)]
    return "\n\n".join(parts)


def _source_table(
    mixture: Mixture, store: TokenStore | None, origins: Mapping[str, Mapping[str, str]], sources: Sequence[str]
) -> str:
    header = ["source", "origin", "licence", "documents", "text available, tokens", "UTF-8 bytes"]
    header += ["training tokens", "epochs"]
    documents, n_bytes = (store.documents(), store.n_bytes()) if store else ({}, {})
    rows = []
    for source in sources:
        share, about = mixture.sources[source], origins.get(source, {})
        counts = [f"{count[source]:,}" if source in count else UNKNOWN for count in (documents, n_bytes)]
        rows.append(
            [
                source,
                about.get("dataset") or about.get("files") or UNKNOWN,
                about.get("license", UNKNOWN),
                counts[0],
                f"{share.available_tokens:,}",
                counts[1],
                f"{share.tokens:,}",
                as_epochs(share.epochs) + " (at its cap)" * share.capped,
            ]
        )
    return _table(header, rows)


def _licences(mixture: Mixture, origins: Mapping[str, Mapping[str, str]]) -> str:
    if not origins:
        return ""
    tokens: dict[str, int] = {}
    for source, share in mixture.sources.items():
        licence = origins[source]["license"]
        tokens[licence] = tokens.get(licence, 0) + share.tokens
    rows = [
        [licence, f"{count:,}", f"{count / mixture.budget_tokens:.2%}"]
        for licence, count in sorted(tokens.items(), key=lambda item: -item[1])
    ]
    return "Licences as stated for the sources:\n\n" + _table(("licence", "training tokens", "share"), rows)


def _learned(mixture: Mixture, weights: WeightSet | None) -> str:
    called = _code(str(mixture.weights.get("name", UNKNOWN)))
    weights = weights or _strategy(mixture)
    if weights is None:
        return f"The shares follow the weights {called}. How these were found is {UNKNOWN} here."
    if "strategy" in weights.method:
        return f"No model learned the shares; they follow the strategy {_code(str(weights.method['strategy']))}."
    if not weights.proxy:
        return f"The shares follow the weights {called}. weights.json does not say how they were found."
    averaged = f", the mean of {weights.spread['sets']} fits" if weights.spread else ""
    proxy = [
        f"{_code(str(weights.proxy['name']))}" if "name" in weights.proxy else "a proxy model",
        *([f"{weights.proxy['parameters']:,} parameters"] if "parameters" in weights.proxy else []),
        *([f"{weights.proxy['tokens_seen']:,} tokens"] if "tokens_seen" in weights.proxy else []),
    ]
    settings = {"floor": weights.floor, **{key: weights.method[key] for key in _METHOD if key in weights.method}}
    how = (
        "the weight of a source grew when training on it lowered the losses of the target sources, and "
        "the result is the mean over the steps of the fit"
    )
    if baseline := weights.method.get("baseline"):
        how = f"by the method {_code(str(baseline))}, which docs/explanation/method.md of xdoge describes"
    return (
        f"The shares follow the weights {called}{averaged}, which a proxy model learned ({', '.join(proxy)}): "
        f"{how}. Settings: " + ", ".join(f"{key} {_code(str(value))}" for key, value in settings.items()) + "."
    )


def _strategy(mixture: Mixture) -> WeightSet | None:
    """Return the weights of the strategy whose hash is that of the mixture's weights; None if there is none."""
    available = {source: share.available_tokens for source, share in mixture.sources.items()}
    if mixture.weights.get("name") not in STRATEGIES or not all(available.values()):
        return None
    weights = strategy_weights(mixture.weights["name"], available)
    return weights if sha256_json(weights.to_dict()) == mixture.weights.get("sha256") else None


def _repetition(mixture: Mixture) -> str:
    limit = "none" if mixture.max_epochs is None else f"at most {mixture.max_epochs:g} epochs"
    own = sorted(
        f"{source} {'no cap' if share.max_epochs is None else f'{share.max_epochs:g} epochs'}"
        for source, share in mixture.sources.items()
        if share.max_epochs != mixture.max_epochs
    )
    moved = math.fsum(abs(share.moved) for share in mixture.sources.values()) / 2
    lines = [
        f"- Cap on repetition: {limit}" + (f"; exceptions: {', '.join(map(_text, own))}" if own else "") + ".",
        f"- Caps and rounding move {moved:.2%} of the tokens away from the weights.",
        *(f"- {_text(line)}" for line in mixture.warnings()),
    ]
    return "\n".join(lines)


def _files(mixture: Mixture, store: TokenStore | None) -> str:
    rows = [["mixture.json", mixture.name, sha256_json(mixture.to_dict())]]
    if digest := mixture.weights.get("sha256"):
        rows.append(["weights", str(mixture.weights.get("name", "")), digest])
    if digest := mixture.corpus.get("sha256") or (store.sha256 if store else None):
        rows.append(
            ["store.json of the token store", str(mixture.corpus.get("name") or (store.name if store else "")), digest]
        )
    if store is not None:
        corpus = read_json(store.path / "store.json")["corpus"]
        rows += [["corpus.yaml", store.name, corpus["sha256"]], ["tokenizer", "", store.tokenizer_fingerprint]]
    note = "store.json lists every file that was read, with its SHA-256."
    return _table(("file", "name", "SHA-256"), [[*row[:2], _code(row[2])] for row in rows], marked=(2,)) + f"\n\n{note}"


def _table(header: Iterable[str], rows: Iterable[Sequence[str]], *, marked: Sequence[int] = ()) -> str:
    """Return a Markdown table. Cells are escaped, except in the columns `marked`, which are Markdown already."""
    names = list(header)
    lines = [names, ["---"] * len(names)]
    lines += [[cell if i in marked else _text(cell) for i, cell in enumerate(row)] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(value: str) -> str:
    """Return text escaped for Markdown and HTML."""
    escaped = html.escape(" ".join(value.split()), quote=False)
    for mark in "\\`*_[]|":
        escaped = escaped.replace(mark, "\\" + mark)
    return escaped


def _code(value: str) -> str:
    return f"`{' '.join(value.split()).replace('`', chr(39))}`"
