"""The sampler: composition of blocks, no early repeats, resuming anywhere, ranks, and fingerprints of plans."""

from __future__ import annotations

import copy
import json
import pickle
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xdoge import Draw, Mixture, MixtureSampler, XDogeError

LENGTHS = {"es/web": 400, "es/wiki": 90, "gl/wiki": 60, "eu/wiki": 25}
WEIGHTS = {"es/web": 0.5, "es/wiki": 0.2, "gl/wiki": 0.2, "eu/wiki": 0.1}
T = 16

GOLDEN = "es/web.0.347 es/wiki.0.82 es/web.0.261 es/web.0.61 es/wiki.0.79 es/web.0.288 es/web.0.373 es/wiki.0.20"


def mixture(weights=WEIGHTS, *, lengths=LENGTHS, sequences=1000, **more):
    available = {source: length * T + 3 for source, length in lengths.items()}
    return Mixture.plan(weights, available_tokens=available, budget_tokens=sequences * T, **more)


def make_sampler(plan=None, *, lengths=LENGTHS, batch_size=20, **more):
    return MixtureSampler(plan or mixture(), lengths=lengths, batch_size=batch_size, **more)


def stream(draws):
    """Return draws as a list of (source, epoch, index)."""
    if isinstance(draws, MixtureSampler):
        return [tuple(draw) for draw in draws]
    names = [draws.sources[i] for i in draws.source.tolist()]
    return list(zip(names, draws.epoch.tolist(), draws.index.tolist(), strict=True))


def test_the_order_is_fixed_for_all_time():
    """A change of these numbers changes the data order of every run, so it is a breaking change."""
    assert " ".join(".".join(map(str, draw)) for draw in stream(make_sampler()[:8])) == GOLDEN


def test_position_slice_array_range_and_iteration_agree():
    sampler = make_sampler()
    whole = stream(sampler)
    assert len(whole) == len(sampler) == sampler.total == 1000
    assert [tuple(sampler[t]) for t in (0, 17, 999)] == [whole[t] for t in (0, 17, 999)]
    assert sampler[17] == Draw(*whole[17])
    assert stream(sampler[30:70]) == stream(sampler.draws(30, 70)) == whole[30:70]
    assert stream(sampler[900:5:-7]) == whole[900:5:-7]
    assert stream(sampler[np.array([5, 998, 3])]) == [whole[5], whole[998], whole[3]]
    assert stream(sampler[[]]) == stream(sampler.draws(4, 4)) == []
    assert [stream(sampler.draws(t, t + 10)) for t in range(0, 50, 10)] == [whole[t : t + 10] for t in range(0, 50, 10)]


