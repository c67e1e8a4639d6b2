"""Compute how many whole sequences a sampler reads from each source, within the mixture's caps."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from xdoge.errors import XDogeError, names_that_differ
from xdoge.mixtures.allocation import allocate, epoch_cap
from xdoge.mixtures.mixture import Mixture
from xdoge.names import language_of
from xdoge.sampling.quotas import Counts


def whole_number(name: str, value: object, *, least: int | None = None) -> int:
    """Return a Python or NumPy integer as a Python int.

    Args:
        name: what the error message calls the value.
        value: the integer.
        least: smallest allowed value.

    Raises:
        XDogeError: `value` is not an integer, or is less than `least`.
    """
    if isinstance(value, int | np.integer) and not isinstance(value, bool) and (least is None or value >= least):
        return int(value)
    raise XDogeError(
        f"{name} is {value!r}; it must be a whole number" + (f" >= {least}." if least is not None else ".")
    )


def check_rank(rank: object, world_size: int) -> int:
    """Return `rank` as an int. Raise XDogeError if it is not from 0 to world_size - 1."""
    number = whole_number("rank", rank)
    if not 0 <= number < world_size:
        raise XDogeError(f"rank is {number}; with world_size {world_size} it must be 0 to {world_size - 1}.")
    return number


def check_lengths(sources: Sequence[str], lengths: Mapping[str, int]) -> None:
    """Raise XDogeError if `lengths` has other names than `sources`, or a value that is not a whole number >= 0."""
    if differing := names_that_differ("the mixture", sources, "lengths", lengths):
        raise XDogeError(f"mixture and lengths name different sources; {differing}.")
    for source, length in lengths.items():
        whole_number(f"lengths[{source!r}]", length, least=0)


def find_sequence_length(parts: Sequence[tuple[Mixture, int]], lengths: Mapping[str, int]) -> int:
    """Return the sequence length T with which every source's available tokens give its number of sequences.

    If a mixture was planned with a sequence length, that one is returned.

    Raises:
        XDogeError: no length, or more than one, fits; or the stages were planned with different lengths.
    """
    if planned := {mixture.sequence_length for mixture, _ in parts if mixture.sequence_length is not None}:
        if len(planned) > 1:
            raise XDogeError(f"stages were planned in sequences of {sorted(planned)} tokens; give sequence_length.")
        return planned.pop()
    least, most, bounded = 1, 1, False
    for mixture, _ in parts:
        for source, share in mixture.sources.items():
            if not share.available_tokens:
                continue
            least = max(least, share.available_tokens // (lengths[source] + 1) + 1)
            if lengths[source]:
                limit = share.available_tokens // lengths[source]
                most, bounded = (min(most, limit) if bounded else limit), True
    if least == most and bounded:
        return least
    how = (
        f"any of {least:,} to {most:,} fits the lengths"
        if bounded and least < most
        else "the lengths are not the mixture's available tokens cut into sequences of one length"
    )
    raise XDogeError(f"sequence_length cannot be inferred: {how}. Give sequence_length, the tokens per sequence.")


def sequence_quotas(
    mixture: Mixture, lengths: Mapping[str, int], tokens: int, sequence_length: int, carried: Counts
) -> list[int]:
    """Return the number of sequences of each source: `tokens` in the proportions of a mixture, within its caps.

    Args:
        mixture: proportions and epoch caps.
        lengths: sequences that each source has.
        tokens: tokens to read, over all sources.
        sequence_length: T, tokens per sequence.
        carried: (k,) sequences of each source that were read before. They count towards the caps.

    Raises:
        XDogeError: `tokens` is less than one sequence, a source that is read has no whole sequence, or the caps leave
            part of the budget unspent.
    """
    count = tokens // sequence_length
    if count < 1:
        raise XDogeError(f"{tokens:,} tokens of {mixture.name!r} are less than one sequence of {sequence_length:,}.")
    shares, caps = {}, {}
    for (source, length), read in zip(lengths.items(), carried.tolist(), strict=True):
        share = mixture.sources.get(source)
        shares[source] = share.tokens if share else 0
        if shares[source] and not length:
            raise XDogeError(
                f"{source} has no whole sequence of {sequence_length:,} tokens, and {mixture.name!r} reads "
                f"{shares[source]:,} tokens of it; use shorter sequences or leave the source out."
            )
        if share and share.max_epochs is not None:
            caps[source] = max(0, epoch_cap(length, share.max_epochs) - read)
    used = [source for source, tokens in shares.items() if tokens]
    if all(source in caps for source in used) and sum(caps[source] for source in used) < count:
        most = sum(caps[source] for source in used)
        raise XDogeError(
            f"{mixture.name!r} cannot be read in whole sequences of {sequence_length:,} tokens: within max_epochs they "
            f"give {most:,}, and the budget is {count:,}. Plan it with sequence_length {sequence_length}, or for "
            f"{most * sequence_length:,} tokens."
        )
    allocation = allocate(shares, count, caps=caps)
    return list(allocation.counts.values())


def warn_of_other_lengths(
    parts: Sequence[tuple[Mixture, int]], lengths: Mapping[str, int], sequence_length: int
) -> None:
    """Warn if the lengths differ from what the available tokens give. Custom packing can be a good reason for that."""
    for mixture, _ in parts:
        held = {source: share.available_tokens // sequence_length for source, share in mixture.sources.items()}
        other = [source for source, count in held.items() if count != lengths[source]]
        if other:
            source = other[0]
            warnings.warn(
                f"lengths of {len(other)} of {len(held)} sources are not the mixture's tokens in sequences of "
                f"{sequence_length:,}: {source} has {lengths[source]:,} where {held[source]:,} are expected.",
                stacklevel=3,
            )
            return


def warn_of_rare(mixture: Mixture, sources: Sequence[str], quotas: Sequence[int], batch_size: int) -> None:
    """Warn of sources that are never drawn, and of languages that are drawn less than once in a batch on average."""
    total = sum(quotas)
    languages: dict[str, int] = {}
    for source, quota in zip(sources, quotas, strict=True):
        language = language_of(source)
        languages[language] = languages.get(language, 0) + quota
        planned = mixture.sources.get(source)
        if planned and planned.tokens and not quota:
            warnings.warn(
                f"{source} is never drawn: its {planned.tokens:,} tokens are less than a sequence.", stacklevel=4
            )
    for language, quota in languages.items():
        if 0 < quota * batch_size < total:
            every = math.ceil(total / (quota * batch_size))
            warnings.warn(f"{language} is drawn less than once in a batch, about every {every} batches.", stacklevel=4)
