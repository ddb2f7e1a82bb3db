"""TopK (Gao et al. 2024, section 2.3): each token keeps its k largest pre-activations, those that are positive."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from musae_jax.sae.products import list_largest
from musae_jax.sae.recipe import Knobs, Memory, Params, Recipe
from musae_jax.sae.shards import largest


@dataclasses.dataclass(frozen=True)
class TopKConfig(Recipe):
    """How to train a TopK SAE; the other fields are in `Recipe`.

    Attributes:
      k: active features per token, at most. In a group, members with a smaller k pay for the largest.
    """

    architecture: ClassVar[str] = "topk"
    rule: ClassVar[str] = "topk"
    traced: ClassVar[tuple[str, ...]] = (*Recipe.traced, "k")

    k: int = 32

    def activate(self, params: Params, pre: jax.Array, knobs: Knobs, memory: Memory, count: Any) -> Any:
        kept = largest(jax.lax.stop_gradient(pre), self.k)  # [N, k]
        # The k-th by a minimum and not by a slice, which would make XLA sort whole rows.
        least = jnp.where(jnp.arange(self.k) < knobs["k"], kept, jnp.inf).min(-1, keepdims=True)
        return jnp.where((pre >= least) & (pre > 0), pre, 0.0), memory

    def choose(self, pre: jax.Array, knobs: Knobs, memory: Memory, count: Any) -> Any:
        return list_largest(pre, self.k, knobs["k"]), memory
