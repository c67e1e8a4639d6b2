"""A comparison as one HTML page: files, tables, charts, warnings and the commands to repeat it."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Iterator

from xdoge._version import __version__
from xdoge.analysis.chart_set import charts_of
from xdoge.analysis.comparison_data import ComparisonData
from xdoge.analysis.page import Figure, Section, render
from xdoge.analysis.tables import TextTable
from xdoge.mixtures.mixture import Mixture
from xdoge.mixtures.strategies import STRATEGIES

_KINDS = {
    "weights": ("Weights", "Share of training tokens of each language, stacked by source"),
    "trajectory": ("Weights", "Weights of the languages over the steps of the fit"),
    "targets": ("Weights", "Weight of each language's loss in the target over the steps of the fit (targets: robust)"),
    "transfer": ("Weights", "Who helps whom: cosine between the gradients of two languages"),
    "planned": ("Mixtures", "What was asked for and what the caps on repetition left of it"),
    "unimax": ("Mixtures", "UniMax against temperature sampling: passes and sampling probability by language rank"),
    "validation_change": ("Training runs", "Change of the validation perplexity against the baseline, less is better"),
    "improvement": (
        "Training runs",
        "Validation perplexity below the baseline's over the tokens trained on, more is better",
    ),
    "perplexity_change": ("Models", "Change of the perplexity against the baseline, less is better"),
}
"""The heading and the caption of each kind of chart."""


def comparison_page(compared: ComparisonData, command: str = "") -> str:
    """Return the page as HTML.

    Args:
        compared: what to show.
        command: the command that made the page; empty if there is none to show.
    """
    names = ", ".join(file.name for file in compared.files)
    return render("What was compared, and how it differs", f"{names}.", list(_sections(compared, command)))


def _sections(compared: ComparisonData, command: str) -> Iterator[Section]:
    baseline = f"Differences are taken against {compared.baseline}." if compared.baseline else ""
    yield Section(
        "Files",
        paragraphs=[
            "Each file with the SHA-256 of its bytes: the same hash, the same numbers.",
            baseline or "Differences are taken against the first of each kind.",
        ],
        tables=[_files(compared)],
    )
    if compared.notes:
        yield Section("Warnings", warnings=compared.notes)
    figures: dict[str, list[Figure]] = {}
    for item in charts_of(compared):
        title, caption = _KINDS[item.kind]
        figure = Figure(item.chart, f"{caption}: {item.subject}" if item.subject else caption)
        figures.setdefault(title, []).append(figure)
    for title in dict.fromkeys([*(heading for heading, _ in _KINDS.values()), *compared.parts]):
        tables = compared.parts.get(title, ())
        if tables or title in figures:
            yield Section(title, figures=figures.get(title, ()), tables=tables)
    if compared.remarks:
        yield Section("How to read the differences", paragraphs=compared.remarks)
    versions = f"xdoge {__version__}, Python {platform.python_version()}."
    yield Section("To repeat it", paragraphs=[versions], commands=_commands(compared, command))


def _files(compared: ComparisonData) -> TextTable:
    header = ("name", "kind", "file", "xdoge", "created", "SHA-256")
    rows = [
        (file.name, file.kind, file.path or "a Python object", file.xdoge_version, file.created, file.sha256)
        for file in compared.files
    ]
    return TextTable("What was compared", header, rows, tuple(range(len(header))))


def _mix(name: str, mixture: Mixture) -> str:
    """Return the command that plans a mixture anew."""

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
    lines = [command] if command else []
    for name, fit in compared.inputs.weights.items():
        if fit.proxy.get("name"):
            baseline = fit.method.get("baseline")
            made = f"baseline {baseline}" if baseline else "fit-weights"
            options = {"proxy": fit.proxy["name"]} | ({} if baseline else {"floor": fit.floor})
            options |= {key: fit.method[key] for key in ("steps", "seed") if key in fit.method}
            options |= {key: fit.proxy[key] for key in ("steps", "seed") if key in fit.proxy}
            written = " ".join(f"--{key} {shlex.quote(str(value))}" for key, value in options.items())
            lines.append(f"xdoge {made} STORE --out RUN {written}    # {name}; all settings: config.yaml of its run")
    lines += [_mix(name, mixture) for name, mixture in compared.inputs.mixtures.items()]
    for name, run in compared.inputs.runs.items():
        lines.append(f"xdoge train MIXTURE.json --store STORE --config {run.path}/config.yaml --out RUN    # {name}")
    return lines
