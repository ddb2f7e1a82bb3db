import json

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

from musae_jax.errors import MusaeError
from musae_jax.features.activity import Activity, encode_store, neuron_activity
from musae_jax.features.exemplars import clip_file, find_exemplars, load_exemplars, save_clips, save_exemplars
from musae_jax.features.statistics import FilterConfig, feature_statistics, load_statistics, save_statistics
from musae_jax.files import read_json_lines


class Shards:
    """The part of a store that is read: shards of (clip ids, residuals [n, P, d_in])."""

    def __init__(self, residuals, size):
        self.residuals, self.size = residuals, size
        self.clip_ids = [f"clip{n}" for n in range(len(residuals))]

    def shards(self):
        for start in range(0, len(self.residuals), self.size):
            part = self.residuals[start : start + self.size]
            yield self.clip_ids[start : start + len(part)], part


@pytest.fixture
def activity():
    """10 clips of 6 frames: feature 0 dead, 1 in one clip, 2 in two clips, 3 everywhere."""
    values = np.zeros((10, 6, 4), np.float32)
    values[3, 2, 1] = 5.0
    values[1, :, 2] = [0, 1, 2, 3, 2, 1]
    values[8, 4, 2] = 4.5
    values[:, :, 3] = np.arange(1, 61).reshape(10, 6)
    return Activity(tuple(f"clip{n}" for n in range(10)), 6, scipy.sparse.csr_array(values.reshape(60, 4)))


def test_encoding_a_store_in_chunks_equals_encoding_it_at_once():
    rng = np.random.default_rng(0)
    residuals = rng.normal(size=(7, 9, 5)).astype(np.float32)
    weights = rng.normal(size=(5, 11)).astype(np.float32)

    def encode(x):
        return jnp.maximum(x @ weights - 1.0, 0)

    expected = np.asarray(encode(residuals[:, 1:].reshape(-1, 5)))  # the start step is left out
    seen = []
    for chunk in (7, 4096):
        seen.clear()
        activity = encode_store(Shards(residuals, 3), encode, chunk=chunk, progress=lambda *step: seen.append(step))
        assert activity.clip_ids == tuple(f"clip{n}" for n in range(7)) and activity.frames == 8
        assert seen == [(n, 7, "clips") for n in (3, 6, 7)]
        np.testing.assert_allclose(activity.values.todense(), expected, atol=1e-6)
    dense = Activity(activity.clip_ids, 8, expected)
    for other in (activity, activity.subset(range(7))):
        np.testing.assert_allclose(other.clip_mean, dense.clip_mean, atol=1e-6)
        np.testing.assert_allclose(other.clip_max, dense.clip_max, atol=1e-6)
    np.testing.assert_allclose(activity.curve(4, 2), expected.reshape(7, 8, 11)[4, :, 2], atol=1e-6)
    np.testing.assert_allclose(dense.curve(4, 2), expected.reshape(7, 8, 11)[4, :, 2])
    part = activity.subset([5, 2])
    assert part.clip_ids == ("clip5", "clip2")
    np.testing.assert_allclose(part.clip_mean, dense.clip_mean[[5, 2]], atol=1e-6)
    neurons = neuron_activity(Shards(residuals, 3))
    np.testing.assert_array_equal(neurons.values, residuals[:, 1:].reshape(-1, 5))
    assert len(neuron_activity(Shards(residuals, 3), limit=4 * 8 * 5).clip_ids) == 6  # whole shards, then stop


def test_an_empty_store_is_refused():
    with pytest.raises(MusaeError, match="holds no clips"):
        encode_store(Shards(np.zeros((0, 3, 2)), 1), lambda x: x)


