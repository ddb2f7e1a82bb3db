"""Training the pocket's tagger: a small Audio Spectrogram Transformer that says which of the composer's concepts hold.

It hears 2.56 s at a time. What comes and goes (chords, whether the melody sounds) is asked of the middle of that
window, so that a window at every place tells when; what holds for whole clips is asked of every window, and averaged.
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

COMING_AND_GOING = ("chord root", "chord quality")  # and melody: sounding; hits and beats pass too fast for a window
TAGS = tuple(
    c.name for c in VOCABULARY if c.level == "clip" or c.family in COMING_AND_GOING or c.name == "melody: sounding"
)
WINDOW = 256  # frames of 10 ms
MIDDLE = 32  # frames of truth (20 ms) in the middle of a window, of which most must have the concept
TAGGER = ASTConfig(
    hidden_size=192,
    num_hidden_layers=4,
    num_attention_heads=6,
    intermediate_size=768,
    frequency_stride=16,
    time_stride=16,
    max_length=WINDOW,
    num_mel_bins=128,
    labels=TAGS,
)
FRONT_END = FrontEnd(num_mel_bins=128, mean=-9.0, std=2.5)  # about those of the composer's music


@dataclasses.dataclass(frozen=True)
class TaggerTraining:
    """How the tagger is trained."""

    steps: int = 3000
    batch_size: int = 32  # windows
    learning_rate: float = 2e-3
    warmup: int = 100
    decay: float = 0.6  # last share of the steps, over which the learning rate falls to nothing
    weight_decay: float = 0.05
    seed: int = 0


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


def window_truth(truth: np.ndarray, start: int) -> np.ndarray:
    """Which tags hold in the window of `WINDOW` spectrogram frames from `start`: bool [T, C] -> float32 [tags]."""
    middle = (start + WINDOW // 2) // 2
    span = truth[max(0, middle - MIDDLE // 2) : middle + MIDDLE // 2]
    return (span.mean(0) > 0.5)[[CONCEPT_INDEX[name] for name in TAGS]].astype(np.float32)


def measure_tagger(config: ASTConfig, params: dict, bank: EarBank) -> dict[str, float]:
    """Mean AUROC of what holds for clips (means over windows) and of what comes and goes (by window); held-out nats."""
    starts = np.linspace(0, bank.tagger.shape[1] - WINDOW, 7).round().astype(int)
    clips = len(bank.tagger)
    mel = np.stack([clip[start : start + WINDOW] for clip in bank.tagger for start in starts]).astype(np.float32)
    mel = FRONT_END.normalised(mel)
    truth = np.stack([window_truth(clip, start) for clip in bank.truth for start in starts])  # [n·W, tags]
    logits = in_batches(jax.jit(lambda x: tag_logits(config, params, x)), mel, 16)
    nats = float(optax.sigmoid_binary_cross_entropy(logits, truth).mean())
    framed = np.asarray([VOCABULARY[CONCEPT_INDEX[name]].level == "frame" for name in TAGS])
    by_clip = [array.reshape(clips, len(starts), -1).mean(1)[:, ~framed] for array in (logits, truth)]
    figures = {"nats": nats}
    for name, values, told in (
        ("auroc_clips", by_clip[0], by_clip[1] > 0.5),
        ("auroc_frames", logits[:, framed], truth[:, framed] > 0.5),
    ):
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
        starts = rng.integers(bank.tagger.shape[1] - WINDOW + 1, size=training.batch_size)
        mel = np.stack([bank.tagger[c, s : s + WINDOW] for c, s in zip(clips, starts)]).astype(np.float32)
        mel = FRONT_END.normalised(mel)
        truth = np.stack([window_truth(bank.truth[c], s) for c, s in zip(clips, starts)])
        state, nats = tagger_step(state, mel, truth, config, training)
        return state, {"nats": nats}

    state = {"params": params, "opt": optimiser(training).init(params)}
    measure = lambda state: measure_tagger(config, state["params"], held_out)  # noqa: E731
    state = train_loop(folder, state, training.steps, step, measure, log, progress, save_every, 500)
    return Tagger(config=config, params=jax.tree.map(jnp.asarray, state["params"]), front_end=FRONT_END)
