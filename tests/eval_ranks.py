"""What each process of tests/test_eval_ranks.py does; importable without pytest, so that a fork server can run it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xdoge.eval import scoring
from xdoge.eval.documents import Text
from xdoge.eval.lm_eval import benchmarks as iberobench
from xdoge.eval.lm_eval import catalogue, harness
from xdoge.eval.perplexity import PerplexitySettings, measure
from xdoge.eval.suite import HarnessSettings, Suite, SuiteTask
from xdoge.io import write_json

TASKS = (
    SuiteTask(task="qnlieu", language="eu", choices=2),
    SuiteTask(task="escola", language="es", metric="mcc"),  # the model fails in one process
    SuiteTask(task="wnli_eu", language="eu", choices=2),  # cannot be built in one process
    SuiteTask(task="bec2016eu", language="eu", metric="f1", choices=3),
)


def ask(model: str, data: Path, text: dict[str, Path], partial: Path | None) -> dict[str, Any]:
    """Return the results of all processes together, or of a single process."""
    texts = {name: Text((path,)) for name, path in text.items()}
    measured = measure(model, texts, settings=PerplexitySettings(batch_tokens=48, device="cpu"), partial=partial)
    settings = HarnessSettings(device="cpu")
    suite = Suite(name="mine", num_fewshot=2, tasks=TASKS)
    scored = iberobench.run_suite(model, suite, settings=settings, local_data=data, partial=partial)
    return {
        "totals": {source: scores.totals.tolist() for source, scores in measured.sources.items()},
        "outcomes": {
            outcome["task"]: [outcome["outcome"], outcome["reason"], outcome.get("value"), outcome.get("prompts")]
            for outcome in scored.to_dict()["outcomes"]
        },
    }


def work(rank: int, environment: dict[str, str], folder: Path, model: str, data: Path, text: dict[str, Path]) -> None:
    """Write the results of this process. The second process fails in two tasks, and at the end completely."""
    from lm_eval.models.huggingface import HFLM

    os.environ.update({**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)})
    asked: list[str] = []

    def broken(*_: object) -> None:
        if asked[-1] == "escola":
            raise RuntimeError("CUDA out of memory")

    def without_data(_: object, task: SuiteTask, *__: object) -> None:
        if task.task == "wnli_eu":
            raise catalogue.TaskError("no data", "not on this machine")

    def fail(*_: object) -> None:
        raise RuntimeError("a bug of ours")

    _before(harness.HarnessModel, "score", lambda _, task, *__: asked.append(task.task_name))
    if rank == 1:
        _before(HFLM, "_loglikelihood_tokens", broken)
        _before(catalogue.Catalogue, "build", without_data)
    write_json(folder / f"rank{rank}.json", ask(model, data, text, folder / "partial"))
    if rank == 1:
        _before(scoring.LoadedModel, "nats", fail)
    try:
        ask(model, data, text, None)
    except Exception as error:
        (folder / f"rank{rank}.end").write_text(f"{type(error).__name__}: {error}")
        sys.stdout.flush()
        os._exit(1)


def _before(owner: Any, name: str, do: Callable[..., None]) -> None:
    real = getattr(owner, name)

    def wrapped(*arguments: Any, **options: Any) -> Any:
        do(*arguments)
        return real(*arguments, **options)

    setattr(owner, name, wrapped)
