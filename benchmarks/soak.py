"""Check that memory and open files of `xdoge fit-weights` do not grow in an hour.

    python benchmarks/soak.py [--minutes 60] [--store STORE] [--proxy 1m] [--set KEY=VALUE]...

The command runs with short steps, and with a checkpoint and a validation every hundred steps. Every few seconds, the
benchmark reads from the operating system: resident memory, its anonymous part (the rest is mapped files, including the
store), and open files. The table has the minimum of each tenth of the time. Memory rises and falls between two
checkpoints, but a leak raises the minimum too. Buffers and caches fill in the first tenth. The benchmark fails if the
last tenth is more than 2 % above the second. At the end, SIGTERM must end the command in good order. Without --store it
uses the built-in sample. The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SECONDS = 5.0
"""Longest time between two samples. It is shorter if that is necessary for twenty samples per tenth."""
MOST = 1.02
"""Allowed ratio of the last tenth to the second."""
STEPS = 1_000_000
"""More steps than an hour is enough for."""
COLUMNS = ("resident", "anonymous", "files")


def look(pid: int) -> dict[str, float]:
    """Return the memory of a process in MB, and the number of its open files."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    memory = {
        name: int(lines[key].split()[0]) / 1024 for name, key in (("resident", "VmRSS"), ("anonymous", "RssAnon"))
    }
    return {**memory, "files": len(list(Path(f"/proc/{pid}/fd").iterdir()))}


def watch(process: subprocess.Popen[bytes], minutes: float, metrics: Path) -> list[dict[str, float]]:
    """Return the minimum in each tenth of the time, from the first step on."""
    while not metrics.exists() and process.poll() is None:
        time.sleep(0.1)
    began, tenths = time.monotonic(), []
    for tenth in range(1, 11):
        looks = []
        while process.poll() is None and time.monotonic() - began < 60 * minutes * tenth / 10:
            looks.append(look(process.pid))
            time.sleep(min(SECONDS, 60 * minutes / 200))
        if process.poll() is not None:
            sys.exit(f"the command ended with {process.returncode} before its time")
        row = {name: min(sample[name] for sample in looks) for name in COLUMNS}
        row["steps"] = len(metrics.read_bytes().splitlines())
        tenths.append(row)
        print(
            f"{tenth:5}  {tenth * minutes / 10:8.1f}  {row['steps']:8,}  {row['resident']:11.1f}  "
            f"{row['anonymous']:12.1f}  {row['files']:5.0f}",
            flush=True,
        )
    return tenths


def main() -> None:
    """Run the command, then print a table, a verdict and one JSON object. Exit with 1 if something grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--proxy", default="1m")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting of the fit")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store, run = args.store or Path(folder, "store"), Path(folder, "run")
        if args.store is None:
            from xdoge.corpus.prepare import prepare
            from xdoge.corpus.sample import write_sample

            prepare(write_sample(Path(folder, "sample"), scale=4), store)
        settings = ["sequence_length=32", "checkpoint_every=100", "eval_every=100", "eval_sequences=2", *args.set]
        options = [word for setting in settings for word in ("--set", setting)]
        command = [
            sys.executable,
            "-m",
            "xdoge",
            "fit-weights",
            str(store),
            "--out",
            str(run),
            "--proxy",
            args.proxy,
        ]
        print("tenth   minutes     steps  resident MB  anonymous MB  files")
        with Path(folder, "printed").open("wb") as printed:
            process = subprocess.Popen([*command, "--steps", str(STEPS), *options], stdout=printed, stderr=printed)
            try:
                tenths = watch(process, args.minutes, run / "metrics.jsonl")
                process.send_signal(signal.SIGTERM)
                process.wait(60)
            finally:
                process.kill()
        grown = [name for name in COLUMNS if tenths[-1][name] > MOST * tenths[1][name]]
        in_order = process.returncode == 128 + signal.SIGTERM
        print(f"grown by more than {MOST - 1:.0%}: {', '.join(grown) or 'nothing'}; exit code {process.returncode}")
        print(json.dumps({"minutes": args.minutes, "proxy": args.proxy, "settings": settings, "tenths": tenths}))
        sys.exit(bool(grown) or not in_order)


if __name__ == "__main__":
    main()
