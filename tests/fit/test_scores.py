"""Scores agree with their definition in docs/explanation/method.md, on models so small that the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference_gradients import mean_loss
from torch import nn

from xdoge.fit.gradients.engine import GradientEngine
from xdoge.fit.gradients.products import SourceBatch
from xdoge.fit.reweight import Rule, raw_scores

VOCABULARY, LENGTH = 20, 9


class Toy(nn.Module):
    """Next-token model of a few hundred parameters, in float64."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embed = nn.Embedding(VOCABULARY, 6)
            self.hidden = nn.Linear(6, 8)
            self.head = nn.Linear(8, VOCABULARY)
        self.double()

    def forward(self, ids):
        return self.head(torch.tanh(self.hidden(self.embed(ids))))


def sequences(seed, n, spread):
    """Return n rows whose tokens follow each other by a step of 1 to `spread`: (n, LENGTH)."""
    generator = np.random.default_rng(seed)
    steps = generator.integers(1, spread + 1, size=(n, LENGTH))
    return torch.from_numpy(np.cumsum(steps, axis=1) % VOCABULARY)


def rule(score, targets):
    trained = np.ones(len(targets), dtype=bool)
    return Rule(np.array(targets), trained, floor=0.0, mu=1.0, score=score, normalise="none")


def test_the_score_is_the_effect_of_a_step_on_the_target_losses():
    """-d/dα_j of the target loss after one SGD step equals ε W_j, to 1e-4 of the largest (central differences)."""
    sources = [sequences(seed, 5, spread) for seed, spread in enumerate((1, 3, 8))]
    targets, alpha, epsilon, h = np.array([1.0, 0.5, 2.0]), np.array([0.5, 0.3, 0.2]), 1e-5, 1e-2
    model = Toy()
    products = GradientEngine(model, 3).backward(
        SourceBatch(torch.cat(sources), (5, 5, 5)), weights=alpha, targets=targets
    )
    scores = raw_scores(products, rule("paper", targets))
    start = [p.detach().clone() for p in model.parameters()]
    grads = [torch.autograd.grad(mean_loss(model, rows), list(model.parameters())) for rows in sources]

    def target_loss_after_a_step(weights):
        with torch.no_grad():
            for index, parameter in enumerate(model.parameters()):
                step = sum(weight * grad[index] for weight, grad in zip(weights, grads, strict=True))
                parameter.copy_(start[index] - epsilon * step)
            return sum(tau * float(mean_loss(model, rows)) for tau, rows in zip(targets, sources, strict=True))

    for j in range(3):
        nudge = np.eye(3)[j] * h
        slope = (target_loss_after_a_step(alpha + nudge) - target_loss_after_a_step(alpha - nudge)) / (2 * h)
        assert -slope == pytest.approx(epsilon * scores[j], abs=1e-4 * epsilon * np.abs(scores).max())


def test_the_unbiased_score_converges_to_the_true_score_and_that_of_the_paper_does_not(record_property):
    """Means over 1,500 batches with two sequences per source are compared with products of full-data gradients."""
    data = [sequences(seed, 60, spread) for seed, spread in enumerate((2, 5, 15))]
    targets = np.ones(3)
    model = Toy(seed=1)
    engine = GradientEngine(model, 3)
    whole = SourceBatch(torch.cat(data), (60, 60, 60))
    truth = engine.backward(whole, weights=targets / 3, targets=targets).scores
    generator = np.random.default_rng(0)
    by_score = {"paper": [], "unbiased": []}
    for _ in range(1500):
        rows = torch.cat([source[generator.integers(0, 60, size=2)] for source in data])
        model.zero_grad()
        products = engine.backward(SourceBatch(rows, (2, 2, 2)), weights=targets / 3, targets=targets)
        for score, values in by_score.items():
            values.append(raw_scores(products, rule(score, targets)))
    mean = {score: np.mean(values, axis=0) for score, values in by_score.items()}
    deviation = {score: np.std(values, axis=0, ddof=1) for score, values in by_score.items()}
    error = {score: deviation[score] / np.sqrt(1500) for score in by_score}
    for score in by_score:
        record_property(f"{score} bias", ((mean[score] - truth) / truth).round(3).tolist())
        record_property(f"{score} deviation", (deviation[score] / truth).round(3).tolist())
    assert (np.abs(mean["unbiased"] - truth) < 3.5 * error["unbiased"]).all()
    assert (mean["paper"] - truth > 10 * error["paper"]).all()
    noisiest = int(np.argmax(mean["paper"] - truth))
    assert noisiest == 2  # the paper's score rewards the least predictable source most


def test_the_bias_of_the_papers_score_falls_in_proportion_to_the_sequences():
    """The bias is the trace of the gradient's covariance, which is proportional to 1 / n."""
    data = sequences(3, 200, 10)
    model, generator, ones = Toy(seed=2), np.random.default_rng(1), np.ones(1)
    engine = GradientEngine(model, 1)
    truth = engine.backward(SourceBatch(data, (200,)), weights=ones, targets=ones).scores[0]
    bias = {}
    for n in (2, 8):
        values = []
        for _ in range(800):
            rows = data[generator.integers(0, 200, size=n)]
            model.zero_grad()
            values.append(engine.backward(SourceBatch(rows, (n,)), weights=ones, targets=ones).scores[0])
        bias[n] = np.mean(values) - truth
    assert bias[2] / bias[8] == pytest.approx(4, rel=0.15)
