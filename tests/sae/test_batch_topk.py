import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musae_jax.errors import MusaeError
from musae_jax.sae.batch_topk import (
    BatchTopKConfig,
    batch_threshold,
    column_counts,
    fold,
    init_state,
    losses,
    train_step,
    train_steps,
    update,
)
from musae_jax.sae.sae import sae_decode, sae_encode

D, F, N, K = 6, 24, 32, 3
CONFIG = BatchTopKConfig(D, F, K, steps=50, batch_size=N, lr=1e-3, count_tolerance=0.0)
threshold_of = jax.jit(batch_threshold, static_argnums=(1, 3))


def tokens(seed: int = 0, n: int = N, d: int = D) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, d)) * rng.uniform(0.5, 2, d) + rng.normal(size=d)).astype(np.float32)


def some_params(seed: int = 0, d: int = D, f: int = F) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"W_enc": (d, f), "b_enc": (f,), "W_dec_t": (d, f), "b_dec": (d,)}
    return {name: (0.5 * rng.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}


# --- the threshold ----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.sampled_from([1, 5, 40, 200]),
    guess=st.sampled_from([0.0, 0.3, 1.0, 50.0]),
    scale=st.sampled_from([1e-6, 1.0, 1e4]),
)
def test_the_threshold_keeps_what_a_sort_would(seed, count, guess, scale):
    values = (scale * np.random.default_rng(seed).standard_t(3, size=(20, 30))).astype(np.float32)
    threshold = float(threshold_of(values, count, guess, 0.0))
    largest = np.sort(values[values > 0])[::-1]
    np.testing.assert_array_equal(np.sort(values[values > threshold])[::-1], largest[:count])


def test_few_positive_values_are_all_kept():
    values = -np.ones((4, 5), np.float32)
    values[1, 2], values[3, 3] = 2.0, 1e-20
    assert float(threshold_of(values, 3, 0.5, 0.0)) == 0.0
    assert float(threshold_of(-np.ones((4, 5), np.float32), 3, 0.5, 0.0)) == 0.0


def test_ties_keep_no_more_than_asked():
    values = np.array([[3.0, 2.0, 2.0, 2.0, 1.0]], np.float32)
    assert (values > float(threshold_of(values, 2, 0.0, 0.0))).sum() == 1


def test_tolerance_is_kept_and_values_that_are_not_numbers_end_the_search():
    values = np.random.default_rng(0).normal(size=(256, 100)).astype(np.float32)
    kept = int((values > float(threshold_of(values, 1000, 0.1, 0.01))).sum())
    assert 990 <= kept <= 1010
    values[3, 4] = np.nan
    threshold_of(values, 1000, 0.1, 0.0).block_until_ready()
    threshold_of(np.full((8, 8), np.nan, np.float32), 4, 0.1, 0.0).block_until_ready()


@pytest.mark.parametrize("n", [1, 100, 128, 384])
def test_column_counts(n):
    mask = np.random.default_rng(n).random((n, 7)) < 0.9
    np.testing.assert_array_equal(column_counts(jnp.asarray(mask)), mask.sum(0))


# --- the loss against float64 -----------------------------------------------------------------------------------------


def naive_loss(params, x, dead, config, fixed=None):
    """The definition, with sorts, in float64. `fixed` = (kept, aux kept, target): their values at another point."""
    pre = (x - params["b_dec"]) @ params["W_enc"] + params["b_enc"]
    acts = np.maximum(pre, 0.0)
    if fixed is None:
        kept = acts > np.sort(acts.reshape(-1))[-config.k * len(x) - 1]
        candidates = np.where(dead, acts, 0.0)
        least = np.sort(candidates, axis=1)[:, -min(config.k_aux_used, acts.shape[1])][:, None]
        aux_kept = (candidates >= least) & (candidates > 0)
    else:
        kept, aux_kept, target = fixed
    W_dec = params["W_dec_t"].T
    error = x - (np.where(kept, pre, 0.0) @ W_dec + params["b_dec"])
    if fixed is None:
        target = error
    fvu = (error**2).sum() / ((x - x.mean(0)) ** 2).sum()
    guess = np.where(aux_kept, pre, 0.0) @ W_dec
    auxk = ((target - guess) ** 2).sum() / ((target - target.mean(0)) ** 2).sum()
    return fvu, auxk, (kept, aux_kept, target)


