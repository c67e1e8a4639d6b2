"""`xdoge fit-law`, `xdoge predict` and `xdoge optimize` on the command line."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from command_line import one_line
from law_swarms import known_law, runs

from xdoge import WeightSet

SOURCES = ("en/web", "es/web", "gl/web", "eu/web")


def table(path, names, values, first=0):
    rows = [[f"r{first + i}", *row] for i, row in enumerate(values.tolist())]
    path.write_text("\n".join(",".join(map(str, row)) for row in [["run", *names], *rows]) + "\n")


@pytest.fixture(scope="module")
def swarm(tmp_path_factory):
    """A folder with mixtures.csv, losses.csv and a law of them."""
    folder = tmp_path_factory.mktemp("swarm")
    shares, losses = runs(known_law(), 24, noise=0.01)
    table(folder / "mixtures.csv", SOURCES, shares)
    table(folder / "losses.csv", ("en", "es", "gl", "eu"), losses)
    return folder


@pytest.fixture
def here(swarm, monkeypatch):
    monkeypatch.chdir(swarm)
    return swarm


FIT = ["fit-law", "--mixtures", "mixtures.csv", "--losses", "losses.csv"]


@pytest.fixture
def law(xdoge, here):
    if not (here / "law.json").exists():
        assert xdoge(*FIT, "--form", "effective", "--out", "law.json")[0] == 0
    return here / "law.json"


def test_fit_law_prints_scores_transfer_and_a_verdict(xdoge, here):
    status, out, _ = xdoge(*FIT, "--form", "effective", "--out", "printed.json")
    assert status == 0
    for word in ("log-linear", "lightgbm", "gl: es/web", "printed.json", "90 % intervals"):
        assert word in out


def test_json_holds_the_scores_of_every_form(xdoge, here):
    status, out, _ = xdoge(*FIT, "--form", "linear", "--out", "linear.json", "--json")
    assert status == 0
    assert set(json.loads(out)["validation"]) >= {"linear", "effective", "log-linear"}


def test_predict_writes_a_tidy_table(xdoge, law, here):
    (here / "p.csv").unlink(missing_ok=True)
    assert xdoge("predict", law, "--mixtures", "mixtures.csv", "--out", "p.csv")[0] == 0
    rows = list(csv.DictReader((here / "p.csv").read_text().splitlines()))
    assert list(rows[0]) == ["run", "evaluation", "predicted", "low", "high"]
    assert len(rows) == 24 * 4
    assert all(float(row["low"]) < float(row["predicted"]) < float(row["high"]) for row in rows)


def test_predict_reads_words_and_weights(xdoge, law, here):
    WeightSet(name="w", sources=dict(zip(SOURCES, (0.4, 0.3, 0.2, 0.1), strict=True))).save(here / "w.json")
    _, out, _ = xdoge("predict", law, "uniform", "w.json", "--json")
    rows = json.loads(out)
    assert [row["run"] for row in rows] == ["uniform", "w.json"]
    status, out, _ = xdoge("predict", law, "uniform", "w.json")
    assert (status, "mean" in out, "±" in out) == (0, True, True)


def test_predict_refuses_weights_outside_the_caps(xdoge, here, tmp_path):
    (tmp_path / "counts.csv").write_text("en/web,2000000\nes/web,500000\ngl/web,50000\neu/web,20000\n")
    counts = ("--tokens", tmp_path / "counts.csv", "--budget", "1M")
    assert xdoge(*FIT, *counts, "--form", "linear", "--out", tmp_path / "law.json")[0] == 0
    status, _, err = xdoge(
        "predict", tmp_path / "law.json", "uniform", "--max-epochs", "8", "--out", tmp_path / "p.csv"
    )
    assert (status, "eu/web" in one_line(err) or "gl/web" in err) == (1, True)
    assert not (tmp_path / "p.csv").exists()


def test_optimize_writes_weights_and_a_verdict(xdoge, law, here):
    (here / "best.json").unlink(missing_ok=True)
    status, out, _ = xdoge("optimize", law, "--out", "best.json", "--force-optimum")
    assert status == 0
    assert "verdict: " in out
    assert sum(WeightSet.load(here / "best.json").sources.values()) == pytest.approx(1)
    _, out, _ = xdoge("optimize", law, "--objective", "worst", "--no-worse-than", "uniform:1%", "--json")
    assert json.loads(out)["gains"]["uniform"]["low"] <= json.loads(out)["gains"]["uniform"]["charged"]


COUNTS = {"en/web": 100_000, "es/web": 20_000, "gl/web": 5_000, "eu/web": 1_000}


@pytest.fixture
def counts(here):
    (here / "counts.json").write_text(json.dumps(COUNTS))
    return ["--tokens", "counts.json", "--budget", "40K"]


def test_mix_shows_what_a_law_predicts_of_the_plan(xdoge, law, counts, here):
    status, out, err = xdoge("mix", "uniform", *counts, "--max-epochs", "none", "--law", law)
    assert (status, "Losses predicted by" in out, "eu" in out, "warning: law" in err) == (0, True, True, False)
    _, out, _ = xdoge("mix", "uniform", *counts, "--max-epochs", "none", "--law", law, "--json")
    rows = {row["evaluation"]: row for row in json.loads(out)["law"]["rows"]}
    _, out, _ = xdoge("predict", law, "uniform", "--json")
    (predicted,) = json.loads(out)
    assert list(rows) == ["en", "es", "gl", "eu", "mean", "worst"]
    assert rows["mean"]["predicted"] == pytest.approx(predicted["mean"])
    assert rows["mean"]["difference"] == pytest.approx(0, abs=1e-9)
    for name, values in predicted["evaluations"].items():
        assert {key: rows[name][key] for key in values} == pytest.approx(values)


def test_mix_shows_several_caps_under_a_law_and_the_file_stays_the_plan(xdoge, law, counts, here):
    status, out, _ = xdoge("mix", "unimax", *counts, "--max-epochs", "4,none", "--law", law)
    assert (status, out.count("≤ 4 epochs") > 1, "worst" in out) == (0, True, True)
    xdoge("mix", "uniform", *counts, "--max-epochs", "none", "--law", law, "--out", "with.json", "--force")
    assert "law" not in json.loads((here / "with.json").read_text())


def test_mix_says_why_other_sources_get_no_prediction(xdoge, law, counts, here):
    (here / "counts.json").write_text(json.dumps({**COUNTS, "fr/web": 50_000}))
    status, out, err = xdoge("mix", "uniform", *counts, "--max-epochs", "none", "--law", law)
    assert (status, "Losses predicted by" in out, "no prediction" in err, "fr/web" in err) == (0, False, True, True)


def test_compare_shows_what_a_law_predicts_and_draws_it(xdoge, law, here):
    WeightSet(name="w", sources=dict(zip(SOURCES, (0.4, 0.3, 0.2, 0.1), strict=True))).save(here / "w.json")
    status, out, _ = xdoge("compare", "w.json", "--law", law, "--html", "report.html", "--force")
    assert (status, "Losses predicted by law" in out) == (0, True)
    assert "Transfer between sources" in (here / "report.html").read_text()
    _, out, _ = xdoge("compare", "w.json", law, "--json")
    value = json.loads(out)
    assert {row["mixture"] for row in value["predictions"]} == {"w"}
    assert value["laws"][0]["law"] == "law"


def test_a_damaged_law_writes_no_plan(xdoge, counts, here):
    (here / "bad.json").write_text('{"schema": "xdoge.law/1"}')
    for arguments in (("mix", "uniform", *counts, "--out", "plan.json"), ("compare", "counts.json")):
        status, _, err = xdoge(*arguments, "--law", "bad.json")
        assert status == 1
        assert ("bad.json" in one_line(err)) or "counts.json" in one_line(err)
    assert not (here / "plan.json").exists()


def test_bad_input_is_one_line_and_writes_nothing(xdoge, here, tmp_path):
    shares, losses = runs(known_law(), 24)
    cases = {"24 rows": (shares[:23], losses, "r23"), "sum": (np.vstack([shares[:23], 2 * shares[23:]]), losses, "r23")}
    cases["few"] = (shares[:5], losses[:5], "5 runs")
    cases["never varies"] = (np.tile(shares[:1], (24, 1)), losses, "en/web")
    for x, y, word in cases.values():
        table(tmp_path / "m.csv", SOURCES, x)
        table(tmp_path / "l.csv", ("en", "es", "gl", "eu"), y)
        out = tmp_path / "law.json"
        status, _, err = xdoge(
            "fit-law", "--mixtures", tmp_path / "m.csv", "--losses", tmp_path / "l.csv", "--out", out
        )
        assert status == 1
        assert word in one_line(err)
        assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((*FIT, "--form", "cubic", "--out", "new.json"), "cubic"),
        ((*FIT, "--own", "en", "--out", "new.json"), "EVALUATION=SOURCE"),
        ((*FIT, "--budget", "1B", "--out", "new.json"), "--tokens"),
        ((*FIT, "--seed", "-1", "--out", "new.json"), "--seed"),
        ((*FIT, "--also", "mixtures.csv", "mixtures.csv", "--out", "new.json"), "mixtures.csv"),
        (("fit-law", "swarm", "--seed", "0", "--out", "new.json"), "--seed"),
        (("fit-law", "swarm", "--own", "en=en/web", "--out", "new.json"), "--own"),
        (("optimize", "law.json", "--budget", "0"), "--budget"),
        (("optimize", "law.json", "--max-epochs", "nan"), "--max-epochs"),
        (("predict", "law.json", "uniform", "--max-epochs", "nan"), "--max-epochs"),
        (("predict", "law.json"), "--mixtures"),
        (("predict", "law.json", "unimax"), "unimax"),
        (("predict", "mixtures.csv", "uniform"), "mixtures.csv"),
        (("predict", "law.json", "uniform", "--max-epochs", "4"), "--max-epochs"),
        (("optimize", "law.json", "--objective", "best"), "best"),
        (("optimize", "law.json", "--max-epochs", "4"), "token counts"),
        (("optimize", "law.json", "--no-worse-than", "uniform"), "uniform:1%"),
        (("optimize", "law.json", "--out", "new.yaml"), "new.yaml"),
    ],
)
def test_wrong_options_are_one_line(xdoge, law, here, arguments, word):
    status, _, err = xdoge(*arguments)
    assert status == 1
    assert word in one_line(err)
    assert not (here / "new.json").exists()


def test_differences_to_equal_shares_have_intervals_and_a_verdict(xdoge, law, counts, here):
    (here / "shares.csv").write_text("run," + ",".join(SOURCES) + "\nbest,0.1,0.3,0.3,0.3\n")
    status, out, err = xdoge("mix", "shares.csv", *counts, "--max-epochs", "none", "--law", law)
    assert status == 0, err
    assert "± " in out.partition("shares")[2]
    assert "Mean loss predicted by" in out.rpartition("verdict: ")[2]
    _, out, _ = xdoge("mix", "shares.csv", *counts, "--max-epochs", "none", "--law", law, "--json")
    for row in json.loads(out)["law"]["rows"]:
        assert row["difference_low"] < row["difference"] < row["difference_high"]
    _, out, _ = xdoge("mix", "uniform", *counts, "--max-epochs", "none", "--law", law, "--json")
    assert {row["difference_high"] - row["difference_low"] for row in json.loads(out)["law"]["rows"]} == {0.0}


def test_a_file_of_one_mixture_is_read_wherever_a_mixture_is_named(xdoge, law, counts, here):
    lines = ["run," + ",".join(SOURCES), "best,0.1,0.2,0.3,0.4", "other,0.4,0.3,0.2,0.1"]
    (here / "one.csv").write_text("\n".join(lines[:2]))
    (here / "two.csv").write_text("\n".join(lines))
    _, out, _ = xdoge("mix", "one.csv", *counts, "--max-epochs", "none", "--json")
    weights = {name: source["learned_weight"] for name, source in json.loads(out)["sources"].items()}
    assert weights == pytest.approx(dict(zip(SOURCES, (0.1, 0.2, 0.3, 0.4), strict=True)))
    assert xdoge("predict", law, "one.csv", "--json")[0] == 0
    for command in (("mix", "two.csv", *counts), ("predict", law, "two.csv")):
        status, _, err = xdoge(*command)
        assert (status, "two.csv has the shares of 2 mixtures" in one_line(err)) == (1, True)


def test_predict_takes_another_budget_if_the_law_knows_token_counts(xdoge, law, here, tmp_path):
    (tmp_path / "counts.csv").write_text("en/web,2000000\nes/web,500000\ngl/web,50000\neu/web,20000\n")
    known = tmp_path / "law.json"
    counts = ("--tokens", tmp_path / "counts.csv", "--budget", "1M")
    assert xdoge(*FIT, *counts, "--form", "effective", "--out", known)[0] == 0
    _, same, _ = xdoge("predict", known, "uniform", "--json")
    assert xdoge("predict", known, "uniform", "--budget", "1M", "--json")[1] == same
    status, out, err = xdoge("predict", known, "uniform", "--budget", "4M", "--json")
    assert (status, "Predicted for 4,000,000 tokens; the runs had 1,000,000." in err) == (0, True)
    assert json.loads(out)[0]["mean"] < json.loads(same)[0]["mean"]
    status, _, err = xdoge("predict", law, "uniform", "--budget", "4M")
    assert (status, "--budget" in one_line(err)) == (1, True)
    status, _, err = xdoge("predict", known, "uniform", "--budget", "0")
    assert (status, "--budget" in one_line(err)) == (1, True)
