"""Accuracy of mixture laws on RegMix's published swarm, compared with regressions that others use.

    XDOGE_REAL_DATA=FOLDER python benchmarks/law.py [--subsets 10] [--runs 32 48 ...] [--jobs 2] [--cache FILE]
    python benchmarks/law.py --optimism [--swarms 50] [--jobs 2]

The benchmark fits `auto` and each rival on random subsets of the 512 small runs. It tests them on 256 other mixtures,
which were trained at 1M and at 60M parameters. Each figure is the mean over the subsets.

    domains   Spearman correlation of predicted and measured loss, mean over the 13 domains
    mean      Spearman correlation for the mean loss over the domains
    rmse      root mean squared error over all domains, nats per token
    regret    mean loss of the mixture that is predicted best, minus the smallest of the 256
    coverage  share of the losses inside their 90 % interval
    level_60m rmse at 60M after adapting offset and scale with 8 of the 256 mixtures; tested on the other 248

With --optimism it needs no data. It creates 50 swarms of known laws over four languages (24 runs, noise 0.02). It fits
each, optimises the mean loss, and compares the stated gain over equal shares with the gain under the known law.

Finished subsets are kept in --cache, so that a stopped benchmark can continue. Ten subsets take about fifteen minutes
on two cores. The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one core per process

import numpy as np

from xdoge.laws.law import LawSettings, MixtureLaw
from xdoge.laws.rivals import has_lightgbm
from xdoge.laws.scores import score
from xdoge.laws.stack import FITS
from xdoge.mixtures.csv_files import align, read_mixtures, read_table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from law_swarms import NAMES, known_law
from law_swarms import runs as swarm_runs

RUNS = (32, 48, 64, 128, 256, 512)
RIVALS = ("linear", "log-linear", "lightgbm", "effective", "process")
Data = dict[str, Any]


def swarm(folder: Path) -> Data:
    """Return the mixtures and losses in the six files of RegMix's swarm."""
    if not folder.is_dir():
        sys.exit(f"{folder} does not exist; set XDOGE_REAL_DATA to the folder that has swarms/regmix-pile.")
    out: Data = {}
    for key, mixture, loss in (
        ("train", "train_mixture_1m.csv", "train_pile_loss_1m.csv"),
        ("1m", "test_mixture_1m.csv", "test_pile_loss_1m.csv"),
        ("60m", "test_mixture_60m.csv", "test_pile_loss_60m.csv"),
    ):
        shares, losses = read_mixtures(folder / mixture), read_table(folder / loss)
        out[key] = align(shares, losses, (mixture, loss))
        out["sources"], out["evaluations"] = shares.names, losses.names
    return out


def measure(folder: Path, n: int, subset: int) -> dict[str, dict[str, float]]:
    """Fit all forms on one subset and return their figures."""
    data = swarm(folder)
    x, y = data["train"]
    chosen = np.random.default_rng([n, subset]).choice(len(x), n, replace=False)
    x, y = x[chosen], y[chosen]
    (test, small), (_, large) = data["1m"], data["60m"]
    start = time.perf_counter()
    law = MixtureLaw.fit(
        x,
        y,
        sources=data["sources"],
        evaluations=data["evaluations"],
        settings=LawSettings(validate_rivals=False),
    )
    seconds = time.perf_counter() - start
    prediction = law.predict(test)
    figures = {"auto": _figures(prediction.predicted, small, large)}
    inside = np.abs(prediction.predicted - small) <= prediction.high - prediction.predicted
    few = np.random.default_rng([n, subset, 1]).choice(len(test), 8, replace=False)
    rest = np.setdiff1d(np.arange(len(test)), few)
    adapted, expected = law.adapt(test[few], large[few])
    figures["auto"] |= {
        "coverage_1m": float(inside.mean()),
        "level_60m": score(adapted.predict(test[rest]).predicted, large[rest]).rmse,
        "level_60m_expected": expected,
        "seconds": seconds,
    }
    for name in RIVALS:
        if name != "lightgbm" or has_lightgbm():
            figures[name] = _figures(FITS[name](law.problem, x, y, 0).predict(test), small, large)
    return figures


def _figures(predicted: Any, small: Any, large: Any) -> dict[str, float]:
    if not np.isfinite(predicted).all():
        raise RuntimeError("a prediction is not finite")
    at_1m, at_60m = score(predicted, small), score(predicted, large)
    return {
        "domains_1m": at_1m.rank_evaluations,
        "mean_1m": at_1m.rank_mean,
        "domains_60m": at_60m.rank_evaluations,
        "mean_60m": at_60m.rank_mean,
        "rmse_1m": at_1m.rmse,
        "regret_1m": at_1m.regret,
        "regret_60m": at_60m.regret,
    }


