"""Charts of weights and mixtures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np

from xdoge.analysis.charts.drawing import INK, SHARE, HConcatChart, LayerChart, beside, by_language, data, layered
from xdoge.analysis.shares import union
from xdoge.mixtures.allocation import epoch_cap, unimax
from xdoge.mixtures.mixture import Mixture
from xdoge.mixtures.weights import WeightSet
from xdoge.names import language_of, split_source

BARS = 320
"""Pixels of the longest bar."""

_METHODS = {"unimax": ("#111111", "#777777", "#A5A5A5"), "temperature": ("#4B2E83", "#9065C9", "#B18CDB")}
_SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")


def weights_by_language(sets: Mapping[str, WeightSet | Sequence[WeightSet]] | Sequence[WeightSet]) -> LayerChart:
    """Draw a bar for each language and weight set, stacked by source.

    Several sets under one name, such as those of several seeds, share one bar. It shows their mean, with a dot for each
    set and a line of one standard deviation to both sides.

    Args:
        sets: weight sets, or a mapping from names to one or several weight sets.
    """
    named = sets if isinstance(sets, Mapping) else {weights.name: weights for weights in sets}
    groups = {name: [weights] if isinstance(weights, WeightSet) else list(weights) for name, weights in named.items()}
    totals = [row for name, members in groups.items() for row in _totals(name, members)]
    parts = [row for name, members in groups.items() for row in _parts(name, members)]
    dots = [
        {"language": language, "set": name, "weight": weight, "fit": weight_set.name}
        for name, members in groups.items()
        for weight_set in members
        for language, weight in (weight_set.languages.items() if len(members) > 1 else ())
    ]
    languages = union([row["language"]] for row in sorted(totals, key=lambda row: -row["mean"]))
    tone = _tones(parts)
    sources = union([row["source"]] for row in parts)
    place: dict[str, Any] = {
        "y": alt.Y("language:N", sort=languages, title="language", scale=alt.Scale(paddingInner=0.25)),
        "yOffset": alt.YOffset("set:N", sort=list(groups)),
    }
    room = 20 + 6 * max(len(row["label"]) for row in totals)  # pixels for the longest label
    most = max(row["end"] for row in totals) * (BARS + room) / BARS
    x = alt.X(
        "weight:Q", title="weight: share of training tokens", axis=SHARE, scale=alt.Scale(domainMax=most, nice=False)
    )
    marked = alt.Legend(title="source", symbolType="square", symbolFillColor=INK, symbolStrokeWidth=0)
    shades = np.linspace(1, 0.35, 1 + max(tone.values())).tolist()
    same = len({(source, place) for (_, source), place in tone.items()}) == len(sources) == len(shades)
    sources.sort(key=lambda name: min(place for (_, source), place in tone.items() if source == name))
    by_source = alt.Opacity(
        "source:O",
        sort=sources,
        scale=alt.Scale(type="ordinal", domain=sources, range=shades),
        legend=marked if 1 < len(sources) <= 10 else None,
    )
    by_place = alt.Opacity(
        "tone:O", scale=alt.Scale(type="ordinal", domain=[*range(len(shades))], range=shades), legend=None
    )
    bars = (
        alt.Chart(data([{**row, "tone": tone[row["language"], row["source"]]} for row in parts]))
        .mark_bar(stroke="white", strokeWidth=0.7)
        .encode(
            x=x,
            color=by_language(languages),
            opacity=by_source if same else by_place,
            order="tone:Q",
            tooltip=["set:N", "language:N", "source:N", alt.Tooltip("weight:Q", format=".4f")],
            **place,
        )
    )
    rules = alt.Chart(data([row for row in totals if row["low"] < row["high"]])).mark_rule(color=INK, strokeWidth=1.5)
    points = alt.Chart(data(dots)).mark_point(filled=True, size=22, color=INK, opacity=0.9)
    labels = alt.Chart(data(totals)).mark_text(align="left", dx=5, fontSize=11)
    listed = "; ".join(f"{row['language']} {row['label']}" for row in totals)
    spread = [
        rules.encode(x="low:Q", x2="high:Q", **place),
        points.encode(x=x, tooltip=["fit:N", alt.Tooltip("weight:Q", format=".4f")], **place),
    ]
    return layered(
        [bars, *(spread if dots else []), labels.encode(x="end:Q", text="label:N", **place)],
        title="Weights by language",
        subtitle="stacked by source"
        + ("" if same else ", whose names differ by language")
        + ("; dots: single fits, line: ± one standard deviation" if dots else ""),
        description=f"Share of training tokens: {listed}.",
        width=BARS + room,
        height=len(languages) * (17 * len(groups) + 8),
    )


def _tones(parts: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], int]:
    """Return the number of each source within its language, from 0. It decides the tone of its colour; 0 is darkest."""
    tones: dict[tuple[str, str], int] = {}
    for row in parts:
        key = row["language"], row["source"]
        if key not in tones:
            tones[key] = sum(language == row["language"] for language, _ in tones)
    return tones


def _totals(name: str, members: Sequence[WeightSet]) -> list[dict[str, Any]]:
    """Return mean and deviation of each language's weight over the sets of one bar."""
    rows = []
    for language in union(weights.languages for weights in members):
        values = [weights.languages.get(language, 0.0) for weights in members]
        mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        rows.append(
            {
                "language": language,
                "set": name,
                "mean": mean,
                "low": max(0.0, mean - deviation),
                "high": mean + deviation,
                "end": max(*values, mean + deviation),
                "label": f"{name} {mean:.3f}" + (f" ± {deviation:.3f}" if len(values) > 1 else ""),
            }
        )
    return rows


