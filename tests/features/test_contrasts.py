import numpy as np
import pytest
import scipy.sparse

from musae_jax.features.activity import Activity, encode_store
from musae_jax.features.contrasts import feature_contrasts


def planted(clips=80, frames=5, d=6, seed=0):
    """Clips whose stream moves along row j in the 8 clips where feature j is strongest; feature 2 is dead."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(2, d)) * 3
    stream = rng.normal(size=(clips, frames, d))
    values = np.zeros((clips, frames, 3))
    for feature, strong in enumerate((slice(0, 8), slice(20, 28))):
        values[:, 0, feature] = 0.1  # weak everywhere
        values[strong, 1:, feature] = 1 + rng.random((8, frames - 1))
        stream[strong] += rows[feature]
    values = scipy.sparse.csr_array(values.reshape(clips * frames, 3))
    ids = tuple(map(str, range(clips)))
    return rows, stream, Activity(ids, frames, values, stream.mean(1).astype(np.float32))


def test_the_contrast_is_what_the_strongest_clips_have_in_common():
    rows, stream, activity = planted()
    found = feature_contrasts(activity, range(80))
    assert found.shape == (3, 6) and found.dtype == np.float32 and not found[2].any()
    for feature, strong in enumerate((slice(0, 8), slice(20, 28))):
        inside = np.zeros(80, bool)
        inside[strong] = True
        wanted = stream[inside].mean((0, 1)) - stream[~inside].mean((0, 1))
        np.testing.assert_allclose(found[feature], wanted, atol=1e-5)
        cosine = found[feature] @ rows[feature] / np.linalg.norm(found[feature]) / np.linalg.norm(rows[feature])
        assert cosine > 0.9


def test_only_the_clips_given_are_read():
    _, _, activity = planted()
    activity.stream_mean[40:] = np.nan
    found = feature_contrasts(activity, range(40))
    assert np.isfinite(found).all() and found[:2].any(1).all()


def test_a_feature_that_sets_nothing_apart_has_none():
    _, _, activity = planted()
    rare = activity.values.toarray()
    rare[:, 0] = 0
    rare[: 3 * 5, 0] = 1.0  # three clips
    rare = Activity(activity.clip_ids, 5, rare, activity.stream_mean)
    assert list(feature_contrasts(rare, range(80)).any(1)) == [False, True, False]
    _, stream, _ = planted()
    same = Activity(tuple(map(str, range(80))), 5, np.ones((400, 1)), stream.mean(1))
    assert not feature_contrasts(same, range(80)).any()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_encoding_a_store_keeps_the_mean_of_the_stream(dtype):
    residuals = np.random.default_rng(0).normal(size=(7, 6, 4)).astype(dtype)

    class Store:
        clip_ids = tuple(map(str, range(7)))

        def shards(self):
            yield self.clip_ids[:4], residuals[:4]
            yield self.clip_ids[4:], residuals[4:]

    activity = encode_store(Store(), lambda x: x)
    wanted = residuals[:, 1:].astype(np.float32).mean(1)  # without the start step
    np.testing.assert_allclose(activity.stream_mean, wanted, atol=1e-6)
    np.testing.assert_allclose(activity.subset([5, 2]).stream_mean, wanted[[5, 2]], atol=1e-6)
