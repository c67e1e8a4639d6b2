"""Which sources belong to which evaluation, by their names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from xdoge.errors import XDogeError, argument
from xdoge.names import language_of


def match_own(
    sources: Sequence[str], evaluations: Sequence[str], assigned: Iterable[tuple[str, str]] = ()
) -> tuple[tuple[int, ...], ...]:
    """Return the indices of each evaluation's own sources, or an empty tuple if no name matches.

    Prefixes and suffixes that all names of a file share are removed before names are compared. An evaluation that is
    named like a language also owns the sources of that language: `eu` owns `eu/...`.

    Args:
        sources: k names.
        evaluations: L names.
        assigned: pairs (evaluation, source) from the user. They replace the matches by name.

    Raises:
        XDogeError: a pair names an evaluation or a source that does not exist.
    """
    plain_sources, plain_evaluations = plain_names(sources), plain_names(evaluations)
    own: list[set[int]] = []
    for name, full in zip(plain_evaluations, evaluations, strict=True):
        matches = {i for i, source in enumerate(plain_sources) if source == name or sources[i] == full}
        if not matches:
            matches = {i for i, source in enumerate(sources) if language_of(source) in (name, full)}
        own.append(matches)
    replaced: dict[int, set[int]] = {}
    for evaluation, source in assigned:
        row = _place(evaluation, evaluations, plain_evaluations, "evaluation")
        replaced.setdefault(row, set()).add(_place(source, sources, plain_sources, "source"))
    for row, columns in replaced.items():
        own[row] = columns
    return tuple(tuple(sorted(columns)) for columns in own)


def plain_names(names: Sequence[str]) -> list[str]:
    """Return names without the prefix and the suffix that all of them share, up to a separator."""
    if len(names) < 2:
        return list(names)
    head = _common(names)
    tail = _common([name[::-1] for name in names])
    return [name[head : len(name) - tail] if head + tail < len(name) else name for name in names]


def _common(names: Sequence[str]) -> int:
    """Return the length of the names' common prefix, up to and including its last separator."""
    first, last = min(names), max(names)
    length = 0
    while length < min(len(first), len(last)) and first[length] == last[length]:
        length += 1
    return max((i + 1 for i in range(length) if first[i] in "/_-. :"), default=0)


def _place(name: str, names: Sequence[str], plain: Sequence[str], what: str) -> int:
    for table in (names, plain):
        if name in table:
            return list(table).index(name)
    raise XDogeError(f"{argument('own')}: there is no {what} {name!r}; {what}s are {', '.join(plain[:8])}, ...")