def _parts(name: str, members: Sequence[WeightSet]) -> list[dict[str, Any]]:
    """Return the mean weight of each source over the sets of one bar."""
    rows = []
    for source in union(weights.sources for weights in members):
        language, short = split_source(source)
        weight = float(np.mean([weights.sources.get(source, 0.0) for weights in members]))
        rows.append({"language": language, "set": name, "source": short, "weight": weight})
    return rows


def planned_shares(mixture: Mixture) -> LayerChart:
    """Draw how caps and rounding changed each source: a line from its weight to its planned share.

    A source at its cap has a square and the value of the cap. A tick marks the largest share that each cap allows.
    """
    rows = [_moved(source, mixture) for source in mixture.sources]
    languages, widest = union([row["language"]] for row in rows), 1.1 * max(row["right"] for row in rows)
    scale = alt.Scale(domain=[0, widest], nice=False)
    y = alt.Y("source:N", sort=list(mixture.sources), title=None)
    tooltip: list[Any] = [
        "source:N",
        *(alt.Tooltip(f"{name}:Q", format=".4f") for name in ("weight", "planned", "cap")),
        alt.Tooltip("epochs:Q", format=".2f"),
    ]

    def drawn(mark: alt.Chart, name: str, **channels: Any) -> alt.Chart:
        axis = alt.Axis(format="~%", labelFlush=False)
        x = alt.X(f"{name}:Q", title="share of training tokens", axis=axis, scale=scale)
        return mark.encode(x=x, y=y, tooltip=tooltip, **channels)

    base, colour = alt.Chart(data(rows)), by_language(languages)
    inside = alt.Chart(data([row for row in rows if row["cap"] is not None and row["cap"] <= widest]))
    shapes = alt.Scale(domain=[False, True], range=["circle", "square"])
    capped = [row["source"] for row in rows if row["capped"]]
    return layered(
        [
            drawn(base.mark_rule(strokeWidth=2, opacity=0.55), "weight", x2="planned:Q", color=colour),
            drawn(inside.mark_tick(thickness=2, size=13, color=INK), "cap"),
            drawn(base.mark_point(size=55, filled=False, strokeWidth=1.5), "weight", color=colour),
            drawn(
                base.mark_point(size=65, filled=True, opacity=1),
                "planned",
                color=colour,
                shape=alt.Shape("capped:N", scale=shapes, legend=None),
            ),
            drawn(base.mark_text(align="left", dx=9, fontSize=11), "right", text="label:N"),
        ],
        title=f"{mixture.name}: weight to planned share",
        subtitle=[
            "○ weight, ● planned, ■ planned and decided by the cap,",
            "| maximum that a cap allows, if it fits on the axis",
        ],
        description=f"epoch caps decide the share of {len(capped)} of {len(rows)} sources"
        + (f": {', '.join(capped)}." if capped else "."),
        width=420,
        height=17 * len(rows),
    )


def _moved(source: str, mixture: Mixture) -> dict[str, Any]:
    share, cap = mixture.sources[source], None
    if share.max_epochs is not None:
        most = epoch_cap(share.available_tokens, share.max_epochs) - share.read_before
        cap = max(0, most) / mixture.budget_tokens
    return {
        "source": source,
        "language": language_of(source),
        "weight": share.learned_weight,
        "planned": share.weight,
        "right": max(share.learned_weight, share.weight),
        "cap": cap,
        "epochs": share.epochs,
        "capped": share.capped,
        "label": f"capped at {share.max_epochs:g} epochs" if share.capped and share.max_epochs is not None else "",
    }


