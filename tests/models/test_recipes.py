"""Proxy recipes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from xdoge.errors import XDogeError
from xdoge.models.recipes import load_recipe, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_has_the_parameters_its_name_says(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.about
    assert recipe.non_embedding_parameters == pytest.approx(float(name[:-1]) * 1e6, rel=0.05)


def test_all_sizes_are_there():
    assert recipe_names() == ["1m", "7m", "15m", "60m", "125m", "250m", "500m", "900m"]


def test_the_counted_parameters_are_those_of_the_model(recipe):
    for shape in (load_recipe("1m"), load_recipe(recipe)):
        model = shape.build(vocab_size=100, seed=0)
        assert sum(p.numel() for p in model.parameters()) - 100 * shape.hidden_size == shape.non_embedding_parameters


def test_grouped_heads_and_an_untied_head_are_counted(tmp_path):
    text = "name: g\nhidden_size: 32\nintermediate_size: 48\nlayers: 2\nheads: 4\nkv_heads: 2\ntie_embeddings: false\n"
    (tmp_path / "g.yaml").write_text(text + "sequence_length: 8\nbatch_size: 4\nsteps: 2\nlearning_rate: 0.1\n")
    shape = load_recipe(str(tmp_path / "g.yaml"))
    model = shape.build(vocab_size=50, seed=0)
    assert sum(p.numel() for p in model.parameters()) == shape.non_embedding_parameters + 2 * 50 * 32


def test_a_seed_decides_the_model_and_the_global_generator_is_left_alone(recipe):
    shape = load_recipe(recipe)
    before = torch.random.get_rng_state()
    first, again, other = (shape.build(vocab_size=64, seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("125M", "125M"),
        ("nowhere.yaml", "nowhere.yaml"),
    ],
)
def test_an_unknown_recipe_is_refused(name, message):
    with pytest.raises(XDogeError, match=message):
        load_recipe(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, "hidden_size 16 over 3 heads is not an even number"),
        ({"kv_heads": 3}, "heads 2 is not a multiple of kv_heads 3"),
        ({"layer": 3}, "layer is not a known key"),
        ({"layers": 0}, "layers: it must be above 0"),
    ],
)
def test_a_recipe_that_makes_no_model_is_refused(recipe, tmp_path, change, message):
    value = yaml.safe_load(Path(recipe).read_text()) | change
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(value))
    with pytest.raises(XDogeError, match=f"bad.yaml.*{message}"):
        load_recipe(str(path))
