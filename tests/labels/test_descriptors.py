import json
import time

import numpy as np
import pytest

from musae_jax.features.activity import Activity
from musae_jax.features.firing import find_firing
from musae_jax.labels.descriptors import COLUMNS, KEY_CONCEPTS, describe, hear_descriptors, name_ends
from musae_jax.labels.moments import MOMENTS, describe_moments
from musae_jax.labels.naming import name_features
from musae_jax.labels.spectra import KEYS, RATE

TIME = np.arange(RATE * 6) / RATE


def tone(midi, level=0.2):
    return level * np.sin(2 * np.pi * 440 * 2 ** ((midi - 69) / 12) * TIME)


def described(audio, rate=RATE):
    return dict(zip(COLUMNS, describe(audio.astype(np.float32), rate)))


def key_of(found):
    return max(KEY_CONCEPTS, key=found.__getitem__)


def chords(*progression):
    which = np.minimum((TIME / 6 * len(progression)).astype(int), len(progression) - 1)
    return sum(tone(m, 0.1) * (which == i) for i, notes in enumerate(progression) for m in notes)


def test_sine_is_measured_in_its_units():
    found = described(tone(69, 0.5))
    assert found["brightness"] == pytest.approx(440, rel=0.01)
    assert found["loudness"] == pytest.approx(-9.0, abs=0.3)  # a full-scale sine is -3 dB, half of it 6 dB less
    assert found["pitch height"] == pytest.approx(3.0, abs=0.05)  # three octaves above 55 Hz
    assert found["bass"] < 0.01 and described(tone(45))["bass"] > 0.95 and key_of(found).startswith("key: A ")


def test_clicks_at_120_beats_a_minute():
    rng = np.random.default_rng(0)
    audio = np.zeros_like(TIME)
    for beat in range(12):
        audio[beat * RATE // 2 :][:400] = 0.3 * rng.normal(size=400)
    found = described(audio)
    assert found["tempo"] == pytest.approx(120, rel=0.03) and found["pulse"] > 0.8
    assert found["onset rate"] == pytest.approx(2.0, abs=0.2)
    assert found["attack"] > 5 * described(tone(60))["attack"] and found["noisiness"] > 0.3


@pytest.mark.parametrize("tonic", [0, 2, 7, 9])
def test_key_and_mode(tonic):
    major = described(chords(*[[60 + tonic + n for n in c] for c in ((0, 4, 7), (5, 9, 12), (7, 11, 14), (0, 4, 7))]))
    minor = described(chords(*[[60 + tonic + n for n in c] for c in ((0, 3, 7), (5, 8, 12), (7, 10, 14), (0, 3, 7))]))
    assert key_of(major) == f"key: {KEYS[tonic]} major" and major["mode"] > 0.05
    assert key_of(minor) == f"key: {KEYS[tonic]} minor" and minor["mode"] < -0.05


def test_silence_short_clips_and_other_rates_give_finite_numbers():
    for audio in (np.zeros(RATE), np.zeros(10), np.random.default_rng(0).normal(size=900)):
        assert np.isfinite(describe(audio)).all() and np.isfinite(describe_moments(audio, RATE)).all()
    time_32k = np.arange(32000 * 4) / 32000
    assert described(0.5 * np.sin(2 * np.pi * 440 * time_32k), 32000)["brightness"] == pytest.approx(440, rel=0.02)


def test_a_clip_takes_milliseconds():
    audio = np.random.default_rng(0).normal(size=RATE * 10).astype(np.float32) * 0.1
    describe(audio)
    start = time.process_time()
    for _ in range(5):
        describe(audio)
    assert (time.process_time() - start) / 5 < 0.125  # 200 clips in 25 s of one core


def moments_of(audio, parts=6):
    return dict(zip((concept.name for concept in MOMENTS), describe_moments(audio.astype(np.float32), RATE, parts).T))


def test_chords_are_told_moment_by_moment():
    found = moments_of(chords([48, 60, 64, 67], [45, 60, 64, 69], [43, 59, 62, 67]))  # C, A minor, G: two seconds each
    roots = np.stack([found[f"chord root: {key}"] for key in KEYS])  # [12, W]
    assert [KEYS[r] for r in roots.argmax(0)] == ["C", "C", "A", "A", "G", "G"]
    assert (found["chord quality: major"] > 0).tolist() == [True, True, False, False, True, True]
    np.testing.assert_allclose(found["chord quality: major"], -found["chord quality: minor"])


def test_strokes_are_told_by_band():
    rng = np.random.default_rng(0)
    audio = tone(60, 0.05)
    audio[2 * RATE : 2 * RATE + 3000] += 0.5 * np.sin(2 * np.pi * 70 * TIME[:3000]) * np.exp(-TIME[:3000] * 20)  # kick
    hiss = np.diff(rng.normal(size=3001), n=1) * np.exp(-TIME[:3000] * 30)
    audio[4 * RATE : 4 * RATE + 3000] += 0.1 * hiss
    found = moments_of(audio)
    assert found["stroke: low"].argmax() == 2 and found["stroke: high"].argmax() == 4
    assert set(np.argsort(found["stroke: any"])[-2:]) <= {0, 2, 4}


def test_a_feature_that_follows_brightness_is_named_so():
    rng = np.random.default_rng(0)
    ids = tuple(f"c{n}" for n in range(80))
    pitches = rng.uniform(45, 90, len(ids))
    audio = {
        c: (tone(p, 10 ** rng.uniform(-2, -0.5)) + 0.001 * rng.normal(size=len(TIME)))[:RATE].astype(np.float32)
        for c, p in zip(ids, pitches)
    }
    heard = hear_descriptors(ids, audio.__getitem__, RATE)
    frames = np.zeros((len(ids), 10, 3), np.float32)
    frames[:, :, 0] = np.maximum(pitches - 65, 0)[:, None]
    frames[:, :, 1] = np.maximum(heard.clips[:, heard.column["loudness: loud"]] + 25, 0)[:, None]
    frames[:, :, 2] = rng.random((len(ids), 10))
    activity = Activity(ids, 10, frames.reshape(-1, 3))
    halves = [find_firing(activity, range(start, 80, 2), range(3), 0.2) for start in (1, 0)]
    rows = {row["feature"]: row for row in name_features(heard, *halves, "h", "s", permutations=199)}
    assert rows[0]["name"] in ("brightness: bright", "pitch height: high") and rows[0]["confidence"] > 0.5
    assert rows[1]["name"] == "loudness: loud" and rows[1]["confidence"] > 0.5
    assert rows[2]["confidence"] == 0 and rows[0]["source"] == "descriptors"
    json.dumps(list(rows.values()), allow_nan=False)


def test_the_two_ends_of_a_descriptor_are_opposites():
    ids = ("a", "b", "c")
    audio = {"a": tone(45), "b": tone(60), "c": tone(81)}
    heard = hear_descriptors(ids, lambda clip: audio[clip].astype(np.float32), RATE)
    low, high = (heard.clips[:, heard.column[f"pitch height: {end}"]] for end in ("low", "high"))
    assert high.argsort().tolist() == [0, 1, 2] and np.array_equal(low, -high)
    assert heard.embedding.shape == (3, len(COLUMNS)) and abs(heard.embedding.mean()) < 1e-5
    assert name_ends("loudness: quiet") == {"descriptor": "loudness", "unit": "dB", "direction": "low"}
    assert name_ends("key: C major") is None
