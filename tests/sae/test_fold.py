"""Folding moves centre and scale into the weights and changes nothing else, for every architecture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from some_recipes import RECIPES, D, F, some_params, tokens

from musae_jax.sae.sae import sae_decode, sae_encode
from musae_jax.sae.step import fold, init_state

STATES = {name: init_state(recipe, jax.random.key(0)) for name, recipe in RECIPES.items()}
encode = jax.jit(sae_encode, static_argnames=("config",))
activate = jax.jit(lambda recipe, *arguments: recipe.activate(*arguments)[0], static_argnums=(0, 5))


def some_state(name: str, seed: int, center=None, scale: float = 1.0):
    params = some_params(RECIPES[name], seed)
    params["W_dec"] /= np.linalg.norm(params["W_dec"], axis=1, keepdims=True)
    memory = STATES[name].memory
    if memory:
        memory = {**memory, "threshold_mean": jnp.float32(0.5), "threshold_weight": jnp.float32(0.8)}
    center = np.zeros(D, np.float32) if center is None else center.astype(np.float32)
    return STATES[name].replace(params=params, memory=memory, center=jnp.asarray(center), scale=jnp.float32(scale))


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6), scale=st.floats(1e-2, 1e2), offset=st.floats(-5, 5), name=st.sampled_from([*RECIPES])
)
def test_outputs_are_unchanged(seed, scale, offset, name):
    recipe = RECIPES[name]
    small = tokens(seed, 50)
    center = scale * offset * np.random.default_rng(seed).normal(size=D)
    plain = fold(recipe, some_state(name, seed))
    folded = fold(recipe, some_state(name, seed, center, scale))
    x = (scale * small + center).astype(np.float32)
    f, expected = encode(folded.config, folded.params, x) / scale, np.asarray(encode(plain.config, plain.params, small))
    # A pre-activation within rounding of a threshold may fall on either side; such tokens are few.
    sure = (np.abs(f - expected) < 1e-2).all(1)
    assert sure.mean() > 0.9
    size = np.abs(expected).max()
    np.testing.assert_allclose(f[sure], expected[sure], atol=1e-5 * max(1, abs(offset)) * size)
    x_hat = (sae_decode(folded.config, folded.params, f * scale) - folded.params["b_dec"]) / scale
    expected_hat = sae_decode(plain.config, plain.params, expected) - plain.params["b_dec"]
    size = np.abs(expected_hat).max()
    np.testing.assert_allclose(x_hat[sure], expected_hat[sure], atol=1e-5 * max(1, abs(offset)) * size)
    b_dec = np.float32(scale) * np.asarray(plain.params["b_dec"]) + center
    np.testing.assert_allclose(folded.params["b_dec"], b_dec, rtol=1e-5, atol=1e-5 * scale)
    np.testing.assert_allclose(np.linalg.norm(folded.params["W_dec"], axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("name", ["topk", "jumprelu", "relu", "gated"])
def test_the_inference_rule_is_the_one_trained(name):
    recipe, state, x = RECIPES[name], some_state(name, 3), tokens(4, 200)
    pre = (x - state.params["b_dec"]) @ state.params["W_enc_t"].T + state.params["b_enc"]
    f = np.asarray(activate(recipe, state.params, pre, state.knobs, state.memory, len(x)))
    sae = fold(recipe, state, {"hook_name": "h"})
    found = np.asarray(encode(sae.config, sae.params, x))
    assert 0 < (f > 0).mean() < 1
    np.testing.assert_allclose(found, f, atol=1e-5)
    assert sae.config.hook == "h" and sae.config.architecture == recipe.rule
    assert sae.config.k == getattr(recipe, "k", None)


def test_batch_topk_becomes_a_jumprelu_at_the_mean_threshold():
    sae = fold(RECIPES["batch_topk"], some_state("batch_topk", 0, np.ones(D), 2.0))
    np.testing.assert_allclose(sae.params["threshold"], np.full(F, 2.0 * 0.5 / 0.8), rtol=1e-6)
