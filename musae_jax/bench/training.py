"""What a step of training the pocket costs, and which parts of the codec's take the time.

The language model's frames a second stand beside the rate that one large product would allow for the same FLOPs. The
codec's step is of small convolutions and FFTs, which no product describes; there each part is timed alone, forward and
back, and its share of the whole step told. The parts are compiled apart, so shares need not add up to one.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from musae_jax.bench.cost import best_of, product_rate
from musae_jax.bench.rows import bench_row
from musae_jax.errors import MusaeError
from musae_jax.models.encodec import EncodecConfig, Layer, apply_layers, decoder_layers, encoder_layers
from musae_jax.models.musicgen import MusicGenConfig
from musae_jax.pocket import codec, lm
from musae_jax.pocket.corpus import ROLL
from musae_jax.pocket.planning import SIZES, Plan
from musae_jax.pocket.spectral import spectral_loss

Progress = Callable[[int, int, str], None]
WORDS = 16  # of a caption


@dataclasses.dataclass(frozen=True)
class TrainingBench:
    """What is timed: steps of so many `frames` of whole clips, as the defaults of training have them.

    Attributes:
      frames: of a whole clip.
      times: each is timed so often, after once that is not; the fastest counts.
    """

    frames: int = 500
    times: int = 5


def bench_training(
    config: MusicGenConfig, bench: TrainingBench | None = None, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """Rows, see `bench_row`.

    training/product            FLOP a second, in 1e9, of the product of two large matrices.
    training/language model, …  frames a second of a step on whole clips, and on beginnings; the peer is that rate
                                divided by the FLOPs of a frame as XLA counts them, the ratio how much of it is reached.
    training/codec              frames a second of a step with quantisation.
    training/codec, part        share of that step's time that a part takes alone, forward and back.

    Raises:
      MusaeError: nothing is to be timed.
    """
    b = bench or TrainingBench()
    if b.times < 1:
        raise MusaeError(f"--times is {b.times}; give 1 or more")
    rate = product_rate(jnp.float32)
    rows = [bench_row("training/product", {}, rate / 1e9, "GFLOP/s")]

    def done(found: list[dict[str, Any]]) -> None:
        rows.extend(found)
        if progress:
            progress(len(rows) - 1, 3 + len(_PARTS), "figures")

    done(_language_model(config, b, rate))
    step, frames = _codec_step(config.audio, b.times)
    done([bench_row("training/codec", {"frames": frames}, frames / step, "frames/s")])
    for name, call in _PARTS.items():
        seconds = sum(_seconds(function, *arrays, times=b.times) for function, arrays in call(config.audio))
        done([bench_row(f"training/codec, {name}", {}, 100 * seconds / step, "% of the step")])
    return rows


def _language_model(config: MusicGenConfig, b: TrainingBench, rate: float) -> list[dict[str, Any]]:
    training, rng, rows = lm.LanguageModelTraining(), np.random.default_rng(0), []
    state = lm.init_state(config, training)
    for name, count, frames in (
        ("whole clips", training.batch_size, b.frames),
        ("beginnings", training.batch_size * lm.SHORT, b.frames // lm.SHORT),
    ):
        shape, words = (count, frames), (count, WORDS)
        codes = rng.integers(config.decoder.vocab_size, size=(count, config.num_codebooks, frames), dtype=np.int32)
        holds = {name: rng.random((*shape, size)) < 0.1 for name, size in SIZES.items() if name != "beat"}
        asked = Plan(beat=rng.integers(SIZES["beat"], size=shape, dtype=np.int32), **holds)
        ids = rng.integers(2, config.text.vocab_size, size=words, dtype=np.int32)
        batch = jax.tree.map(jnp.asarray, lm.Batch(codes, ids, np.ones(words, np.int32), asked))
        step = lm.train_step.lower(state, batch, config, training).compile()
        flops = step.cost_analysis()["flops"] / (count * frames)

        def again(step: Any = step, batch: Any = batch) -> Any:
            nonlocal state  # its arrays are given up to the step
            state, figures = step(state, batch)
            return figures

        taken = best_of(again, b.times)
        shown = {"clips": count, "frames": frames}
        speed = count * frames / taken
        rows.append(bench_row(f"training/language model, {name}", shown, speed, "frames/s", rate / flops, "floor"))
    return rows


def _crops(config: EncodecConfig) -> tuple[jax.Array, jax.Array]:
    """Noise in the shape of a batch: audio [B, S] and a roll [B, T, ROLL]."""
    training, rng = codec.CodecTraining(), np.random.default_rng(0)
    shape = (training.batch_size, training.crop_frames)
    audio = rng.normal(size=(shape[0], shape[1] * config.hop_length)).astype(np.float32) / 8
    return jnp.asarray(audio), jnp.asarray(rng.random((*shape, ROLL)) < 0.1, jnp.float32)


def _codec_step(config: EncodecConfig, times: int) -> tuple[float, int]:
    """Seconds of a step, and its frames."""
    training, (audio, roll) = codec.CodecTraining(), _crops(config)
    state = codec.init_state(config, training)

    def again() -> Any:
        nonlocal state
        state, metrics = codec.train_step(state, audio, roll, config, training, True)
        return metrics

    return best_of(again, times), training.batch_size * training.crop_frames


def _seconds(function: Callable[..., jax.Array], *arrays: Any, times: int) -> float:
    """Of a function and its gradient."""
    both = jax.jit(jax.value_and_grad(lambda *x: jnp.sum(function(*x)), argnums=tuple(range(len(arrays)))))
    return best_of(lambda: both(*arrays), times)


Timed = Iterator[tuple[Callable[..., jax.Array], tuple[Any, ...]]]  # functions with what they are given


def _spectral(config: EncodecConfig) -> Timed:
    audio, _ = _crops(config)
    yield lambda heard: spectral_loss(heard, audio, config.sampling_rate), (audio * 0.5,)


def _layers(*kinds: str) -> Callable[[EncodecConfig], Timed]:
    """All layers of some kinds, each on noise of the shape that comes to it."""

    def timed(config: EncodecConfig) -> Timed:
        training = codec.CodecTraining()
        halves = (
            (encoder_layers(config), training.crop_frames * config.hop_length, config.audio_channels),
            (decoder_layers(config), training.crop_frames, config.hidden_size),
        )
        for layers, frames, width in halves:
            for layer in layers:
                if layer.kind in kinds:
                    x = jnp.asarray(np.random.default_rng(0).normal(size=(training.batch_size, frames, width)), "f4")
                    module = _Alone(config, layer)
                    yield module.apply, (module.init(jax.random.key(0), x), x)
                frames = frames * layer.stride if layer.kind == "transposed" else frames // layer.stride
                width = layer.features or width

    return timed


class _Alone(nn.Module):
    """One layer of the codec."""

    config: EncodecConfig
    layer: Layer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return apply_layers(self.config, [self.layer], x)


_PARTS = {
    "spectral loss": _spectral,
    "LSTMs": _layers("lstm"),
    "transposed convolutions": _layers("transposed"),
    "other convolutions": _layers("conv", "residual"),
}
