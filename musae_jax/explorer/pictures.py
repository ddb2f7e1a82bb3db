"""Log-mel pictures: dark ink on light paper, one column a frame of 1/50 s, so that they share the curve's time axis."""

from functools import lru_cache
from pathlib import Path

import librosa
import numpy as np
from PIL import Image

from musae_jax.files import atomic_path

RATE = 16000  # Hz
HOP = 320  # samples: 50 columns a second
WINDOW = 1024
MELS = 80
RANGE_DB = 65.0  # below the loudest point; quieter than that is paper


@lru_cache
def _filter() -> np.ndarray:
    return librosa.filters.mel(sr=RATE, n_fft=WINDOW, n_mels=MELS, fmin=30)


@lru_cache
def palette() -> bytes:
    """256 colours of three bytes from paper through blue to ink; lightness falls evenly, so that inverting it suits a
    dark page."""
    stops = np.asarray([0.0, 0.25, 0.5, 0.75, 1.0])
    colours = np.asarray([[250, 248, 244], [203, 213, 222], [122, 150, 180], [54, 82, 128], [20, 22, 46]])
    ramp = np.linspace(0, 1, 256)
    return np.stack([np.interp(ramp, stops, c) for c in colours.T], 1).round().astype(np.uint8).tobytes()


def mel_picture(audio: np.ndarray, frames: int | None = None) -> np.ndarray:
    """Log-mel levels of audio [S] at 16 kHz as palette indices, low pitches at the bottom. -> uint8 [MELS, frames]"""
    frames = frames or max(1, round(len(audio) / HOP))
    # column t is centred on the middle of frame t
    padded = np.pad(np.asarray(audio, np.float32), (WINDOW // 2 - HOP // 2, WINDOW + frames * HOP))
    columns = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[: frames * HOP : HOP]  # [frames, WINDOW]
    power = np.abs(np.fft.rfft(columns * np.hanning(WINDOW).astype(np.float32))) ** 2
    level = 10 * np.log10(power @ _filter().T + 1e-10)  # [frames, MELS]
    top = max(float(level.max()), -60.0)  # silence stays paper
    shade = np.clip((level - top) / RANGE_DB + 1, 0, 1)
    return (shade.T[::-1] * 255).round().astype(np.uint8)


def write_picture(path: str | Path, audio: np.ndarray, frames: int | None = None) -> None:
    """Writes `mel_picture` as a PNG with a palette (some ten kB for ten seconds)."""
    image = Image.frombytes("P", (levels := mel_picture(audio, frames)).shape[::-1], levels.tobytes())
    image.putpalette(palette())
    with atomic_path(path) as temporary:
        image.save(temporary, "PNG", optimize=True)
