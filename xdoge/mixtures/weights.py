"""Weights: the share of the training tokens that each source of each language gets."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from xdoge.errors import XDogeError, importing, names_that_differ
from xdoge.io import read_json, sha256_json, write_json
from xdoge.names import check_source, check_text, language_of, shown, split_source

if TYPE_CHECKING:
    import pandas as pd

SUM_TOLERANCE = 1e-5
"""Allowed distance of the sum from 1. Twenty weights written with six decimals can have a sum that is off by this."""

Metric = Literal["total_variation", "kl", "jensen_shannon"]
Level = Literal["languages", "sources"]


@dataclass(frozen=True, repr=False)
class WeightSet:
    """Share of the training tokens for each source, with a record of how the shares were computed.

    A source is named "language/source". `weights["es/web"]` is the weight of a source, and `weights["es"]` that of a
    language. All fields are read-only.

    Args:
        name: name of the set in tables.
        sources: weight of each source, >= 0. The weights sum to 1 within 1e-5, and are never rescaled.
        floor: smallest weight that the fit allowed for a trained source.
        method: all settings of the fit.
        proxy: the proxy model with which the weights were learned.
        corpus: name, SHA-256 and tokens of the token store.
        spread: for an average of several sets: names of the sets, and standard deviation, minimum and maximum of each
            weight. Otherwise None.
        xdoge_version: version of xdoge that made the set.
        created: time at which the set was made, ISO 8601, UTC.

    Raises:
        XDogeError: a name has no language, a weight is negative or not finite, or the sum is not 1.
    """

    name: str
    sources: Mapping[str, float]
    floor: float = 0.0
    method: Mapping[str, Any] = field(default_factory=dict)
    proxy: Mapping[str, Any] = field(default_factory=dict)
    corpus: Mapping[str, Any] = field(default_factory=dict)
    spread: Mapping[str, Any] | None = None
    xdoge_version: str = ""
    created: str = ""

    def __post_init__(self) -> None:
        """Check the weights and freeze every mapping."""
        name = shown(self.name)
        if not self.sources:
            raise XDogeError(f"weights {name} name no source.")
        for source, weight in self.sources.items():
            check_source(source, where="weights")
            if isinstance(weight, bool) or not isinstance(weight, int | float | np.floating):
                raise XDogeError(f"weights[{source!r}] is {shown(weight)}, not a number.")
            if not 0 <= weight < math.inf:
                raise XDogeError(f"weights[{source!r}] is {shown(weight)}; weights must be >= 0 and sum to 1.")
        total = math.fsum(self.sources.values())
        if abs(total - 1) > SUM_TOLERANCE:
            raise XDogeError(
                f"weights {name} sum to {total:.9g}; they must sum to 1 within {SUM_TOLERANCE:g}. "
                f"Divide each by {total:.9g} if their proportions are meant."
            )
        object.__setattr__(self, "sources", {source: float(weight) for source, weight in self.sources.items()})
        for key, kind in _KINDS.items():
            value = getattr(self, key)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise XDogeError(f"weights {name}: {key} is {shown(value)}, which has the wrong type.")
            if kind is str:
                check_text(key, value)
            object.__setattr__(self, key, _frozen(value))
        if not 0 <= self.floor < 1:
            raise XDogeError(f"weights {name}: floor is {shown(self.floor)}; it must be >= 0 and below 1.")
        for (key, part), kind in _PARTS.items():
            if not isinstance(value := getattr(self, key).get(part, kind()), kind):
                raise XDogeError(f"weights {name}: {key}.{part} is {shown(value)}, which has the wrong type.")
        if self.spread is not None:
            _check_deviation(name, "spread", self.spread, self.sources)
            if "languages" in self.spread:
                _check_deviation(name, "spread.languages", self.spread["languages"], self.languages)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy by the constructor's arguments, as plain values."""
        return type(self), tuple(_plain(getattr(self, key)) for key in _KINDS)

    def __hash__(self) -> int:
        """Hash the name and the weights, which are the same in equal sets."""
        return hash((self.name, tuple(self.sources.items())))

    @property
    def nested(self) -> dict[str, dict[str, float]]:
        """Weights by language and source: {"es": {"web": 0.2, "wikipedia": 0.1}, ...}."""
        tree: dict[str, dict[str, float]] = {}
        for source, weight in self.sources.items():
            language, name = split_source(source)
            tree.setdefault(language, {})[name] = weight
        return tree

    @property
    def languages(self) -> dict[str, float]:
        """Weight of each language: the sum over its sources."""
        return {language: math.fsum(sources.values()) for language, sources in self.nested.items()}

    def __getitem__(self, name: str) -> float:
        """Return the weight of a source ("es/web") or of a language ("es")."""
        weight = (self.sources if "/" in name else self.languages).get(name)
        if weight is None:
            raise KeyError(f"{name!r}; known: {', '.join([*self.languages, *self.sources])}")
        return weight

    def distance(self, other: WeightSet, *, metric: Metric = "total_variation", level: Level = "sources") -> float:
        """Return the distance between this set, p, and another, q.

        Args:
            other: a set of the same sources (or the same languages, for level "languages"), in any order.
            metric: "total_variation" is ½ Σ |p - q|, from 0 to 1: the share of tokens that would have to move. "kl" is
                Σ p ln(p / q) in nats, infinite if q is 0 where p is not. "jensen_shannon" is the mean KL divergence of
                both sets from their midpoint in nats, from 0 to ln 2.
            level: compare the weights of "sources" or of "languages".

        Raises:
            XDogeError: the sets name different sources, or the metric is unknown.
        """
        mine, theirs = (self.sources, other.sources) if level == "sources" else (self.languages, other.languages)
        _same_names(self.name, mine, other.name, theirs)
        p = np.array(list(mine.values()))
        q = np.array([theirs[name] for name in mine])
        if metric == "total_variation":
            return float(np.abs(p - q).sum() / 2)
        if metric == "kl":
            return _kl(p, q)
        if metric == "jensen_shannon":
            return (_kl(p, (p + q) / 2) + _kl(q, (p + q) / 2)) / 2
        raise XDogeError(f"metric is {metric!r}; it must be total_variation, kl or jensen_shannon.")

    @classmethod
    def average(cls, sets: Sequence[WeightSet], *, name: str = "average") -> Self:
        """Return the mean of several sets. Its `spread` describes how much they differ, by source and by language.

        The sets must have the same floor and corpus, which the mean keeps. Settings of method and proxy are kept if all
        sets have the same value. Others, such as the seed, are left out.

        Raises:
            XDogeError: `sets` is empty, or the sets differ in sources, corpus or floor.
        """
        if not sets:
            raise XDogeError("there is no weight set to average.")
        first = sets[0]
        for other in sets[1:]:
            _same_names(first.name, first.sources, other.name, other.sources)
            if (other.corpus.get("sha256"), other.floor) != (first.corpus.get("sha256"), first.floor):
                raise XDogeError(f"weights {first.name!r} and {other.name!r} differ in corpus or floor.")
        return cls(
            name=name,
            sources={
                source: math.fsum(weights.sources[source] for weights in sets) / len(sets) for source in first.sources
            },
            floor=first.floor,
            method=_common([weights.method for weights in sets]),
            proxy=_common([weights.proxy for weights in sets]),
            corpus=first.corpus,
            spread={
                "sets": len(sets),
                **_spread([weights.sources for weights in sets]),
                "languages": _spread([weights.languages for weights in sets]),
                "weights": [{"name": weights.name, "sha256": sha256_json(weights.to_dict())} for weights in sets],
            },
            xdoge_version=first.xdoge_version,
            created=max(weights.created for weights in sets),
        )

    def save(self, path: Path | str) -> None:
        """Write weights.json. `load` returns exactly the same numbers."""
        write_json(Path(path), self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return the content of weights.json."""
        return {
            "schema": "xdoge.weights/1",
            "name": self.name,
            "sources": _plain(self.sources),
            "languages": self.languages,
            **{key: _plain(getattr(self, key)) for key in _KINDS if key not in ("name", "sources")},
        }

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Return the weights in a file, or in the run folder of a fit.

        Raises:
            XDogeError: the file is missing, the fit is not finished, the file is of another kind or of a newer schema,
                or its numbers are inconsistent.
        """
        path = Path(path)
        if path.is_dir():
            if not (path / "weights.json").exists():
                unfinished = (path / "config.yaml").exists()
                hint = "its fit is not finished; resume it first" if unfinished else "it is not the run of a fit"
                raise XDogeError(f"{path} has no weights.json: {hint}.")
            path = path / "weights.json"
        value = read_json(path, schema="xdoge.weights", version=1)
        try:
            languages = dict(value.pop("languages"))
            del value["schema"]
            weights = cls(**value)
            sums = weights.languages
            for language in languages | sums:
                stated, actual = languages.get(language, 0.0), sums.get(language, 0.0)
                if not abs(actual - stated) <= SUM_TOLERANCE:
                    raise XDogeError(
                        f"languages[{shown(language)}] is {shown(stated)}, but its sources sum to {actual:.9g}."
                    )
        except XDogeError as error:
            raise XDogeError(f"{path}: {error.message}") from error
        except (TypeError, AttributeError, ValueError, KeyError, OverflowError, RecursionError) as error:
            raise XDogeError(f"{path} is not a weight set: {error}.") from error
        return weights

    def to_frame(self) -> pd.DataFrame:
        """Return one row per source, with the columns language, source, weight and language_weight.

        If the set is an average, there is also a column standard_deviation.
        """
        with importing("analysis"):
            import pandas as pd
        languages = self.languages
        deviation = (self.spread or {}).get("standard_deviation", {})
        rows = [
            {
                "language": language_of(source),
                "source": source,
                "weight": weight,
                "language_weight": languages[language_of(source)],
                **({"standard_deviation": deviation[source]} if deviation else {}),
            }
            for source, weight in self.sources.items()
        ]
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        """Return the name, the number of sources and the weight of each language, largest first."""
        shares = ", ".join(f"{name} {weight:.3f}" for name, weight in _descending(self.languages))
        count = len(self.sources)
        return f"WeightSet({self.name!r}, {count} source{'s' * (count != 1)}: {shares})"

    def _repr_html_(self) -> str:
        """Return the HTML table that Jupyter shows: languages, largest first, with their sources."""
        rows = []
        languages = self.languages
        for language, total in _descending(languages):
            rows.append(f'<tr><th scope="row">{html.escape(language)}</th><th>{total:.4f}</th></tr>')
            for source, weight in _descending(self.nested[language]):
                rows.append(f"<tr><td>{html.escape(f'{language}/{source}')}</td><td>{weight:.4f}</td></tr>")
        caption = f"<caption>{html.escape(self.name)}: share of training tokens</caption>"
        head = '<tr><th scope="col">source</th><th scope="col">weight</th></tr>'
        return f"<table>{caption}<thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"


_KINDS: dict[str, Any] = {
    "name": str,
    "sources": Mapping,
    "floor": int | float,
    "method": Mapping,
    "proxy": Mapping,
    "corpus": Mapping,
    "spread": Mapping | None,
    "xdoge_version": str,
    "created": str,
}
"""Allowed types of each field of `WeightSet`, in the order of its arguments."""


_PARTS: dict[tuple[str, str], Any] = {
    ("method", "baseline"): str,
    ("proxy", "name"): str,
    ("proxy", "parameters"): int,
    ("proxy", "tokens_seen"): int,
    ("corpus", "name"): str,
    ("corpus", "sha256"): str,
}
"""Types of the entries that tables and cards show. Each entry may be missing."""


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return MappingProxyType({key: _frozen(item) for key, item in value.items()})
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return list(map(_plain, value)) if isinstance(value, tuple) else value


def _kl(p: np.ndarray[Any, np.dtype[np.float64]], q: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    held = p > 0
    if np.any(q[held] == 0):
        return math.inf
    return max(0.0, float(np.sum(p[held] * np.log(p[held] / q[held]))))


def _same_names(name: str, mine: Mapping[str, float], other: str, theirs: Mapping[str, float]) -> None:
    if differing := names_that_differ(name, mine, other, theirs):
        raise XDogeError(f"weights {name!r} and {other!r} name different sources; {differing}.")


def _descending(weights: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(weights.items(), key=lambda item: -item[1])


def _common(settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first, *rest = settings
    return {key: value for key, value in first.items() if all(other.get(key) == value for other in rest)}


def _check_deviation(name: str, where: str, spread: Any, weights: Mapping[str, float]) -> None:
    """Raise XDogeError unless the standard deviations, which tables show, are numbers with the names of the weights."""
    deviation = spread.get("standard_deviation", {}) if isinstance(spread, Mapping) else None
    if (
        not isinstance(deviation, Mapping)
        or (deviation and deviation.keys() != weights.keys())
        or not all(isinstance(number, int | float) for number in deviation.values())
    ):
        raise XDogeError(f"weights {name}: {where}.standard_deviation is not one number for each of its names.")


def _spread(tables: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Return standard deviation, minimum and maximum of each name's weight over several sets."""
    values = {name: np.array([table[name] for table in tables]) for name in tables[0]}  # (n,) each
    return {
        "standard_deviation": {name: float(n.std(ddof=1)) if len(n) > 1 else 0.0 for name, n in values.items()},
        "least": {name: float(n.min()) for name, n in values.items()},
        "greatest": {name: float(n.max()) for name, n in values.items()},
    }
