import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from musae_jax.labels.auroc import auroc, rank


def by_pairs(values, truth):
    """The definition: over all pairs, the share in which the positive is higher, ties counting one half."""
    result = np.full((values.shape[1], truth.shape[1]), np.nan)
    for f in range(values.shape[1]):
        for c in range(truth.shape[1]):
            a, b = values[truth[:, c], f], values[~truth[:, c], f]
            if len(a) and len(b):
                result[f, c] = ((a[:, None] > b).mean() + (a[:, None] >= b).mean()) / 2
    return result


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 40), st.sampled_from([0.0, 0.3, 0.9, 1.0]), st.booleans())
def test_sparse_and_dense_agree_with_the_definition(seed, rows, empty, signed):
    rng = np.random.default_rng(seed)
    values = np.round(rng.normal(size=(rows, 5)), 1)  # rounded: many ties
    values = values if signed else np.abs(values)
    values[rng.random(values.shape) < empty] = 0
    truth = rng.random((rows, 4)) < 0.4
    expected = by_pairs(values, truth)
    np.testing.assert_allclose(auroc(values, truth), expected, atol=1e-6)
    np.testing.assert_allclose(auroc(scipy.sparse.csr_array(values), truth), expected, atol=1e-12)


def test_explicit_zeros_are_zeros():
    values = scipy.sparse.csr_array(np.asarray([[1.0], [2.0], [0.0], [3.0]]))
    values.data[1] = 0.0
    truth = np.asarray([[True], [True], [False], [False]])
    np.testing.assert_allclose(auroc(values, truth), by_pairs(values.todense(), truth))


def test_direction():
    values, truth = np.asarray([[3.0, -3], [2, -2], [0, 0], [0, 0]]), np.asarray([[True], [True], [False], [False]])
    assert auroc(values, truth).tolist() == [[1.0], [0.0]]


def test_bad_values_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        rank(np.asarray([[np.nan], [1.0]]))
    with pytest.raises(ValueError, match="NaN"):
        rank(scipy.sparse.csr_array(np.asarray([[np.nan], [1.0]])))
    with pytest.raises(ValueError, match="3 rows"):
        auroc(np.ones((3, 1)), np.ones((2, 1), bool))


def test_large_counts_keep_their_precision():
    rng = np.random.default_rng(0)
    truth = rng.random((60000, 1)) < 0.01
    values = (rng.random((60000, 1)) + 0.5 * truth) * (rng.random((60000, 1)) < 0.3)
    a, b = np.sort(values[~truth[:, 0], 0]), values[truth[:, 0], 0]
    expected = ((np.searchsorted(a, b) + np.searchsorted(a, b, "right")) / 2 / len(a)).mean()
    np.testing.assert_allclose(auroc(scipy.sparse.csr_array(values), truth)[0, 0], expected, atol=1e-9)
    np.testing.assert_allclose(auroc(values.astype(np.float32), truth)[0, 0], expected, atol=1e-5)
