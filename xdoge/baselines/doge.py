"""DoGE as in its authors' code, step for step, with this library's gradients and training.

Where `xdoge fit-weights` differs from that code, this baseline follows the code. It clips gradients before the
products, and scores to a range. It has no floor, and its batches do not follow the weights. In the published
configuration, it has one target, a mix of all sources. `docs/explanation/method.md`, "DoGE by its authors' code", has
the equations and the remaining differences.

Source: Fan et al. 2023, arXiv:2310.15393, and github.com/Olivia-fsm/DoGE, `src/trainer.py` at 1fb7f7b with
`config/doge.json`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from xdoge.baselines.job import Job, Trajectory, equal_parts, follow
from xdoge.baselines.options import DogeSettings
from xdoge.baselines.training import BaselineProxy, ProxyState
from xdoge.fit.gradients.engine import GradientEngine
from xdoge.fit.gradients.products import SourceBatch, SourceProducts
from xdoge.fit.result import language_weights
from xdoge.mixtures.simplex import Floats
from xdoge.mixtures.weights import WeightSet
from xdoge.training.run_folder import MetricsRow

LARGEST_NORM = 5.0
"""Norm to which the gradient of every source is clipped before the products; `max_grad_norm` in the authors' code."""

SCORES = 0.0, 5.0
"""Range to which scores are clipped; `dw_min` and `dw_max` in the authors' code."""


def update(
    weights: Floats, products: Floats, norms: Floats, *, rate: float, mu: float, smoothing: float
) -> tuple[Floats, Floats]:
    """Return the weights after a step, and the scores that moved them.

    Args:
        weights: (k,) α.
        products: (k,) inner products of each source's clipped gradient with the target's.
        norms: (k,) norms of the clipped gradients.
        rate: learning rate of the step.
        mu: μ.
        smoothing: share of uniform weights that is mixed in.
    """
    scores = np.clip(products / (norms.mean() + 1e-6), *SCORES)
    with np.errstate(divide="ignore"):
        logs = np.log(weights) + rate / mu * scores
    moved = np.exp(logs - logs.max())
    return (1 - smoothing) * moved / moved.sum() + smoothing / weights.size, scores


def clipped(products: SourceProducts, k: int) -> tuple[Floats, Floats]:
    """Return the products of clipped gradients with the target's, (k,), and the norms of the clipped gradients, (k,).

    Args:
        products: products of k sources and the mix. If the target is the sources, products of k sources with their Gram
            matrix.
        k: number of sources.
    """
    norms = np.sqrt(products.square_norms)
    scale = np.minimum(1.0, LARGEST_NORM / (norms + 1e-6))  # as torch's clip_grad_norm_
    to_mix = products.gram is None
    along = scale[:k] * scale[k] * products.scores[:k] if to_mix else scale * (products.gram @ scale)
    return along, (scale * norms)[:k]


def doge(job: Job[DogeSettings]) -> WeightSet:
    """Train the proxy from the newest checkpoint, and return the mean of the weights over the steps."""
    store, settings, run = job.store, job.settings, job.run
    proxy = BaselineProxy(store, settings, job.recipe)
    trajectory = Trajectory(len(store.sources), ("score", "loss", "grad_norm"))
    if folder := run.good_checkpoint(job.on_note):
        numbers, arrays, tensors = run.load_checkpoint(folder)
        proxy.load(numbers["step"], arrays, tensors)
        trajectory.load(run, proxy.step, arrays)
    job.rewind(proxy.step)

    def state() -> ProxyState:
        arrays, tensors = proxy.state()
        return arrays | trajectory.write(run, store.sources), tensors

    follow(job, _steps(job, proxy, trajectory), proxy, state)
    stuck = sum(bool((scores >= SCORES[1]).all()) for scores in np.array(trajectory.history["score"]))
    if stuck:
        job.on_note(
            f"in {stuck} of {settings.steps} steps every score was clipped to {SCORES[1]:g}, so that no weight moved, "
            "as none would in the authors' code"
        )
    return job.finish(trajectory.mean, tokens=proxy.tokens, floor=settings.smoothing / len(store.sources))


def _steps(job: Job[DogeSettings], proxy: BaselineProxy, trajectory: Trajectory) -> Iterator[MetricsRow]:
    """Take the remaining steps, and yield the row of metrics of each."""
    settings, k = job.settings, len(job.store.sources)
    parts = settings.parts(k)
    engine = GradientEngine(proxy.model, parts)
    sizes = equal_parts(settings, parts)
    mixed = parts > k
    targets = np.array([0.0] * k + [1.0] if mixed else [1.0] * k)
    while proxy.step < settings.steps:
        rows = proxy.draw(sizes[:k])
        if mixed:
            generator = np.random.Generator(np.random.Philox(key=[settings.seed, proxy.step + 1]))
            rows = torch.cat([rows, proxy.draw(generator.multinomial(sizes[k], np.full(k, 1 / k)))])
        products = engine.backward(
            SourceBatch(input_ids=rows, counts=tuple(sizes.tolist())),
            weights=np.append(trajectory.now, [0.0] * mixed),  # the authors' code has the next weights here
            targets=targets,
            gram=not mixed,
            halves=False,
            autocast=proxy.autocast,
        )
        losses = products.losses[:k]
        row = proxy.train_step(float(trajectory.now @ losses))
        rate = row["learning_rate"]
        along, norms = clipped(products, k)
        weights, scores = update(trajectory.now, along, norms, rate=rate, mu=settings.mu, smoothing=settings.smoothing)
        trajectory.move(weights, score=scores, loss=losses, grad_norm=np.sqrt(products.square_norms[:k]))
        yield row | {"target_loss": float(losses.mean()), "languages": language_weights(job.store, weights)}
