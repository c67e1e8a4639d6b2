"""Tables of text from the rows of a comparison. The command line prints them, and reports show them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xdoge.analysis.models import PAIRED, UNPAIRED, Measure, measures
from xdoge.analysis.shares import Group, Rows, agreement, union
from xdoge.analysis.statistics import SIGNIFICANCE, TIE
from xdoge.eval.results import ALL, Results, by_reason
from xdoge.mixtures.mixture import as_epochs
from xdoge.mixtures.weights import WeightSet

NONE = "–"
SIDE_BY_SIDE = 3
"""Most weight sets, besides the baseline, whose differences are in the same table as the weights."""

METRICS = {
    "total_variation": "total variation,\nshare of tokens",
    "jensen_shannon": "Jensen–Shannon,\nbits",
    "kendall_tau_b": "Kendall τ-b",
    "spearman_rho": "Spearman ρ",
}


@dataclass(frozen=True)
class TextTable:
    """A table of text.

    Attributes:
        caption: description of the values, with units.
        header: title of each column. The first column has the names of the rows.
        rows: cells of each row, as many as the header has.
        text_columns: indices of the columns that are aligned to the left.
        bold: (row, column) of the bold cells.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: Sequence[int] = (0,)
    bold: Collection[tuple[int, int]] = ()


def weights_tables(rows: Rows, *, baseline: str | None) -> list[TextTable]:
    """Return weights by language and source, with a column for each set and one for its difference to the baseline.

    The differences of more than `SIDE_BY_SIDE` sets have their own table.
    """
    sets = union([row["set"]] for row in rows)
    by_set = {(row["set"], row["source"] or row["language"]): row for row in rows}
    compared = [
        name
        for name in sets
        if name != baseline and any(row["set"] == name and row["difference"] is not None for row in rows)
    ]
    first = "language or source"
    weights = [[_indented(key), *(_weight(by_set.get((name, key))) for name in sets)] for key in _tree(rows)]
    changes = [[_signed(by_set.get((name, key), {}).get("difference")) for name in compared] for key in _tree(rows)]
    names = [f"{name}\nminus {baseline}" for name in compared]
    caption = "Weights: share of training tokens"
    if len(compared) <= SIDE_BY_SIDE:
        both = [row + more for row, more in zip(weights, changes, strict=True)]
        return [TextTable(caption, [first, *sets, *names], both)]
    differences = [[row[0], *more] for row, more in zip(weights, changes, strict=True)]
    return [
        TextTable(caption, [first, *sets], weights),
        TextTable(f"Weights: difference to {baseline}", [first, *compared], differences),
    ]


def distances_table(rows: Rows, *, level: str) -> TextTable:
    """Return a table of the distances between every two sets, by language or by source."""
    kept = [row for row in rows if row["level"] == level]
    values = {(row["set"], row["other"], row["metric"]): row["value"] for row in kept}
    pairs = dict.fromkeys((row["set"], row["other"]) for row in kept)
    body = [[*pair, *(number(values[*pair, metric]) for metric in METRICS)] for pair in pairs]
    return TextTable(f"Distances between weights of {level}s", ["set", "other", *METRICS.values()], body, (0, 1))


def summary_table(group: Group, rows: Rows) -> TextTable:
    """Return a table of mean and spread of the weights of several sets."""
    kept = {row["source"] or row["language"]: row for row in rows if row["group"] == group.name}
    body = []
    for key in _tree(kept.values()):
        row = kept[key]
        numbers = (f"{row[name]:.4f}" for name in ("mean", "standard_deviation", "least", "greatest"))
        relative = f"{row['standard_deviation'] / row['mean']:.1%}" if row["mean"] else NONE
        body.append([_indented(key), *numbers, relative])
    header = ["language or source", "mean", "standard deviation", "minimum", "maximum", "standard deviation / mean"]
    return TextTable(f"Weights of {len(group.sets)} fits, {group.name}", header, body)


def order_table(group: Group, rows: Rows) -> TextTable:
    """Return a table of the pairs of languages that not all sets have in the same order."""
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
    header = ["languages", "this order in", "other order in", "mean difference", "standard deviation"]
    return TextTable(f"Pairs of languages whose order differs between fits, {group.name}", header, body)


