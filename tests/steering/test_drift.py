import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from musae_jax.models.delay import delayed_targets
from musae_jax.models.edits import Edits
from musae_jax.models.musicgen import encode_prompts, forward
from musae_jax.steering.drift import frechet_distance, kernel_distance, prediction_drift


def test_drift_is_the_divergence_of_guided_predictions(mg):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (3, 2, 9))
    text, asked = encode_prompts(mg, ["slow piano", "", "flute"]), encode_prompts(mg, ["slow piano", "", "fast flute"])
    vector = rng.normal(size=(2, 3, 1, 12)).astype(np.float32)
    found = np.asarray(prediction_drift(mg.config, mg.params, codes, text, asked, Edits(vectors={1: vector}), 3.0))
    log_p = []
    for states, edits in ((asked, vector), (text, np.zeros_like(vector))):
        c = forward(mg.config, mg.params, codes, states, edits=Edits(vectors={1: edits[0]})).logits
        u = forward(mg.config, mg.params, codes, edits=Edits(vectors={1: edits[1]})).logits
        log_p.append(np.asarray(jax.nn.log_softmax(u + 3.0 * (c - u)), np.float64))
    mask = np.asarray(delayed_targets(jnp.asarray(codes))[1])
    for clip in range(3):
        for book in range(2):
            rows = np.flatnonzero(mask[book])
            steered, plain = log_p[0][clip, book, rows], log_p[1][clip, book, rows]
            assert found[clip, book] == pytest.approx((np.exp(steered) * (steered - plain)).sum(-1).mean(), abs=1e-4)
    assert (found > 0.001).all()
    same = prediction_drift(mg.config, mg.params, codes, text, text, Edits(vectors={1: 0 * vector}), 3.0)
    np.testing.assert_allclose(same, 0, atol=1e-5)


def test_frechet_distance_is_that_of_matrix_roots():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 7)) @ rng.normal(size=(7, 7)) + 1
    y = rng.normal(size=(45, 7)) @ rng.normal(size=(7, 7))
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(a @ b).real
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * root)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert np.isfinite(frechet_distance(x[:3], y))  # fewer clips than dimensions


def test_kernel_distance_is_that_of_two_loops():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(9, 4)) + 0.5, rng.normal(size=(12, 4))
    pairs = [np.linalg.norm(y[i] - y[j]) for i in range(12) for j in range(i)]
    width = np.median(pairs)

    def kernel(a, b):
        return np.exp(-(np.linalg.norm(a - b) ** 2) / (2 * width**2))

    within_x = np.mean([kernel(x[i], x[j]) for i in range(9) for j in range(9) if i != j])
    within_y = np.mean([kernel(y[i], y[j]) for i in range(12) for j in range(12) if i != j])
    between = np.mean([kernel(a, b) for a in x for b in y])
    # an even number of pairs: the median of squares is not quite the square of the median
    assert kernel_distance(x, y) == pytest.approx(100 * (within_x + within_y - 2 * between), rel=0.02)


def test_kernel_distance_of_one_distribution_is_nought_on_average():
    rng = np.random.default_rng(2)
    reference = rng.normal(size=(200, 3))
    found = [kernel_distance(rng.normal(size=(12, 3)), reference) for _ in range(100)]
    assert abs(np.mean(found)) < 3 * np.std(found) / 10 + 0.3 and min(found) < 0 < max(found)
    assert kernel_distance(rng.normal(size=(12, 3)) + 2, reference) > max(found)
