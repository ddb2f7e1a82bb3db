"""Training the pocket's language model: text encoder, projection and decoder together, on the codes of the codec.

Beside every loss stand the unigram's and a smoothed bigram's on the same held-out codes, because a cross-entropy means
nothing alone.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from musae_jax.checkpoint import TrainingCheckpoints
from musae_jax.models.delay import delayed_targets
from musae_jax.models.musicgen import MusicGenConfig, TextStates, forward, random_musicgen, text_states, tokenize
from musae_jax.pocket.corpus import caption, composition

EMBEDDING_GAIN = 20.0
CAPTIONS = 4  # wordings of each clip


@dataclasses.dataclass(frozen=True)
class LanguageModelTraining:
    """How the language model is trained; a batch holds whole clips."""

    steps: int = 3000
    batch_size: int = 4
    learning_rate: float = 3e-3
    warmup: int = 100
    weight_decay: float = 0.05
    text_dropout: float = 0.15  # share of clips without text, which guidance needs
    first_codebook_weight: float = 2.0  # against 1 for each other codebook
    seed: int = 0


def optimiser(training: LanguageModelTraining) -> optax.GradientTransformation:
    """AdamW with warm-up and cosine decay; biases and norms are not decayed."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, training.learning_rate, training.warmup, training.steps, training.learning_rate / 50
    )
    decayed = lambda params: jax.tree.map(lambda x: x.ndim > 1, params)  # noqa: E731
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b1=0.9, b2=0.98, weight_decay=training.weight_decay, mask=decayed),
    )


def losses(config: MusicGenConfig, params: dict, codes, ids, mask) -> jnp.ndarray:
    """Cross-entropy in nats per codebook [K] of codes [B, K, T] given tokens [B, L]; a row with no tokens has no text."""
    text = text_states(config, params, ids, mask)
    text = TextStates(states=text.states, mask=mask)
    logits = forward(config, params, codes, text).logits  # [B, K, P, V]
    targets, real = delayed_targets(codes)  # [B, K, P], [K, P]
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return jnp.sum(jnp.mean(nats, 0) * real, -1) / jnp.sum(real, -1)


@partial(jax.jit, static_argnames=("config", "training"), donate_argnames=("state",))
def train_step(state, codes, ids, mask, config: MusicGenConfig, training: LanguageModelTraining):
    """One step on codes [B, K, T] and tokens [B, L]; returns (state, per-codebook losses [K])."""

    def loss(params):
        nats = losses(config, params, codes, ids, mask)
        weights = jnp.ones(nats.shape[0]).at[0].set(training.first_codebook_weight)
        return jnp.sum(nats * weights) / jnp.sum(weights), nats

    (_, nats), grads = jax.value_and_grad(loss, has_aux=True)(state["params"])
    updates, opt = optimiser(training).update(grads, state["opt"], state["params"])
    return {"params": optax.apply_updates(state["params"], updates), "opt": opt}, nats


def init_state(config: MusicGenConfig, training: LanguageModelTraining) -> dict:
    """Random parameters (without the codec's) and the optimiser's state."""
    params = dict(random_musicgen(config, jax.random.key(training.seed)).params)
    del params["audio"]
    # Drawn at 0.02 like every weight, the codes would start fifty times quieter than the positions added to them.
    params["decoder"] = {**params["decoder"], "embedding": params["decoder"]["embedding"] * EMBEDDING_GAIN}
    return {"params": params, "opt": optimiser(training).init(params)}


def corpus_tokens(tokenizer, seed: int, clips: int, seconds: float, padding: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and mask of every clip in every wording, int32 [clips, CAPTIONS, L]."""
    styles = [composition(seed, index, seconds).style for index in range(clips)]
    texts = [caption(seed, index, variant, style) for index, style in enumerate(styles) for variant in range(CAPTIONS)]
    ids, mask = tokenize(tokenizer, texts, padding)
    return ids.reshape(clips, CAPTIONS, -1), mask.reshape(clips, CAPTIONS, -1)


def baselines(train: np.ndarray, held_out: np.ndarray, vocabulary: int) -> dict[str, list[float]]:
    """Held-out nats of a unigram and of a bigram smoothed by the unigram, per codebook; codes int [clips, K, T]."""
    out = {"unigram": [], "bigram": []}
    for k in range(train.shape[1]):
        counts = np.bincount(train[:, k].ravel(), minlength=vocabulary) + 0.5
        unigram = counts / counts.sum()
        pairs = np.zeros((vocabulary, vocabulary))
        np.add.at(pairs, (train[:, k, :-1].ravel(), train[:, k, 1:].ravel()), 1)
        strength = 10.0  # pseudo-counts spread as the unigram
        bigram = (pairs + strength * unigram) / (pairs.sum(1, keepdims=True) + strength)
        out["unigram"].append(float(-np.mean(np.log(unigram[held_out[:, k, 1:]]))))
        out["bigram"].append(float(-np.mean(np.log(bigram[held_out[:, k, :-1], held_out[:, k, 1:]]))))
    return out


def evaluate(
    config: MusicGenConfig, params: dict, codes: np.ndarray, ids: np.ndarray, mask: np.ndarray
) -> dict[str, list[float]]:
    """Held-out nats per codebook with the first caption and without text, over all clips in batches of 8."""
    measure = jax.jit(losses, static_argnums=0)
    out = {"with_text": [], "without_text": []}
    for start in range(0, len(codes) - len(codes) % 8, 8):
        rows = slice(start, start + 8)
        batch = jnp.asarray(codes[rows], jnp.int32)
        out["with_text"].append(measure(config, params, batch, ids[rows, 0], mask[rows, 0]))
        out["without_text"].append(measure(config, params, batch, ids[rows, 0], np.zeros_like(mask[rows, 0])))
    return {name: np.mean(values, 0).tolist() for name, values in out.items()}


def train_language_model(
    config: MusicGenConfig,
    training: LanguageModelTraining,
    codes: np.ndarray,
    tokens: tuple[np.ndarray, np.ndarray],
    held_out: tuple[np.ndarray, np.ndarray, np.ndarray],
    folder: str | Path,
    log: Callable[[dict], None],
    progress: Callable[[int, int, str], None] | None = None,
    save_every: int = 200,
) -> dict:
    """Trains to `training.steps` and returns the parameters; a killed run goes on from its last checkpoint."""
    checkpoints = TrainingCheckpoints(Path(folder) / "checkpoints")
    state = init_state(config, training)
    done = 0
    if checkpoints.note() is not None:
        done, state = checkpoints.restore(state)
    log({"baselines": baselines(codes, held_out[0], config.decoder.vocab_size)})
    while done < training.steps:
        rng = np.random.default_rng([training.seed, done])  # the batch is a function of the step
        clips = rng.integers(len(codes), size=training.batch_size)
        wording = rng.integers(CAPTIONS, size=training.batch_size)
        keep = rng.random(training.batch_size) >= training.text_dropout
        ids, mask = tokens[0][clips, wording], tokens[1][clips, wording] * keep[:, None]
        state, nats = train_step(state, codes[clips].astype(np.int32), ids, mask.astype(np.int32), config, training)
        done += 1
        if progress:
            progress(done, training.steps, "steps")
        if done % 50 == 0:
            log({"step": done, "nats": np.asarray(nats).tolist()})
        if done % save_every == 0 or done == training.steps:
            checkpoints.save(done, state, {"stage": "language model"})
        if done % 500 == 0 or done == training.steps:
            log({"step": done, "held_out": evaluate(config, state["params"], *held_out)})
    checkpoints.close()
    return state["params"]
