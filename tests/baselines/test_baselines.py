"""DoReMi, RegMix and DoGE: their arithmetic against simple references, and runs that are stopped and resumed."""

from __future__ import annotations

import json
import os
import signal
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from command_line import one_line
from fit_runs import metrics, same_run
from hypothesis import given
from hypothesis import strategies as st

from xdoge import WeightSet, XDogeError
from xdoge.baselines import METHODS, doge, doremi, learn, regmix
from xdoge.baselines.training import BaselineProxy, train_on
from xdoge.errors import Interrupted, MissingExtraError
from xdoge.fit import reweight
from xdoge.fit.batches import draw
from xdoge.fit.gradients.products import SourceProducts
from xdoge.mixtures.simplex import largest_remainder
from xdoge.models.flops import training_flops
from xdoge.models.recipes import load_recipe

DEFAULTS = {
    "doremi": {"steps": 4, "checkpoint_every": 2, "eval_every": 2},
    "regmix": {"steps": 2, "runs": 10, "simulations": 2000, "best": 20, "eval_sequences": 4},
    "doge": {"steps": 6, "checkpoint_every": 2, "eval_every": 3},
}


def settings_for(method, store, recipe, **options):
    return METHODS[method].for_store(store, {"proxy": recipe, **DEFAULTS[method], **options})


@pytest.fixture(scope="module", params=["doremi", "regmix", "doge"])
def finished(request, store, recipe, tmp_path_factory):
    """Each method with a finished run of it; tests only read it."""
    out = tmp_path_factory.mktemp(request.param) / "run"
    learn(request.param, store, settings_for(request.param, store, recipe), out=out)
    return request.param, out


weights_and_scores = st.integers(2, 8).flatmap(
    lambda k: st.tuples(
        st.lists(st.floats(0.01, 1), min_size=k, max_size=k),
        st.lists(st.floats(0, 6), min_size=k, max_size=k),
    )
)


# DoReMi


@given(weights_and_scores, st.floats(0.01, 3), st.floats(0, 0.5))
def test_doremi_updates_weights_as_in_the_paper(drawn, eta, smoothing):
    alpha, excess = (np.array(values) for values in drawn)
    alpha /= alpha.sum()
    weights = doremi.update(alpha, excess, eta=eta, smoothing=smoothing)
    raised = [a * np.exp(eta * x) for a, x in zip(alpha, excess, strict=True)]
    expected = [(1 - smoothing) * value / sum(raised) + smoothing / len(raised) for value in raised]
    np.testing.assert_allclose(weights, expected, rtol=1e-12)
    assert weights.sum() == pytest.approx(1)
    assert weights.min() >= smoothing / len(weights)


def test_the_update_of_doremi_neither_overflows_nor_underflows():
    weights = doremi.update(np.array([1.0, 0.0, 0.0]), np.array([900.0, 0.0, 900.0]), eta=1.0, smoothing=0.3)
    np.testing.assert_allclose(weights, [0.8, 0.1, 0.1])


def naive_doremi(store, settings, recipe, steps):
    """Return the weights and excess losses of the first steps, computed token by token in float64."""
    reference, proxy = (BaselineProxy(store, settings, recipe) for _ in range(2))
    tokens = np.array(list(store.tokens().values()), dtype=float)
    for _ in train_on(tokens / tokens.sum(), reference):
        pass
    k = len(store.sources)
    counts = np.array(largest_remainder([1.0] * k, settings.batch_size))
    alpha, moves = np.full(k, 1 / k), []
    for step in range(steps):
        rows = torch.from_numpy(draw(store, step * counts, counts, settings=settings))
        source_of = np.repeat(np.arange(k), counts)
        per_token = []
        for model in (proxy.model, reference.model):
            logits = model(input_ids=rows[:, :-1]).logits.double()
            chosen = torch.log_softmax(logits, -1).gather(-1, rows[:, 1:, None]).squeeze(-1)
            per_token.append(-chosen)
        excess = np.zeros(k)
        for i in range(k):
            own = [
                max((a - b).item(), 0.0)
                for r in np.flatnonzero(source_of == i)
                for a, b in zip(per_token[0][r], per_token[1][r], strict=True)
            ]
            excess[i] = sum(own) / len(own)
        raised = alpha * np.exp(excess)
        alpha = (1 - 1e-3) * raised / raised.sum() + 1e-3 / k
        objective = sum(alpha[i] * per_token[0][source_of == i].mean() for i in range(k))
        objective.backward()
        proxy.train_step(objective.item())
        moves.append((alpha, excess))
    return moves


