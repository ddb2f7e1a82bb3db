import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from some_recipes import RECIPES, tokens

from musae_jax.sae.batch_topk import batch_threshold
from musae_jax.sae.step import column_counts, fold, init_state, train_step

CONFIG = RECIPES["batch_topk"]
threshold_of = jax.jit(batch_threshold, static_argnums=(1, 3))


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


def test_the_running_threshold_is_unbiased_from_the_first_step():
    state = init_state(CONFIG, jax.random.key(0))
    state, metrics = train_step(CONFIG, state, tokens())
    sae = fold(CONFIG, state)
    assert float(sae.params["threshold"][0]) == pytest.approx(float(metrics["threshold"]), rel=1e-5)
