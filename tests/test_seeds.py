"""Every command accepts seeds from 0 to 2^32 - 1. For any other, it prints one line before it writes anything."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pydantic import ValidationError

from xdoge.corpus.spec import TrainTokenizer
from xdoge.errors import XDogeError
from xdoge.eval.perplexity import PerplexitySettings
from xdoge.eval.suite import HarnessSettings
from xdoge.fit.settings import FitSettings
from xdoge.laws import fitted
from xdoge.laws.swarm_settings import SwarmSettings
from xdoge.mixtures.mixture import Mixture
from xdoge.sampling.sampler import MixtureSampler
from xdoge.study.spec import StudySpec
from xdoge.train.settings import TrainSettings

LARGEST = 2**32 - 1
WRONG = [-1, 2**32, 2**64, 10**400]
SETTINGS = [
    (FitSettings, "seed"),
    (HarnessSettings, "seed"),
    (PerplexitySettings, "seed"),
    (SwarmSettings, "seed"),
    (SwarmSettings, "seeds"),
    (StudySpec, "seeds"),
    (TrainSettings, "seed"),
    (TrainTokenizer, "seed"),
]


def problems(kind, key, value):
    """Return the types of the errors about a key."""
    try:
        kind.model_validate({key: [value, 1] if key == "seeds" else value})
    except ValidationError as error:
        return [problem["type"] for problem in error.errors() if problem["loc"][0] == key]
    return []


@pytest.mark.parametrize(("kind", "key"), SETTINGS)
def test_settings_take_one_range_of_seeds(kind, key):
    assert problems(kind, key, LARGEST) == problems(kind, key, 0) == []
    for value in WRONG:
        assert problems(kind, key, value) != []


@pytest.mark.parametrize("seed", [*WRONG, 1.5, "x", True])
def test_functions_take_the_same_range(store, seed):
    mixture = Mixture.plan(
        dict.fromkeys(store.sources, 0.25), available_tokens=store.tokens(), budget_tokens=1000, seed=LARGEST
    )
    for use in (
        lambda: replace(mixture, seed=seed),
        lambda: MixtureSampler(mixture, store.sequence_counts(16), batch_size=4, sequence_length=16, seed=seed),
        lambda: fitted.LawSettings(seed=seed),
    ):
        with pytest.raises(XDogeError, match=r"seed"):
            use()


@pytest.mark.parametrize("seed", WRONG)
def test_commands_refuse_other_seeds_before_they_write_anything(store, recipe, tmp_path, xdoge, seed):
    mixture, out = tmp_path / "mixture.json", tmp_path / "out"
    Mixture.plan(dict.fromkeys(store.sources, 0.25), available_tokens=store.tokens(), budget_tokens=2560).save(mixture)
    for command in (
        ("train", mixture, "--store", store.path, "--model", recipe, "--out", out),
        ("fit-weights", store.path, "--set", f"proxy={recipe}", "--out", out),
    ):
        code, _, err = xdoge(*command, "--set", f"seed={seed}")
        assert (code, len(err.splitlines())) == (1, 1), err
        assert "seed" in err
        assert not out.exists()
