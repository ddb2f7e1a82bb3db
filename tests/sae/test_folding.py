"""What is folded into the weights changes nothing: each fold against the unfolded computation in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_formats import random_sae

from musae_jax.sae.folding import fold_decoder_norm, fold_feature_scale, fold_input_scale, fold_whitening
from musae_jax.sae.sae import SAE, sae_decode, sae_encode

RULES = st.sampled_from(["jumprelu", "standard", "gated"])  # whose features do not compete
CASES = {"architecture": RULES, "d": st.integers(1, 8), "f": st.integers(1, 20), "seed": st.integers(0, 999)}


def run(sae: SAE, x: np.ndarray, params: dict | None = None) -> tuple[np.ndarray, np.ndarray]:
    params = sae.params if params is None else params
    f = np.asarray(sae_encode(sae.config, params, x))
    return f, np.asarray(sae_decode(sae.config, params, f))


def close(got, expected, size: float = 1.0) -> None:
    # A pre-activation within rounding of its threshold may fall on either side: one feature in many at most.
    off = np.abs(got - expected) > 1e-4 * max(size, np.abs(expected).max(initial=0), 1)
    assert off.mean() <= 0.02


@settings(max_examples=12, deadline=None)
@given(**CASES, apply_b_dec=st.booleans())
def test_unit_decoder_rows_scale_features_and_keep_the_reconstruction(architecture, d, f, seed, apply_b_dec):
    sae = random_sae(architecture, d, f, seed, apply_b_dec_to_input=apply_b_dec)
    x = np.random.default_rng(seed).normal(size=(20, d)).astype(np.float32)
    params = fold_decoder_norm(sae.params)
    (before, x_hat), (after, x_hat_after) = run(sae, x), run(sae, x, params)
    norm = np.linalg.norm(sae.params["W_dec"], axis=1)
    np.testing.assert_allclose(np.linalg.norm(params["W_dec"], axis=1), 1, atol=1e-5)
    close(after, before * norm)
    close(x_hat_after, x_hat, np.abs(before).max() * 4)


@settings(max_examples=12, deadline=None)
@given(**CASES, apply_b_dec=st.booleans(), scale=st.floats(0.05, 20))
def test_an_input_scale_is_absorbed(architecture, d, f, seed, apply_b_dec, scale):
    sae = random_sae(architecture, d, f, seed, apply_b_dec_to_input=apply_b_dec)
    x = np.random.default_rng(seed).normal(size=(20, d)).astype(np.float32)
    before, x_hat = run(sae, x * np.float32(scale))
    after, x_hat_after = run(sae, x, fold_input_scale(sae.params, scale))
    close(after, before)
    close(x_hat_after, x_hat / scale, np.abs(x_hat).max() / scale)


@settings(max_examples=12, deadline=None)
@given(**CASES, apply_b_dec=st.booleans())
def test_a_whitening_is_absorbed(architecture, d, f, seed, apply_b_dec):
    sae = random_sae(architecture, d, f, seed, apply_b_dec_to_input=apply_b_dec)
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.normal(size=(d, d)))
    matrix, mean = turn * rng.uniform(0.5, 2, d), rng.normal(size=d)
    inverse = np.linalg.inv(matrix)
    x = rng.normal(size=(20, d)).astype(np.float32)
    before, z_hat = run(sae, ((x - mean) @ matrix).astype(np.float32))
    after, x_hat = run(sae, x, fold_whitening(sae.config, sae.params, mean, matrix, inverse))
    close(after, before)
    close(x_hat, z_hat @ inverse + mean, np.abs(z_hat).max())


def test_a_threshold_that_was_rescaled_already_stays():
    sae = random_sae("jumprelu")
    assert fold_decoder_norm(sae.params, threshold_is_rescaled=True)["threshold"] == pytest.approx(
        sae.params["threshold"]
    )
    norm = np.linalg.norm(sae.params["W_dec"], axis=1)
    assert fold_decoder_norm(sae.params)["threshold"] == pytest.approx(sae.params["threshold"] * norm, rel=1e-5)


def test_a_feature_scale_goes_to_the_decoder():
    sae = random_sae("standard")
    scale = np.linspace(0.5, 2, 20)
    x = np.random.default_rng(1).normal(size=(20, 7)).astype(np.float32)
    f, _ = run(sae, x)
    after, x_hat = run(sae, x, fold_feature_scale(sae.params, scale))
    np.testing.assert_array_equal(after, f)
    np.testing.assert_allclose(x_hat, (f * scale) @ sae.params["W_dec"] + sae.params["b_dec"], rtol=1e-4, atol=1e-4)
