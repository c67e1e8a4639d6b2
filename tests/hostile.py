"""Unexpected values and bytes, and files that are changed with them."""

from __future__ import annotations

import copy
import json

import yaml
from hypothesis import strategies as st

NUMBERS = [None, True, 0, -1, 0.5, 2**64, 10**400, 1e308, float("nan"), float("inf")]
TEXTS = ["", "no", "a" * 300, "../../etc/passwd", "/etc/passwd", "es/web", "es\\web", "es/wеb"]
CHARACTERS = ["\0", "a\nb", "\x1b[31m", "\u202eb", "\ud800"]
VALUES = st.sampled_from([*NUMBERS, *TEXTS, *CHARACTERS, [], {}, [[]], {"": 0}])
NESTED = st.recursive(VALUES, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2))
BYTES = st.sampled_from(
    [b"", b"\0", b"\xff", b"{", b"]", b'"', b",", b"&a ", b"*a", b"!!int ", b"- ", b"NaN", b"1e999"]
) | (st.binary(max_size=8))


def text_of(name, value):
    if name.endswith(".yaml"):
        return yaml.safe_dump(value, sort_keys=False).encode("utf-8", "surrogatepass")
    return json.dumps(value, indent=2, ensure_ascii=False).encode("utf-8", "surrogatepass")


def places(value, at=()):
    """Yield the path of keys to every element inside a value."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*at, key)
        yield from places(value[key], (*at, key))


def changed(value, data):
    """Return a copy of a file's content with one or two values replaced, renamed or removed."""
    value = copy.deepcopy(value)
    for _ in range(data.draw(st.integers(1, 2))):
        *way, last = data.draw(st.sampled_from(list(places(value))))
        parent = value
        for key in way:
            parent = parent[key]
        change = data.draw(st.sampled_from(["drop", "replace", "rename"]))
        if change == "replace":
            parent[last] = copy.deepcopy(data.draw(NESTED))
        elif change == "drop" or isinstance(last, int):
            del parent[last]
        else:
            parent[data.draw(st.sampled_from([*TEXTS, *CHARACTERS]))] = parent.pop(last)
    return value


def cut_up(good, data):
    """Return a file's bytes with some of them replaced."""
    begin, end = sorted(data.draw(st.integers(0, len(good))) for _ in range(2))
    if data.draw(st.booleans()):
        end = min(end, begin + 8)
    return good[:begin] + data.draw(BYTES) + good[end:]
