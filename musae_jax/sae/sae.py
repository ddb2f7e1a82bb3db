"""What an SAE computes, whoever trained it: x -> features -> reconstruction."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

ARCHITECTURES = ("jumprelu", "topk", "standard", "gated", "groupmax")


@dataclasses.dataclass(frozen=True)
class SAEConfig:
    """The static side of an SAE; hashable, so it can be a static argument of `jax.jit`.

    Attributes:
      d_in, d_sae: D, the width of the residual stream, and F, the number of features.
      architecture: the inference rule, with p = (x − b_dec) W_enc + b_enc:
        "jumprelu"  f = p where p > threshold and p > 0, else 0   (BatchTopK SAEs are stored so)
        "topk"      f = relu(p) of the k largest p of each token, else 0
        "standard"  f = relu(p)
        "gated"     f = relu(q exp(r_mag) + b_mag) where q + b_gate > 0, else 0, with q = (x − b_dec) W_enc
        "groupmax"  f = relu(p) of the largest p in each of k equal groups of neighbouring features, else 0
      k: of "topk" and "groupmax"; in the other rules the number of active features per token aimed at, if known.
      apply_b_dec_to_input: whether b_dec is subtracted from x before encoding.
      metadata: where it came from (model, hook, training record); never part of the computation.
    """

    d_in: int
    d_sae: int
    architecture: str = "jumprelu"
    k: float | None = None
    apply_b_dec_to_input: bool = True
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict, compare=False)

    def __post_init__(self):
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"architecture {self.architecture!r} is not one of {', '.join(ARCHITECTURES)}")
        if self.architecture == "topk" and not (self.k and 0 < self.k <= self.d_sae):
            raise ValueError(f"a topk SAE needs 1 <= k <= d_sae = {self.d_sae}, got {self.k}")
        if self.architecture == "groupmax" and not (self.k and self.k > 0 and self.d_sae % self.k == 0):
            raise ValueError(f"a groupmax SAE needs a k that divides d_sae = {self.d_sae}, got {self.k}")

    @property
    def hook(self) -> str:
        """The hook it was trained on, e.g. "blocks.5.resid_post"; "" if unknown."""
        return str(self.metadata.get("hook_name", ""))


@flax.struct.dataclass
class SAE:
    """An SAE: params {"W_enc" [D, F], "b_enc" [F], "W_dec" [F, D], "b_dec" [D], and "threshold" [F] if jumprelu}.

    A gated one has "b_gate", "r_mag" and "b_mag", all [F], in the place of "b_enc".
    `maximum` [F], if known, is each feature's largest activation over the harvested music: the unit of steering.
    `contrast` [F, D], if known, is what sets the music in which a feature is strongest apart (`features.contrasts`); as
    `load_sae` gives it it stays in the host's memory, since only steering reads rows of it.
    """

    config: SAEConfig = flax.struct.field(pytree_node=False)
    params: dict[str, jax.Array]
    maximum: jax.Array | None = None
    contrast: jax.Array | np.ndarray | None = None


def pre_activations(config: SAEConfig, params: Any, x: jax.Array) -> jax.Array:
    """p = (x − b_dec) W_enc + b_enc, or q without b_enc if gated; [..., d_in] -> [..., d_sae]."""
    x = jnp.asarray(x, jnp.float32)
    if config.apply_b_dec_to_input:
        x = x - params["b_dec"]
    pre = x @ params["W_enc"]
    return pre if config.architecture == "gated" else pre + params["b_enc"]


def sae_encode(config: SAEConfig, params: Any, x: jax.Array) -> jax.Array:
    """Feature activations, all >= 0; [..., d_in] -> [..., d_sae]. The rules are those of `SAEConfig.architecture`."""
    pre = pre_activations(config, params, x)
    if config.architecture == "topk":
        # `.min(-1)` and not `[..., -1]`: the slice makes XLA sort the whole row.
        least = jax.lax.top_k(pre, config.k)[0].min(-1, keepdims=True)
        keep = pre >= least
    elif config.architecture == "jumprelu":
        keep = pre > params["threshold"]
    elif config.architecture == "gated":
        keep = pre + params["b_gate"] > 0
        pre = pre * jnp.exp(params["r_mag"]) + params["b_mag"]
    elif config.architecture == "groupmax":
        groups = pre.reshape(*pre.shape[:-1], config.k, -1)  # [..., k, F / k]
        keep = (groups == groups.max(-1, keepdims=True)).reshape(pre.shape)
    else:
        keep = True
    return jnp.where(keep, jax.nn.relu(pre), 0.0)


def sae_decode(config: SAEConfig, params: Any, f: jax.Array) -> jax.Array:
    """x̂ = f W_dec + b_dec; [..., d_sae] -> [..., d_in]."""
    return jnp.asarray(f, jnp.float32) @ params["W_dec"] + params["b_dec"]
