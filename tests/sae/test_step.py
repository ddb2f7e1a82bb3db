import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from some_recipes import RECIPES, SHARED, D, F, K, N, tokens

from musae_jax.errors import MusaeError
from musae_jax.sae.batch_topk import BatchTopKConfig
from musae_jax.sae.gated import GatedConfig
from musae_jax.sae.jumprelu import JumpReLUConfig
from musae_jax.sae.relu import ReLUConfig
from musae_jax.sae.step import (
    fold,
    group_key,
    group_member,
    group_recipe,
    init_state,
    norm_filter,
    stack_states,
    train_step,
    train_steps,
    update,
)
from musae_jax.sae.topk import TopKConfig

CONFIG = RECIPES["batch_topk"]


@pytest.mark.parametrize("name", ["matryoshka", "gated"])
def test_a_step_is_pure_and_jit_changes_nothing(name):
    recipe = RECIPES[name]
    state = init_state(recipe, jax.random.key(0), tokens().mean(0), 1.7)
    before = jax.tree.map(np.array, state)
    plain, plain_metrics = jax.tree.map(np.array, update(recipe, state, tokens()))
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, state))
    jitted, metrics = train_step(recipe, state, tokens())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), plain, jitted)
    np.testing.assert_allclose(plain_metrics["loss"], metrics["loss"], rtol=1e-5)
    assert metrics.keys() == plain_metrics.keys()
    assert (np.asarray(jitted.params["W_enc_t"]) != before.params["W_enc_t"]).mean() > 0.5
    np.testing.assert_allclose(np.linalg.norm(jitted.params["W_dec"], axis=1), 1, atol=1e-6)
    assert ("fvu_first_group" in metrics) == (name == "matryoshka")


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


@pytest.mark.parametrize("name", ["topk", "matryoshka"])
def test_walking_a_list_of_active_latents_trains_the_same_sae(name):
    recipe = dataclasses.replace(RECIPES[name], dead_after_tokens=5 * N, k_aux=2)
    recipes = [dataclasses.replace(recipe, sparse=sparse) for sparse in (False, True)]
    stack = np.stack([tokens(seed) for seed in range(30)])

    def start(recipe):
        state = init_state(recipe, jax.random.key(0))  # two latents begin so far down that they die
        return state.replace(params={**state.params, "b_enc": state.params["b_enc"].at[jnp.array([5, 9])].set(-2.5)})

    dense, metrics = train_steps(recipes[0], start(recipe), stack)
    listed, metrics_listed = train_steps(recipes[1], start(recipe), stack)
    assert np.asarray(metrics["dead"]).max() >= 2 / F and np.asarray(metrics["auxk"]).max() > 0.5
    np.testing.assert_allclose(metrics["loss"], metrics_listed["loss"], rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-4), dense, listed)
    # A group of SAEs walks lists too, one member after the other.
    several = [dataclasses.replace(recipes[1], lr=lr) for lr in (1e-3, 2e-3)]
    group, _ = train_steps(group_recipe(several), stack_states([start(one) for one in several]), stack)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, rtol=1e-3, atol=1e-5), group.params, listed.params)


def test_the_decoder_gradient_has_nothing_along_its_columns():
    state = init_state(CONFIG, jax.random.key(0))
    W = np.array(state.params["W_dec"])
    np.testing.assert_array_equal(W, state.params["W_enc_t"])  # tied at the start
    state, _ = train_step(CONFIG, state, tokens())
    along = (np.asarray(state.adam.mu["W_dec"]) * W).sum(1)
    assert np.abs(along).max() < 1e-6 * np.abs(state.adam.mu["W_dec"]).max() + 1e-9


def test_kaiming_weights_are_uniform_and_independent():
    recipe = TopKConfig(40, 300, init="kaiming")
    params = init_state(recipe, jax.random.key(0)).params
    assert np.abs(params["W_enc_t"]).max() == pytest.approx(np.sqrt(6 / 300), rel=1e-2)
    np.testing.assert_allclose(np.linalg.norm(params["W_dec"], axis=1), 1, atol=1e-6)
    assert abs(np.corrcoef(params["W_enc_t"].ravel(), params["W_dec"].ravel())[0, 1]) < 0.05