def stability(group: Group, rows: Rows) -> str:
    """Return a sentence on whether the order of languages changes between the sets of a group."""
    pairs = [row for row in rows if row["group"] == group.name]
    swaps = sum(row["swaps"] for row in pairs)
    tau = agreement(group)
    if not swaps:
        order = "no pair of languages changes its order"
    else:
        order = f"{swaps} of {len(pairs)} pairs of languages change{'s' * (swaps == 1)} order"
    settings = f"; they differ in {', '.join(group.differ)}" if group.differ else ""
    return f"{len(group.sets)} fits, {group.name}: {order}; mean Kendall τ-b {number(tau, '.2f')}{settings}."


def mixtures_table(rows: Rows) -> TextTable:
    """Return a table of planned share, tokens and epochs. A star marks sources at their cap."""
    mixtures = union([row["mixture"]] for row in rows)
    by_mixture = {(row["mixture"], row["source"] or row["language"]): row for row in rows}
    header = ["language or source"]
    for name in mixtures:
        header += [f"{name}\nplanned", "tokens", "epochs"]
    body = []
    for key in _tree(rows):
        cells = [_indented(key)]
        for name in mixtures:
            row = by_mixture.get((name, key))
            star = "*" if row and row["capped"] else ""
            planned = [f"{row['weight']:.4f}", f"{row['tokens']:,}", as_epochs(row["epochs"]) + star] if row else None
            cells += planned or [NONE] * 3
        body.append(cells)
    body.append(["total", *(cell for name in mixtures for cell in _totals(rows, name))])
    return TextTable("Mixtures: planned share, tokens and epochs (*: limited by the cap)", header, body)


def _totals(rows: Rows, mixture: str) -> list[str]:
    """Return planned share, tokens and passes over all text of a mixture."""
    own = [row for row in rows if row["mixture"] == mixture and row["source"]]
    tokens, available = (sum(row[key] for row in own) for key in ("tokens", "available_tokens"))
    read = tokens + sum(row["read_before"] for row in own)
    return [f"{math.fsum(row['weight'] for row in own):.4f}", f"{tokens:,}", as_epochs(read / available)]


def laws_table(rows: Rows) -> TextTable:
    """Return a table of how well each form of law predicts runs that it was not fitted to."""
    ranks = ["rank correlation,\nby evaluation", "rank correlation,\nof the mean"]
    header = ["law", "form", "runs", *ranks, "root mean\nsquared error", "inside 90 %\nintervals"]
    body = [
        [
            row["law"],
            row["form"],
            str(row["runs"]),
            f"{row['rank_evaluations']:.3f}",
            f"{row['rank_mean']:.3f}",
            f"{row['rmse']:.4f}",
            number(row["coverage"], ".0%"),
        ]
        for row in rows
    ]
    return TextTable("Accuracy of each form of law on the same runs, cross-validated", header, body, (0, 1))


def predicted_losses_table(rows: Rows, law: str) -> TextTable:
    """Return a table of predicted losses, with a column for each mixture and one for its difference to equal shares.

    Args:
        rows: rows of `xdoge.laws.candidates.prediction_table`.
        law: name of the law.
    """
    by_cell = {(row["mixture"], row["evaluation"]): row for row in rows}
    mixtures, header, body = union([row["mixture"]] for row in rows), ["evaluation"], []
    for name in mixtures:
        far = "\n(far from all runs)" * by_cell[name, "mean"]["extrapolated"]
        header += [f"{name}\n90 % interval{far}", "minus\nequal shares"]
    for evaluation in union([row["evaluation"]] for row in rows):
        cells = [by_cell[name, evaluation] for name in mixtures]
        body.append([evaluation, *(text for row in cells for text in (_predicted(row), _against_equal(row)))])
    bold = {(line, place) for line in range(len(body) - 2, len(body)) for place in range(len(header))}
    caption = f"Losses predicted by {law} (*: significant, the 90 % interval of the difference excludes 0)"
    return TextTable(caption, header, body, bold=bold)


