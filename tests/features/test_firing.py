"""Where features fire, kept small: eight shares in a byte, made and read a few features at a time."""

import tracemalloc

import numpy as np
import scipy.sparse

from musae_jax.features import firing
from musae_jax.features.activity import Activity
from musae_jax.features.firing import blocks, find_firing, mean_of_shares
from musae_jax.labels.detection import detections, luck
from musae_jax.labels.hearing import Hearing
from musae_jax.labels.scores import Concept

CONCEPTS = (Concept("a: b", "a"), Concept("c: d", "c", "frame"))


def sparse_activity(clips, frames, features, seed=0):
    values = scipy.sparse.random_array(
        (clips * frames, features), density=0.01, format="csr", dtype=np.float32, rng=np.random.default_rng(seed)
    )
    return Activity(tuple(map(str, range(clips))), frames, values)


def hearing_of(clips, parts, seed=0):
    rng = np.random.default_rng(seed)
    heard = rng.normal(size=(clips, 2)), rng.normal(size=(clips, parts, 1))
    return Hearing("s", tuple(map(str, range(clips))), CONCEPTS, *(x.astype(np.float32) for x in heard))


def test_blocks_cover_every_feature_once_within_the_room(monkeypatch):
    monkeypatch.setattr(firing, "ROOM", 100)
    found = [list(range(17))[block] for block in blocks(17, 30)]
    assert [n for one in found for n in one] == list(range(17)) and max(map(len, found)) == 3
    assert [b.stop - b.start for b in blocks(3, 1000)] == [1, 1, 1] and list(blocks(0, 5)) == []


def test_shares_fire_where_they_are_strong_however_few_features_are_looked_at(monkeypatch):
    activity = sparse_activity(30, 44, 13)
    means = mean_of_shares(np.asarray(activity.values.todense()).reshape(30, 44, 13), 11)
    whole = find_firing(activity, range(30), range(12, -1, -1), 0.2, parts=11)
    hearing = hearing_of(30, 11)
    scores = detections(hearing, whole), luck(hearing, whole)
    monkeypatch.setattr(firing, "ROOM", 30 * 11 * 2)  # two features at a time
    few = find_firing(activity, range(30), range(12, -1, -1), 0.2, parts=11)
    np.testing.assert_array_equal(few.packed, whole.packed)
    np.testing.assert_allclose(detections(hearing, few), scores[0], atol=1e-6)
    np.testing.assert_allclose(luck(hearing, few), scores[1])
    assert whole.parts([3, 0]).shape == (30, 11, 2) and whole.parts([3]).dtype == bool
    for place, feature in enumerate(whole.features):
        fires, values = whole.parts([place])[..., 0], means[..., feature]
        assert values[fires].min() > values[~fires].max() and values[fires].min() > 0.2 * values.max()


def test_memory_stays_bounded(monkeypatch):
    """A fifth of what one number for each share and feature would take."""
    clips, features = 60, 4000
    monkeypatch.setattr(firing, "ROOM", 2**17)
    activity, hearing = sparse_activity(clips, 100, features), hearing_of(clips, 100)
    _ = activity.values, activity.clip_mean
    tracemalloc.start()
    found = find_firing(activity, range(clips), range(features), 0.2)
    detections(hearing, found)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    dense = 4 * clips * 100 * features
    assert peak < dense / 5, f"{peak / dense:.2f} of a dense array"
