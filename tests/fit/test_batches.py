"""Which sequences a step trains on."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from xdoge.fit.batches import draw, gradient_weights, sequence_counts
from xdoge.fit.settings import FitSettings
from xdoge.mixtures.simplex import project


def settings_for(store, recipe, **options):
    return FitSettings.for_store(store, {"proxy": recipe} | options)


def counts_of(alpha, settings, step, trained=None):
    trained = np.ones(alpha.size, dtype=bool) if trained is None else trained
    return sequence_counts(alpha, trained=trained, settings=settings, step=step)


@given(st.lists(st.floats(0.001, 1), min_size=4, max_size=4), st.integers(8, 200))
def test_a_stratified_batch_follows_the_weights_and_has_every_source(store, recipe, masses, size):
    alpha = project(masses)
    counts = counts_of(alpha, settings_for(store, recipe, batch_size=size), 1)
    assert counts.sum() == size
    assert counts.min() >= 2
    free = counts > 2
    ideal = project(alpha, floor=2 / size) * size if size > 8 else np.full(4, 2)
    assert (np.abs(counts - ideal)[free] < 1 + 1e-9).all()


def test_sampled_batches_follow_the_weights_on_average(store, recipe):
    settings = settings_for(store, recipe, batch="sampled", batch_size=20)
    alpha = np.array([0.7, 0.2, 0.1, 0.0])
    trained = alpha > 0
    counts = np.array([counts_of(alpha, settings, step, trained) for step in range(500)])
    assert (counts.sum(axis=1) == 20).all()
    assert (counts[:, 3] == 2).all()  # held out: two sequences for the scores, none for training
    np.testing.assert_allclose(counts[:, :3].mean(axis=0), 18 * alpha[:3], rtol=0.05)
    np.testing.assert_array_equal(counts[7], counts_of(alpha, settings, 7, trained))


def test_both_kinds_of_batch_have_the_same_expected_gradient(store, recipe):
    alpha = np.array([0.4, 0.3, 0.2, 0.1])
    stratified = settings_for(store, recipe)
    counts = counts_of(alpha, stratified, 1)
    np.testing.assert_array_equal(gradient_weights(alpha, counts, settings=stratified), alpha)
    sampled = settings_for(store, recipe, batch="sampled", batch_size=30)
    shares = [gradient_weights(alpha, counts_of(alpha, sampled, step), settings=sampled) for step in range(800)]
    np.testing.assert_allclose(np.mean(shares, axis=0), alpha, atol=0.01)


def test_an_epoch_reads_every_sequence_once_and_the_next_in_another_order(store, recipe):
    settings = settings_for(store, recipe)
    available = np.array(list(store.sequence_counts(16).values()))
    length, read, epochs = 16, np.zeros(4, dtype=np.int64), []
    for _ in range(2):
        rows = draw(store, read, available, settings=settings)
        assert rows.dtype == np.int64
        epochs.append(rows)
        read = read + available
    first, second = epochs
    for source, start, count in zip(store.sources, np.cumsum(available) - available, available, strict=True):
        whole = store.flat(source)[: count * length].reshape(count, length)
        for rows in epochs:
            part = rows[start : start + count]
            assert sorted(map(tuple, part.tolist())) == sorted(map(tuple, whole.tolist()))
    assert not np.array_equal(first, second)


def test_a_batch_does_not_depend_on_the_sizes_of_earlier_batches(store, recipe):
    """Batches of 3 and 4 sequences together equal one batch of 7, also across the end of an epoch."""
    settings = settings_for(store, recipe)
    n = store.sequence_counts(16)["eu/wiki"]
    one_source = np.array([0, 0, 0, 1])
    start = one_source * (n - 5)
    whole = draw(store, start, one_source * 7, settings=settings)
    first = draw(store, start, one_source * 3, settings=settings)
    second = draw(store, start + one_source * 3, one_source * 4, settings=settings)
    np.testing.assert_array_equal(whole, np.concatenate([first, second]))


def test_another_seed_is_another_order(store, recipe):
    counts, read = np.array([4, 4, 4, 4]), np.zeros(4, dtype=np.int64)
    rows = draw(store, read, counts, settings=settings_for(store, recipe))
    other = draw(store, read, counts, settings=settings_for(store, recipe, seed=1))
    assert not np.array_equal(rows, other)
