"""How good an SAE is on stored activations: sums in float64, one ratio at the end, never a mean of ratios."""

import functools
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musae_jax.activations.source import Activations
from musae_jax.errors import MusaeError
from musae_jax.sae.sae import SAE, sae_decode, sae_encode

CHUNK = 4096  # tokens encoded at a time
DENSITY_EDGES = tuple(round(-6 + 0.5 * i, 1) for i in range(13))  # log10, from one token in a million to every token

Progress = Callable[[int, int, str], None]


def evaluate(
    sae: SAE,
    store: Activations,
    clips: Collection[str] | None = None,
    drop_start: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Quality of `sae` over the clips (all by default), in two passes with the memory of one shard.

    Returns a JSON-able dict; with x centred on the mean over all tokens, x̂ centred alike, e = x − x̂:
      fvu                           Σ‖e‖² / Σ‖x‖², 0 is perfect, 1 is the mean
      fvu_within_positions          Σ‖e‖² / Σ‖x − its position's mean over clips‖²: a position's mean is the same in
                                    every clip, says nothing about the music, and can be most of the variance
      l0                            mean number of active features per token
      dead_share                    features that never fire here
      l2_ratio                      Σ‖x̂‖ / Σ‖x‖
      relative_reconstruction_bias  Σ‖x̂‖² / Σ x·x̂, below 1 where the SAE shrinks
      density                       {"log10_edges", "counts", "never"}: features by the share of tokens they fire on
      tokens, clips                 how many were measured
      saebench                      what SAEBench's core evaluation has besides, by its definitions, so not centred:
                                    explained_variance_legacy (mean of 1 − ‖e‖²/‖x − mean‖² over tokens), mse (of a
                                    coordinate), cossim, l1, l2_norm_in, l2_norm_out, l2_ratio (a mean of ratios),
                                    relative_reconstruction_bias, and how many features fire on more than 1 % and 10 %
                                    of tokens, with their share of all firing
    """
    if store.d_in != sae.config.d_in:
        raise MusaeError(
            f"the SAE reads activations of width {sae.config.d_in}, but {store.name} holds width {store.d_in};"
            " use the store of the SAE's own model and hook"
        )
    first = 1 if drop_start else 0
    total = _count(store, clips)
    if not total:
        raise MusaeError(f"none of the clips to evaluate on is in {store.name}; harvest them first")
    position_mean = sum(block.astype(np.float64).sum(0) for block in _blocks(store, clips, first)) / total  # [T, D]
    mean = position_mean.mean(0)  # [D]
    sums = np.zeros(5)  # ‖e‖², ‖x‖², ‖x̂‖², x·x̂, l0
    norms, within, done = np.zeros(2), 0.0, 0
    raw = np.zeros(8)
    fires = np.zeros(sae.config.d_sae, np.int64)
    for block in _blocks(store, clips, first):  # [n, T, D]
        within += sum(float(np.square(clip - position_mean).sum()) for clip in block)
        flat = block.reshape(-1, block.shape[-1])
        for start in range(0, len(flat), CHUNK):
            part = flat[start : start + CHUNK]
            padded = np.zeros((CHUNK, part.shape[1]), np.float32)
            padded[: len(part)] = part
            tokens, fired = _measure(sae.config, sae.params, padded, mean.astype(np.float32), np.int32(len(part)))
            tokens = np.asarray(tokens, np.float64)[:, : len(part)]  # [9, N]
            sums += tokens[:5].sum(1)
            raw += _raw_terms(tokens).sum(1)
            norms += np.sqrt(tokens[1:3]).sum(1)
            fires += np.asarray(fired)
        done += len(block)
        if progress:
            progress(done, total, "clips")
    count = total * (store.positions - first)
    density = fires / count
    edges = [0.0, *(10.0**edge for edge in DENSITY_EDGES[1:-1]), 1.1]
    histogram = np.histogram(density[density > 0], edges)[0]
    return {
        "fvu": _ratio(sums[0], sums[1]),
        "fvu_within_positions": _ratio(sums[0], within),
        "l0": sums[4] / count,
        "dead_share": float((fires == 0).mean()),
        "l2_ratio": _ratio(norms[1], norms[0]),
        "relative_reconstruction_bias": _ratio(sums[2], sums[3]),
        "density": {
            "log10_edges": list(DENSITY_EDGES),
            "counts": histogram.tolist(),
            "never": int((fires == 0).sum()),
        },
        "tokens": count,
        "clips": total,
        "saebench": _saebench(raw / count, sums[0] / count / store.d_in, density),
    }


def _raw_terms(tokens: np.ndarray) -> np.ndarray:
    """Of `_measure`'s rows [9, N]: legacy explained variance, cosine, l1, ‖x‖, ‖x̂‖, their ratio, ‖x̂‖², x·x̂ [8, N]."""
    error, centred, l1, square, square_hat, dot = tokens[[0, 1, 5, 6, 7, 8]]
    x, x_hat = np.sqrt(square), np.sqrt(square_hat)
    safe = np.maximum(x * x_hat, 1e-12)
    legacy = 1 - error / np.maximum(centred, 1e-12)
    return np.stack([legacy, dot / safe, l1, x, x_hat, x_hat / np.where(x < 1e-4, 1.0, x), square_hat, dot])


def _saebench(mean: np.ndarray, mse: float, density: np.ndarray) -> dict[str, float]:
    legacy, cosine, l1, norm_in, norm_out, ratio, square_hat, dot = (float(value) for value in mean)
    often = {"1": density > 0.01, "10": density > 0.1}
    return {
        "explained_variance_legacy": legacy,
        "mse": float(mse),
        "cossim": cosine,
        "l1": l1,
        "l2_norm_in": norm_in,
        "l2_norm_out": norm_out,
        "l2_ratio": ratio,
        "relative_reconstruction_bias": _ratio(square_hat, dot),
        **{f"freq_over_{share}_percent": float(which.mean()) for share, which in often.items()},
        **{
            f"normalized_freq_over_{share}_percent": _ratio(density[which].sum(), density.sum())
            for share, which in often.items()
        },
    }


@functools.partial(jax.jit, static_argnames=("config",))
def _measure(config: Any, params: Any, x: jax.Array, mean: jax.Array, real: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Per token ‖e‖², ‖x‖², ‖x̂‖², x·x̂ (centred), l0, l1, ‖x‖², ‖x̂‖², x·x̂ (as they are) [9, N].

    And how many of the first `real` tokens each feature fires on [F].
    """
    f = sae_encode(config, params, x)  # [N, F]
    x_hat = sae_decode(config, params, f)
    raw = [jnp.sum(f, axis=1), jnp.sum(x**2, axis=1), jnp.sum(x_hat**2, axis=1), jnp.sum(x * x_hat, axis=1)]
    x, x_hat = x - mean, x_hat - mean
    active = f > 0
    tokens = jnp.stack(
        [
            jnp.sum((x - x_hat) ** 2, axis=1),
            jnp.sum(x**2, axis=1),
            jnp.sum(x_hat**2, axis=1),
            jnp.sum(x * x_hat, axis=1),
            jnp.sum(active, axis=1, dtype=jnp.float32),
            *raw,
        ]
    )
    fired = jnp.sum(active & (jnp.arange(len(x)) < real)[:, None], axis=0, dtype=jnp.int32)
    return tokens, fired


def _count(store: Activations, clips: Collection[str] | None) -> int:
    wanted = None if clips is None else set(clips)
    return sum(wanted is None or id in wanted for id in store.clip_ids)


def _blocks(store: Activations, clips: Collection[str] | None, first: int):
    """Residuals [n, T, D] of the wanted clips, float32, at most a shard at a time."""
    wanted = None if clips is None else set(clips)
    for shard in range(len(store)):
        rows = [row for row, id in enumerate(store.shard_clips(shard)) if wanted is None or id in wanted]
        if rows:  # else it is not read
            yield np.asarray(store.shard(shard)[1][rows, first:], np.float32)


def _ratio(above: float, below: float) -> float:
    return float(above / below) if below else 0.0
