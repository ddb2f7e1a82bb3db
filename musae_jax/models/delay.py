"""The delay pattern: codebook k of a frame is written k columns later than codebook 0.

One start column comes first. Column c of a codebook delayed by d holds frame c − 1 − d where that frame exists and the
padding token elsewhere, so T frames fill T + D columns, D being the number of different delays. In stereo the
codebooks alternate left, right, and the two of a pair share their delay (transformers, `build_delay_pattern_mask`).

The model reads column c and predicts column c + 1.
"""

import jax
import jax.numpy as jnp
import numpy as np


def codebook_delays(codebooks: int, channels: int = 1) -> np.ndarray:
    """The delay of every codebook in columns, int32 [K]: 0 1 2 3 in mono, 0 0 1 1 2 2 3 3 in stereo."""
    return np.arange(codebooks, dtype=np.int32) // channels


def apply_delay(
    codes: jax.Array, padding: int, channels: int = 1, frames: int | jax.Array | None = None, columns: int | None = None
) -> jax.Array:
    """Codes [B, K, T] laid out with the delay, int32 [B, K, C].

    `columns` is C: T + 1 by default, which is what teacher forcing reads (the start column and one for each frame; the
    last columns, that hold only the later codebooks, are left out as audiocraft does); T + D holds everything.
    `frames` (one for all, or [B, 1, 1]) may be smaller than T: later frames are padding.
    """
    codes = jnp.asarray(codes, jnp.int32)
    columns = codes.shape[-1] + 1 if columns is None else columns
    frames = codes.shape[-1] if frames is None else frames
    frame = jnp.arange(columns)[None, :] - 1 - codebook_delays(codes.shape[-2], channels)[:, None]  # [K, C]
    index = jnp.broadcast_to(jnp.clip(frame, 0, codes.shape[-1] - 1), (*codes.shape[:-1], columns))
    return jnp.where((frame >= 0) & (frame < frames), jnp.take_along_axis(codes, index, axis=-1), padding)


def undo_delay(columns: jax.Array, frames: int, channels: int = 1) -> jax.Array:
    """The codes [B, K, T] of T = `frames` frames from their delayed columns [B, K, C], C ≥ T + D."""
    columns = jnp.asarray(columns)
    delays = codebook_delays(columns.shape[-2], channels)
    return jnp.stack([columns[..., k, 1 + d : 1 + d + frames] for k, d in enumerate(delays)], axis=-2)


def delayed_targets(codes: jax.Array, channels: int = 1, positions: int | None = None) -> tuple[jax.Array, jax.Array]:
    """What the model should predict at each position, and where that is a real frame.

    Codes [B, K, T] give targets int32 [B, K, P] (column p + 1) and a mask bool [K, P]; P is T + 1 by default. Masked
    targets are 0, so that a cross-entropy can be computed everywhere and multiplied by the mask.
    """
    positions = codes.shape[-1] + 1 if positions is None else positions
    frame = np.arange(positions)[None, :] - codebook_delays(codes.shape[-2], channels)[:, None]
    targets = apply_delay(codes, 0, channels, columns=positions + 1)[..., 1:]
    return targets, jnp.asarray((frame >= 0) & (frame < codes.shape[-1]))
