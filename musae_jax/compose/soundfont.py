"""Finding a soundfont and playing single notes with it, in NumPy.

A note is a recording read at another speed (band-limited, so that nothing folds back at low sampling rates), times a
volume envelope. Not played: low-frequency oscillators, pitch envelopes, chorus, reverb, pan, and one drum silencing
another; the sound stays dry and its pitch steady, so that the score is the truth about it.
"""

import functools
import importlib.util
import itertools
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path

import numpy as np
from scipy.signal import lfilter

from musae_jax.compose.score import FRAME_RATE
from musae_jax.compose.sf2 import DRUM_BANK, Filter, SoundFont, Zone
from musae_jax.errors import MusaeError

_TAIL_SECONDS = 0.5  # a released note is gone after this: music whose truth is known should not linger
_DRUM_SECONDS = 1.5  # drums ignore their length, as drums do; a cymbal is faded out by here
_FADE_SECONDS = 0.1
_ATTACK_SECONDS = 0.001  # the shortest attack: avoids a click where a sample does not begin at zero
_CACHE_BYTES = 256 << 20
_PHASES = 1024  # steps between two samples of the recording: errors below -60 dB
_LOBES = 8  # zero crossings of the interpolating sinc on either side
_FASTEST = 64.0  # samples of the recording for one of the note; more is no music but a broken font
_CHUNK = 4096  # notes are interpolated in chunks of this length, so memory stays small


def find_soundfont(path: str | Path | None = None) -> Path | None:
    """The font to play with: `path`, else $MUSAE_SOUNDFONT, else pretty_midi's, else the system's, else None.

    The font inside the `pretty_midi` wheel (TimGM6mb.sf2) goes before the system's: it is the same file wherever that
    package is installed, so the same seed gives the same sound on every machine. It is found without importing the
    package. A font that is named but absent is a `MusaeError`.
    """
    named = path if path is not None else os.environ.get("MUSAE_SOUNDFONT") or None
    if named is not None:
        if not Path(named).is_file():
            raise MusaeError(f"the soundfont {named} is missing; name an existing .sf2 file or unset MUSAE_SOUNDFONT")
        return Path(named)
    spec = importlib.util.find_spec("pretty_midi")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        font = Path(folder) / "TimGM6mb.sf2"
        if font.is_file():
            return font
    for prefix in dict.fromkeys((sys.prefix, "/usr/local", "/usr")):
        for folder in ("sounds/sf2", "soundfonts"):
            fonts = sorted((Path(prefix) / "share" / folder).glob("*.sf2"))
            if fonts:
                return fonts[0]
    return None


@functools.lru_cache(maxsize=2)
def load_soundfont(path: Path) -> SoundFont:
    """The font at `path`, parsed once a process."""
    return SoundFont(path)


