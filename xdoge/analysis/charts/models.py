"""Charts of trained models: changes of their perplexity, at the end and during training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt

from xdoge.analysis.charts.drawing import (
    AVERAGE,
    CHANGE,
    INK,
    TOKENS,
    HConcatChart,
    LayerChart,
    beside,
    by_language,
    data,
    end_labels,
    layered,
    lines,
)
from xdoge.analysis.inputs import TrainRun, check_baseline, read_run
from xdoge.analysis.models import measures, score_rows, validation_rows
from xdoge.analysis.shares import union
from xdoge.analysis.statistics import SIGNIFICANCE
from xdoge.errors import XDogeError
from xdoge.eval.perplexity import TASK as PERPLEXITY
from xdoge.eval.results import ALL, Results

Runs = Mapping[str, TrainRun] | Iterable[Path | str]


def perplexity_change(results: Results, *, baseline: str) -> LayerChart:
    """Draw the change of bits per byte, in per cent of the baseline's, for each model and language.

    Results without bits per byte show perplexity per token. Lines extend 1.96 standard errors of the difference to both
    sides. The bar of a change that is not significant, since it does not exceed them, is hollow.

    Raises:
        XDogeError: no perplexity of another model compares with the baseline's.
    """
    metric = next((measure.metric for measure in measures(results) if measure.task == PERPLEXITY), "")
    rows = []
    for row in score_rows(results, baseline=baseline):
        if row["task"] == PERPLEXITY and row["metric"] == metric and row["change"] is not None:
            error = SIGNIFICANCE * (row["difference_stderr"] or 0.0) / row["baseline_value"]
            rows.append(_bar(row["language"], row["model"], row["change"], error, row["exceeds"]))
    if not rows:
        raise XDogeError(f"no model in the results has a perplexity that can be compared with that of {baseline}.")
    errors = any(row["low"] < row["high"] for row in rows)
    return _changes(
        rows, metric.replace("_", " "), baseline, "line: ± 1.96 standard errors of the difference" if errors else ""
    )


def validation_change(runs: Runs, *, baseline: str) -> LayerChart:
    """Draw the change of validation perplexity at the end of each run, in per cent of the baseline run's.

    Raises:
        XDogeError: no other run has read as many tokens and was validated on the same text.
    """
    rows = _compared(runs, baseline)
    last = {row["run"]: row["tokens"] for row in rows}
    final = [
        _bar(row["language"], row["run"], row["change"], 0.0, None) for row in rows if row["tokens"] == last[row["run"]]
    ]
    tokens = " and ".join(dict.fromkeys(f"{count:,}" for count in last.values()))
    return _changes(final, "validation perplexity per token", baseline, f"after {tokens} tokens of training")


def improvement(runs: Runs, *, baseline: str) -> HConcatChart:
    """Draw the improvement of validation perplexity over training tokens, in per cent of the baseline run's.

    Higher is better: an improvement is the change of `validation_change` with the opposite sign.

    Args:
        runs: folders of `xdoge train`. The name of a run is that of its folder.
        baseline: name of the run with which all others are compared.

    Raises:
        XDogeError: no other run has read as many tokens and was validated on the same text.
    """
    rows = [{**row, "improvement": -row["change"]} for row in _compared(runs, baseline)]
    names, languages = union([row["run"]] for row in rows), union([row["language"]] for row in rows)
    most = max(row["tokens"] for row in rows)
    values = [row["improvement"] for row in rows]
    x = alt.X("tokens:Q", title="training tokens", axis=TOKENS)
    low, high = min(0.0, *values), max(0.0, *values)
    scale = alt.Scale(domain=[low - 0.05 * (high - low), high + 0.05 * (high - low) or 1.0], nice=False)
    falls = "reduction of perplexity against the baseline; higher is better"
    y = alt.Y("improvement:Q", title=falls, axis=CHANGE, scale=scale)
    panels, texts = [], []
    for name in names:
        own = [row for row in rows if row["run"] == name]
        ends = {row["language"]: row["improvement"] for row in own}  # the last row of each language
        labels = {language: f"{language} " + f"{value:+.1%}".replace("-", "−") for language, value in ends.items()}
        texts.append(f"{name}: {', '.join(labels.values())}")
        tooltip = ["run:N", "language:N", "tokens:Q", alt.Tooltip("improvement:Q", format="+.2%")]
        zero = alt.Chart(data([{"zero": 0}])).mark_rule(color=INK).encode(y=alt.Y("zero:Q", title=y["title"]))
        drawn = [zero, lines(own, languages, x, y, tooltip), end_labels(ends, labels, most, y, spread=[0, *values])]
        panels.append(alt.LayerChart(layer=drawn, width=360, height=280, title=alt.TitleParams(name, fontSize=12)))
    return beside(
        panels,
        title=f"Improvement over {baseline} during training",
        subtitle="validation perplexity at equal training tokens; above 0 is better than the baseline",
        description=f"Validation perplexity below that of {baseline} after {most:,} tokens. {'; '.join(texts)}.",
    )


def _compared(runs: Runs, baseline: str) -> list[dict[str, Any]]:
    read = dict(runs) if isinstance(runs, Mapping) else {run.name: run for run in map(read_run, map(Path, runs))}
    check_baseline(list(read), baseline)
    rows = [row for row in validation_rows(read, baseline=baseline) if row["change"] is not None]
    if not rows:
        raise XDogeError(
            f"no other run can be compared with {baseline}; the runs need the same token budget and validation text."
        )
    return rows


def _bar(language: str, model: str, change: float, error: float, exceeds: bool | None) -> dict[str, Any]:
    return {
        "language": AVERAGE if language == ALL else language,
        "model": model,
        "change": change,
        "low": change - error,
        "high": change + error,
        "sure": exceeds is not False,
    }


def _changes(rows: Sequence[dict[str, Any]], what: str, baseline: str, note: str) -> LayerChart:
    """Draw bars of changes by language, with a bar for each model, from the largest fall to the largest rise."""
    models, languages = union([row["model"]] for row in rows), union([row["language"]] for row in rows)
    least = {language: min(row["change"] for row in rows if row["language"] == language) for language in languages}
    languages.sort(key=lambda language: (language == AVERAGE, least[language]))
    for row in rows:
        row["label"] = (f"{row['model']} " if len(models) > 1 else "") + f"{row['change']:+.1%}".replace("-", "−")
        row["end"] = max(0.0, row["high"])
    low, high = min(0.0, *(row["low"] for row in rows)), max(0.0, *(row["high"] for row in rows))
    room = (high - low) * (0.16 + 0.016 * max(len(row["label"]) for row in rows))
    scale = alt.Scale(domain=[low - 0.03 * (high - low), high + room], nice=False)
    title = f"change of {what} against {baseline}; lower is better"
    place: dict[str, Any] = {
        "y": alt.Y("language:N", sort=languages, title=None, scale=alt.Scale(paddingInner=0.25)),
        "yOffset": alt.YOffset("model:N", sort=models, scale=alt.Scale(paddingInner=0.15)),
    }

    def x(name: str) -> alt.X:
        return alt.X(f"{name}:Q", title=title, axis=CHANGE, scale=scale)

    base = data([{**row, "zero": 0} for row in rows])
    by = by_language(languages)
    bars = (
        alt.Chart(base)
        .mark_bar(strokeWidth=1.5)
        .encode(
            x=x("change"),
            x2="zero:Q",
            color=by,
            stroke=alt.Stroke("language:N", scale=by["scale"], legend=None),
            fillOpacity=alt.condition("datum.sure", alt.value(1), alt.value(0)),
            tooltip=["model:N", "language:N", alt.Tooltip("change:Q", format="+.2%")],
            **place,
        )
    )
    zero = alt.Chart(data([{"zero": 0}])).mark_rule(color=INK).encode(x=x("zero"))
    wide = alt.Chart(data([row for row in rows if row["low"] < row["high"]]))
    ends: dict[str, Any] = {"x": x("low"), "x2": "high:Q", **place}
    halo, line = wide.mark_rule(color="white", strokeWidth=4), wide.mark_rule(color=INK, strokeWidth=1.5)
    labels = alt.Chart(base).mark_text(align="left", dx=5, fontSize=11).encode(x=x("end"), text="label:N", **place)
    hollow = "hollow: not significant" if any(not row["sure"] for row in rows) else ""
    return layered(
        [bars, halo.encode(**ends), line.encode(**ends), zero, labels],
        title=f"Against {baseline}: {what}",
        subtitle="; ".join(filter(None, (note, hollow))) or "without standard errors",
        description=f"Change of {what} against {baseline}: "
        + "; ".join(f"{row['language']} {row['label']}" for row in rows)
        + ".",
        width=440,
        height=len(languages) * (17 * len(models) + 8),
    )
