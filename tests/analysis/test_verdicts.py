"""Verdicts: what they call real, noise or decided by the caps, and the commands that print them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from xdoge import Mixture, WeightSet, XDogeError, compare
from xdoge.analysis.shares import groups
from xdoge.analysis.verdicts import mixture_verdict, more_fits, moves, predictions_verdict, scores_verdict
from xdoge.eval.document_scores import SUMS, SourceScores
from xdoge.eval.results import Results, Row

COUNTS = {"es/web": 800_000, "es/wiki": 100_000, "gl/wiki": 40_000, "eu/wiki": 20_000}


def planned(*shares, budget=1_000_000, **options):
    weights = WeightSet("learned", dict(zip(COUNTS, shares, strict=True)))
    return Mixture.plan(weights, available_tokens=COUNTS, budget_tokens=budget, **options)


def test_a_mixture_equal_to_that_of_equal_shares_is_decided_by_the_caps():
    whole = {"es/web": 800_000, "gl/wiki": 40_000, "eu/wiki": 20_000}
    weights = WeightSet("learned", {"es/web": 0.2, "gl/wiki": 0.5, "eu/wiki": 0.3})
    mixture = Mixture.plan(weights, available_tokens=whole, budget_tokens=1_000_000)
    text = " ".join(mixture_verdict(mixture))
    assert "The caps decide this mixture, so the weights do not matter here" in text
    assert "0.00%" in text


def test_weights_that_only_divide_a_language_do_not_decide_a_mixture():
    text = " ".join(mixture_verdict(planned(0.5, 0.2, 0.2, 0.1)))
    assert "caps decide how much each language gets" in text
    assert "13.3% of the tokens" in text


def test_languages_that_the_caps_alone_decide_are_named_with_their_share():
    text = " ".join(mixture_verdict(planned(0.3, 0.1, 0.25, 0.35, budget=500_000, max_epochs=8, caps={"eu": 2})))
    assert "The weights matter" in text
    assert "They do not matter for eu (8.00%)" in text


def test_without_a_cap_that_binds_the_weights_decide_everything():
    (first, *_) = mixture_verdict(planned(0.5, 0.2, 0.2, 0.1, budget=100_000))
    equal = {"es/web": 8 / 27, "es/wiki": 1 / 27, "gl/wiki": 1 / 3, "eu/wiki": 1 / 3}
    moved = sum(abs(a - b) for a, b in zip((0.5, 0.2, 0.2, 0.1), equal.values(), strict=True)) / 2
    assert f"{moved:.1%}" in first
    assert "equal shares of the languages" in mixture_verdict(planned(*equal.values()))[0]


def test_a_mixture_over_some_languages_is_compared_with_equal_shares_of_these():
    (first, *_) = mixture_verdict(planned(0.8, 0.2, 0.0, 0.0, budget=100_000))
    assert "equal shares would change 8.9%" in first.replace(" under the same caps", "")


def test_mix_ends_with_its_verdict_and_its_json_is_read_as_a_mixture(xdoge, tmp_path):
    (tmp_path / "counts.json").write_text(json.dumps(COUNTS))
    command = ("mix", "uniform", "--tokens", tmp_path / "counts.json", "--budget", "1M", "--max-epochs", 8)
    status, printed, _ = xdoge(*command)
    assert status == 0
    assert printed.splitlines()[-1].startswith("verdict: The weights are equal shares")
    total = next(line.split() for line in printed.splitlines() if line.split()[:1] == ["total"])
    assert total == ["total", "1.0000", "1.0000", "1,000,000", "960,000", "1.04", "39.6%"]
    assert "learned" not in printed.partition("verdict")[0]
    _, printed, _ = xdoge(*command, "--json")
    assert json.loads(printed)["verdict"].startswith("The weights are equal")
    (tmp_path / "m.json").write_text(printed)
    assert Mixture.load(tmp_path / "m.json").budget_tokens == 1_000_000


# Fits


def fit(name, *shares, seed=0, **method):
    about = {"seed": seed, "mu": 0.1, "targets": "sources", **method}
    sources = dict(zip(COUNTS, shares, strict=True))
    return WeightSet(name, sources, method=about, proxy={"name": "60m"}, corpus={"sha256": "a" * 64})


A = fit("a", 0.5, 0.2, 0.2, 0.1)
FAR = fit("far", 0.2, 0.15, 0.3, 0.35, seed=1)
NEAR = fit("near", 0.49, 0.2, 0.21, 0.1, seed=1)


def test_fits_that_lie_far_apart_are_not_reliable_and_near_ones_agree():
    (text,) = compare([A, FAR]).verdict
    assert "differ in 35% of the tokens" in text
    assert "not reliable" in text
    (text,) = compare([A, NEAR]).verdict
    assert "agree" in text
    assert compare([A, NEAR]).to_dict()["verdict"] == text


def test_fits_that_differ_more_by_seed_than_from_equal_shares_are_not_reliable():
    equal = dict(zip(COUNTS, (0.3, 0.03, 0.34, 0.33), strict=True))
    other = dict(zip(COUNTS, (0.3, 0.03, 0.32, 0.35), strict=True))
    (text,) = compare([fit("a", *equal.values()), fit("b", *other.values(), seed=1)]).verdict
    assert "not reliable" in text
    assert "equal shares" in text


def test_the_advised_number_of_fits_settles_the_mean():
    (group,) = groups({"a": A, "near": NEAR, "far": FAR})
    n, more = 3, more_fits(group)
    spread = {name: part * np.sqrt(n * (n + 1)) for name, part in moves(group).items()}
    for count, settled in ((n + more - 1, False), (n + more, True)):
        worst = max(part / np.sqrt(count * (count + 1)) for part in spread.values())
        assert (worst <= 0.05) == settled


def test_fits_of_different_targets_are_not_draws_of_one():
    other = [fit("t0", 0.2, 0.1, 0.4, 0.3, targets="languages"), fit("t1", 0.2, 0.1, 0.41, 0.29, targets="languages")]
    compared = compare([A, NEAR, *other])
    assert [group.name for group in compared.groups] == ["proxy 60m, targets sources", "proxy 60m, targets languages"]
    assert any("differ in targets" in note for note in compared.notes)
    assert "more than the fits of one of them" in compared.verdict[-1]
    pair = compare([A, other[0]])
    assert pair.groups == ()
    assert "do not estimate the same weights" in pair.notes[0]


def test_two_fits_are_merged_without_naming_one_as_furthest(xdoge, tmp_path):
    for weights in (A, FAR):
        weights.save(tmp_path / f"{weights.name}.json")
    _, printed, _ = xdoge("merge", tmp_path / "a.json", tmp_path / "far.json")
    assert "furthest" not in printed
    assert "35.0% of the tokens (total variation)" in printed


# Models


def measured(changes, *, count=40, spread=0.3, seed=0):
    """Return the results of two models on documents of some languages, with the changes of the second model."""
    generator = np.random.default_rng(seed)
    rows, documents, sums = [], {"base": {}, "new": {}}, {"base": {}, "new": {}}
    for language, change in changes.items():
        text, noise = 2 + generator.random(count), spread * generator.normal(size=count)
        for model, bits in (("base", text), ("new", text + change + noise - noise.mean())):
            ones = np.ones(count)
            scores = SourceScores(np.column_stack([bits * np.log(2), ones, ones, ones]), (None,) * count)
            documents[model][f"{language}/wiki"] = scores
            sums[model][f"{language}/wiki"] = dict(zip(SUMS, scores.totals.sum(0).tolist(), strict=True))
            error = bits.std(ddof=1) / np.sqrt(count)
            rows.append(Row(model, language, "perplexity", "bits_per_byte", bits.mean(), error, count, False))
    about = {model: {"tokenizer": "t", "text": {"x": "y"}, "sources": sums[model]} for model in sums}
    return Results.of(rows, settings={"perplexity": about}, documents=documents)


def test_paired_errors_decide_which_differences_are_called_significant():
    results = measured({"es": -0.2, "gl": 0.3, "eu": -0.06})
    first, last = scores_verdict(results, baseline="base")
    assert first.startswith("Bits per byte of new against base: significantly better in es (−")
    assert "significantly worse in gl (+" in first
    assert "undecided in eu (−" in first
    assert "times the text would decide" in first
    assert "not the seed of the training" in last
    assert scores_verdict(results, baseline=None) == [first, last]  # against the first model


def test_a_predicted_difference_has_a_minus_sign_and_names_keep_their_hyphens():
    row = {"mixture": "seed-0", "evaluation": "mean", "difference": -0.02}
    (sentence,) = predictions_verdict([row | {"difference_low": -0.03, "difference_high": -0.01}], "law-1m")
    assert "significantly lower: seed-0 (−0.0200 ± 0.0100)" in sentence
    assert "law-1m" in sentence


def test_the_advised_amount_of_text_decides_in_four_of_five_cases():
    """The standard deviation over documents is 0.3, so the advised number follows from the error of the difference."""
    (first, _) = scores_verdict(measured({"eu": -0.06}), baseline="base")
    times = int(first.partition("%, ")[2].partition(" times")[0])
    generator = np.random.default_rng(0)
    draws = generator.normal(-0.06, 0.3, size=(2000, 40 * times))
    decided = draws.mean(1) + 1.96 * draws.std(1, ddof=1) / np.sqrt(draws.shape[1]) < 0
    assert 0.7 < decided.mean() < 0.92


def test_the_verdict_on_one_model_states_its_errors():
    results = measured({"es": 0.0, "eu": 0.0}, count=9)
    alone = replace(results, rows=tuple(row for row in results.rows if row.model == "base"))
    (text,) = scores_verdict(alone, baseline=None)
    assert "least certain" in text
    assert "Fewer than 30 documents" in text


@pytest.mark.parametrize("inputs", [[A], [planned(0.5, 0.2, 0.2, 0.1)]])
def test_inputs_that_cannot_be_judged_have_no_verdict(inputs):
    assert all("caps decide" not in sentence for sentence in compare(inputs).verdict)


def test_a_missing_chart_is_refused_with_the_names_of_all_charts():
    with pytest.raises(XDogeError, match=r"'improvement'.*there are perplexity_change"):
        compare([measured({"es": -0.2, "eu": 0.1})]).charts["improvement"]
