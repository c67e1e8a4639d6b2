"""A comparison as one HTML page: conclusion, warnings, charts, tables, files, and the commands to repeat it."""

from __future__ import annotations

import json
import platform
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xdoge._version import __version__
from xdoge.analysis.chart_set import ComparisonChart, charts_of
from xdoge.analysis.comparison_data import ComparisonData
from xdoge.analysis.page import Figure, Section, render
from xdoge.analysis.tables import TextTable
from xdoge.baselines import METHODS
from xdoge.config import read_yaml
from xdoge.errors import XDogeError
from xdoge.fit.settings import FitSettings
from xdoge.mixtures.mixture import Mixture
from xdoge.mixtures.strategies import STRATEGIES
from xdoge.mixtures.weights import WeightSet
from xdoge.names import by_language
from xdoge.training.proxy_settings import ProxySettings

_KINDS = {
    "weights": ("Weights", "Share of training tokens of each language, stacked by source"),
    "trajectory": ("Weights", "Weights of the languages over the steps of the fit"),
    "targets": (
        "Weights",
        "Weight of each language's loss in the target loss over the steps of the fit (targets: robust)",
    ),
    "transfer": (
        "Weights",
        "Cosine between the loss gradients of two languages. Above 0, training on one language lowers the loss of the "
        "other.",
    ),
    "planned": ("Mixtures", "Weight and planned share of each source, before and after the caps on repetition"),
    "unimax": ("Mixtures", "UniMax against temperature sampling: epochs and sampling probability by language rank"),
    "predicted_against_measured": (
        "Mixture laws",
        "Predicted against measured loss of each run. Each prediction comes from a law that was not "
        "fitted to that run. The nearer the points lie to the line, the more you can trust the law. The interval of a "
        "hollow point does not contain the measured loss.",
    ),
    "transfer_map": (
        "Mixture laws",
        "Value of a token of the source (column) for the evaluation (row), in tokens of the evaluation's own "
        "source. If all values of a row are small, only its own source lowers that loss.",
    ),
    "trade_off": (
        "Mixture laws",
        "Mean loss against the loss of the worst evaluation, both predicted. For a mixture above and to the right of "
        "the curve, another mixture is better in both. Along the curve, one loss falls while the other rises.",
    ),
    "loss_along_share": (
        "Mixture laws",
        "Predicted loss of each evaluation over the share of one source. The other shares keep their proportions. "
        "Where a line falls, more text of this source lowers that loss.",
    ),
    "validation_change": ("Training runs", "Change of the validation perplexity against the baseline; lower is better"),
    "improvement": (
        "Training runs",
        "Reduction of the validation perplexity against the baseline, over the training tokens; higher is better",
    ),
    "perplexity_change": ("Models", "Change of the bits per byte against the baseline; lower is better"),
}
"""The heading and the caption of each kind of chart."""


def comparison_page(compared: ComparisonData, command: str = "") -> str:
    """Return the page as HTML.

    Args:
        compared: the comparison to show.
        command: the command that made the page; empty to show none.
    """
    names = ", ".join(file.name for file in compared.files)
    return render("Comparison", f"{names}.", list(_sections(compared, command)))


LEADING = ("perplexity_change", "validation_change", "weights", "planned", "predicted_against_measured")
"""Kinds of charts that can illustrate the conclusion, in order of preference."""

UNJUDGED = (
    "No difference can be judged here: there are no models with standard errors, and no two fits with the same "
    "settings and different seeds. Next: measure models with `xdoge eval`, or add fits with other seeds."
)


def _sections(compared: ComparisonData, command: str) -> Iterator[Section]:
    charts = charts_of(compared)
    leading = next((item for kind in LEADING for item in charts if item.kind == kind), None)
    figures = [_figure(leading)[1]] if leading else []
    yield Section("Conclusion", paragraphs=compared.verdict or (UNJUDGED,), figures=figures, lead=True)
    if compared.notes:
        yield Section("Warnings", warnings=compared.notes)
    others: dict[str, list[Figure]] = {}
    for title, figure in (_figure(item) for item in charts if item is not leading):
        others.setdefault(title, []).append(figure)
    for title in dict.fromkeys([*(heading for heading, _ in _KINDS.values()), *compared.parts]):
        tables = compared.parts.get(title, ())
        if tables or title in others:
            yield Section(title, figures=others.get(title, ()), tables=tables)
    if compared.remarks:
        yield Section("How to read the differences", paragraphs=compared.remarks)
    yield Section(
        "Files",
        paragraphs=[
            "Files with the same SHA-256 are identical.",
            f"Differences are relative to {compared.baseline or 'the first of each kind'}.",
        ],
        tables=[_files(compared)],
    )
    versions = f"xdoge {__version__}, Python {platform.python_version()}."
    yield Section("Commands to repeat it", paragraphs=[versions], commands=_commands(compared, command))


