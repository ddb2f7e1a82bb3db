"""What training must achieve on sums of planted directions; wrong gradients that a loss curve hides show here."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musae_jax.sae.batch_topk import BatchTopKConfig
from musae_jax.sae.gated import GatedConfig
from musae_jax.sae.jumprelu import JumpReLUConfig
from musae_jax.sae.recipe import Recipe
from musae_jax.sae.relu import ReLUConfig
from musae_jax.sae.sae import sae_decode, sae_encode
from musae_jax.sae.step import fold, init_state, train_steps
from musae_jax.sae.topk import TopKConfig

D, F, K, N = 32, 48, 3, 512
SHARED = {"steps": 1000, "batch_size": N, "lr": 1e-2}
RNG = np.random.default_rng(0)
TRUTH = RNG.normal(size=(F, D))
TRUTH /= np.linalg.norm(TRUTH, axis=1, keepdims=True)


def batch(preference: np.ndarray | float = 0.0) -> np.ndarray:
    """Tokens [N, D] of K directions each, drawn alike or with log-odds `preference` [F]."""
    chosen = np.argpartition(-RNG.gumbel(size=(N, F)) - preference, K, axis=1)[:, :K]
    weights = np.zeros((N, F))
    np.put_along_axis(weights, chosen, RNG.uniform(0.5, 1.5, chosen.shape), axis=1)
    return (weights @ TRUTH + 7.0).astype(np.float32)


DATA = np.stack([batch() for _ in range(20)])
X = batch()


def trained(recipe: Recipe, data: np.ndarray = DATA, **knobs: float):
    """(share of directions found, FVU and mean L0 on fresh tokens, parameters before, state after, last metrics)."""
    state = init_state(recipe, jax.random.key(1), data.mean((0, 1)), data[0].std())
    state = state.replace(knobs={**state.knobs, **{name: jnp.float32(value) for name, value in knobs.items()}})
    before = {name: np.array(value) for name, value in state.params.items()}
    for _ in range(recipe.steps // len(data)):
        state, metrics = train_steps(recipe, state, data)
    sae = fold(recipe, state)
    f = np.asarray(sae_encode(sae.config, sae.params, X))
    x_hat = np.asarray(sae_decode(sae.config, sae.params, f))
    fvu = np.sum((X - x_hat) ** 2) / np.sum((X - X.mean(0)) ** 2)
    found = ((TRUTH @ np.asarray(sae.params["W_dec"]).T).max(1) > 0.95).mean()
    return found, fvu, (f > 0).sum(1).mean(), before, state, {name: value[-1] for name, value in metrics.items()}


@pytest.mark.parametrize(
    ("recipe", "worst_fvu"),
    [
        (BatchTopKConfig(D, F, K, **SHARED), 0.07),
        (TopKConfig(D, F, K, **SHARED), 0.07),
    ],
    ids=["batch_topk", "topk"],
)
def test_the_directions_are_found(recipe, worst_fvu):
    found, fvu, l0, _, _, metrics = trained(recipe)
    assert found > 0.85
    assert fvu < worst_fvu
    assert abs(l0 - K) < 0.5
    assert float(metrics["fvu"]) < worst_fvu


def test_jumprelu_reaches_the_wanted_l0_from_far_away_by_moving_its_thresholds():
    recipe = JumpReLUConfig(D, F, K, threshold_init=0.2, **SHARED)  # L0 is about 20 at the start
    found, fvu, l0, before, state, metrics = trained(recipe)
    assert found > 0.8
    assert fvu < 0.1
    assert abs(l0 - K) < 0.5
    moved = np.asarray(state.params["log_threshold"]) - before["log_threshold"]
    assert (np.abs(moved) > 0.1).mean() > 0.9
    assert float(metrics["threshold_min"]) < float(metrics["threshold"]) < float(metrics["threshold_max"])
    _, _, l0, before, state, _ = trained(recipe, threshold_lr=1e-9)
    np.testing.assert_allclose(state.params["log_threshold"], before["log_threshold"], atol=1e-5)
    assert l0 > 2 * K


@pytest.mark.parametrize("kind", [ReLUConfig, GatedConfig], ids=["relu", "gated"])
def test_more_l1_is_fewer_features(kind):
    results = [trained(kind(D, F, l1_coefficient=l1, **{**SHARED, "steps": 400})) for l1 in (0.3, 3.0)]
    (_, fvu, l0, *_), (_, fvu_sparse, l0_sparse, *_) = results
    assert l0_sparse < 0.7 * l0
    assert fvu < fvu_sparse < 0.8


def test_the_first_matryoshka_group_alone_reconstructs_more_than_the_same_latents_without():
    shares = (0.25, 0.75)
    nested = BatchTopKConfig(D, F, K, group_fractions=shares, **SHARED)
    data = np.stack(
        [batch(np.linspace(3, -1, F)) for _ in range(20)]
    )  # some directions are frequent: it shall take those
    errors = []
    for recipe in (nested, dataclasses.replace(nested, group_fractions=())):
        sae = fold(recipe, trained(recipe, data)[4])
        f = np.array(sae_encode(sae.config, sae.params, data[0]))
        f[:, round(F * shares[0]) :] = 0
        errors.append(((data[0] - np.asarray(sae_decode(sae.config, sae.params, f))) ** 2).sum())
    assert errors[0] < 0.8 * errors[1]
