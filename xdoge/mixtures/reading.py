"""Read weights from weights.json, the run folder of a fit, JSON {name: weight}, or a CSV file with one mixture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from xdoge.errors import XDogeError, names_that_differ
from xdoge.io import read_json
from xdoge.mixtures.csv_files import read_mixture
from xdoge.mixtures.strategies import spread_by_size
from xdoge.mixtures.weights import WeightSet
from xdoge.names import language_of


def read_weights(path: Path | str) -> WeightSet | dict[str, float]:
    """Return the weights in a file, as a `WeightSet`, or as a mapping by source or by language.

    Raises:
        XDogeError: the file cannot be read, or has something else than a number for a weight.
    """
    path = Path(path)
    if path.suffix == ".csv":
        return read_mixture(path)
    if path.is_dir() or "schema" in (value := read_json(path)):
        return WeightSet.load(path)
    for name, weight in value.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise XDogeError(f"{path}: {name} is {weight!r}, not a weight.")
    return value


def read_source_weights(path: Path | str, token_counts: Mapping[str, int]) -> WeightSet:
    """Return the weights in a file by source. The weight of a language is divided among its sources by their tokens.

    Args:
        path: file that `read_weights` can read.
        token_counts: tokens of each source.

    Raises:
        XDogeError: as for `read_weights`. Or a language has no source, or the weights do not sum to 1.
    """
    weights = read_weights(path)
    if isinstance(weights, WeightSet):
        return weights
    by_language = not any("/" in name for name in weights)
    languages = dict.fromkeys(map(language_of, token_counts))
    if by_language and (difference := names_that_differ(str(path), weights, "the store", languages)):
        raise XDogeError(f"{path} has other languages: {difference}.")
    try:
        return WeightSet(Path(path).stem, spread_by_size(weights, token_counts) if by_language else weights)
    except XDogeError as error:
        raise XDogeError(f"{path}: {error.message}") from error
