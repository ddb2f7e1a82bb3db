"""What unconditional samples sound like, beside real music through the codec and beside random codes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musae_jax.batching import in_batches
from musae_jax.labels.descriptors import COLUMNS, describe
from musae_jax.labels.evidence import interval, resampled_means
from musae_jax.labels.spectra import CHROMA_WINDOW, chroma_filter
from musae_jax.models.generate import generate
from musae_jax.models.musicgen import MusicGen, decode_codes
from musae_jax.pocket.spectral import magnitudes

SAMPLES_AT_A_TIME = 64
DIATONIC = (0, 2, 4, 5, 7, 9, 11)


def pitch_shares(audio: np.ndarray) -> np.ndarray:
    """The share of each of the 12 pitch classes in the energy of clips [n, S] at 16 kHz, [n, 12]."""

    def chroma(sound):
        power = magnitudes(jnp.asarray(sound), CHROMA_WINDOW) ** 2
        return power.mean(1) @ chroma_filter().T

    energy = in_batches(chroma, audio)
    return energy / np.maximum(energy.sum(1, keepdims=True), 1e-12)


def diatonic_mass(audio: np.ndarray) -> np.ndarray:
    """Share of the chroma energy of clips [n, S] at 16 kHz that lies in the best of the 12 diatonic scales, [n]."""
    scales = np.zeros((12, 12))
    for tonic in range(12):
        scales[tonic, [(tonic + step) % 12 for step in DIATONIC]] = 1
    return (pitch_shares(audio) @ scales.T).max(1)


def chroma_entropy(audio: np.ndarray) -> np.ndarray:
    """Entropy in bits of the pitch classes of clips [n, S] at 16 kHz, [n]: at most log2 12 = 3.58."""
    shares = pitch_shares(audio)
    return -(shares * np.log2(shares + 1e-12)).sum(1)


def onset_rate(audio: np.ndarray) -> np.ndarray:
    """Onsets a second of clips [n, S] at 16 kHz, [n]."""
    return np.asarray([describe(clip)[COLUMNS.index("onset rate")] for clip in audio])


MEASURES = {"diatonic_mass": diatonic_mass, "onset_rate": onset_rate, "chroma_entropy": chroma_entropy}


def measure_samples(mg: MusicGen, real: np.ndarray, key: jax.Array) -> dict[str, dict[str, Any]]:
    """Means of `MEASURES` over unconditional samples as many and as long as the codes of `real` music [n, K, T].

    Each measure gives {"samples", "codec", "random_codes", "ratio", "ci"}: of the model's samples, of the real music
    decoded, of codes drawn at random, samples to codec, and its 95 % interval over both.
    """
    count, codebooks, frames = real.shape
    keys = jax.random.split(key)
    random = jax.random.randint(keys[1], (count, codebooks, frames), 0, mg.config.decoder.vocab_size)
    codes = {"samples": sampled(mg, count, frames, keys[0]), "codec": real, "random_codes": np.asarray(random)}
    sounds = {where: in_batches(lambda c: decode_codes(mg.config, mg.params, c), of) for where, of in codes.items()}
    out = {}
    for name, measure in MEASURES.items():
        values = {where: measure(audio) for where, audio in sounds.items()}
        means = {where: float(of.mean()) for where, of in values.items()}
        draws = [resampled_means(values[where], seed=seed) for seed, where in enumerate(("samples", "codec"))]
        out[name] = {**means, "ratio": means["samples"] / means["codec"], "ci": interval(draws[0] / draws[1])}
    return out


def sampled(mg: MusicGen, count: int, frames: int, key: jax.Array) -> np.ndarray:
    """Codes of `count` unconditional samples, int32 [count, K, frames]."""
    codes = []
    for start in range(0, count, SAMPLES_AT_A_TIME):
        made = generate(
            mg.config, mg.params, None, jax.random.fold_in(key, start), seconds=frames / mg.config.frame_rate,
            batch_size=min(count, SAMPLES_AT_A_TIME), audio=False,
        )  # fmt: skip
        codes.append(np.asarray(made.codes))
    return np.concatenate(codes)[:count]
