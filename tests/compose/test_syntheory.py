"""SynTheory's sets: their classes and counts, labels that the score bears out, sound in every one."""

from collections import Counter

import numpy as np
import pytest

from musae_jax.compose.syntheory import BEAT, FRAMES, LEAD_PROGRAMS, PROGRAMS, SETS, render_example


@pytest.mark.parametrize("name", SETS)
def test_counts_and_classes_are_the_published_ones(name):
    one = SETS[name]
    classes = Counter(example.labels[one.target] for example in one.examples(PROGRAMS))
    assert sum(classes.values()) == one.count
    assert len(classes) == one.classes and len(set(classes.values())) == 1


def examples(name):
    return list(SETS[name].examples(LEAD_PROGRAMS))


def pitches(example):
    """The pitches of each onset, in order."""
    onsets = sorted({note.start for note in example.score.notes})
    return [sorted(n.pitch for n in example.score.notes if n.start == onset) for onset in onsets]


def test_the_whole_is_a_hundred_thousand():
    assert len(PROGRAMS) == 92 and sum(one.count for one in SETS.values()) == 104_585


def test_notes_and_intervals_are_what_they_say():
    for example in examples("notes")[::37]:
        assert {p[0] % 12 for p in pitches(example)} == {example.labels["pitch class"]}
        assert {p[0] // 12 for p in pitches(example)} == {example.labels["octave"]}
        assert len(pitches(example)) == 4
    for example in examples("intervals")[::53]:
        first, second = pitches(example)[:2]
        size, root = example.labels["interval"], example.labels["root"]
        both = {"up": (first[0], second[0]), "down": (second[0], first[0]), "unison": tuple(first)}
        low, high = both[example.labels["style"]][0], both[example.labels["style"]][-1]
        assert high - low == size and low % 12 == root and len(pitches(example)) == 8


def test_scales_chords_and_progressions_hold_the_notes_of_their_names():
    steps = {"ionian": 4, "lydian": 4, "mixolydian": 4, "aeolian": 3, "dorian": 3, "phrygian": 3, "locrian": 3}
    for example in examples("scales")[::17]:
        line = [p[0] for p in pitches(example)]
        line = line if example.labels["style"] == "up" else line[::-1]
        assert line == sorted(line) and line[7] - line[0] == 12 and line[0] % 12 == example.labels["root"]
        assert line[2] - line[0] == steps[example.labels["mode"]]
        assert (line[4] - line[0] == 6) == (example.labels["mode"] == "locrian")
    spans = {"major": [0, 4, 7], "minor": [0, 3, 7], "aug": [0, 4, 8], "dim": [0, 3, 6]}
    for example in examples("chords")[::19]:
        chord, root = pitches(example)[0], example.labels["root"]
        assert sorted((p - root) % 12 for p in chord) == spans[example.labels["kind"]]
        assert (chord[0] - root) % 12 == spans[example.labels["kind"]][example.labels["inversion"]]
    for example in examples("chord progressions")[::29]:
        mode, degrees = example.labels["progression"].split()
        third = 4 if mode == "ionian" else 3
        for chord, degree in zip(pitches(example), degrees.split("-")):
            if degree == "1":
                assert {(p - example.labels["key"]) % 12 for p in chord} == {0, third, 7}


def test_clicks_come_at_their_tempo_and_bars_at_their_metre():
    for example in examples("tempos")[::301]:
        onsets = [note.start for note in example.score.notes]
        assert np.allclose(np.diff(onsets), 3000 / example.labels["bpm"], atol=1)
        assert all(0 <= onset < FRAMES for onset in onsets)
    for example in examples("time signatures")[::41]:
        accents = [i for i, note in enumerate(example.score.notes) if note.velocity == 100]
        assert set(np.diff(accents)) <= {example.labels["beats"]}
        unit = 4 * BEAT / example.labels["subdivision"]
        assert np.allclose(np.diff([note.start for note in example.score.notes]), unit, atol=1)


@pytest.mark.parametrize("name", SETS)
def test_every_set_sounds(name):
    for example in examples(name)[7::599]:
        audio = render_example(example, 16_000)
        assert audio.shape == (64_000,) and audio.dtype == np.float32
        assert np.abs(audio).max() == pytest.approx(1.0, abs=1e-5)


def test_reverb_fills_the_silence_between_clicks():
    dry, wet = (next(e for e in examples("time signatures") if e.reverb == reverb) for reverb in (0.0, 1.0))
    quiet = [float(np.mean(np.abs(render_example(e, 16_000)) < 1e-3)) for e in (dry, wet)]
    assert quiet[1] < 0.7 * quiet[0]