@pytest.mark.parametrize("dense", [False, True])
def test_statistics_and_filter(activity, tmp_path, dense):
    if dense:
        activity = Activity(activity.clip_ids, 6, activity.values.todense())
    config = FilterConfig(minimum_share=0.15, maximum_share=0.25)
    statistics = feature_statistics(activity, config)
    np.testing.assert_allclose(statistics.density, [0, 1 / 60, 6 / 60, 1])
    np.testing.assert_allclose(statistics.maximum, [0, 5, 4.5, 60])
    np.testing.assert_allclose(statistics.mean_active, [0, 5, 13.5 / 6, 30.5])
    np.testing.assert_allclose(statistics.share, [0, 0.1, 0.2, 1])
    assert statistics.kept.tolist() == [False, False, True, False]
    save_statistics(tmp_path, statistics, config)
    rows = read_json_lines(tmp_path / "features.jsonl")
    assert [r["verdict"] for r in rows] == ["dead", "rare", "kept", "common"]
    assert rows[2]["clips_active"] == 2 and rows[2]["density"] == 0.1
    again = load_statistics(tmp_path)
    assert again.clip_ids == statistics.clip_ids and again.kept.dtype == bool
    for name in ("clip_mean", "clip_max", "density", "maximum", "mean_active", "share", "kept"):
        np.testing.assert_array_equal(getattr(again, name), getattr(statistics, name))


def test_default_filter_keeps_one_to_twenty_five_percent():
    values = np.zeros((200, 1, 5), np.float32)
    for feature, clips in enumerate([1, 2, 50, 51, 0]):
        values[:clips, 0, feature] = 1
    activity = Activity(tuple(map(str, range(200))), 1, values.reshape(200, 5))
    assert feature_statistics(activity).kept.tolist() == [False, True, True, False, False]


def test_active_means_above_a_share_of_the_largest():
    values = np.asarray([[0.1], [0.3], [0.0], [0.0]], np.float32)
    activity = Activity(tuple("abcd"), 1, values)
    assert feature_statistics(activity, FilterConfig(active_above=0.5)).share[0] == 0.25


def test_exemplars_are_the_strongest_clips_of_each_half(activity, tmp_path):
    halves = {f"clip{n}": "label" if n < 5 else "score" for n in range(10)}
    found = find_exemplars(activity, halves, count=2, held_out=1)
    assert {e.feature for e in found} == {1, 2, 3}  # the dead one has none
    assert [(e.clip, e.half, e.rank) for e in found if e.feature == 2] == [("clip1", "label", 0), ("clip8", "score", 0)]
    assert [(e.clip, e.half, e.rank) for e in found if e.feature == 3] == [
        ("clip4", "label", 0),
        ("clip3", "label", 1),
        ("clip9", "score", 0),
    ]
    first = next(e for e in found if e.feature == 2)
    np.testing.assert_allclose(first.curve, [0, 1, 2, 3, 2, 1])
    assert first.maximum == 3 and first.mean == pytest.approx(1.5)

    same_track = find_exemplars(activity, halves, [3], 4, 4, {f"clip{n}": f"track{n // 2}" for n in range(10)})
    assert [e.clip for e in same_track] == ["clip4", "clip3", "clip1", "clip9", "clip7", "clip5"]

    save_exemplars(tmp_path, found)
    again = load_exemplars(tmp_path)
    assert len(again) == len(found)
    for a, b in zip(again, found):
        assert (a.feature, a.clip, a.half, a.rank) == (b.feature, b.clip, b.half, b.rank)
        np.testing.assert_allclose(a.curve, b.curve, rtol=1e-3)
    save_exemplars(tmp_path, [])
    assert load_exemplars(tmp_path) == []
    (tmp_path / "exemplars.jsonl").write_text(json.dumps({"feature": 1}) + "\n")
    with pytest.raises(MusaeError, match=r"0 curves where exemplars\.jsonl has 1 lines"):
        load_exemplars(tmp_path)


def test_clip_audio_is_written_once_under_safe_names(tmp_path):
    audio = {"a/b c.wav": np.sin(np.arange(8000) / 10).astype(np.float32) * 0.3}
    save_clips(tmp_path, audio, audio.__getitem__, 16000, {"a/b c.wav": "a tone"})
    path = tmp_path / "clips" / "a%2Fb%20c.wav.ogg"
    assert path.exists() and clip_file("a/b c.wav") == path.name
    before = path.stat().st_mtime_ns
    save_clips(tmp_path, audio, audio.__getitem__, 16000, {"a/b c.wav": "a tone"})
    (row,) = read_json_lines(tmp_path / "clips.jsonl")
    assert row == {"clip": "a/b c.wav", "file": f"clips/{path.name}", "caption": "a tone"}
    assert path.stat().st_mtime_ns == before
