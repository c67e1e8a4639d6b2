"""The sampler computes which sequence of which source comes at any position of a training run.

Position t ↦ (source, epoch, index) is a pure function of the mixture, the sources' lengths, the seed and the block
size. The counts of all sources at the end of each block have a closed form (`quotas.py`). A keyed permutation gives the
order inside a block, and another one the order of each epoch of a source (`permutation.py`). A run of 10^13 positions
can therefore resume anywhere in constant time, on any number of ranks, from a state of four values.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Self, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xdoge.errors import XDogeError
from xdoge.mixtures.mixture import Mixture
from xdoge.names import check_seed
from xdoge.sampling.permutation import Permutations, derive_key, mix
from xdoge.sampling.quotas import CHUNK, MOST, Counts, Quotas, Stage
from xdoge.sampling.sequences import (
    check_lengths,
    check_rank,
    find_sequence_length,
    sequence_quotas,
    warn_of_other_lengths,
    warn_of_rare,
    whole_number,
)

AT_ONCE = 1 << 20
"""Most counts (sources × blocks) that are held in memory at once, if the positions are far apart."""

STATE_VERSION = 1


class Draw(NamedTuple):
    """One sequence of a source.

    Attributes:
        source: name, "language/source".
        epoch: pass over the source, from 0.
        index: number of the sequence within the source, from 0.
    """

    source: str
    epoch: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which is of no use here


class Draws(NamedTuple):
    """Several draws as arrays.

    Attributes:
        sources: names of all k sources.
        source: (n,) index into `sources`.
        epoch: (n,) pass over the source, from 0.
        index: (n,) number of the sequence within the source, from 0.
    """

    sources: tuple[str, ...]
    source: NDArray[np.int64]
    epoch: NDArray[np.int64]
    index: NDArray[np.int64]  # type: ignore[assignment]


class MixtureSampler:
    """The order in which the sequences of a mixture are read, for any data loader and any number of ranks.

    A block is a global batch. At the end of each block, the count of every source is within 2 of its target. At the end
    of the plan it is exact. No sequence repeats before all sequences of its source were read. All counts are
    integers.

    Iteration starts at `position` and advances it. A second `for` loop continues instead of starting again, because a
    budget is read once. If a loader reads ahead of training, set `position` to the sequences that training has
    consumed, or pass that number to `state_dict`.

    Args:
        mixture: mixture to read, or a list of stages. A stage is a pair (mixture, tokens). Stages are read one after
            the other, and each source continues where the stage before left it. Every stage starts a new block.
        lengths: sequences of each source, for example `store.sequence_counts(2048)`.
        batch_size: sequences of a global batch, over all ranks and gradient accumulation steps.
        seed: seed of all orders, by default that of the (first) mixture.
        sequence_length: T, tokens per sequence. By default that of the mixture, or the one that follows from `lengths`
            and the mixture's available tokens.
        read_before: sequences of each source that an earlier phase read with the same seed, for example the `quotas` of
            its sampler. Each source continues after them. By default they are computed from the tokens that the mixture
            has as read before, which can be off by one sequence.
        world_size: number of ranks. Rank r has the positions r, r + world_size, ...
        rank: number of this rank, from 0.

    Attributes:
        sources: names, in the mixture's order.
        quotas: sequences of each source in the whole plan.
        total: sequences of the whole plan.
        position: sequences that all ranks together have read, where iteration continues. It can be set.

    Raises:
        XDogeError: names or lengths do not match the mixture, or a source that is read has no whole sequence. Or the
            caps leave part of the budget unspent, counted in whole sequences.

    Warns:
        UserWarning: a language is drawn less than once in a batch on average, or a source never. Or the lengths are not
            the mixture's available tokens divided into sequences of `sequence_length`.
    """

    def __init__(  # more than 8 arguments: the order depends on each of these
        self,
        mixture: Mixture | Sequence[tuple[Mixture, int]],
        lengths: Mapping[str, int],
        *,
        batch_size: int,
        seed: int | None = None,
        sequence_length: int | None = None,
        read_before: Mapping[str, int] | None = None,
        world_size: int = 1,
        rank: int = 0,
    ) -> None:
        if isinstance(mixture, str) or not isinstance(lengths, Mapping):
            raise XDogeError(
                "MixtureSampler takes a mixture, such as Mixture.load(path), and lengths, such as "
                "store.sequence_counts(2048)."
            )
        parts = [(mixture, mixture.budget_tokens)] if isinstance(mixture, Mixture) else list(mixture)
        if not parts:
            raise XDogeError("there are no stages; give at least one (mixture, tokens).")
        self.world_size = whole_number("world_size", world_size, least=1)
        self.rank = check_rank(rank, self.world_size)
        self.sources = tuple(dict.fromkeys(source for part, _ in parts for source in part.sources))
        check_lengths(self.sources, lengths)
        self.lengths = {source: int(lengths[source]) for source in self.sources}
        if sequence_length is None:
            sequence_length = find_sequence_length(parts, self.lengths)
        self.sequence_length = whole_number("sequence_length", sequence_length, least=1)
        warn_of_other_lengths(parts, self.lengths, self.sequence_length)
        self.batch_size = whole_number("batch_size", batch_size, least=1)
        self.seed = check_seed("seed", parts[0][0].seed if seed is None else seed)
        self.position = 0
        self._sizes = np.array(list(self.lengths.values()), dtype=np.int64)  # (k,)
        self._permutations = Permutations(list(self.lengths.values()))
        keys = [derive_key(self.seed, source) for source in self.sources]
        self._source_keys = np.array(keys, dtype=np.uint64)  # (k,)
        self._block_key = np.array([derive_key(self.seed, "blocks")], dtype=np.uint64)
        if read_before is None:
            first = parts[0][0].sources
            read_before = {s: share.read_before // self.sequence_length for s, share in first.items()}
        if unknown := sorted(set(read_before) - set(self.sources)):
            raise XDogeError(f"read_before names {unknown[0]}, which is not in the mixture.")
        carried = [whole_number(f"read_before[{s!r}]", read_before.get(s, 0), least=0) for s in self.sources]
        self._stages: tuple[Stage, ...] = ()
        self._add_stages(parts, np.array(carried, dtype=np.int64))

    def _add_stages(self, parts: Sequence[tuple[Mixture, int]], carried: Counts) -> None:
        for mixture, tokens in parts:
            start = self._stages[-1].stop if self._stages else 0
            counts = sequence_quotas(mixture, self.lengths, tokens, self.sequence_length, carried)
            warn_of_rare(mixture, self.sources, counts, self.batch_size)
            stop = start + sum(counts)
            if stop >= MOST:
                raise XDogeError(f"the plan has {stop:,} sequences; the sampler counts up to 2^56.")
            stage = Stage(start, stop, Quotas(counts), carried, self._sizes, self.batch_size, self._block_key)
            self._stages = (*self._stages, stage)
            carried = carried + np.array(counts)
        self._ahead = self._nothing = (0, Draws(self.sources, *np.empty((3, 0), dtype=np.int64)))
        self._next = -1
        self.fingerprint = self._fingerprint()

    @property
    def position(self) -> int:
        """Sequences that all ranks together have read, where iteration continues. It can be set."""
        return self._position

    @position.setter
    def position(self, value: int) -> None:
        self._position = whole_number("position", value, least=0)

    @property
    def total(self) -> int:
        """Sequences of the whole plan."""
        return self._stages[-1].stop

    @property
    def quotas(self) -> dict[str, int]:
        """Sequences of each source in the whole plan."""
        return self.counts(self.total)

    def counts(self, position: int) -> dict[str, int]:
        """Return the sequences of each source in the global positions [0, position)."""
        self._refuse_beyond(whole_number("position", position, least=0))
        read, begin = self._read_before(position)
        in_block = self._at(np.arange(begin, position, dtype=np.int64)).source  # positions in an unfinished block
        read = read - self._stages[0].carried + np.bincount(in_block, minlength=len(self.sources))
        return dict(zip(self.sources, read.tolist(), strict=True))

    def _read_before(self, position: int) -> tuple[Counts, int]:
        stage = next((stage for stage in self._stages if position < stage.stop), self._stages[-1])
        return stage.read_before(position)

    def __len__(self) -> int:
        """Return the number of positions of this rank, which is the same for all ranks.

        If `total` is not a multiple of `world_size`, no rank reads the remaining sequences at the end of the plan.
        """
        return self.total // self.world_size

    @overload
    def __getitem__(self, positions: int) -> Draw: ...
    @overload
    def __getitem__(self, positions: slice | Sequence[int] | NDArray[np.integer]) -> Draws: ...
    def __getitem__(self, positions: int | slice | ArrayLike) -> Draw | Draws:
        """Return the draw at one of this rank's positions, or the draws at a slice or an array of positions.

        Raises:
            IndexError: a position is negative, beyond the plan, or not a whole number.
        """
        if type(positions) is int and positions >= 0:
            self._refuse_beyond(self.rank + self.world_size * positions + 1)
            _, (source,), (epoch,), (index,) = self._range(positions, positions + 1)
            return Draw(self.sources[source], int(epoch), int(index))
        if isinstance(positions, slice):
            return self[np.arange(*positions.indices(len(self)), dtype=np.int64)]
        wanted = np.atleast_1d(np.asarray(positions))
        if wanted.ndim > 1 or (wanted.size and wanted.dtype.kind not in "iu"):
            raise IndexError(f"positions are whole numbers, a slice or a flat array of them, not {positions!r}")
        wanted = wanted.astype(np.int64)
        if not wanted.size:
            return self._nothing[1]
        low, high = int(wanted.min()), int(wanted.max())
        if low < 0:
            raise IndexError(f"position {low:,} is negative; positions count from 0")
        self._refuse_beyond(self.rank + self.world_size * high + 1)
        if high - low == wanted.size - 1 and (wanted[0] == low) and np.all(np.diff(wanted) == 1):
            draws = self._range(low, high + 1)
        else:
            draws = self._at(wanted * self.world_size + self.rank)
        if np.ndim(positions) == 0:
            return Draw(self.sources[draws.source[0]], int(draws.epoch[0]), int(draws.index[0]))
        return draws

    def draws(self, start: int, stop: int) -> Draws:
        """Return the draws at this rank's positions [start, stop).

        Raises:
            IndexError: a position is beyond the plan.
            XDogeError: `start` or `stop` is not a whole number, or they are in the wrong order.
        """
        start = whole_number("start", start, least=0)
        stop = whole_number("stop", stop, least=start)
        self._refuse_beyond(self.rank + self.world_size * (stop - 1) + 1)
        return self._range(start, stop)

    def __iter__(self) -> Iterator[Draw]:
        """Yield this rank's draws from `position` on. Each draw advances `position` by `world_size`."""
        world = self.world_size
        while True:
            begin = self.position
            count = min(self._ahead_by, (self.total - begin) // world)
            if count <= 0:
                return
            # A round is `world` positions, one per rank. These are this rank's positions in the next rounds.
            own = begin + (self.rank - begin) % world + world * np.arange(count)
            _, source, epoch, index = self._at(own)
            stages = self._stages
            columns = zip(source.tolist(), epoch.tolist(), index.tolist(), strict=True)
            for number, (s, e, i) in enumerate(columns, start=1):
                self.position = expected = begin + number * world  # a state taken in the loop body counts it
                yield Draw(self.sources[s], e, i)
                if self.position != expected or self._stages is not stages:  # the caller changed it
                    break

    def shard(self, *, world_size: int, rank: int) -> Self:
        """Return the sampler of one rank: every `world_size`-th position of this one, starting at `rank`.

        It has its own `position`. A rank's sampler can be divided again.
        """
        world_size = whole_number("world_size", world_size, least=1)
        rank = check_rank(rank, world_size)
        view = copy.copy(self)
        view.world_size, view.rank = self.world_size * world_size, self.rank + self.world_size * rank
        view._ahead = self._nothing
        return view

    def rebase(self, mixture: Mixture, *, at: int | None = None, tokens: int | None = None) -> Self:
        """Return a sampler that continues with another mixture from position `at`.

        Positions before `at` do not change. From there on, sources are drawn in the proportions of `mixture`. Each
        source continues in its own order, so no sequence is repeated or skipped. Epoch caps count all passes,
        including those before `at`. This sampler is not modified. To resume such a run, construct the first sampler,
        rebase it at the same position, and load the state.

        Args:
            mixture: new mixture of the same sources, or of some of them.
            at: global position of the change, at the end of a block. Default: `position`.
            tokens: tokens to read with the new mixture. Default: the rest of the plan.

        Raises:
            XDogeError: `at` is inside a block or beyond the plan, no tokens are left, or the mixture names other
                sources.
        """
        at = self.position if at is None else whole_number("at", at, least=0)
        if at > self.total:
            raise XDogeError(f"at is {at:,}; the plan has the positions 0 to {self.total:,}.")
        carried, begin = self._read_before(at)
        if begin != at:
            raise XDogeError(f"at is {at:,}, inside a block that begins at {begin:,}; rebase at the end of a block.")
        if unknown := sorted(set(mixture.sources) - set(self.sources)):
            raise XDogeError(
                f"mixture {mixture.name!r} names {', '.join(unknown)}, for which this sampler has no "
                "lengths; make a new sampler of stages, with the lengths of all sources."
            )
        tokens = (self.total - at) * self.sequence_length if tokens is None else tokens
        if tokens < self.sequence_length:
            raise XDogeError(f"the plan ends at {at:,}; give the number of tokens to continue for.")
        other = copy.copy(self)
        other._stages = tuple(replace(stage, stop=min(stage.stop, at)) for stage in self._stages if stage.start < at)
        other._add_stages([(mixture, tokens)], carried)
        other.position = at
        return other

    def state_dict(self, position: int | None = None) -> dict[str, Any]:
        """Return a state for `load_state_dict`: plain numbers and a fingerprint of the plan, under 300 bytes as JSON.

        Args:
            position: sequences that training has consumed, over all ranks. By default `self.position`, which is the
                same number unless a loader reads ahead.
        """
        return {
            "version": STATE_VERSION,
            "position": self.position if position is None else whole_number("position", position, least=0),
            "batch_size": self.batch_size,
            "plan": self.fingerprint,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at the position of `state`.

        The order stays the same even if the number of ranks, workers or sequences per loader batch has changed. The
        state's `batch_size` replaces this sampler's, so that the blocks stay the same too.

        Raises:
            XDogeError: `state` is not a sampler's state, or belongs to another plan (mixture, lengths, sequence length,
                seed or stages).
        """
        try:
            version, position, block, plan = (state[key] for key in ("version", "position", "batch_size", "plan"))
        except (KeyError, TypeError) as error:
            raise XDogeError(
                f"this is not the state of a sampler, which has version, position, batch_size, plan: {state!r}."
            ) from error
        if version != STATE_VERSION:
            raise XDogeError(f"the sampler's state has version {version}; this xdoge reads {STATE_VERSION}.")
        if plan != self.fingerprint:
            raise XDogeError(
                f"the state belongs to another plan ({plan}, this one is {self.fingerprint}): mixture, "
                "lengths, sequence length, seed and stages must be the same. After a rebase, make the "
                "first sampler, rebase it at the same position, then load the state."
            )
        position, block = whole_number("position", position, least=0), whole_number("batch_size", block, least=1)
        if position > self.total:
            raise XDogeError(f"the state's position {position:,} lies beyond the plan's {self.total:,} sequences.")
        self.position, self.batch_size, self._ahead = position, block, self._nothing
        self._stages = tuple(replace(stage, block=block) for stage in self._stages)

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes to pickle, without the draws that were computed in advance."""
        return self.__dict__ | {"_ahead": self._nothing}

    def __repr__(self) -> str:
        """Return the size of the plan, the settings, the position and the rank."""
        ranks = f", rank={self.rank} of {self.world_size}" if self.world_size > 1 else ""
        return (
            f"MixtureSampler({len(self.sources)} sources, {self.total:,} sequences of {self.sequence_length:,} tokens, "
            f"batch_size={self.batch_size:,}, seed={self.seed}, position={self.position:,}{ranks})"
        )

    def _fingerprint(self) -> str:
        stages = [[stage.start, stage.stop, stage.quotas.counts, stage.carried.tolist()] for stage in self._stages]
        plan = [self.sources, list(self.lengths.values()), self.seed, stages]
        return hashlib.sha256(json.dumps(plan).encode()).hexdigest()[:32]

    def _refuse_beyond(self, stop: int) -> None:
        """Raise IndexError if the global positions [0, stop) are more than the plan has."""
        if stop > self.total:
            raise IndexError(f"position {stop - 1:,} lies beyond the plan's {self.total:,} sequences")

    @property
    def _ahead_by(self) -> int:
        """Number of this rank's positions to compute at once: at most a chunk, fewer if blocks are small."""
        per_block = max(1, self.batch_size // self.world_size)
        return min(CHUNK, max(CHUNK // self.world_size, 2 * CHUNK // len(self.sources) * per_block, 1))

    def _range(self, start: int, stop: int) -> Draws:
        """Return the draws at this rank's positions [start, stop).

        Every computation has a fixed cost of some hundred microseconds. If calls ask for consecutive ranges, a larger
        range is computed in advance, and the next calls are served from it.
        """
        first, held = self._ahead
        if not (first <= start and stop <= first + held.source.size):
            ahead = max(stop, start + self._ahead_by) if start == self._next else stop
            ahead = max(stop, min(ahead, len(self)))
            own = np.arange(start, ahead, dtype=np.int64) * self.world_size + self.rank
            held = self._at(own)
            first, self._ahead = start, (start, held)
        self._next = stop
        return Draws(self.sources, *(column[start - first : stop - first].copy() for column in held[1:]))

    def _at(self, positions: NDArray[np.int64]) -> Draws:
        """Return the draws at global positions, which may be in any order. They are computed in chunks."""
        size = min(CHUNK, max(64, AT_ONCE // len(self.sources)))
        if positions.size > size:
            parts = [self._at(positions[i : i + size]) for i in range(0, positions.size, size)]
            columns = (np.concatenate(column) for column in list(zip(*parts, strict=True))[1:])
            return Draws(self.sources, *columns)
        if len(self._stages) == 1:
            source, read = self._stages[0].locate(positions)
        else:
            which = np.searchsorted([stage.start for stage in self._stages], positions, side="right") - 1
            source, read = np.empty_like(positions), np.empty_like(positions)
            for number in np.unique(which).tolist():
                here = which == number
                source[here], read[here] = self._stages[number].locate(positions[here])
        sizes = self._sizes[source]
        epoch = read // sizes
        keys = mix(self._source_keys[source], epoch)
        index = self._permutations((read - epoch * sizes).view(np.uint64), source, keys)
        return Draws(self.sources, source, epoch, index)
