"""Features matched across seeds: equal dictionaries agree, random ones as chance has it."""

import itertools

import numpy as np
import pytest

from musae_jax.errors import MusaeError
from musae_jax.sae import matching, stability
from musae_jax.sae.matching import largest_cosines, match_rows

RNG = np.random.default_rng(0)


def test_matching_is_the_best_of_all(monkeypatch):
    a, b = RNG.normal(size=(4, 6)), RNG.normal(size=(5, 6))
    unit_a, unit_b = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (a, b))
    for signed in (True, False):
        cosines = unit_a @ unit_b.T
        cosines = cosines if signed else np.abs(cosines)
        best = max(sum(cosines[i, p[i]] for i in range(4)) for p in itertools.permutations(range(5), 4))
        rows, columns, found = match_rows(a, b, signed)
        assert found.sum() == pytest.approx(best, rel=1e-5)
        np.testing.assert_allclose(found, cosines[rows, columns], rtol=1e-5)
        monkeypatch.setattr(matching, "_BLOCK", 3)  # more than one block, the last not full
        values, places = largest_cosines(a, b, signed)
        np.testing.assert_allclose(values, cosines.max(1), rtol=1e-5)
        np.testing.assert_array_equal(places, cosines.argmax(1))


def test_the_same_features_in_another_order_are_all_found():
    rows = RNG.normal(size=(30, 8))
    found = stability.stability([rows, 3 * rows[RNG.permutation(30)]])
    assert found["cosine"] == pytest.approx(1) and found["above"] == {"0.7": 1.0, "0.9": 1.0}
    assert found["matched_cosine"] == pytest.approx(1) and found["matched_above"]["0.9"] == 1.0
    assert found["control"]["cosine"] < 0.9


def test_half_the_features_is_half_the_share():
    """The other half are the opposites, which are other features, and copies of one, which match it once only."""
    basis = np.eye(8)
    found = stability.stability([basis, np.concatenate([basis[:4], -basis[4:]])])
    assert found["above"] == {"0.7": 0.5, "0.9": 0.5}
    copies = stability.stability([basis, np.repeat(basis[:1], 8, 0)])
    assert copies["above"]["0.9"] == pytest.approx((1 + 8) / 16)  # one of the basis, all of the copies
    assert copies["matched_above"]["0.9"] == pytest.approx(1 / 8)


def test_random_dictionaries_are_as_stable_as_their_control():
    found = stability.stability([RNG.normal(size=(200, 16)) for _ in range(3)])
    assert found["cosine"] == pytest.approx(found["control"]["cosine"], abs=0.02)
    assert len(found["per_pair"]) == 3


def test_what_cannot_be_compared_is_one_sentence(monkeypatch):
    with pytest.raises(MusaeError, match="give 2 or more"):
        stability.stability([np.eye(3)])
    with pytest.raises(MusaeError, match="d_in 3 and 4"):
        stability.stability([np.eye(3), np.eye(4)])
    monkeypatch.setattr(stability, "MATCHED_UP_TO", 2)
    assert stability.stability([np.eye(3), np.eye(3)])["matched_above"] is None
