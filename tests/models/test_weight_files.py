"""Damaged files of a model are refused in one line, in training and evaluation, before the long work starts."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_models import save_byte_tokenizer, save_llama

from xdoge.errors import XDogeError
from xdoge.models.resolver import CausalModel


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Folder of a good model. Tests must not change it."""
    folder = tmp_path_factory.mktemp("model") / "good"
    save_byte_tokenizer(folder, bos_token="<s>")
    save_llama(folder, vocab_size=258, max_position_embeddings=24, tie_word_embeddings=True, bos_token_id=0)
    return folder


@pytest.fixture
def broken(model, tmp_path):
    return shutil.copytree(model, tmp_path / "broken")


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def refused(folder, *tokens):
    with pytest.raises(XDogeError) as error:
        CausalModel.find(str(folder)).load()
    assert "\n" not in str(error.value)
    for token in (str(folder), *tokens):
        assert token in str(error.value)


def test_tied_weights_are_not_missed(model, capfd):
    assert "lm_head.weight" not in load_file(model / "model.safetensors")
    assert CausalModel.find(str(model)).load().lm_head.weight.shape == (258, 16)
    assert "REPORT" not in "".join(capfd.readouterr())


def test_missing_unexpected_and_misshapen_tensors_are_refused(broken, capfd):
    norm = "model.norm.weight"
    good = (broken / "model.safetensors").read_bytes()
    change_tensors(broken, lambda tensors: tensors.pop(norm))
    refused(broken, "missing", norm)
    (broken / "model.safetensors").write_bytes(good)
    change_tensors(broken, lambda tensors: tensors.update(extra=torch.zeros(2)))
    refused(broken, "unexpected", "extra")
    (broken / "model.safetensors").write_bytes(good)
    change_tensors(broken, lambda tensors: tensors.update({norm: torch.zeros(3)}))
    refused(broken, norm, "(3,)", "(16,)")
    assert "REPORT" not in "".join(capfd.readouterr())


def test_weights_of_another_architecture_are_refused(broken):
    change_config(broken, model_type="gpt2")
    refused(broken, "missing", "transformer.h.0")


def test_integers_in_place_of_weights_are_refused_by_name(broken):
    name = "model.layers.0.mlp.up_proj.weight"
    change_tensors(broken, lambda tensors: tensors.update({name: (tensors[name] * 100).to(torch.int8)}))
    refused(broken, name, "I8")


@pytest.mark.parametrize("kept", [True, False])
def test_an_adapter_is_refused_whether_its_base_lies_beside_it_or_not(broken, kept):
    (broken / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    if not kept:
        (broken / "config.json").unlink()
    refused(broken, "adapter")


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_weights_that_are_no_numbers_are_refused(broken, value):
    change_tensors(broken, lambda tensors: tensors["model.layers.0.mlp.up_proj.weight"].fill_(float(value)))
    refused(broken, "NaN")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "tokenizer.json", "generation_config.json"])
def test_a_pipe_in_the_folder_is_not_waited_for(broken, name):
    (broken / name).unlink(missing_ok=True)
    os.mkfifo(broken / name)
    refused(broken, name, "pipe")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_weights_that_git_lfs_left_out_are_refused_with_the_command_that_fetches_them(broken, name):
    (broken / "model.safetensors").unlink()
    (broken / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n")
    refused(broken, name, "git lfs pull")


def test_weights_that_are_not_read_may_be_left_out_by_git_lfs(broken):
    (broken / "pytorch_model.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n")
    assert CausalModel.find(str(broken)).load().lm_head.weight.shape == (258, 16)


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_a_safetensors_file_that_is_cut_off_is_refused_by_name(broken, cut):
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    refused(broken, "model.safetensors")


@pytest.mark.parametrize("name", ["../good/model.safetensors", "/etc/passwd", "inside/model.safetensors", 3, None])
def test_an_index_that_points_outside_the_folder_is_refused(broken, name):
    (broken / "model.safetensors").rename(broken / "model-00001-of-00001.safetensors")
    index = broken / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"model.norm.weight": name}}))
    refused(broken, "index.json")


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"model_type": []}', "\x00"])
def test_a_configuration_that_is_no_object_is_refused(broken, text):
    (broken / "config.json").write_text(text)
    refused(broken)


@pytest.mark.parametrize("text", ["[1, 2]", "null", '"x"', "{"])
def test_generation_settings_that_are_no_object_are_refused_by_name(broken, text):
    (broken / "generation_config.json").write_text(text)
    refused(broken, "/generation_config.json", "JSON")


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "compressed-tensors", "nothing", None])
def test_a_quantised_model_without_its_library_is_refused(broken, method):
    change_config(broken, quantization_config={"quant_method": method, "bits": 4, "load_in_4bit": True})
    refused(broken)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 10**400),
        ("hidden_size", 10**9),
        ("hidden_size", -1),
        ("vocab_size", 10**12),
        ("vocab_size", 2**40),
        ("intermediate_size", "wide"),
        ("num_attention_heads", 0),
        ("hidden_act", "nothing"),
    ],
)
def test_absurd_sizes_are_refused_before_anything_is_allocated(broken, key, value):
    change_config(broken, **{key: value})
    refused(broken)


ABSURD = st.sampled_from([None, True, -1, 0, 1, 2**40, 10**400, 1e308, -1e308, "", "x", [], {}, [None], {"a": 1}])


@settings(max_examples=60)
@given(data=st.data())
def test_no_value_of_a_configuration_ends_in_a_traceback(model, tmp_path_factory, data):
    folder = shutil.copytree(model, tmp_path_factory.mktemp("fuzz") / "model")
    keys = sorted(json.loads((folder / "config.json").read_text()))
    change_config(folder, **data.draw(st.dictionaries(st.sampled_from(keys), ABSURD, min_size=1, max_size=2)))
    try:
        CausalModel.find(str(folder)).load()
    except XDogeError as error:
        assert "\n" not in str(error)  # noqa: PT017 (no error is right too)
