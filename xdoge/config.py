"""Read settings from YAML and validate them.

Settings are frozen and typed. A misspelt key is an error, and every error names the key as the user wrote it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from xdoge.errors import XDogeError, importing, likely_name
from xdoge.io import LONGEST_NUMBER, read_regular
from xdoge.names import CONTROLS, SEEDS, shown

with importing("cli"):
    import yaml
    from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}

TOO_LARGE = 1 << 63
"""Counts are below this. NumPy and torch store them as 64-bit integers."""

MOST_SEQUENCES = 1 << 31
"""Batches have fewer sequences, and sequences fewer tokens, than this. Nobody trains with nearly as many."""

MOST_WORKERS = 1024
"""Most threads or processes that a user may ask for. No machine has as many cores."""


def parse_count(value: object) -> int:
    """Return the whole number that 500, "6e6", "500M", "1.5B" or "2T" stands for.

    K, M, B and T are powers of 1,000.

    Raises:
        ValueError: the value does not have that form, is not a whole number, or is 2^63 or more.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{shown(value)} is not a count; write a number such as 250000, 6e6, 500M or 2B")
    pattern = r"(\d[\d_,]*)(?:\.(\d+))?(?:e\+?(\d{1,2}))?\s*([KMBT]?)"
    match = re.fullmatch(pattern, str(value).strip(), flags=re.IGNORECASE)
    if match is None:
        raise ValueError(f"{shown(value)} is not a count; write a number such as 250000, 6e6, 500M or 2B")
    whole, fraction, unit = match[1].replace(",", "").replace("_", ""), match[2] or "", match[4].upper()
    unscaled = int(whole + fraction) * int(10 ** int(match[3] or 0)) * _UNITS[unit]
    scaled, rest = divmod(unscaled, int(10 ** len(fraction)))
    if rest:
        raise ValueError(f"{shown(value)} is not a whole number")
    if scaled >= TOO_LARGE:
        raise ValueError(f"{shown(value)} is too large; a count is below 2^63")
    return scaled


def count_or(default: int, value: object) -> int:
    """Return `parse_count(value)`, or `default` if the value is no count.

    `Config` reports such a value later, with its name.
    """
    try:
        return parse_count(value)
    except ValueError:
        return default


Seed = Annotated[int, Field(ge=0, lt=SEEDS)]
"""A seed from 0 to 2^32 - 1, the range of all commands."""


class Config(BaseModel):
    """Base class of all settings that are read from YAML: immutable, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _number(cls, value: Any, info: ValidationInfo) -> Any:
        """Convert values of int fields with `parse_count`, and reject true and false where a number is expected."""
        kinds = _choices(cls.model_fields[info.field_name or ""].annotation)
        if isinstance(value, bool) and bool not in kinds and not {int, float}.isdisjoint(kinds):
            raise ValueError(f"{str(value).lower()} is not a number")
        if int not in kinds or isinstance(value, bool):
            return value
        if isinstance(value, int) and abs(value) >= TOO_LARGE:
            raise ValueError(f"{shown(value)} is too large; a count is below 2^63")
        return parse_count(value) if str not in kinds and isinstance(value, str | float) else value

    @classmethod
    def parse(cls, value: Mapping[str, Any], *, where: str) -> Self:
        """Return validated settings from a mapping.

        Args:
            value: settings by key.
            where: beginning of error messages, such as the path of the file.

        Raises:
            XDogeError: a key is unknown or missing, or its value is not allowed.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise XDogeError(explain(error, cls, where=where)) from error

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Return the settings in a YAML file.

        Raises:
            XDogeError: the file is missing or not YAML, a key is unknown or missing, or a value is not allowed.
        """
        return cls.parse(read_yaml(Path(path)), where=str(path))


def settings_help(settings: type[Config]) -> str:
    """Return a Markdown list of all settings, each with its meaning, choices and default."""
    lines = []
    for name, info in settings.model_fields.items():
        about = info.description or name.replace("_", " ")
        if get_origin(info.annotation) is Literal:
            choices = get_args(info.annotation)
            if not set(choices) <= set(re.findall(r"\w+", about)):
                about += f"; one of {', '.join(choices)}"
        if about.endswith("]"):
            about = "[default: ".join(about.rsplit("[", 1))
        elif info.is_required():
            about += " [required]"
        else:
            about += f" [default: {'none' if info.default in (None, ()) else str(info.default).lower()}]"
        lines.append(f"- `{name}`: {about}")
    return "\n\n".join(lines)


_WORDS = {
    "int_type": "be a whole number",
    "int_parsing": "be a whole number",
    "int_from_float": "be a whole number",
    "float_type": "be a number",
    "float_parsing": "be a number",
    "finite_number": "be a finite number",
    "bool_type": "be true or false",
    "bool_parsing": "be true or false",
    "string_type": "be text",
    "path_type": "be a path",
    "dict_type": "be a mapping of names to values",
    "model_type": "be a mapping of names to values",
    "tuple_type": "be a list",
    "list_type": "be a list",
    "literal_error": "be {expected}",
    "greater_than": "be above {gt}",
    "greater_than_equal": "be at least {ge}",
    "less_than": "be below {lt}",
    "less_than_equal": "be at most {le}",
    "too_short": "hold at least {min_length}",
    "too_long": "hold at most {max_length}",
    "string_too_short": "have at least {min_length} characters",
    "string_too_long": "have at most {max_length} characters",
}
"""What a value must be, by the type of pydantic's error. The placeholders are filled from the context of the error."""


