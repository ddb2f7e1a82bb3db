"""A plain synthesiser for machines without a soundfont: harmonics and noise under simple envelopes, all in NumPy.

Every General MIDI family (eight programs) has its own spectrum and envelope, so that instruments still differ; none
sounds like the real instrument.
"""

import functools

import numpy as np

from musae_jax.compose.score import FRAME_RATE

# family: (slope of the harmonics in dB an octave, level of even harmonics, attack s, fall in dB a second while held)
_FAMILIES = (
    (-9, 1.0, 0.003, 12), (-15, 0.3, 0.002, 18), (-8, 2.0, 0.010, 0), (-6, 0.9, 0.003, 15),
    (-10, 1.0, 0.005, 8), (-7, 1.0, 0.060, 0), (-8, 0.8, 0.080, 0), (-5, 1.0, 0.030, 0),
    (-6, 0.4, 0.030, 0), (-16, 0.7, 0.050, 0), (-6, 0.0, 0.005, 0), (-10, 0.6, 0.200, 0),
    (-12, 1.0, 0.100, 4), (-5, 0.7, 0.003, 14), (-13, 0.5, 0.002, 25), (-3, 0.5, 0.020, 5),
)  # fmt: skip
_RELEASE_SECONDS = 0.08
_HARMONICS = 24
# General MIDI percussion key: (Hz of a tone that falls an octave, share of tone, seconds for a fall of 60 dB)
_DRUMS = {35: (55, 0.95, 0.35), 36: (65, 0.95, 0.35), 38: (190, 0.4, 0.3), 40: (210, 0.4, 0.3), 42: (0, 0.0, 0.08)}
_DRUMS |= {44: (0, 0.0, 0.1), 46: (0, 0.0, 0.6), 49: (0, 0.0, 1.4), 51: (0, 0.0, 0.9)}
_DRUMS |= {key: (80 + 15 * (key - 41), 0.9, 0.45) for key in (41, 43, 45, 47, 48, 50)}


@functools.lru_cache(maxsize=512)
def _unit_note(program: int, drum: bool, pitch: int, frames: int, rate: int) -> np.ndarray:
    return _drum(pitch, rate) if drum else _pitched(program, pitch, frames, rate)


def additive_note(program: int, drum: bool, pitch: int, velocity: int, frames: int, sampling_rate: int) -> np.ndarray:
    """One note as float32 [n], its release included; loudness goes with the square of the velocity."""
    return np.float32((velocity / 127) ** 2) * _unit_note(0 if drum else program, drum, pitch, frames, sampling_rate)


def _pitched(program: int, pitch: int, frames: int, rate: int) -> np.ndarray:
    slope, even, attack, fall = _FAMILIES[program // 8 % len(_FAMILIES)]
    slope -= 0.4 * (program % 8)  # the members of a family differ a little in brightness
    hertz = 440 * 2 ** ((pitch - 69) / 12)
    held, tail = frames * rate // FRAME_RATE, int(_RELEASE_SECONDS * rate)
    seconds = np.arange(held + tail) / rate
    wave = np.zeros(held + tail)
    power = 0.0
    for harmonic in range(1, _HARMONICS + 1):
        if harmonic * hertz >= 0.45 * rate:
            break
        level = 10 ** (slope * np.log2(harmonic) / 20) * (even if harmonic % 2 == 0 else 1.0)
        wave += level * np.sin(2 * np.pi * harmonic * hertz * seconds)
        power += level**2
    envelope = np.clip(seconds / attack, 0, 1) * 10 ** (-fall * seconds / 20)
    envelope[held:] *= np.linspace(1, 0, tail)
    return (0.3 * wave * envelope / np.sqrt(max(power, 1e-9))).astype(np.float32)


def _drum(key: int, rate: int) -> np.ndarray:
    hertz, tone, length = _DRUMS.get(key, (0, 0.0, 0.2))
    seconds = np.arange(int(length * rate)) / rate
    noise = np.random.default_rng(key).uniform(-1, 1, len(seconds))
    if not tone:
        noise = np.diff(noise, prepend=0) / 2  # cymbals are bright
    cycles = hertz * (seconds + 0.05 * (1 - np.exp(-seconds / 0.05)))  # from twice the pitch down to it
    wave = tone * np.sin(2 * np.pi * cycles) + (1 - tone) * noise
    return (0.6 * wave * 10 ** (-3 * seconds / length) * np.linspace(1, 0, len(seconds))).astype(np.float32)
