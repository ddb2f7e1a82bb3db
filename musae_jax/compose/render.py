"""From a score to sound: a note always sounds the same and as loud, wherever it stands and whatever is around it."""

import functools
import importlib.util
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np

from musae_jax.compose.additive import additive_note
from musae_jax.compose.score import FRAME_RATE, Note, Score
from musae_jax.compose.sf2 import SoundFont
from musae_jax.compose.soundfont import find_soundfont, load_soundfont, render_note
from musae_jax.errors import MusaeError

RENDERERS = ("numpy", "tinysoundfont", "additive")
# One gain for all music, so that loud and soft stay audible. The composer's loudest bands peak near 0.75; a band with
# every voice at velocity 127 peaks above 1 and is scaled.
GAIN = 0.4
_TINYSOUNDFONT_DECIBELS = -5.0  # as loud as GAIN: its two channels, averaged, lose 3 dB


def render(
    score: Score,
    sampling_rate: int = 16000,
    renderer: str = "numpy",
    font: SoundFont | str | Path | None = None,
) -> np.ndarray:
    """The sound of `score`: float32 [S], mono, S = frames · sampling_rate / 50.

    A note begins exactly at sample start · sampling_rate / 50 and is cut at the end of the score. `renderer` is "numpy"
    (soundfont, no dependency), "tinysoundfont" (soundfont, an optional package) or "additive" (no font). `font` is a
    font or its path; by default `find_soundfont()`. Where there is no font, a warning is given once and the additive
    synthesiser plays. The gain is fixed; only a clip that would exceed 1 is scaled down, to 0.99.
    """
    if renderer not in RENDERERS:
        raise MusaeError(f"the renderer {renderer!r} is unknown; choose one of {', '.join(RENDERERS)}")
    if sampling_rate <= 0 or sampling_rate % FRAME_RATE:
        raise MusaeError(f"the sampling rate {sampling_rate} is no multiple of {FRAME_RATE}; use 16000, 24000 or 32000")
    for note in score.notes:
        _check(note)
    if renderer != "additive" and not isinstance(font, SoundFont):
        path = find_soundfont(font)
        if path is None:
            _warn_once()
            renderer = "additive"
        else:
            font = load_soundfont(path)
    length = score.frames * sampling_rate // FRAME_RATE
    if renderer == "tinysoundfont":
        audio = _play_tinysoundfont(score, sampling_rate, font.path)
    else:
        audio = np.zeros(length, np.float32)
        for note in score.notes:
            if note.start >= score.frames:
                continue
            drum = note.voice == "drums"
            if renderer == "numpy":
                sound = render_note(font, note.program, drum, note.pitch, note.velocity, note.frames, sampling_rate)
            else:
                sound = additive_note(note.program, drum, note.pitch, note.velocity, note.frames, sampling_rate)
            start = note.start * sampling_rate // FRAME_RATE
            part = audio[start : start + len(sound)]
            part += sound[: len(part)]
        audio *= np.float32(GAIN)
    peak = float(np.abs(audio).max(initial=0))
    if peak > 1:
        audio *= np.float32(0.99 / peak)
    return audio


def _check(note: Note) -> None:
    ranges = (
        ("pitch", 0, 127),
        ("velocity", 1, 127),
        ("program", 0, 127),
        ("start", 0, 1 << 30),
        ("frames", 1, 1 << 16),
    )
    for name, low, high in ranges:
        if not low <= getattr(note, name) <= high:
            raise MusaeError(f"the note {note} has {name} {getattr(note, name)}; it must be {low} to {high}")


@functools.cache
def _warn_once() -> None:
    warnings.warn(
        "no soundfont was found, so plain synthetic tones are played; install pretty_midi or set MUSAE_SOUNDFONT",
        stacklevel=3,
    )


def _tinysoundfont() -> ModuleType:
    if importlib.util.find_spec("tinysoundfont") is None:
        raise MusaeError("the renderer tinysoundfont is not installed; run `pip install --no-deps tinysoundfont`")
    import tinysoundfont

    return tinysoundfont


def _play_tinysoundfont(score: Score, sampling_rate: int, font: Path) -> np.ndarray:
    """As `render`, by the TinySoundFont library: each voice and program on a channel of its own, drums on channel 9."""
    synth = _tinysoundfont().Synth(gain=_TINYSOUNDFONT_DECIBELS, samplerate=sampling_rate)
    identity = synth.sfload(str(font))
    synth.program_select(9, identity, 128, 0, True)
    free = [channel for channel in range(128) if channel != 9]
    channels: dict[tuple[str, int], int] = {}
    events: list[tuple[int, int, int, int, int]] = []  # (sample, 0 off | 1 on, channel, pitch, velocity)
    hop = sampling_rate // FRAME_RATE
    for note in score.notes:
        channel = 9
        if note.voice != "drums":
            key = (note.voice, note.program)
            if key not in channels:
                channels[key] = free[len(channels)]
                synth.program_select(channels[key], identity, 0, note.program)
            channel = channels[key]
        events.append((note.start * hop, 1, channel, note.pitch, note.velocity))
        events.append(((note.start + note.frames) * hop, 0, channel, note.pitch, 0))
    audio = np.zeros(score.frames * hop, np.float32)
    now = 0
    for sample, on, channel, pitch, velocity in [*sorted(events), (len(audio), 0, -1, 0, 0)]:
        until = min(sample, len(audio))
        if until > now:
            stereo = np.frombuffer(synth.generate(until - now), np.float32).reshape(-1, 2)
            audio[now:until] = stereo.mean(axis=1)
            now = until
        if channel < 0 or sample >= len(audio):
            break
        if on:
            synth.noteon(channel, pitch, velocity)
        else:
            synth.noteoff(channel, pitch)
    return audio
