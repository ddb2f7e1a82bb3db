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

LARGEST = 100.0  # strength, in units of a feature's maximum: beyond it there is no music, but a slip of the finger


def layer_of(sae: SAE) -> int:
    """The 0-based layer after whose block the SAE reads, from its hook `blocks.{i}.resid_post`."""
    match = re.fullmatch(r"blocks\.(\d+)\.(?:hook_)?resid_post", sae.config.hook)
    if not match:
        raise MusaeError(
            f"the SAE's hook is {sae.config.hook!r}, not blocks.{{layer}}.resid_post; set its hook_name in cfg.json"
        )
    return int(match[1])


def check_features(sae: SAE, amounts: Mapping[int, float], what: str = "strength") -> tuple[np.ndarray, np.ndarray]:
    """The features in their order, int [n], and the amount of each [n].

    Raises `MusaeError` for a feature that the SAE lacks, and an amount that is not finite or above `LARGEST` in size.
    """
    amounts = {int(feature): float(amount) for feature, amount in amounts.items()}
    features = sorted(amounts)
    for feature in features:
        if not 0 <= feature < sae.config.d_sae:
            raise MusaeError(f"feature {feature} is not in this SAE; choose from 0 to {sae.config.d_sae - 1}")
        amount = amounts[feature]
        if not np.isfinite(amount):
            raise MusaeError(f"the {what} of feature {feature} is {amount}; give a finite number")
        if abs(amount) > LARGEST:
            raise MusaeError(
                f"the {what} of feature {feature} is {amount:g}; give one between -{LARGEST:g} and {LARGEST:g} (1 is "
                "as much as the music ever had)"
            )
    return np.asarray(features, int), np.asarray([amounts[feature] for feature in features], np.float32)


def feature_sizes(sae: SAE, strengths: Mapping[int, float], maximum: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """The features in their order, int [n], and α_j · β_j of each [n], in the units of the SAE's activations.

    `maximum` [F] overrides `sae.maximum`. Raises `MusaeError` as `check_features`, for a feature that never fires
    (there is no unit to steer in), and when no maximum is known.
    """
    maximum = sae.maximum if maximum is None else maximum
    if maximum is None:
        raise MusaeError(
            "the SAE has no record of its features' maximum activations, the unit of steering; "
            "run `musae features` on it or pass maximum=[F]"
        )
    features, values = check_features(sae, strengths)
    units = np.asarray(maximum, np.float32)[features]
    if not np.all(units > 0):
        raise MusaeError(
            f"feature {features[~(units > 0)][0]} never fires on the harvested music, so it cannot be steered; choose "
            "another"
        )
    return features, values * units


def feature_vectors(sae: SAE, strengths: Mapping[int, float], maximum: Any = None) -> jax.Array:
    """Σ α_j · β_j · W_dec[j] over the features given. -> [D]

    `maximum` [F] overrides `sae.maximum`. Raises `MusaeError` as `feature_sizes`.
    """
    features, sizes = feature_sizes(sae, strengths, maximum)
    return jnp.asarray(sizes) @ sae.params["W_dec"][features]


def steer(sae: SAE, strengths: Mapping[int, float], maximum: Any = None) -> Edits:
    """Edits that add features at `strengths`, in units of each feature's maximum activation; {} changes nothing.

    Both branches of guidance are steered, at every position; `combining` and `schedules` make that some of them. Other
    ways of steering are in `operations`. Raises `MusaeError` as `feature_sizes`.
    """
    return Edits(vectors={layer_of(sae): feature_vectors(sae, strengths, maximum)}) if strengths else Edits()


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
