"""Training the pocket's language model: text encoder, projection and decoder together, on the codes of the codec.

Beside every loss stand the unigram's, a smoothed bigram's and a trigram's on the same held-out codes, because a
cross-entropy means nothing alone.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from musae_jax.batching import in_batches
from musae_jax.compose.composer import Style
from musae_jax.files import atomic_path
from musae_jax.models.delay import delayed_targets, undo_delay
from musae_jax.models.musicgen import MusicGenConfig, TextStates, forward, random_musicgen, text_states
from musae_jax.models.tokens import tokenize
from musae_jax.pocket.corpus import caption
from musae_jax.pocket.loop import train_loop
from musae_jax.pocket.planning import Plan, Scores, plan, plan_heads, plan_losses
from musae_jax.pocket.schedule import warm_stable_decay

EMBEDDING_GAIN = 20.0
CAPTIONS = 4  # wordings of each clip
SHORT = 4  # a beginning is this many times shorter than a clip, and a batch of them as many times larger


@dataclasses.dataclass(frozen=True)
class LanguageModelTraining:
    """How the language model is trained.

    Once a clip is under way, its own past says what it plays, so only its first frames teach the model to read the
    prompt. Therefore batches of whole clips and of beginnings, four times as many, take turns, and first frames weigh
    more. A beginning is never taken from the middle: at the start of a clip the position in the bar follows from the
    tempo, and with it when the next note comes. What the prompt says arrives in a noisy gradient, so all that reads it
    learns more slowly. And linear heads half-way up are asked for concepts, beat and what is to come (`planning`): the
    prompt tells them, or, where there is none, what was heard so far.
    """

    steps: int = 5500
    batch_size: int = 4  # whole clips, or 4 times as many beginnings
    learning_rate: float = 3e-3
    text_learning_rate: float = 1e-3  # of the text encoder, its projection and cross-attention
    warmup: int = 100
    decay: float = 0.5  # last share of the steps, over which the learning rate falls to nothing
    weight_decay: float = 0.05
    text_dropout: float = 0.3  # share of clips without text: guidance needs some, and on them it must listen
    first_codebook_weight: float = 2.0  # against 1 for each other codebook
    early_weight: float = 4.0  # of the first frame against late ones
    early_frames: float = 75.0  # over which the extra weight falls to a third (1/e)
    plan_weight: float = 0.3  # of each planning head's loss
    seed: int = 0


def optimiser(training: LanguageModelTraining) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) on the decoder's own matrices, Adam on the rest, with a rate of its own for the text.

    Muon's updates are scaled to Adam's size (`consistent_rms`), so that rates mean the same.
    """

    def rate(peak: float) -> optax.Schedule:
        return warm_stable_decay(peak, training.warmup, training.steps, training.decay)

    def kind(path, leaf) -> str:
        names = {str(part.key) for part in path}
        if "text" in names or "projection" in names or "cross_attention" in names:
            return "text"
        inside = any(name.startswith("block_") for name in names)
        return "matrix" if inside and leaf.ndim == 2 else "other"

    rates = {
        "text": optax.adamw(rate(training.text_learning_rate), b2=0.98, weight_decay=training.weight_decay),
        "matrix": optax.contrib.muon(
            rate(training.learning_rate), weight_decay=training.weight_decay, consistent_rms=0.2
        ),
        "other": optax.adam(rate(training.learning_rate), b2=0.98),
    }
    kinds = lambda params: jax.tree_util.tree_map_with_path(kind, params)  # noqa: E731
    return optax.chain(optax.clip_by_global_norm(1.0), optax.multi_transform(rates, kinds))


class Batch(NamedTuple):
    """Codes int32 [B, K, T], tokens and their mask int32 [B, L] (no tokens: no text), and what the heads are asked."""

    codes: np.ndarray
    ids: np.ndarray
    mask: np.ndarray
    plan: Plan


def losses(
    config: MusicGenConfig, params: dict, codes, ids, mask, weights=None, taps: tuple[int, ...] = ()
) -> tuple[jnp.ndarray, dict[int, jnp.ndarray]]:
    """Cross-entropy in nats per codebook [K] of codes [B, K, T] given tokens [B, L] (a row with no tokens has no text),
    and the residuals [B, P, D] of the blocks `taps`.

    `weights` [P] weigh the positions against each other; without them all count the same.
    """
    text = text_states(config, params, ids, mask)
    text = TextStates(states=text.states, mask=mask)
    out = forward(config, params, codes, text, taps=taps)  # logits [B, K, P, V]
    targets, real = delayed_targets(codes)  # [B, K, P], [K, P]
    nats = optax.softmax_cross_entropy_with_integer_labels(out.logits, targets)
    weights = real if weights is None else real * weights  # [K, P]
    return jnp.sum(jnp.mean(nats, 0) * weights, -1) / jnp.sum(weights, -1), out.residuals