def test_doremi_agrees_with_a_plain_loop(store, recipe, tmp_path):
    settings = settings_for("doremi", store, recipe)
    learn("doremi", store, settings, out=tmp_path / "run")
    table = pq.read_table(tmp_path / "run" / "trajectory.parquet")
    weights, scores = (table[name].to_numpy().reshape(4, 4) for name in ("weight", "score"))
    for step, (alpha, excess) in enumerate(naive_doremi(store, settings, load_recipe(recipe), 3)):
        np.testing.assert_allclose(scores[step], excess, rtol=2e-4, atol=1e-6)
        np.testing.assert_allclose(weights[step], alpha, rtol=2e-4)


def test_the_reference_is_trained_on_the_chosen_weights(store, recipe, tmp_path):
    sets = {}
    for reference in ("proportional", "uniform"):
        settings = settings_for("doremi", store, recipe, reference=reference)
        sets[reference] = learn("doremi", store, settings, out=tmp_path / reference).weights
    assert sets["proportional"].sources != sets["uniform"].sources
    assert sets["uniform"].method["reference"] == "uniform"


# DoGE


@given(weights_and_scores, st.floats(1e-4, 1e-2), st.floats(1e-3, 0.1))
def test_the_update_of_doge_without_clipping_is_that_of_fit_weights(drawn, rate, mu):
    """In fit-weights μ divides η, a part of the whole fit; in DoGE's code μ divides the learning rate."""
    alpha, values = (np.array(numbers) for numbers in drawn)
    alpha, k = alpha / alpha.sum(), len(alpha)
    norms = 0.5 + np.arange(k) / k  # at most 1.5, so that scores below 6 stay below 5 once divided by their mean
    products = values * norms.mean() * 5 / 6
    nan = np.full(k, np.nan)
    seen = SourceProducts(
        losses=np.ones(k),
        scores=products / norms.mean(),
        square_norms=norms**2,
        half_products=nan,
        gram=None,
        progress=nan,
    )
    rule = reweight.Rule(
        targets=np.ones(k), trained=np.ones(k, bool), floor=0.0, mu=mu, score="paper", normalise="none"
    )
    expected, _ = reweight.step(reweight.Weights(now=alpha, total=np.zeros(k)), seen, rule=rule, eta=rate)
    weights, _ = doge.update(alpha, products, norms, rate=rate, mu=mu, smoothing=0.0)
    np.testing.assert_allclose(weights, expected.now, rtol=1e-4, atol=1e-12)
    assert weights.sum() == pytest.approx(1)


def test_scores_of_doge_are_clipped_to_0_and_5():
    alpha = np.array([0.2, 0.3, 0.5])
    weights, scores = doge.update(alpha, np.array([-4.0, 60.0, 70.0]), np.ones(3), rate=0.01, mu=0.01, smoothing=0.0)
    np.testing.assert_array_equal(scores, [0, 5, 5])
    assert weights[2] / weights[1] == pytest.approx(5 / 3)  # both at the upper end, so neither gains on the other
    smoothed, _ = doge.update(alpha, np.zeros(3), np.ones(3), rate=0.01, mu=0.01, smoothing=1 / 2)
    np.testing.assert_allclose(smoothed, alpha / 2 + 1 / 6)


