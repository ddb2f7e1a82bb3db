"""Nulls, intervals and thresholds: against the definitions, and against many worlds in which nothing is to be found."""

import numpy as np
import pytest
import scipy.stats

from musae_jax.labels.auroc import auroc
from musae_jax.labels.evidence import (
    best_threshold,
    bootstrap_auroc,
    clip_weights,
    corrected,
    f1_score,
    interval,
    p_value,
    ranks_of,
    shuffled_auroc,
)
from musae_jax.labels.scores import shuffles


def area(values, truth):
    return float(auroc(values.reshape(-1, 1), truth.reshape(-1, 1))[0, 0])


def some_clips(seed=0, clips=12, frames=30):
    rng = np.random.default_rng(seed)
    truth = rng.random((clips, frames)) < rng.random((clips, 1))
    values = np.round(rng.normal(size=(clips, frames)) + truth, 1) * (rng.random((clips, frames)) < 0.6)
    return values, truth


def test_shuffles_in_one_product_are_the_aurocs_of_exchanged_truth():
    values, truth = some_clips()
    orders = shuffles([str(n) for n in range(12)], 20, 0)
    expected = [area(values, truth[order]) for order in orders]
    np.testing.assert_allclose(shuffled_auroc(ranks_of(values), truth, orders), expected, atol=1e-6)


def test_draws_are_the_aurocs_of_repeated_clips():
    values, truth = some_clips()
    weights = clip_weights(12, 15, 3)
    expected = [area(np.repeat(values, w, 0), np.repeat(truth, w, 0)) for w in weights.astype(int)]
    np.testing.assert_allclose(bootstrap_auroc(ranks_of(values), truth, weights), expected, atol=4e-3)
    once = bootstrap_auroc(ranks_of(values), truth, np.ones((1, 12), np.float32))[0]
    assert once == pytest.approx(area(values, truth), abs=2e-3)


def test_draws_of_many_different_values_are_as_exact_as_one_needs():
    rng = np.random.default_rng(1)
    truth = rng.random((40, 200)) < 0.1
    values = rng.normal(size=truth.shape) + truth
    found = bootstrap_auroc(ranks_of(values), truth, np.ones((1, 40), np.float32))[0]
    assert found == pytest.approx(area(values, truth), abs=2e-3)


def test_intervals_cover_as_often_as_they_say():
    """AUROC of a feature with a known one, over many samples of clips."""
    inside = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        truth = np.arange(60)[:, None] % 2 == 0
        values = rng.normal(size=(60, 1)) + truth  # d' = 1
        low, high = interval(bootstrap_auroc(ranks_of(values), truth, clip_weights(60, 300, seed)))
        inside.append(low <= scipy.stats.norm.cdf(1 / np.sqrt(2)) <= high)
    assert 0.88 <= np.mean(inside) <= 0.99


def worlds(count, clips=40, frames=50):
    """Features and concepts that have nothing to do with each other, though both hardly change within a clip and both
    are likelier at its beginning."""
    for seed in range(count):
        rng = np.random.default_rng(seed)
        slope = np.linspace(1, -1, frames)
        values = rng.normal(size=(clips, 1)) * 2 + slope + 0.3 * rng.normal(size=(clips, frames))
        truth = rng.normal(size=(clips, 1)) * 2 + slope + 0.3 * rng.normal(size=(clips, frames)) > 0.5
        yield values, truth


def test_p_values_are_uniform_where_nothing_is_to_be_found():
    p = []
    for seed, (values, truth) in enumerate(worlds(400)):
        orders = shuffles([str(n) for n in range(len(values))], 199, seed)
        p.append(p_value(area(values, truth), shuffled_auroc(ranks_of(values), truth, orders)))
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.01
    assert np.mean(np.asarray(p) <= 0.05) == pytest.approx(0.05, abs=0.03)
    # what a null of single frames would make of the same worlds
    naive = []
    for seed, (values, truth) in enumerate(worlds(40)):
        rng = np.random.default_rng(seed)
        null = np.asarray([area(values, rng.permuted(truth.reshape(-1)).reshape(truth.shape)) for _ in range(99)])
        naive.append(p_value(area(values, truth), null))
    assert np.mean(np.asarray(naive) <= 0.05) > 0.3


def test_corrected_p_values_keep_false_discoveries_rare():
    q = corrected(np.asarray([0.001, 0.02, np.nan, 0.5]))
    np.testing.assert_allclose(q[[0, 1, 3]], [0.003, 0.03, 0.5])
    assert np.isnan(q[2]) and np.isnan(corrected(np.full(3, np.nan))).all()
    rng = np.random.default_rng(0)
    any_found = [(corrected(rng.random(50)) < 0.05).any() for _ in range(300)]
    assert np.mean(any_found) < 0.1


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_the_threshold_is_the_best_of_all(beta):
    values, truth = (a.reshape(-1) for a in some_clips(5))

    def score(threshold):
        fires = values >= threshold
        both = (fires & truth).sum()
        return (1 + beta**2) * both / (beta**2 * truth.sum() + fires.sum())

    found = best_threshold(values, truth, beta)
    assert score(found) == pytest.approx(max(score(t) for t in np.unique(values)))
    assert best_threshold(values, np.zeros_like(truth)) == np.inf


def test_f1_by_hand_and_on_drawn_clips():
    fires, truth = np.asarray([[1, 1, 0], [0, 1, 0]], bool), np.asarray([[1, 0, 0], [0, 1, 1]], bool)
    assert f1_score(fires, truth) == pytest.approx(2 * 2 / (3 + 3))
    drawn = f1_score(fires, truth, np.asarray([[2.0, 0.0], [0.0, 2.0]]))
    np.testing.assert_allclose(drawn, [2 / 3, 2 / 3])
    assert f1_score(np.zeros((2, 3), bool), np.zeros((2, 3), bool)) == 0
