"""Random SAEs of every rule, whose decoder rows lean towards their own encoder columns, as trained ones do."""

import jax.numpy as jnp
import numpy as np

from musae_jax.sae.sae import SAE, SAEConfig

FEATURES = 20


def random_sae(architecture="jumprelu", d_in=7, layer=1, seed=0, apply_b_dec=True, size=1.0):
    """An SAE [d_in -> 20] of the stream after block `layer`; `size` is that of its features' maxima."""
    rng = np.random.default_rng(seed)
    W_dec = rng.normal(size=(FEATURES, d_in))
    W_dec /= np.linalg.norm(W_dec, axis=1, keepdims=True)
    params = {
        "W_enc": W_dec.T + rng.normal(size=(d_in, FEATURES)) / 5,
        "b_enc": rng.normal(size=FEATURES) / 5,
        "W_dec": W_dec,
        "b_dec": rng.normal(size=d_in) / 5,
    }
    if architecture == "jumprelu":
        params["threshold"] = rng.uniform(0.1, 0.5, FEATURES)
    if architecture == "gated":
        params |= {name: rng.normal(size=FEATURES) / 5 for name in ("b_gate", "r_mag", "b_mag")}
        del params["b_enc"]
    k = 4 if architecture in ("topk", "groupmax") else None
    config = SAEConfig(d_in, FEATURES, architecture, k, apply_b_dec, {"hook_name": f"blocks.{layer}.resid_post"})
    maximum = jnp.asarray(size * rng.uniform(1, 3, FEATURES), jnp.float32)
    return SAE(config, {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}, maximum)
