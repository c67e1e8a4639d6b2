"""`xdoge merge` and the average it writes."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
from command_line import one_line
from hypothesis import given
from hypothesis import strategies as st

from xdoge import WeightSet
from xdoge.io import sha256_file

SOURCES = ("es/web", "es/wiki", "gl/wiki", "eu/wiki")
CORPUS = {"name": "tiny", "sha256": "a" * 64}


def fit(path, *weights, seed=0, proxy="60m", corpus=CORPUS, floor=0.01, **method):
    """Write a weights.json as of a fit, and return its path."""
    made = WeightSet(
        f"tiny-{proxy}-seed{seed}",
        dict(zip(SOURCES, weights, strict=True)),
        floor=floor,
        method={"seed": seed, "proxy": proxy, "mu": 0.1, "targets": "sources", **method},
        proxy={"name": proxy},
        corpus=corpus,
    )
    made.save(path)
    return path


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two run folders and a weights.json, in the working folder."""
    monkeypatch.chdir(tmp_path)
    fit(Path("seed0/weights.json"), 0.4, 0.2, 0.3, 0.1)
    fit(Path("seed1/weights.json"), 0.3, 0.3, 0.2, 0.2, seed=1)
    fit(Path("seed2.json"), 0.2, 0.4, 0.1, 0.3, seed=2)
    return ["seed0", "seed1", "seed2.json"]


def test_the_mean_of_runs_is_written_with_their_spread(xdoge, runs):
    status, out, err = xdoge("merge", *runs, "--out", "mean.json")
    assert status == 0, err
    mean = WeightSet.load("mean.json")
    assert mean.name == "tiny-60m-mean-of-3"
    assert dict(mean.sources) == pytest.approx(dict(zip(SOURCES, (0.3, 0.3, 0.2, 0.2), strict=True)))
    assert dict(mean.method) == {"proxy": "60m", "mu": 0.1, "targets": "sources"}
    assert dict(mean.corpus) == CORPUS
    languages = mean.spread["languages"]
    assert languages["standard_deviation"] == pytest.approx({"es": 0, "gl": 0.1, "eu": 0.1})
    assert (languages["least"]["gl"], languages["greatest"]["gl"]) == (0.1, 0.3)
    assert [fit["sha256"] for fit in mean.spread["weights"]] == [
        sha256_file(Path(file)) for file in ("seed0/weights.json", "seed1/weights.json", "seed2.json")
    ]
    assert out.startswith("Weights of 3 fits, proxy 60m")
    assert "3 fits, proxy 60m: 1 of 3 pairs of languages changes order" in out
    assert "they differ in seed" in out
    assert "furthest from the mean: seed0, in 20.0% of the tokens" in out
    assert out.splitlines()[-1] == "mean.json"


def test_languages_that_one_more_fit_would_move_are_named(xdoge, runs):
    _, _, err = xdoge("merge", *runs, "--out", "mean.json")
    # the standard deviation is 0.1, the mean 0.2: 0.5 / sqrt(3 * 4)
    expected = "warning: one more fit is expected to move the weight of gl by 14%, eu by 14%; fit another seed."
    assert err.splitlines() == [expected]
    fit(Path("seed3.json"), 0.3001, 0.2999, 0.2, 0.2, seed=3)
    assert xdoge("merge", "seed1", "seed3.json", "--out", "near.json")[2] == ""


def test_sources_are_shown_on_request(xdoge, runs):
    assert "es/web" not in xdoge("merge", *runs)[1]
    assert "es/web" in xdoge("merge", *runs, "--sources")[1]


def test_json_is_the_file_and_without_out_nothing_is_written(xdoge, runs):
    before = sorted(Path().rglob("*"))
    _, shown, err = xdoge("merge", *runs, "--json")
    assert "nothing was written; add --out" in err
    assert sorted(Path().rglob("*")) == before
    _, out, _ = xdoge("merge", *runs, "--json", "--out", "mean.json")
    assert json.loads(out) == json.loads(shown) == json.loads(Path("mean.json").read_text())


def test_the_order_of_runs_changes_no_digit_of_the_mean(xdoge, runs):
    xdoge("merge", *runs, "--out", "one.json")
    xdoge("merge", *reversed(runs), "--out", "other.json")
    assert WeightSet.load("one.json").sources == WeightSet.load("other.json").sources


