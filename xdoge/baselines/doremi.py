"""DoReMi: weights rise for sources on which a proxy is worse than a reference model.

First, a reference model is trained on fixed weights. Then a proxy of the same size is trained together with the
weights. The excess loss of a source over the reference, per token and never below 0, raises the weight of the source.
The proxy minimises the weighted losses. The result is the mean of the weights over the steps.
`docs/explanation/method.md`, "DoReMi", has the equations and our choices where the paper leaves them open.

Source: Xie et al. 2023, arXiv:2305.10429, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from xdoge.baselines.job import Job, Trajectory, equal_parts, follow, means
from xdoge.baselines.options import DoremiSettings
from xdoge.baselines.training import BaselineProxy, ProxyState, train_on
from xdoge.fit.result import language_weights
from xdoge.mixtures.simplex import Floats
from xdoge.mixtures.weights import WeightSet
from xdoge.training.run_folder import MetricsRow


def update(weights: Floats, excess: Floats, *, eta: float, smoothing: float) -> Floats:
    """Return the weights after a step: α ⊙ exp(η λ), normalised, with a share of uniform weights mixed in.

    Args:
        weights: (k,) α.
        excess: (k,) λ >= 0, each source's clipped excess loss, nats per token.
        eta: η.
        smoothing: c.
    """
    with np.errstate(divide="ignore"):
        logs = np.log(weights) + eta * excess
    moved = np.exp(logs - logs.max())
    smoothed: Floats = (1 - smoothing) * moved / moved.sum() + smoothing / weights.size
    return smoothed


def doremi(job: Job[DoremiSettings]) -> WeightSet:
    """Train the reference and the proxy from the newest checkpoint, and return the mean of the weights."""
    store, settings, run = job.store, job.settings, job.run
    k = len(store.sources)
    reference, proxy = (BaselineProxy(store, settings, job.recipe) for _ in range(2))
    trajectory = Trajectory(k, ("score", "loss", "reference_loss"))
    begun = 0
    if folder := run.good_checkpoint(job.on_note):
        numbers, arrays, tensors = run.load_checkpoint(folder)
        begun = numbers["step"]
        if begun <= settings.steps:
            reference.load(begun, arrays, tensors)
        else:
            theirs = {name.removeprefix("reference."): value for name, value in tensors.items()}
            own = {name: value for name, value in tensors.items() if not name.startswith("reference.")}
            reference.load(settings.steps, {"read": arrays["reference_read"]}, theirs)
            proxy.load(begun - settings.steps, arrays, own)
            trajectory.load(run, proxy.step, arrays)
    job.rewind(begun)

    def state() -> ProxyState:
        arrays, tensors = proxy.state()
        arrays |= trajectory.write(run, store.sources) | {"reference_read": reference.read}
        return arrays, tensors | {f"reference.{name}": value for name, value in reference.tensors().items()}

    tokens = np.array([store.tokens()[source] for source in store.sources], dtype=np.float64)
    fixed = tokens / tokens.sum() if settings.reference == "proportional" else np.full(k, 1 / k)
    follow(job, train_on(fixed, reference), reference, reference.state)
    reference.model.eval()
    follow(job, _play(job, proxy, reference, trajectory), proxy, state, before=settings.steps)
    return job.finish(trajectory.mean, tokens=reference.tokens + proxy.tokens, floor=settings.smoothing / k)


def _play(
    job: Job[DoremiSettings], proxy: BaselineProxy, reference: BaselineProxy, trajectory: Trajectory
) -> Iterator[MetricsRow]:
    """Take the remaining steps of the proxy and the weights, and yield the row of metrics of each."""
    settings = job.settings
    counts = equal_parts(settings, len(job.store.sources))
    while proxy.step < settings.steps:
        rows = proxy.draw(counts)
        with torch.no_grad():
            before = reference.losses(rows)
        losses = proxy.losses(rows)
        excess = means((losses.detach() - before).clamp(min=0).double(), counts)
        weights = update(trajectory.now, excess.cpu().numpy(), eta=settings.eta, smoothing=settings.smoothing)
        by_source = means(losses, counts)
        loss = (torch.from_numpy(weights).to(by_source) * by_source).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        row = proxy.train_step(loss.item())
        source_losses = by_source.detach().double().cpu().numpy()
        trajectory.move(
            weights,
            score=excess.cpu().numpy(),
            loss=source_losses,
            reference_loss=means(before.double(), counts).cpu().numpy(),
        )
        yield row | {"target_loss": float(source_losses.mean()), "languages": language_weights(job.store, weights)}
