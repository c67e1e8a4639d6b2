"""A results table at a glance: languages × models, the best in bold, and the change against one of the models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from xdoge.errors import XDogeError
from xdoge.eval.perplexity import RELATIVE
from xdoge.eval.perplexity import TASK as PERPLEXITY
from xdoge.eval.results import ALL, Results, Row
from xdoge.eval.suite import NORMALISED


@dataclass(frozen=True)
class Measure:
    """One column for each model.

    Attributes:
        title: with its unit.
        task: of the rows.
        metric: of the rows.
    """

    title: str
    task: str
    metric: str


def measures(results: Results) -> list[Measure]:
    """Return what the models are compared by: perplexity, and each suite that was run.

    Perplexity is per token if all models share one tokenizer. If not, a token is not the same piece of text to them,
    and bits per UTF-8 byte take its place. Parallel text adds its bits relative to the reference language.
    """
    found = {(row.task, row.metric) for row in results.rows}
    suites = [task for task, metric in sorted(found) if metric == NORMALISED and task in _suites(results)]
    measured = [Measure(f"{suite}, 0 is chance, 100 best", suite, NORMALISED) for suite in suites]
    if any(task == PERPLEXITY for task, _ in found):
        metric = "perplexity_per_token" if len(tokenizers(results)) == 1 else "bits_per_byte"
        parallel = sorted(metric for task, metric in found if task == PERPLEXITY and metric.startswith(RELATIVE))
        shown = [Measure(one.replace("_", " "), PERPLEXITY, one) for one in (metric, *parallel)]
        measured = [*shown, *measured]
    return measured


def tokenizers(results: Results) -> set[str]:
    """Return the fingerprints of the tokenizers of the models whose perplexity was measured."""
    return {about["tokenizer"] for about in results.settings.get("perplexity", {}).values()}


def outcomes(results: Results) -> list[dict[str, Any]]:
    """Return what became of every task of every suite and model, with the model's name."""
    return [
        {"model": model, **outcome}
        for suites in results.settings.get("benchmarks", {}).values()
        for model, about in suites.items()
        for outcome in about["outcomes"]
    ]


def summary(results: Results, shown: Sequence[Measure], *, baseline: str | None = None) -> Table:
    """Return a table of languages × models for each measure, side by side.

    The best number of a language is bold. Below each number stands its change against the baseline: in per cent, or
    in points for normalised scores.

    Raises:
        XDogeError: the baseline is none of the models.
    """
    models = list(dict.fromkeys(row.model for row in results.rows))
    check_baseline(models, baseline)
    rows = {row.key: row for row in results.rows}
    languages = list(dict.fromkeys(row.language for row in results.rows if row.language != ALL))
    alone = shown[0].title if len(shown) == 1 else None  # said once, above the table
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=alone, title_justify="left")
    table.add_column("language")
    for measure in shown:
        for model in models:
            table.add_column(model if alone else f"{measure.title}\n{model}", justify="right")
    for language in [*languages, ALL]:
        cells: list[Text] = []
        for measure in shown:
            found = {
                model: row for model in models if (row := rows.get((model, language, measure.task, measure.metric)))
            }
            best = _best(list(found.values()))
            cells += [_cell(found.get(model), best, found.get(baseline or "")) for model in models]
        if any(cell.plain != "–" for cell in cells):
            table.add_row("average" if language == ALL else language, *cells)
    return table


def task_scores(results: Results) -> Table:
    """Return a table of tasks × models: the score as the harness gives it, its standard error, and n."""
    models = list(dict.fromkeys(row.model for row in results.rows))
    ran = [outcome for outcome in outcomes(results) if outcome["outcome"] == "ran"]
    rows = {row.key: row for row in results.rows}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("language", "task", "metric"):
        table.add_column(column)
    for column in ("shots", "n", *models):
        table.add_column(column, justify="right")
    for (language, task), outcome in {(one["language"], one["task"]): one for one in ran}.items():
        metric, shots = outcome["metric"], str(outcome["num_fewshot"])
        found = {model: row for model in models if (row := rows.get((model, language, task, metric)))}
        if found:
            best, n = _best(list(found.values())), str(next(iter(found.values())).n)
            table.add_row(
                language, task, metric, shots, n, *(_cell(found.get(model), best, None, digits=4) for model in models)
            )
    return table


def not_run(results: Results, *, most: int = 8) -> list[str]:
    """Return a line for each reason for which tasks did not run, with `most` of the tasks; none if all ran."""
    missed = ((one["outcome"], one["reason"], one["task"]) for one in outcomes(results) if one["outcome"] != "ran")
    return by_reason(missed, most=most)


def by_reason(missed: Iterable[tuple[str, str, str]], *, most: int = 8) -> list[str]:
    """Return a line for each outcome and reason of (outcome, reason, task), with `most` of the tasks."""
    reasons: dict[tuple[str, str], dict[str, None]] = {}
    for outcome, reason, task in missed:
        reasons.setdefault((outcome, reason), {})[task] = None
    lines = []
    for (outcome, reason), tasks in reasons.items():
        named = ", ".join([*list(tasks)[:most], *(["…"] if len(tasks) > most else [])])
        lines.append(f"{outcome}: {len(tasks)} task{'s' * (len(tasks) > 1)} ({reason}): {named}")
    return lines


def check_baseline(models: Sequence[str], baseline: str | None) -> None:
    """Refuse a baseline that is none of the models.

    Raises:
        XDogeError: it is none of them.
    """
    if baseline is not None and baseline not in models:
        raise XDogeError(f"--baseline {baseline} is none of the models: {', '.join(models)}.")


def _suites(results: Results) -> Mapping[str, Any]:
    suites: Mapping[str, Any] = results.settings.get("benchmarks", {})
    return suites


def _best(rows: Sequence[Row]) -> Row | None:
    """Return the best of several numbers; of one there is no best."""
    if len(rows) < 2:
        return None
    return max(rows, key=lambda row: row.value if row.higher_is_better else -row.value)


def _cell(row: Row | None, best: Row | None, baseline: Row | None, *, digits: int | None = None) -> Text:
    if row is None:
        return Text("–")
    text = _number(row.value, digits)
    if row.stderr is not None:
        text += f" ± {_number(row.stderr, digits, beside=row.value)}"
    cell = Text(text, style="bold" if row is best else "")
    if baseline is not None and row is not baseline:
        difference = row.value - baseline.value
        points = row.metric == NORMALISED or baseline.value <= 0  # from chance; a share of them means nothing
        change = f"{difference:+.1f} points" if points else f"{difference / baseline.value:+.1%}"
        cell.append(f"\n{change}", style="not bold")
    return cell


def _number(value: float, digits: int | None, *, beside: float | None = None) -> str:
    """Format with four significant digits, or those of the number it stands beside."""
    size = abs(value if beside is None else beside)
    decimals = digits if digits is not None else 3 if size < 10 else 2 if size < 1000 else 0
    return f"{value:,.{decimals}f}"