@pytest.mark.parametrize("k_aux", [2, 50])
def test_loss_and_gradients_are_those_of_the_definition(k_aux):
    config = dataclasses.replace(CONFIG, k_aux=k_aux, auxk_alpha=0.5)
    params, x = some_params(1), tokens(2)
    dead = np.random.default_rng(3).random(F) < 0.4
    wide = {name: value.astype(np.float64) for name, value in params.items()}
    fvu, auxk, fixed = naive_loss(wide, x.astype(np.float64), dead, config)
    loss = lambda params: losses(config, params, jnp.asarray(x), jnp.float32(0.0), jnp.asarray(dead))  # noqa: E731
    (value, parts), grads = jax.value_and_grad(loss, has_aux=True)(params)
    assert float(parts["fvu"]) == pytest.approx(fvu, rel=1e-5)
    assert float(parts["auxk"]) == pytest.approx(auxk, rel=1e-5)
    assert float(value) == pytest.approx(fvu + 0.5 * auxk, rel=1e-5)
    assert float(parts["l0"]) == K
    np.testing.assert_array_equal(parts["fired"], fixed[0].any(0))
    step = 1e-6
    for name in params:
        numeric = np.zeros(params[name].shape)
        for index in np.ndindex(numeric.shape):
            sides = []
            for sign in (1, -1):
                moved = {**wide, name: wide[name].copy()}
                moved[name][index] += sign * step
                sides.append(np.dot([1.0, 0.5], naive_loss(moved, x.astype(np.float64), dead, config, fixed)[:2]))
            numeric[index] = (sides[0] - sides[1]) / (2 * step)
        np.testing.assert_allclose(grads[name], numeric, atol=2e-5 * np.abs(numeric).max(), err_msg=name)


def test_auxk_moves_dead_latents_only_and_reaches_their_encoder():
    config = dataclasses.replace(CONFIG, k_aux=4)
    params, x = some_params(1), tokens(2)
    params["b_enc"][:8] = -3.0
    pre = (x - params["b_dec"]) @ params["W_enc"] + params["b_enc"]
    threshold = float(batch_threshold(jnp.asarray(pre), K * N, jnp.float32(0.0)))
    dead = ~(pre > threshold).any(0)
    assert dead.any() and (pre[:, dead] > 0).any()
    auxk = lambda params: losses(config, params, jnp.asarray(x), jnp.float32(0.0), jnp.asarray(dead))[1]["auxk"]  # noqa: E731
    grads = jax.grad(auxk)(params)
    assert np.abs(grads["W_enc"])[:, dead].max() > 0
    assert not np.asarray(grads["W_enc"])[:, ~dead].any()
    assert not np.asarray(grads["W_dec_t"])[:, ~dead].any()
    # No part of b_dec's gradient comes through a decoder bias: all of it is what the encoder subtracts.
    np.testing.assert_allclose(grads["b_dec"], -(params["W_enc"] @ grads["b_enc"]), rtol=1e-4, atol=1e-7)


# --- the step ---------------------------------------------------------------------------------------------------------


def test_a_step_is_pure_and_jit_changes_nothing():
    state = init_state(CONFIG, jax.random.key(0), tokens().mean(0), 1.7)
    before = jax.tree.map(np.array, state)
    plain, plain_metrics = jax.tree.map(np.array, update(CONFIG, state, tokens()))
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, state))
    jitted, metrics = train_step(CONFIG, state, tokens())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), plain, jitted)
    np.testing.assert_allclose(plain_metrics["loss"], metrics["loss"], rtol=1e-5)
    assert metrics.keys() == plain_metrics.keys()


def test_many_steps_in_one_call_are_the_same_steps():
    stack = np.stack([tokens(seed) for seed in range(4)])
    one, many = (init_state(CONFIG, jax.random.key(0)) for _ in range(2))
    rows = []
    for batch in stack:
        one, metrics = train_step(CONFIG, one, batch)
        rows.append(float(metrics["fvu"]))
    many, metrics = train_steps(CONFIG, many, stack)
    np.testing.assert_allclose(metrics["fvu"], rows, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), one, many)


def test_the_decoder_keeps_unit_rows_and_its_gradient_has_nothing_along_them():
    state = init_state(CONFIG, jax.random.key(0))
    W = np.array(state.params["W_dec_t"])
    np.testing.assert_array_equal(W, state.params["W_enc"])  # tied at the start
    state, _ = train_step(CONFIG, state, tokens())
    along = (np.asarray(state.adam.mu["W_dec_t"]) * W).sum(0)
    assert np.abs(along).max() < 1e-6 * np.abs(state.adam.mu["W_dec_t"]).max() + 1e-9
    np.testing.assert_allclose(np.linalg.norm(state.params["W_dec_t"], axis=0), 1, atol=1e-6)


def test_idle_latents_are_counted_in_tokens_and_die():
    config = dataclasses.replace(CONFIG, dead_after_tokens=3 * N)
    state = init_state(config, jax.random.key(0))
    params = {**state.params, "b_enc": state.params["b_enc"].at[5].set(-100.0)}
    state = state.replace(params=params)
    dead = []
    for seed in range(4):
        state, metrics = train_step(config, state, tokens(seed))
        dead.append(float(metrics["dead"]))
        assert int(state.idle[5]) == (seed + 1) * N
    assert int(state.idle.min()) == 0
    assert dead[2] == 0.0 and dead[3] >= 1 / F
    assert float(metrics["auxk"]) > 0


