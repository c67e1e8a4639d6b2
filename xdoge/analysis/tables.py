"""The rows of a comparison as tables of text, for the terminal and for the report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from xdoge.analysis.models import RULE
from xdoge.analysis.page import TableOf
from xdoge.analysis.shares import Group, Rows, agreement, union
from xdoge.analysis.statistics import TIE
from xdoge.eval.report import Measure
from xdoge.eval.results import ALL
from xdoge.mixtures.weights import WeightSet

NONE = "–"
SIDE_BY_SIDE = 3
"""Weight sets beside the baseline's whose differences fit into the same table."""

METRICS = {
    "total_variation": "total variation,\nshare of tokens",
    "jensen_shannon": "Jensen–Shannon,\nbits",
    "kendall_tau_b": "Kendall τ-b",
    "spearman_rho": "Spearman ρ",
}


def weights_tables(rows: Rows, *, baseline: str | None) -> list[TableOf]:
    """Weights by language and source, a column for each set and one for its difference to the baseline.

    The differences of more than `SIDE_BY_SIDE` sets have a table of their own.
    """
    sets = union([row["set"]] for row in rows)
    found = {(row["set"], row["source"] or row["language"]): row for row in rows}
    compared = [name for name in sets if name != baseline and any(_differs(row, name) for row in rows)]
    first = "language or source"
    weights = [[_indented(key), *(_weight(found.get((name, key))) for name in sets)] for key in _tree(rows)]
    changes = [[_signed(found.get((name, key), {}).get("difference")) for name in compared] for key in _tree(rows)]
    names = [f"{name}\n- {baseline}" for name in compared]
    caption = "Weights: share of training tokens"
    if len(compared) <= SIDE_BY_SIDE:
        both = [row + more for row, more in zip(weights, changes, strict=True)]
        return [TableOf(caption, [first, *sets, *names], both)]
    differences = [[row[0], *more] for row, more in zip(weights, changes, strict=True)]
    return [
        TableOf(caption, [first, *sets], weights),
        TableOf(f"Weights: difference to {baseline}", [first, *compared], differences),
    ]


def distances_table(rows: Rows, *, level: str) -> TableOf:
    """Distances between every two sets, by language or by source."""
    kept = [row for row in rows if row["level"] == level]
    found = {(row["set"], row["other"], row["metric"]): row["value"] for row in kept}
    pairs = dict.fromkeys((row["set"], row["other"]) for row in kept)
    body = [[*pair, *(_plain(found[*pair, metric]) for metric in METRICS)] for pair in pairs]
    return TableOf(f"Distances between weights of {level}s", ["set", "other", *METRICS.values()], body, (0, 1))


def summary_table(group: Group, rows: Rows) -> TableOf:
    """Mean and spread of the weights of several sets."""
    kept = {row["source"] or row["language"]: row for row in rows if row["group"] == group.name}
    body = []
    for key in _tree(kept.values()):
        row = kept[key]
        numbers = (f"{row[name]:.4f}" for name in ("mean", "standard_deviation", "least", "greatest"))
        relative = f"{row['standard_deviation'] / row['mean']:.1%}" if row["mean"] else NONE
        body.append([_indented(key), *numbers, relative])
    header = ["language or source", "mean", "standard deviation", "least", "greatest", "deviation / mean"]
    return TableOf(f"Weights of {len(group.sets)} fits, {group.name}", header, body)


def order_table(group: Group, rows: Rows) -> TableOf:
    """The pairs of languages that not all sets have in the same order."""
    body = [
        [
            f"{row['language']} over {row['other']}",
            f"{row['sets_above']} of {row['sets']}",
            f"{row['sets_below']} of {row['sets']}",
            f"{row['mean_difference']:+.4f}",
            f"{row['standard_deviation']:.4f}",
        ]
        for row in rows
        if row["group"] == group.name and row["swaps"]
    ]
    header = ["languages", "so in", "the other way in", "mean difference", "standard deviation"]
    return TableOf(f"Pairs of languages that swap, {group.name}", header, body)


