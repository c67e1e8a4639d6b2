"""Learning rate, optimiser, device and precision of a proxy's training."""

from __future__ import annotations

import math

import pytest
import torch

from xdoge.distributed import Processes
from xdoge.errors import XDogeError
from xdoge.fit.settings import FitSettings
from xdoge.models.recipes import load_recipe
from xdoge.training.optim import check_launch, learning_rate_ratio, make_optimiser, pick_autocast, pick_device


def test_the_rate_rises_falls_as_a_cosine_and_ends_where_stated(store, recipe):
    options = {"proxy": recipe, "steps": 100, "warmup": 0.1, "final_learning_rate": 0.2}
    settings = FitSettings.for_store(store, options)
    ratios = [learning_rate_ratio(step, settings) for step in range(1, 101)]
    assert ratios[0] == pytest.approx(0.1)
    assert ratios[9] == 1.0
    assert ratios[54] == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi * 44 / 89)) / 2)
    assert ratios[99] == pytest.approx(0.2)
    assert ratios[10] == 1.0
    assert ratios[9:] == sorted(ratios[9:], reverse=True)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_fit_has_a_rate_above_zero(store, recipe, steps):
    options = {"proxy": recipe, "steps": steps, "warmup": 0.0, "final_learning_rate": 0.0}
    settings = FitSettings.for_store(store, options)
    assert learning_rate_ratio(1, settings) == 1.0


def test_norm_gains_and_biases_are_not_decayed(store, recipe):
    settings = FitSettings.for_store(store, {"proxy": recipe})
    model = load_recipe(recipe).build(vocab_size=50, seed=0)
    decayed, free = make_optimiser(model, settings).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (settings.weight_decay, 0.0)
    assert {p.dim() for p in free["params"]} == {1}
    assert len(decayed["params"]) + len(free["params"]) == len(list(model.parameters()))


def test_an_unknown_device_is_refused():
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(XDogeError, match="device 'gpu'"):
        pick_device("gpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(XDogeError, match="device 'cuda:1' is not on this machine"):
        pick_device("cuda:1")


def test_precision_follows_the_setting():
    cpu = torch.device("cpu")
    assert pick_autocast("auto", cpu) is None
    assert pick_autocast("float32", cpu) is None
    assert pick_autocast("bfloat16", cpu) == torch.bfloat16


@pytest.mark.parametrize(
    ("environment", "options", "message"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, {}, "accelerate is set to FSDP, but a fit keeps the whole proxy"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, {}, "accelerate is set to DeepSpeed"),
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, {}, "mixed_precision fp16, but precision auto is float32 here"),
        ({}, {"device": "cuda"}, "device 'cuda' is not on this machine"),
        ({}, {"device": "cuda:0"}, "device cuda:0 .* 2 processes"),
    ],
)
def test_unsupported_settings_of_a_launcher_are_refused(store, recipe, monkeypatch, environment, options, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = FitSettings.for_store(store, {"proxy": recipe, **options})
    with pytest.raises(XDogeError, match=message):
        check_launch(Processes(0, 2, "cpu"), settings)


def test_a_batch_has_a_row_for_every_process(store, recipe):
    settings = FitSettings.for_store(store, {"proxy": recipe, "batch_size": 12})
    check_launch(Processes(0, 12, "cpu"), settings)
    with pytest.raises(XDogeError, match="batch_size 12 is too small: some of 13 processes"):
        check_launch(Processes(0, 13, "cpu"), settings)
