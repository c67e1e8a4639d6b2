"""The questions of a suite: which ones this machine has, and the download of the others."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from xdoge.eval.lm_eval.benchmarks import expanded
from xdoge.eval.lm_eval.catalogue import TaskError, is_unreachable, offline
from xdoge.eval.suite import Suite
from xdoge.progress import Event, OnProgress, silent

_Where = Literal["local", "cache", "missing"]


@dataclass(frozen=True)
class DataNeed:
    """The data set of one task.

    Attributes:
        task: name of the task.
        language: language of the task.
        dataset: name of the data set on the Hub, and its configuration.
        splits: splits that the task reads.
        where: "local" if it is in the local data, "cache" if it is in the cache of the Hub, else "missing".
        note: why it is missing, if known.
    """

    task: str
    language: str
    dataset: str
    splits: tuple[str, ...]
    where: _Where
    note: str = ""


def prefetch(suite: Suite, local_data: Path | None = None, *, on_progress: OnProgress = silent) -> list[DataNeed]:
    """Download the data sets of a suite into the cache of the Hub, and return where the data set of each task is.

    Without a network, nothing is downloaded.
    """
    tasks, catalogue = expanded(suite)
    needs: list[DataNeed] = []
    reasons: dict[str, str] = {}
    with contextlib.ExitStack() as without_network:
        for spec in tasks:
            try:
                data = catalogue.data(spec, local_data)
            except TaskError as error:
                needs.append(DataNeed(spec.task, spec.language, "", (), "missing", str(error)))
                continue
            dataset = f"{data.dataset} {data.config}" if data.config else data.dataset
            if not data.files and dataset not in reasons:
                try:
                    reasons[dataset] = ""
                    data.load()
                except TaskError as error:
                    reasons[dataset] = str(error)
                    if is_unreachable(error):
                        without_network.enter_context(offline())
            where: _Where = "local" if data.files else "missing" if reasons[dataset] else "cache"
            needs.append(DataNeed(spec.task, spec.language, dataset, data.splits, where, reasons.get(dataset, "")))
            on_progress(Event("source", "data sets", done=len(needs), total=len(tasks), unit="tasks"))
    on_progress(Event("done", "data sets", done=len(tasks), total=len(tasks), unit="tasks"))
    return needs
