"""Gated SAE (Rajamanoharan et al. 2024, "Improving dictionary learning with gated SAEs"): which features, and how much.

The gate p = (x' − b_dec) W_enc + b_enc says which features are active, m = (x' − b_dec) W_enc · exp(r_mag) + b_mag how
much. L1 is on the gate alone, so magnitudes do not shrink; the gate learns by reconstructing through a decoder that it
cannot move.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from musae_jax.sae.recipe import Knobs, Memory, Params, Recipe, Tokens, l1_penalty, without_auxk
from musae_jax.sae.shards import over_tokens


@dataclasses.dataclass(frozen=True)
class GatedConfig(Recipe):
    """How to train a Gated SAE; the other fields are in `Recipe`.

    Attributes:
      l1_coefficient: of Σ relu(p).
    """

    architecture: ClassVar[str] = "gated"
    rule: ClassVar[str] = "gated"

    l1_coefficient: float = 5.0
    auxk_alpha: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        without_auxk(self)

    def extra_params(self) -> Params:
        return {"r_mag": jnp.zeros(self.d_sae), "b_mag": jnp.zeros(self.d_sae)}

    def activate(self, params: Params, pre: jax.Array, knobs: Knobs, memory: Memory, count: Any) -> Any:
        magnitude = (pre - params["b_enc"]) * jnp.exp(params["r_mag"]) + params["b_mag"]
        return jnp.where(pre > 0, jax.nn.relu(magnitude), 0.0), memory

    def penalty(self, params: Params, tokens: Tokens, pre: jax.Array, f: jax.Array, knobs: Knobs) -> Any:
        gate = jax.nn.relu(pre)
        W_dec, b_dec = (jax.lax.stop_gradient(params[name]) for name in ("W_dec", "b_dec"))
        error = tokens.x - (gate @ W_dec + b_dec)
        if tokens.keep is not None:
            error = error * tokens.keep[:, None]
        return over_tokens(jnp.sum(error**2)) / tokens.total + l1_penalty(self, gate, tokens, knobs)

    def inference_params(self, params: Params, memory: Memory, scale: jax.Array) -> Params:
        return {"b_gate": params["b_enc"] * scale, "b_mag": params["b_mag"] * scale, "r_mag": params["r_mag"]}
