"""Kaldi's log mel filter bank in NumPy, as the Audio Spectrogram Transformer hears sound."""

from functools import lru_cache

import numpy as np

PREEMPHASIS = 0.97
LOWEST = 20.0  # Hz, the lower edge of the first band
FLOOR = float(np.finfo(np.float32).eps)  # of the energy under the logarithm: silence is ln of this, −15.9


def fbank(audio: np.ndarray, sampling_rate: int = 16_000, num_mel_bins: int = 128) -> np.ndarray:
    """Log mel energies of sound [S] in -1..1: float32 [T, num_mel_bins], natural logarithm.

    Frames of 25 ms every 10 ms that lie wholly in the sound, T = 1 + (S - 400) // 160 at 16 kHz (0 for a shorter one).
    Each frame loses its mean, is pre-emphasised and weighted with a symmetric Hann window. Source: torchaudio's
    `compliance.kaldi.fbank(htk_compat=True, use_energy=False, window_type="hanning", dither=0, frame_shift=10)`, which
    `ASTFeatureExtractor` of transformers calls or, without torchaudio, repeats.
    """
    length, hop = sampling_rate * 25 // 1000, sampling_rate * 10 // 1000
    if len(audio) < length:
        return np.zeros((0, num_mel_bins), np.float32)
    points = 1 << (length - 1).bit_length()
    frames = np.lib.stride_tricks.sliding_window_view(np.asarray(audio, np.float64), length)[::hop]  # [T, length]
    frames = frames - frames.mean(1, keepdims=True)
    frames = frames - PREEMPHASIS * np.concatenate([frames[:, :1], frames[:, :-1]], 1)
    power = np.abs(np.fft.rfft(frames * np.hanning(length), points)) ** 2  # [T, points / 2 + 1]
    return np.log(np.maximum(power @ mel_filters(sampling_rate, points, num_mel_bins), FLOOR)).astype(np.float32)


@lru_cache(8)
def mel_filters(sampling_rate: int, points: int, num_mel_bins: int) -> np.ndarray:
    """Triangles of equal height, evenly spaced and straight in Kaldi's mel: [points / 2 + 1, num_mel_bins]."""
    edges = np.linspace(_mel(LOWEST), _mel(sampling_rate / 2), num_mel_bins + 2)
    mel = _mel(np.arange(points // 2 + 1) * (sampling_rate / points))[:, None]
    rising, falling = (mel - edges[:-2]) / np.diff(edges)[:-1], (edges[2:] - mel) / np.diff(edges)[1:]
    return np.maximum(0.0, np.minimum(rising, falling))


def _mel(frequency: np.ndarray | float) -> np.ndarray:
    return 1127.0 * np.log1p(np.asarray(frequency) / 700.0)
