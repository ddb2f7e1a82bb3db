"""Dictionaries that learned nothing from an SAE's loss, as SAEs: what a score must be printed beside.

Scores of trained SAEs mean little alone: random dictionaries come near them on common measures (Korznikov et al. 2026).
All three are tied dictionaries about the mean of a sample of activations, read and evaluated like any other SAE.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musae_jax.errors import MusaeError
from musae_jax.sae.sae import SAE, SAEConfig, sae_encode


def random_sae(key: jax.Array, x: Any, d_sae: int, k: int) -> SAE:
    """Random unit directions [d_sae, D], of which each token takes the k it has most of; `x` [N, D] is a sample.

    Activations are scaled by the one factor that makes the squared error on the sample least: random directions
    overlap, and without it their sum would overshoot.
    """
    x = np.asarray(x, np.float32)
    sae = _tied(jax.random.normal(key, (d_sae, x.shape[1])), x.mean(0), k, "random")
    f = sae_encode(sae.config, sae.params, x)
    added = np.asarray(f @ sae.params["W_dec"], np.float64)
    gain = float((added * (x - x.mean(0))).sum() / max((added**2).sum(), 1e-30))
    return sae.replace(params={**sae.params, "W_enc": sae.params["W_enc"] * gain})


def pca_sae(x: Any, components: int | None = None, k: int | None = None) -> SAE:
    """Principal components of a sample [N, D], the first `components` (None: all), as two features each.

    Feature i is the positive part of component i, feature i + components the negative part, because features are never
    negative. With k each token keeps its k largest; without, all, and all components reconstruct exactly.
    """
    x = np.asarray(x, np.float64)
    _, vectors = np.linalg.eigh(np.cov(x, rowvar=False).reshape(x.shape[1], x.shape[1]))
    basis = vectors.T[::-1][:components]  # [C, D], largest variance first
    return _tied(np.concatenate([basis, -basis]), x.mean(0), k, "pca")


def neuron_sae(x: Any, k: int | None = None) -> SAE:
    """The D coordinates of activations about the mean of a sample [N, D], as two features each, as in `pca_sae`."""
    x = np.asarray(x, np.float64)
    basis = np.eye(x.shape[1])
    return _tied(np.concatenate([basis, -basis]), x.mean(0), k, "neurons")


def _tied(directions: Any, center: Any, k: int | None, name: str) -> SAE:
    """Encoder and decoder are the same unit directions [F, D]."""
    W_dec = jnp.asarray(directions, jnp.float32)
    W_dec = W_dec / jnp.linalg.norm(W_dec, axis=1, keepdims=True)
    features, d_in = W_dec.shape
    if k is not None and not 1 <= k <= features:
        raise MusaeError(f"k = {k} features per token were asked of the {name} control, which has {features}; change k")
    params = {
        "W_enc": W_dec.T,
        "b_enc": jnp.zeros(features),
        "W_dec": W_dec,
        "b_dec": jnp.asarray(center, jnp.float32),
    }
    rule = "standard" if k is None else "topk"
    return SAE(SAEConfig(d_in, features, rule, k, metadata={"trained_as": f"control: {name}"}), params)