def _against_equal(row: Mapping[str, Any]) -> str:
    """Return a predicted difference with half the width of its 90 % interval, and a star if the interval excludes 0."""
    half = (row["difference_high"] - row["difference_low"]) / 2
    star = "*" * (not row["difference_low"] <= 0 <= row["difference_high"])
    return f"{_signed(row['difference'])} ± {half:.4f}{star}" if half else _signed(row["difference"])


def _predicted(row: Mapping[str, Any]) -> str:
    largest = f"{row['largest']} " if row["largest"] else ""
    return f"{largest}{row['predicted']:.4f} ({row['low']:.4f} to {row['high']:.4f})"


def results_tables(results: Results, rows: Rows, *, baseline: str | None) -> list[TextTable]:
    """Return a table for each measure, and one of the benchmarks by task.

    Args:
        results: the table of a results.json.
        rows: its rows from `xdoge.analysis.models.score_rows`.
        baseline: model with which the others are compared; None to show no changes.
    """
    tables = [scores_table(rows, measure, baseline=baseline) for measure in measures(results)]
    tables.append(tasks_table(rows, results.task_outcomes(), baseline=baseline))
    return [table for table in tables if table.rows]


def scores_table(rows: Rows, measure: Measure, *, baseline: str | None) -> TextTable:
    """Return a table of one measure by language, with a column for each model and one for its change."""
    kept = [row for row in rows if (row["task"], row["metric"]) == (measure.task, measure.metric)]
    lines: dict[tuple[str, ...], dict[str, Mapping[str, Any]]] = {}
    for row in sorted(kept, key=lambda row: row["language"] == ALL):  # the average last
        lines.setdefault(("average" if row["language"] == ALL else row["language"],), {})[row["model"]] = row
    direction = "higher is better" if any(row["higher_is_better"] for row in kept) else "lower is better"
    models = union([row["model"]] for row in kept)
    return _models_table(f"{measure.title}, {direction}", ["language"], models, lines, baseline=baseline)


def tasks_table(rows: Rows, outcomes: Iterable[Mapping[str, Any]], *, baseline: str | None) -> TextTable:
    """Return a table of benchmarks by language and task, as the harness scores them."""
    shots = {(ran["task"], ran["metric"]): ran.get("num_fewshot") for ran in outcomes if ran["outcome"] == "ran"}
    kept = [row for row in rows if (row["task"], row["metric"]) in shots]
    names = {
        (row["language"], row["task"], row["metric"]): (number(shots[row["task"], row["metric"]], ".0f"), str(row["n"]))
        for row in reversed(kept)
    }
    lines: dict[tuple[str, ...], dict[str, Mapping[str, Any]]] = {}
    for row in kept:
        key = row["language"], row["task"], row["metric"]
        lines.setdefault((*key, *names[key]), {})[row["model"]] = row
    models, header = union([row["model"]] for row in kept), ["language", "task", "metric", "shots", "n"]
    return _models_table("Benchmarks by task", header, models, lines, baseline=baseline, decimals=4)


def _models_table(
    caption: str,
    header: Sequence[str],
    models: Sequence[str],
    lines: Mapping[tuple[str, ...], Mapping[str, Mapping[str, Any]]],
    *,
    baseline: str | None,
    decimals: int | None = None,
) -> TextTable:
    """Return a table with the score of each model and its change. The best score of a line is bold."""
    compared = [
        name for name in models if any(name in line and line[name]["difference"] is not None for line in lines.values())
    ]
    body, bold = list[list[str]](), set[tuple[int, int]]()
    for names, line in lines.items():
        if len(line) > 1:
            best = max(line.values(), key=lambda row: row["value"] if row["higher_is_better"] else -row["value"])
            bold.add((len(body), len(names) + models.index(best["model"])))
        scores = [_score(line.get(name), decimals) for name in models]
        body.append([*names, *scores, *(_change(line.get(name)) for name in compared)])
    changes = [f"Δ {name}\nagainst {baseline}" for name in compared]
    star = " (*: significant)" if compared else ""
    text_columns = tuple(range(min(len(header), 3)))
    return TextTable(f"{caption}{star}", [*header, *models, *changes], body, text_columns, bold)


def not_run(results: Results) -> list[str]:
    """Return a line for each reason why tasks did not run; empty if all ran."""
    missed = [outcome for outcome in results.task_outcomes() if outcome["outcome"] != "ran"]
    return by_reason((outcome["outcome"], outcome["reason"], outcome["task"]) for outcome in missed)