def test_idle_latents_are_counted_in_tokens_and_die():
    config = dataclasses.replace(CONFIG, dead_after_tokens=3 * N)
    state = init_state(config, jax.random.key(0))
    state = state.replace(params={**state.params, "b_enc": state.params["b_enc"].at[5].set(-100.0)})
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
    for name in ("params", "adam", "idle", "memory"):
        jax.tree.map(np.testing.assert_array_equal, getattr(before, name), getattr(state, name))
    state, metrics = train_step(CONFIG, state, tokens(2))
    assert int(metrics["skipped"]) == 1
    assert np.isfinite(float(metrics["loss"]))


def test_tokens_of_high_norm_take_no_part_and_are_counted():
    plain = dataclasses.replace(CONFIG, auxk_alpha=0.0)
    recipe = dataclasses.replace(plain, max_norm=5.0)
    loud = np.r_[tokens(n=N - 2), [[1e4] * D, [np.inf] * D]].astype(np.float32)
    np.testing.assert_array_equal(norm_filter(5.0, loud), [True] * (N - 2) + [False] * 2)
    with_filter, metrics = train_step(recipe, init_state(recipe, jax.random.key(0)), loud)
    assert int(metrics["filtered"]) == 2 and int(metrics["skipped"]) == 0
    without, expected = train_step(plain, init_state(plain, jax.random.key(0)), loud[:-2])
    for name in ("loss", "fvu", "l0", "grad_norm", "threshold"):
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), with_filter.adam.mu, without.adam.mu)
    assert int(with_filter.idle.max()) in (0, N - 2)
    with_filter, metrics = train_step(recipe, with_filter, loud)
    assert int(metrics["filtered"]) == 4


# --- groups -----------------------------------------------------------------------------------------------------------

AUX = {**SHARED, "dead_after_tokens": 2 * N}
GROUPS = {
    "batch_topk": [
        BatchTopKConfig(D, F, 3, count_tolerance=0.0, **AUX),
        BatchTopKConfig(D, F, 5, count_tolerance=0.0, seed=1, auxk_alpha=0.5, **{**AUX, "lr": 3e-3}),
    ],
    "topk": [TopKConfig(D, F, 3, auxk_alpha=0.0, **AUX), TopKConfig(D, F, 6, auxk_alpha=0.0, seed=2, **AUX)],
    "jumprelu": [
        JumpReLUConfig(D, F, 3, auxk_alpha=0.0, **AUX),
        JumpReLUConfig(D, F, 4, auxk_alpha=0.0, l0_coefficient=3.0, threshold_lr=0.1, **AUX),
    ],
    "relu": [ReLUConfig(D, F, l1_coefficient=0.1, **AUX), ReLUConfig(D, F, l1_coefficient=2.0, seed=3, **AUX)],
}


@pytest.mark.parametrize("name", GROUPS)
def test_a_group_is_its_members_trained_alone(name):
    recipes = GROUPS[name]
    assert len({group_key(recipe) for recipe in recipes}) == 1
    center, stack = tokens().mean(0), np.stack([tokens(seed) for seed in range(4)])
    alone = []
    for recipe in recipes:
        state = init_state(recipe, jax.random.key(recipe.seed), center, 1.3)
        for batch in stack:
            state, metrics = train_step(recipe, state, batch)
        alone.append((state, metrics))
    states = [init_state(recipe, jax.random.key(recipe.seed), center, 1.3) for recipe in recipes]
    group = stack_states(states)
    for batch in stack:
        group, metrics = train_step(group_recipe(recipes), group, batch)
    assert float(np.max(metrics["dead"])) > 0  # so that AuxK, where there is one, took part
    for number, (state, expected) in enumerate(alone):
        for key, value in expected.items():
            np.testing.assert_allclose(metrics[key][number], value, rtol=2e-4, atol=1e-5, err_msg=key)
        one = group_member(group, number)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), one, state)
        folded, again = fold(recipes[number], one), fold(recipes[number], state)
        assert folded.config == again.config
    assert not np.allclose(alone[0][0].params["W_dec"], alone[1][0].params["W_dec"], atol=1e-3)


