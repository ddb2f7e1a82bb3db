"""Lists of active latents against masks of all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musae_jax.sae.products import BLOCK, decode, encode, list_above, list_largest


def dense(active, shape):
    """The matrix that a list stands for; no entry twice."""
    matrix, held = np.zeros(shape, np.float32), np.asarray(active.value) > 0
    places = np.stack([active.token, active.latent])[:, held]
    assert len(np.unique(places, axis=1).T) == held.sum() and len(active.value) % BLOCK == 0
    matrix[tuple(places)] = np.asarray(active.value)[held]
    return matrix


@pytest.mark.parametrize("shape", [(40, 96), (33, 37), (3, 64)])
def test_a_list_holds_what_a_mask_keeps(shape):
    pre = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    pre[1] = 5.0  # a token with far more than its share, and ties
    pre[2] = -1.0  # and one with none
    for threshold in (0.0, 1.5, 6.0):
        above = np.where(pre > threshold, pre, 0.0)
        total = max(1, int((above > 0).sum()))
        for room in (total, total + 77):
            active = jax.jit(list_above, static_argnums=2)(pre, jnp.float32(threshold), room)
            np.testing.assert_array_equal(dense(active, shape), above)
    for most in (3, 2):
        expected = np.zeros_like(pre)
        for row, numbers in zip(expected, pre):
            order = np.argsort(-numbers, kind="stable")[:most]
            row[order] = np.maximum(numbers[order], 0)
        np.testing.assert_array_equal(dense(list_largest(jnp.asarray(pre), 3, most), shape), expected)


def test_gradients_of_the_dense_products():
    rng = np.random.default_rng(0)
    x, f, W, out = (rng.normal(size=s).astype(np.float32) for s in ((5, 4), (5, 9), (9, 4), (5, 4)))
    for product, plain, a in ((encode, lambda x, W: x @ W.T, x), (decode, lambda f, W: f @ W, f)):
        by_product = out if product is decode else f
        ours, theirs = (jax.vjp(function, a, W)[1](by_product) for function in (product, plain))
        for one, other in zip(ours, theirs):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
