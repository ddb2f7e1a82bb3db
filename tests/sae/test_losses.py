"""Loss and gradient of every architecture against the definitions, written naively and differentiated in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from some_recipes import GROUPS, RECIPES, F, K, N, some_params, tokens

from musae_jax.sae.step import losses, preactivations

KNOBS = {"k": K, "auxk_alpha": 0.5, "l1_coefficient": 0.3, "l0_coefficient": 0.7}


def chosen(recipe, pre: np.ndarray, params) -> np.ndarray:
    """Which activations are kept, by sorting; bool [N, F]."""
    acts = np.maximum(pre, 0.0)
    if recipe.architecture == "batch_topk":
        return acts > np.sort(acts.reshape(-1))[-K * len(acts) - 1]
    if recipe.architecture == "topk":
        return (acts >= np.sort(acts, axis=1)[:, [-K]]) & (acts > 0)
    if recipe.architecture == "jumprelu":
        return pre > np.exp(params["log_threshold"])
    return pre > 0


def naive(recipe, params, x, dead, kept, aux_kept, target, f_moved=0.0):
    """(loss, fvu, auxk, residual), all definitions spelled out; what is chosen, and AuxK's target, are constants."""
    W_dec = params["W_dec"]
    pre = (x - params["b_dec"]) @ params["W_enc_t"].T + params["b_enc"]
    f = jnp.where(kept, pre, 0.0) + f_moved
    if recipe.architecture == "gated":
        magnitude = (x - params["b_dec"]) @ params["W_enc_t"].T * jnp.exp(params["r_mag"]) + params["b_mag"]
        f = jnp.where(kept & (magnitude > 0), magnitude, 0.0)
    variance = ((x - x.mean(0)) ** 2).sum()
    total = variance if recipe.loss == "fvu" else len(x)
    squares = []
    for last in range(1, len(recipe.group_fractions or (1,)) + 1):
        end = round(F * sum((recipe.group_fractions or (1,))[:last]))
        x_hat = f[:, :end] @ W_dec[:end] + params["b_dec"]
        squares.append(((x - x_hat) ** 2).sum())
    loss = sum(squares) / len(squares) / total
    if recipe.architecture == "gated":
        gate = jnp.where(pre > 0, pre, 0.0)
        still = {name: jax.lax.stop_gradient(params[name]) for name in ("W_dec", "b_dec")}
        loss += ((x - gate @ still["W_dec"] - still["b_dec"]) ** 2).sum() / total
        loss += KNOBS["l1_coefficient"] * gate.sum() / total
    elif recipe.l1_coefficient:
        loss += KNOBS["l1_coefficient"] * f.sum() / total
    if recipe.architecture == "jumprelu":
        loss += KNOBS["l0_coefficient"] * (kept.sum() / len(x) / K - 1) ** 2
    guess = jnp.where(aux_kept, pre, 0.0) @ W_dec
    auxk = ((target - guess) ** 2).sum() / ((target - target.mean(0)) ** 2).sum()
    if recipe.auxk_alpha:
        loss += KNOBS["auxk_alpha"] * auxk
    return loss, (squares[-1] / variance, auxk, x - x_hat)


def reference(recipe, params, x, dead):
    """(loss, fvu, auxk, kept, gradients) in float64."""
    with jax.enable_x64(True):
        wide = {name: np.asarray(value, np.float64) for name, value in params.items()}
        x = np.asarray(x, np.float64)
        pre = (x - wide["b_dec"]) @ wide["W_enc_t"].T + wide["b_enc"]
        kept = chosen(recipe, pre, wide)
        candidates = np.where(dead, np.maximum(pre, 0.0), 0.0)
        least = np.sort(candidates, axis=1)[:, -min(recipe.k_aux_used, F)][:, None]
        aux_kept = (candidates >= least) & (candidates > 0)

        def loss(params, f_moved, target):
            return naive(recipe, params, x, dead, kept, aux_kept, target, f_moved)

        _, (_, _, target) = loss(wide, 0.0, x)
        graded = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
        (value, (fvu, auxk, _)), (grads, by_f) = graded(wide, np.zeros_like(pre), target)
        grads = {name: np.array(grad) for name, grad in grads.items()}
        if recipe.architecture == "jumprelu":  # equations 11 and 12 of the paper, then the chain rule through the log
            threshold = np.exp(wide["log_threshold"])
            kernel = np.abs((pre - threshold) / recipe.bandwidth) < 0.5
            assert kernel.any()
            by_threshold = (np.asarray(by_f) * -(threshold / recipe.bandwidth) * kernel).sum(0)
            by_l0 = KNOBS["l0_coefficient"] * 2 * (kept.sum() / len(x) / K - 1) / K
            by_threshold -= by_l0 * kernel.sum(0) / recipe.bandwidth / len(x)
            grads["log_threshold"] = by_threshold * threshold
    return float(value), float(fvu), float(auxk), kept, grads


VARIANTS = {
    **RECIPES,
    "few_aux": dataclasses.replace(RECIPES["batch_topk"], k_aux=2),
    "topk_l1_mse": dataclasses.replace(RECIPES["topk"], l1_coefficient=1.0, loss="mse", auxk_alpha=0.0),
    "matryoshka_topk": dataclasses.replace(RECIPES["topk"], group_fractions=GROUPS, k_aux=2),
    "matryoshka_jumprelu": dataclasses.replace(RECIPES["jumprelu"], group_fractions=GROUPS),
    "matryoshka_relu": dataclasses.replace(RECIPES["relu"], group_fractions=GROUPS),
    "matryoshka_gated": dataclasses.replace(RECIPES["gated"], group_fractions=GROUPS),
}


