"""Trained models side by side: rows from results.json and training runs, with changes against a baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xdoge.analysis.inputs import TrainRun, text_behind
from xdoge.analysis.shares import Rows, union
from xdoge.analysis.statistics import exceeds
from xdoge.errors import XDogeError
from xdoge.eval.document_scores import SourceScores
from xdoge.eval.perplexity import PERPLEXITIES, RELATIVE, Measured, PerplexitySettings
from xdoge.eval.perplexity import TASK as PERPLEXITY
from xdoge.eval.results import ALL, Results, Row
from xdoge.eval.suite import LEAST_COVERAGE, NORMALISED, covered
from xdoge.names import language_of
from xdoge.train.run_log import common_budget

PAIRED = (
    "A difference Δ is significant if |Δ| > 1.96 standard errors, the number after ±. This is the error of "
    "the difference itself, from a bootstrap that draws the same documents for both models."
)
UNPAIRED = (
    "For benchmarks, and for text without a file of document scores for both models, a difference Δ is "
    "significant if |Δ| > 1.96 · sqrt(stderr² + stderr² of the baseline). This treats the two numbers as "
    "independent. Models that answered the same questions or read the same documents differ less by "
    "chance, so this rule misses some true differences."
)


@dataclass(frozen=True)
class Measure:
    """A metric by which models are compared.

    Attributes:
        title: title with the unit.
        task: task of its rows.
        metric: metric of its rows.
    """

    title: str
    task: str
    metric: str


def measures(results: Results) -> list[Measure]:
    """Return the measures by which the models are compared.

    Bits per UTF-8 byte come first. They compare models with any tokenizer, and they alone have an average over
    languages. Perplexity per token follows if all models have the same tokenizer. For parallel text, there are bits
    relative to the reference language. Last comes the normalised score of each suite.
    """
    pairs = {(row.task, row.metric) for row in results.rows}
    suites = results.settings.get("benchmarks", {})
    scores = sorted(task for task, metric in pairs if metric == NORMALISED and task in suites)
    measured = [Measure(f"{suite}, 0 is chance, 100 best", suite, NORMALISED) for suite in scores]
    parallel = sorted(metric for task, metric in pairs if task == PERPLEXITY and metric.startswith(RELATIVE))
    metrics = ["bits_per_byte", *(["perplexity_per_token"] if len(tokenizers(results)) == 1 else []), *parallel]
    of_text = [Measure(name.replace("_", " "), PERPLEXITY, name) for name in metrics if (PERPLEXITY, name) in pairs]
    return of_text + measured


def tokenizers(results: Results) -> set[str]:
    """Return the fingerprints of the tokenizers of the models whose perplexity was measured."""
    return {about["tokenizer"] for about in results.settings.get("perplexity", {}).values()}


def score_rows(results: Results, *, baseline: str | None) -> Rows:
    """Return the rows of results.json with differences to the baseline model.

    `difference` is the value minus the baseline's. `change` is the difference divided by the baseline's value; it is
    None for normalised scores. Both are None for the baseline itself, and if `not_compared` says why the two values
    cannot be compared. `difference_stderr` and `exceeds` follow the rule `PAIRED` if `paired` is true, else `UNPAIRED`.
    `better` says whether the difference is an improvement.
    """
    base = {row.key[1:]: row for row in results.rows if row.model == baseline}
    resampled, rows = _Resampled(results), []
    for row in results.rows:
        if row.language == ALL and row.metric in PERPLEXITIES:  # arithmetic means of an older xdoge, which mislead
            continue
        if not covered(_outcomes(results, row.task, row.model, row.language)):
            continue
        other = base.get(row.key[1:])
        why = _not_compared(results, row, other) if baseline is not None and row.model != baseline else None
        rival = other if row.model != baseline and why is None else None
        difference = row.value - rival.value if rival else None
        paired = resampled.stderr_of_difference(row, rival) if rival else None
        error, beyond = (None, None)
        if rival:
            stderrs = (row.stderr, rival.stderr) if paired is None else (paired,)
            error, beyond = exceeds(row.value - rival.value, *stderrs)
        rows.append(
            {
                **vars(row),
                "tokenizer": _about(results, row.model).get("tokenizer") if _is_perplexity(row) else None,
                "baseline": baseline,
                "baseline_value": other.value if other else None,
                "baseline_stderr": other.stderr if other else None,
                "difference": difference,
                "change": _change(row, rival) if rival else None,
                "difference_stderr": error,
                "exceeds": beyond,
                "paired": None if error is None else paired is not None,
                "better": None if not difference else (difference > 0) == row.higher_is_better,
                "not_compared": why,
            }
        )
    return rows


def validation_rows(runs: Mapping[str, TrainRun], *, baseline: str | None) -> Rows:
    """Return a row for each run, step of validation and language, with the change against the baseline.

    Two runs are compared if they have the same budget and validation text, at steps at which both have read the same
    number of tokens. `difference` is in nats per token, and `change` is the relative change of the perplexity.
    """
    base = runs.get(baseline or "")
    losses = {row["tokens"]: row["validation_by_language"] for row in base.validations} if base else {}
    rows = []
    for name, run in runs.items():
        compared = base is not None and run is not base and run.text == base.text and run.budget == base.budget
        for row in run.validations:
            for language, loss in row["validation_by_language"].items():
                other = losses.get(row["tokens"], {}).get(language) if compared else None
                rows.append(
                    {
                        "run": name,
                        "step": row["step"],
                        "tokens": row["tokens"],
                        "language": language,
                        "loss": loss,
                        "perplexity": math.exp(loss),
                        "baseline": baseline if base else None,
                        "difference": None if other is None else loss - other,
                        "change": None if other is None else math.expm1(loss - other),
                    }
                )
    return rows


def reading_rows(runs: Mapping[str, TrainRun]) -> Rows:
    """Return a row for each run and source: tokens and epochs read so far."""
    rows = []
    for name, run in runs.items():
        state = run.summary or next((row for row in reversed(run.rows) if "epochs" in row), {})
        for source, passes in state.get("epochs", {}).items():
            rows.append(
                {
                    "run": name,
                    "model": run.config["settings"]["model"],
                    "mixture": run.config["mixture"]["name"],
                    "finished": run.summary is not None,
                    "tokens_seen": state.get("tokens_seen", state.get("tokens")),
                    "budget": run.budget,
                    "language": language_of(source),
                    "source": source,
                    "tokens": state.get("tokens_by_source", {}).get(source),
                    "epochs": passes,
                }
            )
    return rows


def score_notes(scores: Rows, *, baseline: str | None) -> list[str]:
    """Return why models are not compared, a line for each reason."""
    reasons: dict[str, dict[str, None]] = {}
    for row in scores:
        if row["not_compared"]:
            reasons.setdefault(row["not_compared"], {})[row["model"]] = None
    return [f"{', '.join(models)} against {baseline}: {reason}." for reason, models in reasons.items()]


def coverage_notes(results: Results) -> list[str]:
    """Return a line for each average over a suite that is missing because too few of its tasks ran."""
    lines: dict[str, list[str]] = {}
    for suite, models in results.settings.get("benchmarks", {}).items():
        for model in models:
            languages = union([outcome.get("language", "")] for outcome in models[model].get("outcomes", ()))
            for language in (*languages, ALL):
                outcomes = _outcomes(results, suite, model, language)
                if not covered(outcomes):
                    ran = f"{outcomes.count('ran')} of {len(outcomes)} tasks"
                    lines.setdefault(f"{suite} of {model}", []).append(
                        f"{ran} in {language}" if language != ALL else ran
                    )
    return [
        f"No average over {what}, because fewer than {LEAST_COVERAGE:.0%} of the tasks ran: {', '.join(parts)}."
        for what, parts in lines.items()
    ]


def _outcomes(results: Results, suite: str, model: str, language: str) -> list[str]:
    """Return the outcomes of the tasks of a suite; empty if there is no such suite."""
    outcomes = results.settings.get("benchmarks", {}).get(suite, {}).get(model, {}).get("outcomes", ())
    return [outcome["outcome"] for outcome in outcomes if language in (ALL, outcome.get("language"))]


def window_notes(results: Results, *, baseline: str | None) -> list[str]:
    """Return a line for each model whose perplexity was measured with more or less context than the baseline's.

    Without a baseline, models are compared with the first one.
    """
    read = {
        model: (about["settings"].get("window"), about["settings"].get("stride"))
        for model, about in results.settings.get("perplexity", {}).items()
        if about.get("settings")
    }
    baseline = next(iter(read), None) if baseline is None else baseline
    mine = read.get(baseline or "")
    return [
        f"{model} was read in windows of {window:,} tokens, each scoring {stride:,}, and {baseline} in "
        f"windows of {mine[0]:,} tokens, each scoring {mine[1]:,}. Part of a difference in bits or "
        "perplexity comes from this. Measure both with the same window."
        for model, (window, stride) in read.items()
        if mine is not None and (window, stride) != mine
    ]


def run_notes(runs: Mapping[str, TrainRun], *, baseline: str | None) -> list[str]:
    """Return why training runs are not compared, a line for each reason."""
    lines = []
    for name, run in runs.items():
        if run.summary is None:
            step, steps = run.rows[-1]["step"] if run.rows else 0, run.config["settings"]["steps"]
            lines.append(f"{name} is not finished: step {step:,} of {steps:,}.")
    base = runs.get(baseline or "")
    other = [name for name, run in runs.items() if base is not None and run.text != base.text]
    if other:
        lines.append(
            f"{', '.join(other)} cannot be compared with {baseline}, because they were validated on different text."
        )
    finished = [run.path for run in runs.values() if run.summary is not None]
    try:
        if len(finished) > 1:
            common_budget(finished)
    except XDogeError as error:
        lines.append(error.message)
    return lines


def _not_compared(results: Results, row: Row, other: Row | None) -> str | None:
    """Return why two values cannot be compared; None if they can."""
    if other is None:
        return None
    mine, theirs = _about(results, row.model), _about(results, other.model)
    if _is_perplexity(row):
        if row.metric == "perplexity_per_token" and mine.get("tokenizer") != theirs.get("tokenizer"):
            return "perplexity per token is not compared between tokenizers; compare bits per byte"
        if text_behind(mine, row) != text_behind(theirs, other):
            return "perplexity was measured on different text"
    if row.n != other.n:
        return "some numbers are from different numbers of documents or questions"
    if _questions(results, row) != _questions(results, other):
        return (
            "some benchmarks, or averages of them, differ in tasks, questions, examples in the prompt or chance scores"
        )
    return None


class _Resampled:
    """The metrics of models on resampled documents. They are computed when they are first used."""

    def __init__(self, results: Results) -> None:
        self._results, self._models = results, dict[tuple[str, str], Measured]()

    def stderr_of_difference(self, row: Row, other: Row) -> float | None:
        """Return the standard error of the difference of two values on the same documents; None if unknown."""
        documents = self._results.documents
        if not (_is_perplexity(row) and row.model in documents and other.model in documents):
            return None
        mine, theirs = (self._measured(model, other.model) for model in (row.model, other.model))
        a, b = (measured.estimates.get(row.key[1:]) for measured in (mine, theirs))
        named = text_behind(_about(self._results, row.model), row) or mine.sources
        alike = all(_ids(mine.sources.get(name)) == _ids(theirs.sources.get(name)) for name in named)
        current = alike and a and b and math.isclose(a.value, row.value) and math.isclose(b.value, other.value)
        return a.stderr_of_difference(b) if current and a and b else None

    def _measured(self, model: str, baseline: str) -> Measured:
        """Return a model with the resamples of the baseline."""
        if (model, baseline) not in self._models:
            used = _about(self._results, baseline).get("settings", {})
            settings = PerplexitySettings.parse(
                {key: used[key] for key in ("reference", "resamples", "seed") if key in used}, where="results.json"
            )
            self._models[model, baseline] = Measured(model, self._results.documents[model], settings, {})
        return self._models[model, baseline]


def _ids(scores: SourceScores | None) -> list[str] | int | None:
    """Return what identifies the documents for a bootstrap: their ids if all have one, else their number."""
    named = [] if scores is None else [name for name in scores.ids if name is not None]
    return None if scores is None else sorted(named) if len(named) == len(scores.ids) else len(scores.ids)


def _change(row: Row, other: Row) -> float | None:
    """Return the relative change; None for normalised scores, whose differences are shown in points."""
    return None if row.metric == NORMALISED or other.value <= 0 else (row.value - other.value) / other.value


def _is_perplexity(row: Row) -> bool:
    return row.task == PERPLEXITY or row.task.startswith(f"{PERPLEXITY}/")


def _about(results: Results, model: str) -> Mapping[str, Any]:
    about: Mapping[str, Any] = results.settings.get("perplexity", {}).get(model, {})
    return about


def _questions(results: Results, row: Row) -> set[tuple[Any, ...]]:
    """Return values that identify the questions of a row: of a task, of a group, or of an average over tasks."""
    keys = ("task", "metric", "prompts", "num_fewshot", "n", *(("chance", "max") if row.metric == NORMALISED else ()))
    return {
        tuple(outcome.get(key) for key in keys)
        for suite, models in results.settings.get("benchmarks", {}).items()
        for outcome in models.get(row.model, {}).get("outcomes", ())
        if outcome.get("outcome") == "ran"
        and row.language in (ALL, outcome.get("language"))
        and row.task in (suite, outcome.get("task"), outcome.get("group"))
    }