@partial(jax.jit, static_argnames=("config", "training"), donate_argnames=("state",))
def train_step(state, batch: Batch, config: MusicGenConfig, training: LanguageModelTraining):
    """One step; returns (state, figures): "nats" per codebook [K], and for each planning head what it does not know."""

    frames = batch.codes.shape[2]
    early = 1 + (training.early_weight - 1) * jnp.exp(-jnp.arange(frames + 1) / training.early_frames)  # [P]
    middle = config.decoder.num_hidden_layers // 2

    def loss(params):
        nats, residuals = losses(config, params, batch.codes, batch.ids, batch.mask, early, (middle,))
        weights = jnp.ones(nats.shape[0]).at[0].set(training.first_codebook_weight)
        unknown = plan_losses(params["plan"], residuals[middle], batch.plan, early[:frames])
        total = jnp.sum(nats * weights) / jnp.sum(weights) + training.plan_weight * sum(unknown.values())
        return total, {"nats": nats, **unknown}

    (_, figures), grads = jax.value_and_grad(loss, has_aux=True)(state["params"])
    updates, opt = optimiser(training).update(grads, state["opt"], state["params"])
    return {"params": optax.apply_updates(state["params"], updates), "opt": opt}, figures


def init_state(config: MusicGenConfig, training: LanguageModelTraining, params: dict | None = None) -> dict:
    """Parameters without the codec's and with the planning heads, random ones or a copy of `params`, and the
    optimiser's state."""
    if params is None:
        params = _loud_enough(config, random_musicgen(config, jax.random.key(training.seed)).params)
    params = {name: jax.tree.map(jnp.array, part) for name, part in params.items() if name != "audio"}
    params["plan"] = plan_heads(config.decoder.hidden_size)
    return {"params": params, "opt": optimiser(training).init(params)}


def _loud_enough(config: MusicGenConfig, params: dict) -> dict:
    """Random parameters, of which what carries codes and text into the stream is as loud as the positions there."""
    params = dict(params)
    c = config.decoder
    # Drawn at 0.02 like every weight, the codes would start fifty times quieter than the positions added to them, and
    # what cross-attention says of the text a hundred times quieter than the stream: both start at unit size instead.
    params["decoder"] = {**params["decoder"], "embedding": params["decoder"]["embedding"] * EMBEDDING_GAIN}
    unit = lambda weight, width: weight * (width**-0.5 / c.initializer_factor)  # noqa: E731
    params["projection"] = {
        **params["projection"],
        "kernel": unit(params["projection"]["kernel"], config.text.d_model),
    }
    for i in range(c.num_hidden_layers):
        attention = dict(params["decoder"][f"block_{i}"]["cross_attention"])
        for name in ("query", "key", "value"):
            attention[name] = {"kernel": unit(attention[name]["kernel"], c.hidden_size)}
        params["decoder"][f"block_{i}"] = {**params["decoder"][f"block_{i}"], "cross_attention": attention}
    return params


def draw_batch(
    codes: np.ndarray,
    tokens: tuple[np.ndarray, np.ndarray],
    known: Scores,
    training: LanguageModelTraining,
    step: int,
) -> Batch:
    """The batch of a step: whole clips on even steps, on odd ones the beginnings of more clips. A function of the step,
    so a resumed run sees the same. Codes are [clips, K, T], tokens and mask [clips, CAPTIONS, L]."""
    rng = np.random.default_rng([training.seed, step])
    count, length = training.batch_size, codes.shape[2]
    if step % 2:
        count, length = count * SHORT, length // SHORT
    clips, wording = rng.integers(len(codes), size=count), rng.integers(CAPTIONS, size=count)
    keep = rng.random(count) >= training.text_dropout
    ids, mask = tokens[0][clips, wording], tokens[1][clips, wording] * keep[:, None]
    return Batch(codes[clips, :, :length].astype(np.int32), ids, mask.astype(np.int32), plan(known, clips, length))


