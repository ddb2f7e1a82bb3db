"""SynTheory's seven sets of isolated concepts (Wei et al. 2024, arXiv 2410.00872), written by us with their labels.

Pitches, rhythms, classes and counts are those of their generator; 104,585 examples of four seconds in all. What
differs: our renderer plays them (the same soundfont, mono, no reverb but a simple one where they vary it), times are
rounded to frames of 1/50 s, and a crop of a click track drops the click that was sounding when it begins.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import scipy.signal

from musae_jax.compose.concepts import LEADS
from musae_jax.compose.render import render
from musae_jax.compose.score import FRAME_RATE, Note, Score

SECONDS = 4.0
FRAMES = 200
BEAT = 25  # frames: 120 beats a minute
VELOCITY = 64

# General MIDI without sound effects, without what has strong overtones or swoops
PROGRAMS = tuple(p for p in (*range(96), *range(104, 112)) if p not in (8, 9, 14, 21, 22, 23, 31, 47, 55, 77, 78, 86))
LEAD_PROGRAMS = tuple(lead.program for lead in LEADS)  # those that the composer uses

MODES = {
    "ionian": (0, 2, 4, 5, 7, 9, 11),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
    "phrygian": (0, 1, 3, 5, 7, 8, 10),
    "lydian": (0, 2, 4, 6, 7, 9, 11),
    "mixolydian": (0, 2, 4, 5, 7, 9, 10),
    "aeolian": (0, 2, 3, 5, 7, 8, 10),
    "locrian": (0, 1, 3, 5, 6, 8, 10),
}
TRIADS = {"major": (0, 4, 7), "minor": (0, 3, 7), "aug": (0, 4, 8), "dim": (0, 3, 6)}
PROGRESSIONS = (  # mode, scale degrees counted from 1
    *(("ionian", degrees) for degrees in (
        (1, 4, 5, 1), (1, 4, 6, 5), (1, 5, 6, 4), (1, 6, 4, 5), (2, 5, 1, 6),
        (4, 1, 5, 6), (4, 5, 3, 6), (5, 4, 1, 5), (5, 6, 4, 1), (6, 4, 1, 5),
    )),
    *(("aeolian", degrees) for degrees in (
        (1, 2, 5, 1), (1, 3, 4, 1), (1, 4, 5, 1), (1, 6, 3, 7), (1, 6, 7, 1),
        (1, 6, 7, 3), (1, 7, 6, 4), (4, 7, 1, 1), (7, 6, 7, 1),
    )),
)  # fmt: skip
SIGNATURES = ((2, 2), (2, 4), (3, 4), (3, 8), (4, 4), (6, 8), (9, 8), (12, 8))
CLICKS = (  # voice, program, pitch of the first click of a bar and of the others
    ("drums", 0, 37, 31),
    ("melody", 115, 37, 31),
    ("melody", 115, 52, 48),
    ("melody", 116, 52, 48),
    ("melody", 118, 52, 48),
)
REVERBS = (0.0, 0.5, 1.0)


@dataclass(frozen=True)
class Example:
    """Four seconds of music, the class of each label of its set, and how much reverb to add (0 to 1)."""

    score: Score
    labels: dict[str, Any]
    reverb: float = 0.0


@dataclass(frozen=True)
class ConceptSet:
    """`examples(programs)` writes the set; `target` is the label that published probes are scored on."""

    examples: Callable[[Sequence[int]], Iterator[Example]]
    target: str
    classes: int  # of the target
    count: int  # of examples with all of `PROGRAMS`


def _notes(programs: Sequence[int]) -> Iterator[Example]:
    for pitch, program in product(range(108), programs):
        labels = {"pitch class": pitch % 12, "octave": pitch // 12, "register": min(pitch // 36, 2)}
        yield Example(_play([(pitch,)] * 4, 2 * BEAT, program), labels)


def _intervals(programs: Sequence[int]) -> Iterator[Example]:
    for root, size, style, program in product(range(60, 72), range(1, 13), ("up", "down", "unison"), programs):
        low, high = (root,), (root + size,)
        chords = {"up": [low, high], "down": [high, low], "unison": [low + high] * 2}[style] * 4
        yield Example(_play(chords, BEAT, program), {"interval": size, "root": root % 12, "style": style})


def _scales(programs: Sequence[int]) -> Iterator[Example]:
    for tonic, mode, style, program in product(range(12), MODES, ("up", "down"), programs):
        steps = [(_tonic(tonic) + step,) for step in (*MODES[mode], 12)]
        steps = steps if style == "up" else steps[::-1]
        yield Example(_play(steps, BEAT, program), {"mode": mode, "root": tonic, "style": style})


def _chords(programs: Sequence[int]) -> Iterator[Example]:
    for root, kind, inversion, program in product(range(12), TRIADS, (0, 1, 2), programs):
        # theirs builds the augmented triad on the third degree of a minor scale, which moves some of its octaves
        lowest = _tonic((root - 3) % 12) + 3 if kind == "aug" else _tonic(root)
        notes = [lowest + step for step in TRIADS[kind]]
        notes = notes[inversion:] + [note + 12 for note in notes[:inversion]]
        labels = {"kind": kind, "inversion": inversion, "root": root}
        yield Example(_play([tuple(notes)] * 4, 2 * BEAT, program), labels)


def _progressions(programs: Sequence[int]) -> Iterator[Example]:
    for tonic, (mode, degrees), program in product(range(12), PROGRESSIONS, programs):
        # every chord lies within the tonic's octave
        chords = [tuple(_tonic(tonic) + MODES[mode][(d - 1 + third) % 7] for third in (0, 2, 4)) for d in degrees]
        labels = {"progression": f"{mode} {'-'.join(map(str, degrees))}", "key": tonic}
        yield Example(_play(chords, 2 * BEAT, program), labels)


def _tempos(programs: Sequence[int]) -> Iterator[Example]:
    for bpm, (number, click), take in product(range(50, 211), enumerate(CLICKS), range(5)):
        start = np.random.default_rng([bpm, number, take]).integers(0, 16 * FRAME_RATE + 1)
        yield Example(_clicks(click, 60 * FRAME_RATE / bpm, 4, int(start)), {"bpm": bpm, "click": number})


def _signatures(programs: Sequence[int]) -> Iterator[Example]:
    for (beats, division), reverb, (number, click), take in product(SIGNATURES, REVERBS, enumerate(CLICKS), range(10)):
        rng = np.random.default_rng([beats, division, int(2 * reverb), number, take])
        labels = {"signature": f"{beats}/{division}", "beats": beats, "subdivision": division, "click": number}
        start = int(rng.integers(0, 26 * FRAME_RATE + 1))
        yield Example(_clicks(click, 4 * BEAT / division, beats, start), labels, reverb)


SETS = {
    "notes": ConceptSet(_notes, "pitch class", 12, 9936),
    "intervals": ConceptSet(_intervals, "interval", 12, 39744),
    "scales": ConceptSet(_scales, "mode", 7, 15456),
    "chords": ConceptSet(_chords, "kind", 4, 13248),
    "chord progressions": ConceptSet(_progressions, "progression", 19, 20976),
    "tempos": ConceptSet(_tempos, "bpm", 161, 4025),
    "time signatures": ConceptSet(_signatures, "signature", 8, 1200),
}


def render_example(example: Example, sampling_rate: int) -> np.ndarray:
    """The sound of an example, float32 [4 s], scaled to a peak of 1 as theirs is before it is encoded."""
    audio = render(example.score, sampling_rate)
    if example.reverb:
        audio = audio + example.reverb * _reverberated(audio, sampling_rate)
    return audio / np.float32(max(float(np.abs(audio).max()), 1e-6))


def _tonic(pitch_class: int) -> int:
    """The MIDI pitch nearest middle C."""
    return 60 + pitch_class - (12 if pitch_class > 5 else 0)


def _play(chords: Sequence[tuple[int, ...]], length: int, program: int) -> Score:
    notes = [
        Note(i * length, length, pitch, VELOCITY, program, "melody")
        for i, chord in enumerate(chords)
        for pitch in chord
    ]
    return Score(tuple(notes), FRAMES)


def _clicks(click: tuple[str, int, int, int], unit: float, beats: int, start: int) -> Score:
    """Clicks every `unit` frames, the first of `beats` marked, from frame `start` of a longer track."""
    voice, program, first, other = click
    notes = []
    for number in range(int(np.ceil(start / unit)), int((start + FRAMES) / unit) + 1):
        at = round(number * unit) - start
        if 0 <= at < FRAMES:
            pitch, velocity = (other, 75) if number % beats else (first, 100)
            notes.append(Note(at, max(1, min(round(unit), FRAMES - at)), pitch, velocity, program, voice))
    return Score(tuple(notes), FRAMES)


def _reverberated(audio: np.ndarray, sampling_rate: int) -> np.ndarray:
    """The sound of a room that fades by 60 dB in 1.2 s, about as loud as the direct sound of a click."""
    time = np.arange(round(1.2 * sampling_rate)) / sampling_rate
    noise = np.random.default_rng(0).standard_normal(len(time)) * 10 ** (-3 * time / 1.2)
    echo = scipy.signal.fftconvolve(audio, noise / np.linalg.norm(noise))[: len(audio)]
    return echo.astype(np.float32)
