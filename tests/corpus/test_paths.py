"""The files that a path, a folder or a pattern in corpus.yaml names."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xdoge.corpus.paths import alternatives, find
from xdoge.errors import XDogeError


def make(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x\n")


def names(folder: Path, *patterns: str) -> list[str]:
    return [file.relative_to(folder).as_posix() for file in find(patterns, folder)]


def test_a_folder_is_its_files_of_text_at_any_depth(tmp_path: Path) -> None:
    make(tmp_path, "data/b.jsonl", "data/a/2.jsonl.gz", "data/a/1.ndjson", "data/c [d]/e.jsonl", "data/_part.jsonl")
    names = ["data/_part.jsonl", "data/a/1.ndjson", "data/a/2.jsonl.gz", "data/b.jsonl", "data/c [d]/e.jsonl"]
    make(
        tmp_path,
        *("data/.hidden.jsonl", "data/.git/a.jsonl", "data/_SUCCESS", "data/.part.jsonl.crc"),
        *("data/_temporary/0/a.jsonl", "data/_delta_log/0.json", "data/README.md", "data/a/LICENSE", "data/sha256sums"),
        *("data/b.jsonl.md5", "data/readme.txt"),
    )
    for pattern in ("data", "data/", "./data", str(tmp_path / "data")):
        assert [file.resolve() for file in find([pattern], tmp_path)] == [tmp_path / name for name in names]


def test_a_folder_of_two_formats_or_of_other_files_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "a/x.jsonl", "a/x.csv", "b/x.jsonl", "b/y.docx", "c/_SUCCESS", "d/.x.jsonl", "e/x.csv", "e/x.csv.gz")
    for folder, told in (
        ("a", "x.csv and x.jsonl"),
        ("b", "y.docx"),
        ("c", "no file of text"),
        ("d", "no file of text"),
    ):
        with pytest.raises(XDogeError, match=told):
            find([folder], tmp_path)
    assert names(tmp_path, "a/*") == ["a/x.csv", "a/x.jsonl"]  # a pattern may name both
    assert names(tmp_path, "e") == ["e/x.csv", "e/x.csv.gz"]


def test_a_link_to_nothing_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "data/a.jsonl")
    (tmp_path / "data/b.jsonl").symlink_to("gone.jsonl")
    for pattern in ("data", "data/*.jsonl", "**/*.jsonl"):
        with pytest.raises(XDogeError, match=r"b\.jsonl is a link to gone\.jsonl"):
            find([pattern], tmp_path)
    (tmp_path / "data/b.jsonl").rename(tmp_path / "data/.b.jsonl")
    assert names(tmp_path, "data") == names(tmp_path, "data/*.jsonl") == ["data/a.jsonl"]


def test_a_pattern_may_match_folders_that_are_called_as_files(tmp_path: Path) -> None:
    make(tmp_path, "a.parquet/part-0.parquet", "a.parquet/_SUCCESS", "a.parquet/x.crc", "b.parquet", "c/d.parquet")
    assert names(tmp_path, "*.parquet") == ["a.parquet/part-0.parquet", "b.parquet"]
    assert names(tmp_path, "**/*.parquet") == ["a.parquet/part-0.parquet", "b.parquet", "c/d.parquet"]


def test_marks_are_left_out_below_the_folder_of_corpus_yaml_only(tmp_path: Path) -> None:
    make(tmp_path, "_temporary/a/x.jsonl", "_temporary/a/_temporary/y.jsonl")
    assert names(tmp_path / "_temporary", "a/*.jsonl", "a/_temporary/*") == ["a/x.jsonl", "a/_temporary/y.jsonl"]
    assert names(tmp_path / "_temporary", "a") == ["a/x.jsonl"]


def test_alternatives_in_braces_must_all_be_there(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl", "b.jsonl", "00.txt", "01.txt", "02.txt", "{x,y}.txt", "{z}.txt")
    assert names(tmp_path, "{b,a}.jsonl") == ["b.jsonl", "a.jsonl"]
    assert names(tmp_path, "{a*,[ab]}.jsonl") == ["a.jsonl", "b.jsonl"]
    assert names(tmp_path, "{00..02}.txt") == ["00.txt", "01.txt", "02.txt"]
    assert names(tmp_path, "{x,y}.txt", "{z}.txt") == ["{x,y}.txt", "{z}.txt"]  # names that exist literally
    with pytest.raises(XDogeError, match=r"c\.jsonl does not exist"):
        find(["{a,c}.jsonl"], tmp_path)
    with pytest.raises(XDogeError, match=r"'c\*\.jsonl' of it"):
        find(["{a,c}*.jsonl"], tmp_path)
    with pytest.raises(XDogeError, match="alternatives"):
        find(["{0..999}{0..999}.jsonl"], tmp_path)


@settings(max_examples=25)
@given(st.text("ab{},.012", max_size=12))
def test_alternatives_are_those_of_bash(pattern: str) -> None:
    if ".." in pattern or "{}" in pattern:
        return  # bash also expands letters and signed numbers
    theirs = subprocess.run(["bash", "-c", f"printf '%s\\n' {pattern}x"], capture_output=True, text=True, check=True)
    assert set(alternatives(f"{pattern}x")) == set(theirs.stdout.split())


@pytest.mark.parametrize("pattern", ["{0..11}", "{08..12}", "{3..1}", "{1,{2..4}}-{a,b{c,d}}", "{007..9}"])
def test_numbers_are_counted_as_bash_does(pattern: str) -> None:
    theirs = subprocess.run(["bash", "-c", f"printf '%s\\n' {pattern}"], capture_output=True, text=True, check=True)
    assert sorted(alternatives(pattern)) == sorted(theirs.stdout.split())