def corpus_tokens(tokenizer, seed: int, styles: list[Style], padding: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and mask of the first clips of a corpus, in `styles`, in every wording, int32 [clips, CAPTIONS, L]."""
    texts = [caption(seed, index, variant, style) for index, style in enumerate(styles) for variant in range(CAPTIONS)]
    ids, mask = tokenize(tokenizer, texts, padding)
    return ids.reshape(len(styles), CAPTIONS, -1), mask.reshape(len(styles), CAPTIONS, -1)


def baselines(train: np.ndarray, held_out: np.ndarray, vocabulary: int) -> dict[str, list[float]]:
    """Held-out nats of a unigram, of a bigram smoothed by it and of a trigram smoothed by that, per codebook.

    Codes are int [clips, K, T]. Each order's counts are joined by 10 pseudo-counts spread as the order below says.
    """
    out = {"unigram": [], "bigram": [], "trigram": []}
    for k in range(train.shape[1]):
        seen, asked = train[:, k].astype(np.int64), held_out[:, k].astype(np.int64)
        counts = np.bincount(seen.ravel(), minlength=vocabulary) + 0.5
        likely = (counts / counts.sum())[asked]  # [clips, T]
        out["unigram"].append(float(-np.log(likely[:, 1:]).mean()))
        for order, name in ((1, "bigram"), (2, "trigram")):
            before, after = (_contexts(codes, order, vocabulary) for codes in (seen, asked))
            whole = before * vocabulary + seen[:, order:]
            found = _count(whole, after * vocabulary + asked[:, order:])
            likely = (found + 10 * likely[:, -after.shape[1] :]) / (_count(before, after) + 10)
            out[name].append(float(-np.log(likely).mean()))
    return out


def _contexts(codes: np.ndarray, order: int, vocabulary: int) -> np.ndarray:
    """One number for the `order` codes before each code that has them: [clips, T] -> [clips, T - order]."""
    length = codes.shape[1] - order
    return sum(codes[:, i : i + length] * vocabulary ** (order - 1 - i) for i in range(order))


def _count(seen: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """How often each of `asked` occurs in `seen`."""
    values, counts = np.unique(seen, return_counts=True)
    places = np.searchsorted(values, asked).clip(max=len(values) - 1)
    return np.where(values[places] == asked, counts[places], 0)


@partial(jax.jit, static_argnames="config")
def _nats(params, codes, ids, mask, config: MusicGenConfig):
    """Cross-entropy per codebook [K], see `losses`."""
    return losses(config, params, codes, ids, mask)[0]


def evaluate(
    config: MusicGenConfig, params: dict, codes: np.ndarray, ids: np.ndarray, mask: np.ndarray
) -> dict[str, list[float]]:
    """Held-out nats per codebook with the first caption and without text, over all clips in batches of 8."""
    out = {"with_text": [], "without_text": []}
    for start in range(0, len(codes) - len(codes) % 8, 8):
        rows = slice(start, start + 8)
        batch = jnp.asarray(codes[rows], jnp.int32)
        out["with_text"].append(_nats(params, batch, ids[rows, 0], mask[rows, 0], config))
        out["without_text"].append(_nats(params, batch, ids[rows, 0], np.zeros_like(mask[rows, 0]), config))
    return {name: np.mean(values, 0).tolist() for name, values in out.items()}


def train_language_model(
    config: MusicGenConfig,
    training: LanguageModelTraining,
    codes: np.ndarray,
    tokens: tuple[np.ndarray, np.ndarray],
    known: Scores,
    held_out: tuple[np.ndarray, np.ndarray, np.ndarray],
    folder: str | Path,
    log: Callable[[dict], None],
    progress: Callable[[int, int, str], None] | None = None,
    save_every: int = 250,
    start: dict | None = None,
) -> dict:
    """Trains to `training.steps` from random parameters, or from `start`, those of a model, and returns the parameters;
    a killed run goes on from its last checkpoint."""
    log({"baselines": baselines(codes, held_out[0], config.decoder.vocab_size)})

    def step(state, number):
        return train_step(state, draw_batch(codes, tokens, known, training, number), config, training)

    state = train_loop(
        folder,
        init_state(config, training, start),
        training.steps,
        step,
        lambda state: evaluate(config, state["params"], *held_out),
        log,
        progress,
        save_every,
        evaluate_every=500,
    )
    return {name: part for name, part in state["params"].items() if name != "plan"}


def guess_codes(
    config: MusicGenConfig,
    params: dict,
    codes: np.ndarray,
    ids: np.ndarray,
    mask: np.ndarray,
    key: jax.Array,
    path: str | Path,
    progress: Callable[[int, int, str], None] | None = None,
) -> np.ndarray:
    """What the model would have sampled in the place of each of `codes` [clips, K, T], given all real codes before it
    (of its own frame the lower codebooks): int16 of the same shape, kept in a .npy file. With the last caption of ids
    and mask [clips, CAPTIONS, L], guided as the model is, for every second clip, without text for the others. It takes
    minutes, so a killed run begins it again."""
    path = Path(path)

    @partial(jax.jit, static_argnames=("told",))
    def sample(params, codes, ids, mask, key, told: bool):
        longer = jnp.pad(codes, ((0, 0), (0, 0), (0, codes.shape[1])), mode="edge")  # until the last codebook's turn
        logits = forward(config, params, longer).logits
        if told:
            asked = forward(config, params, longer, text_states(config, params, ids, mask)).logits
            logits += config.sampling.guidance_scale * (asked - logits)
        drawn = jax.random.categorical(key, logits)  # [B, K, P], of column p + 1
        return undo_delay(jnp.pad(drawn, ((0, 0), (0, 0), (1, 0))), codes.shape[2])

    def guess(told: bool, rows: np.ndarray) -> jax.Array:
        if progress:
            progress((int(rows[-1]) + told * len(codes)) // 2 + 1, len(codes), "clips guessed")
        own = jax.random.fold_in(key, rows[0])
        return sample(params, codes[rows].astype(np.int32), ids[rows, -1], mask[rows, -1], own, told)

    if not (path.exists() and np.load(path, mmap_mode="r").shape == codes.shape):
        guessed = np.empty(codes.shape, np.int16)
        for told in (False, True)[: len(codes)]:
            rows = np.arange(int(told), len(codes), 2)
            guessed[rows] = in_batches(partial(guess, told), rows, 16)
        with atomic_path(path) as temporary:
            np.save(temporary, guessed)
    return np.load(path)
