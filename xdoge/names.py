"""What things may be called, and how a message shows what a file holds instead."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable
from numbers import Integral

from xdoge.errors import XDogeError

CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Line breaks, what steers a terminal, what reverses the text around it, and halves of characters."""

SEEDS = 2**32
"""Seeds are below this, in all commands: NumPy's older generator, which transformers seeds too, takes no others."""

_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2
_SHORT.maxstring = _SHORT.maxother = 80


def shown(value: object) -> str:
    """Return a value as Python writes it, on one line and cut to some hundred characters."""
    return _SHORT.repr(value)


def check_seed(name: str, value: object) -> int:
    """Return a seed, one of Python's or NumPy's whole numbers, as Python's.

    Raises:
        XDogeError: it is something else, or not from 0 to 2^32 - 1.
    """
    if isinstance(value, Integral) and not isinstance(value, bool) and 0 <= int(value) < SEEDS:
        return int(value)
    raise XDogeError(f"{name} is {shown(value)}; a seed is a whole number from 0 to {SEEDS - 1:,}.")


def language_of(source: str) -> str:
    """Return the language of a source: "eu" of "eu/wikipedia". A language stays as it is."""
    return source.partition("/")[0]


def by_language(sources: Iterable[str]) -> dict[str, list[str]]:
    """Return the sources of each language, both in the order of `sources`."""
    languages: dict[str, list[str]] = {}
    for source in sources:
        languages.setdefault(language_of(source), []).append(source)
    return languages


def split_source(source: str) -> tuple[str, str]:
    """Return language and own name of a source: "eu" and "wikipedia" of "eu/wikipedia".

    The own name may contain slashes. It is empty if `source` is a language.
    """
    language, _, name = source.partition("/")
    return language, name


def check_source(source: object, *, where: str) -> None:
    """Refuse what cannot name a source.

    Names become parts of paths and are compared by eye, so they are ASCII: a Cyrillic а looks like a Latin a.

    Raises:
        XDogeError: the line begins with `where`, such as "weights".
    """
    parts = source.split("/") if isinstance(source, str) and re.fullmatch("[ -~]+", source) else []
    if len(parts) < 2 or not {"", ".", ".."}.isdisjoint(parts):
        raise XDogeError(
            f"{where}[{ascii(source)[:100]}]: a source is named language/source, as in 'eu/wikipedia', with ASCII "
            "letters, digits and signs, and no part of it is empty, '.' or '..'."
        )


def check_text(what: str, value: object) -> None:
    """Refuse a name that is no text, or that would break the line or the table it is printed in.

    Raises:
        XDogeError: the line begins with `what`.
    """
    if not isinstance(value, str) or CONTROLS.search(value):
        raise XDogeError(f"{what} is {shown(value)}; it must be text on one line, without control characters.")