@pytest.mark.parametrize("to_mix", [True, False])
def test_products_of_doge_are_those_of_gradients_clipped_by_torch(to_mix):
    generator = torch.Generator().manual_seed(0)
    grads = torch.randn(5, 40, generator=generator, dtype=torch.float64) * torch.tensor([[0.3], [1], [2], [0.1], [3]])
    k = 4 if to_mix else 5
    target = grads[4] if to_mix else None
    seen = SourceProducts(
        losses=np.ones(5),
        scores=(grads @ (target if to_mix else grads.sum(0))).numpy(),
        square_norms=(grads**2).sum(1).numpy(),
        half_products=np.full(5, np.nan),
        gram=None if to_mix else (grads @ grads.T).numpy(),
        progress=np.full(5, np.nan),
    )
    held = [torch.nn.Parameter(torch.zeros(40, dtype=torch.float64)) for _ in grads]
    for parameter, grad in zip(held, grads, strict=True):
        parameter.grad = grad.clone()
        torch.nn.utils.clip_grad_norm_([parameter], 5.0)
    cut = torch.stack([parameter.grad for parameter in held])
    assert (cut.norm(dim=1) < grads.norm(dim=1) - 1).sum() >= 2
    along, norms = doge.clipped(seen, k)
    np.testing.assert_allclose(norms, cut[:k].norm(dim=1), rtol=1e-12)
    np.testing.assert_allclose(along, (cut[:k] @ (cut[4] if to_mix else cut.sum(0))).numpy(), rtol=1e-12)


@pytest.mark.parametrize("target", ["mix", "sources"])
def test_doge_scores_against_the_chosen_target(store, recipe, tmp_path, target):
    """The scores of the first step agree with gradients that are computed one at a time."""
    settings = settings_for("doge", store, recipe, target=target, steps=1)
    learn("doge", store, settings, out=tmp_path / "run")
    proxy = BaselineProxy(store, settings, load_recipe(recipe))
    sizes = np.array(largest_remainder([1.0] * (4 + (target == "mix")), settings.batch_size))
    rows = list(torch.split(proxy.draw(sizes[:4]), sizes[:4].tolist()))
    if target == "mix":
        generator = np.random.Generator(np.random.Philox(key=[0, 1]))
        rows.append(proxy.draw(generator.multinomial(sizes[4], np.full(4, 1 / 4))))
    grads = []
    for part in rows:
        loss = F.cross_entropy(proxy.model(input_ids=part[:, :-1]).logits.flatten(0, 1), part[:, 1:].flatten())
        parts = torch.autograd.grad(loss, list(proxy.model.parameters()))
        grads.append(torch.cat([part.flatten() for part in parts]).double())
    grads = torch.stack(grads)
    along = grads[:4] @ (grads[4] if target == "mix" else grads.sum(0))
    expected = along / grads[:4].norm(dim=1).mean()
    table = pq.read_table(tmp_path / "run" / "trajectory.parquet")
    np.testing.assert_allclose(table["score"].to_numpy(), expected.clamp(0, 5).numpy(), rtol=1e-3)


# RegMix


@pytest.fixture(scope="module")
def regmix_settings(store, recipe):
    return settings_for("regmix", store, recipe, simulations=5_000, best=50)


def test_mixtures_lie_around_the_shares_of_the_corpus(regmix_settings):
    shares = np.array([0.64, 0.25, 0.1, 0.0099, 0.0001])
    drawn = regmix.mixtures(shares, 20_000, np.random.default_rng(0), regmix_settings)
    np.testing.assert_allclose(drawn.sum(1), 1)
    assert drawn.min() >= 0
    np.testing.assert_allclose(drawn.mean(0), shares**0.5 / (shares**0.5).sum(), atol=0.01)
    assert (drawn.max(1) > 0.99).mean() > 0.1  # small concentrations give mixtures of almost one source
    assert ((drawn > 0.02).sum(1) >= 4).mean() > 0.1  # large ones give mixtures of many sources


