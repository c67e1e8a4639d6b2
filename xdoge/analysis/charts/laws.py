"""Charts of a mixture law: its accuracy, the effect of a share, transfer, and the trade-off of mean and worst loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np

from xdoge.analysis.charts import colours
from xdoge.analysis.charts.drawing import (
    INK,
    QUIET,
    SHARE,
    HConcatChart,
    LayerChart,
    beside,
    by_language,
    data,
    end_labels,
    layered,
    lines,
    spread_out,
)
from xdoge.errors import XDogeError
from xdoge.laws.own_sources import plain_names

if TYPE_CHECKING:
    from xdoge.laws.candidates import Candidate
    from xdoge.laws.law import MixtureLaw

COLUMNS = 3
"""Number of panels side by side in `predicted_against_measured`."""
MOST_RUNS = 150
"""Most runs that are drawn. Of more, evenly spaced ones are chosen."""
POINTS = 41
"""Number of points of a line over a share."""
LOSS = alt.Axis(format=".3~f", tickCount=4, labelFlush=False)
_REFERENCES = {"uniform": "equal shares", "proportional": "proportional", "unimax": "UniMax"}
MEAN_AND_WORST = ("best mean", "best worst")


def predicted_against_measured(law: MixtureLaw) -> HConcatChart:
    """Draw cross-validated predictions over the measured losses of the runs, a panel for each evaluation.

    A run on the line of equality was predicted exactly. Vertical lines are 90 % intervals. A run whose interval does
    not contain the measured loss is hollow. An adapted law is shown at the model size of its runs.
    """
    held_out = law.held_out()
    step = -(-len(law.losses) // MOST_RUNS)
    names = plain_names(law.problem.evaluations)
    inside = (held_out.low <= law.losses) & (law.losses <= held_out.high)
    scores = law.validation[law.form]
    panels = []
    for column, name in enumerate(names):
        rows = [
            {
                "language": name,
                "measured": float(law.losses[run, column]),
                "predicted": float(held_out.predicted[run, column]),
                "low": float(held_out.low[run, column]),
                "high": float(held_out.high[run, column]),
                "inside": bool(inside[run, column]),
            }
            for run in range(0, len(law.losses), step)
        ]
        below = column + COLUMNS >= len(names)
        panels.append(_equality(rows, name, names, first=column % COLUMNS == 0, last=below))
    grid = [
        alt.HConcatChart(hconcat=panels[start : start + COLUMNS], spacing=52, bounds="flush")
        for start in range(0, len(panels), COLUMNS)
    ]
    some = f"; {len(rows)} of {len(law.losses)} runs are drawn" if step > 1 else ""
    return beside(
        [alt.VConcatChart(vconcat=grid, spacing=20)],
        title="Predicted against measured",
        subtitle=[
            f"each run is predicted by a law that was not fitted to it{some}",
            f"vertical lines: 90 % intervals, which contain {inside.mean():.0%} of the losses; hollow: outside",
        ],
        description=f"Predicted against measured losses of {len(law.losses)} runs: rank correlation "
        f"{scores.rank_evaluations:.3f} by evaluation and {scores.rank_mean:.3f} of the mean; "
        f"{inside.mean():.0%} of the losses lie inside their 90 % interval.",
    )


def _equality(
    rows: Sequence[Mapping[str, Any]], name: str, names: Sequence[str], *, first: bool, last: bool
) -> alt.LayerChart:
    ends = [row[key] for row in rows for key in ("measured", "low", "high")]
    low, high = min(ends), max(ends)
    scale = alt.Scale(domain=[low, high], nice=False, padding=4)

    x = alt.X("measured:Q", scale=scale, axis=LOSS, title="measured loss" if last else None)

    def y(key: str) -> alt.Y:
        return alt.Y(f"{key}:Q", scale=scale, axis=LOSS, title="predicted loss" if first else None)

    colour = by_language(names)
    diagonal = alt.Chart(data([{"measured": low, "predicted": low}, {"measured": high, "predicted": high}]))
    base = alt.Chart(data(rows))
    numbers = [alt.Tooltip(f"{key}:Q", format=".4f") for key in ("measured", "predicted", "low", "high")]
    fill = alt.condition("datum.inside", alt.Fill("language:N", scale=colour["scale"], legend=None), alt.value("white"))
    layers = [
        diagonal.mark_line(color=INK, strokeWidth=1).encode(x=x, y=y("predicted")),
        base.mark_rule(strokeWidth=1, opacity=0.45).encode(x=x, y=y("low"), y2="high:Q", color=colour),
        base.mark_point(size=28, opacity=1, strokeWidth=1.2).encode(
            x=x, y=y("predicted"), color=colour, fill=fill, tooltip=["language:N", *numbers]
        ),
    ]
    heading = alt.Chart(data([{"language": name}])).mark_text(align="left", fontWeight="bold")
    layers.append(heading.encode(x=alt.value(8), y=alt.value(10), text="language:N"))
    return alt.LayerChart(layer=layers, width=170, height=150)


def loss_along_share(law: MixtureLaw, source: str, at: Candidate = "uniform") -> LayerChart:
    """Draw the predicted loss of each evaluation over the share of one source, from its least to its largest share.

    The other shares keep their proportions. Bands are 90 % intervals. Shares for which the mixture is far from all runs
    are grey.

    Args:
        law: the law.
        source: one of the law's sources.
        at: mixture that decides the proportions of the other shares. A vertical line marks its share of the source.

    Raises:
        XDogeError: the law has no such source, `at` gives all tokens to it, or `at` has other sources.
    """
    if source not in law.problem.sources:
        raise XDogeError(f"the law has no source {source!r}; it has {', '.join(law.problem.sources)}.")
    place, base = law.problem.sources.index(source), law.shares_of(at)
    if base[place] >= 1 - 1e-9:
        raise XDogeError(f"{source} has a share of 1, so the proportions of the other sources are undefined.")
    least, most = law.shares[:, place].min(), law.shares[:, place].max()
    shares = least + (most - least) * np.linspace(0, 1, POINTS) ** 2  # dense at small shares, where losses bend
    mixtures = base * ((1 - shares) / (1 - base[place]))[:, None]
    mixtures[:, place] = shares
    prediction = law.predict(mixtures)
    names, source_name = plain_names(law.problem.evaluations), _plain_source(law, source)
    rows: list[dict[str, Any]] = [
        {
            "language": name,
            "share": float(share),
            "predicted": float(prediction.predicted[i, j]),
            "low": float(prediction.low[i, j]),
            "high": float(prediction.high[i, j]),
            "extrapolated": bool(prediction.extrapolated[i]),
        }
        for j, name in enumerate(names)
        for i, share in enumerate(shares)
    ]
    ends = [row[key] for row in rows for key in ("low", "high")]
    scale = alt.Scale(domain=[min(ends), max(ends)], nice=False, padding=4)
    x = alt.X(
        "share:Q",
        title=f"share of {source_name}",
        axis=SHARE,
        scale=alt.Scale(domain=[float(least), float(most)], nice=False),
    )
    y = alt.Y("predicted:Q", title="predicted loss", axis=alt.Axis(labelFlush=False), scale=scale)
    numbers = [alt.Tooltip(f"{key}:Q", format=".4f") for key in ("predicted", "low", "high")]
    tooltip = ["language:N", alt.Tooltip("share:Q", format=".1%"), *numbers]
    band = (
        alt.Chart(data(rows))
        .mark_area(opacity=0.16)
        .encode(x=x, y=alt.Y("low:Q", title=y["title"], scale=scale), y2="high:Q", color=by_language(names))
    )
    last = dict(zip(names, prediction.predicted[-1].tolist(), strict=True))
    labels = {name: f"{name} {value:.2f}" for name, value in last.items()}
    own = [{"share": float(base[place])}] if least <= base[place] <= most else []
    mark = alt.Chart(data(own)).mark_rule(color=INK, strokeDash=[3, 3]).encode(x=x)
    far = prediction.extrapolated
    away = [{"share": float(shares[i]), "end": float(shares[i + 1])} for i in range(POINTS - 1) if far[i] or far[i + 1]]
    grey = alt.Chart(data(away)).mark_rect(color="#EDEDED").encode(x=x, x2="end:Q")
    where = _REFERENCES.get(at, at) if isinstance(at, str) else "the mixture"
    change = {name: prediction.predicted[-1, j] - prediction.predicted[0, j] for j, name in enumerate(names)}
    return layered(
        [
            *([grey] if away else []),
            band,
            lines(rows, names, x, y, tooltip),
            mark,
            end_labels(last, labels, float(shares[-1]), y, spread=ends),
        ],
        title=f"Predicted loss against the share of {source_name}",
        subtitle=[
            f"the others keep the proportions of {where}" + ", whose share is the dashed line" * bool(own),
            "bands: 90 % intervals" + "; grey: far from all runs" * bool(away),
        ],
        description=f"Predicted losses as {source_name} goes from {shares[0]:.1%} to {shares[-1]:.1%}: "
        + ", ".join(f"{name} {value:+.3f}" for name, value in change.items())
        + ".",
        width=420,
        height=max(280, 16 * len(names)),
    )


def _plain_source(law: MixtureLaw, source: str) -> str:
    return plain_names(law.problem.sources)[law.problem.sources.index(source)]


def transfer_map(law: MixtureLaw) -> LayerChart:
    """Draw the transfer τ: the value of a token of each source for each evaluation, in tokens of the evaluation's own.

    The map is not symmetric. An evaluation's own sources have the value 1 by definition and are left out. The values
    are those of the effective-data law, whatever form predicts the losses.
    """
    sources, own = plain_names(law.problem.sources), law.problem.is_own
    names = [
        name + " *" * (not mine.any()) for name, mine in zip(plain_names(law.problem.evaluations), own, strict=True)
    ]
    values = np.array([list(row.values()) for row in law.transfer.values()])
    shown = np.where(own, 0, values)
    most = float(shown.max()) or 1.0
    cells = [
        {
            "evaluation": name,
            "source": source,
            "worth": float(values[i, j]),
            "text": f"{values[i, j]:.2f}" if values[i, j] >= 0.005 else "0",
            "dark": bool(values[i, j] > 0.6 * most),
        }
        for i, name in enumerate(names)
        for j, source in enumerate(sources)
        if not own[i, j]
    ]
    blank = [
        {"evaluation": name, "source": source}
        for i, name in enumerate(names)
        for j, source in enumerate(sources)
        if own[i, j]
    ]
    angle = 0 if max(map(len, sources)) <= 5 else -40
    x = alt.X(
        "source:N",
        sort=sources,
        title="token of the source",
        axis=alt.Axis(orient="top", labelAngle=angle, ticks=False, domain=False, labelLimit=200),
        scale=alt.Scale(domain=sources),
    )
    y = alt.Y(
        "evaluation:N",
        sort=names,
        title="evaluation",
        axis=alt.Axis(ticks=False, domain=False, labelLimit=200),
        scale=alt.Scale(domain=names),
    )
    colour = alt.Color(
        "worth:Q",
        scale=alt.Scale(scheme="blues", domain=[0, most]),
        legend=alt.Legend(title="value, in own tokens", orient="bottom", gradientLength=180, tickCount=4),
    )
    ink = alt.condition("datum.dark", alt.value("white"), alt.value(INK))
    tooltip = ["evaluation:N", "source:N", alt.Tooltip("worth:Q", title="value", format=".3f")]
    base = alt.Chart(data(cells))
    relative = (
        ["*: the evaluation has no own source; compare values within its row only"] if not own.any(1).all() else []
    )
    best = sorted(cells, key=lambda cell: -float(cell["worth"]))[:5]  # type: ignore[arg-type]
    return layered(
        [
            alt.Chart(data(blank)).mark_rect(color="#EDEDED", stroke="white").encode(x=x, y=y),
            base.mark_rect(stroke="white", strokeWidth=1).encode(x=x, y=y, color=colour, tooltip=tooltip),
            base.mark_text(fontSize=11).encode(x=x, y=y, text="text:N", color=ink),
        ],
        title="Transfer between sources",
        subtitle=[
            "value of a token of the source for the evaluation,",
            "in tokens of the evaluation's own source; grey: own source",
            *relative,
        ],
        description="Value of other sources' tokens: "
        + "; ".join(f"{cell['source']} for {cell['evaluation']} {cell['text']}" for cell in best)
        + ".",
        width=44 * len(sources),
        height=30 * len(names),
    )


def trade_off(law: MixtureLaw) -> HConcatChart:
    """Draw the predicted mean loss against the predicted loss of the worst evaluation.

    The curve has the best mixtures within the range of the runs, from the best mean loss to the best worst loss. No
    mixture is to the lower left of it. The chart also has the runs, equal shares and, if the law has token counts,
    proportional shares and UniMax. The second panel enlarges the part around the curve.

    Raises:
        XDogeError: the law has only one evaluation, so that its mean is its worst.
    """
    from xdoge.laws.optimize import reference_mixtures
    from xdoge.laws.optimize import trade_off as best_mixtures

    if len(law.problem.evaluations) < 2:
        raise XDogeError("a law with one evaluation has no trade-off between the mean and the worst loss.")
    references = {_REFERENCES[name]: share for name, share in reference_mixtures(law).items()}
    best = best_mixtures(law)
    curve = _mean_and_worst(law, best, ["one of the best"] * len(best))
    marked = _mean_and_worst(law, np.array(list(references.values())), list(references))
    marked += [curve[0] | {"mixture": MEAN_AND_WORST[0]}, curve[-1] | {"mixture": MEAN_AND_WORST[1]}]
    runs = _mean_and_worst(law, law.shares, ["run"] * len(law.shares))
    near = [*curve, *(row for row in marked if row["mixture"] == _REFERENCES["uniform"])]
    listed = ", ".join(f"{row['mixture']} {row['mean']:.3f} and {row['worst']:.3f}" for row in marked)
    return beside(
        [
            _plane(curve, marked, runs, [*curve, *marked, *runs], "all mixtures", named=False),
            _plane(curve, marked, runs, near, "near the best mixtures", named=True),
        ],
        title="Mean loss against the loss of the worst evaluation",
        subtitle=[
            "all losses are predicted; curve: best mixtures; circles: runs; lower left is better",
            "the curve is too low on average; xdoge optimize estimates by how much",
        ],
        description=f"Predicted mean loss and loss of the worst evaluation: {listed}.",
    )


def _mean_and_worst(law: MixtureLaw, shares: Any, names: Sequence[str]) -> list[dict[str, Any]]:
    losses, worst = law.losses_at(shares), plain_names(law.problem.evaluations)
    return [
        {
            "mixture": names[i],
            "mean": float(row.mean()),
            "worst": float(row.max()),
            "largest": worst[int(row.argmax())],
            "order": i,
        }
        for i, row in enumerate(losses)
    ]


def _plane(
    curve: Sequence[Mapping[str, Any]],
    marked: Sequence[Mapping[str, Any]],
    runs: Sequence[Mapping[str, Any]],
    framed: Sequence[Mapping[str, Any]],
    title: str,
    *,
    named: bool,
) -> alt.LayerChart:
    """Return the plane of mean and worst loss around the rows `framed`. If `named`, it labels the ends of the curve."""
    frame = {key: _frame([row[key] for row in framed]) for key in ("mean", "worst")}

    def inside(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        return [row for row in rows if all(low <= row[key] <= high for key, (low, high) in frame.items())]

    scales = {key: alt.Scale(domain=list(frame[key]), nice=False) for key in frame}
    x = alt.X("mean:Q", title="mean loss", axis=LOSS, scale=scales["mean"])
    y = alt.Y("worst:Q", title="loss of the worst evaluation", axis=LOSS, scale=scales["worst"])
    points = inside([row for row in marked if named or row["mixture"] not in MEAN_AND_WORST])
    gap = 0.065 * (frame["worst"][1] - frame["worst"][0])
    places = spread_out([row["worst"] for row in points], gap)
    middle = sum(frame["mean"]) / 2
    labels = [
        {"mixture": row["mixture"], "mean": row["mean"], "place": level, "right": row["mean"] > middle}
        for row, level in zip(points, places, strict=True)
    ]
    tooltip = ["mixture:N", "largest:N", *(alt.Tooltip(f"{key}:Q", format=".4f") for key in ("mean", "worst"))]
    at: dict[str, Any] = {"x": x, "y": y}
    text = []
    for right in (False, True):
        side = alt.Chart(data([row for row in labels if row["right"] == right])).encode(
            text="mixture:N", x=x, y=alt.Y("place:Q", title=y["title"], scale=y["scale"])
        )
        place: dict[str, Any] = {"align": "right" if right else "left", "dx": 8 - 16 * right, "dy": -12 * right}
        text += [side.mark_text(stroke="white", strokeWidth=4, **place), side.mark_text(**place)]
    layers = [
        alt.Chart(data(inside(runs))).mark_point(size=30, color=QUIET, strokeWidth=1).encode(tooltip=tooltip, **at),
        alt.Chart(data(curve)).mark_line(color=colours.FIXED["gl"], strokeWidth=2.5).encode(order="order:Q", **at),
        alt.Chart(data(points))
        .mark_point(size=60, shape="diamond", filled=True, color=INK, opacity=1)
        .encode(tooltip=tooltip, **at),
        *text,
    ]
    return alt.LayerChart(layer=layers, width=280, height=260, title=alt.TitleParams(title, fontSize=12))


def _frame(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.1 * (high - low) or 0.01
    return low - margin, high + margin
