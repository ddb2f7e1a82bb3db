"""Tags against features: planted ones are found, chance is not, the numbers are scipy's and the definition's."""

import numpy as np
import pytest
import scipy.stats

from musae_jax.labels.enrichment import best_tags, tag_enrichment


def by_pairs(values, weights):
    """The definition, with parts: over all pairs, weighted by w of the one and 1 − w of the other."""
    higher = (values[:, None] > values) + 0.5 * (values[:, None] == values)
    pairs = weights[:, None] * (1 - weights)
    return (higher * pairs).sum() / pairs.sum()


def chance(clips, tags, features, seed=0, share=0.2):
    rng = np.random.default_rng(seed)
    return rng.beta(0.5, 2, (clips, tags)), rng.random((features, clips)) < share


def test_auroc_is_the_definition_with_ties_and_parts():
    rng = np.random.default_rng(0)
    probabilities = np.round(rng.random((40, 6)), 1)
    whole, parts = rng.random((5, 40)) < 0.4, rng.random((5, 40))
    for active in (whole, parts):
        found = tag_enrichment(probabilities, active).auroc
        expected = [[by_pairs(column, row.astype(float)) for column in probabilities.T] for row in active]
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_p_is_scipys_where_activity_is_whole():
    rng = np.random.default_rng(1)
    probabilities = np.round(rng.beta(1, 4, (60, 7)), 1)
    active = rng.random((4, 60)) < 0.3
    found = tag_enrichment(probabilities, active)
    for feature, row in enumerate(active):
        test = scipy.stats.mannwhitneyu(
            probabilities[row], probabilities[~row], alternative="greater", method="asymptotic"
        )
        np.testing.assert_allclose(found.p[feature], test.pvalue, rtol=1e-4)
    q = scipy.stats.false_discovery_control(found.p, axis=None)
    np.testing.assert_allclose(found.q.ravel(), q)


def test_planted_tags_are_found_and_how_common_a_tag_is_does_not_matter():
    probabilities, active = chance(400, 30, 20)
    probabilities[:, 0] = 0.97 + 0.02 * probabilities[:, 0]  # in every clip: the most probable, and no finding
    for feature in range(5):
        lifted = probabilities[active[feature], feature + 1]
        probabilities[active[feature], feature + 1] = lifted + 0.5 * (1 - lifted)
    found = tag_enrichment(probabilities, active)
    np.testing.assert_array_equal(best_tags(found), [1, 2, 3, 4, 5] + [-1] * 15)
    assert (found.auroc[range(5), range(1, 6)] > 0.8).all() and (found.log_odds[range(5), range(1, 6)] > 1).all()
    assert found.base.argmax() == 0
    np.testing.assert_allclose(found.base, probabilities.mean(0), rtol=1e-6)
    assert (best_tags(found, level=0) == -1).all()


def test_log_odds_are_those_of_the_means_and_smoothing_draws_them_to_none():
    probabilities = np.repeat([[0.8], [0.2]], [10, 30], 0)
    active = np.arange(40)[None] < 10
    found = tag_enrichment(probabilities, active, smoothing=0.0)
    np.testing.assert_allclose(found.log_odds, 2 * np.log(4), rtol=1e-5)
    assert 0 < tag_enrichment(probabilities, active, smoothing=5.0).log_odds[0, 0] < found.log_odds[0, 0] - 0.1
    assert np.isfinite(tag_enrichment(np.round(probabilities), active, smoothing=0.0).log_odds).all()


def test_chance_gives_uniform_p():
    found = tag_enrichment(*chance(500, 40, 50, seed=2))
    assert scipy.stats.kstest(found.p.ravel(), "uniform").pvalue > 1e-3
    assert abs((found.p < 0.01).mean() - 0.01) < 0.006


def test_tracks_of_several_clips_do_not_make_chance_significant():
    rng = np.random.default_rng(3)
    probabilities, active = chance(80, 40, 50, seed=3, share=0.4)
    order = rng.permutation(np.repeat(np.arange(80), 6))
    names = [f"track {t}" for t in order]
    pooled = tag_enrichment(probabilities[order], active[:, order], names)
    assert pooled.tracks == 80 and scipy.stats.kstest(pooled.p.ravel(), "uniform").pvalue > 1e-3
    assert (tag_enrichment(probabilities[order], active[:, order]).p < 0.01).mean() > 0.05  # what it would have found
    np.testing.assert_allclose(pooled.p, tag_enrichment(probabilities, active).p, rtol=1e-3)
    # A track may be active in part: chance stays chance.
    parts = tag_enrichment(probabilities[order], rng.random((50, 480)) < 0.3, names)
    assert scipy.stats.kstest(parts.p.ravel(), "uniform").pvalue > 1e-3
    np.testing.assert_allclose(parts.positives.mean(), 24, atol=3)


def test_false_discoveries_stay_below_the_level():
    shares = []
    for seed in range(20):
        probabilities, active = chance(200, 20, 60, seed=seed)
        for feature in range(6):
            probabilities[active[feature], feature] += 0.4
        found = best_tags(tag_enrichment(probabilities, active), level=0.1) >= 0
        assert found[:6].all()
        shares.append(found[6:].sum() / found.sum())
    assert np.mean(shares) < 0.15


def test_constant_tags_and_rare_features():
    probabilities = np.repeat([[0.3, 0.0, 1.0]], 30, 0)
    active = np.arange(30)[None] < np.asarray([[10], [4], [26], [0]])
    found = tag_enrichment(probabilities, active)
    np.testing.assert_array_equal(found.auroc[0], 0.5)
    np.testing.assert_array_equal(found.p[0], 1)
    np.testing.assert_allclose(found.log_odds[0], 0, atol=1e-5)
    for values in (found.auroc, found.log_odds, found.p, found.q):
        assert np.isnan(values[1:]).all() and np.isfinite(values[0]).all()
    assert (best_tags(found, level=1) == [0, -1, -1, -1]).all()
    assert np.isfinite(tag_enrichment(probabilities, active, minimum=4).p[:3]).all()
    names = [f"track {i // 3 if i < 18 else i}" for i in range(30)]  # of 3 clips and of one
    uneven = tag_enrichment(probabilities, active, names, minimum=1)
    assert uneven.tracks == 18 and (uneven.auroc[:3] == 0.5).all() and (uneven.p[:3] == 1).all()
    assert np.isnan(tag_enrichment(probabilities, active, ["one"] * 30).p).all()  # a single track tells nothing


def test_what_does_not_fit_is_refused():
    probabilities, active = chance(10, 2, 3)
    for bad in (active[:, :9], active * 2.0, -1.0 * active, np.where(active, np.nan, 0)):
        with pytest.raises(ValueError, match="activity"):
            tag_enrichment(probabilities, bad)
    with pytest.raises(ValueError, match="tracks"):
        tag_enrichment(probabilities, active, ["a"])
    with pytest.raises(ValueError, match="NaN"):
        tag_enrichment(probabilities * np.nan, active)
