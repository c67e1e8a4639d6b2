"""Gradient affinity: averages over windows, cosines, and their standard errors."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from xdoge.fit.affinity import WINDOWS, GradientAffinity, LanguageCosines, cosines, language_cosines, read_products

SOURCES = ("es/a", "es/b", "eu/a")


def products(gram, half):
    return SimpleNamespace(gram=np.array(gram, dtype=float), half_products=np.array(half, dtype=float))


def test_windows_average_measured_products_and_survive_the_file(tmp_path):
    windows = GradientAffinity.empty(3)
    eye = np.eye(3)
    windows = windows.add(products(eye * 4, [1, 1, np.nan]), step=1, steps=20)
    absent = np.array([[2.0, 2.0, np.nan], [2.0, 2.0, np.nan], [np.nan] * 3])
    windows = windows.add(products(absent, [3, 3, np.nan]), step=20, steps=20)
    windows = windows.add(SimpleNamespace(gram=None), step=2, steps=20)
    table = windows.to_table(SOURCES, steps=20)
    assert table.num_rows == 2 * 9
    first, last = table.slice(0, 9), table.slice(9, 9)
    assert (first["first_step"][0].as_py(), first["last_step"][0].as_py()) == (1, 2)
    assert (last["first_step"][0].as_py(), last["last_step"][0].as_py()) == (19, 20)
    np.testing.assert_array_equal(first["product"].to_numpy().reshape(3, 3), [[1, 0, 0], [0, 1, 0], [0, 0, 4]])
    pq.write_table(table, tmp_path / "gram.parquet")
    mean = read_products(tmp_path / "gram.parquet", SOURCES)
    np.testing.assert_array_equal(mean, [[2, 1, 0], [1, 2, 0], [0, 0, 4]])


def test_every_step_of_a_fit_is_in_one_window():
    for steps in (1, 3, 10, 11, 97):
        windows = GradientAffinity.empty(1)
        for step in range(1, steps + 1):
            windows = windows.add(products([[1.0]], [1.0]), step=step, steps=steps)
        assert windows.counts.sum() == steps
        table = windows.to_table(("es/a",), steps=steps)
        spans = list(zip(table["first_step"].to_pylist(), table["last_step"].to_pylist(), strict=True))
        assert sum(last - first + 1 for first, last in spans) == steps
        assert table["steps"].to_pylist() == [last - first + 1 for first, last in spans]
        assert len(spans) == min(steps, WINDOWS)


def test_cosines_of_known_gradients():
    g = np.array([[3.0, 0.0], [1.0, 1.0], [0.0, -2.0]])
    measured = cosines(g @ g.T)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(measured, [[1, half, 0], [half, 1, -half], [0, -half, 1]], atol=1e-15)
    spanish = g[:2].mean(axis=0)
    expected = spanish @ g[2] / np.linalg.norm(spanish) / 2
    languages = {"es": ("es/a", "es/b"), "eu": ("eu/a",)}
    np.testing.assert_allclose(language_cosines(g @ g.T, languages, SOURCES), [[1, expected], [expected, 1]])


@pytest.mark.parametrize(("length", "measured"), [(0.1, [1, np.nan]), (-0.1, [np.nan, np.nan])])
def test_an_impossible_cosine_is_not_shown(length, measured):
    """The estimated length of the first gradient is too small for its product with the second, or not real."""
    np.testing.assert_allclose(cosines(np.array([[length, 1.0], [1.0, 4.0]])), [measured, [np.nan, 1]])


LANGUAGES = {"es": ("es/a", "es/b"), "eu": ("eu/a",)}


def measured(tmp_path, grams):
    """Return the cosines of a fit that measured one Gram matrix in each step."""
    windows = GradientAffinity.empty(3)
    for step, gram in enumerate(grams, start=1):
        windows = windows.add(products(gram, np.diag(gram)), step=step, steps=len(grams))
    pq.write_table(windows.to_table(SOURCES, steps=len(grams)), tmp_path / "gram.parquet")
    return LanguageCosines.read(tmp_path / "gram.parquet", LANGUAGES, SOURCES)


def test_standard_errors_of_cosines_agree_with_their_spread_over_fits(tmp_path):
    generator = np.random.default_rng(0)
    gram = np.array([[2.0, 0.5, 0.8], [0.5, 1.5, 0.9], [0.8, 0.9, 3.0]])
    fits = [measured(tmp_path, gram + 0.4 * generator.normal(size=(20, 3, 3))) for _ in range(100)]
    spread = np.std([fit.cosines[0, 1] for fit in fits])
    assert np.mean([fit.errors[0, 1] for fit in fits]) == pytest.approx(spread, rel=0.2)
    assert np.median([fit.errors[0, 0] for fit in fits]) == pytest.approx(0, abs=1e-9)


def test_a_cosine_that_does_not_differ_from_0_is_called_noise(tmp_path):
    generator = np.random.default_rng(0)
    related, strangers = np.array([[[2.0, 0.5, c], [0.5, 1.5, c], [c, c, 3.0]] for c in (0.9, 0.0)])
    noise = 0.4 * generator.normal(size=(30, 20, 3, 3))
    assert sum(measured(tmp_path, related + part).noise[0, 1] for part in noise) == 0
    assert sum(measured(tmp_path, strangers + part).noise[0, 1] for part in noise) >= 24
    cell = measured(tmp_path, related + noise[0]).to_dict()["es"]["eu"]
    assert (cell["noise"], cell["cosine"] > 5 * cell["standard_error"] > 0) == (False, True)


def test_a_fit_with_too_few_matrices_calls_every_cosine_noise(tmp_path):
    short = measured(tmp_path, [np.eye(3) + 1] * 2)
    assert short.noise.all()
    assert short.to_dict()["es"]["eu"] == {"cosine": short.cosines[0, 1], "standard_error": None, "noise": True}
