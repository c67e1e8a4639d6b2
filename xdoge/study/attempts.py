"""runs.jsonl: how every attempt at a run of a study ended, and which runs may be planned again with other settings."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xdoge.errors import XDogeError
from xdoge.io import disk_errors

LEARNS_FROM = {
    "proxy": "another recipe of the proxy",
    "reference": "other reference weights",
    "initial": "other initial weights",
}
"""Inputs of the learning of weights: their keys in plan.json, and the words of the message for a changed input."""


def note_attempt(out: Path, name: str, *, status: int | None, seconds: float, last_line: str) -> None:
    """Append how an attempt at a run ended. A status of None means that a failed run was started again."""
    row = {"run": name, "status": status, "seconds": seconds, "last_line": last_line}
    with disk_errors(out), (out / "runs.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def attempts(out: Path) -> dict[str, dict[str, Any]]:
    """Return the last line of runs.jsonl for each run that was attempted."""
    file, last = out / "runs.jsonl", {}
    for line in file.read_bytes().splitlines() if file.exists() else ():
        with contextlib.suppress(ValueError, TypeError, KeyError):  # cut short by a kill
            row = json.loads(line)
            last[row["run"]] = row
    return last


def failed_runs(out: Path) -> set[str]:
    """Return the names of the runs whose last attempt failed."""
    return {name for name, row in attempts(out).items() if row.get("status")}


def refuse_changes(
    out: Path,
    study: Path,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    open_runs: set[str],
    idle_runs: set[str],
) -> list[str]:
    """Return the names of the runs that may be planned again, and raise if any other run was dropped or changed.

    Every run that was started stays in the table. A run that failed and has no result may get other settings.

    Args:
        out: the study's folder.
        study: the study.yaml.
        before: the plan in the folder.
        now: the plan of the study.yaml.
        open_runs: names of the runs that failed and have no result.
        idle_runs: names of the runs that were planned and never attempted.

    Raises:
        XDogeError: another run was dropped or changed; or the store, the model, or a file that weights are learned from
            has changed.
    """
    for key in ("store", "model"):
        if before[key] != now[key]:
            raise XDogeError(f"{out} is a study with another {key}; name another folder for this one.")
    changed = {run for run in open_runs if before["runs"].get(run) != now["runs"].get(run)}
    for name, files in before.get("learning", {}).items():
        other = [key for key, value in files.items() if now["learning"].get(name, {}).get(key, value) != value]
        if not other:
            continue
        learning = {run for run in before["runs"] if f"{run}/".startswith(f"weights/{name}/")}
        if f"weights/{name}" in learning:  # the weights of a law, which come from the swarm
            learning.add("swarm")
        if learning & open_runs and learning <= open_runs | idle_runs:
            changed |= learning & open_runs
            continue
        raise XDogeError(
            f"{out} was begun with {' and '.join(LEARNS_FROM[key] for key in other)} of "
            f"strategies.{name}. Restore the earlier ones, or name another folder."
        )
    anew = [name for name in before["runs"] if name in changed]
    for name, command in before["runs"].items():
        if name in anew or (anew and name in idle_runs):  # at equal FLOPs, another cost of learning changes the steps
            continue
        if name not in now["runs"]:
            raise XDogeError(
                f"{out} has the run {name}, which {study} no longer contains. A study reports every run "
                "that it began. Restore the earlier study, or name another folder."
            )
        if command != now["runs"][name]:
            raise XDogeError(
                f"{out} planned {name} as `{command}`, but {study} now plans it as `{now['runs'][name]}`. "
                "Restore the earlier settings, or name another folder; only a run that failed may change."
            )
    return [name for name in anew if name in now["runs"]]