def stability(group: Group, rows: Rows) -> str:
    """Return in a sentence whether the order of languages changes between the sets of a group."""
    pairs = [row for row in rows if row["group"] == group.name]
    swaps = sum(row["swaps"] for row in pairs)
    tau = agreement(group)
    if not swaps:
        order = "none of the pairs of languages swaps"
    else:
        order = f"{swaps} of {len(pairs)} pairs of languages swap{'s' * (swaps == 1)}"
    settings = f"; they differ in {', '.join(group.differ)}" if group.differ else ""
    return f"{len(group.sets)} fits, {group.name}: {order}; mean Kendall τ-b {_plain(tau, 2)}{settings}."


def mixtures_table(rows: Rows) -> TableOf:
    """Planned share and epochs of each mixture; a star marks what a cap decided."""
    mixtures = union([row["mixture"]] for row in rows)
    found = {(row["mixture"], row["source"] or row["language"]): row for row in rows}
    header = ["language or source"]
    for name in mixtures:
        header += [f"{name}\nplanned", "tokens", "epochs"]
    body = []
    for key in _tree(rows):
        cells = [_indented(key)]
        for name in mixtures:
            row = found.get((name, key))
            star = "*" if row and row["capped"] else ""
            cells += [NONE] * 3 if row is None else [f"{row['weight']:.4f}", f"{row['tokens']:,}", _epochs(row) + star]
        body.append(cells)
    return TableOf("Mixtures: planned share, tokens and epochs (*: the cap decided)", header, body)


def scores_table(rows: Rows, measure: Measure, *, baseline: str | None) -> TableOf:
    """One measure by language, a column for each model and one for its change."""
    kept = [row for row in rows if (row["task"], row["metric"]) == (measure.task, measure.metric)]
    models, found = union([row["model"]] for row in kept), {(row["model"], row["language"]): row for row in kept}
    compared = [name for name in models if name != baseline and any(_differs(row, name, "model") for row in kept)]
    header = ["language", *models, *(f"Δ {name}\nagainst {baseline}" for name in compared)]
    languages = union([row["language"]] for row in kept)
    body = [
        [
            "average" if language == ALL else language,
            *(_score(found.get((model, language))) for model in models),
            *(_change(found.get((model, language))) for model in compared),
        ]
        for language in [*(one for one in languages if one != ALL), *(one for one in languages if one == ALL)]
    ]
    direction = "more is better" if any(row["higher_is_better"] for row in kept) else "less is better"
    star = " (*: exceeds the errors)" if compared else ""
    return TableOf(f"{measure.title}, {direction}{star}", header, body)


def tasks_table(rows: Rows, tasks: Iterable[tuple[str, str]], *, baseline: str | None) -> TableOf:
    """Benchmarks by task and language, as the harness scores them."""
    wanted = set(tasks)
    kept = [row for row in rows if (row["task"], row["metric"]) in wanted]
    models = union([row["model"]] for row in kept)
    found = {(row["model"], row["language"], row["task"], row["metric"]): row for row in kept}
    compared = [name for name in models if name != baseline and any(_differs(row, name, "model") for row in kept)]
    header = ["task", "language", "metric", "n", *models, *(f"Δ {name}\nagainst {baseline}" for name in compared)]
    body = []
    for language, task, metric in dict.fromkeys((row["language"], row["task"], row["metric"]) for row in kept):
        cells = [found.get((model, language, task, metric)) for model in models]
        n = next(str(cell["n"]) for cell in cells if cell)
        changes = [_change(found.get((model, language, task, metric))) for model in compared]
        body.append([task, language, metric, n, *map(_score, cells), *changes])
    star = " (*: exceeds the errors)" if compared else ""
    return TableOf(f"Benchmarks by task{star}", header, body, text_columns=(0, 1, 2))


def validation_table(rows: Rows, *, baseline: str | None) -> TableOf:
    """Perplexity per token on the validation text after the last step of each run, and its change."""
    runs = union([row["run"]] for row in rows)
    last = {name: max(row["step"] for row in rows if row["run"] == name) for name in runs}
    final = {(row["run"], row["language"]): row for row in rows if row["step"] == last[row["run"]]}
    tokens = {name: next(row["tokens"] for (run, _), row in final.items() if run == name) for name in runs}
    compared = [
        name for name in runs if any(row["difference"] is not None for (run, _), row in final.items() if run == name)
    ]
    header = ["language", *(f"{name}\n{tokens[name]:,} tokens" for name in runs)]
    header += [f"Δ {name}\nagainst {baseline}" for name in compared]
    body = []
    for language in union([row["language"]] for row in rows):
        cells = {name: final.get((name, language)) for name in runs}
        shown = [f"{cell['perplexity']:,.2f}" if cell else NONE for cell in cells.values()]
        body.append([language, *shown, *(_percent((cells[name] or {}).get("change")) for name in compared)])
    return TableOf("Training runs: perplexity per token of the validation text, less is better", header, body)


def reading_table(rows: Rows) -> TableOf:
    """Passes over each source that the runs have made, earlier phases included."""
    runs = {row["run"]: row for row in rows}
    found = {(row["run"], row["source"]): row["epochs"] for row in rows}
    header = ["source", *(f"{name}\n{row['tokens_seen']:,} tokens" for name, row in runs.items())]
    sources = union([row["source"]] for row in rows)
    body = [[source, *(_passes(found.get((name, source))) for name in runs)] for source in sources]
    return TableOf("Training runs: epochs read of each source", header, body)


def without_order(rows: Rows, sets: Mapping[str, WeightSet]) -> list[str]:
    """Return why rank correlations are missing: weights that are all equal have no order."""
    lines = []
    for level in ("language", "source"):
        missing = [row for row in rows if row["level"] == level and row["value"] is None]
        equal = [
            name
            for name in union((row["set"], row["other"]) for row in missing)
            if np.ptp(list(getattr(sets[name], f"{level}s").values())) < TIE
        ]
        if equal:
            why = f"all {level}s weigh the same in {', '.join(equal)}, which leaves no order to compare"
            lines.append(f"{NONE} for τ-b and ρ: {why}.")
    return lines


def exceeding_rule(rows: Rows) -> list[str]:
    """Return the rule by which differences are starred, where there are any."""
    return [RULE] if any(row["exceeds"] is not None for row in rows) else []


def _tree(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return languages, each followed by its sources, unless it has one only."""
    sources: dict[str, dict[str, None]] = {}
    for row in rows:
        names = sources.setdefault(row["language"], {})
        if row["source"]:
            names[row["source"]] = None
    return [key for language, names in sources.items() for key in [language, *(names if len(names) > 1 else ())]]


def _indented(key: str) -> str:
    return f"  {key}" if "/" in key else key


def _differs(row: Mapping[str, Any], name: str, key: str = "set") -> bool:
    return row[key] == name and row["difference"] is not None


def _weight(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return NONE
    deviation = row["standard_deviation"]
    return f"{row['weight']:.4f}" + (f" ± {deviation:.4f}" if deviation is not None else "")


def _signed(value: float | None) -> str:
    return NONE if value is None else "0.0000" if abs(value) < 5e-5 else f"{value:+.4f}"


def _plain(value: float | None, decimals: int = 4) -> str:
    return NONE if value is None or math.isnan(value) else f"{value:.{decimals}f}"


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{value:+.1%}"


def _epochs(row: Mapping[str, Any]) -> str:
    return _passes(row["epochs"])


def _passes(epochs: float | None) -> str:
    if epochs is None:
        return NONE
    return f"{epochs:.2f}" if epochs >= 0.1 else f"{epochs:.2g}"


def _score(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return NONE
    decimals = 3 if abs(row["value"]) < 10 else 2
    error = "" if row["stderr"] is None else f" ± {row['stderr']:,.{decimals}f}"
    return f"{row['value']:,.{decimals}f}{error}"


def _change(row: Mapping[str, Any] | None) -> str:
    """Return a change in per cent, of normalised scores in points, starred if it exceeds the errors."""
    if row is None or row["difference"] is None:
        return NONE
    text = _percent(row["change"]) if row["change"] is not None else f"{row['difference']:+.1f} points"
    return text + "*" * bool(row["exceeds"])