@given(
    st.dictionaries(st.sampled_from(["es/a", "es/b", "eu/c", "gl/d", "en/e"]), st.integers(1, 300), min_size=1),
    st.integers(1, 64),
    st.integers(0, 2**31),
    st.data(),
)
@pytest.mark.filterwarnings("ignore:.*is drawn less than once", "ignore:.*is never drawn")
def test_blocks_are_near_exact_and_no_sequence_repeats_within_an_epoch(lengths, batch_size, seed, data):
    masses = {source: data.draw(st.floats(0.001, 1)) for source in lengths}
    weights = {source: mass / sum(masses.values()) for source, mass in masses.items()}
    total = data.draw(st.integers(1, 3 * sum(lengths.values())))
    plan = mixture(weights, lengths=lengths, sequences=total, max_epochs=None)
    sampler = make_sampler(plan, lengths=lengths, batch_size=batch_size, seed=seed, sequence_length=T)
    draws = sampler.draws(0, total)
    for i, source in enumerate(sampler.sources):
        mine = draws.source == i
        read = mine.cumsum()
        for end in [*range(batch_size, total, batch_size), total]:
            assert abs(read[end - 1] - Fraction(sampler.quotas[source] * end, total)) < 2
        assert read[-1] == sampler.quotas[source]
        anywhere = data.draw(st.integers(1, total))
        assert read[anywhere - 1] == sampler.counts(anywhere)[source]
        epoch, index = draws.epoch[mine], draws.index[mine]
        assert (np.diff(epoch) >= 0).all()  # an epoch is over before the next begins, also within a block
        assert epoch.max(initial=0) == max(0, -(-len(epoch) // lengths[source]) - 1)
        for number in range(epoch.max(initial=0) + 1):
            here = index[epoch == number]
            assert len(set(here.tolist())) == len(here)
            assert here.min(initial=0) >= 0
            assert here.max(initial=0) < lengths[source]
            if number < epoch.max(initial=0):
                assert len(here) == lengths[source]


def test_quotas_are_the_mixtures_tokens_in_whole_sequences():
    plan = mixture()
    quotas = make_sampler(plan).quotas
    assert sum(quotas.values()) == 1000
    assert quotas == {"es/web": 500, "es/wiki": 200, "gl/wiki": 200, "eu/wiki": 100}
    for source, share in plan.sources.items():
        assert abs(quotas[source] - share.tokens / T) <= 1


def test_caps_hold_in_whole_sequences_although_tails_are_lost():
    lengths = {"es/web": 400, "eu/wiki": 2}
    available = {"es/web": 400 * T, "eu/wiki": 2 * T + 15}  # of eu 15 of 47 tokens make no sequence
    plan = Mixture.plan({"es": 0.5, "eu": 0.5}, available_tokens=available, budget_tokens=400 * T, max_epochs=4)
    assert plan.sources["eu/wiki"].tokens // T == 11
    with pytest.warns(UserWarning, match="eu is drawn less than once in a batch, about every 5 batches"):
        sampler = MixtureSampler(plan, lengths, batch_size=10)
    assert sampler.quotas == {"es/web": 392, "eu/wiki": 8}


def test_every_sequence_is_read_as_often_as_its_epochs_say():
    sampler = make_sampler(mixture(sequences=500, max_epochs=1))
    draws = sampler[:]
    pairs = set(zip(draws.source.tolist(), draws.index.tolist(), strict=True))
    assert len(pairs) == 500
    assert draws.epoch.max() == 0


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_ranks_partition_the_stream_and_have_equally_many(world_size):
    whole = stream(make_sampler())
    ranks = [make_sampler(world_size=world_size, rank=rank) for rank in range(world_size)]
    assert {len(rank) for rank in ranks} == {1000 // world_size}
    for rank, sampler in enumerate(ranks):
        mine = whole[rank::world_size][: len(sampler)]
        assert stream(sampler[:]) == mine
        assert stream(sampler) == mine
        assert sampler.position == len(sampler) * world_size


def test_a_shard_of_a_shard_has_every_nth_position():
    whole = stream(make_sampler())
    workers = [make_sampler(world_size=2, rank=1).shard(world_size=3, rank=worker) for worker in range(3)]
    assert [stream(worker[:5]) for worker in workers] == [whole[1 + 2 * w :: 6][:5] for w in range(3)]
    with pytest.raises(XDogeError, match="rank is 3; with world_size 3 it must be 0 to 2"):
        make_sampler().shard(world_size=3, rank=3)


@given(st.integers(0, 100), st.sampled_from([1, 2, 3, 4, 6]), st.sampled_from([1, 2, 3, 5]))
def test_any_cut_resumes_exactly_on_any_number_of_ranks(taken, before, after):
    """This also holds if the position is not a multiple of the new world size."""
    whole = stream(make_sampler())
    first = [make_sampler(world_size=before, rank=rank) for rank in range(before)]
    read = []
    for sampler in first:
        draws = iter(sampler)
        read += [tuple(next(draws)) for _ in range(taken)]
    assert sorted(read) == sorted(whole[: taken * before])
    states = [json.loads(json.dumps(sampler.state_dict())) for sampler in first]
    assert all(state == states[0] for state in states)
    rest = []
    for rank in range(after):
        sampler = make_sampler(world_size=after, rank=rank)
        sampler.load_state_dict(states[0])
        rest += stream(sampler)
    end = taken * before + (1000 - taken * before) // after * after
    assert sorted(rest) == sorted(whole[taken * before : end])


def test_resumed_sampler_continues_the_same_stream():
    sampler = make_sampler()
    draws = iter(sampler)
    head = [tuple(next(draws)) for _ in range(137)]
    other = make_sampler()
    other.load_state_dict(sampler.state_dict())
    assert head + stream(other) == stream(make_sampler())


def test_a_second_loop_continues_and_a_changed_position_takes_effect():
    whole = stream(make_sampler())
    sampler = make_sampler()
    for _, _draw in zip(range(10), sampler, strict=False):
        pass
    assert stream(sampler) == whole[10:]
    assert stream(sampler) == []  # the budget is read
    sampler.position = 990
    draws = iter(sampler)
    assert tuple(next(draws)) == whole[990]
    sampler.position = 4
    assert tuple(next(draws)) == whole[4]


def test_a_state_has_the_consumed_position_although_a_loader_reads_ahead():
    sampler = make_sampler()
    draws = iter(sampler)
    for _ in range(100):
        next(draws)
    assert sampler.state_dict()["position"] == 100
    state = sampler.state_dict(60)
    other = make_sampler()
    other.load_state_dict(state)
    assert tuple(next(iter(other))) == stream(make_sampler())[60]


def test_a_state_is_small_and_plain():
    many = {f"l{i}/s{i}": 10**12 for i in range(50)}
    plan = Mixture.plan(
        dict.fromkeys(many, 0.02), available_tokens=dict.fromkeys(many, 10**15), budget_tokens=2**60, max_epochs=None
    )
    sampler = MixtureSampler(plan, many, batch_size=4096, sequence_length=1000)
    sampler.position = 2**49
    state = sampler.state_dict()
    assert len(json.dumps(state)) < 300
    assert all(type(value) in (int, str) for value in state.values())


def test_the_loader_batch_may_change_on_resume_and_the_order_stays():
    sampler = make_sampler(batch_size=20)
    sampler.position = 40
    other = make_sampler(batch_size=50)
    assert stream(other)[:40] != stream(make_sampler())[:40]
    other.load_state_dict(sampler.state_dict())
    assert other.batch_size == 20
    assert stream(other) == stream(make_sampler())[40:]


@pytest.mark.parametrize(
    "other",
    [
        lambda: make_sampler(seed=1),
        lambda: make_sampler(mixture({**WEIGHTS, "es/web": 0.4, "eu/wiki": 0.2}, max_epochs=None)),
        lambda: make_sampler(mixture(sequences=900)),
        lambda: make_sampler(lengths={**LENGTHS, "es/web": 399}, sequence_length=T),
        lambda: make_sampler().rebase(mixture(), at=20),
    ],
)
@pytest.mark.filterwarnings("ignore:lengths of")
def test_the_state_of_another_plan_is_refused(other):
    with pytest.raises(XDogeError, match="the state belongs to another plan"):
        make_sampler().load_state_dict(other().state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "the sampler's state has version 2; this xdoge reads 1"),
        ({"position": -1}, "position is -1; it must be a whole number >= 0"),
        ({"position": 1001}, "the state's position 1,001 lies beyond the plan's 1,000 sequences"),
        ({"position": "4"}, "position is '4'"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_an_invalid_state_is_refused_and_changes_nothing(change, message):
    sampler = make_sampler()
    sampler.position = 60
    with pytest.raises(XDogeError, match=message):
        sampler.load_state_dict(sampler.state_dict() | change)
    assert sampler.state_dict() == make_sampler().state_dict(60)
    for value in ({}, None):
        with pytest.raises(
            XDogeError, match="not the state of a sampler, which has version, position, batch_size, plan"
        ):
            sampler.load_state_dict(value)
    for value in (-3, 10.5, "a"):
        with pytest.raises(XDogeError, match="position is"):
            sampler.position = value
        with pytest.raises(XDogeError, match="position is"):
            sampler.state_dict(value)
    assert sampler.position == 60


def test_it_stops_at_the_budget():
    sampler = make_sampler()
    with pytest.raises(IndexError, match="position 1,000 lies beyond the plan's 1,000 sequences"):
        sampler[1000]
    assert len(sampler[990:2000].source) == 10
    with pytest.raises(IndexError, match="position 1,001 lies beyond"):
        sampler.draws(990, 1002)
    with pytest.raises(IndexError, match="negative"):
        sampler[-1]
    assert len(list(sampler)) == 1000
    assert list(sampler) == []


@pytest.mark.parametrize("at", [600, 620])
def test_a_rebase_changes_the_weights_and_neither_loses_nor_repeats(at):
    sampler = make_sampler()
    new = mixture({**WEIGHTS, "es/web": 0.3, "gl/wiki": 0.4}, max_epochs=None)
    other = sampler.rebase(new, at=at)
    assert (other.total, other.position) == (1000, at)
    draws = other.draws(0, 1000)
    assert stream(draws)[:at] == stream(sampler)[:at]
    after = np.bincount(draws.source[at:])
    assert np.abs(after - (1000 - at) * np.array([0.3, 0.2, 0.4, 0.1])).max() < 1
    for i, (source, length) in enumerate(LENGTHS.items()):
        mine = draws.source == i
        assert mine.sum() == other.counts(1000)[source]
        order = draws.epoch[mine] * length + draws.index[mine]
        assert len(set(order.tolist())) == mine.sum()
        for epoch in range(draws.epoch[mine].max()):
            assert (mine & (draws.epoch == epoch)).sum() == length
    three = make_sampler().rebase(new, at=at)
    three.load_state_dict(other.state_dict(840))
    assert stream(three) == stream(draws)[840:]
    longer = sampler.rebase(new, at=1000, tokens=320 * T)
    assert longer.total == 1320
    with pytest.raises(XDogeError, match="at is 610, inside a block that begins at 600"):
        sampler.rebase(new, at=610)
    with pytest.raises(XDogeError, match="at is 1,001; the plan has the positions 0 to 1,000"):
        sampler.rebase(new, at=1001)
    with pytest.raises(XDogeError, match="the plan ends at 1,000"):
        sampler.rebase(new, at=1000)


def test_a_rebase_counts_what_was_read_towards_the_caps():
    sampler = make_sampler(mixture(max_epochs=4))  # 100 of 100 allowed of eu by the end
    new = mixture({**WEIGHTS, "es/web": 0.2, "eu/wiki": 0.4}, max_epochs=4)
    assert sampler.rebase(new, at=500).quotas["eu/wiki"] == 100


def test_stages_are_read_one_after_the_other():
    first, second = mixture(), mixture({**WEIGHTS, "es/web": 0.1, "gl/wiki": 0.6}, max_epochs=None)
    sampler = MixtureSampler([(first, 410 * T), (second, 200 * T)], LENGTHS, batch_size=20)
    assert sampler.total == 610
    draws = sampler.draws(0, 610)
    assert np.bincount(draws.source[:410]).tolist() == [205, 82, 82, 41]
    assert np.bincount(draws.source[410:]).tolist() == [20, 40, 120, 20]
    mine = draws.source == 2
    for epoch, expected in enumerate([60, 60, 60, 22]):
        assert len(set(draws.index[mine & (draws.epoch == epoch)].tolist())) == expected
    shuffled = np.random.default_rng(0).permutation(610)
    assert stream(sampler[shuffled]) == [stream(draws)[t] for t in shuffled]
    with pytest.raises(XDogeError, match="there are no stages"):
        MixtureSampler([], LENGTHS, batch_size=20)


def test_a_phase_planned_after_another_continues_where_it_ended():
    first = mixture(sequences=103, max_epochs=1)
    sampler = make_sampler(first)
    read = {source: share.tokens for source, share in first.sources.items()}
    second = mixture(sequences=200, max_epochs=1, read_before=read)
    other = make_sampler(second, read_before=sampler.quotas)
    pairs = [set(zip(some[:].source.tolist(), some[:].index.tolist(), strict=True)) for some in (sampler, other)]
    assert not pairs[0] & pairs[1]
    assert len(pairs[0] | pairs[1]) == 303
    anew = make_sampler(second, read_before={})[:]  # overrides the mixture's tokens read before
    assert anew.epoch.max() == 0
    assert len(pairs[0] & set(zip(anew.source.tolist(), anew.index.tolist(), strict=True))) > 90
    nearly = make_sampler(second)[:]  # by its tokens, to within a sequence of each source
    again = pairs[0] & set(zip(nearly.source.tolist(), nearly.index.tolist(), strict=True))
    assert len(again) <= len(LENGTHS)


def test_numpy_integers_are_accepted():
    whole = np.int64
    sampler = make_sampler(batch_size=whole(20), seed=whole(3), world_size=whole(2), rank=whole(1))
    assert stream(sampler[:]) == stream(make_sampler(seed=3, world_size=2, rank=1)[:])
    sampler.position = whole(40)
    assert json.loads(json.dumps(sampler.state_dict())) == sampler.state_dict(whole(40))


@pytest.mark.parametrize("positions", [1.7, [0.0, 1.0], [True, False], [[1, 2]], "3"])
def test_invalid_positions_are_refused(positions):
    with pytest.raises(IndexError, match="positions are whole numbers, a slice or a flat array of them"):
        make_sampler()[positions]


@pytest.mark.parametrize(("before", "after"), [(50, 20), (20, 50)])
def test_an_open_iterator_notices_a_state_with_another_batch(before, after):
    sampler = make_sampler(batch_size=before)
    draws = iter(sampler)
    for _ in range(40):
        next(draws)
    sampler.load_state_dict(make_sampler(batch_size=after).state_dict(40))
    assert [tuple(draw) for draw in draws] == stream(make_sampler(batch_size=after))[40:]


def test_lengths_that_differ_from_the_mixture_are_warned_of():
    halves = {source: length // 2 for source, length in LENGTHS.items()}
    plan = mixture(sequences=400, max_epochs=None)
    with pytest.warns(UserWarning, match="lengths of 4 of 4 sources .* es/web has 200 where 400 are expected"):
        make_sampler(plan, lengths=halves, sequence_length=T)
    with pytest.raises(XDogeError, match=r"Mixture\.load"):
        MixtureSampler("mixture.json", LENGTHS, batch_size=20)
    planned = mixture(sequence_length=T)
    assert (planned.sequence_length, MixtureSampler(planned, LENGTHS, batch_size=20).sequence_length) == (T, T)
    assert planned.sources["eu/wiki"].available_tokens == 25 * T


def test_a_rank_of_many_reads_its_part_of_large_blocks():
    """A few positions in large blocks use another branch of the code than many."""
    sampler = make_sampler(batch_size=500)
    whole = stream(sampler[:])
    assert stream(sampler.shard(world_size=125, rank=3)[:]) == whole[3::125]
    scattered = np.random.default_rng(0).permutation(1000)[:20]
    assert stream(sampler[scattered]) == [whole[t] for t in scattered]


def test_far_positions_of_huge_sources_are_exact():
    lengths = {"en/web": 10**12, "eu/web": 1, "gl/web": 10**6}
    weights = {"en/web": 1 - 1e-9 - 1e-4, "eu/web": 1e-9, "gl/web": 1e-4}
    plan = Mixture.plan(weights, available_tokens=lengths, budget_tokens=2**46, max_epochs=None)
    with pytest.warns(UserWarning, match="eu is drawn less than once in a batch"):
        sampler = MixtureSampler(plan, lengths, batch_size=1 << 20, sequence_length=1)
    assert abs(sampler.quotas["eu/web"] - 2**46 * 1e-9) < 1
    end = 5 << 40
    for source, count in sampler.counts(end).items():
        assert abs(count - Fraction(sampler.quotas[source] * end, sampler.total)) < 2
    draws = sampler.draws(end - 1000, end + 1000)
    assert stream(sampler[[end]]) == stream(draws)[1000:1001]
    assert (draws.index < np.array(list(lengths.values()))[draws.source]).all()
    assert set(draws.epoch[draws.source == 0].tolist()) == {5}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be a whole number >= 1"),
        ({"world_size": 2, "rank": 2}, "rank is 2; with world_size 2 it must be 0 to 1"),
        ({"seed": "1"}, "seed is '1'; a seed is a whole number"),
        ({"sequence_length": 0}, "sequence_length is 0; it must be a whole number >= 1"),
        ({"read_before": {"en/web": 1}}, "read_before names en/web"),
        (
            {"lengths": {**LENGTHS, "en/web": 3}},
            "mixture and lengths name different sources; only in lengths: en/web",
        ),
        ({"lengths": {"es/web": 400}}, "only in the mixture: es/wiki, eu/wiki, gl/wiki"),
        (
            {"lengths": {**LENGTHS, "eu/wiki": 0}, "sequence_length": T},
            "eu/wiki has no whole sequence of 16 tokens, and",
        ),
        ({"lengths": {**LENGTHS, "eu/wiki": 2.5}}, r"lengths\['eu/wiki'\] is 2.5"),
        (
            {"lengths": {**LENGTHS, "eu/wiki": 30}},
            "sequence_length cannot be inferred: the lengths are not the mixture's",
        ),
        ({"sequence_length": 10**6}, "16,000 tokens of 'weights' are less than one sequence of 1,000,000"),
        (
            {"lengths": {source: length // 3 for source, length in LENGTHS.items()}, "sequence_length": T},
            r"they give 764, and the budget is 1,000\. Plan it with sequence_length 16, or for 12,224",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:lengths of")
def test_arguments_that_do_not_match_are_refused(arguments, message):
    with pytest.raises(XDogeError, match=message):
        make_sampler(**arguments)


def test_the_sequence_length_is_found_only_where_it_is_certain():
    assert make_sampler().sequence_length == T
    plan = Mixture.plan({"es/web": 1.0}, available_tokens={"es/web": 100}, budget_tokens=100)
    with pytest.raises(XDogeError, match="any of 34 to 50 fits the lengths. Give sequence_length"):
        MixtureSampler(plan, {"es/web": 2}, batch_size=1)


def test_a_sampler_can_be_copied_and_pickled_and_has_a_repr():
    sampler = make_sampler(world_size=4, rank=3)
    sampler.draws(0, 100)
    for other in (copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))):
        assert stream(other) == stream(make_sampler(world_size=4, rank=3))
    assert repr(sampler) == (
        "MixtureSampler(4 sources, 1,000 sequences of 16 tokens, batch_size=20, seed=0, position=0, rank=3 of 4)"
    )
    assert len(pickle.dumps(sampler)) < 10_000


def test_the_order_of_blocks_and_epochs_differs_from_seed_to_seed():
    sampler, other = make_sampler()[:], make_sampler(seed=1)[:]
    assert (sampler.source != other.source).mean() > 0.3
    assert (sampler.index != other.index).mean() > 0.9
