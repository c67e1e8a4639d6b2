"""One pass agrees with k backward passes, for many architectures and options; errors name what is refused."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_gradients import flat_gradient, half_products, reference_step, source_gradients
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
)

from xdoge.errors import XDogeError
from xdoge.fit.gradients import accumulator
from xdoge.fit.gradients.engine import GradientEngine
from xdoge.fit.gradients.head import HeadLoss
from xdoge.fit.gradients.products import SourceBatch, SourceProducts

VOCABULARY = 61
COUNTS = (3, 0, 1, 4, 2)
WEIGHTS = np.array([0.1, 0.2, 0.3, 0.15, 0.25])
TARGETS = np.array([1.0, 1.0, 2.0, 0.5, 0.0])

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "attn_implementation": "sdpa",  # eager attention computes its softmax in float32
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}
GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 32,
    "attn_implementation": "sdpa",
    "bos_token_id": 0,
    "eos_token_id": 0,
    **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
}


def exact_norm(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    """Compute transformers' RMSNorm without its conversion to float32."""
    return (
        self.weight * hidden_states * torch.rsqrt(hidden_states.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
    )


def prepare(model: nn.Module) -> nn.Module:
    """Give a float64 model fixed weights for which no gradient is near zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            around = 1.0 if parameter.dim() == 1 else 0.0
            parameter.copy_(around + 0.3 * torch.randn(parameter.shape, generator=generator))
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            type(module).forward = exact_norm  # type: ignore[assignment]
    return model.double()


@pytest.fixture(autouse=True)
def restored_norms() -> Any:
    from transformers.models.granite.modeling_granite import GraniteRMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

    kinds: list[Any] = [GraniteRMSNorm, LlamaRMSNorm, Qwen3RMSNorm]
    before = [kind.forward for kind in kinds]
    yield
    for kind, forward in zip(kinds, before, strict=True):
        kind.forward = forward


def llama(**settings: Any) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**COMMON | settings))


MODELS = {
    "llama tied": lambda: llama(tie_word_embeddings=True),
    "llama untied": lambda: llama(tie_word_embeddings=False),
    "llama biases": lambda: llama(tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**COMMON, head_dim=8, tie_word_embeddings=True)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2)),
    "granite": lambda: GraniteForCausalLM(
        GraniteConfig(**COMMON, logits_scaling=4.0, embedding_multiplier=3.0, tie_word_embeddings=True)
    ),
}


def make_batch(counts: tuple[int, ...] = COUNTS, *, n_tokens: int = 7, seed: int = 0) -> SourceBatch:
    generator = torch.Generator().manual_seed(seed)
    return SourceBatch(torch.randint(0, VOCABULARY, (sum(counts), n_tokens), generator=generator), counts)


def gradient(model: nn.Module) -> torch.Tensor:
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters() if p.requires_grad]
    return torch.cat([grad.flatten() for grad in grads])


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    assert np.array_equal(np.isnan(ours), np.isnan(theirs))
    return float(np.nanmax(np.abs(ours - theirs) / np.abs(theirs)))


def assert_exact(
    model: nn.Module,
    batch: SourceBatch,
    *,
    engine: GradientEngine | None = None,
    reference: nn.Module | None = None,
    **how: Any,
) -> SourceProducts:
    """Run one pass and compare all its results with k backward passes, to 1e-9."""
    expected, direction = reference_step(reference or model, batch, weights=WEIGHTS, targets=TARGETS)
    model.zero_grad()
    products = (engine or GradientEngine(model, len(batch.counts))).backward(
        batch, weights=WEIGHTS, targets=TARGETS, **how
    )
    assert (gradient(model) - direction).norm() <= 1e-9 * direction.norm()
    names = ["losses", "scores", "progress", "square_norms"] + ["half_products"] * how.get("halves", True)
    for name in names:
        assert relative_error(getattr(products, name), getattr(expected, name)) <= 1e-9, name
    if how.get("gram"):
        assert products.gram is not None
        assert expected.gram is not None
        assert relative_error(products.gram, expected.gram) <= 1e-9
    return products


@pytest.mark.parametrize("microbatches", [1, 3])
@pytest.mark.parametrize("gram", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_one_pass_equals_k_backward_passes(name: str, gram: bool, microbatches: int) -> None:
    model = prepare(MODELS[name]())
    engine = GradientEngine(model, len(COUNTS))
    assert engine.fallbacks == {}
    assert_exact(model, make_batch(), engine=engine, gram=gram, microbatches=microbatches)


@pytest.mark.parametrize("name", ["llama tied", "gpt2"])
@pytest.mark.parametrize("microbatches", [1, 2])
def test_activation_checkpointing_does_not_change_the_result(name: str, microbatches: int) -> None:
    model, reference = prepare(MODELS[name]()), prepare(MODELS[name]())
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    assert_exact(model, make_batch(), reference=reference, microbatches=microbatches)


def test_reentrant_checkpointing_is_refused() -> None:
    model = prepare(MODELS["llama tied"]())
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": True})
    model.train()
    with pytest.raises(XDogeError, match='"use_reentrant": False'):
        GradientEngine(model, 5).backward(make_batch(), weights=WEIGHTS, targets=TARGETS)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    counts=st.tuples(*[st.integers(0, 5)] * 5).filter(any),
    microbatches=st.integers(1, 6),
    halves=st.booleans(),
)
def test_any_counts_and_any_split_into_microbatches_are_exact(
    counts: tuple[int, ...], microbatches: int, halves: bool
) -> None:
    model = prepare(TinyModel())
    products = assert_exact(model, make_batch(counts, n_tokens=3), microbatches=microbatches, halves=halves)
    assert np.isnan(products.half_products).all() or halves


@pytest.mark.parametrize("microbatches", [1, 2])
def test_slicing_does_not_change_the_result(monkeypatch: pytest.MonkeyPatch, microbatches: int) -> None:
    monkeypatch.setattr(accumulator, "MAX_COLUMNS", 5)
    monkeypatch.setattr(accumulator, "MIN_ROWS", 7)
    monkeypatch.setattr(HeadLoss, "SLICE_BYTES", 3 * 8 * VOCABULARY)
    model = prepare(MODELS["llama biases"]())
    assert_exact(model, make_batch(), engine=GradientEngine(model, 5, chunk_bytes=1), microbatches=microbatches)


def test_gradients_are_added_to_those_already_there() -> None:
    model = prepare(MODELS["llama tied"]())
    engine = GradientEngine(model, 5)
    engine.backward(make_batch(), weights=WEIGHTS, targets=TARGETS)
    once = gradient(model).clone()
    engine.backward(make_batch(), weights=WEIGHTS, targets=TARGETS)
    assert torch.allclose(gradient(model), 2 * once, rtol=1e-12, atol=0)


def test_the_loss_equals_that_of_transformers() -> None:
    model, batch = llama(), make_batch((2, 3))
    products = GradientEngine(model, 2).backward(batch, weights=np.ones(2), targets=np.ones(2))
    with torch.no_grad():
        theirs = [model(input_ids=rows, labels=rows).loss.item() for rows in batch.input_ids.split([2, 3])]
    assert products.losses == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("microbatches", [1, 2])
def test_bf16_autocast_is_no_further_from_float64_than_plain_training(microbatches: int) -> None:
    ours, plain = [], []
    for seed in range(40):
        torch.manual_seed(seed)
        model = llama(tie_word_embeddings=True, hidden_size=64, intermediate_size=96)
        batch = make_batch((2, 2), seed=seed, n_tokens=24)
        exact = source_gradients(in_float64(model), batch)[1]
        rounded = source_gradients(model, batch, autocast=torch.bfloat16)[1].double()
        model.zero_grad()
        products = GradientEngine(model, 2).backward(
            batch,
            weights=np.array([0.3, 0.7]),
            targets=np.ones(2),
            gram=True,
            microbatches=microbatches,
            autocast=torch.bfloat16,
        )
        mix, true = torch.tensor([0.3, 0.7]).double(), exact @ exact.T
        assert products.gram is not None
        ours.append([(gradient(model) - mix @ exact).norm(), (torch.from_numpy(products.gram) - true).norm()])
        plain.append([(mix @ rounded - mix @ exact).norm(), (rounded @ rounded.T - true).norm()])
    assert (np.mean(ours, axis=0) <= 1.02 * np.mean(plain, axis=0)).all()  # of the gradient; of the products


def in_float64(model: nn.Module) -> nn.Module:
    """Return the model in float64 with exact norms and unchanged weights."""
    twin = copy.deepcopy(model).double()
    for module in twin.modules():
        if hasattr(module, "variance_epsilon"):
            module.forward = exact_norm.__get__(module)  # type: ignore[method-assign]
    return twin


# ------------------------------------------------------------------------------------ modules beyond the known


class TinyModel(nn.Module):
    """An embedding, a middle module and a head, all in float64."""

    def __init__(self, middle: nn.Module | None = None) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 8)
        self.middle = middle or nn.Linear(8, 8)
        self.head = nn.Linear(8, VOCABULARY)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.middle(self.embed(input_ids))))


class Warp(nn.Module):
    """A module with parameters of an unknown shape and use, and a known module inside."""

    def __init__(self) -> None:
        super().__init__()
        self.tensor = nn.Parameter(torch.zeros(2, 4, 8))
        self.power = nn.Parameter(torch.zeros(()).expand(1).clone())
        self.inner = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed = torch.einsum("btd,hed->bthe", x, self.tensor).flatten(2)
        return self.inner(mixed) * self.power.exp() + self.inner(x)


class MixesRows(nn.Module):
    """A module that subtracts the batch mean. Its name does not tell."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gain * (x - x.mean(0, keepdim=True))


@pytest.mark.parametrize("microbatches", [1, 3])
def test_an_unknown_module_takes_an_exact_path_and_is_reported_once(microbatches: int) -> None:
    model = prepare(TinyModel(Warp()))
    with pytest.warns(UserWarning, match=r"middle \(Warp\)") as caught:
        engine = GradientEngine(model, 5)
    assert len(caught) == 1
    assert engine.fallbacks == {"middle": "Warp"}
    assert_exact(model, make_batch(), engine=engine, gram=True, microbatches=microbatches)
    assert_exact(model, make_batch(seed=1), engine=engine, microbatches=microbatches)


@pytest.mark.parametrize("norm", [nn.RMSNorm(8, eps=1e-5), nn.LayerNorm(8), nn.LayerNorm(8, bias=False)])
def test_torchs_own_norms_are_exact_and_fast(norm: nn.Module) -> None:
    model = prepare(TinyModel(norm))
    engine = GradientEngine(model, 5)
    assert engine.fallbacks == {}
    assert_exact(model, make_batch(), engine=engine)


def test_modules_that_see_rows_and_tokens_flattened_are_exact() -> None:
    class Flattens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.map(x.flatten(0, 1))).view(x.shape)

    assert_exact(prepare(TinyModel(Flattens())), make_batch(), microbatches=2)


