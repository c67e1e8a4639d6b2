"""Settings as users write them."""

from __future__ import annotations

import pytest
from pydantic import Field

from xdoge.config import Config, Count, parse_count, read_yaml
from xdoge.errors import XDogeError


class Inner(Config):
    rate: float = Field(1.0, gt=0)


class Outer(Config):
    name: str
    size: Count = 1
    parts: dict[str, Inner] = {}


@pytest.mark.parametrize(
    ("written", "count"),
    [
        (7, 7),
        ("500M", 500_000_000),
        ("1.5B", 1_500_000_000),
        ("2T", 2 * 10**12),
        ("1,000", 1000),
        ("3k", 3000),
        (2.0, 2),
    ],
)
def test_counts_read_as_people_write_them(written, count):
    assert parse_count(written) == count


@pytest.mark.parametrize("written", ["many", "1.5", -3, True, None, "1.23456K", "5G"])
def test_counts_that_are_none_are_refused(written):
    with pytest.raises(ValueError, match="is not a"):
        parse_count(written)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"name": "a", "sise": 3}, r"f.yaml: sise is not a known key; did you mean size\?"),
        ({}, "f.yaml: name is missing"),
        ({"name": "a", "size": "much"}, "f.yaml: size: 'much' is not a count"),
        ({"name": "a", "parts": {"x": {"rate": -1}}}, r"f.yaml: parts.x.rate: input should be greater than 0"),
        ({"name": "a", "parts": {"x": {"rat": 1}}, "b": 1}, r"parts.x.rat is not a known key \(1 more"),
        ({"name": 5}, r"f.yaml: name: input should be a valid string \(got 5\)"),
    ],
)
def test_errors_name_the_key_as_it_was_written(value, message):
    with pytest.raises(XDogeError, match=message):
        Outer.parse(value, where="f.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no: 1", 'line 1: YAML reads the bare key `no` as false; write "no" in quotes'),
        ("a: {1: x}", "line 1: the key 1 is not text; put it in quotes"),
        ("a: 1\nb: 2\na: 3", "line 3: 'a' is given twice"),
        ("- 1", "does not hold a mapping"),
        ("a: [", "is not YAML"),
        ("a: 2024-99-99", "is not YAML: month must be in 1..12"),
        ("a: \xff".encode("latin-1"), "UTF-8"),
    ],
)
def test_yaml_that_would_be_misread_is_refused(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(XDogeError, match=f"c.yaml.*{message}"):
        read_yaml(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(XDogeError, match="nothing.yaml does not exist"):
        read_yaml(tmp_path / "nothing.yaml")
    with pytest.raises(XDogeError, match="is a folder, not a YAML file"):
        read_yaml(tmp_path)
