"""CSV files of mixtures and losses: accepted files, and errors that name the row."""

from __future__ import annotations

import pytest

from xdoge.errors import XDogeError
from xdoge.laws.own_sources import match_own
from xdoge.mixtures.csv_files import align, read_counts, read_mixtures, read_table


def write(path, text):
    path.write_text(text)
    return path


def test_rounded_shares_are_divided_by_their_sum_with_a_note(tmp_path):
    table = read_mixtures(write(tmp_path / "m.csv", "run,a,b\n1,0.5,0.49\n2,0.2,0.8\n"))
    assert table.values.sum(axis=1) == pytest.approx([1, 1])
    assert "1 of 2 rows" in table.notes[0]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("run,a,b\nx7,0.5,0.4\n", "x7.*0.9"),
        ("run,a,b\nx7,1.2,-0.2\n", "x7"),
        ("run,a,b\nx7,0.5,half\n", "half"),
        ("run,a,b\n1,0.5,0.5\n1,0.4,0.6\n", "twice"),
        ("run,a,a\n1,0.5,0.5\n", "'a'"),
        ("run,a,b\n1,0.5\n", "row 2"),
        ("run,a,b\n", "header"),
    ],
)
def test_bad_mixtures_are_refused_by_row(tmp_path, text, word):
    with pytest.raises(XDogeError, match=word):
        read_mixtures(write(tmp_path / "m.csv", text))


def test_runs_are_matched_by_id_and_need_a_partner(tmp_path):
    mixtures = read_mixtures(write(tmp_path / "m.csv", "run,a,b\n1,0.5,0.5\n2,0.2,0.8\n"))
    losses = read_table(write(tmp_path / "l.csv", "run,a\n2,7\n1,5\n"))
    assert align(mixtures, losses, ("m", "l"))[1].tolist() == [[5], [7]]
    with pytest.raises(XDogeError, match="3"):
        align(mixtures, read_table(write(tmp_path / "l.csv", "run,a\n3,7\n1,5\n")), ("m", "l"))
    with pytest.raises(XDogeError, match="nan"):
        align(mixtures, read_table(write(tmp_path / "l.csv", "run,a\n2,nan\n1,5\n")), ("m", "l"))


def test_evaluations_match_sources_without_common_prefixes_and_suffixes():
    sources = ["train_the_pile_arxiv", "train_the_pile_github", "train_the_pile_europarl"]
    evaluations = ["metric/the_pile_github_val_loss", "metric/the_pile_arxiv_val_loss"]
    assert match_own(sources, evaluations) == ((1,), (0,))
    assert match_own(["eu/web", "eu/wiki", "es/web"], ["es", "eu", "pt"]) == ((2,), (0, 1), ())
    assert match_own(["x", "y"], ["p", "q"], [("p", "y")]) == ((1,), ())
    with pytest.raises(XDogeError, match="zz"):
        match_own(["x", "y"], ["p", "q"], [("p", "zz")])


def test_token_counts_are_read_and_must_name_every_source(tmp_path):
    path = write(tmp_path / "c.csv", "source,tokens\na,1000\nb,2e6\n")
    assert read_counts(path, ("b", "a")) == {"b": 2_000_000, "a": 1000}
    with pytest.raises(XDogeError, match="only in the mixtures: c"):
        read_counts(path, ("a", "b", "c"))


@pytest.mark.parametrize(
    ("content", "word"),
    [(b"a,1000\nb,1e400\n", "1e400"), (b"a,10\nb,20\na,30\n", "row 3.*'a'"), (b"a,1\n\xff\xfe,2\n", "c.csv")],
)
def test_bad_token_counts_are_refused_by_row(tmp_path, content, word):
    (tmp_path / "c.csv").write_bytes(content)
    with pytest.raises(XDogeError, match=word):
        read_counts(tmp_path / "c.csv", ("a", "b"))
