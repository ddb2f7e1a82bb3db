"""A small recurrent net on the same codes: what a language model must beat to have earned its attention."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

UNITS = 256
BATCH, FRAMES = 32, 100  # crops a step
RATE = 3e-3


class FrameNet(nn.Module):
    """Reads the K codes of each frame and tells the next frame's first: codes [B, K, T] -> logits [B, T, V]."""

    vocabulary: int

    @nn.compact
    def __call__(self, codes: jax.Array) -> jax.Array:
        spread = codes + self.vocabulary * jnp.arange(codes.shape[1])[:, None]  # each codebook has its own rows
        x = nn.Embed(codes.shape[1] * self.vocabulary, UNITS)(spread).sum(1)  # [B, T, UNITS]
        return nn.Dense(self.vocabulary)(nn.RNN(nn.GRUCell(UNITS))(x))


def recurrent_nats(train: np.ndarray, held_out: np.ndarray, vocabulary: int, steps: int = 600, seed: int = 0) -> float:
    """Held-out nats of the first codebook after `steps` steps on codes int [clips, K, T], without text."""
    net = FrameNet(vocabulary)
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_onecycle_schedule(steps, RATE, pct_start=0.1))
    )
    crop = min(FRAMES, train.shape[2])

    def nats(params, codes):
        logits = net.apply(params, codes[:, :, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, codes[:, 0, 1:]).mean()

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, codes):
        updates, state = optimiser.update(jax.grad(nats)(params, codes), state, params)
        return optax.apply_updates(params, updates), state

    params = net.init(jax.random.key(seed), jnp.zeros((1, train.shape[1], 2), jnp.int32))
    state = optimiser.init(params)
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        clips, starts = rng.integers(len(train), size=BATCH), rng.integers(train.shape[2] - crop + 1, size=BATCH)
        codes = np.stack([train[clip, :, start : start + crop] for clip, start in zip(clips, starts)])
        params, state = step(params, state, codes.astype(np.int32))
    measure = jax.jit(nats)
    return float(np.mean([measure(params, held_out[i : i + 1].astype(np.int32)) for i in range(len(held_out))]))
