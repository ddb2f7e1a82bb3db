import itertools

import numpy as np
import pytest
import scipy.stats

from musae_jax.steering.comparisons import (
    bootstrap,
    cohens_d,
    compare,
    is_monotone,
    rank_correlations,
    sign_flip_p,
    slopes,
)


def test_sign_flips_are_exact_up_to_sixteen_pairs():
    rng = np.random.default_rng(0)
    d = rng.normal(0.4, 1, 7)
    means = [np.mean(d * signs) for signs in itertools.product((1, -1), repeat=7)]
    assert sign_flip_p(d) == np.mean(np.asarray(means) >= d.mean() - 1e-9)
    assert sign_flip_p(np.ones(8)) == 2**-8 and sign_flip_p(-np.ones(8)) == 1.0
    assert sign_flip_p(np.zeros(5)) == 1.0


def test_more_pairs_are_sampled_and_columns_are_tested_alike():
    rng = np.random.default_rng(1)
    d = rng.normal(0.3, 1, (40, 3)) * [1, 1, 1e-6]
    p = sign_flip_p(d)
    assert p.shape == (3,)
    for column in range(3):
        scale = d[:, column] / d[:, column].std()
        theirs = scipy.stats.permutation_test(
            (scale,), np.mean, permutation_type="samples", n_resamples=20_000, alternative="greater", rng=0
        ).pvalue
        assert p[column] == pytest.approx(theirs, abs=0.01)


def test_p_is_uniform_where_nothing_differs():
    rng = np.random.default_rng(2)
    p = sign_flip_p(rng.normal(size=(10, 2000)))
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.001
    assert (p <= 0.01).mean() < 0.02


def test_effect_sizes_and_intervals():
    assert cohens_d([1.0, 2.0, 3.0]) == pytest.approx(2.0)
    assert cohens_d([0.5, 0.5]) is None and cohens_d([1.0]) is None
    found = compare([1.0, 2.0, 3.0, 4.0])
    assert found["mean"] == 2.5 and found["n"] == 4 and found["p"] == pytest.approx(1 / 16)
    assert found["ci"][0] < 2.5 < found["ci"][1]
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        low, high = bootstrap(rng.normal(1.0, 2.0, 40), 400, seed)
        hits += low <= 1.0 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_slopes_are_those_of_least_squares():
    rng = np.random.default_rng(3)
    strengths, values = [-1.0, 0.0, 0.5, 2.0], rng.normal(size=(4, 5))
    for found, column in zip(slopes(strengths, values), values.T):
        assert found == pytest.approx(np.polyfit(strengths, column, 1)[0])
    for found, column in zip(rank_correlations(strengths, values), values.T):
        assert found == pytest.approx(scipy.stats.spearmanr(strengths, column).statistic)
    assert (rank_correlations([0, 1, 2], np.ones((3, 2))) == 0).all()


def test_monotone_asks_for_every_step_and_for_agreement():
    rng = np.random.default_rng(4)
    strengths = [2.0, 0.0, 1.0, -1.0]  # in any order; below 0 is another matter
    rising = np.asarray([2.0, 0.0, 1.0, 9.0])[:, None] + 0.1 * rng.normal(size=(4, 12))
    assert is_monotone(strengths, rising)
    dented = rising.copy()
    dented[2] = -0.5
    assert not is_monotone(strengths, dented)
    few = rising[:, :3]
    assert not is_monotone(strengths, few)  # three pairs prove nothing
    noisy = rising + 20 * rng.normal(size=rising.shape)
    assert not is_monotone(strengths, noisy)
