"""The mel spectrogram of MusiCNN in NumPy, which Essentia's Discogs models and MAEST hear."""

from functools import lru_cache

import librosa
import numpy as np

SAMPLING_RATE = 16_000  # Hz
LENGTH, HOP = 512, 256  # samples
BANDS = 96


def musicnn_mel(audio: np.ndarray, bands: int = BANDS) -> np.ndarray:
    """Compressed mel energies of sound [S] in -1..1 at 16 kHz: float32 [T, bands], log10(1 + 10000·energy).

    Frames of 512 samples every 256, centred and padded with zeros, T = 1 + S // 256; symmetric Hann window, Slaney's
    mel bands from 0 to 8 kHz. Within 2e-4 of Essentia's `TensorflowInputMusiCNN`, on which these models were trained;
    the extractor that comes with MAEST on the hub takes the periodic window instead.
    """
    padded = np.pad(np.asarray(audio, np.float64), LENGTH // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, LENGTH)[::HOP]  # [T, LENGTH]
    power = np.abs(np.fft.rfft(frames * np.hanning(LENGTH))) ** 2
    return np.log10(1 + 10_000 * (power @ _filters(bands))).astype(np.float32)


@lru_cache(4)
def _filters(bands: int) -> np.ndarray:
    mel = librosa.filters.mel(sr=SAMPLING_RATE, n_fft=LENGTH, n_mels=bands, htk=False, norm="slaney", dtype=np.float64)
    return np.ascontiguousarray(mel.T)
