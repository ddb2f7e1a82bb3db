"""From sound to the melody that a melody checkpoint reads: the loudest pitch class of each chroma frame."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musae_jax.errors import MusaeError
from musae_jax.models.musicgen import MusicGenConfig, refuse_melody

# Of the published checkpoints' `preprocessor_config.json`.
WINDOW = 16_384  # samples
HOP = 4_096  # samples a chroma frame
LONGEST = 30  # seconds, the length of a training clip


def encode_melody(config: MusicGenConfig, audio: Any) -> jax.Array:
    """Audio float [B, S] at `config.sampling_rate` Hz to chroma float32 [B, M, C], one-hot, M = 1 + S // 4096.

    What lies beyond 30 s is cut; clips shorter than a window are centred in one. Silence gives the first pitch class,
    which stands for no melody, so clips of a batch may be padded with zeros. The sound is taken as it is: separating
    voices from drums and bass beforehand (transformers' optional demucs step) sharpens the melody and is left to the
    caller.

    Raises:
      MusaeError: the model takes no melody, or the audio is not [B, S].

    Source: transformers' `MusicgenMelodyFeatureExtractor`.
    """
    refuse_melody(config)
    if np.ndim(audio) != 2 or not np.shape(audio)[1]:
        raise MusaeError(f"the melody's sound has shape {np.shape(audio)}; give mono clips [B, S]")
    audio = jnp.asarray(audio, jnp.float32)[:, : LONGEST * config.sampling_rate]
    return _chroma(audio, jnp.asarray(filters(config.sampling_rate, config.melody.num_chroma)))


def window_chroma(config: MusicGenConfig, audio: Any, start: int) -> jax.Array:
    """The chroma [B, M, C] of sound [B, S] for a window of music that begins at frame `start`: of the 30 s from there
    on, the sound beginning again wherever it ends (audiocraft's `MusicGen._generate_tokens`)."""
    positions = start * config.hop_length + np.arange(LONGEST * config.sampling_rate)
    return encode_melody(config, jnp.asarray(audio, jnp.float32)[:, positions % np.shape(audio)[1]])


@functools.cache
def filters(sampling_rate: int, num_chroma: int) -> np.ndarray:
    """How much each frequency of the window counts for each pitch class, float32 [C, 1 + WINDOW / 2]."""
    import librosa  # slow to import, needed only here

    return librosa.filters.chroma(sr=sampling_rate, n_fft=WINDOW, n_chroma=num_chroma, tuning=0.0)


@jax.jit
def _chroma(audio: jax.Array, filters: jax.Array) -> jax.Array:
    short = max(0, WINDOW - audio.shape[1])
    audio = jnp.pad(audio, ((0, 0), (short // 2, short - short // 2)))
    audio = jnp.pad(audio, ((0, 0), (WINDOW // 2, WINDOW // 2)), mode="reflect")
    starts = np.arange(0, audio.shape[1] - WINDOW + 1, HOP)
    hann = np.float32(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW))
    frames = audio[:, starts[:, None] + np.arange(WINDOW)] * hann  # [B, M, WINDOW]
    power = jnp.square(jnp.abs(jnp.fft.rfft(frames)))
    # The reference divides by each frame's largest value first, which changes no argmax.
    loudest = jnp.argmax(power @ filters.T, axis=-1)
    return jax.nn.one_hot(loudest, len(filters), dtype=jnp.float32)
