"""The run folder of a fit or a training: start, resume and finish a run, and write its files.

config.yaml          all resolved settings, the recipe, the store, and the versions of Python and the libraries
metrics.jsonl        one row per step
trajectory.parquet   step, source, weight, score, loss, grad_norm
gram.parquet         mean inner products and cosines between sources, over each tenth of the run
checkpoints/         the latest checkpoints
proxy/               the trained proxy in the format of transformers, with the tokenizer
weights.json         the result. It exists only if the run is finished
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
"""Prefixes of keys in config.yaml that do not affect the results: paths, times of creation, timeouts."""

CHECKPOINT = 2
"""Version of the format of checkpoints."""

Arrays = dict[str, NDArray[Any]]

MetricsRow = dict[str, Any]
"""A row of metrics.jsonl: number of the step, loss, seconds, and numbers of the method."""


class History:
    """A column of the trajectory: one (k,) array per step, eight bytes per number. `np.asarray` gives (steps, k).

    Args:
        k: number of sources.
        rows: (steps, k) rows of earlier steps.
    """

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
    """The folder of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.weights = path / "weights.json"
        self.metrics = path / "metrics.jsonl"
        self.trajectory = path / "trajectory.parquet"
        self.gram = path / "gram.parquet"
        self.proxy = path / "proxy"
        self.checkpoints = path / "checkpoints"

    def refuse_taken(self) -> None:
        """Raise XDogeError if the folder contains a run or other files."""
        if self.path.is_file():
            raise XDogeError(f"{self.path} is a file; {argument('out')} names a folder.")
        if self.path.is_dir() and any(not _harmless(child) for child in self.path.iterdir()):
            is_run = (self.path / "config.yaml").exists()
            hint = f"Continue that run with {argument('resume', True)}, or" if is_run else "Please"
            raise XDogeError(f"{self.path} is not empty. {hint} name another folder.")

    def refuse_missing(self) -> None:
        """Raise XDogeError if no run was started in the folder."""
        if not (self.path / "config.yaml").exists():
            raise XDogeError(f"{self.path} holds no run to resume; leave out {argument('resume', True)} to start one.")

    def settings(self) -> dict[str, Any]:
        """Return the resolved settings of the run in the folder.

        Raises:
            XDogeError: there is no run, or config.yaml is damaged.
        """
        self.refuse_missing()
        settings = read_yaml(self.path / "config.yaml").get("settings")
        if not isinstance(settings, dict):
            raise XDogeError(f"{self.path / 'config.yaml'} is damaged: it has no settings.")
        return settings

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Create and lock the folder, and remove incomplete files of a killed process."""
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
        """Write config.yaml.

        Raises:
            XDogeError: the folder contains a run or other files.
        """
        self.refuse_taken()
        text = yaml.safe_dump({**config, "versions": versions()}, sort_keys=False, allow_unicode=True)
        write_text(self.path / "config.yaml", text)

    def check(self, config: Mapping[str, Any], *, free: Collection[str] = ()) -> list[str]:
        """Compare a configuration with that of the run in the folder. Return a line for each version that changed.

        Args:
            config: configuration with which the run will be resumed.
            free: names of settings that may differ.

        Raises:
            XDogeError: there is no run in the folder, or another setting differs.
        """
        self.refuse_missing()
        started = read_yaml(self.path / "config.yaml")
        before, now = started.pop("versions", {}), versions()
        old, new = decisive(started), decisive(config)
        known = {*(started.get("settings") or {}), *free}
        if unknown := [key for key, value in config.get("settings", {}).items() if key not in known and value]:
            raise XDogeError(
                f"{self.path} was begun by an earlier xdoge, without the setting {', '.join(unknown)}; "
                "finish the run with that version, or start it again in another folder."
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
        """Return the folder of the newest checkpoint, None if there is no checkpoint."""
        return max(self._checkpoints(), default=None)

    def good_checkpoint(self, on_note: OnNote) -> Path | None:
        """Return the folder of the newest undamaged checkpoint, None if there is no checkpoint.

        Raises:
            XDogeError: all checkpoints are damaged.
        """
        return newest_whole(self._checkpoints(), on_note)

    def save_checkpoint(
        self, step: int, *, numbers: Mapping[str, Any], arrays: Arrays, tensors: Any, keep: int
    ) -> None:
        """Write a checkpoint, then remove all but the `keep` newest.

        Args:
            step: number of finished steps.
            numbers: numbers to store as JSON, which keeps them exactly.
            arrays: NumPy arrays of the outer problem.
            tensors: torch tensors of the proxy and its optimiser.
            keep: number of checkpoints to keep.
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
        """Return the numbers, arrays and tensors of a checkpoint.

        Raises:
            XDogeError: the checkpoint has the format of another version of xdoge.
        """
        from safetensors.numpy import load_file
        from safetensors.torch import load_file as load_tensors

        numbers = read_json(folder / "state.json", schema="xdoge.checkpoint", version=CHECKPOINT)
        if numbers["schema"] != f"xdoge.checkpoint/{CHECKPOINT}":
            raise XDogeError(
                f"{folder} was written by an earlier xdoge, whose fits this version cannot continue; "
                "finish the run with that version, or start it again in another folder."
            )
        return numbers, load_file(folder / "arrays.safetensors"), load_tensors(folder / "tensors.safetensors")

    def forget_checkpoints(self) -> None:
        """Remove all checkpoints. They are not needed after the end of a run."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def _checkpoints(self) -> list[Path]:
        return sorted(self.checkpoints.glob("step-*"))

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one row to metrics.jsonl."""
        with disk_errors(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.write(_line(row))

    def rewind_metrics(self, step: int) -> None:
        """Remove the rows after `step` and an incomplete last row. The resumed run writes them again."""
        if self.metrics.exists():
            rows = (row for row in read_rows(self.metrics) if row.get("step", math.inf) <= step)
            write_text(self.metrics, "".join(map(_line, rows)))

    def write_trajectory(self, history: Mapping[str, NDArray[np.float64]], sources: tuple[str, ...]) -> None:
        """Write trajectory.parquet with one row per step and source.

        Args:
            history: (steps, k) values of each column.
            sources: names of the k sources.
        """
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
        """Return the columns of the first `step` steps in trajectory.parquet.

        Raises:
            XDogeError: the file is damaged.
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
                f"{self.trajectory} is damaged, and there is no other copy of its first {step:,} steps. "
                f"Put back a copy, or remove {self.checkpoints} and start again with "
                f"{argument('resume', True)}."
            ) from error

    def write_gram(self, table: pa.Table) -> None:
        """Write gram.parquet."""
        import pyarrow.parquet as pq

        with replacing(self.gram) as file:
            pq.write_table(table, file)


def decisive(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values in a configuration on which the results of a run depend, by keys such as "settings.seed"."""
    return {key: value for key, value in flatten(config) if not key.startswith(UNCHECKED)}


def _harmless(path: Path) -> bool:
    """Whether a file may exist before a new run: the store of a study, the lock, or a temporary file."""
    return path.name in ("store", ".lock") or (path.name.startswith(".") and path.name.endswith(".tmp"))


def version_changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return a line for each version that changed between the start of a run and its continuation."""
    return [
        f"resuming with other software or hardware than before, so the last digits may differ: {name} "
        f"{before.get(name)} → {version}"
        for name, version in now.items()
        if before.get(name) != version
    ]


def versions() -> dict[str, str]:
    """Return versions and properties of the machine on which the last bits of the results depend."""
    import torch

    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _LIBRARIES},
        "machine": platform.machine(),
        "threads": str(torch.get_num_threads()),
        "processes": os.environ.get("WORLD_SIZE", "1"),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }
