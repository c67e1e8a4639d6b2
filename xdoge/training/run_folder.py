"""The run folder of a fit or a training: what it holds, and how it is started, continued and finished.

config.yaml          every setting, resolved, the recipe and the store
versions.json        of Python and the libraries, at the start
metrics.jsonl        one row a step
trajectory.parquet   step, source, weight, score, loss, grad_norm
gram.parquet         averaged inner products and cosines between sources, over each tenth of the run
checkpoints/         the latest, each whole
proxy/               the trained proxy, as transformers saves it, with the tokenizer
weights.json         the answer; its presence says that the run is finished
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import shutil
from array import array
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from numpy.typing import NDArray

from xdoge.config import read_yaml
from xdoge.errors import XDogeError, argument
from xdoge.io import disk_errors, flatten, locked, read_json, read_rows, replacing, write_json, write_text
from xdoge.progress import OnNote
from xdoge.training.checkpoints import newest_whole, saving_tensors, seal

if TYPE_CHECKING:
    import pyarrow as pa

_LIBRARIES = ("xdoge", "numpy", "torch", "transformers", "accelerate", "safetensors", "pyarrow")

UNCHECKED = ("store.path", "mixture.sha256", "pin", "settings.timeout")
"""How keys of config.yaml begin that decide no number: where things were, when they were made, how long to wait."""

CHECKPOINT = 2
"""Version of what a checkpoint holds."""

Arrays = dict[str, NDArray[Any]]

MetricsRow = dict[str, Any]
"""A row of metrics.jsonl: a step's number, loss, seconds, and the method's own numbers."""


class History:
    """One (k,) array a step of a column of the trajectory, in eight bytes a number; as an array it is (steps, k)."""

    def __init__(self, k: int, rows: NDArray[np.float64] | None = None) -> None:
        self._k, self._values = k, array("d")
        for row in () if rows is None else rows:
            self.append(row)

    def append(self, row: NDArray[Any]) -> None:
        self._values.frombytes(np.asarray(row, dtype=np.float64).tobytes())

    def __len__(self) -> int:
        return len(self._values) // self._k

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.float64]:
        return np.array(self._values, dtype=dtype).reshape(-1, self._k)


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


class RunFolder:
    """A folder that one fit writes to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.weights = path / "weights.json"
        self.metrics = path / "metrics.jsonl"
        self.trajectory = path / "trajectory.parquet"
        self.gram = path / "gram.parquet"
        self.proxy = path / "proxy"
        self.checkpoints = path / "checkpoints"

    def refuse_taken(self) -> None:
        """Raise XDogeError if the folder holds a run, or other files that a new run would be mixed with."""
        if self.path.is_file():
            raise XDogeError(f"{self.path} is a file; {argument('out')} names a folder.")
        if self.path.is_dir() and any(not _harmless(child) for child in self.path.iterdir()):
            is_run = (self.path / "config.yaml").exists()
            hint = f"Continue that run with {argument('resume', True)}, or" if is_run else "Please"
            raise XDogeError(f"{self.path} is not empty. {hint} name another folder.")

    def refuse_missing(self) -> None:
        """Raise XDogeError if no run was started here."""
        if not (self.path / "config.yaml").exists():
            raise XDogeError(f"{self.path} holds no run to resume; leave out {argument('resume', True)} to start one.")

    def settings(self) -> dict[str, Any]:
        """The resolved settings of the run that lies here; refuses as `refuse_missing` does."""
        self.refuse_missing()
        settings = read_yaml(self.path / "config.yaml").get("settings")
        if not isinstance(settings, dict):
            raise XDogeError(f"{self.path / 'config.yaml'} is damaged: it has no settings.")
        return settings

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Make the folder, keep other processes out of it, and clear away what a killed one had half written."""
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.path):
            for left in (*self.path.glob(".*.tmp"), *self.checkpoints.glob(".*.tmp")):
                if left.is_dir():
                    shutil.rmtree(left)
                else:
                    left.unlink()
            yield

    def start(self, config: Mapping[str, Any]) -> None:
        """Write the resolved config; refuses as `refuse_taken` does."""
        self.refuse_taken()
        text = yaml.safe_dump({**config, "versions": versions()}, sort_keys=False, allow_unicode=True)
        write_text(self.path / "config.yaml", text)

    def check(self, config: Mapping[str, Any], *, free: Collection[str] = ()) -> list[str]:
        """Compare with the config that the run was started with, and return what changed since in `versions`.

        The settings that `free` names may differ.

        Raises:
            XDogeError: there is no run here, or a setting differs from the run's.
        """
        self.refuse_missing()
        started = read_yaml(self.path / "config.yaml")
        before, now = started.pop("versions", {}), versions()
        old, new = decisive(started), decisive(config)
        known = {*(started.get("settings") or {}), *free}
        if unknown := [key for key, value in config.get("settings", {}).items() if key not in known and value]:
            raise XDogeError(
                f"{self.path} was begun by an earlier xdoge, without the setting {', '.join(unknown)}; finish the run "
                "with that version, or start it anew in another folder."
            )
        changed = [
            f"{key} was {old.get(key)!r}, is now {new.get(key)!r}"
            for key in [*old, *(key for key in new if key not in old)]
            if key.removeprefix("settings.") not in free
            if old.get(key) != new.get(key)
        ]
        if changed:
            raise XDogeError(f"{self.path} cannot be resumed with other settings: {'; '.join(changed)}.")
        return version_changes(before, now)

    def latest_checkpoint(self) -> Path | None:
        """The newest checkpoint folder, None before the first."""
        return max(self._checkpoints(), default=None)

    def good_checkpoint(self, on_note: OnNote) -> Path | None:
        """The newest checkpoint that is what was written, None before the first; refuses as `newest_whole` does."""
        return newest_whole(self._checkpoints(), on_note)

    def save_checkpoint(
        self, step: int, *, numbers: Mapping[str, Any], arrays: Arrays, tensors: Any, keep: int
    ) -> None:
        """Write a checkpoint whole, then remove all but the `keep` newest.

        Args:
            step: steps done.
            numbers: what JSON holds exactly.
            arrays: NumPy arrays of the outer problem.
            tensors: torch tensors of the proxy and its optimiser.
            keep: number of checkpoints that stay.
        """
        from safetensors.numpy import save_file
        from safetensors.torch import save_file as save_tensors

        with saving_tensors(self.checkpoints / f"step-{step:09d}") as folder:
            save_file(arrays, folder / "arrays.safetensors")
            save_tensors(tensors, folder / "tensors.safetensors")
            write_json(folder / "state.json", {"schema": f"xdoge.checkpoint/{CHECKPOINT}", "step": step, **numbers})
            seal(folder)
        for old in self._checkpoints()[:-keep]:
            shutil.rmtree(old)

    def load_checkpoint(self, folder: Path) -> tuple[dict[str, Any], Arrays, Any]:
        """Read back numbers, arrays and tensors.

        Raises:
            XDogeError: another version of xdoge wrote it, with other contents.
        """
        from safetensors.numpy import load_file
        from safetensors.torch import load_file as load_tensors

        numbers = read_json(folder / "state.json", schema="xdoge.checkpoint", version=CHECKPOINT)
        if numbers["schema"] != f"xdoge.checkpoint/{CHECKPOINT}":
            raise XDogeError(
                f"{folder} was written by an earlier xdoge, whose fits this one cannot continue; finish the run with "
                "that version, or start it anew in another folder."
            )
        return numbers, load_file(folder / "arrays.safetensors"), load_tensors(folder / "tensors.safetensors")

    def forget_checkpoints(self) -> None:
        """Remove all checkpoints, once the run has what it was for."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def _checkpoints(self) -> list[Path]:
        return sorted(self.checkpoints.glob("step-*"))

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one row to metrics.jsonl."""
        with disk_errors(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.write(_line(row))

    def rewind_metrics(self, step: int) -> None:
        """Drop the rows after `step`, and a last row that a kill cut short; the fit writes them again."""
        if self.metrics.exists():
            rows = (row for row in read_rows(self.metrics) if row.get("step", math.inf) <= step)
            write_text(self.metrics, "".join(map(_line, rows)))

    def write_trajectory(self, history: Mapping[str, NDArray[np.float64]], sources: tuple[str, ...]) -> None:
        """Write trajectory.parquet: one row per step and source, from (steps, k) arrays by column name."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        steps = len(next(iter(history.values())))
        indices = np.tile(np.arange(len(sources), dtype=np.int32), steps)
        columns = {
            "step": np.repeat(np.arange(1, steps + 1, dtype=np.int64), len(sources)),
            "source": pa.DictionaryArray.from_arrays(indices, pa.array(sources)),
            **{name: values.ravel() for name, values in history.items()},
        }
        with replacing(self.trajectory) as file:
            pq.write_table(pa.table(columns), file, write_page_checksum=True)

    def read_trajectory(self, step: int, columns: tuple[str, ...], k: int) -> dict[str, History]:
        """Read the first `step` steps of trajectory.parquet back.

        Raises:
            XDogeError: it is not what was written.
        """
        if step == 0:
            return {name: History(k) for name in columns}
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(self.trajectory, columns=list(columns), page_checksum_verification=True)
            return {name: History(k, table[name].to_numpy()[: step * k].reshape(step, k)) for name in columns}
        except (pa.ArrowException, OSError, ValueError) as error:
            raise XDogeError(
                f"{self.trajectory} is damaged, and what it held of the first {step:,} steps lies nowhere else. Put "
                f"back a copy, or remove {self.checkpoints} and start again with {argument('resume', True)}."
            ) from error

    def write_gram(self, table: pa.Table) -> None:
        """Write gram.parquet."""
        import pyarrow.parquet as pq

        with replacing(self.gram) as file:
            pq.write_table(table, file)


def decisive(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides the numbers of a run, by key such as "settings.seed"."""
    return {key: value for key, value in flatten(config) if not key.startswith(UNCHECKED)}


def _harmless(path: Path) -> bool:
    """Whether a new run may start beside this: the store made for it, or what a kill left half-written."""
    return path.name in ("store", ".lock") or (path.name.startswith(".") and path.name.endswith(".tmp"))


def version_changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return a line for what differs between the `versions` at the start of a run and those at its continuation."""
    return [
        f"resuming elsewhere than the run began, so the last digits may differ: {name} {before.get(name)} → {version}"
        for name, version in now.items()
        if before.get(name) != version
    ]


def versions() -> dict[str, str]:
    """Return what decides, beside the settings, whether numbers repeat to the bit."""
    import torch

    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _LIBRARIES},
        "machine": platform.machine(),
        "threads": str(torch.get_num_threads()),
        "processes": os.environ.get("WORLD_SIZE", "1"),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }
