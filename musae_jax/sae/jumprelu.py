"""JumpReLU (Rajamanoharan et al. 2024, "Jumping ahead"): a threshold per feature, learned for a wanted L0.

f = p where p > θ, else 0. The loss adds l0_coefficient · (L0 / k − 1)², L0 being the batch's mean number of active
features. Both are flat in θ almost everywhere, so θ gets the paper's pseudo-derivatives (equations 11 and 12), with
K(u) = 1 for |u| < 1/2, else 0, and ε the bandwidth:

    ∂f/∂θ = −(θ/ε) K((p − θ)/ε)          ∂[p > θ]/∂θ = −(1/ε) K((p − θ)/ε)

The penalty reaches nothing but θ. Gemma Scope 2 uses the quadratic form: unlike a plain λ·L0, it names what is wanted.
"""

import dataclasses
import statistics
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from musae_jax.errors import MusaeError
from musae_jax.sae.recipe import Knobs, Memory, Params, Recipe, Tokens, l1_penalty
from musae_jax.sae.shards import over_tokens


@dataclasses.dataclass(frozen=True)
class JumpReLUConfig(Recipe):
    """How to train a JumpReLU SAE; the other fields are in `Recipe`.

    Attributes:
      k: the L0 aimed at.
      l0_coefficient: of (L0 / k − 1)².
      bandwidth: ε, in centred and scaled units, where pre-activations begin with a spread of about 1; 2 is Anthropic's
        (January 2025), whose inputs are scaled alike.
      threshold_init: θ at the start, in the same units; None: so that L0 would start at k if pre-activations were
        normal.
      threshold_lr: peak learning rate of log θ; None: lr, at least 1e-3.
    """

    architecture: ClassVar[str] = "jumprelu"
    rule: ClassVar[str] = "jumprelu"
    traced: ClassVar[tuple[str, ...]] = (*Recipe.traced, "k", "l0_coefficient", "threshold_lr")

    k: int = 32
    _: dataclasses.KW_ONLY
    l0_coefficient: float = 1.0
    bandwidth: float = 2.0
    threshold_init: float | None = None
    threshold_lr: float | None = None

    def __post_init__(self):
        super().__post_init__()
        for name in ("bandwidth", "threshold_init"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise MusaeError(f"{name} of the SAE is {value}, but it must be more than 0")

    @property
    def threshold_init_used(self) -> float:
        if self.threshold_init is not None:
            return self.threshold_init
        share = min(max(self.k / self.d_sae, 1e-9), 0.49)
        return statistics.NormalDist().inv_cdf(1 - share)

    @property
    def threshold_lr_used(self) -> float:
        return self.threshold_lr if self.threshold_lr is not None else max(1e-3, self.lr_used)

    def extra_params(self) -> Params:
        return {"log_threshold": jnp.full(self.d_sae, jnp.log(self.threshold_init_used), jnp.float32)}

    def activate(self, params: Params, pre: jax.Array, knobs: Knobs, memory: Memory, count: Any) -> Any:
        threshold = jnp.exp(params["log_threshold"])
        f = jnp.where(pre > jax.lax.stop_gradient(threshold), pre, 0.0)
        # Adds 0, and the pseudo-derivative.
        slope = jax.lax.stop_gradient(threshold * self._kernel(pre, threshold))
        return f - slope * _only_gradient(threshold), memory

    def penalty(self, params: Params, tokens: Tokens, pre: jax.Array, f: jax.Array, knobs: Knobs) -> Any:
        threshold = jnp.exp(params["log_threshold"])
        pre = jax.lax.stop_gradient(pre)
        near = jax.lax.stop_gradient(self._kernel(pre, threshold).sum(0))  # [F]
        active = jnp.sum(pre > jax.lax.stop_gradient(threshold)) - jnp.sum(near * _only_gradient(threshold))
        quadratic = (over_tokens(active) / tokens.count / knobs["k"] - 1) ** 2
        return knobs["l0_coefficient"] * quadratic + l1_penalty(self, f, tokens, knobs)

    def _kernel(self, pre: jax.Array, threshold: jax.Array) -> jax.Array:
        """K((p − θ)/ε) / ε; [N, F]."""
        return (jnp.abs(pre - threshold) < self.bandwidth / 2) / self.bandwidth

    def rate(self, name: str, knobs: Knobs) -> Any:
        return knobs["threshold_lr"] if name == "log_threshold" else knobs["lr"]

    def report(self, params: Params, memory: Memory) -> dict[str, jax.Array]:
        threshold = jnp.exp(params["log_threshold"])
        return {"threshold": threshold.mean(), "threshold_min": threshold.min(), "threshold_max": threshold.max()}

    def inference_params(self, params: Params, memory: Memory, scale: jax.Array) -> Params:
        return {"b_enc": params["b_enc"] * scale, "threshold": jnp.exp(params["log_threshold"]) * scale}


def _only_gradient(x: jax.Array) -> jax.Array:
    """0 whose derivative with respect to x is 1."""
    return x - jax.lax.stop_gradient(x)