def _figure(item: ComparisonChart) -> tuple[str, Figure]:
    """Return the heading of the section of a chart, and the chart with its caption."""
    title, caption = _KINDS[item.kind]
    what, stop, reading = caption.partition(". ")
    return title, Figure(item.chart, f"{what}: {item.subject}{stop}{reading}" if item.subject else caption)


def _files(compared: ComparisonData) -> TextTable:
    header = ("name", "kind", "file", "xdoge", "created", "SHA-256")
    rows = [
        (file.name, file.kind, file.path or "a Python object", file.xdoge_version, file.created, file.sha256)
        for file in compared.files
    ]
    return TextTable("What was compared", header, rows, tuple(range(len(header))))


def _mix(name: str, mixture: Mixture) -> str:
    """Return the command that plans a mixture again."""

    def cap(epochs: float | None) -> str:
        return "none" if epochs is None else repr(epochs)

    follows = str(mixture.weights.get("name", ""))
    options = [f"--budget {mixture.budget_tokens} --max-epochs {cap(mixture.max_epochs)} --level {mixture.level}"]
    options += [
        f"--cap {shlex.quote(source)}={cap(share.max_epochs)}"
        for source, share in mixture.sources.items()
        if share.max_epochs != mixture.max_epochs
    ]
    options += ["--after BEFORE.json"] if any(share.read_before for share in mixture.sources.values()) else []
    options += [f"--min-share {mixture.min_share!r}"] if mixture.min_share else []
    options += [f"--sequence-length {mixture.sequence_length}"] if mixture.sequence_length else []
    weights, about = (follows, name) if follows in STRATEGIES else ("WEIGHTS.json", f"{name}, which follows {follows}")
    return (
        f"xdoge mix {weights} --store STORE {' '.join(options)} --seed {mixture.seed} --out MIXTURE.json"
        f"    # {about if follows else name}"
    )


def _commands(compared: ComparisonData, command: str) -> list[str]:
    """Return the command of the page, and the commands that repeat the runs that were compared."""
    inputs, lines = compared.inputs, [command] if command else []
    lines += [
        _fit(name, fit, inputs.fits.get(name))
        for name, fit in inputs.weights.items()
        if "proxy" in fit.method and fit.spread is None  # averages and weights from elsewhere have no run
    ]
    lines += [_mix(name, mixture) for name, mixture in inputs.mixtures.items()]
    for name, run in inputs.runs.items():
        mixture, config = shlex.quote(str(run.path / "mixture.json")), shlex.quote(str(run.path / "config.yaml"))
        store = shlex.quote(run.config["store"].get("path", "STORE"))
        lines.append(f"xdoge train {mixture} --store {store} --config {config} --out {_again(name)}    # {name}")
    return lines


def _fit(name: str, fit: WeightSet, folder: Path | None) -> str:
    """Return the command that learns weights again, with every setting that its other options do not imply."""
    baseline = fit.method.get("baseline")
    settings = _chosen(METHODS.get(str(baseline), FitSettings), fit)
    written = [f"--{key} {_value(settings.pop(key))}" for key in ("proxy", "steps", "seed") if key in settings]
    written += [f"--set {key}={_value(value)}" for key, value in settings.items()]
    config = folder / "config.yaml" if folder else None
    store = read_yaml(config).get("store", {}).get("path") if config and config.exists() else None
    made = f"baseline {baseline}" if baseline else "fit-weights"
    return f"xdoge {made} {shlex.quote(store or 'STORE')} --out {_again(name)} {' '.join(written)}    # {name}"


def _chosen(kind: type[ProxySettings], fit: WeightSet) -> dict[str, Any]:
    """Return proxy, steps, seed and the settings that differ from their defaults; all if the recipe is missing."""
    every = {key: value for key, value in fit.to_dict()["method"].items() if key in kind.model_fields}
    chosen: dict[str, Any] = {key: every[key] for key in ("proxy", "steps", "seed") if key in every}
    try:
        while other := {
            key: every[key]
            for key, value in kind.for_sources(by_language(fit.sources), chosen).model_dump(mode="json").items()
            if key in every and key not in chosen and every[key] != value
        }:
            chosen |= other
    except XDogeError:
        return every
    return chosen


def _value(value: object) -> str:
    """Return a value as `--set` reads it, quoted for a shell."""
    return shlex.quote(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _again(name: str) -> str:
    return shlex.quote(f"{name.replace('/', '-')}-again")
