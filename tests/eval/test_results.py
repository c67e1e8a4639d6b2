"""results.json: one value per row, and errors that name wrong rows."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xdoge.errors import XDogeError
from xdoge.eval.results import Results, Row

ROW = Row("125m", "gl", "perplexity", "bits_per_byte", 1.25, 0.01, 40, False)

numbers = st.floats(allow_nan=False, allow_infinity=False)


@given(value=numbers, stderr=st.none() | st.floats(0, 1e300), n=st.integers(0, 10**15))
def test_a_table_survives_the_round_trip_exactly(tmp_path_factory, value, stderr, n):
    path = tmp_path_factory.mktemp("results") / "results.json"
    row = replace(ROW, value=value, stderr=stderr, n=n)
    table = Results.of(
        [row, replace(ROW, language="eu")], settings={"perplexity": {"125m": {"tokenizer": "ab", "window": 128}}}
    )
    table.save(path)
    assert Results.load(path) == table
    assert json.loads(path.read_text())["rows"][0] == asdict(row)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model", "", "model is ''; it must be text, and not empty"),
        ("language", None, "language is None"),
        ("value", float("nan"), "125m gl perplexity bits_per_byte: value is nan; it must be a finite number"),
        ("value", True, "value is True"),
        ("value", "1.0", "value is '1.0'"),
        ("stderr", -0.1, "stderr is -0.1; it must be a number >= 0, or null"),
        ("stderr", float("inf"), "stderr is inf"),
        ("n", 1.5, "n is 1.5; it must be a whole number"),
        ("n", -1, "n is -1"),
        ("higher_is_better", 0, "higher_is_better is 0; it must be true or false"),
    ],
)
def test_a_row_without_a_number_is_refused_by_name(field, value, message):
    with pytest.raises(XDogeError, match=message):
        replace(ROW, **{field: value})


def test_the_same_number_twice_is_refused():
    with pytest.raises(XDogeError, match="two rows .*125m gl perplexity bits_per_byte"):
        Results((ROW, replace(ROW, value=2.0)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.update(schema="xdoge.results/2"), "newer than xdoge.results/1"),
        (lambda file: file.update(schema="xdoge.weights/1"), "another kind of file"),
        (lambda file: file.pop("rows"), "needs a list of rows, and settings"),
        (lambda file: file.update(settings=[]), "needs a list of rows, and settings"),
        (lambda file: file["rows"].append(3), r"rows\[1\] is 3, not an object"),
        (lambda file: file["rows"][0].pop("n"), r"rows\[0\] has other fields than model, .*: n\."),
        (lambda file: file["rows"][0].update(unit="bits"), r"rows\[0\] has other fields than .*: unit\."),
        (lambda file: file["rows"][0].update(value=None), r"rows\[0\]: .* value is None"),
        (lambda file: file["rows"].append(file["rows"][0]), "two rows have the same key"),
    ],
)
def test_a_file_that_is_not_a_table_is_refused_with_its_name(tmp_path, change, message):
    path = tmp_path / "r.json"
    file = Results.of([ROW], settings={}).to_dict()
    change(file)
    path.write_text(json.dumps(file))
    with pytest.raises(XDogeError, match=f"r.json.*{message}"):
        Results.load(path)


def test_the_frame_has_a_column_for_each_field():
    pytest.importorskip("pandas")
    frame = Results((ROW, replace(ROW, language="eu", stderr=None))).to_frame()
    assert list(frame.columns) == list(asdict(ROW))
    assert frame["language"].tolist() == ["gl", "eu"]
    assert list(Results(()).to_frame().columns) == list(asdict(ROW))
