"""Training the pocket's taggers: small Audio Spectrogram Transformers that say which of the composer's concepts hold.

One hears 2.56 s at a time. What comes and goes (chords, whether the melody sounds) is asked of the middle of that
window, so that a window at every place tells when; what holds for whole clips is asked of every window, and averaged.
A stroke passes too fast for it: a smaller one hears 0.32 s, and says what is struck in the middle tenth of a second.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from musae_jax.batching import in_batches
from musae_jax.compose.concepts import CONCEPT_INDEX, VOCABULARY
from musae_jax.labels.auroc import auroc
from musae_jax.models.ast import ASTConfig, Tagger, random_tagger, tag_logits
from musae_jax.models.ast_front_end import FrontEnd
from musae_jax.pocket.ears import EarBank
from musae_jax.pocket.loop import train_loop
from musae_jax.pocket.schedule import kernels_by_muon

STRUCK = ("percussion: kick", "percussion: snare", "percussion: hat", "melody: onset")
TAGS = tuple(c.name for c in VOCABULARY if c.name not in STRUCK and c.family != "bar")  # beats are heard by neither
TAGGER = ASTConfig(
    hidden_size=192,
    num_hidden_layers=4,
    num_attention_heads=6,
    intermediate_size=768,
    frequency_stride=16,
    time_stride=16,
    max_length=256,  # frames of 10 ms
    num_mel_bins=128,
    labels=TAGS,
)
STROKES = dataclasses.replace(
    TAGGER,
    hidden_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=384,
    time_stride=8,
    max_length=32,
    labels=STRUCK,
)
FRONT_END = FrontEnd(num_mel_bins=128, mean=-9.0, std=2.5)  # about those of the composer's music


@dataclasses.dataclass(frozen=True)
class TaggerTraining:
    """How a tagger is trained."""

    steps: int = 3000
    batch_size: int = 32  # windows
    middle: int = 32  # frames of truth (20 ms) in the middle of a window, that are asked about
    most: float = 0.5  # share of them above which a concept is said to hold
    learning_rate: float = 2e-3
    warmup: int = 100
    decay: float = 0.6  # last share of the steps, over which the learning rate falls to nothing
    weight_decay: float = 0.05
    seed: int = 0


STROKES_TRAINING = TaggerTraining(batch_size=128, middle=5, most=0.0)


@partial(jax.jit, static_argnames=("config", "training"), donate_argnames=("state",))
def tagger_step(state, mel, truth, config: ASTConfig, training: TaggerTraining):
    """One step on spectrograms [B, T, M] and truth [B, C]; returns (state, loss in nats a tag)."""

    def loss(params):
        return optax.sigmoid_binary_cross_entropy(tag_logits(config, params, mel), truth).mean()

    nats, grads = jax.value_and_grad(loss)(state["params"])
    updates, opt = optimiser(training).update(grads, state["opt"], state["params"])
    return {"params": optax.apply_updates(state["params"], updates), "opt": opt}, nats


def optimiser(training: TaggerTraining) -> optax.GradientTransformation:
    """See `kernels_by_muon`."""
    return kernels_by_muon(
        training.learning_rate, training.warmup, training.steps, training.decay, training.weight_decay
    )


def window_truth(truth: np.ndarray, start: int, config: ASTConfig, training: TaggerTraining) -> np.ndarray:
    """Which tags hold in the window of the spectrogram from frame `start`: bool [T, C] -> float32 [tags]."""
    middle = (start + config.max_length // 2) // 2
    first = max(0, middle - training.middle // 2)
    span = truth[first : middle - training.middle // 2 + training.middle]
    return (span.mean(0) > training.most)[[CONCEPT_INDEX[name] for name in config.labels]].astype(np.float32)


def measure_tagger(config: ASTConfig, params: dict, bank: EarBank, training: TaggerTraining) -> dict[str, float]:
    """Mean AUROC of what holds for clips (means over windows) and of what comes and goes (by window), where there is
    such; held-out nats."""
    window, frames = config.max_length, bank.tagger.shape[1]
    starts = np.linspace(0, frames - window, max(7, frames // window)).round().astype(int)
    clips = len(bank.tagger)
    mel = np.stack([clip[start : start + window] for clip in bank.tagger for start in starts]).astype(np.float32)
    mel = FRONT_END.normalised(mel)
    truth = np.stack([window_truth(clip, start, config, training) for clip in bank.truth for start in starts])
    logits = in_batches(jax.jit(lambda x: tag_logits(config, params, x)), mel, 16)  # [n·W, tags]
    nats = float(optax.sigmoid_binary_cross_entropy(logits, truth).mean())
    framed = np.asarray([VOCABULARY[CONCEPT_INDEX[name]].level == "frame" for name in config.labels])
    by_clip = [array.reshape(clips, len(starts), -1).mean(1)[:, ~framed] for array in (logits, truth)]
    figures = {"nats": nats}
    for name, values, told in (
        ("auroc_clips", by_clip[0], by_clip[1] > 0.5),
        ("auroc_frames", logits[:, framed], truth[:, framed] > 0.5),
    ):
        if values.shape[1]:
            scores = np.asarray([auroc(values[:, [c]], told[:, [c]])[0, 0] for c in range(values.shape[1])])
            figures[name] = float(np.nanmean(scores))
    return figures


def train_tagger(
    training: TaggerTraining,
    bank: EarBank,
    held_out: EarBank,
    folder: str | Path,
    log: Callable[[dict], None],
    progress: Callable[[int, int, str], None] | None = None,
    config: ASTConfig = TAGGER,
    save_every: int = 250,
) -> Tagger:
    """Trains from random parameters; a killed run goes on from its last checkpoint in `folder`."""
    params = random_tagger(config, jax.random.key(training.seed), FRONT_END).params

    def step(state, number):
        rng = np.random.default_rng([training.seed, 2, number])
        clips = rng.integers(len(bank.tagger), size=training.batch_size)
        starts = rng.integers(bank.tagger.shape[1] - config.max_length + 1, size=training.batch_size)
        mel = np.stack([bank.tagger[c, s : s + config.max_length] for c, s in zip(clips, starts)]).astype(np.float32)
        mel = FRONT_END.normalised(mel)
        truth = np.stack([window_truth(bank.truth[c], s, config, training) for c, s in zip(clips, starts)])
        state, nats = tagger_step(state, mel, truth, config, training)
        return state, {"nats": nats}

    state = {"params": params, "opt": optimiser(training).init(params)}
    measure = lambda state: measure_tagger(config, state["params"], held_out, training)  # noqa: E731
    state = train_loop(folder, state, training.steps, step, measure, log, progress, save_every, 500)
    return Tagger(config=config, params=jax.tree.map(jnp.asarray, state["params"]), front_end=FRONT_END)
