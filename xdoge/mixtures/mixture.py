"""A mixture states how many training tokens a run reads from each source, and how often the run repeats the source.

`Mixture.plan` turns weights into whole numbers of tokens and limits repetition. mixture.json stores the result.
"""

from __future__ import annotations

import datetime
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

from xdoge._version import __version__
from xdoge.errors import XDogeError, importing
from xdoge.io import read_json, sha256_json, write_json
from xdoge.mixtures.allocation import Allocation, allocate, allocate_by_language, epoch_cap
from xdoge.mixtures.checks import check_level, check_names, check_numbers, is_count, refuse_unspendable, whole_sequences
from xdoge.mixtures.strategies import spread_by_size, with_zeros
from xdoge.mixtures.weights import SUM_TOLERANCE, Level, WeightSet
from xdoge.names import check_seed, check_source, check_text, language_of, shown

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = "xdoge.mixture"

DEFAULT_MAX_EPOCHS = 4.0
"""Up to four passes are worth almost as much as new text (Muennighoff et al. 2023, arXiv:2305.16264, section 5)."""

LITTLE_READ = 0.01
"""`Mixture.warnings` reports a source if the run reads less than this fraction of its text."""

LARGE_CUT = 0.25
"""`Mixture.warnings` reports a language if caps cut its learned weight by more than this fraction."""


@dataclass(frozen=True)
class Share:
    """What a run reads of one source, or of all sources of one language.

    Attributes:
        learned_weight: weight before caps and rounding. For a language, the sum over its sources.
        weight: share of the budget, tokens / budget.
        tokens: tokens that this run reads.
        available_tokens: unique training tokens of the source.
        read_before: tokens that earlier phases of training read.
        max_epochs: most passes over the source, including earlier phases. None without a cap, and for a language.
        capped: whether the cap limits the tokens. For a language, whether the cap of any source does.
    """

    learned_weight: float
    weight: float
    tokens: int
    available_tokens: int
    read_before: int = 0
    max_epochs: float | None = None
    capped: bool = False

    @property
    def epochs(self) -> float:
        """Passes over the text at the end of the run, including those of earlier phases."""
        read = self.read_before + self.tokens
        return read / self.available_tokens if self.available_tokens else (math.inf if read else 0.0)

    @property
    def moved(self) -> float:
        """Change of the weight by caps and rounding: weight - learned_weight."""
        return self.weight - self.learned_weight

    @property
    def unread(self) -> float:
        """Fraction of the text that no phase has read at the end of the run."""
        return max(0.0, 1.0 - self.epochs)


