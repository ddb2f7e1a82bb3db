"""What can be measured moment by moment: which chord sounds, and where something is struck.

Chords by templates of the two triads on each root in the chroma of a quarter of a second, the bass counting for the
root; root and quality are told apart, since one is often right where the other is not. Strokes by the rise of the level
in bands: what a kick, a snare and a cymbal do to low, middle and high frequencies.
"""

from functools import lru_cache

import librosa
import numpy as np
import scipy.ndimage

from musae_jax.features.firing import PARTS, mean_of_shares
from musae_jax.labels.scores import Concept
from musae_jax.labels.spectra import CHROMA_WINDOW, HOP, KEYS, RATE, WINDOW, at_rate, chroma_filter

BANDS = {"low": (30, 150), "middle": (300, 3000), "high": (5000, 8000)}  # Hz
MOMENTS = (
    *(Concept(f"chord root: {key}", "chord root", "frame") for key in KEYS),
    *(Concept(f"chord quality: {quality}", "chord quality", "frame") for quality in ("major", "minor")),
    *(Concept(f"stroke: {band}", "stroke", "frame") for band in BANDS),
    Concept("stroke: any", "stroke", "frame"),
    Concept("level: high", "level", "frame"),
)
TRIADS = {"major": (0, 4, 7), "minor": (0, 3, 7)}
BASS_HZ = 260.0  # below which a tone counts for the root of a chord
BASS_WEIGHT = 0.5
SMOOTHING = 15  # frames over which chords are held together
FLOOR = 1e-3  # of the greatest energy of a band: the level below which nothing is struck


def describe_moments(audio: np.ndarray, sampling_rate: int, parts: int = PARTS) -> np.ndarray:
    """`MOMENTS` in each of `parts` equal shares of a clip: [S] -> float32 [W, C'].

    Chords: how much better a root, or a quality, fits than the others (cosine). Strokes: rise of a band's level in dB.
    """
    audio = at_rate(audio, sampling_rate)
    frames = len(audio) // HOP
    chroma = np.abs(librosa.stft(audio, n_fft=CHROMA_WINDOW, hop_length=HOP))[:, :frames]  # [bins, T]
    tones = chroma_filter() @ chroma  # [12, T]
    bass = chroma_filter()[:, : int(BASS_HZ * CHROMA_WINDOW / RATE)] @ chroma[: int(BASS_HZ * CHROMA_WINDOW / RATE)]
    tones, bass = (_unit(scipy.ndimage.uniform_filter1d(x, SMOOTHING, axis=1)) for x in (tones, bass))
    fit = _templates() @ tones + BASS_WEIGHT * np.tile(bass, (2, 1))  # [24, T], majors first
    roots = np.maximum(fit[:12], fit[12:])
    quality = fit[:12].max(0) - fit[12:].max(0)  # [T]

    power = np.abs(librosa.stft(audio, n_fft=WINDOW, hop_length=HOP))[:, :frames] ** 2
    hertz = np.fft.rfftfreq(WINDOW, 1 / RATE)
    energies = [power[(hertz >= low) & (hertz < high)].sum(0) for low, high in BANDS.values()] + [power.sum(0)]
    levels = [10 * np.log10(energy + FLOOR * energy.max() + 1e-12) for energy in energies]
    rises = [np.maximum(np.diff(level, prepend=level[:1]), 0) for level in levels]
    columns = [*(roots - roots.mean(0)), quality, -quality, *rises, levels[-1]]
    return mean_of_shares(np.stack(columns, 1)[None], parts)[0]


@lru_cache
def _templates() -> np.ndarray:
    """The 24 triads as directions in chroma, majors first: [24, 12]."""
    rows = np.zeros((24, 12))
    for number, triad in enumerate(TRIADS.values()):
        for root in range(12):
            rows[12 * number + root, [(root + step) % 12 for step in triad]] = 1
    return rows / np.sqrt(3)


def _unit(columns: np.ndarray) -> np.ndarray:
    return columns / np.maximum(np.linalg.norm(columns, axis=0), 1e-9)
