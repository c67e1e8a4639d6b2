"""`xdoge mix`, `xdoge export`, `xdoge formats` and `xdoge plan` on the command line."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest
from command_line import one_line

from xdoge import Mixture, WeightSet

COUNTS = {"en/web": 100_000, "es/web": 20_000, "es/wiki": 5_000, "eu/wiki": 1_000}
LEARNED = {"en/web": 0.4, "es/web": 0.25, "es/wiki": 0.15, "eu/wiki": 0.2}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with counts.json and weights.json, in which the commands run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "counts.json").write_text(json.dumps(COUNTS))
    WeightSet(name="learned", sources=LEARNED).save(tmp_path / "weights.json")
    return tmp_path


MIX = ["mix", "weights.json", "--tokens", "counts.json", "--budget", "40K"]


def test_mix_prints_the_plan_and_writes_it(xdoge, here):
    status, out, err = xdoge(*MIX, "--out", "m.json")
    assert status == 0
    assert out.startswith(
        "learned: 40,000 tokens, at most 4 epochs unless --cap says otherwise; "
        "caps and rounding move 10.00% of the tokens"
    )
    for word in ("planned / weight", "18,000", "at 4", "m.json"):
        assert word in out
    assert "warning: caps cut the weight by more than 25%: eu by 50%." in err
    assert Mixture.load("m.json").sources["eu/wiki"].tokens == 4_000


def test_without_out_the_plan_is_only_shown(xdoge, here):
    status, out, err = xdoge(*MIX)
    assert (status, "18,000" in out, "nothing was written; add --out" in err) == (0, True, True)
    assert {path.name for path in here.iterdir()} == {"counts.json", "weights.json"}


def test_json_is_the_file_and_the_verdict(xdoge, here):
    _, out, err = xdoge(*MIX, "--out", "m.json", "--json")
    printed = json.loads(out)
    assert "caps decide" in printed.pop("verdict")
    assert printed == json.loads(Path("m.json").read_text())
    assert "warning" in err


def test_several_caps_are_shown_side_by_side_and_impossible_ones_are_named(xdoge, here):
    status, out, err = xdoge(
        "mix", "unimax", "--tokens", "counts.json", "--budget", "200K", "--max-epochs", "1,2,4,none"
    )
    assert status == 0
    for word in ("≤ 2 epochs", "≤ 4 epochs", "no cap", "*: limited by the cap"):
        assert word in out
    assert "--max-epochs 1: budget 200,000 cannot be spent: 4 sources at --max-epochs 1 give 126,000" in err
    assert {path.name for path in here.iterdir()} == {"counts.json", "weights.json"}
    _, out, _ = xdoge("mix", "unimax", "--tokens", "counts.json", "--budget", "200K", "--max-epochs", "2,4", "--json")
    assert [value["max_epochs"] for value in json.loads(out)] == [2, 4]


def test_an_existing_file_is_kept_unless_forced(xdoge, here):
    assert xdoge(*MIX, "--out", "m.json")[0] == 0
    before = Path("m.json").read_text()
    status, _, err = xdoge(*MIX, "--out", "m.json", "--max-epochs", 8)
    assert (status, "m.json exists; name another file, or replace it with --force" in one_line(err)) == (1, True)
    assert Path("m.json").read_text() == before
    assert xdoge(*MIX, "--out", "m.json", "--max-epochs", 8, "--force")[0] == 0
    assert Path("m.json").read_text() != before


def test_weights_may_be_a_mapping_by_language_a_run_or_a_strategy(xdoge, here):
    Path("hand.json").write_text('{"en": 0.5, "es": 0.4, "eu": 0.1}')
    Path("run").mkdir()
    Path("weights.json").rename("run/weights.json")
    tokens = ["--tokens", "counts.json", "--budget", "40K", "--out"]
    assert xdoge("mix", "hand.json", *tokens, "hand-mix.json")[0] == 0
    hand = Mixture.load("hand-mix.json")
    assert (hand.name, hand.level) == ("hand", "languages")
    assert hand.sources["es/web"].tokens == 12_800
    assert xdoge("mix", "run", *tokens, "run-mix.json")[0] == 0
    assert (Mixture.load("run-mix.json").name, Mixture.load("run-mix.json").level) == ("learned", "sources")
    assert xdoge("mix", "temperature", "--temperature", 2, *tokens, "hot.json")[0] == 0
    hot = Mixture.load("hot.json").languages
    assert hot["en"].learned_weight / hot["es"].learned_weight == pytest.approx(2)


def test_counts_may_be_csv_and_written_short(xdoge, here):
    with open("counts.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [("source", "tokens", "note"), *((s, f"{n // 1000}K", "x") for s, n in COUNTS.items())]
        )
    assert xdoge("mix", "weights.json", "--tokens", "counts.csv", "--budget", "40K", "--out", "c.json")[0] == 0
    assert xdoge(*MIX, "--out", "j.json")[0] == 0
    assert Mixture.load("c.json").sources == Mixture.load("j.json").sources


def test_a_second_phase_counts_what_the_first_read(xdoge, here):
    assert xdoge(*MIX, "--out", "one.json")[0] == 0
    assert xdoge(*MIX, "--out", "two.json", "--after", "one.json", "--cap", "eu=6")[0] == 0
    basque = Mixture.load("two.json").sources["eu/wiki"]
    assert (basque.read_before, basque.tokens, basque.epochs) == (4_000, 2_000, 6.0)
    _, out, _ = xdoge(*MIX, "--out", "three.json", "--after", "two.json", "--cap", "eu=7")
    assert "after 80,000 in earlier phases" in out
    assert Mixture.load("three.json").sources["eu/wiki"].tokens == 1_000


def test_whole_sequences_only(xdoge, store, here):
    sizes = ["--store", store.path, "--budget", "20K"]
    command = ["mix", "uniform", *sizes, "--sequence-length", 16, "--max-epochs", "none"]
    assert xdoge(*command, "--out", "m.json")[0] == 0
    mixture = Mixture.load("m.json")
    assert {s: share.available_tokens for s, share in mixture.sources.items()} == {
        s: n * 16 for s, n in store.sequence_counts(16).items()
    }
    assert mixture.corpus == {"name": "tiny", "sha256": store.sha256}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mix", "weights.json", "--budget", "1K", "--out", "m.json"], "--store STORE"),
        ([*MIX, "--store", "s"], "--store and --tokens both give the sizes"),
        ([*MIX, "--min-share", "0.3"], "--min-share is 0.3; for 4 sources it must be 0 to 1/4"),
        ([*MIX, "--cap", "eu=1", "--cap", "eu=2"], "--cap eu is given twice"),
        (["mix", "emptyrun", *MIX[2:]], "emptyrun has no weights.json"),
        (["mix", "unimax", "--tokens", "emptyrun", *MIX[4:]], "emptyrun is a folder; --tokens names a file of counts"),
        (["mix", "unimax", "--tokens", "names.json", *MIX[4:]], "names.json: 'eu_wiki'"),
        ([*MIX, "--out", "m.json", "--max-epochs", "1,2"], "--out writes one mixture"),
        ([*MIX, "--out", "m.json", "--max-epochs", "four"], "--max-epochs: 'four' is not a number"),
        ([*MIX, "--out", "m.json", "--max-epochs", "0.1"], "Raise --max-epochs to 0.318 or lower the budget"),
        ([*MIX, "--out", "m.json", "--cap", "eu"], "--cap eu: write it as NAME=N, such as eu/wiki=8"),
        ([*MIX, "--out", "m.json", "--cap", "gl=2"], "--cap names 'gl'; "),
        ([*MIX, "--out", "m.json", "--temperature", "2"], "--temperature is only for the strategy temperature"),
        ([*MIX, "--out", "m.json", "--after", "none.json"], "none.json does not exist"),
        ([*MIX, "--out", "m.json", "--sequence-length", "1001"], "eu/wiki has 1,000 tokens"),
        (["mix", "doge", *MIX[2:], "--out", "m.json"], "doge is neither a file nor a strategy"),
        (["mix", "counts.json", *MIX[2:], "--out", "m.json"], "weights 'counts' sum to 126000; they must sum to 1"),
        ([*MIX[:5], "4x", "--out", "m.json"], "--budget: '4x' is not a count"),
        (["mix", "bad.json", *MIX[2:], "--out", "m.json"], "bad.json: es is 'x', not a weight"),
        (["mix", "unimax", "--tokens", "bad.csv", *MIX[4:], "--out", "m.json"], "bad.csv needs a header"),
        (["mix", "unimax", "--tokens", "badcount.json", *MIX[4:]], "badcount.json: es/w: 'x' is not a count"),
        (["export", "weights.json", "--to", "csv"], "this is another kind of file"),
        (["export", "none.json", "--to", "csv"], "none.json does not exist"),
        (["formats", "yaml"], "format 'yaml' is unknown; known: megatron"),
        (["plan", "none.yaml"], "none.yaml does not exist"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(xdoge, here, arguments, message):
    Path("emptyrun").mkdir()
    Path("emptyrun/config.yaml").write_text("")
    Path("names.json").write_text('{"eu_wiki": 5}')
    Path("badcount.json").write_text('{"es/w": "x"}')
    Path("bad.json").write_text('{"es": "x"}')
    Path("bad.csv").write_text("a,b\n1,2\n")
    status, out, err = xdoge(*arguments)
    assert (status, out) == (1, "")
    assert message in one_line(err)
    assert not Path("m.json").exists()


def test_export_writes_to_stdout_or_a_file_and_warns_on_stderr(xdoge, store, here):
    tokens = ["--store", store.path, "--max-epochs", "none", "--budget", "20K"]
    assert xdoge("mix", "uniform", *tokens, "--out", "m.json")[0] == 0
    status, out, err = xdoge("export", "m.json", "--to", "datasets", "--store", store.path)
    assert status == 0
    assert sum(json.loads(out)["interleave"]["probabilities"]) == pytest.approx(1)
    assert "warning: " in err
    status, out, _ = xdoge("export", "m.json", "--to", "megatron", "--paths", "d/{language}_{source}", "--out", "b.txt")
    assert (status, out) == (0, "b.txt\n")
    assert "d/eu_wiki" in Path("b.txt").read_text()
    status, _, err = xdoge("export", "m.json", "--to", "csv", "--out", "b.txt")
    assert (status, "b.txt exists" in one_line(err)) == (1, True)
    Mixture.plan(LEARNED, available_tokens=COUNTS, budget_tokens=10_000).save("other.json")
    status, _, err = xdoge("export", "other.json", "--to", "datasets", "--store", store.path)
    assert (status, "has no source en/web, which other.json reads" in one_line(err)) == (1, True)
    status, _, err = xdoge("export", "m.json", "--to", "yaml")
    assert (status, "format 'yaml' is unknown; known: megatron" in one_line(err)) == (1, True)


def test_formats_lists_all_and_explains_one(xdoge):
    from xdoge.export import FORMATS

    out = xdoge("formats")[1]
    assert all(name in out for name in FORMATS)
    assert "all_exhausted" in xdoge("formats", "datasets")[1]


def test_plan_prints_a_table_that_adds_up(xdoge):
    example = Path(__file__).parents[2] / "examples/cluster/allocation.yaml"
    out = xdoge("plan", example)[1]
    for number in ("1,998", "63,936", "1,855", "118,720"):
        assert number in out
    assert json.loads(xdoge("plan", example, "--json")[1])["totals"]["node_hours"] == pytest.approx(193_312, rel=1e-3)


@pytest.mark.skipif("XDOGE_REAL_DATA" not in os.environ, reason="XDOGE_REAL_DATA names no folder of real text")
def test_the_real_text_is_planned_and_read_as_planned(xdoge, here):
    from xdoge import MixtureSampler
    from xdoge.corpus.store import TokenStore

    corpus = os.path.join(os.environ["XDOGE_REAL_DATA"], "corpus", "corpus.yaml")
    assert xdoge("prepare", corpus, "--out", "store")[0] == 0
    options = ["--store", "store", "--budget", "20M", "--sequence-length", 256]
    assert xdoge("mix", "unimax", *options, "--max-epochs", 3, "--out", "m.json")[0] == 0
    mixture, store = Mixture.load("m.json"), TokenStore.open("store")
    sampler = MixtureSampler(mixture, store.sequence_counts(256), batch_size=64)
    draws = sampler[:]
    assert len(draws.index) == 20_000_000 // 256
    for number, source in enumerate(sampler.sources):
        mine = draws.source == number
        assert abs(mine.sum() * 256 - mixture.sources[source].tokens) < 2 * 256
        pairs = set(zip(draws.epoch[mine].tolist(), draws.index[mine].tolist(), strict=True))
        assert len(pairs) == mine.sum()
        assert draws.epoch[mine].max() < 3


def test_a_source_may_be_named_like_terminal_markup(xdoge, here):
    names = dict(zip(COUNTS, ["en/[/x]", "es/[bold]", "es/wiki", "eu/wiki"], strict=True))
    (here / "counts.json").write_text(json.dumps({names[key]: count for key, count in COUNTS.items()}))
    WeightSet(name="learned", sources={names[key]: value for key, value in LEARNED.items()}).save("weights.json")
    status, out, _ = xdoge(*MIX)
    assert status == 0
    assert "en/[/x]" in out
    assert "es/[bold]" in out