def _code() -> str:
    """Return a fingerprint of the code, so that the cache of other code is not used."""
    package = Path(sys.modules["xdoge"].__file__ or "").parent / "laws"
    text = b"".join(path.read_bytes() for path in sorted(package.glob("*.py")))
    return hashlib.sha256(text + Path(__file__).read_bytes()).hexdigest()[:12]


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure all subsets that are not in the cache, and return the means."""
    folder = Path(os.environ.get("XDOGE_REAL_DATA", "shared/data")) / "swarms/regmix-pile"
    swarm(folder)
    cache = Path(arguments.cache or Path(tempfile.gettempdir()) / f"xdoge-bench-law-{_code()}.jsonl")
    lines = map(json.loads, cache.read_text().splitlines()) if cache.exists() else ()
    results = {(line["n"], line["subset"]): line["figures"] for line in lines}
    tasks = [(n, subset) for n in arguments.runs for subset in range(arguments.subsets if n < 512 else 1)]
    missing = [task for task in tasks if task not in results]
    start = time.perf_counter()
    with ProcessPoolExecutor(arguments.jobs) as pool:
        futures = {pool.submit(measure, folder, *task): task for task in missing}
        for done, future in enumerate(as_completed(futures), 1):
            n, subset = futures[future]
            results[n, subset] = figures = future.result()
            with cache.open("a") as file:
                file.write(json.dumps({"n": n, "subset": subset, "figures": figures}) + "\n")
            left = (time.perf_counter() - start) / done * (len(missing) - done)
            auto = figures["auto"]
            print(
                f"{done}/{len(missing)} n={n} subset {subset}: {auto['domains_1m']:.4f} / {auto['mean_1m']:.4f}, "
                f"{auto['seconds']:.0f} s, ETA {left / 60:.0f} min",
                file=sys.stderr,
                flush=True,
            )
    table: dict[str, Any] = {}
    for n in arguments.runs:
        rows = [results[task] for task in tasks if task[0] == n]
        means = {
            form: {key: round(float(np.mean([row[form][key] for row in rows])), 5) for key in rows[0][form]}
            for form in rows[0]
        }
        table[str(n)] = means.pop("auto")
        table.setdefault("rivals", {})[str(n)] = means
    return table


def show(table: dict[str, Any]) -> None:
    """Print one row for each number of runs and form."""
    columns = ("domains_1m", "mean_1m", "domains_60m", "mean_60m", "rmse_1m", "regret_1m", "coverage_1m", "level_60m")
    print(f"{'n':>4} {'form':<11}" + "".join(f"{column:>13}" for column in columns))
    for n, rivals in table["rivals"].items():
        for form, figures in {"auto": table[n], **rivals}.items():
            cells = (f"{figures[column]:13.4f}" if column in figures else " " * 13 for column in columns)
            print(f"{n:>4} {form:<11}" + "".join(cells))


def optimum_of(form: str, seed: int) -> tuple[float, float, float, bool]:
    """Return the realised, corrected and predicted gain of an optimum, and whether the interval has the first."""
    truth = known_law(seed=seed)
    law = MixtureLaw.fit(
        *swarm_runs(truth, 24, noise=0.02, seed=seed),
        sources=NAMES,
        evaluations=NAMES,
        form=form,
        settings=LawSettings(validate_rivals=False),
    )
    optimum = law.optimize("mean")
    uniform, best = truth.predict(np.stack([np.full(4, 0.25), np.array(list(optimum.shares.values()))])).mean(axis=1)
    gain, realised = optimum.gains["uniform"], float(uniform - best)
    return realised, gain.corrected, gain.predicted, gain.low <= realised <= gain.high


def optimism(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return for each form the mean of (realised - stated) gains, its standard error, and the coverage of intervals."""
    out: dict[str, Any] = {}
    for form in ("effective", "auto"):
        with ProcessPoolExecutor(arguments.jobs) as pool:
            rows = np.array(list(pool.map(optimum_of, [form] * arguments.swarms, range(arguments.swarms))), float)
        figures: dict[str, float] = {"swarms": len(rows), "realised": rows[:, 0].mean(), "inside": rows[:, 3].mean()}
        for column, name in ((1, "corrected"), (2, "predicted")):
            difference = rows[:, 0] - rows[:, column]
            figures[f"realised_less_{name}"] = difference.mean()
            figures[f"realised_less_{name}_se"] = difference.std(ddof=1) / np.sqrt(len(rows))
        out[form] = {name: round(float(value), 5) for name, value in figures.items()}
        print(f"{form}: {json.dumps(out[form])}", file=sys.stderr, flush=True)
    return out


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="accuracy of mixture laws on RegMix's swarm")
    parser.add_argument("--subsets", type=int, default=10)
    parser.add_argument("--runs", type=int, nargs="+", default=list(RUNS))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--cache", help="file of finished subsets")
    parser.add_argument("--optimism", action="store_true", help="compare stated and realised gains on known laws")
    parser.add_argument("--swarms", type=int, default=50, help="of --optimism")
    arguments = parser.parse_args()
    if arguments.optimism:
        print(json.dumps(optimism(arguments)))
        return
    table = run(arguments)
    show(table)
    print(json.dumps(table))


if __name__ == "__main__":
    main()
