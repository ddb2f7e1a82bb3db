"""Spectral losses and distances of waveforms, in JAX."""

import functools

import jax.numpy as jnp
import librosa
import numpy as np

WINDOWS = (512, 1024, 2048)
FLOOR = 3e-4  # added to mel magnitudes before the logarithm; quieter bins are noise that nobody hears
TEXTURE_FLOOR = 1e-4  # the same for means over many frames, which tell a quieter noise from none


@functools.cache
def _mel_filters(sampling_rate: int, window: int, mels: int) -> np.ndarray:
    filters = librosa.filters.mel(sr=sampling_rate, n_fft=window, n_mels=mels, norm=None)
    return np.asarray(filters / np.maximum(filters.sum(1, keepdims=True), 1e-8), np.float32)  # [mels, window / 2 + 1]


def magnitudes(audio: jnp.ndarray, window: int) -> jnp.ndarray:
    """STFT magnitudes of [B, S], hop a quarter of the window, scaled so that a full-scale sine peaks near 0.5."""
    hop = window // 4
    count = (audio.shape[1] - window) // hop + 1
    # frames as four shifted reshapes: gathers are slow to differentiate on CPU
    blocks = audio[:, : (count + 3) * hop].reshape(audio.shape[0], count + 3, hop)
    frames = jnp.concatenate([blocks[:, i : i + count] for i in range(4)], axis=-1)  # [B, count, window]
    hann = np.hanning(window + 1)[:-1].astype(np.float32)
    spectrum = jnp.fft.rfft(frames * (hann / hann.sum()))
    return jnp.sqrt(jnp.real(spectrum) ** 2 + jnp.imag(spectrum) ** 2 + 1e-12)


def log_mel(audio: jnp.ndarray, sampling_rate: int, window: int = 1024, mels: int = 64) -> jnp.ndarray:
    """Natural logarithm of mel magnitudes, [B, frames, mels]."""
    return jnp.log(magnitudes(audio, window) @ _mel_filters(sampling_rate, window, mels).T + FLOOR)


def spectral_loss(
    heard: jnp.ndarray, truth: jnp.ndarray, sampling_rate: int, linear: float = 0.0, texture: float = 0.0
) -> jnp.ndarray:
    """Mean log-mel L1 plus spectral convergence over three windows; both [B, S].

    `linear` weighs the same L1 on the bins themselves: mel bands are too wide up high to tell harmonics from noise.
    `texture` weighs differences of mean and deviation over the whole crop (`_textures`), summed: an error that is
    always on one side costs little in each frame, but the ear learns a timbre from many.
    """
    total = 0.0
    for window in WINDOWS:
        mel = _mel_filters(sampling_rate, window, 64 if window <= 512 else 96).T
        a, b = magnitudes(heard, window), magnitudes(truth, window)
        total += jnp.mean(jnp.abs(jnp.log(a @ mel + FLOOR) - jnp.log(b @ mel + FLOOR)))
        total += jnp.sqrt(jnp.sum((a - b) ** 2)) / (jnp.sqrt(jnp.sum(b**2)) + 1e-3)
        if linear:
            total += linear * jnp.mean(jnp.abs(jnp.log(a + FLOOR) - jnp.log(b + FLOOR)))
        if texture:
            total += texture * jnp.mean(jnp.abs(_textures(a @ mel) - _textures(b @ mel)).sum(1))
    return total / len(WINDOWS)


def _textures(mel: jnp.ndarray) -> jnp.ndarray:
    """Mean and deviation over time of the logarithm of mel magnitudes [B, frames, mels]: [B, 2, mels]. The least of the
    statistics by which a texture is told (after McDermott and Simoncelli 2011)."""
    level = jnp.log(mel + TEXTURE_FLOOR)
    return jnp.stack([level.mean(1), jnp.sqrt(level.var(1) + 1e-4)], 1)


def log_mel_distance(heard: jnp.ndarray, truth: jnp.ndarray, sampling_rate: int) -> jnp.ndarray:
    """Mean absolute log-mel difference in dB, per clip [B]."""
    difference = jnp.abs(log_mel(heard, sampling_rate) - log_mel(truth, sampling_rate))
    return jnp.mean(difference, axis=(1, 2)) * (20 / np.log(10))


def si_sdr(heard: jnp.ndarray, truth: jnp.ndarray) -> jnp.ndarray:
    """Scale-invariant signal-to-distortion ratio in dB, per clip [B] (Le Roux et al. 2019)."""
    scale = jnp.sum(heard * truth, 1, keepdims=True) / (jnp.sum(truth**2, 1, keepdims=True) + 1e-8)
    target = scale * truth
    return 10 * jnp.log10((jnp.sum(target**2, 1) + 1e-8) / (jnp.sum((heard - target) ** 2, 1) + 1e-8))