def unimax_and_temperature(
    available_tokens: Mapping[str, int],
    *,
    budget_tokens: int,
    max_epochs: Sequence[float] = (1, 4),
    temperatures: Sequence[float] = (1, 10 / 3, 100),
) -> HConcatChart:
    """Draw epochs and sampling probability by rank of the languages' sizes, for UniMax and for temperatures.

    Args:
        available_tokens: unique training tokens by language or by "language/source".
        budget_tokens: tokens of the run.
        max_epochs: caps of UniMax. Caps under which the budget cannot be spent are left out.
        temperatures: τ of p ∝ n^(1/τ).

    Source: figure 1 of Chung et al. 2023, UniMax, arXiv:2304.09151.
    """
    sizes: dict[str, int] = {}
    for name, count in available_tokens.items():
        language = language_of(name)
        sizes[language] = sizes.get(language, 0) + count
    sizes = {language: count for language, count in sorted(sizes.items(), key=lambda item: -item[1]) if count}
    caps = [cap for cap in max_epochs if sum(epoch_cap(count, cap) for count in sizes.values()) >= budget_tokens]
    methods = {}
    for cap in caps:
        counts = unimax(sizes, budget_tokens=budget_tokens, max_epochs=cap).counts
        methods[f"UniMax, ≤ {cap:g} epoch{'s' * (cap != 1)}"] = [counts[name] / budget_tokens for name in sizes]
    for tau in temperatures:
        mass = [(count / max(sizes.values())) ** (1 / tau) for count in sizes.values()]
        called = f"temperature τ = {tau:.3g}" + (" (proportional)" if tau == 1 else "")
        methods[called] = [value / math.fsum(mass) for value in mass]
    rows: list[dict[str, Any]] = [
        {
            "method": method,
            "language": name,
            "rank": rank,
            "probability": share,
            "epochs": share * budget_tokens / size,
        }
        for method, shares in methods.items()
        for rank, ((name, size), share) in enumerate(zip(sizes.items(), shares, strict=True), start=1)
    ]
    passes = [row["epochs"] for row in rows]
    ends = [min(passes) / 1.3, max(passes) * 1.3]
    steps = (1, 2, 5) if ends[1] > 20 * ends[0] else (1, 1.5, 2, 3, 4, 5, 7)
    ticks = [m * 10.0**n for n in range(-9, 10) for m in steps if ends[0] <= m * 10.0**n <= ends[1]]
    log, plain = alt.Scale(type="log", domain=ends, nice=False), alt.Axis(format="~g", values=ticks)
    epochs = alt.Y("epochs:Q", title="epochs over a language's text", scale=log, axis=plain)
    probability = alt.Y("probability:Q", title="sampling probability", axis=SHARE)
    return beside(
        [_by_rank(rows, list(sizes), len(caps), y) for y in (epochs, probability)],
        title="UniMax against temperature",
        subtitle=f"budget of {budget_tokens:,} tokens",
        description=f"Epochs and sampling probability of {len(sizes)} languages, largest first: {', '.join(methods)}.",
    )


def _by_rank(rows: Sequence[Mapping[str, Any]], languages: Sequence[str], caps: int, y: alt.Y) -> alt.LayerChart:
    """Draw a line for each method. UniMax has solid grey lines, and temperatures have dashed violet lines."""
    names = union([row["method"]] for row in rows)
    kinds = ["unimax"] * caps + ["temperature"] * (len(names) - caps)
    tones = [_METHODS[kind][kinds[:i].count(kind) % 3] for i, kind in enumerate(kinds)]
    dashes = [[1, 0] if kind == "unimax" else [5, 3] for kind in kinds]
    shapes = [_SHAPES[i % len(_SHAPES)] for i in range(len(names))]
    few = len(languages) <= 40
    named = alt.X("language:N", sort=list(languages), title="language, by rank of size", axis=alt.Axis(labelAngle=0))
    x = named if few else alt.X("rank:Q", title="rank of the language by size")
    legend = alt.Legend(title=None, labelLimit=260, symbolStrokeWidth=0)

    def scaled(values: list[Any]) -> dict[str, Any]:
        return {"sort": names, "scale": alt.Scale(domain=names, range=values), "legend": legend}

    colour, shape = alt.Color("method:N", **scaled(tones)), alt.Shape("method:N", **scaled(shapes))
    dash = alt.StrokeDash("method:N", **{**scaled(dashes), "legend": None})
    numbers = (alt.Tooltip(f"{name}:Q", format=".3g") for name in ("epochs", "probability"))
    tooltip: list[Any] = ["method:N", "language:N", *numbers]
    line = alt.Chart().mark_line(strokeWidth=2).encode(x=x, y=y, color=colour, strokeDash=dash)
    point = alt.Chart().mark_point(filled=True, opacity=1)
    sizes = [30 * 1.6 ** (len(names) - 1 - i) for i in range(len(names))]  # covered points stay visible
    size = alt.Size("method:N", **{**scaled(sizes), "legend": None})
    layers = [line, point.encode(x=x, y=y, color=colour, shape=shape, size=size, tooltip=tooltip)]
    width = max(240, 12 * len(languages)) if few else 300
    return alt.LayerChart(data=data(rows), layer=layers, width=width, height=260)
