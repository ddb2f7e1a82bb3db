"""Going on with the codec's decoder alone, on codes that no longer change.

The language model has learned the codes, so encoder and codebooks are fixed; what the codes are turned into can still
become better, before or after the language model is trained, at less than half of the cost of a step of the codec.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from musae_jax.models.encodec import EncodecConfig, EncodecDecoder, dequantize
from musae_jax.pocket.loop import train_loop
from musae_jax.pocket.schedule import warm_stable_decay
from musae_jax.pocket.spectral import spectral_loss


@dataclasses.dataclass(frozen=True)
class PolishTraining:
    """How the decoder is polished; lengths in 50 Hz frames."""

    steps: int = 4000
    batch_size: int = 8
    crop_frames: int = 50
    learning_rate: float = 1e-3
    warmup: int = 100
    decay: float = 0.4  # last share of the steps, over which the learning rate falls to nothing
    waveform_weight: float = 1.0  # the codes are fixed, so following the phase no longer costs predictability
    linear_weight: float = 1.0
    seed: int = 0


def optimiser(training: PolishTraining) -> optax.GradientTransformation:
    """Muon on kernels, seen as matrices from everything an output channel reads to the channels; Adam on biases."""

    def matrices(params):
        convolution = optax.contrib.MuonDimensionNumbers((0, 1), 2)
        plain = optax.contrib.MuonDimensionNumbers()
        return jax.tree.map(lambda x: {3: convolution, 2: plain}.get(x.ndim), params)

    rate = warm_stable_decay(training.learning_rate, training.warmup, training.steps, training.decay)
    muon = optax.contrib.muon(rate, muon_weight_dimension_numbers=matrices, consistent_rms=0.2)
    return optax.chain(optax.clip_by_global_norm(1.0), muon)


@partial(jax.jit, static_argnames=("config", "training"), donate_argnames=("state",))
def polish_step(state, codebooks, audio, codes, config: EncodecConfig, training: PolishTraining):
    """One step on audio [B, S] and its codes [B, K, T]; returns (state, figures)."""

    def loss(params):
        heard = EncodecDecoder(config).apply({"params": params}, dequantize(codebooks, codes))[..., 0]
        spectral = spectral_loss(heard, audio, config.sampling_rate, training.linear_weight)
        wave = jnp.mean(jnp.abs(heard - audio)) / (jnp.mean(jnp.abs(audio)) + 1e-3)
        return spectral + training.waveform_weight * wave, {"spectral": spectral, "waveform": wave}

    (_, figures), grads = jax.value_and_grad(loss, has_aux=True)(state["decoder"])
    updates, opt = optimiser(training).update(grads, state["opt"], state["decoder"])
    return {"decoder": optax.apply_updates(state["decoder"], updates), "opt": opt}, figures


def polish_decoder(
    config: EncodecConfig,
    training: PolishTraining,
    params: dict[str, Any],
    audio: np.ndarray,
    codes: np.ndarray,
    evaluate: Callable[[Any], dict[str, Any]],
    folder: str | Path,
    log: Callable[[dict], None],
    progress: Callable[[int, int, str], None] | None = None,
) -> Any:
    """The decoder's parameters after more training from params {"decoder", "codebooks", …} on int16 audio
    [clips, S] and the codes [clips, K, T] of the same clips; a killed run goes on from its last checkpoint.

    `evaluate` takes the decoder's parameters and gives held-out figures for the log.
    """
    hop = config.hop_length

    def step(state, number):
        rng = np.random.default_rng([training.seed, 1, number])
        clips = rng.integers(len(codes), size=training.batch_size)
        starts = rng.integers(codes.shape[2] - training.crop_frames + 1, size=training.batch_size)
        spans = [slice(start, start + training.crop_frames) for start in starts]
        heard = np.stack([audio[i, s.start * hop : s.stop * hop] for i, s in zip(clips, spans)]) / np.float32(32767)
        said = np.stack([codes[i, :, s] for i, s in zip(clips, spans)]).astype(np.int32)
        return polish_step(state, params["codebooks"], heard, said, config, training)

    # copied: the step gives its state's buffers away
    decoder = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params["decoder"])
    state = {"decoder": decoder, "opt": optimiser(training).init(decoder)}
    state = train_loop(folder, state, training.steps, step, lambda s: evaluate(s["decoder"]), log, progress)
    return state["decoder"]
