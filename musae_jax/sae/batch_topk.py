"""BatchTopK (Bussmann et al. 2024): the k·N largest activations of a batch are kept, so k is a mean, not a quota.

After training the rule is a JumpReLU whose threshold is the running mean of the batches' thresholds, so single tokens
can be encoded.
"""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from musae_jax.sae.products import list_above
from musae_jax.sae.recipe import Knobs, Memory, Params, Recipe
from musae_jax.sae.shards import most_over_tokens, over_tokens
from musae_jax.sae.step import column_counts


@dataclasses.dataclass(frozen=True)
class BatchTopKConfig(Recipe):
    """How to train a BatchTopK SAE; the other fields are in `Recipe`.

    Attributes:
      k: active features per token, on average over a batch.
      threshold_decay: of the running mean of the batches' thresholds; None: 0.99, or 1 − 20 / steps if that is less.
      count_tolerance: how far the number of kept activations may be from k·N, as a share; the price of exactness is
        passes over the [N, F] activations.
    """

    architecture: ClassVar[str] = "batch_topk"
    rule: ClassVar[str] = "jumprelu"
    traced: ClassVar[tuple[str, ...]] = (*Recipe.traced, "k")

    k: int = 32
    _: dataclasses.KW_ONLY
    threshold_decay: float | None = None
    count_tolerance: float = 0.002

    @property
    def threshold_decay_used(self) -> float:
        return self.threshold_decay if self.threshold_decay is not None else max(0.0, min(0.99, 1 - 20 / self.steps))

    def memory(self) -> Memory:
        """threshold []: of the last batch, where the next search starts.  threshold_mean []: running mean, with the
        weight threshold_weight [] it has gathered."""
        return {name: jnp.array(0.0, jnp.float32) for name in ("threshold", "threshold_mean", "threshold_weight")}

    def activate(self, params: Params, pre: jax.Array, knobs: Knobs, memory: Memory, count: Any) -> Any:
        memory = self._remember(pre, knobs, memory, count)
        return jnp.where(pre > memory["threshold"], pre, 0.0), memory  # it is never negative: this is a ReLU too

    def choose(self, pre: jax.Array, knobs: Knobs, memory: Memory, count: Any) -> Any:
        memory = self._remember(pre, knobs, memory, count)
        total = math.ceil(self.k * len(pre) * (1 + self.count_tolerance)) + 1
        return list_above(pre, memory["threshold"], total), memory

    def _remember(self, pre: jax.Array, knobs: Knobs, memory: Memory, count: Any) -> Memory:
        goal = jnp.round(knobs["k"] * count).astype(jnp.int32)
        threshold = batch_threshold(jax.lax.stop_gradient(pre), goal, memory["threshold"], self.count_tolerance)
        decay = self.threshold_decay_used
        return {
            "threshold": threshold,
            "threshold_mean": decay * memory["threshold_mean"] + (1 - decay) * threshold,
            "threshold_weight": decay * memory["threshold_weight"] + (1 - decay),
        }

    def report(self, params: Params, memory: Memory) -> dict[str, jax.Array]:
        return {"threshold": memory["threshold"]}

    def inference_params(self, params: Params, memory: Memory, scale: jax.Array) -> Params:
        threshold = memory["threshold_mean"] / jnp.maximum(memory["threshold_weight"], 1e-12)
        return {"b_enc": params["b_enc"] * scale, "threshold": jnp.full(self.d_sae, threshold * scale, jnp.float32)}


def batch_threshold(values: jax.Array, count: Any, guess: jax.Array, tolerance: float = 0.0) -> jax.Array:
    """τ >= 0 with `count` entries of values [N, F] above it, up to ties and `tolerance` (a share of count).

    A bracketed search on the number of entries above τ: false position on the logarithm of that number, every third
    probe a bisection, the first probe `guess`. A sort of N·F numbers is never made. 0 where no more than `count`
    entries are positive; where ties leave no exact τ, fewer entries are above it.
    """
    slack = jnp.ceil(count * tolerance).astype(jnp.int32)
    low, high = count - slack, count + slack
    log_count = jnp.log(count + 0.5)

    def above(threshold):
        return over_tokens(jnp.sum(column_counts(values > threshold)))

    def unfinished(search):
        left, right, _, _, found, _, probes = search
        return ~((found >= low) & (found <= high)) & (probes < 96) & (jnp.nextafter(left, right) < right)

    def probe(search):
        left, right, n_left, n_right, _, _, probes = search
        a, b = jnp.log(n_left + 0.5), jnp.log(n_right + 0.5)
        share = jnp.clip((a - log_count) / jnp.maximum(a - b, 1e-6), 0.02, 0.98)
        share = jnp.where(probes % 3 == 2, 0.5, share)
        point = left + share * (right - left)
        point = jnp.where((probes == 0) & (guess > left) & (guess < right), guess, point)
        point = jnp.clip(point, jnp.nextafter(left, right), jnp.nextafter(right, left))
        n = above(point)
        more = n > count
        return (
            jnp.where(more, point, left),
            jnp.where(more, right, point),
            jnp.where(more, n, n_left),
            jnp.where(more, n_right, n),
            n,
            point,
            probes + 1,
        )

    zero = jnp.zeros((), values.dtype)
    positive = above(zero)
    top = jnp.maximum(most_over_tokens(jnp.max(values)), zero)
    search = (zero, top, positive, jnp.zeros((), jnp.int32), positive, zero, jnp.zeros((), jnp.int32))
    _, right, _, _, found, point, _ = jax.lax.while_loop(unfinished, probe, search)
    # Ties can make the count jump over the goal: then the side with fewer is taken, as many as k·N at most.
    point = jnp.where((found >= low) & (found <= high), point, right)
    return jnp.where(positive <= count, zero, point)
