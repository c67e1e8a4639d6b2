"""A study as tables of text and as one page that can be sent to somebody."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from xdoge._version import __version__
from xdoge.analysis.page import Figure, Section, TableOf, render
from xdoge.errors import MOST_NAMES
from xdoge.study.findings import MACRO, WORST, Findings
from xdoge.study.intervals import CONFIDENCE
from xdoge.study.spec import Comparison

NONE = "–"

TITLES: Mapping[Comparison, str] = {"tokens": "Equal tokens", "flops": "Equal total FLOPs"}

RULE = (
    f"Differences are of the same seeds, paired: first parameters and order of text are alike. ±: half of Student's "
    f"{CONFIDENCE:.0%} interval over seeds, for one difference at a time. Better and worse name the languages whose "
    "whole interval lies on one side of 0."
)


def tables(found: Findings) -> list[TableOf]:
    """Return two tables for each comparison, then how stable the weights are, then what is missing."""
    made = [table for one in found.study.spec.compare for table in comparison_tables(found, one)]
    missing = missing_table(found)
    return [*made, stability_table(found), *([missing] if missing.rows else [])]


def comparison_tables(found: Findings, comparison: Comparison) -> list[TableOf]:
    """Return the macro mean and the worst language with differences and costs, and bits per byte by language."""
    study, rows = found.study, found.rows(comparison)
    against = f"\nagainst {study.spec.relative_to}"
    about = f"{rows[0]['training_tokens']:,} tokens of training each"
    if comparison == "flops":
        about = f"{study.total_flops:.4g} FLOPs each for weights and training together"
    if most := study.spec.evaluation.get("max_documents"):
        about += f", measured on {most} documents of each source at most"
    summary = TableOf(
        f"{TITLES[comparison]}: bits per byte, {about}; less is better",
        [
            *("strategy", "seeds", "macro", f"Δ macro{against}", "worst", f"Δ worst{against}"),
            *("weights,\nFLOPs", "share of\ntraining", "training\ntokens"),
        ],
        [
            [
                row["strategy"],
                f"{len(row['seeds'])} of {len(row['planned_seeds'])}",
                _bits(row[MACRO]),
                _difference(row, MACRO),
                NONE if row[WORST] is None else f"{row['worst_language'] or 'varies'} {row[WORST]:.3f}",
                _difference(row, WORST),
                f"{row['learning_flops']:.2g}" if row["learning_flops"] else "0",
                f"{row['share_of_training']:.0%}",
                f"{row['training_tokens']:,}",
            ]
            for row in rows
        ],
    )
    by_language = TableOf(
        f"{TITLES[comparison]}: bits per byte by language, mean over seeds",
        ["strategy", *study.languages, "better", "worse"],
        [
            [
                row["strategy"],
                *(_bits(row["languages"].get(one)) for one in study.languages),
                _some(row["better"]),
                _some(row["worse"]),
            ]
            for row in rows
        ],
        text_columns=(0, len(study.languages) + 1, len(study.languages) + 2),
    )
    return [summary, by_language]


def difference_table(found: Findings, comparison: Comparison) -> TableOf:
    """Return the differences of every language with their intervals."""
    study = found.study
    rows = [row for row in found.rows(comparison) if row["strategy"] != study.spec.relative_to]
    return TableOf(
        f"{TITLES[comparison]}: difference to {study.spec.relative_to} in bits per byte",
        ["strategy", *study.languages],
        [[row["strategy"], *(_difference(row, one) for one in study.languages)] for row in rows],
    )


def stability_table(found: Findings) -> TableOf:
    """Return how far the weights of two seeds lie apart."""
    return TableOf(
        "Stability: total variation between the weights of two seeds, mean over all pairs",
        ["strategy", "seeds", "of sources", "of languages"],
        [
            [row["strategy"], _seeds(found, row), _share(row["sources"]), _share(row["languages"])]
            for row in found.stability()
        ],
    )


def _seeds(found: Findings, row: Mapping[str, Any]) -> str:
    fixed = found.study.strategies[row["strategy"]].weights is not None
    return "same for all" if fixed else f"{len(row['seeds'])} of {len(found.study.spec.seeds)}"


def missing_table(found: Findings) -> TableOf:
    """Return the models that no mean has in it, and why."""
    missing = [one for one in found.outcomes.values() if one.state != "finished"]
    rows = [[one.trial.name, one.state, one.why or NONE] for one in missing]
    return TableOf("Models that are missing from the means", ["model", "state", "why"], rows, (0, 1, 2))


def page(found: Findings, command: str) -> str:
    """Return the page as HTML.

    Args:
        found: what to show.
        command: with which it was made, for whoever repeats it.
    """
    study = found.study
    made = datetime.datetime.now(datetime.UTC).isoformat(sep=" ", timespec="minutes")
    seeds = f"{len(study.spec.seeds)} seed{'s' * (len(study.spec.seeds) != 1)}"
    subtitle = (
        f"{study.path.name}: {len(study.strategies)} strategies, {seeds}, model {study.recipe.name}, "
        f"store {study.store.name}. Made by xdoge {__version__} at {made}."
    )
    return render("Whom does it help?", subtitle, list(_sections(found, command)))


def _sections(found: Findings, command: str) -> Iterator[Section]:
    from xdoge.analysis.charts.study import seed_differences

    study = found.study
    if found.notes:
        yield Section("Warnings", warnings=found.notes)
    for comparison in study.spec.compare:
        differences = difference_table(found, comparison)
        figures = []
        if shown := _dots(found, comparison):
            title = f"{TITLES[comparison]}: difference to {study.spec.relative_to}"
            chart = seed_differences(shown, title=title, relative_to=study.spec.relative_to)
            figures = [Figure(chart, f"{title}, bits per byte", str(chart.to_dict()["description"]))]
        yield Section(
            TITLES[comparison],
            paragraphs=[_explained(found, comparison), RULE],
            figures=figures,
            tables=[*comparison_tables(found, comparison), *([differences] if differences.rows else [])],
        )
    missing = missing_table(found)
    yield Section("Stability of the weights", tables=[stability_table(found)])
    yield Section(
        "What was run",
        paragraphs=[
            f"{len(found.outcomes)} models were planned, and all that were begun are counted here.",
            f"Store {study.store.name}, SHA-256 {study.store.sha256}.",
        ],
        tables=[missing] if missing.rows else [],
        commands=[*([command] if command else []), "\n".join(study.commands(found.out))],
    )


def _explained(found: Findings, comparison: Comparison) -> str:
    study = found.study
    if comparison == "tokens":
        steps = study.steps("tokens", study.spec.relative_to)
        return f"Every model trains for {steps:,} steps, whatever its weights cost to learn."
    return (
        f"Every strategy has {study.total_flops:.4g} FLOPs for learning its weights and training together: what the "
        "dearest needs at equal tokens. Those that learn for less, or not at all, train for longer."
    )


def _dots(found: Findings, comparison: Comparison) -> list[dict[str, Any]]:
    """Return what the chart draws, strategies in the order of the table."""
    return [
        {"strategy": row["strategy"], "measure": measure, **interval}
        for row in found.rows(comparison)
        for measure, interval in row["differences"].items()
    ]


def _bits(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}"


def _share(value: float | None) -> str:
    return NONE if value is None else f"{value:.1%}"


def _difference(row: Mapping[str, Any], measure: str) -> str:
    interval = row["differences"].get(measure)
    if interval is None:
        return NONE
    half = "" if interval["high"] is None else f" ± {interval['high'] - interval['mean']:.3f}"
    seeds = "" if interval["n"] == len(row["planned_seeds"]) else f" (n = {interval['n']})"
    return f"{interval['mean']:+.3f}{half}{seeds}".replace("-", "−")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" * (len(names) > MOST_NAMES)
    return " ".join(names[:MOST_NAMES]) + more or NONE
