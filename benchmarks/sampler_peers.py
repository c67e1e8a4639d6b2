"""Other libraries that `sampler.py` measures, each used as its documentation recommends for mixing sources.

All get the same sources and weights. A row is a single number, its index among all rows, so that reading costs as
little as possible. Sequences of tokens would hide the cost of mixing. If a library gives no order without reading rows,
they are read, and its note says so. A library that cannot be imported raises ImportError, which is reported.
"""

from __future__ import annotations

import itertools
import json
import pickle
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

RANGE = 1024
"""Number of draws per call, for libraries that can return several."""


@dataclass(frozen=True)
class Problem:
    """k sources, their weights, the number of draws, and the position at which a run is resumed."""

    lengths: NDArray[np.int64]  # (k,) rows of each source
    weights: NDArray[np.float64]  # (k,) sum to 1
    total: int  # draws
    resume_at: int

    @property
    def bounds(self) -> list[int]:
        """Offsets among all rows where each source begins, and where the last one ends."""
        return [0, *np.cumsum(self.lengths).tolist()]


@dataclass(frozen=True)
class Contestant:
    """The operations of a library.

    Attributes:
        make: returns the object that draws.
        begin: (object, state or None) -> a cursor that has made the first draw, at the state's position or at 0. If the
            library cannot make a single draw, it has made the first range.
        draw: (cursor, position, count) -> draws in the library's own format. A `Cursor` ignores the position.
        rows: those draws -> (n,) indices among all rows.
        state: returns the content of a checkpoint at `resume_at`.
        index_bytes: size of the order that is stored in memory or on disk, for `total` draws.
        limit: number of draws after which the library stops by itself.
        resume_at: position at which it is resumed, if it differs from that of the problem.
        stream: returns the rows of all draws, if drawing them one by one would take minutes.
        close: ends background work.
        note: remark for the results.
    """

    make: Callable[[], Any]
    begin: Callable[[Any, Any], Any]
    draw: Callable[[Any, int, int], Any]
    rows: Callable[[Any], NDArray[np.int64]]
    state: Callable[[], Any]
    index_bytes: int = 0
    limit: int | None = None
    resume_at: int | None = None
    stream: Callable[[], NDArray[np.int64]] | None = None
    close: Callable[[Any], object] = id
    note: str = ""


