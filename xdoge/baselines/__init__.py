"""Baselines: other methods that learn weights, with the same store, proxies and training as `xdoge fit-weights`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xdoge.baselines.options import BaselineSettings, DogeSettings, DoremiSettings, RegmixSettings
from xdoge.errors import XDogeError
from xdoge.mixtures.weights import WeightSet
from xdoge.progress import OnNote, OnProgress, silent

if TYPE_CHECKING:
    from xdoge.corpus.store import TokenStore
    from xdoge.fit.result import FitResult

__all__ = ["METHODS", "BaselineSettings", "learn"]

METHODS: Mapping[str, type[BaselineSettings]] = {
    settings.method: settings for settings in (DoremiSettings, RegmixSettings, DogeSettings)
}
"""The class of the settings of each method."""


def learn(
    method: str,
    store: TokenStore,
    settings: BaselineSettings,
    *,
    out: Path | str,
    resume: bool = False,
    on_progress: OnProgress = silent,
    on_note: OnNote = silent,
) -> FitResult:
    """Learn one weight per source of `store` by a baseline, and write the weights to `out`/weights.json.

    `weights.proxy["flops"]` is the cost: the exact FLOPs of every model that was run to learn the weights. A run may be
    killed at any moment and resumed. It then gives the same numbers as an uninterrupted run, bit for bit on one CPU
    with the same versions.

    Args:
        method: one of `METHODS`.
        store: the token store.
        settings: settings from `METHODS[method].for_store`.
        out: the run folder, new or empty.
        resume: whether to continue the run in `out`.
        on_progress: called with a row of metrics.jsonl after each step, or with RegMix after each model.
        on_note: called with each sentence that the user should read.

    Raises:
        XDogeError: the method is unknown, the folder is not empty, a setting differs from the run that is resumed, or a
            launcher started several processes.
        NonFiniteLossError: a loss or a gradient is NaN or infinite.
        Interrupted: SIGINT or SIGTERM stopped the run. The same call with `resume` continues it.
    """
    check_method(method)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise XDogeError("baselines run in one process; start them without torchrun or accelerate.")
    from xdoge.baselines.doge import doge
    from xdoge.baselines.doremi import doremi
    from xdoge.baselines.job import Job
    from xdoge.baselines.regmix import regmix
    from xdoge.distributed import stop_requests
    from xdoge.fit.result import FitResult, resolved_config
    from xdoge.fit.verdict import fit_verdict
    from xdoge.models.memory import memory_errors
    from xdoge.models.recipes import load_recipe
    from xdoge.training.eval_schedule import with_schedule_of_run
    from xdoge.training.optim import pick_device
    from xdoge.training.pace import Pace
    from xdoge.training.proxy_settings import ELASTIC
    from xdoge.training.run_folder import RunFolder

    run, recipe = RunFolder(Path(out)), load_recipe(settings.proxy)
    if resume:
        settings = with_schedule_of_run(settings, run.settings())
    config = {"baseline": method, **resolved_config(store, settings, recipe)}
    changes: list[str] = []
    if resume:
        changes = run.check(config, free=ELASTIC)
        if run.weights.exists():
            on_note(f"{run.path} is finished already.")
            return FitResult.read(run, store)
    else:
        run.refuse_taken()
    for line in (*(f"note: {line}" for line in settings.notes(store)), *changes):
        on_note(line)
    methods: dict[str, Callable[[Job[Any]], WeightSet]] = {"doremi": doremi, "regmix": regmix, "doge": doge}
    flops, one = settings.learning_flops(recipe, store), settings.training_flops(recipe, store, settings.proxy_tokens)
    pace = Pace(flops, store, on_progress, on_note, proxies=flops / one)
    with run.claimed(), stop_requests() as stop, memory_errors(settings.memory_advice):
        if not resume:
            run.start(config)
        pace.expect(pick_device(settings.device))
        job = Job(store, settings, recipe, run, stop, pace.show, on_note)
        weights = methods[method](job)
    verdict = tuple(fit_verdict(weights, run, store))
    return FitResult(weights, run.path, settings.n_rows, job.elapsed, resumed=resume, verdict=verdict)


def check_method(method: str) -> None:
    """Raise XDogeError if `method` is not one of `METHODS`."""
    if method not in METHODS:
        raise XDogeError(f"baseline {method!r} is unknown; the baselines are {', '.join(METHODS)}.")
