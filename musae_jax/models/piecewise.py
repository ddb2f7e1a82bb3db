"""Codes to sound, piece by piece: what `decode_codes` gives, in bounded memory and while the codes are still coming.

The codec's decoder is a convolution, an LSTM and a stack of convolutions. The LSTM's state is carried from piece to
piece; the convolutions hear a few frames around a piece, which are decoded with it and thrown away.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from musae_jax.models import encodec
from musae_jax.models.encodec import EncodecConfig, Layer, apply_layers, decoder_layers
from musae_jax.models.lstm import LSTM
from musae_jax.models.musicgen import MusicGenConfig, decode_codes

WHOLE = 1500  # frames; longer clips (30 s) are decoded in pieces, because a minute at 32 kHz takes gigabytes
PIECE = 500  # frames of a piece where nobody waits for it


class Pieces:
    """The sound of rows that have the same number of frames, in pieces of at most `piece` frames."""

    def __init__(self, config: MusicGenConfig, params: Any, rows: int, frames: int, piece: int) -> None:
        self.config, self.params = config, params["audio"]
        first, rest = _halves(config.audio)
        self.first_reach = reach(config.audio, first)
        self.reach = reach(config.audio, rest)
        self.frames = frames
        self.width = min(frames, piece + sum(self.reach))
        self.heard = self.done = 0  # frames that have gone through the LSTM, and that have become sound
        lines, width = rows * config.audio_channels, first[-1].features
        self.hidden = jnp.zeros((lines, frames, width))
        # Two arrays a layer, none shared: they are donated.
        self.states = tuple(tuple(jnp.zeros((lines, width)) for _ in "hc") for _ in range(config.audio.num_lstm_layers))

    def until(self, codes: jax.Array, end: int) -> jax.Array:
        """The sound of the frames from the last piece's end to `end`: float32 [B, samples], in stereo [B, 2, samples].

        Of the codes int [B, K, ≥ frames] those up to `end` + `lookahead_frames` must be known.
        """
        c = self.config
        codes = jnp.stack([codes[:, side :: c.audio_channels] for side in range(c.audio_channels)], axis=1)
        codes = codes.reshape(-1, *codes.shape[2:])  # [B·channels, K, T]
        heard = min(end + self.reach[1], self.frames)
        if heard > self.heard:
            begin = max(self.heard - self.first_reach[0], 0)
            size = min(heard + self.first_reach[1], self.frames) - begin
            self.hidden, self.states = _hear(
                c.audio, self.params, self.hidden, self.states, codes, jnp.int32(begin), jnp.int32(self.heard),
                size, heard - self.heard,
            )  # fmt: skip
            self.heard = heard
        start = min(max(self.done - self.reach[0], 0), self.frames - self.width)
        sound = _sound(
            c.audio, self.params, self.hidden, jnp.int32(start), jnp.int32(self.done), self.width, end - self.done
        )
        self.done = end
        return sound if c.audio_channels == 1 else sound.reshape(-1, c.audio_channels, sound.shape[-1])


def decode_rows(config: MusicGenConfig, params: Any, codes: jax.Array, lengths: Sequence[int]) -> jax.Array:
    """As `decode_codes`, for rows of different lengths in frames: each sounds as it does alone; then comes silence."""
    if len(set(lengths)) == 1:
        return _decode_equal(config, params, codes[..., : lengths[0]])
    shape = (config.audio_channels,) * (config.audio_channels > 1)
    audio = jnp.zeros((len(lengths), *shape, max(lengths) * config.hop_length))
    for length, rows in rows_by_length(lengths).items():
        sound = _decode_equal(config, params, codes[rows, :, :length])
        audio = audio.at[rows, ..., : sound.shape[-1]].set(sound)
    return audio


def rows_by_length(lengths: Sequence[int]) -> dict[int, np.ndarray]:
    """Which rows have which length."""
    return {int(length): np.flatnonzero(np.asarray(lengths) == length) for length in np.unique(lengths)}


def _decode_equal(config: MusicGenConfig, params: Any, codes: jax.Array) -> jax.Array:
    frames = codes.shape[-1]
    if frames <= WHOLE:
        return decode_codes(config, params, codes)
    pieces = Pieces(config, params, codes.shape[0], frames, PIECE)
    ends = [*range(PIECE, frames, PIECE), frames]
    return jnp.concatenate([pieces.until(codes, end) for end in ends], axis=-1)


def lookahead_frames(config: EncodecConfig) -> int:
    """How many frames after a frame its sound depends on, rounded up."""
    return sum(reach(config, half)[1] for half in _halves(config))


def reach(config: EncodecConfig, layers: Sequence[Layer]) -> tuple[int, int]:
    """How many frames before and after a frame some layers (none of them an LSTM) hear, rounded up."""
    rate, before, after = 1, 0.0, 0.0  # samples a frame at this depth, frames, frames
    for layer in layers:
        if layer.kind in ("conv", "residual"):
            kernel = layer.kernel if layer.kind == "conv" else config.residual_kernel_size
            span = (kernel - 1) * layer.dilation / rate
            right = 0.0 if config.use_causal_conv else ((kernel - 1) * layer.dilation // 2) / rate
            before, after = before + span - right, after + right
        elif layer.kind == "transposed":
            before, after = before + 1 / rate, after + 1 / rate
            rate *= layer.stride
    return math.ceil(before), math.ceil(after)


def _halves(config: EncodecConfig) -> tuple[list[Layer], list[Layer]]:
    """The decoder's layers before its LSTM and after."""
    layers = decoder_layers(config)
    lstm = next(i for i, layer in enumerate(layers) if layer.kind == "lstm")
    return layers[:lstm], layers[lstm + 1 :]


class _First(nn.Module):
    config: EncodecConfig

    @nn.compact
    def __call__(self, latents, states, skip, count):
        """Latents [B, T, D] of a stretch to the LSTM's output for `count` of its frames, from `skip`."""
        x = apply_layers(self.config, _halves(self.config)[0], latents)
        x = jax.lax.dynamic_slice_in_dim(x, skip, count, axis=1)
        return LSTM(self.config.num_lstm_layers, name="lstm")(x, states)


class _Rest(nn.Module):
    config: EncodecConfig

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        return apply_layers(self.config, _halves(self.config)[1], hidden)


@functools.partial(jax.jit, static_argnames=("config", "size", "count"), donate_argnames=("hidden", "states"))
def _hear(config, params, hidden, states, codes, begin, heard, size, count):
    """Writes the LSTM's output of `count` frames from `heard`, read in `size` frames of codes from `begin`."""
    latents = encodec.dequantize(params["codebooks"], jax.lax.dynamic_slice_in_dim(codes, begin, size, axis=2))
    new, states = _First(config).apply({"params": params["decoder"]}, latents, states, heard - begin, count)
    return jax.lax.dynamic_update_slice_in_dim(hidden, new, heard, axis=1), states


@functools.partial(jax.jit, static_argnames=("config", "width", "count"))
def _sound(config, params, hidden, start, done, width, count):
    """The sound of `count` frames from `done`, made of `width` frames from `start`."""
    hidden = jax.lax.dynamic_slice_in_dim(hidden, start, width, axis=1)
    audio = _Rest(config).apply({"params": params["decoder"]}, hidden)[..., 0]
    hop = config.hop_length
    return jax.lax.dynamic_slice_in_dim(audio, (done - start) * hop, count * hop, axis=1)
