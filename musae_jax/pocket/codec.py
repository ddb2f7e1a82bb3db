"""Training the pocket codec: first as a continuous autoencoder, then with residual vector quantisation.

The codes are chosen for predictability as much as for fidelity. The loss is mostly spectral, because a waveform loss
makes codes follow the phase, which no language model can predict. And a linear map must be able to read the sounding
notes and instruments from the first codebook alone (as Mimi distils meaning into its first codebook), so that
codebook 0 carries the music and the others its detail. Codebooks are running means (EMA) of the latents that chose
them, started by k-means; codes that nothing chooses move to latents that are badly served.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from musae_jax.files import atomic_path
from musae_jax.models.encodec import EncodecConfig, EncodecDecoder, EncodecEncoder, quantize, random_encodec
from musae_jax.pocket.corpus import ROLL, Bank
from musae_jax.pocket.loop import train_loop
from musae_jax.pocket.spectral import log_mel_distance, si_sdr, spectral_loss


@dataclasses.dataclass(frozen=True)
class CodecTraining:
    """How the codec is trained; lengths in 50 Hz frames, rates per step."""

    steps: int = 6000
    continuous_steps: int = 2000  # without quantisation
    batch_size: int = 8
    crop_frames: int = 40
    learning_rate: float = 1.5e-3
    waveform_weight: float = 0.2
    note_weight: float = 1.0
    commitment_weight: float = 0.5
    codebook_decay: float = 0.97
    dead_below: float = 0.25  # mean choices per step under which a code is moved
    seed: int = 0


def init_state(config: EncodecConfig, training: CodecTraining) -> dict:
    """The whole training state as one pytree of arrays."""
    drawn = random_encodec(config, jax.random.key(training.seed))
    head = {"kernel": jnp.zeros((config.hidden_size, ROLL)), "bias": jnp.full(ROLL, -3.0, jnp.float32)}
    params = {"encoder": drawn["encoder"], "decoder": drawn["decoder"], "notes": head}
    shape = (config.num_quantizers, config.codebook_size, config.hidden_size)
    return {
        "params": params,
        "codebooks": jnp.zeros(shape),
        "counts": jnp.ones(shape[:2]),
        "opt": optimiser(training).init(params),
        "step": jnp.int32(0),
    }


def optimiser(training: CodecTraining) -> optax.GradientTransformation:
    """Adam with warm-up and cosine decay, warmed up again when quantisation starts."""
    first = training.continuous_steps
    rest = max(training.steps - first, 2)
    schedule = optax.join_schedules(
        [
            optax.warmup_cosine_decay_schedule(
                0.0, training.learning_rate, 200, max(first, 201), training.learning_rate / 3
            ),
            optax.warmup_cosine_decay_schedule(
                0.0, training.learning_rate / 1.5, min(200, rest - 1), rest, training.learning_rate / 50
            ),
        ],
        [first],
    )
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule, b1=0.8, b2=0.99))


def _residual_quantize(codebooks: jnp.ndarray, latents: jnp.ndarray) -> tuple[jnp.ndarray, jnp.ndarray, jnp.ndarray]:
    """codes [B, K, T], what each codebook saw [K, N, D], what each contributed [K, B, T, D]."""
    codes = quantize(codebooks, latents)
    chosen = jnp.stack([codebooks[k][codes[:, k]] for k in range(codebooks.shape[0])])  # [K, B, T, D]
    before = jnp.concatenate([jnp.zeros_like(chosen[:1]), jnp.cumsum(chosen, 0)[:-1]])
    seen = latents[None] - before
    return codes, seen.reshape(codebooks.shape[0], -1, codebooks.shape[-1]), chosen


def _loss(params, codebooks, audio, roll, config: EncodecConfig, training: CodecTraining, quantized: bool):
    latents = EncodecEncoder(config).apply({"params": params["encoder"]}, audio[..., None])  # [B, T, D]
    metrics, extra = {}, None
    first, through = latents, latents
    commitment = 0.0
    if quantized:
        codes, seen, chosen = _residual_quantize(codebooks, jax.lax.stop_gradient(latents))
        total = chosen.sum(0)
        through = latents + jax.lax.stop_gradient(total - latents)  # straight through
        first = latents + jax.lax.stop_gradient(chosen[0] - latents)
        # each codebook's choice pulls the latent towards the running sum, coarse to fine
        partial_sums = jax.lax.stop_gradient(jnp.cumsum(chosen, 0))
        commitment = jnp.mean((latents[None] - partial_sums) ** 2) / (jnp.var(jax.lax.stop_gradient(latents)) + 1e-6)
        extra = (codes, seen)
    heard = EncodecDecoder(config).apply({"params": params["decoder"]}, through)[..., 0]  # [B, S]
    spectral = spectral_loss(heard, audio, config.sampling_rate)
    wave = jnp.mean(jnp.abs(heard - audio)) / (jnp.mean(jnp.abs(audio)) + 1e-3)
    logits = first @ params["notes"]["kernel"] + params["notes"]["bias"]  # [B, T, ROLL]
    notes = jnp.mean(optax.sigmoid_binary_cross_entropy(logits, roll)) * 10
    loss = spectral + training.waveform_weight * wave + training.note_weight * notes
    loss = loss + training.commitment_weight * commitment
    metrics = {
        "loss": loss,
        "spectral": spectral,
        "waveform": wave,
        "notes": notes,
        "commitment": jnp.float32(commitment),
    }
    return loss, (metrics, extra)


@partial(jax.jit, static_argnames=("config", "training", "quantized"), donate_argnames=("state",))
def train_step(state, audio, roll, config: EncodecConfig, training: CodecTraining, quantized: bool):
    """One step on audio [B, S] and roll [B, T, ROLL]; returns (state, metrics)."""
    (_, (metrics, extra)), grads = jax.value_and_grad(_loss, has_aux=True)(
        state["params"], state["codebooks"], audio, roll, config, training, quantized
    )
    updates, opt = optimiser(training).update(grads, state["opt"], state["params"])
    new = {**state, "params": optax.apply_updates(state["params"], updates), "opt": opt, "step": state["step"] + 1}
    if quantized:
        codes, seen = extra
        key = jax.random.fold_in(jax.random.key(training.seed), state["step"])
        new["codebooks"], new["counts"] = _update_codebooks(
            state["codebooks"], state["counts"], codes, seen, key, training
        )
        metrics["used"] = jnp.mean(new["counts"] > training.dead_below)
    return new, metrics


def _update_codebooks(codebooks, counts, codes, seen, key, training: CodecTraining):
    """Running means of what chose each code; `counts` [K, V] and the implied sums move by `codebook_decay`."""
    K, V, _ = codebooks.shape
    flat = codes.transpose(1, 0, 2).reshape(K, -1)  # [K, N]
    chosen = jax.nn.one_hot(flat, V)  # [K, N, V]
    now = chosen.sum(1)
    sums = counts[..., None] * codebooks * training.codebook_decay + (1 - training.codebook_decay) * jnp.einsum(
        "knv,knd->kvd", chosen, seen
    )
    counts = training.codebook_decay * counts + (1 - training.codebook_decay) * now
    means = sums / jnp.maximum(counts, 1e-6)[..., None]
    picks = jax.random.randint(key, (K, V), 0, seen.shape[1])
    fresh = jnp.take_along_axis(seen, picks[..., None], axis=1)
    dead = counts < training.dead_below * 0.1
    return jnp.where(dead[..., None], fresh, means), jnp.where(dead, training.dead_below, counts)


@partial(jax.jit, static_argnames="size")
def _kmeans(points: jnp.ndarray, key: jax.Array, size: int) -> jnp.ndarray:
    """Lloyd's algorithm, 20 rounds, empty clusters moved to random points; [N, D] -> [size, D]."""
    start = jax.random.choice(key, points, (size,), replace=False)

    def round_(i, centres):
        distance = jnp.sum(centres**2, 1) - 2 * points @ centres.T
        nearest = jnp.argmin(distance, 1)
        counts = jnp.zeros(size).at[nearest].add(1.0)
        sums = jnp.zeros_like(centres).at[nearest].add(points)
        fresh = points[jax.random.randint(jax.random.fold_in(key, i), (size,), 0, points.shape[0])]
        return jnp.where(counts[:, None] > 0, sums / jnp.maximum(counts, 1)[:, None], fresh)

    return jax.lax.fori_loop(0, 20, round_, start)


