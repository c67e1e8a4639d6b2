"""Processor time of a study per model in addition to training, with forked commands and with new interpreters.

    python benchmarks/study.py [--models 4] [--rounds 3]

As in any study, every model has a mixture, a training and a perplexity. Here the proxy is tiny and trains for two steps
on the built-in sample. The training itself takes 0.1 s, and the rest is the overhead of each run. Forked commands and
new interpreters take turns. The benchmark measures the processor time of the study's process and all its commands, so
that other work of the machine has little effect. Each figure is the median over rounds, with minimum and maximum. The
last line of output is one JSON object. `overhead` is the share of the overhead in runs of one minute.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
from pathlib import Path

import yaml

from xdoge.corpus.prepare import prepare
from xdoge.corpus.sample import write_sample
from xdoge.study import Study, runner
from xdoge.study.launcher import Launcher

RECIPE = {
    "name": "tiny", "hidden_size": 16, "intermediate_size": 32, "layers": 2, "heads": 2,
    "sequence_length": 64, "batch_size": 16, "steps": 2, "learning_rate": 0.01,
}  # fmt: skip


def spent() -> float:
    """Return the processor time of this process and its finished children, in seconds."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> None:
    """Measure, then print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # threads that wait for each other would use processor time
    seconds: dict[bool, list[float]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = prepare(write_sample(folder / "corpus"), folder / "store")
        (folder / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
        keys = {
            "store": "store",
            "proxy": "tiny.yaml",
            "model": "tiny.yaml",
            "seeds": list(range(options.models)),
            "compare": ["tokens"],
        }
        keys |= {"strategies": {"uniform": {"kind": "uniform"}}, "evaluation": {"max_documents": 2}}
        keys |= {"training": {"eval_sequences": 1}}
        (folder / "study.yaml").write_text(yaml.safe_dump(keys))
        for round_ in range(options.rounds):
            for forks in seconds:
                runner.Launcher = lambda environment, forks, now=forks: Launcher(environment, forks=now)  # type: ignore
                runs = Study.load(folder / "study.yaml").begin(folder / f"{round_}-{forks}")
                before = spent()
                assert not runner.run_all(runs.values(), folder / f"{round_}-{forks}")
                seconds[forks].append((spent() - before) / options.models)
                print(f"{'forked' if forks else 'separate'}: {seconds[forks][-1]:.2f} s a model", flush=True)
    forked, separate = (statistics.median(seconds[forks]) for forks in (True, False))
    print(
        json.dumps(
            {
                "forked": [forked, *sorted(seconds[True])[:: max(1, options.rounds - 1)]],
                "separate": [separate, *sorted(seconds[False])[:: max(1, options.rounds - 1)]],
                "overhead": {"forked": forked / (60 + forked), "separate": separate / (60 + separate)},
                "store": store.name,
            }
        )
    )


if __name__ == "__main__":
    main()
