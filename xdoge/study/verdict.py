"""The verdict on a study: which differences are significant, what would decide the others, and what to do next.

A difference is significant if its whole interval lies above 0 or below 0 (`xdoge.study.intervals`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from xdoge.errors import few
from xdoge.study.intervals import CONFIDENCE, MOST_SEEDS, Interval

MANY = 20
"""With at least this many differences, the verdict says how many would be significant by chance."""


def verdict(
    rows: Sequence[Mapping[str, Any]], means: Mapping[str, Interval | None], *, reference: str, languages: int
) -> list[str]:
    """Return sentences: the differences in the mean, those by language, and what to do next.

    Args:
        rows: rows of `Findings.rows`, the best first.
        means: difference of the mean over languages to `reference`, by strategy; None without common seeds.
        reference: strategy with which all others are compared.
        languages: number of languages.
    """
    intervals = {row["strategy"]: interval for row in rows if (interval := means[row["strategy"]]) is not None}
    rows = [row for row in rows if row["strategy"] in intervals]
    if not rows:
        return [
            f"No strategy has a finished model for a seed for which {reference} has one, so there is nothing "
            "to judge yet."
        ]
    if all(interval.n == 1 for interval in intervals.values()):
        return [
            f"Only one seed can be compared with {reference}, so no difference can be judged. Next: add at least two "
            "more to `seeds` and run the same command again."
        ]
    return [
        f"Mean of bits per byte against {reference}: {'; '.join(_means(intervals))}.",
        *_languages(rows),
        *_by_chance(rows, len(rows) * languages),
        f"Next: {_next(rows, intervals, reference)}",
    ]


def _means(intervals: Mapping[str, Interval]) -> list[str]:
    """Return sentences that say which strategies are better, undecided and worse in the mean."""
    same = [name for name, interval in intervals.items() if interval.mean == interval.low == interval.high == 0]
    by_sign = {
        sign: [
            name
            for name, interval in intervals.items()
            if interval.sign == sign and interval.n > 1 and name not in same
        ]
        for sign in (-1, 0, 1)
    }
    parts = []
    for sign, word in ((-1, "better"), (0, "undecided"), (1, "worse")):
        if names := by_sign[sign]:
            listed = few([f"{name} ({_difference(intervals[name], reason=not sign)})" for name in names])
            parts.append(f"{'significantly ' * bool(sign)}{word}: {listed}")
    if same:
        parts.append(f"the same models: {few(same)}")
    if single := [name for name, interval in intervals.items() if interval.n == 1]:
        parts.append(f"not judged (one seed): {few(single)}")
    return parts


def _difference(interval: Interval, *, reason: bool) -> str:
    half = 0.0 if interval.high is None else interval.high - interval.mean
    text = f"{interval.mean:+.3f} ± {half:.3f}".replace("-", "−")
    return f"{text}, {_what_decides(interval)}" if reason else text


def _what_decides(interval: Interval) -> str:
    more = interval.more_seeds
    if more is not None:
        return f"about {more} more seed{'s' * (more != 1)} would decide"
    if replace(interval, document_stderr=None).more_seeds is not None:
        return "more validation text would decide, but more seeds would not"
    return f"even {MOST_SEEDS} more seeds would not decide"


def _languages(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence that says which strategies are significantly better or worse in which languages."""
    parts = []
    for row in rows:
        changed = [f"{word} in {few(row[word])}" for word in ("better", "worse") if row[word]]
        if changed:
            parts.append(f"{row['strategy']} is {' and '.join(changed)}")
    if not parts:
        return ["No language differs significantly."]
    return [f"Significant differences by language: {few(parts, between='; ')}."]


def _by_chance(rows: Sequence[Mapping[str, Any]], count: int) -> list[str]:
    if count < MANY:
        return []
    significant = sum(len(row["better"]) + len(row["worse"]) for row in rows)
    return [
        f"{significant} of {count} differences by language are significant; by chance alone, about "
        f"{(1 - CONFIDENCE) * count:.0f} would be."
    ]


def _next(rows: Sequence[Mapping[str, Any]], intervals: Mapping[str, Interval], reference: str) -> str:
    best = next((row for row in rows if intervals[row["strategy"]].sign < 0), None)
    if best is not None:
        but = f", unless {few(best['worse'])} matters more to you than the mean" if best["worse"] else ""
        return f"use {best['strategy']}{but}."
    needed = {name: interval.more_seeds for name, interval in intervals.items() if interval.mean < 0}
    if enough := {name: more for name, more in needed.items() if more is not None}:
        name = min(enough, key=enough.__getitem__)
        return (
            f"keep {reference} for now; to decide about {name}, add {enough[name]} more to `seeds` and "
            "run the same command again."
        )
    return f"keep {reference}; no strategy is significantly better."
