"""Rules for names of sources, languages and seeds, and how messages show other values."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable
from numbers import Integral

from xdoge.errors import XDogeError

CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters: line breaks, terminal controls, characters that reverse text, and lone surrogates."""

SEEDS = 2**32
"""Seeds are below this number in all commands. NumPy's legacy generator, which transformers seeds, has this limit."""

_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2
_SHORT.maxstring = _SHORT.maxother = 80


def shown(value: object) -> str:
    """Return `repr(value)` on one line, shortened to about a hundred characters."""
    return _SHORT.repr(value)


def check_seed(name: str, value: object) -> int:
    """Return a seed as a Python int.

    Args:
        name: beginning of the error message.
        value: Python or NumPy integer.

    Raises:
        XDogeError: `value` is not an integer from 0 to 2^32 - 1.
    """
    if isinstance(value, Integral) and not isinstance(value, bool) and 0 <= int(value) < SEEDS:
        return int(value)
    raise XDogeError(f"{name} is {shown(value)}; a seed is a whole number from 0 to {SEEDS - 1:,}.")


def language_of(source: str) -> str:
    """Return the language of a source: "eu" for "eu/wikipedia". The name of a language is returned unchanged."""
    return source.partition("/")[0]


def by_language(sources: Iterable[str]) -> dict[str, list[str]]:
    """Return the sources of each language. Languages and sources keep the order of `sources`."""
    languages: dict[str, list[str]] = {}
    for source in sources:
        languages.setdefault(language_of(source), []).append(source)
    return languages


def split_source(source: str) -> tuple[str, str]:
    """Return the language of a source and its name within the language: "eu" and "wikipedia" for "eu/wikipedia".

    The second part may contain slashes. It is empty if `source` is a language.
    """
    language, _, name = source.partition("/")
    return language, name


def check_source(source: object, *, where: str) -> None:
    """Raise an error if `source` is not a valid name, "language/source".

    Names are ASCII, since they become parts of paths and people compare them by eye. A Cyrillic а looks like a Latin a.

    Raises:
        XDogeError: the name is not valid. The message begins with `where`, such as "weights".
    """
    parts = source.split("/") if isinstance(source, str) and re.fullmatch("[ -~]+", source) else []
    if len(parts) < 2 or not {"", ".", ".."}.isdisjoint(parts):
        raise XDogeError(
            f"{where}[{ascii(source)[:100]}]: a source is named language/source, as in 'eu/wikipedia', with ASCII "
            "letters, digits and signs, and no part of it is empty, '.' or '..'."
        )


def check_text(what: str, value: object) -> None:
    """Raise an error if `value` is not a string, or contains control characters that would break a printed line.

    Raises:
        XDogeError: the value is not allowed. The message begins with `what`.
    """
    if not isinstance(value, str) or CONTROLS.search(value):
        raise XDogeError(f"{what} is {shown(value)}; it must be text on one line, without control characters.")