@pytest.mark.parametrize("regressor", ["lightgbm", "linear"])
@pytest.mark.parametrize("runs", [40, 150])
def test_regmix_finds_the_best_corner_of_a_synthetic_loss(regmix_settings, regressor, runs):
    """There are 40 runs, and 8 are held out. The source that matters most is a rare one."""
    settings = regmix_settings.model_copy(update={"regressor": regressor})
    generator = np.random.default_rng(1)
    shares = np.array([0.5, 0.3, 0.1, 0.1])
    tried = regmix.mixtures(shares, runs, generator, settings)
    losses = 5 - tried @ np.array([0.1, 0.3, 0.2, 1.0]) + 0.01 * generator.standard_normal(runs)
    simulated = regmix.mixtures(shares, settings.simulations, generator, settings)
    weights, correlation = regmix.best_mixture(tried, losses, simulated, settings)
    assert weights.sum() == pytest.approx(1)
    assert weights[3] > 0.8
    assert correlation > 0.7


def test_lightgbm_finds_a_best_mixture_inside_the_simplex(regmix_settings):
    generator = np.random.default_rng(2)
    best = np.array([0.2, 0.2, 0.3, 0.3])
    shares = np.full(4, 0.25)
    settings = regmix_settings.model_copy(update={"least_strength": 2.0})
    tried, simulated = (regmix.mixtures(shares, n, generator, settings) for n in (300, 5_000))
    weights, correlation = regmix.best_mixture(tried, ((tried - best) ** 2).sum(1), simulated, settings)
    np.testing.assert_allclose(weights, best, atol=0.06)
    assert correlation > 0.8


def test_equal_predictions_have_no_rank_correlation(regmix_settings):
    generator = np.random.default_rng(0)
    tried = regmix.mixtures(np.full(3, 1 / 3), 20, generator, regmix_settings)
    _, correlation = regmix.best_mixture(tried, np.ones(20), tried, regmix_settings.model_copy(update={"best": 5}))
    assert np.isnan(correlation)


def test_regmix_regresses_the_mean_of_the_targets(store, recipe):
    for targets, weights in (
        ("sources", dict.fromkeys(store.sources, 1 / 4)),
        ("languages", {"es/web": 1 / 6, "es/wiki": 1 / 6, "gl/wiki": 1 / 3, "eu/wiki": 1 / 3}),
        ({"eu/wiki": 3, "gl/wiki": 1}, {"eu/wiki": 0.75, "gl/wiki": 0.25}),
    ):
        assert settings_for("regmix", store, recipe, targets=targets).target_weights(store) == pytest.approx(weights)


@pytest.mark.parametrize("finished", ["regmix"], indirect=True)
def test_every_tiny_model_reads_its_own_mixture(finished):
    _, out = finished
    rows = metrics(out)
    assert [row["step"] for row in rows] == list(range(1, 11))
    for row in rows:
        assert sum(row["sources"].values()) == pytest.approx(1)
        losses = row["validation"]
        spanish = (losses["es/web"] + losses["es/wiki"]) / 2
        assert row["target_loss"] == pytest.approx((spanish + losses["gl/wiki"] + losses["eu/wiki"]) / 3)
    assert len({row["target_loss"] for row in rows}) >= 8  # two mixtures near the same corner may draw the same batches
    assert [row["tokens"] for row in rows] == [n * 2 * 12 * 16 for n in range(1, 11)]


# Training


def test_training_on_fixed_weights_follows_them_and_learns(store, recipe):
    settings = settings_for("doge", store, recipe, steps=30)
    proxy = BaselineProxy(store, settings, load_recipe(recipe))
    weights = np.array([0.5, 0.0, 0.25, 0.25])
    rows = list(train_on(weights, proxy))
    assert proxy.read[1] == 0
    assert proxy.read.sum() == 30 * 12
    assert abs(proxy.read[0] - 180) < 40
    assert rows[-1]["loss"] < rows[0]["loss"] - 1
    assert rows[-1]["tokens"] == proxy.tokens == 30 * 12 * 16


# Runs