@dataclass(frozen=True, repr=False)
class Mixture:
    """Tokens that a run reads from each source. They sum to the budget exactly.

    Make one with `Mixture.plan` or read one with `Mixture.load`.

    Args:
        name: name of the mixture in tables.
        budget_tokens: training tokens of the run.
        max_epochs: most passes over a source that has no cap of its own; None without one.
        seed: default seed of `MixtureSampler`, which decides the order of sequences.
        sources: what is read of each "language/source".
        level: how tokens that a cap cuts are redistributed; see `plan`.
        weights: name and SHA-256 of the weights that the mixture was planned from.
        corpus: name and SHA-256 of the token store whose tokens are available; empty without a store.
        min_share: smallest share of the budget that was asked for each source.
        sequence_length: T, if only whole sequences of T tokens were counted as available; None otherwise.
        xdoge_version: version of xdoge that made the mixture.
        created: time at which the mixture was made, ISO 8601, UTC.

    Raises:
        XDogeError: a value has the wrong type, is out of range, or the tokens do not sum to the budget.
    """

    name: str
    budget_tokens: int
    max_epochs: float | None
    seed: int
    sources: Mapping[str, Share]
    level: Level = "sources"
    weights: Mapping[str, Any] = field(default_factory=dict)
    corpus: Mapping[str, Any] = field(default_factory=dict)
    min_share: float = 0.0
    sequence_length: int | None = None
    xdoge_version: str = ""
    created: str = ""

    def __post_init__(self) -> None:
        """Check that the values are valid and consistent, and freeze the mappings."""
        for source, share in self.sources.items():
            check_source(source, where="sources")
            for name in ("tokens", "available_tokens", "read_before"):
                if not is_count(value := getattr(share, name)):
                    raise XDogeError(f"sources[{source!r}].{name} is {shown(value)}; it must be a whole number >= 0.")
            for name, kind in _KINDS.items():
                value = getattr(share, name)
                if not isinstance(value, kind) or (name != "capped" and isinstance(value, bool)):
                    raise XDogeError(f"sources[{source!r}].{name} is {shown(value)}, which has the wrong type.")
            if not 0 <= (value := share.learned_weight) <= 1 + SUM_TOLERANCE:
                raise XDogeError(f"sources[{source!r}].learned_weight is {shown(value)}; a share is from 0 to 1.")
            if share.max_epochs is not None and not 0 <= share.max_epochs < math.inf:
                raise XDogeError(f"sources[{source!r}].max_epochs is {shown(share.max_epochs)}; it must be >= 0.")
            if share.tokens and not share.available_tokens:
                raise XDogeError(f"sources[{source!r}] has no tokens, but {share.tokens:,} are to be read of it.")
        check_numbers(self.budget_tokens, self.max_epochs, self.min_share, sources=1)
        for name in ("name", "xdoge_version", "created"):
            check_text(name, getattr(self, name))
        check_seed("seed", self.seed)
        if not isinstance(self.sequence_length, int | None) or isinstance(self.sequence_length, bool):
            raise XDogeError(f"sequence_length is {shown(self.sequence_length)}, which has the wrong type.")
        if self.sequence_length is not None and self.sequence_length < 1:
            raise XDogeError(f"sequence_length is {self.sequence_length}; it must be a whole number >= 1.")
        check_level(self.level)
        total = sum(share.tokens for share in self.sources.values())
        if total != self.budget_tokens:
            raise XDogeError(f"the sources' tokens sum to {total:,}, not to budget_tokens {self.budget_tokens:,}.")
        for key in ("sources", "weights", "corpus"):
            if not isinstance(getattr(self, key), Mapping):
                raise XDogeError(f"{key} is {shown(getattr(self, key))}, which has the wrong type.")
            object.__setattr__(self, key, MappingProxyType(dict(getattr(self, key))))
        for key, part in itertools.product(("weights", "corpus"), ("name", "sha256")):
            check_text(f"{key}.{part}", getattr(self, key).get(part, ""))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy by the constructor's arguments, as plain values."""
        values = (getattr(self, name) for name in self.__dataclass_fields__)
        return type(self), tuple(dict(value) if isinstance(value, Mapping) else value for value in values)

    @classmethod
    def plan(  # more than 8 arguments: the result depends on each of these
        cls,
        weights: WeightSet | Mapping[str, float],
        *,
        available_tokens: Mapping[str, int],
        budget_tokens: int,
        max_epochs: float | None = DEFAULT_MAX_EPOCHS,
        caps: Mapping[str, float] | None = None,
        read_before: Mapping[str, int] | None = None,
        min_share: float = 0.0,
        level: Level | None = None,
        seed: int = 0,
        name: str | None = None,
        corpus: Mapping[str, Any] | None = None,
        sequence_length: int | None = None,
        rest_zero: bool = False,
    ) -> Self:
        """Return a mixture whose tokens are in proportion to the weights, except where a cap or a floor binds.

        Args:
            weights: a `WeightSet`, or a mapping of weights that sum to 1. Its keys are sources ("language/source") or
                languages. The weight of a language is divided among its sources in proportion to their tokens.
            available_tokens: unique training tokens per source, for example `TokenStore.tokens()`.
            budget_tokens: tokens that the run trains on.
            max_epochs: most passes over any source. None means no cap.
            caps: passes for single sources, or for every source of a language, in place of `max_epochs`.
            read_before: tokens per source that earlier phases of training read. They count towards the caps.
            min_share: smallest share of the budget of each source with a weight above 0. A source whose cap allows
                less gets what the cap allows.
            level: "sources" gives tokens that a cap cuts to all other sources in proportion to their weights.
                "languages" gives them to other sources of the same language first. Default: "languages" if the
                weights are by language, else "sources".
            seed: default seed of `MixtureSampler`.
            name: name of the mixture, by default that of the weights.
            corpus: name and SHA-256 of the store that `available_tokens` comes from.
            sequence_length: T, to count only whole sequences of T tokens as available, as a data loader does.
            rest_zero: give weight 0 to languages or sources that `weights` leaves out. By default they are an error.

        Raises:
            XDogeError: the names do not match, a number is out of range, or the caps leave part of the budget unspent.
                In the last case the message gives the smallest `max_epochs` that is enough.

        Source: docs/explanation/method.md, "Allocation"; Chung et al. 2023, arXiv:2304.09151, for uniform weights.
        """
        by_language = not isinstance(weights, WeightSet) and not any("/" in name for name in weights)
        if rest_zero:
            weights = with_zeros(weights, available_tokens)
        if not isinstance(weights, WeightSet):
            shares = spread_by_size(weights, available_tokens) if by_language else weights
            weights = WeightSet(name=name or "weights", sources=shares)
        level = level or ("languages" if by_language else "sources")
        if sequence_length is not None:
            available_tokens = whole_sequences(available_tokens, sequence_length)
        caps, read_before = caps or {}, read_before or {}
        before = {source: read_before.get(source, 0) for source in available_tokens}
        check_names(weights, available_tokens, caps, read_before, level)
        check_numbers(
            budget_tokens, max_epochs, min_share, sources=sum(weight > 0 for weight in weights.sources.values())
        )
        passes = {source: caps.get(source, caps.get(language_of(source), max_epochs)) for source in available_tokens}
        most = {
            source: max(0, epoch_cap(available_tokens[source], limit) - before[source])
            for source, limit in passes.items()
            if limit is not None
        }
        learned = {source: weights.sources[source] for source in available_tokens}
        refuse_unspendable(learned, budget_tokens, most, available_tokens, before, caps, max_epochs)
        least = epoch_cap(budget_tokens, min_share)
        floors = {source: min(least, most.get(source, least)) for source, weight in learned.items() if weight}
        solve = allocate if level == "sources" else allocate_by_language
        allocation: Allocation = solve(learned, budget_tokens, caps=most, floors=floors)
        return cls(
            name=name or weights.name,
            budget_tokens=budget_tokens,
            max_epochs=max_epochs,
            seed=seed,
            sources={
                source: Share(
                    learned_weight=learned[source],
                    weight=tokens / budget_tokens,
                    tokens=tokens,
                    available_tokens=available_tokens[source],
                    read_before=before[source],
                    max_epochs=passes[source],
                    capped=source in allocation.capped,
                )
                for source, tokens in allocation.counts.items()
            },
            level=level,
            weights={"name": weights.name, "sha256": sha256_json(weights.to_dict())},
            corpus=corpus or {},
            min_share=min_share,
            sequence_length=sequence_length,
            xdoge_version=__version__,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )

    @property
    def languages(self) -> dict[str, Share]:
        """What the run reads of each language: sums over its sources."""
        grouped: dict[str, list[Share]] = {}
        for source, share in self.sources.items():
            grouped.setdefault(language_of(source), []).append(share)
        return {
            language: Share(
                learned_weight=math.fsum(share.learned_weight for share in shares),
                weight=sum(share.tokens for share in shares) / self.budget_tokens,
                tokens=sum(share.tokens for share in shares),
                available_tokens=sum(share.available_tokens for share in shares),
                read_before=sum(share.read_before for share in shares),
                capped=any(share.capped for share in shares),
            )
            for language, shares in grouped.items()
        }

    def warnings(self) -> list[str]:
        """Return one line per kind of problem, with the affected sources or languages and their numbers.

        The kinds are: caps overrule the weights, a cap is below `min_share`, too many passes, text that is hardly read,
        and weights that round to no token.
        """
        shares = self.sources
        repeated = {name: share.epochs for name, share in shares.items() if share.epochs > DEFAULT_MAX_EPOCHS}
        hardly = {
            name: f"{share.epochs:.2%}" for name, share in shares.items() if share.tokens and share.epochs < LITTLE_READ
        }
        never = {
            name: f"weight {share.learned_weight:.3g}"
            for name, share in shares.items()
            if share.learned_weight > 0 == share.tokens
        }
        cut = {
            name: 1 - share.weight / share.learned_weight
            for name, share in self.languages.items()
            if share.capped and share.weight < (1 - LARGE_CUT) * share.learned_weight
        }
        short = {
            name: f"{share.weight:.4g}"
            for name, share in shares.items()
            if share.learned_weight and share.weight < self.min_share - 1 / self.budget_tokens
        }
        moved = math.fsum(abs(share.weight - share.learned_weight) for share in shares.values()) / 2
        kinds = {
            f"caps overrule the weights for more than {LARGE_CUT:.0%} of the budget": (
                {"in total": f"{moved:.1%}"} if moved > LARGE_CUT else {}
            ),
            f"a cap allows less than min_share {self.min_share:g}": short,
            f"read more than {DEFAULT_MAX_EPOCHS:g} times; repeated text is then worth much less than new text": {
                name: f"{epochs:.1f} times" for name, epochs in _largest_first(repeated)
            },
            f"less than {LITTLE_READ:.0%} of the text is read": hardly,
            "gets no token": never,
            f"caps cut the weight by more than {LARGE_CUT:.0%}": {
                name: f"by {part:.0%}" for name, part in _largest_first(cut)
            },
        }
        return [
            f"{kind}: {', '.join(f'{name} {number}' for name, number in numbers.items())}."
            for kind, numbers in kinds.items()
            if numbers
        ]

    def save(self, path: Path | str) -> None:
        """Write mixture.json. `load` returns exactly the same numbers."""
        write_json(Path(path), self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return the content of mixture.json."""
        return {
            "schema": f"{SCHEMA}/1",
            "name": self.name,
            "budget_tokens": self.budget_tokens,
            "max_epochs": self.max_epochs,
            "seed": self.seed,
            "level": self.level,
            "min_share": self.min_share,
            "sequence_length": self.sequence_length,
            "sources": {source: _entry(share) for source, share in self.sources.items()},
            "languages": {language: _entry(share) for language, share in self.languages.items()},
            "weights": dict(self.weights),
            "corpus": dict(self.corpus),
            "xdoge_version": self.xdoge_version,
            "created": self.created,
        }

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Return the mixture in a file, or in the folder of a training run.

        Raises:
            XDogeError: the file is missing, of another kind or of a newer schema, or its numbers are inconsistent.
        """
        path = Path(path) / "mixture.json" if Path(path).is_dir() else Path(path)
        value = read_json(path, schema=SCHEMA, version=1)
        try:
            entries, languages = value.pop("sources"), value.pop("languages")
            for key in ("schema", *PRINTED):
                value.pop(key, None)
            stated = {source: {name: entry.pop(name) for name in _DERIVED} for source, entry in entries.items()}
            mixture = cls(sources={source: Share(**entry) for source, entry in entries.items()}, **value)
            for source, share in mixture.sources.items():
                _same(f"sources[{source!r}].weight", share.weight, share.tokens / mixture.budget_tokens)
                for name, value in stated[source].items():
                    _same(f"sources[{source!r}].{name}", value, getattr(share, name))
            if languages != {language: _entry(share) for language, share in mixture.languages.items()}:
                raise XDogeError("languages are not the sums over the sources.")
        except XDogeError as error:
            raise XDogeError(f"{path}: {error.message}") from error
        except (TypeError, AttributeError, ValueError, KeyError) as error:
            raise XDogeError(f"{path} is not a mixture: {error}.") from error
        return mixture

    def to_frame(self) -> pd.DataFrame:
        """Return one row per source, with the columns of mixture.json."""
        with importing("analysis"):
            import pandas as pd
        return pd.DataFrame(
            {"language": language_of(source), "source": source, **_entry(share)}
            for source, share in self.sources.items()
        )

    def __repr__(self) -> str:
        """Return the name, the budget and the share of each language, largest first."""
        shares = sorted(self.languages.items(), key=lambda item: -item[1].tokens)
        text = ", ".join(f"{language} {share.weight:.3f}" for language, share in shares)
        return f"Mixture({self.name!r}, {self.budget_tokens:,} tokens: {text})"


PRINTED = ("law", "verdict")
"""Keys that `xdoge mix --json` prints in addition to those of mixture.json."""

_DERIVED = ("epochs", "moved", "unread")
"""Keys of a source in mixture.json that are computed from the fields of `Share`."""

_KINDS: dict[str, Any] = {
    "learned_weight": float | int,
    "weight": float | int,
    "max_epochs": float | int | None,
    "capped": bool,
}
"""Allowed types of the fields of `Share` that are not counts."""


def as_epochs(epochs: float) -> str:
    """Return a number of epochs for a table: two decimals, or two significant digits below 0.1."""
    return f"{epochs:.2f}" if epochs >= 0.1 else f"{epochs:.2g}"


def _largest_first(numbers: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(numbers.items(), key=lambda item: -item[1])


def _entry(share: Share) -> dict[str, Any]:
    names = ("weight", "tokens", "available_tokens", "epochs", "max_epochs", "capped", "learned_weight", "read_before")
    return {name: getattr(share, name) for name in (*names, "moved", "unread")}


def _same(what: str, stated: float, actual: float) -> None:
    if stated != actual:
        raise XDogeError(f"{what} is {shown(stated)}, but the tokens make it {actual}.")