class _Cache:
    """The arrays used last, up to a number of bytes."""

    def __init__(self, limit: int):
        self._limit, self._bytes = limit, 0
        self._entries: OrderedDict[Hashable, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def at_least(self, key: Hashable, length: int, make: Callable[[int], np.ndarray]) -> np.ndarray:
        """An array of `length` or more; `make(n)` must return the same values in its first `length` for any n."""
        with self._lock:
            array = self._entries.get(key)
            if array is not None and len(array) >= length:
                self._entries.move_to_end(key)
                return array
        array = make(length)
        with self._lock:
            self._drop(key)
            self._entries[key] = array
            self._bytes += array.nbytes
            while self._bytes > self._limit and len(self._entries) > 1:
                self._drop(next(iter(self._entries)))
        return array

    def _drop(self, key: Hashable) -> None:
        old = self._entries.pop(key, None)
        self._bytes -= old.nbytes if old is not None else 0


_cache = _Cache(_CACHE_BYTES)


def render_note(
    font: SoundFont, program: int, drum: bool, pitch: int, velocity: int, frames_held: int, sampling_rate: int
) -> np.ndarray:
    """One note: float32 [n], from its onset to the end of its release (at most half a second after it is let go).

    Loudness goes with the square of the velocity. Drums play to their natural end whatever `frames_held` is. Raises
    `MusaeError` when the font has no sound for the key.
    """
    if drum:
        kit = 0 if (DRUM_BANK, 0) in font.presets else min((p for b, p in font.presets if b == DRUM_BANK), default=0)
        zones = font.matching(DRUM_BANK, kit, pitch, velocity)
        held = int(_DRUM_SECONDS * sampling_rate)
        voices = [_drum(font, zone, pitch, held, sampling_rate) for zone in zones]
    else:
        zones = font.matching(0, program, pitch, velocity)
        held = frames_held * sampling_rate // FRAME_RATE
        voices = [_held_and_released(font, zone, pitch, held, sampling_rate) for zone in zones]
    note = np.zeros(max(len(voice) for voice in voices), np.float32)
    for zone, voice in zip(zones, voices):
        loudness = (velocity if zone.fixed_velocity < 0 else zone.fixed_velocity) / 127
        note[: len(voice)] += np.float32(loudness**2 * 10 ** (-zone.attenuation / 20)) * voice
    return note


def _held_and_released(font: SoundFont, zone: Zone, pitch: int, held: int, rate: int) -> np.ndarray:
    release = zone.envelope.release
    tail = int(min(_TAIL_SECONDS, max(release * 0.8, 0.02)) * rate)  # 80 dB down after 0.8 of it
    wave = _wave(font, zone, pitch, held + tail, rate)
    levels = _levels(zone, pitch, held + 1, rate)
    voice = wave[: held + tail].copy()
    voice[:held] *= levels[:held]
    voice[held:] *= levels[held] * _release(release, tail, rate)
    return voice


def _drum(font: SoundFont, zone: Zone, pitch: int, length: int, rate: int) -> np.ndarray:
    voice = _wave(font, zone, pitch, length, rate)[:length] * _levels(zone, pitch, length, rate)[:length]
    fade = int(_FADE_SECONDS * rate)
    voice[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
    return voice


@functools.lru_cache(maxsize=256)
def _release(release: float, tail: int, rate: int) -> np.ndarray:
    """From 1 down at 100 dB in `release` seconds, faded to exactly 0 over the last part of `tail` samples."""
    curve = 10 ** (-5 * np.arange(tail) / max(release * rate, 1))
    fade = min(int(_FADE_SECONDS * rate), tail)
    curve[tail - fade :] *= np.linspace(1, 0, fade)
    return curve.astype(np.float32)


def _rounded(length: int, rate: int) -> int:
    """Up to the next half second, so that a few lengths serve all notes."""
    block = max(rate // 2, 1)
    return -(-length // block) * block


def _levels(zone: Zone, pitch: int, length: int, rate: int) -> np.ndarray:
    """The envelope while the key is held: float32 [>= length], linear attack, hold, decay in dB, sustain."""
    envelope = zone.envelope
    hold = envelope.hold * 2.0 ** ((60 - pitch) * zone.key_hold / 1200)
    decay = envelope.decay * 2.0 ** ((60 - pitch) * zone.key_decay / 1200)

    def make(wanted: int) -> np.ndarray:
        seconds = np.arange(_rounded(wanted, rate)) / rate - envelope.delay
        attack = max(envelope.attack, _ATTACK_SECONDS)
        fall = np.clip((seconds - attack - hold) * (100 / max(decay, 1e-3)), 0, envelope.sustain)
        return (np.clip(seconds / attack, 0, 1) * 10 ** (-fall / 20)).astype(np.float32)

    return _cache.at_least((envelope, hold, decay, rate), length, make)


def _wave(font: SoundFont, zone: Zone, pitch: int, length: int, rate: int) -> np.ndarray:
    """The recording at the note's pitch, without envelope: float32 [>= length] in about -1..1."""

    def make(wanted: int) -> np.ndarray:
        wave = _interpolate(font, zone, zone.step(pitch) / rate, _rounded(wanted, rate))
        return _low_pass(wave, zone.filter, rate)

    return _cache.at_least((font.identity, zone, pitch, rate), length, make)


def _interpolate(font: SoundFont, zone: Zone, step: float, length: int) -> np.ndarray:
    """Reads the recording at 0, step, 2 step, …: float32 [length], by windowed sinc with the narrower band's cutoff."""
    if step > _FASTEST:
        raise MusaeError(f"the soundfont {font.path} plays a sample {step:.0f} times too fast; name another .sf2 file")
    table = _sinc_table(round(max(1.0, step), 6))
    taps = table.shape[1]
    half = taps // 2
    source = _unrolled(font, zone, int(step * length) + taps + 1, half)
    windows = np.lib.stride_tricks.sliding_window_view(source, taps)
    wave = np.empty(length, np.float32)
    for begin in range(0, length, _CHUNK):
        ticks = np.rint(np.arange(begin, min(begin + _CHUNK, length)) * (step * _PHASES)).astype(np.int64)
        rows, phases = ticks // _PHASES, ticks % _PHASES
        wave[begin : begin + len(ticks)] = np.einsum("nt,nt->n", windows[rows], table[phases])
    return wave


def _unrolled(font: SoundFont, zone: Zone, length: int, before: int) -> np.ndarray:
    """`before` zeros, then the recording with its loop repeated (or zeros after its end): float32 [before + length]."""
    source = np.zeros(before + length, np.float32)
    end = zone.loop_end if zone.loops else zone.end
    body = font.samples[zone.start : min(end, zone.start + length)]
    source[before : before + len(body)] = body
    remaining = length - len(body)
    if zone.loops and remaining > 0:
        loop = font.samples[zone.loop_start : zone.loop_end]
        source[before + len(body) :] = np.resize(loop, remaining)
    return source / 32768


@functools.lru_cache(maxsize=128)
def _sinc_table(step: float) -> np.ndarray:
    """Interpolation weights float32 [phases, taps]: row p reads at p / phases after tap `taps // 2`."""
    cutoff = 0.94 / step if step > 1 else 1.0  # as a share of the recording's own band
    half = int(np.ceil(_LOBES * step))
    offsets = np.arange(-half, half + 1)[None, :] - np.arange(_PHASES)[:, None] / _PHASES
    window = np.i0(9.0 * np.sqrt(np.clip(1 - (offsets / (half + 1)) ** 2, 0, None))) / np.i0(9.0)
    weights = cutoff * np.sinc(cutoff * offsets) * window
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _low_pass(wave: np.ndarray, low_pass: Filter, rate: int) -> np.ndarray:
    """The font's low-pass filter, at rest where the note begins; its cutoff moves in steps of 5 ms."""
    block = max(rate // 200, 1)
    seconds = np.arange(0, len(wave), block) / rate - low_pass.delay
    rise = np.clip(seconds / max(low_pass.attack, 1e-3), 0, 1) if low_pass.attack else (seconds >= 0) * 1.0
    fall = 1 - np.maximum(seconds - low_pass.attack - low_pass.hold, 0) / max(low_pass.decay, 1e-3)
    cents = low_pass.cents + low_pass.move * np.minimum(rise, np.maximum(fall, low_pass.sustain))
    hertz = np.minimum(8.176 * 2.0 ** (cents / 1200), 0.45 * rate)
    if hertz.min() >= 0.45 * rate:
        return wave
    quality = 10 ** ((low_pass.resonance - 3.01) / 20)
    gain = 10 ** (-low_pass.resonance / 40)  # as the specification asks, resonance takes half its height from the rest
    filtered = np.empty(len(wave))
    state = np.zeros(2)
    changes = [0, *(np.flatnonzero(np.diff(hertz)) + 1), len(hertz)]
    for first, last in itertools.pairwise(changes):
        angle = 2 * np.pi * hertz[first] / rate
        alpha, cosine = np.sin(angle) / (2 * quality), np.cos(angle)
        feed = np.array([(1 - cosine) / 2, 1 - cosine, (1 - cosine) / 2]) * (gain / (1 + alpha))
        back = np.array([1, -2 * cosine / (1 + alpha), (1 - alpha) / (1 + alpha)])
        part = slice(first * block, last * block)
        filtered[part], state = lfilter(feed, back, wave[part].astype(np.float64), zi=state)
    return filtered.astype(np.float32)
