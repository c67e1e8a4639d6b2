"""The input and the output of every export format."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xdoge.errors import XDogeError, importing
from xdoge.mixtures.mixture import Mixture, Share
from xdoge.names import split_source

Paths = str | Mapping[str, str]

FOLDER = "data/{language}/{source}"
"""Default template of paths, for most formats."""


@dataclass(frozen=True)
class Export:
    """A mixture in the format of another trainer.

    Attributes:
        text: content of the file.
        suffix: suffix of the file's name, such as ".yaml".
        warnings: one line, with numbers, for each way in which that trainer deviates from the mixture.
    """

    text: str
    suffix: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """A mixture to export, with what is known about the trainer's data.

    Attributes:
        mixture: the mixture.
        paths: template with {language}, {source} and {name}, or path by source. None is the format's default.
        documents: training documents per source, if known.
        sequence_length: T, tokens per sequence, if the trainer's rows are sequences.

    Raises:
        XDogeError: the sequence length or a number of documents is not possible.
    """

    mixture: Mixture
    paths: Paths | None = None
    documents: Mapping[str, int] | None = None
    sequence_length: int | None = None

    def __post_init__(self) -> None:
        """Raise XDogeError if the sequence length or a number of documents is not possible."""
        length, budget = self.sequence_length, self.mixture.budget_tokens
        if length is not None and not (isinstance(length, int) and 1 <= length <= budget):
            raise XDogeError(
                f"sequence_length is {length!r}; it must be a whole number from 1 to the budget, {budget:,}."
            )
        if self.documents is None:
            return
        for source, share in self.shares.items():
            count = self.documents.get(source)
            if count is None:
                raise XDogeError(
                    f"documents has no entry for {source!r}, which the mixture reads; add its number of documents."
                )
            if not 1 <= count <= share.available_tokens:
                raise XDogeError(
                    f"documents[{source!r}] is {count:,}; it must be from 1 to "
                    f"{share.available_tokens:,}, the tokens of the source. Count the documents of the "
                    "corpus that the mixture was planned for."
                )

    @property
    def shares(self) -> dict[str, Share]:
        """The sources that the mixture reads, in its order."""
        return {source: share for source, share in self.mixture.sources.items() if share.tokens}

    @property
    def weights(self) -> dict[str, float]:
        """Share of the run's tokens, by source."""
        return {source: share.weight for source, share in self.shares.items()}

    @property
    def passes(self) -> dict[str, float]:
        """Passes of this run over each source. They are the same for tokens, sequences and documents."""
        return {source: share.tokens / share.available_tokens for source, share in self.shares.items()}

    @property
    def rows(self) -> dict[str, float] | None:
        """Rows to draw from each source: sequences if their length is known, else documents, else None."""
        if self.sequence_length is not None:
            return {source: share.tokens / self.sequence_length for source, share in self.shares.items()}
        if self.documents is not None:
            return {source: passes * self.documents[source] for source, passes in self.passes.items()}
        return None

    @property
    def n_rows(self) -> int | None:
        """Number of rows in the budget; None if it is unknown whether rows are sequences or documents."""
        return None if self.rows is None else max(1, int(math.fsum(self.rows.values())))

    @property
    def row_weights(self) -> dict[str, float]:
        """Share of the rows, by source. They sum to 1. If nothing is known about rows, these are shares of tokens."""
        rows = self.rows or self.weights
        total = math.fsum(rows.values())
        return {source: count / total for source, count in rows.items()}

    def places(self, default: str, *, every: bool = False) -> dict[str, str]:
        """Return the path of each source.

        Args:
            default: template to use if the user gave no paths.
            every: include sources that the mixture does not read.

        Raises:
            XDogeError: the template has an unknown field, a source has no path, or two sources have the same.
        """
        paths = default if self.paths is None else self.paths
        places: dict[str, str] = {}
        for name in self.mixture.sources if every else self.shares:
            language, source = split_source(name)
            if not isinstance(paths, str):
                if name not in paths:
                    raise XDogeError(f"paths has no entry for {name!r}, which the mixture reads; add its path.")
                places[name] = paths[name]
                continue
            try:
                places[name] = paths.format(language=language, source=source, name=name)
            except (KeyError, IndexError, ValueError, AttributeError) as error:
                raise XDogeError(
                    f"paths {paths!r} is not a template; it may contain {{language}}, {{source}} and {{name}}, as in "
                    f"{default!r}."
                ) from error
        owner: dict[str, str] = {}
        for name, path in places.items():
            if owner.setdefault(path, name) != name:
                raise XDogeError(f"paths give {path!r} to both {owner[path]} and {name}; each source needs its own.")
        return places

    def unit_warnings(self) -> list[str]:
        """Return a warning if the weights are shares of tokens because nothing is known about the trainer's rows."""
        if self.rows is not None:
            return []
        return [
            "the weights are shares of tokens, but this trainer draws rows. They are right only if all "
            "rows have the same number of tokens. Give sequence_length if rows are packed sequences, or the number "
            "of documents per source if rows are documents (xdoge export: --sequence-length or --store)."
        ]

    def chance_warnings(self) -> list[str]:
        """Return a warning if random draws are expected to miss the rows of a source by more than 1 %."""
        if self.rows is None or self.n_rows is None:
            return []
        chances = self.row_weights
        spread = {source: math.sqrt((1 - p) / (self.n_rows * p)) for source, p in chances.items()}
        worst = max(spread, key=lambda source: spread[source])
        if spread[worst] <= 0.01:
            return []
        count = self.rows[worst]
        return [
            f"rows are drawn at random: {worst} gets {count:,.0f} ± {count * spread[worst]:,.0f} rows "
            f"({spread[worst]:.1%})."
        ]


def to_yaml(value: Any, *comments: str) -> str:
    """Return YAML with all digits of floats, after comment lines."""
    with importing("cli"):
        import yaml

    head = "".join(f"# {line}\n" for line in comments)
    return head + yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=math.inf)


def to_json(value: Any) -> str:
    """Return indented JSON with all digits of floats."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
