"""The spectra that descriptors, moments and the judge of audio share."""

from functools import lru_cache

import librosa
import numpy as np
import soxr

RATE = 16000  # Hz; audio at other rates is resampled first
HOP = 320  # samples: 50 frames a second
WINDOW = 1024  # samples
CHROMA_WINDOW = 4096  # samples; long enough to tell semitones apart from 130 Hz up
KEYS = ("C", "C sharp", "D", "E flat", "E", "F", "F sharp", "G", "A flat", "A", "B flat", "B")


@lru_cache
def mel_filter() -> np.ndarray:
    """64 mel bands over the bins of a window of `WINDOW` samples at 16 kHz. [64, bins]"""
    return librosa.filters.mel(sr=RATE, n_fft=WINDOW, n_mels=64)


@lru_cache
def chroma_filter() -> np.ndarray:
    """12 pitch classes over the bins of a window of `CHROMA_WINDOW` samples at 16 kHz. [12, bins]"""
    chroma = librosa.filters.chroma(sr=RATE, n_fft=CHROMA_WINDOW, tuning=0.0)
    chroma[:, : int(65 * CHROMA_WINDOW / RATE)] = 0  # below C2 semitones share a bin
    return chroma


def at_rate(audio: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Sound [S] as float32 at `RATE`, at least as long as the longest window."""
    audio = np.asarray(audio, np.float32)
    if sampling_rate != RATE:
        audio = soxr.resample(audio, sampling_rate, RATE).astype(np.float32)
    return np.pad(audio, (0, max(0, CHROMA_WINDOW - len(audio))))
