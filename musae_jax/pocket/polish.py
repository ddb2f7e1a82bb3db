"""Going on with the codec's decoder alone, on codes that no longer change.

The language model has learned the codes, so encoder and codebooks are fixed; what the codes are turned into can still
become better, at less than half of the cost of a step of the codec. Half of what it is polished on are codes that the
language model would have sampled in the place of each real one, with the real music as the target: a decoder that has
met real codes only makes noise of sampled ones, and a judge of sound hears drums in it. (For the same reason Tacotron 2
trains its vocoder on the spectrograms that it predicts itself, given the true past; Shen et al. 2018.)
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

from musae_jax.batching import in_batches
from musae_jax.models.encodec import EncodecConfig, EncodecDecoder, dequantize
from musae_jax.pocket.codec import evaluate
from musae_jax.pocket.corpus import Bank
from musae_jax.pocket.loop import train_loop
from musae_jax.pocket.schedule import warm_stable_decay
from musae_jax.pocket.spectral import log_mel_distance, spectral_loss


@dataclasses.dataclass(frozen=True)
class PolishTraining:
    """How the decoder is polished; lengths in 50 Hz frames."""

    steps: int = 3000
    clips: int = 1600  # the first of the corpus
    guessed: float = 0.5  # share of crops with the language model's guesses instead of the real codes
    batch_size: int = 8
    crop_frames: int = 50
    learning_rate: float = 1e-3
    warmup: int = 100
    decay: float = 0.4  # last share of the steps, over which the learning rate falls to nothing
    waveform_weight: float = 1.0  # the codes are fixed, so following the phase no longer costs predictability
    linear_weight: float = 1.0
    texture_weight: float = 1.0  # of the statistics of each band over the crop
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
        spectral = spectral_loss(heard, audio, config.sampling_rate, training.linear_weight, training.texture_weight)
        wave = jnp.mean(jnp.abs(heard - audio)) / (jnp.mean(jnp.abs(audio)) + 1e-3)
        return spectral + training.waveform_weight * wave, {"spectral": spectral, "waveform": wave}

    (_, figures), grads = jax.value_and_grad(loss, has_aux=True)(state["decoder"])
    updates, opt = optimiser(training).update(grads, state["opt"], state["decoder"])
    return {"decoder": optax.apply_updates(state["decoder"], updates), "opt": opt}, figures


def polish_decoder(
    config: EncodecConfig,
    training: PolishTraining,
    codec: dict[str, Any],
    bank: Bank,
    codes: np.ndarray,
    guesses: np.ndarray,
    held_out: Bank,
    held_guesses: np.ndarray,
    folder: str | Path,
    log: Callable[[dict], None],
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """`codec` as `train_codec` returns it, its decoder trained further on the first clips of `bank`, their codes and
    what the language model guesses in their place (`lm.guess_codes`), both [clips, K, T]; a killed run goes on from its
    last checkpoint. Held-out figures are those of `codec.evaluate`, and the log-mel distance of guesses."""
    hop, books = config.hop_length, codec["codebooks"]
    said = np.stack([codes, guesses])  # [2, clips, K, T]

    def step(state, number):
        rng = np.random.default_rng([training.seed, 1, number])
        clips = rng.integers(len(codes), size=training.batch_size)
        starts = rng.integers(codes.shape[2] - training.crop_frames + 1, size=training.batch_size)
        guessed = (rng.random(training.batch_size) < training.guessed).astype(int)
        spans = [slice(start, start + training.crop_frames) for start in starts]
        audio = np.stack([bank.audio[i, s.start * hop : s.stop * hop] for i, s in zip(clips, spans)])
        crops = np.stack([said[g, i, :, s] for g, i, s in zip(guessed, clips, spans)]).astype(np.int32)
        truth = audio.astype(np.float32) / 32767
        return polish_step(state, books, truth, crops, config, training)

    def polished(decoder):
        return {**codec, "params": {**codec["params"], "decoder": decoder}}

    # copied: the step gives its state's buffers away
    decoder = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), codec["params"]["decoder"])
    state = {"decoder": decoder, "opt": optimiser(training).init(decoder)}
    play = jax.jit(lambda params, codes: EncodecDecoder(config).apply({"params": params}, dequantize(books, codes)))

    def measure(state):
        figures = evaluate(polished(state["decoder"]), config, held_out)
        heard = in_batches(lambda codes: play(state["decoder"], codes), held_guesses[:32])[..., 0]
        truth = held_out.audio[: len(heard)].astype(np.float32) / 32767
        return {**figures, "log_mel_db_guessed": float(log_mel_distance(heard, truth, config.sampling_rate).mean())}

    state = train_loop(folder, state, training.steps, step, measure, log, progress)
    return polished(state["decoder"])
