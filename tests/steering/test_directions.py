import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musae_jax.errors import MusaeError
from musae_jax.models.edits import Edits
from musae_jax.sae.sae import SAE, SAEConfig
from musae_jax.steering.directions import feature_vectors, layer_of, random_direction, steer, steer_contrast


@pytest.fixture
def sae():
    rng = np.random.default_rng(0)
    params = {
        "W_enc": rng.normal(size=(6, 9)),
        "b_enc": np.zeros(9),
        "W_dec": rng.normal(size=(9, 6)),
        "b_dec": np.zeros(6),
        "threshold": np.zeros(9),
    }
    config = SAEConfig(6, 9, metadata={"hook_name": "blocks.3.resid_post"})
    maximum = jnp.asarray([2.0, 0, 1, 1, 5, 1, 1, 1, 1])
    return SAE(config, {k: jnp.asarray(v, jnp.float32) for k, v in params.items()}, maximum)


def test_steering_adds_strength_times_maximum_times_decoder_row(sae):
    edits = steer(sae, {0: 1.0, 4: -0.5})
    assert list(edits.vectors) == [3]
    expected = 2.0 * sae.params["W_dec"][0] - 0.5 * 5.0 * sae.params["W_dec"][4]
    np.testing.assert_allclose(edits.vectors[3], expected, rtol=1e-6)
    doubled = steer(sae, {0: 1.0}, maximum=np.full(9, 4.0))
    np.testing.assert_allclose(doubled.vectors[3], 4.0 * sae.params["W_dec"][0], rtol=1e-6)
    assert not steer(sae, {}).vectors


def test_the_contrast_is_as_long_as_the_decoder_s_vector(sae):
    contrast = np.random.default_rng(1).normal(size=(9, 6)).astype(np.float32)
    contrast[5] = 0
    known = sae.replace(contrast=jnp.asarray(contrast))
    edits = steer_contrast(known, {4: -0.5})
    assert list(edits.vectors) == [3] and not steer_contrast(known, {}).vectors
    plain = steer(sae, {4: -0.5}).vectors[3]
    vector = np.asarray(edits.vectors[3])
    np.testing.assert_allclose(np.linalg.norm(vector), np.linalg.norm(plain), rtol=1e-5)
    np.testing.assert_allclose(vector / np.linalg.norm(vector), -contrast[4] / np.linalg.norm(contrast[4]), atol=1e-5)
    both = steer_contrast(known, {0: 2.0, 4: -0.5}, maximum=np.full(9, 5.0)).vectors[3]
    first = steer_contrast(known, {0: 5.0}).vectors[3]  # of 2, which is 10
    np.testing.assert_allclose(both, first + vector, rtol=1e-4, atol=1e-5)
    with pytest.raises(MusaeError, match="no record of its features' contrasts; run `musae features`"):
        steer_contrast(sae, {4: 1.0})
    with pytest.raises(MusaeError, match="no clips set feature 5 apart"):
        steer_contrast(known, {4: 1.0, 5: 1.0})
    with pytest.raises(MusaeError, match="feature 1 never fires"):
        steer_contrast(known, {1: 1.0})


def test_what_cannot_be_steered_is_refused(sae):
    with pytest.raises(MusaeError, match="feature 9 is not in this SAE; choose from 0 to 8"):
        steer(sae, {9: 1.0})
    with pytest.raises(MusaeError, match="feature 1 never fires"):
        steer(sae, {1: 1.0})
    with pytest.raises(MusaeError, match="finite"):
        steer(sae, {0: float("nan")})
    with pytest.raises(MusaeError, match="no record of its features' maximum"):
        steer(sae.replace(maximum=None), {0: 1.0})
    with pytest.raises(MusaeError, match=r"the SAE's hook is ''"):
        layer_of(sae.replace(config=SAEConfig(6, 9)))


def test_random_direction_has_the_same_norms_and_another_direction(sae):
    vectors = jnp.stack([feature_vectors(sae, {0: a}) for a in (0.5, 1.0, 2.0)])[:, None]  # [B, 1, D]
    edits = Edits(vectors={1: vectors, 3: vectors[0, 0]})
    control = random_direction(jax.random.key(0), edits)
    for layer, vector in edits.vectors.items():
        got = control.vectors[layer]
        assert got.shape == vector.shape
        np.testing.assert_allclose(jnp.linalg.norm(got, axis=-1), jnp.linalg.norm(vector, axis=-1), rtol=1e-5)
    unit = control.vectors[1] / jnp.linalg.norm(control.vectors[1], axis=-1, keepdims=True)
    np.testing.assert_allclose(unit[0], unit[2], atol=1e-6)  # one direction for all rows
    cosines = []
    for seed in range(200):
        drawn = random_direction(jax.random.key(seed), Edits(vectors={3: vectors[0, 0]})).vectors[3]
        cosines.append(float(drawn @ vectors[0, 0] / jnp.linalg.norm(drawn) / jnp.linalg.norm(vectors[0, 0])))
    assert abs(np.mean(cosines)) < 0.1 and max(np.abs(cosines)) > 0.5  # isotropic, in six dimensions
    np.testing.assert_array_equal(control.vectors[3], random_direction(jax.random.key(0), edits).vectors[3])