def test_members_in_turn_or_under_vmap_are_the_same(monkeypatch):
    """CPUs take the first way, accelerators the second."""
    recipes = GROUPS["batch_topk"]
    state = stack_states([init_state(recipe, jax.random.key(recipe.seed)) for recipe in recipes])
    state = state.replace(idle=state.idle.at[1, :5].set(10**6))  # AuxK takes part
    outcomes = []
    for backend in ("cpu", "tpu"):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        outcomes.append(jax.jit(lambda state: update(group_recipe(recipes), state, tokens()))(state))
    (in_turn, metrics), (vmapped, expected) = outcomes
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), metrics, expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), in_turn.adam.mu, vmapped.adam.mu)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), in_turn.memory, vmapped.memory)
    np.testing.assert_array_equal(in_turn.idle, vmapped.idle)


def test_what_cannot_share_a_step_is_not_grouped():
    base = BatchTopKConfig(D, F, 3)
    alike = BatchTopKConfig(D, F, 9, lr=1.0, seed=4, auxk_alpha=1.0)
    assert group_key(base) == group_key(alike)
    assert (group_recipe([base, alike]).k, group_recipe([base, alike]).lr) == (9, 1.0)
    others = [
        BatchTopKConfig(D, F + 1, 3),
        BatchTopKConfig(D, F, 3, auxk_alpha=0.0),
        BatchTopKConfig(D, F, 3, center="none"),
        BatchTopKConfig(D, F, 3, l1_coefficient=1.0),
        BatchTopKConfig(D, F, 3, group_fractions=(0.5, 0.5)),
        TopKConfig(D, F, 3),
    ]
    assert len({group_key(recipe) for recipe in [base, *others]}) == 7


# --- the recipe -------------------------------------------------------------------------------------------------------


def test_schedule_and_defaults():
    assert BatchTopKConfig(256, 2048, steps=30_000).lr_used == pytest.approx(2e-4 * np.sqrt(8))
    assert BatchTopKConfig(256, 2048, steps=10).lr_used == pytest.approx(2e-3 * np.sqrt(8))
    config = BatchTopKConfig(256, 2048, steps=1000, batch_size=100)
    assert config.threshold_decay_used == pytest.approx(0.98)
    assert config.lr_used == pytest.approx(2e-4 * np.sqrt(8) * np.sqrt(30), rel=1e-5)
    shares = np.asarray(jax.vmap(config.schedule)(jnp.arange(1000)))
    assert shares[0] == pytest.approx(1 / 50, rel=1e-4)
    assert (shares[50:800] == 1).all()
    assert shares[999] == pytest.approx(1 / 200, rel=1e-4)
    assert (config.k_aux_used, config.dead_after_used) == (128, 10_000)
    sparsity = np.asarray(jax.vmap(ReLUConfig(8, 16, steps=1000).sparsity_schedule)(jnp.arange(1000)))
    assert sparsity[0] == pytest.approx(1 / 50) and (sparsity[49:] == 1).all()
    assert RECIPES["matryoshka"].group_ends == (3, 9, 24)
    assert CONFIG.group_ends == (F,) and CONFIG.k == K


@pytest.mark.parametrize(
    ("recipe", "options", "words"),
    [
        (BatchTopKConfig, {"k": 17}, "lower k"),
        (BatchTopKConfig, {"steps": 0}, "steps"),
        (TopKConfig, {"group_fractions": (0.5, 0.4)}, "add up to 1"),
        (TopKConfig, {"group_fractions": (0.01, 0.99)}, "at least one of the 16 latents"),
        (TopKConfig, {"center": "median"}, "center of the SAE is 'median'"),
        (TopKConfig, {"max_norm": 0.5}, "max_norm"),
        (TopKConfig, {"l1_coefficient": -1.0}, "l1_coefficient"),
        (JumpReLUConfig, {"bandwidth": 0.0}, "bandwidth"),
        (ReLUConfig, {"auxk_alpha": 0.1}, "cannot revive the latents of a relu SAE"),
        (GatedConfig, {"auxk_alpha": 0.1}, "cannot revive the latents of a gated SAE"),
    ],
)
def test_impossible_recipes_are_one_sentence(recipe, options, words):
    with pytest.raises(MusaeError, match=words) as caught:
        recipe(8, 16, **{"k": 4, **options} if "k" in recipe.traced else options)
    assert "\n" not in str(caught.value)
