"""The verdict of a fit on its weights."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xdoge import WeightSet
from xdoge.fit.verdict import fit_verdict
from xdoge.training.run_folder import RunFolder

RECIPE = {"name": "tiny", "steps": 100, "batch_size": 12, "sequence_length": 16}


def verdict(store, tmp_path, start=(0.25,) * 4, end=(0.25,) * 4, **changes):
    """Return the verdict on a fit of ten steps whose weights move evenly from `start` to `end`."""
    steps = [[a + (b - a) * step / 9 for a, b in zip(start, end, strict=True)] for step in range(10)]
    pq.write_table(pa.table({"weight": np.array(steps).ravel()}), tmp_path / "trajectory.parquet")
    settings = {"steps": 100, "batch_size": 12, "sequence_length": 16, "burn_in": 0.0} | changes
    weights = WeightSet(
        "fit",
        dict(zip(store.sources, [sum(column) / 10 for column in zip(*steps, strict=True)], strict=True)),
        method=settings,
        proxy=RECIPE,
        corpus={"tokens": store.tokens()},
    )
    return fit_verdict(weights, RunFolder(tmp_path), store)


def test_the_verdict_on_a_settled_fit_says_that_it_is_one_draw(store, tmp_path):
    worth, following = verdict(store, tmp_path)
    assert "settled" in worth
    assert "one seed" in worth
    assert following == "Next: fit two more seeds and average them with xdoge merge."


def test_the_verdict_names_the_language_whose_weight_still_moves_most(store, tmp_path):
    worth, following = verdict(store, tmp_path, start=(0.1, 0.1, 0.3, 0.5), end=(0.3, 0.3, 0.2, 0.2))
    assert "still moving (es has 0.600 over the last tenth of the steps and 0.400 in the mean" in worth
    assert "more steps" in following
    assert "burn_in" in following


def test_the_verdict_notes_a_proxy_with_far_fewer_tokens_than_its_recipe(store, tmp_path):
    worth, following = verdict(store, tmp_path, steps=5)
    assert "0.05 of its recipe's tokens" in worth
    assert "recipe's steps" in following


def test_a_source_without_validation_text_is_named(store, tmp_path):
    length = next(n for n in range(16, 400) if not all(store.sequence_counts(n, split="validation").values()))
    silent = [source for source, n in store.sequence_counts(length, split="validation").items() if not n]
    worth, _ = verdict(store, tmp_path, sequence_length=length)
    assert f"the loss of {', '.join(silent)}" in worth


def test_a_source_far_above_its_share_is_named_with_the_cap(store, tmp_path, monkeypatch):
    tokens = store.tokens() | {"eu/wiki": 20}
    monkeypatch.setattr(type(store), "tokens", lambda self, split="train": tokens)
    worth, following = verdict(store, tmp_path)
    assert f"eu/wiki {0.25 * sum(tokens.values()) / 20:,.0f} times" in worth
    assert "--max-epochs" in following


@pytest.mark.parametrize("steps", [1, 7])
def test_a_fit_of_a_few_steps_is_not_called_settled(store, tmp_path, steps):
    pq.write_table(pa.table({"weight": [0.25] * 4 * steps}), tmp_path / "trajectory.parquet")
    short = RECIPE | {"steps": steps}
    sources, corpus = dict.fromkeys(store.sources, 0.25), {"tokens": store.tokens()}
    weights = WeightSet("fit", sources, method=short, proxy=short, corpus=corpus)
    worth = fit_verdict(weights, RunFolder(tmp_path), store)[0]
    assert f"come from {steps} step" in worth
    larger = short | {"batch_size": 100 * RECIPE["batch_size"]}  # tokens enough, in few steps
    weights = WeightSet("fit", sources, method=larger, proxy=RECIPE, corpus=corpus)
    worth, following = fit_verdict(weights, RunFolder(tmp_path), store)
    assert f"trained for only {steps} steps of the 100" in worth
    assert "use the recipe's steps;" in following
