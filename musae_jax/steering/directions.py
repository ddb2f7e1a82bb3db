"""Directions to steer along: h + α·β·W_dec[j] after the SAE's layer, at every step (arXiv 2505.18186, steering).

α is the strength; β is the feature's own greatest activation over the harvested music, so strength 1 adds as much of
the feature as the model itself ever used.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musae_jax.errors import MusaeError
from musae_jax.models.edits import Edits
from musae_jax.sae.sae import SAE


def layer_of(sae: SAE) -> int:
    """The 0-based layer after whose block the SAE reads, from its hook `blocks.{i}.resid_post`."""
    match = re.fullmatch(r"blocks\.(\d+)\.(?:hook_)?resid_post", sae.config.hook)
    if not match:
        raise MusaeError(
            f"the SAE's hook is {sae.config.hook!r}, not blocks.{{layer}}.resid_post; set its hook_name in cfg.json"
        )
    return int(match[1])


def feature_vectors(sae: SAE, strengths: Mapping[int, float], maximum: Any = None) -> jax.Array:
    """Σ α_j · β_j · W_dec[j] over the features given. -> [D]

    `maximum` [F] overrides `sae.maximum`. Raises `MusaeError` for a feature that the SAE lacks, that never fires (there
    is no unit to steer in), or when no maximum is known.
    """
    maximum = sae.maximum if maximum is None else maximum
    if maximum is None:
        raise MusaeError(
            "the SAE has no record of its features' maximum activations, the unit of steering; "
            "run `musae features` on it or pass maximum=[F]"
        )
    maximum = np.asarray(maximum, np.float32)
    features = sorted(strengths)
    for feature in features:
        if not 0 <= feature < sae.config.d_sae:
            raise MusaeError(f"feature {feature} is not in this SAE; choose from 0 to {sae.config.d_sae - 1}")
        if not maximum[feature] > 0:
            raise MusaeError(
                f"feature {feature} never fires on the harvested music, so it cannot be steered; choose another"
            )
        if not np.isfinite(strengths[feature]):
            raise MusaeError(f"the strength of feature {feature} is {strengths[feature]}; give a finite number")
    sizes = jnp.asarray([strengths[f] * maximum[f] for f in features], jnp.float32)
    return sizes @ sae.params["W_dec"][jnp.asarray(features, int)]


def steer(sae: SAE, strengths: Mapping[int, float], maximum: Any = None) -> Edits:
    """Edits that add features at `strengths`, in units of each feature's maximum activation; {} changes nothing.

    Both branches of guidance are steered, at every position.
    """
    strengths = {int(f): float(a) for f, a in strengths.items()}
    if not strengths:
        return Edits()
    return Edits(vectors={layer_of(sae): feature_vectors(sae, strengths, maximum)})


def random_direction(key: jax.Array, edits: Edits) -> Edits:
    """The control: at each layer a random direction with the norm of each vector of `edits` (last axis).

    One direction is drawn per layer and shared by rows and positions, as a feature's is.
    """
    vectors = {}
    for number, (layer, vector) in enumerate(sorted(edits.vectors.items())):
        vector = jnp.asarray(vector, jnp.float32)
        direction = jax.random.normal(jax.random.fold_in(key, number), vector.shape[-1:])
        direction = direction / jnp.linalg.norm(direction)
        vectors[layer] = jnp.linalg.norm(vector, axis=-1, keepdims=True) * direction
    return Edits(vectors=vectors)