def test_mix_reads_the_mean(xdoge, runs):
    xdoge("merge", *runs, "--out", "mean.json")
    Path("counts.json").write_text(json.dumps(dict.fromkeys(SOURCES, 1000)))
    status, out, _ = xdoge("mix", "mean.json", "--tokens", "counts.json", "--budget", "1K")
    assert (status, "tiny-60m-mean-of-3" in out) == (0, True)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"corpus": {"name": "big", "sha256": "b" * 64}}, "different corpora: tiny"),
        ({"floor": 0.02}, "seed0 has floor 0.01 and other.json has floor 0.02"),
        ({"seed": 0}, "seed0 and other.json are the same fit"),
        ({"seed": 0, "timeout": 60, "microbatches": 2}, "seed0 and other.json are the same fit"),
        ({"corpus": {}}, "other.json does not name its settings, proxy and corpus"),
    ],
)
def test_fits_that_do_not_belong_together_are_refused(xdoge, runs, other, message):
    fit(Path("other.json"), 0.3, 0.3, 0.2, 0.2, **{"seed": 7, **other})
    status, _, err = xdoge("merge", "seed0", "other.json", "--out", "mean.json")
    assert (status, message in one_line(err)) == (1, True), err
    assert not Path("mean.json").exists()


def test_other_runs_that_cannot_be_merged_are_one_line(xdoge, runs):
    Path("half").mkdir()
    Path("half/config.yaml").touch()
    xdoge("merge", *runs, "--out", "mean.json")
    for arguments, message in (
        (["seed0"], "seed0 is a single run"),
        (["seed0", "half"], "half has no weights.json: its fit is not finished; resume it first."),
        (["seed0", "seed0/weights.json"], "seed0 and seed0/weights.json are the same fit"),
        (["seed0", "mean.json"], "mean.json is an average already; name the fits"),
        (["seed0", "nowhere"], "nowhere does not exist."),
        (["seed0", "seed1", "--out", "mean.json"], "mean.json exists; name another file, or replace it with --force."),
        (["seed0", "seed1", "--out", "half", "--force"], "half is a folder; name a file."),
    ):
        status, _, err = xdoge("merge", *arguments)
        assert (status, message in one_line(err)) == (1, True), err
    assert xdoge("merge", *runs[:2], "--out", "mean.json", "--force")[0] == 0
    assert xdoge("merge")[0] == 2


def test_a_warning_names_fits_that_are_not_equal_draws(xdoge, runs):
    fit(Path("large.json"), 0.3, 0.3, 0.2, 0.2, proxy="125m", mu=1.0)
    _, out, err = xdoge("merge", *runs, "large.json", "--out", "mean.json")
    assert "proxies have different numbers of fits (60m 3, 125m 1)" in err
    assert "the fits differ in mu, so they do not estimate the same weights" in err
    assert "Weights of 4 fits, all proxies" in out
    assert WeightSet.load("mean.json").name == "tiny-60m+125m-mean-of-4"


def test_fits_of_a_baseline_can_be_averaged(xdoge, runs):
    for seed in (0, 1):
        fit(Path(f"doremi{seed}.json"), 0.4, 0.2, 0.3, 0.1, seed=seed, baseline="doremi")
    assert xdoge("merge", "doremi0.json", "doremi1.json", "--out", "mean.json")[0] == 0
    assert WeightSet.load("mean.json").name == "tiny-doremi-60m-mean-of-2"
    assert "the fits differ in baseline" in xdoge("merge", "seed0", "doremi1.json")[2]


simplex = st.lists(st.floats(0.01, 1), min_size=4, max_size=4).map(
    lambda values: dict(zip(SOURCES, (value / sum(values) for value in values), strict=True))
)


@given(st.lists(simplex, min_size=2, max_size=6))
def test_an_average_lies_between_its_sets_and_its_spread_is_that_of_each_level(tables):
    sets = [WeightSet(str(number), table) for number, table in enumerate(tables)]
    mean = WeightSet.average(sets)
    for level, spread in (("sources", mean.spread), ("languages", mean.spread["languages"])):
        for name, weight in getattr(mean, level).items():
            values = [getattr(weights, level)[name] for weights in sets]
            assert spread["least"][name] == min(values)
            assert spread["greatest"][name] == max(values)
            assert min(values) - 1e-12 <= weight <= max(values) + 1e-12
            assert spread["standard_deviation"][name] == pytest.approx(statistics.stdev(values), abs=1e-9)
