"""What music goes on from: a prompt of codes or sound, one for all rows or one for each, of any lengths."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musae_jax.errors import MusaeError
from musae_jax.models.musicgen import MusicGenConfig, encode_audio


def prompt_codes(config: MusicGenConfig, params: Any, prompt: Any) -> tuple[jax.Array, tuple[int, ...]]:
    """A prompt as codes int32 [B, K, P] and the frames of each row (rows are padded with 0 to the longest).

    `prompt` is integer codes [B, K, P], or sound at `config.sampling_rate` Hz: float [B, S], in stereo [B, 2, S] (mono
    counts as both channels). Or a list with, for each row, one such array without its first axis, or None: nothing.
    """
    if not isinstance(prompt, (list, tuple)):
        codes = _codes(config, params, prompt)
        return codes, (codes.shape[-1],) * codes.shape[0]
    empty = jnp.zeros((1, config.num_codebooks, 0), jnp.int32)
    rows = [empty if row is None else _codes(config, params, _array(row)[None]) for row in prompt]
    lengths = tuple(row.shape[-1] for row in rows)
    longest = max(lengths, default=0)
    padded = [jnp.pad(row, ((0, 0), (0, 0), (0, longest - row.shape[-1]))) for row in rows]
    return jnp.concatenate(padded or [empty[:0]]), lengths


def _array(value: Any) -> Any:
    return value if isinstance(value, jax.Array) else np.asarray(value)


def _codes(config: MusicGenConfig, params: Any, prompt: Any) -> jax.Array:
    prompt = _array(prompt)
    known = not isinstance(prompt, jax.core.Tracer)
    if jnp.issubdtype(prompt.dtype, jnp.integer):
        if prompt.ndim != 3 or prompt.shape[1] != config.num_codebooks:
            raise MusaeError(
                f"the prompt's codes have shape {prompt.shape}, but this model reads [B, {config.num_codebooks}, P]"
            )
        if known and prompt.size and not (prompt.min() >= 0 and prompt.max() < config.decoder.vocab_size):
            raise MusaeError(
                f"the prompt's codes reach from {prompt.min()} to {prompt.max()}, but this model's are 0 to "
                f"{config.decoder.vocab_size - 1}; encode the sound with this model's own codec"
            )
        return jnp.asarray(prompt, jnp.int32)
    if not jnp.issubdtype(prompt.dtype, jnp.floating):
        raise MusaeError(f"the prompt holds {prompt.dtype}; give integer codes, or sound as floats within -1 and 1")
    shapes: Sequence[str] = ("[B, S]", "[B, 2, S]")[: config.audio_channels]
    stereo = prompt.ndim == 3 and prompt.shape[1] == 2 == config.audio_channels
    if not (prompt.ndim == 2 or stereo) or not prompt.shape[-1]:
        raise MusaeError(f"the prompt's sound has shape {prompt.shape}, but this model hears {' or '.join(shapes)}")
    if known and not np.isfinite(np.asarray(prompt)).all():
        raise MusaeError("the prompt's sound holds samples that are not numbers (NaN or infinite); export it again")
    return encode_audio(config, params, prompt)
