import json
import time

import numpy as np
import pytest

from musae_jax.features.activity import Activity
from musae_jax.labels.descriptors import (
    COLUMNS,
    KEYS,
    RATE,
    describe,
    describe_clips,
    descriptor_truth,
    name_by_descriptors,
)

TIME = np.arange(RATE * 6) / RATE


def tone(midi, level=0.2):
    return level * np.sin(2 * np.pi * 440 * 2 ** ((midi - 69) / 12) * TIME)


def described(audio, rate=RATE):
    return dict(zip(COLUMNS, describe(audio.astype(np.float32), rate)))


def chords(*progression):
    which = np.minimum((TIME / 6 * len(progression)).astype(int), len(progression) - 1)
    return sum(tone(m, 0.1) * (which == i) for i, notes in enumerate(progression) for m in notes)


def test_sine_is_measured_in_its_units():
    found = described(tone(69, 0.5))
    assert found["brightness"] == pytest.approx(440, rel=0.01)
    assert found["loudness"] == pytest.approx(-9.0, abs=0.3)  # a full-scale sine is -3 dB, half of it 6 dB less
    assert found["pitch height"] == pytest.approx(3.0, abs=0.05)  # three octaves above 55 Hz
    assert found["bass"] < 0.01 and described(tone(45))["bass"] > 0.95 and KEYS[int(found["key"])] == "A"


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
    assert major["key"] == tonic and major["mode"] > 0.05
    assert minor["key"] == tonic and minor["mode"] < -0.05


def test_silence_short_clips_and_other_rates_give_finite_numbers():
    for audio in (np.zeros(RATE), np.zeros(10), np.random.default_rng(0).normal(size=900)):
        assert np.isfinite(describe(audio)).all()
    time_32k = np.arange(32000 * 4) / 32000
    assert described(0.5 * np.sin(2 * np.pi * 440 * time_32k), 32000)["brightness"] == pytest.approx(440, rel=0.02)


def test_a_clip_takes_milliseconds():
    audio = np.random.default_rng(0).normal(size=RATE * 10).astype(np.float32) * 0.1
    describe(audio)
    start = time.process_time()
    for _ in range(5):
        describe(audio)
    assert (time.process_time() - start) / 5 < 0.125  # 200 clips in 25 s of one core


def test_a_feature_that_follows_brightness_is_named_so():
    rng = np.random.default_rng(0)
    ids = tuple(f"c{n}" for n in range(80))
    halves = {c: "label" if n % 2 else "score" for n, c in enumerate(ids)}
    pitches = rng.uniform(45, 90, len(ids))
    audio = {
        c: (tone(p, 10 ** rng.uniform(-2, -0.5)) + 0.001 * rng.normal(size=len(TIME)))[:RATE].astype(np.float32)
        for c, p in zip(ids, pitches)
    }
    values = describe_clips(ids, audio.__getitem__, RATE)
    frames = np.zeros((len(ids), 10, 4), np.float32)
    frames[:, :, 0] = np.maximum(pitches - 65, 0)[:, None]
    frames[:, :, 1] = np.maximum(values[:, 0] + 25, 0)[:, None]  # loudness
    frames[:, :, 2] = rng.random((len(ids), 10))
    activity = Activity(ids, 10, frames.reshape(-1, 4))
    rows = {r["feature"]: r for r in name_by_descriptors(activity, values, halves, "h", "s")}
    assert rows[0]["name"] in ("brightness: bright", "pitch height: high") and rows[0]["confidence"] > 0.5
    assert rows[1]["name"] == "loudness: loud" and rows[1]["evidence"]["spearman"] > 0.8
    assert rows[1]["evidence"]["unit"] == "dB" and -40 < rows[1]["evidence"]["threshold"] < 0
    assert rows[2]["confidence"] < 0.4
    assert rows[0]["source"] == "descriptors"
    json.dumps(list(rows.values()), allow_nan=False)


def test_thirds_are_cut_on_the_label_half_only():
    ids = tuple(f"c{n}" for n in range(12))
    halves = {c: "label" if n < 6 else "score" for n, c in enumerate(ids)}
    values = np.zeros((12, len(COLUMNS)))
    values[:6, 0] = np.arange(6)
    values[6:, 0] = 100
    truth, notes = descriptor_truth(ids, values, halves)
    assert notes[0]["threshold"] == pytest.approx(10 / 3, abs=1e-3)
    assert truth.active[:, 0, 0].tolist() == [False] * 4 + [True] * 8
    assert {c.family for c in truth.concepts} == {"loudness", "mode", "key"}  # what does not vary gives no concept


def test_too_few_clips_give_no_names():
    values = np.zeros((3, len(COLUMNS)))
    activity = Activity(("a", "b", "c"), 2, np.ones((6, 4), np.float32))
    for halves in ({"a": "label", "b": "label", "c": "label"}, {"a": "label", "b": "label", "c": "score"}):
        assert name_by_descriptors(activity, values, halves, "h", "s") == []
