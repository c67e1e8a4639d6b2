"""Charts of one fit: weights and targets over its steps, and the affinity between languages."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
from numpy.typing import NDArray

from xdoge.analysis.charts.drawing import INK, QUIET, SHARE, LayerChart, by_language, data, end_labels, layered, lines
from xdoge.analysis.shares import union
from xdoge.errors import XDogeError
from xdoge.io import read_rows
from xdoge.mixtures.weights import WeightSet
from xdoge.names import language_of

MOST_POINTS = 400
"""Most points of a line. Of a longer fit, evenly spaced steps are shown."""

DARK = 0.6
"""Absolute cosine above which squares are so dark that their numbers are white."""


def trajectory(run: Path | str) -> LayerChart:
    """Draw the weight of each language over the steps of a fit.

    Args:
        run: folder of the fit, with trajectory.parquet. If it has a weights.json, diamonds mark the learned weights,
            which are means over the steps.

    Raises:
        XDogeError: there is no trajectory.parquet.
    """
    import pyarrow.parquet as pq

    folder = Path(run)
    if not (folder / "trajectory.parquet").exists():
        raise XDogeError(f"{run} has no trajectory.parquet, so it is not the run folder of a fit.")
    table = pq.read_table(folder / "trajectory.parquet", columns=["step", "source", "weight"])
    numbers = table["step"].to_numpy()
    sources = table["source"].slice(0, int((numbers == numbers[0]).sum())).to_pylist()
    steps = numbers[:: len(sources)]  # (steps,)
    weights = table["weight"].to_numpy().reshape(-1, len(sources))  # (steps, k)
    languages = union([language_of(source)] for source in sources)
    members = {name: [language_of(source) == name for source in sources] for name in languages}
    summed = {name: weights[:, columns].sum(1) for name, columns in members.items()}
    return _over_steps(
        steps,
        summed,
        WeightSet.load(folder).languages if (folder / "weights.json").exists() else {},
        title="Weights over the fit",
        y="weight: share of training tokens",
        mean="the mean over the steps, which is the learned weight",
    )


def targets(run: Path | str) -> LayerChart:
    """Draw the target τ of each language over the steps of a fit with `targets: robust`.

    Args:
        run: folder of the fit, with metrics.jsonl.

    Raises:
        XDogeError: the fit's targets did not move.
    """
    rows = [row for row in read_rows(Path(run) / "metrics.jsonl") if "targets" in row]
    if not rows:
        raise XDogeError(f"{run} has no moving targets in metrics.jsonl, so it is not a fit with targets: robust.")
    taus = {language: np.array([row["targets"][language] for row in rows]) for language in rows[0]["targets"]}
    return _over_steps(
        np.array([row["step"] for row in rows]),
        taus,
        {language: float(values.mean()) for language, values in taus.items()},
        title="Targets over the fit",
        y="τ: weight of the language's loss in the target",
        mean="the mean over the steps",
    )


def _over_steps(
    steps: NDArray[np.int64],
    values: Mapping[str, NDArray[np.float64]],
    means: Mapping[str, float],
    *,
    title: str,
    y: str,
    mean: str,
) -> LayerChart:
    """Draw a line for each language, and a diamond at its end if it has a mean."""
    kept = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), MOST_POINTS)).round().astype(int))
    languages, name = list(values), y.partition(":")[0]
    rows: list[dict[str, Any]] = [
        {"step": int(steps[i]), "language": language, name: float(values[language][i])}
        for language in languages
        for i in kept
    ]
    last = int(steps[-1])
    marks = [{"step": last, "language": language, name: mean} for language, mean in means.items()]
    ends = {language: float(values[language][-1]) for language in languages}
    axis = alt.Axis(tickMinStep=1, format=",d", labelOverlap=True)  # no half steps
    domain = alt.Scale(domain=[0, int(steps[-1])], nice=False)
    across = alt.X("step:Q", title="step of the fit", scale=domain, axis=axis)
    up = alt.Y(f"{name}:Q", title=y, axis=SHARE, scale=alt.Scale(zero=False))
    tooltip = ["language:N", alt.Tooltip(f"{name}:Q", format=".4f")]
    diamonds = (
        alt.Chart(data(marks))
        .mark_point(shape="diamond", filled=True, size=70, clip=False, stroke="white", opacity=1)
        .encode(x=across, y=up, color=by_language(languages), tooltip=tooltip)
    )
    texts = {language: f"{language} {means.get(language, ends[language]):.3f}" for language in languages}
    return layered(
        [
            lines(rows, languages, across, up, ["step:Q", *tooltip]),
            *([diamonds] if marks else []),
            end_labels(ends | dict(means), texts, int(steps[-1]), up, spread=[row[name] for row in rows]),
        ],
        title=title,
        subtitle=f"diamonds and numbers: {mean}" if marks else "numbers: the last step",
        description=f"{y} of each language over {int(steps[-1]):,} steps; {'mean' if marks else 'last'}: "
        + ", ".join(f"{language} {value:.3f}" for language, value in (means or ends).items())
        + ".",
        width=460,
        height=300,
    )


def transfer(run: Path | str, *, families: Mapping[str, str | None] | None = None) -> LayerChart:
    """Draw the cosines between the gradients of languages, averaged over the fit.

    Args:
        run: folder of the fit, with gram.parquet.
        families: family of each language. Languages of a family are shown together. By default, families come from the
            token store of the fit, if it still exists.

    Raises:
        XDogeError: there is no gram.parquet.
    """
    known = families if families is not None else _families(Path(run))
    cosines = _cosines(Path(run), known)
    languages = list(cosines)
    cells: list[dict[str, Any]] = [
        {"language": language, "other": other, **cell, "left": j, "right": j + 1, "top": i, "bottom": i + 1}
        for i, language in enumerate(languages)
        for j, (other, cell) in enumerate(cosines[language].items())
    ]
    for cell in cells:
        value: float | None = cell["cosine"]
        shown = "–" if value is None else f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")
        cell["text"] = f"({shown})" if cell["noise"] and value is not None else shown
        cell["dark"] = not cell["noise"] and value is not None and abs(value) > DARK
    frame, size = _squares(languages), 46 * len(languages)
    scale = alt.Scale(scheme="blueorange", domain=[-1, 1], reverse=True)
    legend = alt.Legend(title="cosine", orient="bottom", gradientLength=min(size, 184))
    coloured = alt.condition("!datum.noise", alt.Color("cosine:Q", scale=scale, legend=legend), alt.value("#EDEDED"))
    tooltip = [
        *("language:N", "other:N", alt.Tooltip("cosine:Q", format=".3f")),
        alt.Tooltip("standard_error:Q", title="standard error", format=".3f"),
    ]
    heat = alt.Chart(data(cells)).mark_rect(stroke="white", strokeWidth=1)
    text = alt.Chart(data([{**cell, "left": cell["left"] + 0.5, "top": cell["top"] + 0.5} for cell in cells]))
    ink = alt.condition("datum.dark", alt.value("white"), alt.value(INK))
    pairs = (f"{cell['language']} and {cell['other']} {cell['text']}" for cell in cells if cell["top"] < cell["left"])
    return layered(
        [
            heat.encode(x2="right:Q", y2="bottom:Q", color=coloured, tooltip=tooltip, **frame),
            text.mark_text(fontSize=11).encode(text="text:N", color=ink, **frame),
            *(_family_lines(languages, known, frame) if any(known.get(language) for language in languages) else []),
        ],
        title="Gradient cosines of the languages",
        subtitle=[
            "cosine of two languages' loss gradients, averaged over the fit;",
            "above 0: training on one lowers the loss of the other; grey: not significantly different from 0",
        ],
        description=f"Cosines of the languages' gradients: {', '.join(pairs)}.",
        width=size,
        height=size,
    )


def _cosines(run: Path, families: Mapping[str, str | None]) -> dict[str, dict[str, dict[str, float | bool | None]]]:
    """Return `LanguageCosines.to_dict` of a fit, with languages of one family next to each other."""
    import pyarrow.parquet as pq

    from xdoge.fit.affinity import LanguageCosines

    path = run / "gram.parquet"
    if not path.exists():
        raise XDogeError(f"{run} has no gram.parquet; this chart needs a fit that kept its Gram matrix.")
    table = pq.read_table(path, columns=["first_step", "other"])
    pairs = int((table["first_step"].to_numpy() == table["first_step"][0].as_py()).sum())
    sources = table["other"].slice(0, math.isqrt(pairs)).to_pylist()
    members: dict[str, list[str]] = {}
    for source in sources:
        members.setdefault(language_of(source), []).append(source)
    ordered = _by_family(list(members), families)
    return LanguageCosines.read(path, {name: members[name] for name in ordered}, sources).to_dict()


def _squares(languages: Sequence[str]) -> dict[str, Any]:
    """Return axes on which row and column i, counted from the top left, extend from i to i + 1."""
    axis: dict[str, Any] = {
        "values": [i + 0.5 for i in range(len(languages))],
        "labelExpr": f"{json.dumps(languages)}[floor(datum.value)]",
        "ticks": False,
        "domain": False,
        "grid": False,
        "labelAngle": 0,
    }
    scale: dict[str, Any] = {"domain": [0, len(languages)], "nice": False, "zero": False}
    return {
        "x": alt.X("left:Q", scale=alt.Scale(**scale), axis=alt.Axis(orient="top", **axis), title=None),
        "y": alt.Y("top:Q", scale=alt.Scale(reverse=True, **scale), axis=alt.Axis(**axis), title=None),
    }


def _families(run: Path) -> dict[str, str | None]:
    """Return the families of the languages, from the token store of a fit; empty if it no longer exists."""
    from xdoge.config import read_yaml
    from xdoge.corpus.store import TokenStore

    if not (run / "config.yaml").exists():
        return {}
    started = read_yaml(run / "config.yaml").get("store", {})
    for path in (Path(str(started.get("path"))), run.parent / str(started.get("path")), run / "store"):
        if (path / "store.json").exists() and (store := TokenStore.open(path)).sha256 == started.get("sha256"):
            return dict(store.families)
    return {}


def _by_family(languages: Sequence[str], families: Mapping[str, str | None]) -> list[str]:
    """Return languages with families, and families of one branch, next to each other, in order of first appearance."""
    branches = union([str(families.get(language) or language).partition("/")[0]] for language in languages)
    groups = union([str(families.get(language) or language)] for language in languages)

    def place(language: str) -> tuple[int, int]:
        family = str(families.get(language) or language)
        return branches.index(family.partition("/")[0]), groups.index(family)

    return sorted(languages, key=place)


def _family_lines(
    ordered: Sequence[str], families: Mapping[str, str | None], frame: Mapping[str, Any]
) -> list[alt.Chart]:
    """Return lines between families, and the name of each family to the right of its rows."""
    names = [str(families.get(language) or language) for language in ordered]
    starts = [i for i in range(len(names)) if i == 0 or names[i] != names[i - 1]]
    count, inner = len(names), starts[1:]
    rows = [{"left": 0, "right": count, "top": i} for i in inner]
    columns = [{"left": i, "top": 0, "bottom": count} for i in inner]
    labels = [
        {"left": count, "top": (i + j) / 2, "family": names[i] if families.get(ordered[i]) else "–"}
        for i, j in zip(starts, [*inner, count], strict=True)
    ]
    return [
        alt.Chart(data(rows)).mark_rule(color=INK, strokeWidth=1.5).encode(x2="right:Q", **frame),
        alt.Chart(data(columns)).mark_rule(color=INK, strokeWidth=1.5).encode(y2="bottom:Q", **frame),
        alt.Chart(data(labels)).mark_text(align="left", dx=8, color=QUIET, clip=False).encode(text="family:N", **frame),
    ]