def test_a_run_writes_all_its_files_and_its_cost(store, recipe, finished):
    method, out = finished
    weights = WeightSet.load(out / "weights.json")
    assert tuple(weights.sources) == store.sources
    assert sum(weights.sources.values()) == pytest.approx(1)
    assert weights.method["baseline"] == method
    assert weights.corpus["sha256"] == store.sha256
    assert weights.name == f"tiny-{method}-tiny-seed0"
    assert len(metrics(out)) == settings_for(method, store, recipe).n_rows
    seconds = [row["seconds"] for row in metrics(out)]
    assert seconds == sorted(seconds)

    def count(tokens):
        return training_flops(load_recipe(recipe), tokens, sequence_length=16, vocab_size=store.vocab_size)

    heard = sum(min(n, 4) for n in store.sequence_counts(16, split="validation").values()) * 16
    expected = {
        "doremi": count(2 * 4 * 12 * 16) + count(4 * 12 * 16) // 3,
        "regmix": count(10 * 2 * 12 * 16) + count(10 * heard) // 3,
        "doge": count(6 * 12 * 16) + 8 * 5 * weights.proxy["parameters"] * 6,
    }
    assert weights.proxy["flops"] == expected[method]
    assert isinstance(weights.proxy["flops"], int)
    model = load_recipe(recipe).build(vocab_size=store.vocab_size, seed=0)
    assert weights.proxy["parameters"] == sum(parameter.numel() for parameter in model.parameters())


def test_learned_weights_are_the_mean_of_the_trajectory(store, finished):
    method, out = finished
    if method == "regmix":
        assert not (out / "trajectory.parquet").exists()
        return
    steps = {"doremi": 4, "doge": 6}[method]
    mean = pq.read_table(out / "trajectory.parquet")["weight"].to_numpy().reshape(steps, 4).mean(0)
    np.testing.assert_allclose(mean, list(WeightSet.load(out / "weights.json").sources.values()), rtol=1e-12)
    weights = WeightSet.load(out / "weights.json")
    assert min(weights.sources.values()) >= weights.floor == ({"doremi": 1e-3 / 4, "doge": 0.0}[method])


@pytest.mark.parametrize("how", ["signal", "kill"])
def test_a_run_stopped_anywhere_and_resumed_gives_the_same_result(store, recipe, finished, tmp_path, how):
    """Row 4 of DoReMi ends its reference model. A kill comes after a row is written and before its checkpoint."""
    method, whole = finished
    settings, cut = settings_for(method, store, recipe), tmp_path / "run"

    class Killed(BaseException):
        pass

    for last in (3, 4, 5):

        def stop(event, last=last):
            if event.done == last and how == "kill":
                raise Killed
            if event.done == last:
                os.kill(os.getpid(), signal.SIGINT)

        started = (cut / "config.yaml").exists()
        expected = Killed if how == "kill" else Interrupted
        with pytest.raises(expected, match=None if how == "kill" else r"stopped after \w+ \d+ of \d+; resume=True"):
            learn(method, store, settings, out=cut, resume=started, on_progress=stop)
    learn(method, store, settings, out=cut, resume=True)
    same_run(whole, cut)


def test_a_half_written_row_is_computed_again(store, recipe, finished, tmp_path):
    method, whole = finished
    settings = settings_for(method, store, recipe)
    with pytest.raises(Interrupted):
        learn(method, store, settings, out=tmp_path / "run", on_progress=lambda _: os.kill(os.getpid(), signal.SIGINT))
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    learn(method, store, settings, out=tmp_path / "run", resume=True)
    same_run(whole, tmp_path / "run")


def test_a_finished_run_is_not_run_again_and_not_written_over(store, recipe, finished):
    method, out = finished
    notes = []
    result = learn(method, store, settings_for(method, store, recipe), out=out, resume=True, on_note=notes.append)
    assert result.finished_before
    assert result.steps == metrics(out)[-1]["step"]
    assert result.weights == WeightSet.load(out / "weights.json")
    assert "is finished already" in notes[-1]
    with pytest.raises(XDogeError, match="is not empty.*resume=True"):
        learn(method, store, settings_for(method, store, recipe), out=out)
    with pytest.raises(XDogeError, match="settings.seed was 0, is now 1"):
        learn(method, store, settings_for(method, store, recipe, seed=1), out=out, resume=True)


# Errors


