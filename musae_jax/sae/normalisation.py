"""The centre and scale of activations, estimated once from the start of the stream that training will see."""

import numpy as np

from musae_jax.activations.batches import Batches
from musae_jax.errors import MusaeError
from musae_jax.sae.recipe import Recipe
from musae_jax.sae.step import norm_filter

STATISTICS_TOKENS = 2**20  # tokens from which mean and spread are estimated
MEDIAN_TOKENS = 2**14  # the geometric median needs them all at once


def normalisation(recipe: Recipe, batches: Batches) -> tuple[np.ndarray, float]:
    """(center [D], scale) as the recipe wants them; tokens that its norm filter leaves out do not count.

    Raises:
      MusaeError: the activations are all the same, or not finite.
    """
    mean, spread = activation_statistics(batches, recipe.max_norm)
    if not spread > 0 or not np.isfinite(spread):
        raise MusaeError(
            f"the activations in {batches.store.name} are all the same or not finite (spread {spread}); harvest again"
        )
    center = np.zeros_like(mean) if recipe.center == "none" else mean
    if recipe.center == "geometric_median":
        sample = _first_tokens(batches, min(MEDIAN_TOKENS, batches.epoch_tokens))
        center = geometric_median(_filtered(sample, recipe.max_norm).astype(np.float64))
    return center, spread if recipe.scale else 1.0


def activation_statistics(batches: Batches, max_norm: float | None = None) -> tuple[np.ndarray, float]:
    """(mean [D], the root mean square of one coordinate about it) of up to 2^20 tokens of the stream, in float64."""
    begin = batches.state()  # what it reads is read, or computed, once if it fits the buffer
    goal = min(STATISTICS_TOKENS, batches.epoch_tokens)
    total, square, seen, count = np.zeros(batches.store.d_in), np.zeros(batches.store.d_in), 0, 0
    pivot = None
    while seen < goal:
        batch = next(batches)[: goal - seen]
        seen += len(batch)
        batch = _filtered(batch, max_norm).astype(np.float64)
        pivot = batch.mean(0) if pivot is None else pivot  # near the mean, so that the squares do not cancel
        total += (batch - pivot).sum(0)
        square += np.square(batch - pivot).sum(0)
        count += len(batch)
    batches.restore(begin)
    variance = square / count - np.square(total / count)
    return pivot + total / count, float(np.sqrt(max(variance.mean(), 0.0)))


def _first_tokens(batches: Batches, count: int) -> np.ndarray:
    """The first `count` tokens of the stream [count, D]."""
    begin, parts = batches.state(), []
    while sum(map(len, parts)) < count:
        parts.append(next(batches))
    batches.restore(begin)
    return np.concatenate(parts)[:count]


def geometric_median(x: np.ndarray, iterations: int = 100, tolerance: float = 1e-7) -> np.ndarray:
    """The point [D] with the least summed distance to x [N, D], by Weiszfeld's iteration from the mean."""
    point = x.mean(0)
    for _ in range(iterations):
        weights = 1 / np.maximum(np.linalg.norm(x - point, axis=1), 1e-12)
        last, point = point, weights @ x / weights.sum()
        if np.linalg.norm(point - last) <= tolerance * max(np.linalg.norm(point), 1e-12):
            break
    return point


def _filtered(batch: np.ndarray, max_norm: float | None) -> np.ndarray:
    return batch if max_norm is None else batch[np.asarray(norm_filter(max_norm, batch))]
