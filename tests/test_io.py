"""Files that are never incomplete."""

from __future__ import annotations

import errno
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xdoge.config import read_yaml
from xdoge.errors import XDogeError
from xdoge.io import locked, read_json, read_rows, replacing, replacing_folder, sha256_file, write_json


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(RuntimeError, match="stop"), replacing(path) as file:
        file.write(b"half")
        raise RuntimeError("stop")
    assert read_json(path) == {"x": 1}
    assert [child.name for child in tmp_path.iterdir()] == ["a.json"]


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
KEYS = st.text() | st.integers() | st.booleans()


@given(st.dictionaries(KEYS, st.recursive(SCALARS, lambda value: st.lists(value) | st.dictionaries(KEYS, value))))
def test_json_is_indented_as_python_does(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "indented.json"
    write_json(path, value)
    assert path.read_text(encoding="utf-8") == json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def test_a_full_disk_is_one_line_that_names_the_file(tmp_path):
    def write():
        with replacing(tmp_path / "a.bin") as file:
            file.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(XDogeError, match=r"a\.bin: the disk is full; nothing was left half-written"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError, match="stop"), replacing_folder(tmp_path / "f") as folder:
        (folder / "a").write_text("a")
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []
    with replacing_folder(tmp_path / "f") as folder:
        (folder / "a").write_text("a")
        assert not (tmp_path / "f").exists()
    assert (tmp_path / "f" / "a").read_text() == "a"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "holds a JSON list, not an object"),
        ("{", "is not JSON"),
        ('{"schema": "xdoge.x/1"}', "another kind of file"),
    ],
)
def test_json_that_is_not_ours_is_refused(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(XDogeError, match=f"a.json.*{message}"):
        read_json(tmp_path / "a.json", schema="xdoge.y")


def test_nan_is_never_written_as_json(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_sha256_is_that_of_the_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_pipes_and_devices_are_never_read(tmp_path):
    os.mkfifo(tmp_path / "weights.json")
    (tmp_path / "corpus.yaml").symlink_to("/dev/zero")
    for read, name in ((read_json, "weights.json"), (read_yaml, "corpus.yaml")):
        with pytest.raises(XDogeError, match=rf"{name} is a pipe or a device, not a file\."):
            read(tmp_path / name)


@pytest.mark.parametrize("end", [b'{"step": 3, "lo', b"\xff\xfe\n", b"12\n"])
def test_reading_rows_stops_at_the_first_invalid_line(tmp_path, end):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"step": 2}\n' + end)
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2]
    assert read_rows(tmp_path / "none.jsonl") == []


def test_an_error_inside_a_lock_is_not_reported_as_an_error_of_the_lock(tmp_path):
    with pytest.raises(FileNotFoundError), locked(tmp_path):
        (tmp_path / "missing").read_bytes()