def start_codebooks(state: dict, config: EncodecConfig, training: CodecTraining, bank: Bank) -> dict:
    """Codebooks by k-means on the residuals of ≥ 40k latents of the continuous encoder."""
    rng = np.random.default_rng(training.seed + 1)
    encode = jax.jit(lambda p, x: EncodecEncoder(config).apply({"params": p}, x[..., None]))
    latents = []
    while sum(map(len, latents)) < 40_000:
        audio, _ = draw_batch(bank, config, 16, 100, rng)
        latents.append(np.asarray(encode(state["params"]["encoder"], audio)).reshape(-1, config.hidden_size))
    points = jnp.asarray(np.concatenate(latents))
    books = []
    for k in range(config.num_quantizers):
        book = _kmeans(points, jax.random.key(training.seed + k), config.codebook_size)
        nearest = jnp.argmin(jnp.sum(book**2, 1) - 2 * points @ book.T, 1)
        points = points - book[nearest]
        books.append(book)
    expected = training.batch_size * training.crop_frames / config.codebook_size
    return {**state, "codebooks": jnp.stack(books), "counts": jnp.full_like(state["counts"], expected)}


def draw_batch(bank: Bank, config: EncodecConfig, batch: int, frames: int, rng: np.random.Generator):
    """Random crops: audio float32 [batch, frames · hop] and roll float32 [batch, frames, ROLL]."""
    clips = rng.integers(bank.audio.shape[0], size=batch)
    starts = rng.integers(bank.roll.shape[1] - frames + 1, size=batch)
    hop = config.hop_length
    audio = np.stack([bank.audio[i, s * hop : (s + frames) * hop] for i, s in zip(clips, starts)])
    roll = np.stack([bank.roll[i, s : s + frames] for i, s in zip(clips, starts)])
    return audio.astype(np.float32) / 32767, roll.astype(np.float32)


