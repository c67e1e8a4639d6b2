"""Costs of a plan: known tables, and FLOPs compared with torch's own counter."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, LlamaConfig, LlamaForCausalLM

from xdoge.cli.plan import costs_to_table
from xdoge.errors import XDogeError
from xdoge.fit.gradients.engine import GradientEngine
from xdoge.fit.gradients.products import SourceBatch
from xdoge.models.costs import Cost, PlanSpec, read_costs, totals
from xdoge.models.flops import product_flops, training_flops
from xdoge.models.recipes import load_recipe

CLUSTER = Path(__file__).parents[2] / "examples/cluster"
HARDWARE = {"achieved": "365T", "gpus_per_node": 4}


def write(folder: Path, runs: dict, **others) -> Path:
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump({"hardware": HARDWARE, "runs": runs} | others, sort_keys=False))
    return path


def printed(costs: list[Cost]) -> list[list[str]]:
    """Return the cells of the printed table, without its header and rules."""
    console = Console(width=160, file=io.StringIO())
    console.print(costs_to_table(costs))
    return [line.split() for line in console.file.getvalue().splitlines()[3:] if line.strip()]


def counted(model: torch.nn.Module, rows: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        model(input_ids=rows, labels=rows).loss.backward()
    return counter.get_total_flops()


def test_the_reference_allocation_is_exact_to_the_hour():
    costs = [cost.rounded() for cost in read_costs(CLUSTER / "allocation.yaml")]
    assert [(cost.name, cost.hours, cost.node_hours) for cost in costs] == [
        ("target-7B", 1998, 63_936),
        ("target-13B", 1855, 118_720),
        ("proxies", 500, 10_000),
        ("set-up", 2, 400),
        ("evaluations", 8, 256),
    ]
    assert totals(costs) == {"runs": 160, "node_hours": 193_312}
    assert (costs[0].flops_6nd, costs[1].flops_6nd) == (84 * 10**21, 156 * 10**21)
    assert costs[0].flops_exact is None


def test_the_reference_allocation_is_printed_as_its_readme_shows():
    rows = printed(read_costs(CLUSTER / "allocation.yaml"))
    assert rows[0] == ["target-7B", "–", "7B", "2T", "8.40e22", "–", "365", "1,998", "8", "4", "63,936"]
    assert rows[2] == ["proxies", "–", "–", "–", "–", "–", "–", "500", "1", "20", "10,000"]
    assert rows[-1] == ["all", "160", "193,312"]
    for line in (CLUSTER / "README.md").read_text().splitlines():
        if line.startswith("| ") and "---" not in line and not line.startswith("| run"):
            cells = line.replace("|", " ").split()
            assert cells in [[cell for cell in row if cell not in ("–", "365")] for row in rows], line


@pytest.mark.parametrize("path", sorted(CLUSTER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_plan_of_the_examples_is_read(path):
    assert all(cost.node_hours > 0 for cost in read_costs(path))


@pytest.mark.parametrize(
    "change",
    [{}, {"num_key_value_heads": 2}, {"head_dim": 12}, {"tie_word_embeddings": True}, {"num_hidden_layers": 1}],
    ids=str,
)
def test_the_exact_count_is_that_of_torch_on_a_llama(change):
    shape = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    config = LlamaConfig(**(shape | change), num_attention_heads=4, attn_implementation="eager")
    rows = torch.zeros(3, 16, dtype=torch.int64)
    assert training_flops(config, rows.numel(), sequence_length=16, vocab_size=50) == counted(
        LlamaForCausalLM(config), rows
    )


def test_a_recipe_costs_what_the_model_it_builds_costs(recipe):
    shape = load_recipe(recipe)
    model = shape.build(vocab_size=70, seed=0)
    flops = training_flops(shape, 5 * 16, sequence_length=16, vocab_size=70)
    assert flops == training_flops(model.config, 5 * 16, sequence_length=16, vocab_size=70)
    model.set_attn_implementation("eager")
    assert flops == counted(model, torch.zeros(5, 16, dtype=torch.int64))


@pytest.mark.parametrize("gram", [False, True])
@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("reference", [False, True])
def test_a_fit_step_costs_a_training_step_and_its_inner_products(gram, halves, reference):
    """With sdpa, which proxies use, torch counts no attention on a CPU, so attention is left out on both sides."""
    shape, k = load_recipe("1m"), 29
    model = shape.build(vocab_size=1000, seed=0)
    rows = torch.zeros(2 * k, 32, dtype=torch.int64)
    attention = 12 * shape.layers * shape.hidden_size * 32 * rows.numel()
    plain = training_flops(shape, rows.numel(), sequence_length=32, vocab_size=1000) - attention
    engine = GradientEngine(model, k)
    with FlopCounterMode(display=False) as counter:
        engine.backward(
            SourceBatch(rows, (2,) * k),
            weights=np.full(k, 1 / k),
            targets=np.ones(k),
            reference=np.full(k, 1 / k) if reference else None,
            gram=gram,
            halves=halves,
        )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    added = product_flops(parameters, sources=k, steps=1, halves=halves, directions=2 + reference, maps=int(gram))
    assert (counter.get_total_flops() - plain) / added == pytest.approx(1, abs=0.2)


def test_without_head_and_attention_the_exact_count_is_six_n_d_but_for_the_norms():
    shape = load_recipe("900m")
    head_and_attention = 6 * 256_000 * 1536 + 12 * 32 * 1536 * 2048
    exact = training_flops(shape, 1, sequence_length=2048, vocab_size=256_000)
    norms = (2 * shape.layers + 1) * shape.hidden_size
    assert exact - head_and_attention == 6 * (shape.non_embedding_parameters - norms)


def test_only_a_llama_is_counted():
    with pytest.raises(XDogeError, match="the FLOPs of a gpt2 model are not known"):
        training_flops(GPT2Config(), 1, sequence_length=8, vocab_size=8)


def test_a_recipe_trains_on_its_own_tokens_unless_told_and_takes_the_hours_of_its_exact_count(tmp_path):
    runs = {"own": {"model": "60m"}, "told": {"model": "60m", "tokens": "100B", "sequence_length": 4096, "nodes": 2}}
    own, told = read_costs(write(tmp_path, runs, vocab_size="32K"))
    shape = load_recipe("60m")
    assert (own.parameters, own.tokens) == (shape.non_embedding_parameters, 10_000 * 128 * 1024)
    assert own.flops_6nd == 6 * own.parameters * own.tokens
    assert told.flops_exact == training_flops(shape, 10**11, sequence_length=4096, vocab_size=32_000)
    assert told.hours == told.flops_exact / (365e12 * 8 * 3600)
    assert told.rounded().hours == round(told.hours, 2) != told.hours


def test_peak_and_utilisation_are_a_speed_and_a_row_may_have_its_own(tmp_path):
    hardware = {"peak": "1000T", "utilisation": 0.5, "gpus_per_node": 8}
    runs = {name: {"parameters": "1B", "tokens": "1T"} for name in ("plain", "slow", "one")}
    runs["slow"]["achieved"] = "250T"
    runs["one"] |= {"nodes": 0.125, "runs": 3}
    plain, slow, shape = (cost.rounded() for cost in read_costs(write(tmp_path, runs, hardware=hardware)))
    assert (plain.hours, slow.hours, shape.hours) == (417, 833, 3333)  # 6e21 / 4e15, / 2e15, / 5e14 seconds
    assert (plain.flops_per_gpu, slow.flops_per_gpu) == (5e14, 2.5e14)
    assert shape.node_hours == 1249.88  # 3,333 × 0.125 × 3 = 1,249.875


@pytest.mark.parametrize(("tokens", "hours"), [("1M", 0.01), ("1B", 0.42), ("23.9B", 9.96), ("25B", 10), ("26B", 11)])
def test_hours_are_whole_from_ten_on_and_never_nothing(tmp_path, tokens, hours):
    hardware = {"achieved": "4T", "gpus_per_node": 1}
    (cost,) = read_costs(write(tmp_path, {"a": {"parameters": "1M", "tokens": tokens}}, hardware=hardware))
    assert cost.rounded().hours == pytest.approx(hours)


def test_json_is_not_rounded(xdoge, tmp_path):
    hardware = {"achieved": "4T", "gpus_per_node": 1}
    runs = {"small": {"parameters": "1M", "tokens": "1M", "runs": 3}, "large": {"parameters": "1M", "tokens": "26B"}}
    plan = json.loads(xdoge("plan", write(tmp_path, runs, hardware=hardware), "--json")[1])
    hours = [6e12 / 4e12 / 3600, 6e6 * 26e9 / 4e12 / 3600]
    assert [row["hours"] for row in plan["rows"]] == pytest.approx(hours, rel=1e-12)
    assert plan["totals"]["node_hours"] == pytest.approx(3 * hours[0] + hours[1], rel=1e-12)


RUN = st.fixed_dictionaries(
    {"nodes": st.integers(1, 500), "runs": st.integers(1, 500), "tokens": st.integers(1, 10**13)}
)


@given(runs=st.lists(RUN, min_size=1, max_size=6), parameters=st.integers(1, 10**12))
def test_the_table_adds_up_as_printed(tmp_path_factory, runs, parameters):
    rows = {f"r{n}": run | {"parameters": parameters} for n, run in enumerate(runs)}
    *lines, last = printed(read_costs(write(tmp_path_factory.getbasetemp(), rows)))
    numbers = [[float(cell.replace(",", "")) for cell in line[-4:]] for line in lines]
    for hours, nodes, times, node_hours in numbers:
        assert hours * nodes * times == pytest.approx(node_hours, rel=1e-12)
    assert float(last[-1].replace(",", "")) == pytest.approx(sum(row[-1] for row in numbers), rel=1e-12)
    assert float(last[-2].replace(",", "")) == sum(row[-2] for row in numbers)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({}, "runs.a: give one of model, parameters, hours .got none."),
        ({"model": "60m", "hours": 3}, "runs.a: give one of model, parameters, hours .got model and hours."),
        ({"parameters": "7B"}, "runs.a: tokens is missing"),
        ({"hours": 3, "tokens": 5}, "runs.a: tokens .* hours"),
        ({"parameters": 3, "tokens": 5, "sequence_length": 8}, "runs.a: sequence_length has no effect"),
        ({"model": "7B"}, "runs.a.model: recipe '7B' is unknown; .* For a bare count write parameters: 7B"),
        ({"model": "60m"}, "runs.a needs vocab_size: for the cost of the recipe's head add vocab_size: 256000"),
        ({"parameters": 3, "tokens": 5, "nodes": 0.3}, "runs.a.nodes: 0.3 nodes of 4 GPUs are 1.2 GPUs; a whole"),
        ({"parameters": 3, "tokens": 5, "nodes": 0.001}, "runs.a.nodes: 0.001 nodes of 4 GPUs are 0.004 GPUs"),
        ({"parameters": 3, "tokens": "5G"}, "runs.a.tokens: '5G' is not a count"),
        ({"hours": 3, "node": 5}, "runs.a.node is not a known key"),
        ({"hours": 3, "nodes": 0}, "runs.a.nodes: it must be above 0"),
        ({"hours": 0}, "runs.a.hours: it must be at least 0.01"),
    ],
    ids=str,
)
def test_a_row_that_says_too_little_or_too_much_is_refused(tmp_path, run, message):
    with pytest.raises(XDogeError, match=f"plan.yaml: {message}"):
        read_costs(write(tmp_path, {"a": run}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hardware": None}, "runs.a needs hardware: for its hours add hardware: {achieved: 365T, gpus_per_node: 4}"),
        ({"hardware": {"gpus_per_node": 4}}, "hardware: give either achieved, or peak and utilisation"),
        ({"hardware": HARDWARE | {"peak": "5T"}}, "hardware: give either achieved, or peak and utilisation"),
        ({"hardware": {"peak": "5T", "gpus_per_node": 4}}, "hardware: give either achieved, or peak and utilisation"),
        ({"hardware": {"achieved": "5T"}}, "hardware.gpus_per_node is missing"),
        ({"hardware": HARDWARE | {"achieved": 365}}, "hardware.achieved: 365 FLOP/s "),
        ({"runs": {}}, "runs: it must hold at least 1"),
        ({"runs": {"a b": {"hours": 1}}}, "runs: the name 'a b' "),
        ({"run": 3}, r"run is not a known key; did you mean runs\?"),
    ],
    ids=str,
)
def test_an_incomplete_plan_is_refused(tmp_path, change, message):
    runs = {"a": {"parameters": "7B", "tokens": "2T"}}
    with pytest.raises(XDogeError, match=f"plan.yaml: {message}"):
        read_costs(write(tmp_path, **({"runs": runs} | change)))
    assert PlanSpec.parse({"runs": {"a": {"hours": 1}}}, where="x").hardware is None
