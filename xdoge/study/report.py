"""The findings of a study as tables of text, and as one HTML page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from xdoge.analysis.page import Figure, Section, render
from xdoge.analysis.tables import NONE, TextTable, number
from xdoge.errors import few
from xdoge.study.findings import MACRO, WORST, Findings
from xdoge.study.intervals import CONFIDENCE
from xdoge.study.predictions import prediction_tables
from xdoge.study.spec import BudgetKind

TITLES: Mapping[BudgetKind, str] = {"tokens": "Equal tokens", "flops": "Equal total FLOPs"}

RULE = (
    "Macro is the mean over the languages. Worst is the largest value of any language. Regret is a strategy's "
    "difference minus the lowest difference of all strategies. Differences are paired by seed and by document: both "
    "models start from the same parameters, read each source in the same order and are measured on the same documents. "
    f"± is half of the {CONFIDENCE:.0%} interval over seeds and documents, for one difference at a time. A difference "
    "is significant if its whole interval lies above 0 or below 0. The columns better and worse name the languages "
    "with a significant difference."
)
"""What the tables of a comparison mean."""

PREDICTED = (
    "Each law is fitted to the small proxies of the swarm. It predicts each model from the mixture that "
    "the model was trained on, at the token budget of the law. Losses of proxies and models differ in "
    "level, so only differences are shown. Predicted 90 % intervals are paired: both mixtures are "
    "predicted by laws that are refitted to simulated swarms."
)


def tables(findings: Findings) -> list[TextTable]:
    """Return two tables for each comparison, then the stability of the weights, then the missing models."""
    compared = [table for kind in findings.study.spec.compare for table in comparison_tables(findings, kind)]
    compared += [table for kind in findings.study.spec.compare for table in prediction_tables(findings, kind)]
    missing = missing_table(findings)
    return [*compared, stability_table(findings), *([missing] if missing.rows else [])]


def comparison_tables(findings: Findings, comparison: BudgetKind) -> list[TextTable]:
    """Return a table of macro mean, worst language and costs, and a table of bits per byte by language."""
    study, rows = findings.study, findings.rows(comparison)
    against = f"\nagainst {study.spec.relative_to}"
    about = f"{rows[0]['training_tokens']:,} training tokens each"
    if comparison == "flops":
        about = f"{study.total_flops:.4g} FLOPs each for weights and training together"
    if most := study.spec.evaluation.get("max_documents"):
        about += f", measured on at most {most} documents of each source"
    summary = TextTable(
        f"{TITLES[comparison]}: bits per byte, {about}; lower is better",
        [
            *("strategy", "seeds", "macro", f"Δ macro{against}", "worst", f"Δ worst{against}"),
            *("regret,\nmacro", "regret,\nworst", "weights,\nFLOPs", "weights,\n% of training", "training\ntokens"),
        ],
        [
            [
                row["strategy"],
                f"{len(row['seeds'])} of {len(row['planned_seeds'])}",
                number(row[MACRO], ".3f"),
                _difference(row, MACRO),
                NONE if row[WORST] is None else f"{row['worst_language'] or 'varies'} {row[WORST]:.3f}",
                _difference(row, WORST),
                number(row["regret"][MACRO], ".3f"),
                number(row["regret"][WORST], ".3f"),
                f"{row['learning_flops']:.2g}" if row["learning_flops"] else "0",
                f"{row['share_of_training']:.0%}",
                f"{row['training_tokens']:,}",
            ]
            for row in rows
        ],
    )
    by_language = TextTable(
        f"{TITLES[comparison]}: bits per byte by language, mean over seeds",
        ["strategy", *study.languages, "better", "worse"],
        [
            [
                row["strategy"],
                *(number(row["languages"].get(language), ".3f") for language in study.languages),
                few(row["better"]) or NONE,
                few(row["worse"]) or NONE,
            ]
            for row in rows
        ],
        text_columns=(0, len(study.languages) + 1, len(study.languages) + 2),
    )
    return [summary, by_language]


def difference_table(findings: Findings, comparison: BudgetKind) -> TextTable:
    """Return a table of the difference of every language with its interval."""
    study = findings.study
    rows = [row for row in findings.rows(comparison) if row["strategy"] != study.spec.relative_to]
    return TextTable(
        f"{TITLES[comparison]}: difference to {study.spec.relative_to} in bits per byte",
        ["strategy", *study.languages],
        [[row["strategy"], *(_difference(row, language) for language in study.languages)] for row in rows],
    )


def stability_table(findings: Findings) -> TextTable:
    """Return a table of the mean distance between the weights of two seeds."""
    return TextTable(
        "Stability: total variation between the weights of two seeds, mean over all pairs",
        ["strategy", "seeds", "of sources", "of languages"],
        [
            [row["strategy"], _seeds(findings, row), number(row["sources"], ".1%"), number(row["languages"], ".1%")]
            for row in findings.stability()
        ],
    )


def _seeds(findings: Findings, row: Mapping[str, Any]) -> str:
    seeded = findings.study.strategies[row["strategy"]].seeded
    return "same for all" if not seeded else f"{len(row['seeds'])} of {len(findings.study.spec.seeds)}"


def missing_table(findings: Findings) -> TextTable:
    """Return a table of the models that are missing from the means: those with one reason in one row."""
    missing = [result for result in findings.results.values() if result.state != "finished"]
    models: dict[tuple[str, str], list[str]] = {}
    for result in missing:
        models.setdefault((result.state, result.why or NONE), []).append(result.trial.name)
    rows = [[", ".join(names), *cells] for cells, names in models.items()]
    return TextTable("Models that are missing from the means", ["models", "state", "why"], rows, (0, 1, 2))


def page(findings: Findings, command: str = "", *, conclusion: Sequence[str] = ()) -> str:
    """Return a self-contained HTML page with the conclusion, charts, tables, failed runs and the commands.

    Args:
        findings: the findings to show.
        command: the command that made the page; empty to show none.
        conclusion: sentences to show in place of the verdict.
    """
    study = findings.study
    seeds = f"{len(study.spec.seeds)} seed{'s' * (len(study.spec.seeds) != 1)}"
    subtitle = (
        f"{study.path.name}: {len(study.strategies)} strategies, {seeds}, model {Path(study.initial.name).stem}, "
        f"store {study.store.name}."
    )
    return render("Comparison of strategies", subtitle, list(_sections(findings, command, conclusion)))


def _sections(findings: Findings, command: str, conclusion: Sequence[str]) -> Iterator[Section]:
    study = findings.study
    first, *others = study.spec.compare
    verdicts = [f"{TITLES[comparison]}. {' '.join(findings.verdict(comparison))}" for comparison in study.spec.compare]
    yield Section("Conclusion", paragraphs=conclusion or verdicts, figures=_figures(findings, first), lead=True)
    if findings.notes:
        yield Section("Warnings", warnings=findings.notes)
    for comparison in study.spec.compare:
        differences = difference_table(findings, comparison)
        yield Section(
            TITLES[comparison],
            paragraphs=[_explained(findings, comparison), RULE],
            figures=_figures(findings, comparison) if comparison in others else (),
            tables=[*comparison_tables(findings, comparison), *([differences] if differences.rows else [])],
        )
    for comparison in study.spec.compare:
        if predicted := prediction_tables(findings, comparison):
            by_language = prediction_tables(findings, comparison, languages=True)
            title = f"Predicted and measured, {TITLES[comparison].lower()}"
            yield Section(title, paragraphs=[PREDICTED], tables=[*predicted, *by_language])
    missing = missing_table(findings)
    finished = sum(result.state == "finished" for result in findings.results.values())
    yield Section("Stability of the weights", tables=[stability_table(findings)])
    yield Section(
        "What was run",
        paragraphs=[
            f"{finished} of {len(findings.results)} planned models have a result.",
            f"Store {study.store.name}, SHA-256 {study.store.sha256}.",
        ],
        tables=[missing] if missing.rows else [],
        commands=[*([command] if command else []), "\n".join(study.commands(findings.out))],
    )


def _figures(findings: Findings, comparison: BudgetKind) -> list[Figure]:
    """Return the chart of the differences of a comparison; none before two strategies can be compared."""
    from xdoge.analysis.charts.seeds import seed_differences

    reference = findings.study.spec.relative_to
    dots = [
        {"strategy": row["strategy"], "measure": measure, **interval}
        for row in findings.rows(comparison)
        for measure, interval in row["differences"].items()
    ]
    if not dots:
        return []
    title = f"{TITLES[comparison]}: difference to {reference}"
    return [Figure(seed_differences(dots, title=title, relative_to=reference), f"{title}, bits per byte")]


def _explained(findings: Findings, comparison: BudgetKind) -> str:
    study = findings.study
    if comparison == "tokens":
        steps = study.steps("tokens", study.spec.relative_to)
        return f"Every model trains for {steps:,} steps. The cost of learning its weights is not counted."
    return (
        f"Every strategy has {study.total_flops:.4g} FLOPs for learning its weights and training "
        "together. This is what the most costly strategy needs at equal tokens. Strategies that spend "
        "less on learning train for longer."
    )


def _difference(row: Mapping[str, Any], measure: str) -> str:
    interval = row["differences"].get(measure)
    if interval is None:
        return NONE
    half = "" if interval["high"] is None else f" ± {interval['high'] - interval['mean']:.3f}"
    seeds = "" if interval["n"] == len(row["planned_seeds"]) else f" (n = {interval['n']})"
    return f"{interval['mean']:+.3f}{half}{seeds}".replace("-", "−")