@pytest.mark.parametrize(
    ("name", "filtered"),
    [*((name, False) for name in VARIANTS), *((name, True) for name in ("batch_topk", "topk", "jumprelu", "gated"))],
)
def test_loss_and_gradients_are_those_of_the_definition(name, filtered):
    recipe = VARIANTS[name]
    params, x = some_params(recipe, 1), tokens(2)
    keep = np.ones(N, bool)
    dead = np.random.default_rng(3).random(F) < 0.4
    if filtered:
        keep[[3, 10, 31]] = False
        x[~keep] = 0
    value, fvu, auxk, kept, expected = reference(recipe, params, x[keep], dead)
    memory, knobs = recipe.memory(), {name: jnp.float32(value) for name, value in KNOBS.items()}
    graded = jax.jit(
        jax.value_and_grad(
            lambda params: losses(recipe, params, x, knobs, memory, dead, keep if filtered else None), has_aux=True
        )
    )
    (loss, (parts, _)), grads = graded(params)
    assert float(loss) == pytest.approx(value, rel=1e-5)
    assert float(parts["fvu"]) == pytest.approx(fvu, rel=1e-5)
    assert float(parts["auxk"]) == pytest.approx(auxk, rel=1e-5)
    if recipe.architecture != "gated":
        assert float(parts["l0"]) == pytest.approx(kept.sum() / keep.sum(), rel=1e-6)
        np.testing.assert_array_equal(parts["fired"], kept.any(0))
    assert grads.keys() == expected.keys()
    for name, grad in grads.items():
        assert np.abs(expected[name]).max() > 1e-3, name
        np.testing.assert_allclose(grad, expected[name], atol=2e-5 * np.abs(expected[name]).max(), err_msg=name)


@pytest.mark.parametrize("auxk", [True, False])
@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("name", [name for name, recipe in VARIANTS.items() if recipe.choose])
def test_a_list_of_the_active_latents_gives_the_same_loss_and_gradients(name, filtered, auxk):
    recipe = VARIANTS[name]
    params, x = some_params(recipe, 1), tokens(2)
    keep = jnp.arange(N) % 7 != 3 if filtered else None
    if filtered:
        x[~np.asarray(keep)] = 0
    dead = jnp.isin(jnp.arange(F), jnp.array([4, 17])) if auxk else None
    memory, knobs = recipe.memory(), {name: jnp.float32(value) for name, value in KNOBS.items()}
    count = N if keep is None else int(keep.sum())

    def listed(params):
        pre = jax.lax.stop_gradient(preactivations(params, x, keep))
        active, memory_then = recipe.choose(pre, knobs, memory, count)
        return losses(recipe, params, x, knobs, memory_then, dead, keep, active)

    def dense(params):
        return losses(recipe, params, x, knobs, memory, dead, keep)

    (loss, (parts, remembered)), grads = jax.jit(jax.value_and_grad(listed, has_aux=True))(params)
    (expected, (expected_parts, expected_memory)), expected_grads = jax.value_and_grad(dense, has_aux=True)(params)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert parts.keys() == expected_parts.keys() and parts["fired"].sum() > F / 2
    np.testing.assert_array_equal(parts["fired"], expected_parts["fired"])
    for name, part in parts.items():
        np.testing.assert_allclose(part, expected_parts[name], rtol=1e-5, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), remembered, expected_memory)
    for name, grad in grads.items():
        most = np.abs(expected_grads[name]).max()
        assert most > 1e-3
        np.testing.assert_allclose(grad, expected_grads[name], atol=2e-5 * most, err_msg=name)


@pytest.mark.parametrize("name", ["batch_topk", "topk", "jumprelu"])
def test_auxk_moves_dead_latents_only_and_reaches_their_encoder(name):
    recipe = dataclasses.replace(RECIPES[name], k_aux=4)
    params, x = some_params(recipe, 1), tokens(2)
    params["b_enc"][:8] -= 2.0
    pre = (x - params["b_dec"]) @ params["W_enc_t"].T + params["b_enc"]
    dead = ~chosen(recipe, pre, params).any(0)
    assert dead.any() and (pre[:, dead] > 0).any()
    knobs = {name: jnp.float32(value) for name, value in KNOBS.items()}
    auxk = jax.grad(lambda params: losses(recipe, params, x, knobs, recipe.memory(), jnp.asarray(dead))[1][0]["auxk"])
    grads = auxk(params)
    assert np.abs(grads["W_enc_t"])[dead].max() > 0
    assert not np.asarray(grads["W_enc_t"])[~dead].any()
    assert not np.asarray(grads["W_dec"])[~dead].any()
    # No part of b_dec's gradient comes through a decoder bias: all of it is what the encoder subtracts.
    np.testing.assert_allclose(grads["b_dec"], -(params["W_enc_t"].T @ grads["b_enc"]), rtol=1e-4, atol=1e-7)


def test_the_l0_penalty_moves_thresholds_only():
    recipe = RECIPES["jumprelu"]
    params, x = some_params(recipe, 1), tokens(2)

    def loss(params, weight):
        knobs = {**KNOBS, "l0_coefficient": weight}
        return losses(recipe, params, x, knobs, recipe.memory())[0]

    with_it, without = (jax.grad(loss)(params, weight) for weight in (1.0, 0.0))
    assert np.abs(with_it["log_threshold"] - without["log_threshold"]).max() > 1e-2
    for name in ("W_enc_t", "b_enc", "W_dec", "b_dec"):
        np.testing.assert_allclose(with_it[name], without[name], atol=1e-7)