@pytest.mark.parametrize(
    ("method", "options", "match"),
    [
        ("doremi", {"etta": 1}, "did you mean eta?"),
        ("doremi", {"batch_size": 3}, "batch_size 3 .* 4 parts"),
        ("doge", {"batch_size": 4}, "5 parts, .* one for the mix"),
        ("doge", {"sequence_length": 100_000}, "100000"),
        ("regmix", {"targets": {"gl/web": 1}}, "'gl/web'"),
        ("regmix", {"targets": {"gl/wiki": -1}}, r"targets\['gl/wiki'\] is -1"),
        ("regmix", {"targets": {"gl/wiki": 0}}, "no target has .* 16 tokens"),
        ("regmix", {"least_strength": 9}, "least_strength 9"),
        ("regmix", {"best": 3000}, "best 3,000"),
        ("regmix", {"runs": 3}, "runs: "),
    ],
)
def test_settings_that_do_not_fit_the_store_are_refused(store, recipe, method, options, match):
    with pytest.raises(XDogeError, match=match):
        settings_for(method, store, recipe, **options)


def test_too_few_runs_are_noted(store, recipe):
    assert "10 runs are few" in settings_for("regmix", store, recipe).notes(store)[-1]
    assert settings_for("regmix", store, recipe, runs=20).notes(store) == []


def test_notes_on_the_learned_weights_are_shown(store, recipe, tmp_path, monkeypatch):
    notes = []
    learn("regmix", store, settings_for("regmix", store, recipe), out=tmp_path / "regmix", on_note=notes.append)
    assert "rank correlation of predicted and true loss over the held-out runs: " in notes[-1]
    monkeypatch.setattr(doge, "SCORES", (0.0, 1e-9))
    settings = settings_for("doge", store, recipe, target="sources")
    learn("doge", store, settings, out=tmp_path / "doge", on_note=notes.append)
    assert "6 of 6 steps every score was clipped to 1e-09" in notes[-1]


def test_an_unknown_method_several_processes_and_a_missing_library_are_refused(store, recipe, tmp_path, monkeypatch):
    with pytest.raises(XDogeError, match="'doremy'"):
        learn("doremy", store, settings_for("doremi", store, recipe), out=tmp_path / "run")
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(MissingExtraError, match=r"lightgbm .*xdoge\[baselines\]"):
        learn("regmix", store, settings_for("regmix", store, recipe), out=tmp_path / "run")
    learn("regmix", store, settings_for("regmix", store, recipe, regressor="linear"), out=tmp_path / "linear")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(XDogeError, match="one process"):
        learn("doge", store, settings_for("doge", store, recipe), out=tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


# Command line


def test_the_command_prints_weights_cost_and_path(xdoge, store, recipe, tmp_path):
    run = tmp_path / "run"
    command = ["baseline", "doge", store.path, "--out", run, "--proxy", recipe]
    status, out, err = xdoge(*command, "--steps", 2, "--set", "mu=0.02")
    assert status == 0
    assert "share of corpus" in out
    assert f"cost {WeightSet.load(run).proxy['flops']:.3g} FLOPs" in out
    assert str(run / "weights.json") in out
    assert "mu: 0.02" in err
    assert "step 2/2" in err
    status, out, err = xdoge(*command, "--resume", "--json")
    answer = json.loads(out)
    assert sum(answer["sources"].values()) == pytest.approx(1)
    assert answer["flops"] == WeightSet.load(run).proxy["flops"]
    status, out, err = xdoge("baseline", "doremi", store.path, "--out", run, "--resume")
    assert status == 1
    assert one_line(err) == f"error: {run} holds a run of doge, not of doremi."
    status, out, err = xdoge("baseline", "dogo", store.path, "--out", tmp_path / "other")
    assert one_line(err) == "error: baseline 'dogo' is unknown; the baselines are doremi, regmix, doge."


def test_the_help_names_every_setting_of_every_method(xdoge, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    _, out, _ = xdoge("baseline", "--help")
    for settings in METHODS.values():
        for name in settings.model_fields:
            assert f"{name}:" in out
