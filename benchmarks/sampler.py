"""Speed, state and exactness of `MixtureSampler`, compared with other libraries, and speed of reading through it.

    python benchmarks/sampler.py [--rounds 5] [--draws 1000000] [--without NAME]... [--corpus CORPUS.yaml] [--repeat N]

The mixture has 28 sources. The largest is 500 times the smallest, and no source is read more than 4 times. A million
sequences are drawn. The libraries take turns in every round. Each figure is the median over rounds, with
minimum and maximum in brackets.

    build     time from the sources and weights to the first draw
    resume    time from the state after draw 499,712 to the next draw, in a new object
    state     bytes of that state, as JSON if possible, else pickled; `index`: bytes of a stored order
    draws/s   draws per second in consecutive ranges of 1,024; /CPU s: per second of processor time
    off by    largest |drawn - weight × draws| of any source at any multiple of 1,024 draws
    early     draws that repeat a row while other rows of its source have been drawn less often
    passes    passes over the source that is repeated most, at the end of the million or of the library's order

`MixtureSampler` is also measured in a plan of 10^12 draws. `loader` compares the tokens/s of `MixtureDataset` with
sequential reading of the same store, in batches of the same shape. Files are in the page cache, with one thread, and
processor time is measured. `ratio` (in the last line `bare_ratio`) is for arrays that are converted to tensors. The
others go through torch's `DataLoader`, with and without workers. Sequential reading is split and collated for
`data_loader_ratio` (in the last line `loader_ratio`). It is handed over as whole batches, as `MixtureDataset` does, for
`whole_ratio`, which is relative to the plain loader. `gather_ratio` is for a gather of random rows from one array with
all sequences, without a sampler and without sources. No random order can be faster. Libraries that are not installed
are reported. The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import collections
import copy
import gc
import itertools
import json
import logging
import os
import resource
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sampler_peers import PEERS, RANGE, Contestant, Cursor, Problem, spread, state_bytes, timed

from xdoge.mixtures.mixture import Mixture
from xdoge.sampling.sampler import MixtureSampler

SOURCES, SMALLEST, LARGEST = 28, 400, 200_000
SEQUENCE_LENGTH = 2048
MAX_EPOCHS = 4
RESUME_AT = 488 * RANGE  # about half a million, at the end of a batch
FAR = 10**12  # draws of a long run
SECONDS = 0.25  # duration of drawing, per library and round
LOADER_SHAPES = [(1024, 1024), (256, 1024), (64, 1024)]  # sequences per batch, tokens per sequence

WORKERS = {"": 0, ", 2 workers": 2, ", 4 workers": 4}

Figures = dict[str, Any]


def plan(draws: int, *, scale: int = 1) -> tuple[Mixture, dict[str, int]]:
    """Return the mixture, and the number of sequences of each source, multiplied by `scale`."""
    lengths = np.round(np.geomspace(SMALLEST, LARGEST, SOURCES)).astype(int)
    names = [f"l{number % 6}/s{number}" for number in range(SOURCES)]
    counts = {name: length * scale for name, length in zip(names, lengths.tolist(), strict=True)}
    weights = lengths**0.5 / np.sum(lengths**0.5)
    mixture = Mixture.plan(
        dict(zip(names, weights.tolist(), strict=True)),
        available_tokens={name: count * SEQUENCE_LENGTH for name, count in counts.items()},
        budget_tokens=draws * SEQUENCE_LENGTH,
        max_epochs=MAX_EPOCHS,
    )
    return mixture, counts


def ours(mixture: Mixture, counts: dict[str, int], resume_at: int) -> Contestant:
    """Return `MixtureSampler` as a contestant."""
    starts = np.array([0, *itertools.accumulate(counts.values())][:-1])

    def make() -> MixtureSampler:
        return MixtureSampler(mixture, lengths=counts, batch_size=RANGE, sequence_length=SEQUENCE_LENGTH)

    def begin(sampler: MixtureSampler, state: Any) -> MixtureSampler:
        if state:
            sampler.load_state_dict(state)
        sampler[sampler.position]
        return sampler

    return Contestant(
        make=make,
        begin=begin,
        draw=lambda sampler, position, count: sampler.draws(position, position + count),
        rows=lambda draws: starts[draws.source] + draws.index,
        state=lambda: make().state_dict(position=resume_at),
        limit=make().total,
    )


def speed(contestant: Contestant, cursor: Any) -> tuple[float, float]:
    """Return draws per second of wall-clock and of processor time, in consecutive ranges after the first one."""
    limit, position = contestant.limit or sys.maxsize, RANGE
    used, begin = time.process_time(), time.perf_counter()
    while (now := time.perf_counter()) < begin + SECONDS and position + 2 * RANGE <= limit:
        contestant.draw(cursor, position, RANGE)
        position += RANGE
    drawn = position - RANGE
    return drawn / (now - begin), drawn / (time.process_time() - used)


def one_round(contestant: Contestant, state: Any) -> Figures:
    """Return one measurement of build, resume and speed."""
    gc.collect()
    build, cursor = timed(lambda: contestant.begin(contestant.make(), None))
    rate, cpu_rate = speed(contestant, cursor)
    contestant.close(cursor)
    del cursor
    gc.collect()
    fresh, own_state = contestant.make(), copy.deepcopy(state)  # some libraries modify the state
    resume, cursor = timed(lambda: contestant.begin(fresh, own_state))
    contestant.close(cursor)
    return {
        "build_ms": 1000 * build,
        "resume_ms": 1000 * resume,
        "draws_per_second": rate,
        "draws_per_cpu_second": cpu_rate,
    }


def drawn_rows(contestant: Contestant, state: Any, position: int, count: int) -> NDArray[np.int64]:
    """Return the rows of `count` draws from `position` on, the position of the state."""
    cursor = contestant.begin(contestant.make(), copy.deepcopy(state))
    if isinstance(cursor, Cursor):
        drawn = [*cursor.first, *contestant.draw(cursor, position, count - cursor.size)]
    else:
        drawn = contestant.draw(cursor, position, count)
    rows = contestant.rows(drawn)
    contestant.close(cursor)
    return rows


def exactness(contestant: Contestant, problem: Problem, state: Any) -> Figures:
    """Return how far the draws deviate from the weights, and whether a resumed run draws the same rows."""
    if contestant.stream is None:
        rows = drawn_rows(contestant, None, 0, contestant.limit or problem.total)
    else:
        rows = contestant.stream()
    gc.collect()
    resume_at = problem.resume_at if contestant.resume_at is None else contestant.resume_at
    after = drawn_rows(contestant, state, resume_at, 4 * RANGE)
    source = np.searchsorted(problem.bounds, rows, side="right") - 1
    return {
        "worst_deviation": round(deviation(source, problem.weights), 2),
        "early_repeats": early_repeats(rows, source, problem.lengths),
        "most_passes": round(float(np.max(np.bincount(source, minlength=SOURCES) / problem.lengths)), 2),
        "draws": len(rows),
        "resumed_at": resume_at,
        "resumes_the_same": bool(np.array_equal(after, rows[resume_at : resume_at + len(after)])),
    }


def deviation(source: NDArray[np.int64], weights: NDArray[np.float64]) -> float:
    """Return the largest |drawn - weight × draws| of any source at any multiple of RANGE draws."""
    n_blocks = len(source) // RANGE
    block = np.repeat(np.arange(n_blocks), RANGE)
    counts = np.bincount(block * SOURCES + source[: len(block)], minlength=n_blocks * SOURCES)
    drawn = counts.reshape(n_blocks, SOURCES).cumsum(axis=0)
    return float(np.abs(drawn - np.outer(np.arange(1, n_blocks + 1) * RANGE, weights)).max())


def early_repeats(rows: NDArray[np.int64], source: NDArray[np.int64], lengths: NDArray[np.int64]) -> int:
    """Return the number of draws that repeat a row before all rows of its source were drawn equally often."""
    early = 0
    for number, length in enumerate(lengths.tolist()):
        own = rows[source == number]
        early += sum(len(part) - len(np.unique(part)) for part in np.split(own, range(length, len(own), length)))
    return early


def far_figures(rounds: int) -> Figures:
    """Return the figures of `MixtureSampler` in a plan of 10^12 draws, with the largest exact deviation.

    The deviation is computed in integers: from `counts` at the ends of a thousand blocks, and from the draws in ten
    ranges of 100 blocks.
    """
    mixture, counts = plan(FAR, scale=10**6)
    contestant = ours(mixture, counts, FAR // 2 // RANGE * RANGE)
    measured = [one_round(contestant, contestant.state()) for _ in range(rounds)]
    sampler = contestant.make()
    tokens = [share.tokens for share in mixture.sources.values()]

    def off(position: int, counts: list[int]) -> Fraction:
        pairs = zip(counts, tokens, strict=True)
        return max(abs(number - Fraction(position * share, mixture.budget_tokens)) for number, share in pairs)

    ends = np.random.default_rng(0).integers(1, sampler.total // RANGE - 100, size=1000) * RANGE
    worst = max(off(end, list(sampler.counts(end).values())) for end in [*ends.tolist(), sampler.total])
    for begin in ends[:10].tolist():
        drawn = np.array(list(sampler.counts(begin).values()))
        for block in range(begin, begin + 100 * RANGE, RANGE):
            drawn += np.bincount(sampler.draws(block, block + RANGE).source, minlength=SOURCES)
            worst = max(worst, off(block + RANGE, drawn.tolist()))
    medians = {key: round(statistics.median(figures[key] for figures in measured), 3) for key in measured[0]}
    return medians | {"worst_deviation": round(float(worst), 3), "state_bytes": state_bytes(contestant.state())}


def our_speeds(contestant: Contestant, rounds: int) -> Figures:
    """Return draws per second of processor time for larger ranges, random positions, one rank's ranges, and iteration.

    No position is drawn twice from the same sampler, which could keep it in memory.
    """
    total = contestant.make().total
    scattered = np.random.default_rng(0).integers(0, total, size=(16, 8192))

    def in_ranges(sampler: MixtureSampler, count: int) -> int:
        starts = range(0, len(sampler) - count + 1, count)
        for start in starts:
            sampler.draws(start, start + count)
        return count * len(starts)

    actions: dict[str, Callable[[MixtureSampler], int]] = {
        f"ranges of {count:,}": partial(in_ranges, count=count) for count in (RANGE, 8192, 1 << 17, total)
    }
    actions |= {
        "ranges of 1,024, one rank of 8": lambda sampler: in_ranges(sampler.shard(world_size=8, rank=3), RANGE),
        "ranges of 1,024, one rank of 64": lambda sampler: in_ranges(sampler.shard(world_size=64, rank=3), RANGE),
        "8,192 scattered positions": lambda sampler: sum(sampler[positions].index.size for positions in scattered),
        "one position at a time": lambda sampler: len([sampler[position] for position in range(4096)]),
        "iteration": lambda sampler: len(list(itertools.islice(sampler, 1 << 17))),
    }
    rates: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            sampler, start = contestant.make(), time.process_time()
            rates[name].append(action(sampler) / (time.process_time() - start))
    return {name: round(statistics.median(values)) for name, values in rates.items()}


def loader_figures(corpus: Path | None, repeat: int, rounds: int, folder: Path) -> list[Figures]:
    """Return the speed of reading through the sampler, relative to sequential reading, for each batch shape."""
    import torch
    from prepare import repeated

    from xdoge.corpus import prepare
    from xdoge.corpus.sample import write_sample

    torch.set_num_threads(1)
    path = corpus or write_sample(folder / "sample", scale=4)
    store = prepare(repeated(path, folder, repeat=repeat).path, folder / "store")
    results = []
    for batch, length in LOADER_SHAPES:
        tokens, actions = loader_actions(store, batch, length)
        seconds: dict[str, list[float]] = {name: [] for name in actions}
        for number in range(rounds + 1):
            for name, action in actions.items():
                start = spent()
                action()
                if number:  # the first round loads the files into the page cache
                    seconds[name].append(spent() - start)
        figures: Figures = {"batch": batch, "sequence_length": length, "tokens": tokens}
        pairs = [("ratio", "sequential", "mixed"), ("gather_ratio", "sequential", "gather")]
        pairs += [
            (f"{ratio}_ratio{with_}", f"plain loader{with_}", f"{name}{with_}")
            for with_ in WORKERS
            for ratio, name in (("data_loader", "loader"), ("whole", "whole"))
        ]
        for name, plain, mixed in pairs:
            figures |= spread(name, [p / m for p, m in zip(seconds[plain], seconds[mixed], strict=True)])
        figures |= {f"{name} tokens/s": round(tokens / statistics.median(taken)) for name, taken in seconds.items()}
        results.append(figures)
    return results


def spent() -> float:
    """Return the processor time of this process and its finished workers, in seconds."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def loader_actions(store: Any, batch: int, length: int) -> tuple[int, dict[str, Callable[[], None]]]:
    """Return the number of tokens that each action reads, and the actions by name."""
    import torch

    from xdoge.sampling import MixtureDataset
    from xdoge.sampling.dataset import _Items as Items

    available, lengths = store.tokens(), store.sequence_counts(length)
    whole = {source: n // batch * batch for source, n in lengths.items()}
    count = sum(whole.values())
    if not count:
        sys.exit(f"no source has {batch:,} sequences of {length:,} tokens; raise --repeat")
    total = sum(tokens**0.5 for tokens in available.values())
    weights = {source: tokens**0.5 / total for source, tokens in available.items()}
    mixture = Mixture.plan(weights, available_tokens=available, budget_tokens=count * length, max_epochs=None)
    make = partial(MixtureSampler, mixture, lengths=lengths, batch_size=batch, sequence_length=length)
    flats = [store.flat(source)[: n * length].reshape(-1, batch, length) for source, n in whole.items()]
    ranges = [slice(at, at + batch) for at in range(0, count, batch)]

    def consume(batches: Iterable[object]) -> None:
        collections.deque(batches, maxlen=0)

    class Sequential(MixtureDataset):
        """The same items and collation with sequential reading, split into single items."""

        def __getitems__(self, where: Any) -> list[dict[str, torch.Tensor]]:
            rows = torch.from_numpy(front_to_back[where[0] // batch].astype(np.int64))
            return [{"input_ids": row, "labels": row} for row in rows]

    class Whole(MixtureDataset):
        """The same with sequential reading, handed over as whole batches as in `MixtureDataset`."""

        def __getitems__(self, where: Any) -> Any:
            rows = torch.from_numpy(front_to_back[where[0] // batch].astype(np.int64))
            return Items({"input_ids": rows, "labels": rows})

    front_to_back = [rows for flat in flats for rows in flat]
    loader = partial(torch.utils.data.DataLoader, batch_size=batch)
    loaders = {
        f"{name}{with_}": partial(lambda kind, n: consume(loader(kind(store, make(), length), num_workers=n)), kind, n)
        for with_, n in WORKERS.items()
        for name, kind in (("plain loader", Sequential), ("loader", MixtureDataset), ("whole", Whole))
    }
    everything = np.concatenate([flat.reshape(-1, length) for flat in flats])
    scattered = np.random.default_rng(0).integers(0, count, size=(count // batch, batch))
    # Each item is a new int64 tensor (batch, length). Each round has a new sampler, which has no draws in memory.
    return count * length, {
        **loaders,
        "gather": lambda: consume(
            torch.from_numpy(np.take(everything, own, axis=0).astype(np.int64)) for own in scattered
        ),
        "sequential": lambda: consume(torch.from_numpy(rows.astype(np.int64)) for flat in flats for rows in flat),
        "mixed": lambda: consume(map(MixtureDataset(store, make(), length).__getitem__, ranges)),
        "drawing": lambda: consume(map(make().__getitem__, ranges)),
    }


def contestants(problem: Problem, own: Contestant, folder: Path, without: list[str]) -> dict[str, Contestant | str]:
    """Return each contestant, or the reason why it does not take part."""
    taking_part: dict[str, Contestant | str] = {"xdoge": own}
    for name, set_up in PEERS.items():
        if name.split(",")[0] in without:
            taking_part[name] = "left out"
            continue
        (folder / name).mkdir()
        try:
            taking_part[name] = set_up(problem, folder / name)
        except ImportError as error:
            taking_part[name] = f"not installed ({error})"
        except Exception as error:  # for example another release of the library; continue with the others
            taking_part[name] = f"failed to set up ({type(error).__name__}: {error})"
    return taking_part


def line(name: str, figures: Figures) -> str:
    """Return a row of the table."""
    low, high = figures["draws_per_second_range"]
    return (
        f"{name:<31}{figures['build_ms']:>9.2f} ms {figures['resume_ms']:>9.2f} ms {figures['state_bytes']:>7,} B "
        f"{figures['index_bytes']:>11,} B {figures['draws_per_second']:>13,.0f} {f'({low:,.0f}–{high:,.0f})':<29}"
        f"{figures['draws_per_cpu_second']:>13,.0f} {figures['worst_deviation']:>8.1f} {figures['early_repeats']:>8,} "
        f"{figures['most_passes']:>6.2f} {figures['draws']:>10,}"
        f"{'' if figures['resumes_the_same'] else '  RESUMES DIFFERENTLY'}"
    )


def measure(taking_part: dict[str, Contestant | str], problem: Problem, rounds: int) -> Figures:
    """Return the figures of all contestants, which take turns."""
    figures: Figures = {name: entry for name, entry in taking_part.items() if isinstance(entry, str)}
    for name, reason in figures.items():
        print(f"{name:<31}{reason}")
    racing = {name: entry for name, entry in taking_part.items() if isinstance(entry, Contestant)}
    states = {name: contestant.state() for name, contestant in racing.items()}
    measured: dict[str, list[Figures]] = {name: [] for name in racing}
    for _ in range(rounds):
        for name, contestant in racing.items():
            measured[name].append(one_round(contestant, states[name]))
    for name, contestant in racing.items():
        row: Figures = {}
        for key in measured[name][0]:
            row |= spread(key, [once[key] for once in measured[name]])
        row |= {"state_bytes": state_bytes(states[name]), "index_bytes": contestant.index_bytes}
        row |= exactness(contestant, problem, states[name]) | {"note": contestant.note}
        figures[name] = row
        print(line(name, row), flush=True)
    return figures


def main() -> None:
    """Measure everything, then print tables and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--draws", type=int, default=1_000_000)
    parser.add_argument("--without", action="append", default=[], metavar="NAME", help="a library to leave out")
    parser.add_argument("--corpus", type=Path, help="for the loader; else XDOGE_REAL_DATA's, or the built-in sample")
    parser.add_argument("--repeat", type=int, default=32, help="copies of each of the corpus's files")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")  # warnings of other libraries
    if arguments.corpus is None and "XDOGE_REAL_DATA" in os.environ:
        arguments.corpus = Path(os.environ["XDOGE_REAL_DATA"]) / "corpus" / "corpus.yaml"
    rounds, draws = arguments.rounds, arguments.draws

    mixture, counts = plan(draws)
    weights = np.array([share.tokens / mixture.budget_tokens for share in mixture.sources.values()])
    resume_at = min(RESUME_AT, draws // 2 // RANGE * RANGE)
    problem = Problem(np.array(list(counts.values())), weights, draws, resume_at)
    own = ours(mixture, counts, resume_at)
    print(f"{SOURCES} sources of {SMALLEST:,} to {LARGEST:,} rows, {draws:,} draws, {rounds} rounds")
    print(
        f"{'':<31}{'build':>12} {'resume':>12} {'state':>9} {'index':>13} {'draws/s':>13} {'(least–greatest)':<29}"
        f"{'/CPU s':>13} {'off by':>8} {'early':>8} {'passes':>6} {'draws':>10}"
    )
    with tempfile.TemporaryDirectory() as name:
        figures = measure(contestants(problem, own, Path(name), arguments.without), problem, rounds)
    far, speeds = far_figures(rounds), our_speeds(own, rounds)
    print("xdoge in a plan of 10^12 draws: " + ", ".join(f"{key} {value:,}" for key, value in far.items()))
    print("xdoge, draws per second of processor time: " + ", ".join(f"{key} {v:,}" for key, v in speeds.items()))
    with tempfile.TemporaryDirectory() as name:
        loader = loader_figures(arguments.corpus, arguments.repeat, rounds, Path(name))
    for row in loader:
        print("loader: " + ", ".join(f"{key} {value}" for key, value in row.items()))
    ratios = {"loader_ratio": loader[0]["data_loader_ratio"], "bare_ratio": loader[0]["ratio"]}
    result = figures.pop("xdoge") | ratios | {"far": far, "speeds": speeds}
    print(json.dumps(result | {"loader": loader, "peers": figures}))


if __name__ == "__main__":
    main()