def test_a_batch_that_is_not_finite_is_skipped_and_counted():
    state = init_state(CONFIG, jax.random.key(0))
    state, _ = train_step(CONFIG, state, tokens())
    before = jax.tree.map(np.array, state)
    bad = tokens(1)
    bad[3, 2] = np.nan
    state, metrics = train_step(CONFIG, state, bad)
    assert int(metrics["skipped"]) == 1
    assert int(state.step) == 2
    for name in ("params", "adam", "idle", "threshold", "threshold_mean"):
        jax.tree.map(np.testing.assert_array_equal, getattr(before, name), getattr(state, name))
    state, metrics = train_step(CONFIG, state, tokens(2))
    assert int(metrics["skipped"]) == 1
    assert np.isfinite(float(metrics["loss"]))


def test_folding_changes_nothing():
    x = 5 * tokens(n=200) + 40
    center, scale = x.mean(0), float(x.std())
    config = dataclasses.replace(CONFIG, batch_size=200)
    state = init_state(config, jax.random.key(0), center, scale)
    for _ in range(30):
        state, _ = train_step(config, state, x)
    sae = fold(config, state, {"hook_name": "h"})
    small = (x - center) / scale
    params = {name: np.asarray(value, np.float64) for name, value in state.params.items()}
    pre = (small - params["b_dec"]) @ params["W_enc"] + params["b_enc"]
    threshold = float(state.threshold_mean / state.threshold_weight)
    f = np.where(pre > threshold, pre, 0.0)
    x_hat = (f @ params["W_dec_t"].T + params["b_dec"]) * scale + center
    folded = np.asarray(sae_encode(sae.config, sae.params, x))
    sure = np.abs(pre - threshold) > 1e-4
    np.testing.assert_allclose(np.where(sure, folded, 0), np.where(sure, f, 0) * scale, atol=1e-3)
    rows = sure.all(1)
    np.testing.assert_allclose(sae_decode(sae.config, sae.params, folded)[rows], x_hat[rows], rtol=1e-5)
    assert sae.config.architecture == "jumprelu" and sae.config.k == K and sae.config.hook == "h"


def test_the_running_threshold_is_unbiased_from_the_first_step():
    state = init_state(CONFIG, jax.random.key(0))
    state, metrics = train_step(CONFIG, state, tokens())
    sae = fold(CONFIG, state)
    assert float(sae.params["threshold"][0]) == pytest.approx(float(metrics["threshold"]), rel=1e-5)


def test_training_finds_a_planted_dictionary():
    d, f, k = 32, 48, 3
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(f, d))
    truth /= np.linalg.norm(truth, axis=1, keepdims=True)

    def batch():
        weights = np.zeros((512, f))
        for row in weights:
            row[rng.choice(f, k, replace=False)] = rng.uniform(0.5, 1.5, k)
        return (weights @ truth + 7.0).astype(np.float32)

    data = [batch() for _ in range(20)]
    center, scale = np.mean(data, axis=(0, 1)), np.std(data[0])
    config = BatchTopKConfig(d, f, k, steps=1000, batch_size=512, lr=1e-2)
    state = init_state(config, jax.random.key(1), center, scale)
    for _ in range(50):
        state, metrics = train_steps(config, state, np.stack(data))
    sae = fold(config, state)
    cosines = truth @ np.asarray(sae.params["W_dec"]).T
    assert (cosines.max(1) > 0.98).mean() > 0.9
    x = batch()
    encoded = sae_encode(sae.config, sae.params, x)
    fvu = np.sum((x - sae_decode(sae.config, sae.params, encoded)) ** 2) / np.sum((x - x.mean(0)) ** 2)
    assert fvu < 0.05
    assert abs(float((encoded > 0).sum(1).mean()) - k) < 0.5
    assert float(metrics["fvu"][-1]) < 0.05


def test_schedule_and_defaults():
    assert BatchTopKConfig(256, 2048, steps=30_000).lr_used == pytest.approx(2e-4 * np.sqrt(8))
    assert BatchTopKConfig(256, 2048, steps=10).lr_used == pytest.approx(2e-3 * np.sqrt(8))
    config = BatchTopKConfig(256, 2048, steps=1000, batch_size=100)
    assert config.threshold_decay_used == pytest.approx(0.98)
    rates = np.asarray(jax.vmap(config.learning_rate)(jnp.arange(1000)))
    assert rates.max() == pytest.approx(2e-4 * np.sqrt(8) * np.sqrt(30), rel=1e-5)
    assert rates[0] == pytest.approx(rates.max() / 50, rel=1e-4)
    assert (rates[50:800] == rates.max()).all()
    assert rates[999] == pytest.approx(rates.max() / 200, rel=1e-4)
    assert (config.k_aux_used, config.dead_after_used) == (128, 10_000)
    with pytest.raises(MusaeError, match="lower k"):
        BatchTopKConfig(8, 16, 17)
    with pytest.raises(MusaeError, match="steps"):
        BatchTopKConfig(8, 16, 4, steps=0)
