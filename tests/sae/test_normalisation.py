import numpy as np
import pytest
import scipy.optimize
from planted_store import D, F, planted_store

from musae_jax.activations.batches import Batches
from musae_jax.errors import MusaeError
from musae_jax.sae.normalisation import activation_statistics, geometric_median, normalisation
from musae_jax.sae.topk import TopKConfig


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return planted_store(tmp_path_factory.mktemp("store") / "hook")


@pytest.fixture(scope="module")
def x(store):
    return np.concatenate([residuals for _, residuals in store.shards()])[:, 1:].reshape(-1, D).astype(np.float64)


def test_statistics_are_exact(store, x):
    mean, scale = activation_statistics(Batches(store, 33))
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-9)
    assert scale == pytest.approx(np.sqrt(((x - x.mean(0)) ** 2).mean()), rel=1e-9)


def test_statistics_leave_out_what_training_leaves_out(store, x):
    size = np.linalg.norm(x, axis=1)
    kept = x[size <= 1.02 * np.median(size)]
    assert 0 < len(kept) < len(x)
    mean, scale = activation_statistics(Batches(store, len(x)), max_norm=1.02)
    np.testing.assert_allclose(mean, kept.mean(0), rtol=1e-9)
    assert scale == pytest.approx(np.sqrt(((kept - kept.mean(0)) ** 2).mean()), rel=1e-9)


def test_the_geometric_median_has_the_least_summed_distance():
    x = np.random.default_rng(0).standard_t(2, size=(200, 3))
    best = scipy.optimize.minimize(lambda m: np.linalg.norm(x - m, axis=1).sum(), np.zeros(3), tol=1e-12).x
    np.testing.assert_allclose(geometric_median(x), best, atol=1e-5)
    assert np.linalg.norm(x.mean(0) - best) > 1e-2


def test_the_recipe_says_what_is_subtracted_and_divided(store, x):
    batches = Batches(store, 32)
    mean, spread = activation_statistics(batches)
    for center, scale, expected in (("mean", True, (mean, spread)), ("none", False, (np.zeros(D), 1.0))):
        found = normalisation(TopKConfig(D, F, 3, center=center, scale=scale), batches)
        np.testing.assert_allclose(found[0], expected[0])
        assert found[1] == pytest.approx(expected[1])
    center, _ = normalisation(TopKConfig(D, F, 3, center="geometric_median"), batches)
    np.testing.assert_allclose(center, geometric_median(x), rtol=1e-5)
    assert batches.tokens == 0


def test_activations_without_spread_are_one_sentence(store, monkeypatch):
    batches = Batches(store, 32)
    monkeypatch.setattr(Batches, "__next__", lambda self: np.ones((32, D), np.float32))
    with pytest.raises(MusaeError, match="all the same or not finite"):
        normalisation(TopKConfig(D, F, 3), batches)
