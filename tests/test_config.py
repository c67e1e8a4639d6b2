"""Settings in YAML files."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import Field

from xdoge.baselines.options import RegmixSettings
from xdoge.config import Config, parse_count, read_yaml
from xdoge.errors import XDogeError
from xdoge.eval.perplexity import PerplexitySettings
from xdoge.fit.settings import FitSettings
from xdoge.laws.swarm_settings import SwarmSettings
from xdoge.train.settings import TrainSettings


class Inner(Config):
    rate: float = Field(1.0, gt=0)


class Outer(Config):
    name: str
    size: int = 1
    rate: float | None = None
    batch_size: int | None = Field(None, gt=0)
    kind: Literal["all", "some"] | dict[str, float] = "all"
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
        ("6e6", 6_000_000),
        ("1.5E+3", 1500),
        (1e16, 10**16),
        (2.0, 2),
    ],
)
def test_counts_read_as_people_write_them(written, count):
    assert parse_count(written) == count


@pytest.mark.parametrize("written", ["many", "1.5", "1e-3", "e6", -3, True, None, "1.23456K", "5G"])
def test_invalid_counts_are_refused(written):
    with pytest.raises(ValueError, match="is not a"):
        parse_count(written)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"name": "a", "sise": 3}, r"f.yaml: sise is not a known key; did you mean size\?"),
        ({}, "f.yaml: name is missing"),
        ({"name": "a", "size": "much"}, "f.yaml: size: 'much' is not a count"),
        ({"name": "a", "parts": {"x": {"rate": -1}}}, r"f.yaml: parts.x.rate: it must be above 0, not -1"),
        ({"name": "a", "parts": {"x": {"rat": 1}}, "b": 1}, r"parts.x.rat is not a known key; .*rate\? \(1 more"),
        ({"name": 5}, r"f.yaml: name: it must be text, not 5"),
        ({"name": "a", "size": True}, "size: true is not a number"),
        ({"name": "a", "rate": False}, "rate: false is not a number"),
        ({"name": "a", "size": 1.5}, "size: 1.5 is not a whole number"),
        ({"name": "a", "batch_size": "0"}, "batch_size: it must be above 0, not 0"),
        ({"name": "a", "kind": "none"}, "kind: it must be 'all' or 'some', or be a mapping of .*, not 'none'"),
        ({"name": "a", "bs": 3}, r"bs is not a known key; did you mean batch_size\?"),
        ({"name": "a", "batch-size": 3}, r"did you mean batch_size\?"),
        ({"name": "a", "xyzzy": 3}, "xyzzy is not a known key; known are name, size, rate"),
    ],
)
def test_errors_name_the_key_as_it_was_written(value, message):
    with pytest.raises(XDogeError, match=message):
        Outer.parse(value, where="f.yaml")


@pytest.mark.parametrize("written", ["6e3", "6K", "6000", 6000.0, 6000])
def test_every_number_of_the_settings_reads_as_a_count_does(written):
    read = Outer.parse({"name": "6e3", "size": written, "batch_size": written}, where="f.yaml")
    assert (read.name, read.size, read.batch_size) == ("6e3", 6000, 6000)


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


@pytest.mark.parametrize("value", [10**20, -(10**20), 1 << 63, "1e20", "1.0e+400", "1e400", float("inf")])
def test_a_number_that_does_not_fit_into_64_bits_is_refused_by_name(value):
    with pytest.raises(XDogeError, match="here: batch_size: ") as error:
        Outer.parse({"name": "a", "batch_size": value}, where="here")
    assert "\n" not in str(error.value)
    assert Outer.parse({"name": "a", "batch_size": (1 << 63) - 1}, where="here").batch_size == (1 << 63) - 1


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (TrainSettings, ("batch_size", "sequence_length", "workers")),
        (FitSettings, ("batch_size", "sequence_length")),
        (SwarmSettings, ("batch_size", "sequence_length", "runs")),
        (RegmixSettings, ("batch_size", "sequence_length", "runs", "simulations")),
        (PerplexitySettings, ("resamples",)),
    ],
)
def test_a_setting_that_would_use_up_all_memory_or_processes_is_refused_by_name(settings, names):
    for name in names:
        with pytest.raises(XDogeError, match=f"here: {name}: it must be (below|at most)"):
            settings.parse({name: 10**12, **needed(settings, but=name)}, where="here")


def needed(settings, *, but):
    """Return a value for each setting that has no default, except one."""
    fields = settings.model_fields.items()
    return {
        name: "tiny" if field.annotation is str else 4 for name, field in fields if field.is_required() and name != but
    }