@partial(jax.jit, static_argnames="config")
def _measure(params, codebooks, audio, config: EncodecConfig):
    """SI-SDR and log-mel distance [B] of audio [B, S] with and without quantisation, and its codes [B, K, T]."""
    latents = EncodecEncoder(config).apply({"params": params["encoder"]}, audio[..., None])
    codes, _, chosen = _residual_quantize(codebooks, latents)
    out = {}
    for name, z in (("continuous", latents), ("quantised", chosen.sum(0))):
        heard = EncodecDecoder(config).apply({"params": params["decoder"]}, z)[..., 0]
        out[f"si_sdr_{name}"] = si_sdr(heard, audio)
        out[f"log_mel_db_{name}"] = log_mel_distance(heard, audio, config.sampling_rate)
    return out, codes


def evaluate(state: dict, config: EncodecConfig, bank: Bank, clips: int = 32) -> dict[str, float]:
    """Held-out figures: SI-SDR and log-mel distance with and without quantisation, and how the codebooks are used."""

    results, codes = [], []
    for start in range(0, min(clips, len(bank.audio)), 8):
        audio = bank.audio[start : start + 8].astype(np.float32) / 32767
        out, chosen = _measure(state["params"], state["codebooks"], audio, config)
        results.append(jax.tree.map(lambda x: np.asarray(x), out))
        codes.append(np.asarray(chosen))
    figures = {name: float(np.mean([r[name] for r in results])) for name in results[0]}
    codes = np.concatenate(codes)  # [clips, K, T]
    for k in range(codes.shape[1]):
        share = np.bincount(codes[:, k].ravel(), minlength=config.codebook_size) / codes[:, k].size
        figures[f"used_{k}"] = float(np.mean(share > 0))
        figures[f"perplexity_{k}"] = float(np.exp(-np.sum(share * np.log(share + 1e-12))))
        figures[f"repeats_{k}"] = float(np.mean(codes[:, k, 1:] == codes[:, k, :-1]))
    return figures


def train_codec(
    config: EncodecConfig,
    training: CodecTraining,
    bank: Bank,
    held_out: Bank,
    folder: str | Path,
    log: Callable[[dict], None],
    progress: Callable[[int, int, str], None] | None = None,
    save_every: int = 250,
) -> dict:
    """Trains to `training.steps` and returns the state; a killed run goes on from its last checkpoint in `folder`."""

    def step(state, number):
        if number == training.continuous_steps:
            state = start_codebooks(state, config, training, bank)
        rng = np.random.default_rng([training.seed, number])
        audio, roll = draw_batch(bank, config, training.batch_size, training.crop_frames, rng)
        return train_step(state, audio, roll, config, training, number >= training.continuous_steps)

    return train_loop(
        folder,
        init_state(config, training),
        training.steps,
        step,
        lambda state: evaluate(state, config, held_out),
        log,
        progress,
        save_every,
    )


def encode_bank(state: dict, config: EncodecConfig, bank: Bank, path: str | Path, progress=None) -> np.ndarray:
    """The codes of a whole corpus, int16 [clips, K, T], kept in a .npy file."""
    path = Path(path)
    if not path.exists():
        encode = jax.jit(lambda p, books, x: quantize(books, EncodecEncoder(config).apply({"params": p}, x[..., None])))
        out = []
        count = bank.audio.shape[0]
        for start in range(0, count, 8):
            audio = np.zeros((8, bank.audio.shape[1]), np.float32)  # one shape, one compile
            rows = bank.audio[start : start + 8].astype(np.float32) / 32767
            audio[: len(rows)] = rows
            out.append(
                np.asarray(encode(state["params"]["encoder"], state["codebooks"], audio))[: len(rows)].astype(np.int16)
            )
            if progress:
                progress(min(start + 8, count), count, "clips encoded")
        with atomic_path(path) as temporary:
            np.save(temporary, np.concatenate(out))
    return np.load(path)