def test_outputs_that_the_model_changes_in_place_are_exact() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map, self.positions, self.norm = nn.Linear(8, 8), nn.Embedding(12, 8), nn.LayerNorm(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mapped, positions = self.map(x), self.positions(torch.arange(x.shape[1])[None])
            mapped += x
            positions *= 0.5
            positions = positions + mapped
            normed = self.norm(positions)
            normed += positions
            return normed

    assert_exact(prepare(TinyModel(InPlace())), make_batch(), microbatches=2)


def test_a_subclass_with_its_own_forward_is_not_treated_as_its_parent() -> None:
    class Doubled(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    model = prepare(TinyModel(Doubled(8, 8)))
    with pytest.warns(UserWarning, match=r"middle \(Doubled\)"):
        engine = GradientEngine(model, 5)
    assert_exact(model, make_batch(), engine=engine)


@pytest.mark.parametrize("microbatches", [1, 2])
def test_a_module_called_twice_keeps_its_cross_terms(microbatches: int) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.map(torch.tanh(self.norm(self.map(self.norm(x)))))

    model = prepare(TinyModel(Twice()))
    assert_exact(model, make_batch(), microbatches=microbatches)


def test_a_use_that_does_not_affect_the_loss_is_allowed() -> None:
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map, self.unused = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.map(x), self.unused(x)
            return self.map(x)

    model = prepare(TinyModel(Aside()))
    assert_exact(model, make_batch())
    assert model.middle.unused.weight.grad is None  # type: ignore[union-attr]


def test_positions_looked_up_once_for_all_rows_are_exact() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(32, 8, padding_idx=2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.table(torch.arange(x.shape[1]))

    assert_exact(prepare(TinyModel(Positions())), make_batch())


def test_frozen_parameters_have_no_gradient_or_products() -> None:
    model = prepare(MODELS["llama biases"]())
    frozen = ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.bias"]
    for name in [*frozen, "model.norm.weight"]:
        model.get_parameter(name).requires_grad_(False)
    assert_exact(model, make_batch())
    assert all(model.get_parameter(name).grad is None for name in frozen)


def test_a_head_alone_can_be_trained() -> None:
    model = prepare(MODELS["llama untied"]())
    model.requires_grad_(False).get_output_embeddings().requires_grad_(True)  # type: ignore[operator]
    assert_exact(model, make_batch())


def test_a_parameter_used_outside_its_module_is_refused_by_name() -> None:
    class Bypass(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.map(x) @ self.map.weight

    model = prepare(TinyModel(Bypass()))
    with pytest.raises(XDogeError, match=r"middle\.map\.weight is used outside"):
        GradientEngine(model, 5).backward(make_batch(), weights=WEIGHTS, targets=TARGETS)
    assert "forward" not in vars(model.middle.map)  # type: ignore[arg-type]


def test_an_input_without_the_batchs_rows_is_refused_by_name() -> None:
    class Sideways(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.map(x.transpose(0, 1)).transpose(0, 1)

    with pytest.raises(XDogeError, match=r"middle\.map \(Linear\) gets an input of shape \(7, 10, 8\)"):
        GradientEngine(prepare(TinyModel(Sideways())), 5).backward(make_batch(), weights=WEIGHTS, targets=TARGETS)


def test_modules_that_mix_rows_are_refused_by_name() -> None:
    with pytest.raises(XDogeError, match="middle is a BatchNorm1d, which mixes the rows"):
        GradientEngine(TinyModel(nn.BatchNorm1d(8)), 5)
    with pytest.warns(UserWarning, match="MixesRows"):
        engine = GradientEngine(TinyModel(MixesRows()), 5)
    with pytest.raises(XDogeError, match=r"middle \(MixesRows\) gives another output"):
        engine.backward(make_batch(), weights=WEIGHTS, targets=TARGETS)
    model = TinyModel()
    model.middle = nn.Embedding(3, 3, max_norm=1.0)
    with pytest.raises(XDogeError, match="middle is an embedding with max_norm"):
        GradientEngine(model, 5)
    model = llama()
    model.config.output_router_logits = True
    with pytest.raises(XDogeError, match="output_router_logits"):
        GradientEngine(model, 5)


def test_a_compiled_model_is_refused_with_the_reason() -> None:
    model = llama()
    engine = GradientEngine(model, 5)
    model.compile(backend="eager")
    with pytest.raises(XDogeError, match=r"compiled by torch\.compile"):
        GradientEngine(model, 5)
    with pytest.raises(XDogeError, match=r"compiled by torch\.compile"):
        engine.backward(make_batch(), weights=WEIGHTS, targets=TARGETS)


# ------------------------------------------------------------------------------------ manners


def test_results_repeat_bit_for_bit_and_no_random_state_is_touched() -> None:
    model = llama()
    engine, state = GradientEngine(model, 5), torch.get_rng_state()
    results = []
    for _ in range(2):
        model.zero_grad()
        results.append((engine.backward(make_batch(), weights=WEIGHTS, targets=TARGETS), gradient(model)))
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(results[0][0].scores, results[1][0].scores, equal_nan=True)
    assert torch.equal(results[0][1], results[1][1])


def test_the_model_is_unchanged_afterwards() -> None:
    model = llama(attention_dropout=0.1)
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    keys = [set(vars(module)) for module in model.modules()]
    GradientEngine(model, 5).backward(make_batch(), weights=WEIGHTS, targets=TARGETS)
    assert [module.training for module in model.modules()] == modes
    assert [set(vars(module)) for module in model.modules()] == keys
    assert all(not parameter._backward_hooks for parameter in model.parameters())


def test_halves_are_the_first_and_second_rows_of_a_source() -> None:
    model, batch = prepare(TinyModel()), make_batch((3, 2))
    products = GradientEngine(model, 2).backward(batch, weights=np.ones(2), targets=np.ones(2))
    first, second = (flat_gradient(model, rows)[1] for rows in (batch.input_ids[:2], batch.input_ids[2:3]))
    assert products.half_products[0] == pytest.approx((first @ second).item(), rel=1e-9)
    assert relative_error(products.half_products, half_products(model, batch)) <= 1e-9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": (3, 0, 1, 4, 3)}, "must be 5 numbers ≥ 0 that sum to the batch's 10 rows"),
        ({"input_ids": torch.zeros(10, 1, dtype=torch.int64)}, r"input_ids has shape \(10, 1\)"),
        ({"weights": np.ones(4)}, r"weights has shape \(4,\)"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"input_ids": make_batch().input_ids, "counts": COUNTS, "weights": WEIGHTS} | change
    with pytest.raises(XDogeError, match=message):
        GradientEngine(TinyModel(), 5).backward(
            SourceBatch(arguments["input_ids"], arguments["counts"]), weights=arguments["weights"], targets=TARGETS
        )


@pytest.mark.filterwarnings("ignore:gradients per source")
def test_a_module_that_cannot_run_on_the_rows_of_one_source_is_refused() -> None:
    small = {"vocab_size": 256, "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
    few = small | {"num_hidden_layers": 1, "intermediate_size": 16, "pad_token_id": 0, "bos_token_id": 1}
    recurrent = RecurrentGemmaForCausalLM(RecurrentGemmaConfig(**few, lru_width=16))  # keeps a state of the whole batch
    routed = Llama4ForCausalLM(Llama4TextConfig(**few, head_dim=8, num_local_experts=2, interleave_moe_layer_step=1))
    for model, reason in (
        (recurrent, r"rg_lru .*one source alone"),
        (routed, r"experts .*of the batch in order"),
    ):
        with pytest.raises(XDogeError, match=reason):
            GradientEngine(model, 5).backward(make_batch(), weights=WEIGHTS, targets=TARGETS)