def explain(error: ValidationError, config: type[BaseModel], *, where: str) -> str:
    """Return one line that names the wrong key of `config`, says what is allowed, and counts the other errors."""
    # Misspelt keys come first, because they explain missing ones. Then the deepest error: of the errors that a union
    # gives, it belongs to the alternative that the user meant.
    faults = sorted(
        error.errors(include_url=False), key=lambda fault: (fault["type"] != "extra_forbidden", -len(fault["loc"]))
    )
    first, key = faults[0], _key(faults[0])
    same = [fault for fault in faults if _key(fault) == key and fault["type"] in _WORDS]
    rest = f" ({more} more error{'s' * (more != 1)})" if (more := len(faults) - max(1, len(same))) else ""
    if first["type"] == "extra_forbidden":
        message = f"{key} is not a known key{likely_name(str(first['loc'][-1]), _keys(config, first['loc'][:-1]))}"
    elif first["type"] == "missing":
        message = f"{key} is missing"
    elif same:
        allowed = dict.fromkeys(_WORDS[fault["type"]].format(**_plain(fault.get("ctx", {}))) for fault in same)
        message = f"{key}{': ' if key else ''}it must {', or '.join(allowed)}, not {shown(first['input'])}"
    else:
        message = first["msg"].removeprefix("Value error, ")
        message = message[0].lower() + message[1:] if message[:2].istitle() else message
        message = f"{key}: {message}" if key else message
    return f"{where}: {message}{rest}"


def _plain(context: Mapping[str, Any]) -> dict[str, Any]:
    """Return the context of an error with floats as text: "1" for 1.0."""
    return {key: f"{value:g}" if isinstance(value, float) else value for key, value in context.items()}


def _key(fault: Mapping[str, Any]) -> str:
    """Return the key that an error is about as the user wrote it, such as "tokenizer.train".

    pydantic puts the alternatives of unions into the location too; these are left out.
    """
    return ".".join(part for part in map(str, fault["loc"]) if re.fullmatch(r"[\w/.-]+", part))


def _choices(annotation: Any) -> tuple[Any, ...]:
    """Return the types that an annotation allows, without None and without the metadata of `Annotated`."""
    if get_origin(annotation) is Annotated:
        return _choices(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return tuple(choice for part in get_args(annotation) if part is not NoneType for choice in _choices(part))
    return (annotation,)


def _keys(annotation: Any, place: tuple[int | str, ...]) -> list[str]:
    """Return the keys that are known at a location inside nested settings.

    Args:
        annotation: type of the outermost settings.
        place: location of the inner settings, as pydantic gives it.
    """
    if not place:
        kinds = (kind for kind in _choices(annotation) if isinstance(kind, type) and issubclass(kind, BaseModel))
        return [name for kind in kinds for name in kind.model_fields]
    keys: list[str] = []
    for kind in _choices(annotation):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            field = kind.model_fields.get(str(place[0]))
            keys += _keys(field.annotation, place[1:]) if field else []
        elif inner := [part for part in get_args(kind) if part is not Ellipsis]:
            keys += _keys(inner[-1], place[1:])
    return keys


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that rejects duplicate keys, keys that are not text, and control characters."""

    def construct_scalar(self, node: Any) -> Any:
        line = node.start_mark.line + 1
        if control := CONTROLS.search(re.sub("[\t\n]", "", node.value)):
            raise XDogeError(f"line {line}: {control[0]!a} is a control character, which is not allowed in a value.")
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
"""Exceptions that leak from PyYAML when it reads values such as `!!timestamp x` or `!!int ""`."""


def parse_yaml(content: bytes | str, *, where: str) -> Any:
    """Return the value of YAML text as plain data; tags cannot create other objects.

    Raises:
        XDogeError: the text is not YAML, or has a duplicate key. The message begins with `where`.
    """
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
    except UnicodeDecodeError as error:
        raise XDogeError(f"{where} is not UTF-8 text: {error.reason} at byte {error.start}.") from error
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except XDogeError as error:
        raise XDogeError(f"{where}: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError, *_PYYAML) as error:
        raise XDogeError(f"{where} is not YAML: {shorten(str(error), 300)}") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        XDogeError: the file is missing, not YAML or not a mapping, or it has a duplicate key.
    """
    value = parse_yaml(read_regular(path, "YAML"), where=str(path))
    if not isinstance(value, dict):
        raise XDogeError(f"{path} does not hold a mapping of keys to values.")
    return value
