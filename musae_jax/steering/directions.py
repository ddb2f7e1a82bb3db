"""Directions to steer along, added after the SAE's layer at every step.

  steer           h + α·β_j·W_dec[j], the feature's decoder row (arXiv 2505.18186, steering)
  steer_contrast  h + α·β_j·c_j, the feature's contrast (`features.contrasts`) at the length of W_dec[j]

α is the strength; β is the feature's own greatest activation over the harvested music. So strength 1 is as long a
vector as the feature's own share of the stream ever was.
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
from musae_jax.validation.probe import fit_probe

PENALTY = 0.1  # of the probes: what cross-validation mostly chooses, without its time
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


def contrast_vectors(sae: SAE, strengths: Mapping[int, float], maximum: Any = None) -> jax.Array:
    """Σ α_j · β_j · c_j over the features given, c_j = `sae.contrast[j]` at the length of W_dec[j]. -> [D]

    Each is as long as the vector of `feature_vectors`. Raises `MusaeError` as `feature_sizes`, and where the contrasts
    are not known, or a feature has none.
    """
    if sae.contrast is None:
        raise MusaeError(
            "the SAE has no record of its features' contrasts; run `musae features` on its run, or add its decoder "
            "rows (musae generate --steer-how add)"
        )
    features, sizes = feature_sizes(sae, strengths, maximum)
    rows = np.asarray(sae.contrast[features], np.float32)
    lengths = np.linalg.norm(rows, axis=1)
    if not np.all(lengths > 0):
        raise MusaeError(
            f"no clips set feature {features[~(lengths > 0)][0]} apart, so it has no contrast; add its decoder row "
            "(musae generate --steer-how add, musae steer --how add)"
        )
    lengths = np.linalg.norm(np.asarray(sae.params["W_dec"][features], np.float32), axis=1) / lengths
    return jnp.asarray((sizes * lengths) @ rows)


def steer(sae: SAE, strengths: Mapping[int, float], maximum: Any = None) -> Edits:
    """Edits that add features at `strengths`, in units of each feature's maximum activation; {} changes nothing.

    Both branches of guidance are steered, at every position; `combining` and `schedules` make that some of them. Other
    ways of steering are in `operations`. Raises `MusaeError` as `feature_sizes`.
    """
    return Edits(vectors={layer_of(sae): feature_vectors(sae, strengths, maximum)}) if strengths else Edits()


def steer_contrast(sae: SAE, strengths: Mapping[int, float], maximum: Any = None) -> Edits:
    """Edits that add, along each feature's contrast, a vector as long as that of `steer`; {} changes nothing.

    The contrast leads from ordinary music to that in which the feature is strongest; it moves the concept farther than
    the decoder row, and what goes along with it too. Both branches of guidance are steered, at every position: see
    `steer`. Raises `MusaeError` as `contrast_vectors`.
    """
    return Edits(vectors={layer_of(sae): contrast_vectors(sae, strengths, maximum)}) if strengths else Edits()


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


def difference_in_means(x: Any, holds: Any) -> np.ndarray:
    """From where a concept does not hold to where it does: mean residual there less mean residual elsewhere.

    x [n, T, D] and holds bool [n, T], of clips (T = 1) or of frames. -> float32 [D]. Contrastive activation addition
    (Panickssery et al., arXiv 2312.06681); AxBench (arXiv 2501.17148) found it hard to beat.
    """
    x, holds = np.asarray(x, np.float32), np.asarray(holds, bool)
    return x[holds].mean(0) - x[~holds].mean(0)


def probe_directions(x: Any, holds: Any) -> np.ndarray:
    """Weights of logistic regressions that tell where each of C concepts holds, in units of the stream: x [n, T, D] and
    holds bool [n, T, C] -> float32 [C, D]."""
    holds = np.asarray(holds, bool)
    families = [str(number) for number in range(holds.shape[2])]
    probe = fit_probe(np.asarray(x, np.float32), holds, families, (PENALTY,))
    return np.asarray(probe.weights / probe.scale[:, None], np.float32).T


def pca_direction(x: Any, component: int = 0) -> np.ndarray:
    """A principal component of residuals x [N, D], of length 1: [D]; its sign is arbitrary, here that of its largest
    coordinate."""
    x = np.asarray(x).astype(np.float64)
    x = x - x.mean(0)
    values = np.linalg.eigh(x.T @ x)[1][:, ::-1][:, component]
    return (values * np.sign(values[np.abs(values).argmax()])).astype(np.float32)


def orthogonal_to(vector: Any, others: Any) -> np.ndarray:
    """`vector` [D] without its part in the span of `others` [D] or [M, D]."""
    vector, others = np.asarray(vector).astype(np.float64), np.atleast_2d(np.asarray(others)).astype(np.float64)
    basis, sizes, _ = np.linalg.svd(others.T, full_matrices=False)
    basis = basis[:, sizes > 1e-9 * max(sizes.max(initial=0), 1e-30)]
    return (vector - basis @ (basis.T @ vector)).astype(np.float32)
