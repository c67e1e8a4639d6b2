"""Tests on a few tokens decide whether a model is trained and evaluated, not its configuration."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from tiny_models import save_byte_tokenizer, sharpened
from torch import nn

from xdoge.errors import XDogeError
from xdoge.eval.documents import Text
from xdoge.eval.perplexity import measure
from xdoge.fit.gradients.engine import GradientEngine
from xdoge.models.initial_model import InitialModel
from xdoge.models.probes import refuse_future, refuse_leaks, refuse_other_loss
from xdoge.models.resolver import CausalModel

SHAPE = {"vocab_size": 258, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
WIDE = SHAPE | {"intermediate_size": 32, "max_position_embeddings": 24}


def make(kind, **changes):
    """Return a model of an architecture, with random weights large enough for clear differences."""
    config = getattr(transformers, f"{kind}Config")(**{"pad_token_id": 0, "bos_token_id": 1, **changes})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 2:  # XLNet's matrices
            parameter.data.mul_(8)
    return sharpened(model)


def save(folder, kind, **changes):
    save_byte_tokenizer(folder)
    make(kind, **changes).save_pretrained(folder)
    return str(folder)


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text("A line of text, and another one.\n" * 3)
    return {"en": Text((tmp_path / "text.txt",))}


class RulesOut(nn.Module):
    """Rules a token out with -inf, as models with a padded vocabulary do; sees the future if it is told to."""

    def __init__(self, sees: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head, self.sees = nn.Embedding(30, 8), nn.Linear(8, 30), sees

    def forward(self, input_ids):
        hidden = self.embed(input_ids)
        hidden = hidden + hidden.mean(1, keepdim=True) if self.sees else hidden
        return self.head(hidden).masked_fill(torch.arange(30) == 29, -torch.inf)


def test_a_model_that_rules_tokens_out_is_still_compared():
    refuse_future(RulesOut(False), "it")
    with pytest.raises(XDogeError, match="future"):
        refuse_future(RulesOut(True), "it")


SEE_THE_FUTURE = {
    "a Bert": lambda: make("Bert", **WIDE, is_decoder=False),
    "XLM": lambda: make("XLM", vocab_size=258, emb_dim=16, n_layers=1, n_heads=2),
    "XLNet": lambda: make("XLNet", vocab_size=258, d_model=16, n_layer=1, n_head=2, d_inner=32),
}


@pytest.mark.parametrize("name", SEE_THE_FUTURE)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_model_that_sees_the_future_is_refused(name, precision):
    with pytest.raises(XDogeError, match="future"):
        refuse_future(SEE_THE_FUTURE[name]().to(precision), name)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_causal_models_pass_and_are_left_as_they_were(precision):
    for model in (
        make("Bert", **WIDE, is_decoder=True).train(),
        make("Mixtral", **WIDE, num_local_experts=4, num_key_value_heads=1),
    ):
        modes = [module.training for module in model.modules()]
        before = torch.random.get_rng_state()
        refuse_future(model.to(precision), "model")
        assert [module.training for module in model.modules()] == modes
        assert torch.equal(torch.random.get_rng_state(), before)


def test_a_model_that_sees_one_token_ahead_is_refused():
    class Ahead(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(32, 8), nn.Linear(8, 32)

        def forward(self, ids):
            return self.head(self.embedding(ids) + self.embedding(ids.roll(-1, 1)))

    with pytest.raises(XDogeError, match="future"):
        refuse_future(Ahead(), "model")
    with pytest.raises(XDogeError, match="future"):
        GradientEngine(Ahead(), 2)


def test_training_and_evaluation_refuse_a_model_that_sees_the_future(store, text, tmp_path):
    folder = save(tmp_path / "bert", "Bert", **WIDE, is_decoder=False)
    for use in (
        lambda: measure(folder, text),
        lambda: InitialModel.find(folder).build(store, sequence_length=16, seed=0),
    ):
        with pytest.raises(XDogeError, match=r"bert .*future.*is_decoder"):
            use()


LEAKS = {
    "positions are not looked at": lambda: make("Falcon", **SHAPE, multi_query=True),
    "positions change no mask": lambda: make("OPT", **SHAPE, ffn_dim=32, word_embed_proj_dim=16),
    "a state goes on": lambda: make("Mamba", vocab_size=258, hidden_size=16, num_hidden_layers=1, state_size=4),
    "no position_ids are taken": lambda: make("Bloom", vocab_size=258, hidden_size=16, n_layer=1, n_head=2),
}


@pytest.mark.parametrize("why", LEAKS)
def test_a_model_that_lets_documents_leak_is_refused(why):
    model = LEAKS[why]()
    with pytest.raises(XDogeError, match=rf"documents=separate .*{type(model).__name__}.*documents=ignore"):
        refuse_leaks(model)


def test_a_model_that_keeps_documents_apart_passes():
    refuse_leaks(make("Llama", **WIDE))


CONTEXTS = {
    "Llama": (WIDE, 24),
    "GPT2": ({"vocab_size": 258, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 24}, 24),
    "Mpt": ({"vocab_size": 258, "d_model": 16, "n_layers": 1, "n_heads": 2, "max_seq_len": 24}, 24),
    "Roberta": (WIDE | {"pad_token_id": 1, "bos_token_id": 0, "is_decoder": True}, 22),
    "Bloom": ({"vocab_size": 258, "hidden_size": 16, "n_layer": 1, "n_head": 2}, None),
}


@pytest.mark.parametrize("kind", CONTEXTS)
def test_the_context_is_the_longest_sequence_that_the_model_takes(kind, text, tmp_path):
    shape, context = CONTEXTS[kind]
    folder = save(tmp_path / "model", kind, **shape)
    model = CausalModel.find(folder)
    assert model.context == context
    assert measure(folder, text).settings.window == model.default_length == (context or 2048)


def test_positions_that_end_before_the_sequence_are_refused():
    model = make("GPT2", vocab_size=258, n_embd=16, n_layer=1, n_head=2, n_positions=24)
    refuse_future(model, "model", length=24)
    with pytest.raises(XDogeError, match=r"24 positions.*25"):
        refuse_future(model, "model", length=25)


@pytest.mark.parametrize("value", [1, 0, -7, 1.5, "long", [24]])
def test_a_context_without_two_tokens_names_key_and_file(value, text, tmp_path):
    folder = save(tmp_path / "model", "Llama", **WIDE)
    change_config(tmp_path / "model", max_position_embeddings=value)
    with pytest.raises(XDogeError, match=r"model.*max_position_embeddings"):
        measure(folder, text)


@pytest.mark.parametrize("value", [258, -1, 2**40, 1.5, "<s>", [0]])
def test_a_beginning_outside_the_vocabulary_names_key_and_file(value, text, tmp_path):
    folder = save(tmp_path / "model", "Llama", **WIDE)
    change_config(tmp_path / "model", bos_token_id=value)
    with pytest.raises(XDogeError, match=r"model.*bos_token_id"):
        measure(folder, text)


def test_a_context_without_a_limit_is_none(tmp_path):
    save(tmp_path / "model", "XLNet", vocab_size=258, d_model=16, n_layer=1, n_head=2, d_inner=32)
    assert CausalModel.find(str(tmp_path / "model")).default_length == 2048


ROUTED = {**WIDE, "num_local_experts": 4, "num_key_value_heads": 1}


def test_the_loss_of_routers_is_not_added_for_each_part_of_a_step():
    model = make("Mixtral", **ROUTED, output_router_logits=True)
    refuse_other_loss(model, "model", parts=1)
    with pytest.raises(XDogeError, match=r"model has output_router_logits.* 4 parts"):
        refuse_other_loss(model, "model", parts=4)
    refuse_other_loss(make("Mixtral", **ROUTED), "model", parts=4)


def test_a_model_that_computes_another_loss_is_refused():
    model = make("XLM", vocab_size=258, emb_dim=16, n_layers=1, n_heads=2, causal=True)
    refuse_future(model, "model")
    with pytest.raises(XDogeError, match=r"model \(XLMWithLMHeadModel\) computes"):  # it does not shift the labels
        refuse_other_loss(model, "model", parts=1)


@pytest.mark.parametrize("parts", [1, 3])
def test_models_that_divide_their_loss_and_models_that_trainer_divides_for_pass(parts):
    for model in (make("Llama", **WIDE), make("Bert", **WIDE, is_decoder=True)):
        refuse_other_loss(model, "model", parts=parts)