class Cursor:
    """An object with its iterator, and the first item of it: a row, or a batch of `size` rows."""

    def __init__(self, source: Any, *, size: int = 1) -> None:
        self.source = source
        self.size = size
        self.iterator = iter(source)
        self.first = [next(self.iterator)]

    def take(self, position: int, count: int) -> list[Any]:
        """Return the next `count` draws in batches of `size`. `position` is ignored."""
        return list(itertools.islice(self.iterator, count // self.size))


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    """Return the duration of an action in seconds, and its result."""
    start = time.perf_counter()
    result = action()
    return time.perf_counter() - start, result


def spread(name: str, values: list[float]) -> dict[str, Any]:
    """Return the median, minimum and maximum of values."""
    median, *ends = (round(v, 3 if v < 1000 else None) for v in (statistics.median(values), min(values), max(values)))
    return {name: median, f"{name}_range": ends}


def state_bytes(state: Any) -> int:
    """Return the size of a state in bytes, as JSON if possible, else pickled."""
    try:
        return len(json.dumps(state))
    except TypeError:
        return len(pickle.dumps(state))


def hugging_face(problem: Problem, folder: Path, *, strategy: str) -> Contestant:
    """Return map-style `interleave_datasets` of shuffled data sets, in the Arrow format, which is the fastest."""
    import datasets

    bounds = problem.bounds
    parts = [datasets.Dataset.from_dict({"row": np.arange(a, b)}) for a, b in itertools.pairwise(bounds)]

    def make() -> Any:
        shuffled = [part.shuffle(seed=number) for number, part in enumerate(parts)]
        mixed = datasets.interleave_datasets(
            shuffled, probabilities=problem.weights.tolist(), seed=0, stopping_strategy=strategy
        )
        return mixed.with_format("arrow")

    def begin(mixed: Any, state: Any) -> Any:
        mixed[state["position"] if state else 0]
        return mixed

    made = make()
    return Contestant(
        make=make,
        begin=begin,
        draw=lambda mixed, position, count: mixed[position : position + count],
        rows=lambda table: table["row"].to_numpy(),
        state=lambda: {"position": min(problem.resume_at, len(made) // 2)},
        index_bytes=made._indices.nbytes,
        limit=len(made),
        resume_at=min(problem.resume_at, len(made) // 2),
        note="the map-style set keeps no state: the position is the loader's; every epoch has the same order",
    )


def grain(problem: Problem, folder: Path) -> Contestant:
    """Return `MapDataset.mix` of shuffled and repeated sources, by single positions, its fastest way of reading."""
    import grain

    def make() -> Any:
        parts = [
            grain.MapDataset.range(a, b).shuffle(seed=number).repeat()
            for number, (a, b) in enumerate(itertools.pairwise(problem.bounds))
        ]
        return grain.MapDataset.mix(parts, problem.weights.tolist())

    def begin(mixed: Any, state: Any) -> Any:
        mixed[state["next_index"] if state else 0]
        return mixed

    return Contestant(
        make=make,
        begin=begin,
        draw=lambda mixed, position, count: [mixed[i] for i in range(position, position + count)],
        rows=np.array,
        state=lambda: {"next_index": problem.resume_at},  # as its iterator's get_state()
        note="computed, not stored, as ours; weights become integers of which the least is 100",
    )


def mosaic(problem: Problem, folder: Path, *, batching: str) -> Contestant:
    """Return `StreamingDataset` of shuffled streams with proportions, one canonical node, shards on the local disk."""
    import streaming
    from streaming.base.batching import generate_work
    from streaming.base.world import World

    for number, (a, b) in enumerate(itertools.pairwise(problem.bounds)):
        with streaming.MDSWriter(out=str(folder / str(number)), columns={"row": "int64"}) as out:
            for row in np.arange(a, b):
                out.write({"row": row})

    def make() -> Any:
        streams = [
            streaming.Stream(local=str(folder / str(number)), proportion=weight)
            for number, weight in enumerate(problem.weights.tolist())
        ]
        return streaming.StreamingDataset(
            streams=streams,
            epoch_size=problem.total,
            shuffle=True,
            batch_size=RANGE,
            num_canonical_nodes=1,
            batching_method=batching,
        )

    def begin(mixed: Any, state: Any) -> Cursor:
        if state:
            mixed.load_state_dict(state)
        return Cursor(mixed)  # the whole order is computed before the first row

    def state() -> Any:
        cursor = Cursor(make())
        close(cursor)
        return cursor.source.state_dict(problem.resume_at, from_beginning=True)  # as its StreamingDataLoader does

    def stream() -> NDArray[np.int64]:
        cursor = Cursor(make())
        close(cursor)
        order = generate_work(batching, cursor.source, World.detect(), 0, 0).ravel()
        return order[order >= 0]

    def close(cursor: Cursor) -> None:
        cursor.iterator.close()
        cursor.source._iterator.exit()  # ends threads that read ahead

    return Contestant(
        make=make,
        begin=begin,
        draw=Cursor.take,
        rows=lambda taken: np.array([row["row"] for row in taken]),
        state=state,
        index_bytes=8 * problem.total,
        stream=stream,
        close=close,
        note="draws include reading each row from its shard; the order of an epoch is made anew at every resume",
    )


def torchdata(problem: Problem, folder: Path) -> Contestant:
    """Return a cycling `MultiNodeWeightedSampler` with one of torch's samplers per source."""
    from torch.utils.data import DistributedSampler
    from torchdata.nodes import Loader, Mapper, MultiNodeWeightedSampler, SamplerWrapper, StopCriteria

    names = [str(number) for number in range(len(problem.lengths))]

    def make() -> Any:
        nodes = {}
        for name, (a, b) in zip(names, itertools.pairwise(problem.bounds), strict=True):
            # The only sampler of torch whose order depends on the epoch alone, so that later epochs can be resumed.
            sampler = DistributedSampler(range(b - a), num_replicas=1, rank=0, seed=int(name))  # type: ignore[arg-type]
            nodes[name] = Mapper(SamplerWrapper(sampler), a.__add__)
        weights = dict(zip(names, problem.weights.tolist(), strict=True))
        return Loader(
            MultiNodeWeightedSampler(
                nodes, weights, stop_criteria=StopCriteria.CYCLE_FOREVER, rank=0, world_size=1, seed=0
            )
        )

    def begin(loader: Any, state: Any) -> Cursor:
        if state:
            loader.load_state_dict(state)
        return Cursor(loader)

    def state() -> Any:
        cursor = Cursor(make())
        cursor.take(0, problem.resume_at - 1)
        return cursor.source.state_dict()

    return Contestant(
        make=make,
        begin=begin,
        draw=Cursor.take,
        rows=np.array,
        state=state,
        index_bytes=8 * sum(problem.lengths.tolist()),
        note="the sources' orders are Python lists, one epoch at a time; resuming replays each",
    )


def litdata(problem: Problem, folder: Path) -> Contestant:
    """Return `CombinedStreamingDataset` with weights on shuffled local data. It stops when the first source ends."""
    import litdata
    from litdata.streaming.writer import BinaryWriter

    for number, (a, b) in enumerate(itertools.pairwise(problem.bounds)):
        writer = BinaryWriter(str(folder / str(number)), chunk_bytes="64MB")
        for place, row in enumerate(range(a, b)):
            writer[place] = row
        writer.done()
        writer.merge()

    def make() -> Any:
        parts = [
            litdata.StreamingDataset(str(folder / str(number)), shuffle=True, seed=number)
            for number in range(len(problem.lengths))
        ]
        mixed = litdata.CombinedStreamingDataset(
            parts, weights=problem.weights.tolist(), iterate_over_all=False, seed=0
        )
        return litdata.StreamingDataLoader(mixed, batch_size=RANGE, num_workers=0)

    def begin(loader: Any, state: Any) -> Cursor:
        if state:
            loader.load_state_dict(state)
        return Cursor(loader, size=RANGE)

    limit = sum(len(batch) for batch in make()) // RANGE * RANGE
    half = limit // 2 // RANGE * RANGE

    def state() -> Any:
        cursor = Cursor(make(), size=RANGE)
        cursor.take(0, half - RANGE)
        return cursor.source.state_dict()

    return Contestant(
        make=make,
        begin=begin,
        draw=Cursor.take,
        rows=lambda batches: np.concatenate([batch.numpy() for batch in batches]),
        state=state,
        index_bytes=8 * sum(problem.lengths.tolist()),
        limit=limit,
        resume_at=half,
        note="batches of its loader, each row read from its chunk; ends with the first source that does",
    )


def megatron(problem: Problem, folder: Path) -> Contestant:
    """Return the compiled `build_blending_indices`, with arrays allocated, cached and mapped as in `BlendedDataset`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about missing optional kernels
        from megatron.core.datasets import helpers_cpp

    def make() -> Any:
        which, row = np.zeros(problem.total, dtype=np.int16), np.zeros(problem.total, dtype=np.int64)
        weights = problem.weights.tolist()
        helpers_cpp.build_blending_indices(which, row, weights, len(weights), problem.total, False)
        return which, row

    def begin(arrays: Any, state: Any) -> Any:
        if state:  # a new process maps the stored arrays
            arrays = tuple(np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("which", "row"))
        position = state["consumed_samples"] if state else 0
        return arrays, (arrays[0][position], arrays[1][position])

    starts = np.array(problem.bounds[:-1])

    def draw(cursor: Any, position: int, count: int) -> Any:
        which, row = cursor[0]
        part = slice(position, position + count)
        return which[part].astype(np.int64), row[part].astype(np.int64)  # copies, as from the other libraries

    for name, array in zip(("which", "row"), make(), strict=True):
        np.save(folder / f"{name}.npy", array)
    return Contestant(
        make=make,
        begin=begin,
        draw=draw,
        rows=lambda drawn: starts[drawn[0]] + drawn[1] % problem.lengths[drawn[0]],
        state=lambda: {"consumed_samples": problem.resume_at},
        index_bytes=10 * problem.total,
        limit=problem.total,
        note="slices of the stored blend alone; the order within each source is a further index, not counted here",
    )


def numpy_choice(problem: Problem, folder: Path) -> Contestant:
    """Return `Generator.choice` for sources and `integers` for rows with replacement, one range per call."""
    starts = np.array(problem.bounds[:-1])

    class Choices:
        def __init__(self) -> None:
            self.generator = np.random.default_rng(0)

        def __iter__(self) -> Iterator[Any]:
            while True:
                which = self.generator.choice(len(problem.weights), size=RANGE, p=problem.weights)
                yield which, self.generator.integers(0, problem.lengths[which])

    def begin(choices: Choices, state: Any) -> Cursor:
        if state:
            choices.generator.bit_generator.state = state
        return Cursor(choices, size=RANGE)

    def state() -> Any:
        cursor = begin(Choices(), None)
        cursor.take(0, problem.resume_at - RANGE)
        return cursor.source.generator.bit_generator.state

    return Contestant(
        make=Choices,
        begin=begin,
        draw=Cursor.take,
        rows=lambda ranges: np.concatenate([starts[which] + row for which, row in ranges]),
        state=state,
        note="with replacement, so rows repeat before others are seen; other range sizes give another order",
    )


PEERS: dict[str, Callable[[Problem, Path], Contestant]] = {
    "datasets, first_exhausted": partial(hugging_face, strategy="first_exhausted"),
    "datasets, all_exhausted": partial(hugging_face, strategy="all_exhausted"),
    "grain": grain,
    "mosaicml-streaming, random": partial(mosaic, batching="random"),
    "mosaicml-streaming, stratified": partial(mosaic, batching="stratified"),
    "torchdata": torchdata,
    "litdata": litdata,
    "megatron-core": megatron,
    "numpy choice": numpy_choice,
}