def validation_table(rows: Rows, *, baseline: str | None) -> TextTable:
    """Return a table of the validation perplexity per token after the last step of each run, and its change."""
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
        body.append([language, *shown, *(number((cells[name] or {}).get("change"), "+.1%") for name in compared)])
    return TextTable(
        "Training runs: perplexity per token of validation sequences, lower is better (eval scores whole "
        "documents, so its perplexity differs: docs/explanation/method.md)",
        header,
        body,
    )


def reading_table(rows: Rows) -> TextTable:
    """Return a table of the epochs that each run has read of each source, earlier phases included."""
    runs = {row["run"]: row for row in rows}
    epochs = {(row["run"], row["source"]): row["epochs"] for row in rows}
    header = ["source", *(f"{name}\n{row['tokens_seen']:,} tokens" for name, row in runs.items())]
    sources = union([row["source"]] for row in rows)
    body = [[source, *(_epochs(epochs.get((name, source))) for name in runs)] for source in sources]
    return TextTable("Training runs: epochs read of each source", header, body)


def without_order(rows: Rows, sets: Mapping[str, WeightSet]) -> list[str]:
    """Return why rank correlations are missing: equal weights have no order."""
    lines = []
    for level in ("language", "source"):
        missing = [row for row in rows if row["level"] == level and row["value"] is None]
        equal = [
            name
            for name in union((row["set"], row["other"]) for row in missing)
            if np.ptp(list(getattr(sets[name], f"{level}s").values())) < TIE
        ]
        if equal:
            why = f"all {level}s have the same weight in {', '.join(equal)}, so there is no order to compare"
            lines.append(f"{NONE} for τ-b and ρ: {why}.")
    return lines


def exceeding_rule(rows: Rows) -> list[str]:
    """Return the rules by which a difference is significant and has a star."""
    followed = {row["paired"] for row in rows}
    return [rule for paired, rule in ((True, PAIRED), (False, UNPAIRED)) if paired in followed]


def _tree(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return languages, each followed by its sources if it has more than one."""
    sources: dict[str, dict[str, None]] = {}
    for row in rows:
        names = sources.setdefault(row["language"], {})
        if row["source"]:
            names[row["source"]] = None
    return [key for language, names in sources.items() for key in [language, *(names if len(names) > 1 else ())]]


def _indented(key: str) -> str:
    return f"  {key}" if "/" in key else key


def _weight(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return NONE
    deviation = row["standard_deviation"]
    return f"{row['weight']:.4f}" + (f" ± {deviation:.4f}" if deviation is not None else "")


def _signed(value: float | None) -> str:
    return NONE if value is None else "0.0000" if abs(value) < 5e-5 else f"{value:+.4f}"


def number(value: float | None, form: str = ".4f") -> str:
    """Return a number in Python's `form`; a dash for None and NaN."""
    return NONE if value is None or math.isnan(value) else format(value, form)


def _epochs(epochs: float | None) -> str:
    return NONE if epochs is None else as_epochs(epochs)


def _score(row: Mapping[str, Any] | None, decimals: int | None) -> str:
    """Return a score with its error, with four significant digits or `decimals`."""
    if row is None:
        return NONE
    size = abs(row["value"])
    places = decimals if decimals is not None else 3 if size < 10 else 2 if size < 1000 else 0
    error = "" if row["stderr"] is None else f" ± {row['stderr']:,.{places}f}"
    return f"{row['value']:,.{places}f}{error}"


def _change(row: Mapping[str, Any] | None) -> str:
    """Return a change in per cent, or for normalised scores in points, with 1.96 standard errors and the star."""
    if row is None or row["difference"] is None:
        return NONE
    error = None if row["difference_stderr"] is None else SIGNIFICANCE * row["difference_stderr"]
    if row["change"] is None:
        text, half = f"{row['difference']:+.1f}", "" if error is None else f" ± {error:.1f}"
    else:
        text = number(row["change"], "+.1%")
        half = "" if error is None else f" ± {error / row['baseline_value']:.1%}"
    return f"{text}{half}{' points' * (row['change'] is None)}{'*' * bool(row['exceeds'])}"
