"""Settings as a user writes them: frozen, typed, misspelt keys refused, errors that name the key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from xdoge.errors import XDogeError, importing
from xdoge.io import LONGEST_NUMBER, read_regular
from xdoge.names import CONTROLS, SEEDS, shown

with importing("cli"):
    import yaml
    from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def parse_count(value: object) -> int:
    """Read a whole number such as 500, "500M", "1.5B" or "2T" (powers of 1,000).

    Raises:
        ValueError: not of that form, or not a whole number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{shown(value)} is not a count; write a number such as 250000, 500M or 2B")
    match = re.fullmatch(r"(\d[\d_,]*)(?:\.(\d+))?\s*([KMBT]?)", str(value).strip(), flags=re.IGNORECASE)
    if match is None:
        raise ValueError(f"{shown(value)} is not a count; write a number such as 250000, 500M or 2B")
    whole, fraction, unit = match[1].replace(",", "").replace("_", ""), match[2] or "", match[3].upper()
    scaled, rest = divmod(int(whole + fraction) * _UNITS[unit], int(10 ** len(fraction)))
    if rest:
        raise ValueError(f"{shown(value)} is not a whole number")
    if scaled >= 1 << 63:
        raise ValueError(f"{shown(value)} is too large; a count is below 2^63")
    return scaled


Count = Annotated[int, BeforeValidator(parse_count)]
"""A whole number that may be written with K, M, B or T."""


Seed = Annotated[int, Field(ge=0, lt=SEEDS)]
"""A seed: one range for all commands."""


class Config(BaseModel):
    """Base of everything read from YAML: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, value: Mapping[str, Any], *, where: str) -> Self:
        """Validate a mapping; errors name `where` and the key as the user wrote it.

        Raises:
            XDogeError: a key is unknown, missing or has a value that is not allowed.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise XDogeError(explain(error, where=where, known=cls.model_fields)) from error

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a YAML file.

        Raises:
            XDogeError: the file is missing, not YAML, or does not hold what it should.
        """
        return cls.parse(read_yaml(Path(path)), where=str(path))


def settings_help(settings: type[Config]) -> str:
    """Return every setting with its meaning, its choices and its default, as a Markdown list."""
    lines = []
    for name, info in settings.model_fields.items():
        about = info.description or name.replace("_", " ")
        if get_origin(info.annotation) is Literal:
            about += f": {' or '.join(get_args(info.annotation))}"
        if not info.is_required() and not about.endswith("]"):
            about += f" [{'none' if info.default in (None, ()) else str(info.default).lower()}]"
        lines.append(f"- `{name}`: {about}")
    return "\n\n".join(lines)


def explain(error: ValidationError, *, where: str, known: Iterable[str] = ()) -> str:
    """Say in one line which key is wrong and how, which of those `known` was meant, and how many faults follow."""
    # a misspelt key first, which explains a missing one; then the deepest, which of a union's errors is the one meant
    first, *more = sorted(
        error.errors(include_url=False), key=lambda fault: (fault["type"] != "extra_forbidden", -len(fault["loc"]))
    )
    key = ".".join(part for part in map(str, first["loc"]) if re.fullmatch(r"[\w/.-]+", part))  # no tags of unions
    got = "" if first["type"] in ("missing", "extra_forbidden") or "ctx" in first else f" (got {shown(first['input'])})"
    messages = {"extra_forbidden": "is not a known key", "missing": "is missing"}
    message = messages.get(first["type"], first["msg"].removeprefix("Value error, "))
    message = message[0].lower() + message[1:] if message[:2].istitle() else message
    rest = f" ({len(more)} more like this)" if more else ""
    separator = " " if first["type"] in messages else ": "
    misspelt = first["type"] == "extra_forbidden" and len(first["loc"]) == 1
    near = difflib.get_close_matches(key, list(known), n=1) if misspelt else []
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{where}: {key}{separator if key else ''}{message}{got}{hint}{rest}"


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, a key that YAML turned into something else, and control characters."""

    def construct_scalar(self, node: Any) -> Any:
        line = node.start_mark.line + 1
        if control := CONTROLS.search(re.sub("[\t\n]", "", node.value)):
            raise XDogeError(f"line {line}: {control[0]!a} is a control character, which no value may hold.")
        if node.tag == "tag:yaml.org,2002:int" and len(node.value) > LONGEST_NUMBER:
            raise XDogeError(f"line {line}: a number has at most {LONGEST_NUMBER} digits.")
        return super().construct_scalar(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if isinstance(key, bool):
                raise XDogeError(
                    f"line {line}: YAML reads the bare key `{key_node.value}` as {str(key).lower()}; "
                    f'write "{key_node.value}" in quotes.'
                )
            if not isinstance(key, str):
                raise XDogeError(f"line {line}: the key {shown(key)} is not text; put it in quotes.")
            if key in seen:
                raise XDogeError(f"line {line}: {shown(key)} is given twice.")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_PYYAML = (ArithmeticError, LookupError, AttributeError, TypeError)
"""What PyYAML itself trips with over `!!timestamp x`, `!!int ""` and the like."""


def parse_yaml(content: bytes | str, *, where: str) -> Any:
    """Return the value that YAML text stands for, plain data whatever its tags ask for.

    Raises:
        XDogeError: it is not YAML, or a key stands twice in it; the line begins with `where`.
    """
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
    except UnicodeDecodeError as error:
        raise XDogeError(f"{where} is not UTF-8 text, as YAML is here: {error.reason} at {error.start}.") from error
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except XDogeError as error:
        raise XDogeError(f"{where}: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError, *_PYYAML) as error:
        raise XDogeError(f"{where} is not YAML: {shorten(str(error), 300)}") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        XDogeError: the file is missing, not YAML, not a mapping, or a key stands twice in it.
    """
    value = parse_yaml(read_regular(path, "YAML"), where=str(path))
    if not isinstance(value, dict):
        raise XDogeError(f"{path} does not hold a mapping of keys to values.")
    return value
