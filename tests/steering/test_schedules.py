"""Schedules: their values at known times, their text form, and what is refused."""

import numpy as np
import pytest

from musae_jax.errors import MusaeError
from musae_jax.steering.schedules import beats, constant, decay, onsets, ramp, read_schedule, sections

CLIP = (8.0, 50.0)  # seconds, frames a second


def at(factors, *seconds):
    assert factors.shape == (400,) and factors.dtype == np.float32
    return factors[[round(50 * s) for s in seconds]]


def close(found, *wanted):
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_values_at_known_times():
    close(at(constant(*CLIP), 0, 7.98), 1, 1)
    close(at(ramp(*CLIP, 1, 3), 0, 1, 1.5, 2, 3, 7.98), 0, 0, 0.25, 0.5, 1, 1)
    close(at(decay(*CLIP, 2), 0, 2, 4, 6), 1, 0.5, 0.25, 0.125)
    on = sections(*CLIP, [(0, 2), (6, 8)])
    close(at(on, 0, 1.98, 2, 5.98, 6, 7.98), 1, 1, 0, 0, 1, 1)
    assert on.sum() == 200
    close(at(sections(*CLIP, [(1, 3)], fade=0.5), 0.98, 1, 1.24, 1.5, 2.5, 2.74, 3), 0, 0, 0.48, 1, 1, 0.52, 0)
    close(at(sections(*CLIP, [(1, 3), (3, 4)]), 0.98, 2.98, 3, 3.98, 4), 0, 1, 1, 1, 0)
    pulses = onsets(*CLIP, [3, 0.5], half_life=0.2)
    close(at(pulses, 0, 0.48, 0.5, 0.7, 0.9, 2.98, 3, 3.2), 0, 0, 1, 0.5, 0.25, 2**-12.4, 1, 0.5)


def test_beats_stay_with_the_tempo():
    beat = beats(*CLIP, 120)
    close(at(beat, 0, 0.5, 4, 7.5), 1, 1, 1, 1)
    close(at(beat, 0.12, 0.26), 2**-0.96, 2**-2.08)
    close(at(beats(*CLIP, 60, half_life=0.1, first=0.3), 0.28, 0.3, 0.4, 1.3, 7.3), 0, 1, 0.5, 1, 1)
    odd = beats(60.0, 50.0, 97)  # no whole number of frames
    peaks = 1 + np.flatnonzero(odd[1:] > odd[:-1])
    assert len(peaks) == 96
    late = peaks / 50 - 60 / 97 * np.arange(1, 97)
    assert np.all((late > -1e-9) & (late < 0.02))  # in the first frame that begins after it


def test_the_text_form_is_the_function():
    for text, wanted in {
        "constant": constant(*CLIP),
        "ramp:0-4": ramp(*CLIP, 0, 4),
        "ramp:0.5-1.5": ramp(*CLIP, 0.5, 1.5),
        "decay:2": decay(*CLIP, 2),
        "sections:0-2,6-8": sections(*CLIP, [(0, 2), (6, 8)]),
        "sections:0-2,6-8:fade=0.5": sections(*CLIP, [(0, 2), (6, 8)], 0.5),
        "onsets:0.5,1.2": onsets(*CLIP, [0.5, 1.2]),
        "onsets:3:half-life=1": onsets(*CLIP, [3], 1),
        "beats:120": beats(*CLIP, 120),
        "beats:90:half-life=0.1:first=0.3": beats(*CLIP, 90, 0.1, 0.3),
    }.items():
        np.testing.assert_array_equal(read_schedule(text)(*CLIP), wanted)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("loud", "'loud' is not a schedule; write constant, ramp:0-4"),
        ("", "is not a schedule"),
        ("ramp", "not a schedule of this form"),
        ("ramp:0-4:fade=1", "not a schedule of this form"),
        ("constant:1", "not a schedule of this form"),
        ("ramp:4", "a time that is not a number"),
        ("ramp:a-b", "a time that is not a number"),
        ("beats:120:first=x", "a time that is not a number"),
        ("ramp:4-0", "span 4-0 does not end after it begins"),
        ("sections:2-2", "does not end after it begins"),
        ("sections:-1-2", "has a time of -1 s"),
        ("ramp:nan-2", "has a time of nan s"),
        ("ramp:0-nan", "does not end after it begins"),
        ("ramp:0-9", "ends after the music, which lasts 8 s"),
        ("sections:0-2,7-8.5", "ends after the music, which lasts 8 s"),
        ("sections:9-10", "goes on at 9 s, but the music lasts 8 s"),
        ("sections:0-1:fade=0.6", "too short to rise and fall"),
        ("sections:0-1:fade=-1", "fade of a schedule is -1 s"),
        ("onsets:1,8", "goes on at 8 s, but the music lasts 8 s"),
        ("onsets:1:half-life=0", "half-life of a schedule is 0 s"),
        ("decay:0", "half-life of a schedule is 0 s"),
        ("decay:inf", "half-life of a schedule is inf s"),
        ("beats:0", "tempo is 0 beats a minute"),
        ("beats:nan", "tempo is nan beats a minute"),
        ("beats:120:first=-1", "has a time of -1 s"),
    ],
)
def test_what_is_no_schedule_is_one_sentence(text, words):
    with pytest.raises(MusaeError, match=words):
        read_schedule(text)(*CLIP)
