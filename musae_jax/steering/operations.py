"""Operations on features inside the model, each an `Edits`: clamp, ablate and scale them, or hold them where they are.

Adding features is `directions.steer`. These read the stream h first. Clamp, ablate and scale go through the SAE and
keep its error: h + decode(f′) − decode(f), which is h + Σ (f′_j − f_j) · W_dec[j] over the features touched. Hold moves
h along their decoder rows as far as the encoder needs.

Where a feature's activation depends on its own pre-activation only (jumprelu, BatchTopK among it, standard, gated), the
weights of the features touched are all that is read, n columns of the encoder; topk and groupmax need the whole encoder
at every step, except to hold. Features, targets and factors are arrays: others, as many, compile nothing again.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from musae_jax.errors import MusaeError
from musae_jax.models.edits import Edits, FunctionEdit
from musae_jax.sae.sae import SAE, SAEConfig, pre_activations, sae_encode
from musae_jax.steering.directions import check_features, feature_sizes, layer_of

Bound = Literal["at_least", "exactly", "at_most"]
_COMPETING = ("topk", "groupmax")  # whether a feature is active depends on the others


def clamp(sae: SAE, targets: Mapping[int, float], maximum: Any = None) -> Edits:
    """Edits that set features to `targets`, in units of each one's maximum activation, wherever they stand.

    `maximum` [F] overrides `sae.maximum`. Raises `MusaeError` as `feature_vectors` does.
    """
    features, values = feature_sizes(sae, targets, maximum)
    return _replaced(sae, features, np.zeros_like(values), values)


def ablate(sae: SAE, features: Iterable[int]) -> Edits:
    """Edits that take the features' share out of the stream: f′ = 0. Raises `MusaeError` for one the SAE lacks."""
    return scale(sae, dict.fromkeys(features, 0.0))


def scale(sae: SAE, factors: Mapping[int, float]) -> Edits:
    """Edits that multiply features by `factors`: f′ = factor · f, so nothing happens where a feature is inactive.

    Raises `MusaeError` for a feature that the SAE lacks, and a factor that is not finite or above 100 in size.
    """
    features, values = check_features(sae, factors, "factor")
    return _replaced(sae, features, values, np.zeros_like(values))


def hold(sae: SAE, targets: Mapping[int, float], bound: Bound = "at_least", maximum: Any = None) -> Edits:
    """Edits whose strength is chosen anew at every step, so that the features, read again, keep to `targets` (in units
    of each one's maximum activation): at least that, exactly that, or at most that.

    Adding s_i · W_dec[i] changes pre-activation p_j by Σ s_i · (w_enc_j · W_dec[i]); the strengths s that put all p_j
    where they should be at once (those within their bounds stay where they are) solve that n × n system, whose inverse
    is a constant of the SAE. What is promised, to the rounding of the stream's dtype, is about the stream as this edit
    leaves it: nothing after it at this layer, and no schedule below 1. In a topk or groupmax SAE it is promised of the
    pre-activation, which is the activation where the feature is among the largest. A lower target than the least
    activation a feature can have (its threshold) holds it just above that threshold.

    Raises:
      MusaeError: as `feature_vectors`; a target below 0; exactly a target that the feature cannot have; a feature that
        adding its decoder row does not raise, or features whose rows cannot be told apart.
    """
    if bound not in ("at_least", "exactly", "at_most"):
        raise MusaeError(f"bound is {bound!r}; choose at_least, exactly or at_most")
    features, values = feature_sizes(sae, targets, maximum)
    if np.any(values < 0):
        raise MusaeError(
            f"feature {features[values < 0][0]} has a target below 0, but activations are never negative; give 0 or "
            "more"
        )
    if not len(features):
        return Edits()
    config, own = _own_weights(sae, features)
    own = {name: np.asarray(value, np.float64) for name, value in own.items()}
    W_dec = np.asarray(sae.params["W_dec"], np.float64)[features]
    floor, ceiling = _levels(config, own, features, values, bound)
    arrays = {
        "sae": {name: jnp.asarray(value, jnp.float32) for name, value in own.items()},
        "floor": jnp.asarray(floor, jnp.float32),
        "ceiling": jnp.asarray(ceiling, jnp.float32),
        "directions": jnp.asarray(_one_at_a_time(own["W_enc"], W_dec, features), jnp.float32),
    }
    return Edits(functions={layer_of(sae): FunctionEdit(_Hold(config), arrays)})


@dataclasses.dataclass(frozen=True)
class _Replace:
    """Σ (f′_j − f_j) · W_dec[j] with f′ = factor · f + target. Static and compared by value, so it compiles once."""

    config: SAEConfig

    def __call__(self, arrays: Any, h: jax.Array) -> jax.Array:
        _check_width(self.config, h)
        f = sae_encode(self.config, arrays["sae"], h)
        if self.config.architecture in _COMPETING:
            f = f[..., arrays["features"]]
        return ((arrays["factors"] - 1) * f + arrays["targets"]) @ arrays["W_dec"]  # [..., n] -> [..., D]


@dataclasses.dataclass(frozen=True)
class _Hold:
    """What brings the pre-activations of the features [..., n] between floor and ceiling."""

    config: SAEConfig

    def __call__(self, arrays: Any, h: jax.Array) -> jax.Array:
        _check_width(self.config, h)
        p = pre_activations(self.config, arrays["sae"], h)
        return (jnp.clip(p, arrays["floor"], arrays["ceiling"]) - p) @ arrays["directions"]


def _check_width(config: SAEConfig, h: jax.Array) -> None:
    if h.shape[-1] != config.d_in:
        raise MusaeError(
            f"the SAE reads a stream {config.d_in} wide, but this model's residual stream is {h.shape[-1]} wide; take "
            "an SAE of this model"
        )


def _replaced(sae: SAE, features: np.ndarray, factors: np.ndarray, targets: np.ndarray) -> Edits:
    if not len(features):
        return Edits()
    arrays = {"factors": jnp.asarray(factors, jnp.float32), "targets": jnp.asarray(targets, jnp.float32)}
    if sae.config.architecture in _COMPETING:
        config = dataclasses.replace(sae.config, metadata={})
        arrays["sae"] = {name: value for name, value in sae.params.items() if name != "W_dec"}
        arrays["features"] = jnp.asarray(features, jnp.int32)
    else:
        config, arrays["sae"] = _own_weights(sae, features)
    arrays["W_dec"] = jnp.asarray(sae.params["W_dec"])[features]
    return Edits(functions={layer_of(sae): FunctionEdit(_Replace(config), arrays)})


def _own_weights(sae: SAE, features: np.ndarray) -> tuple[SAEConfig, dict[str, jax.Array]]:
    """An encoder of these features alone."""
    own = {n: jnp.asarray(v)[..., features] for n, v in sae.params.items() if n not in ("W_dec", "b_dec")}
    architecture = "standard" if sae.config.architecture in _COMPETING else sae.config.architecture
    config = dataclasses.replace(sae.config, d_sae=len(features), k=None, architecture=architecture, metadata={})
    return config, {**own, "b_dec": jnp.asarray(sae.params["b_dec"])}


def _levels(
    config: SAEConfig, own: Mapping[str, np.ndarray], features: np.ndarray, targets: np.ndarray, bound: Bound
) -> tuple[np.ndarray, np.ndarray]:
    """The least and the greatest pre-activation [n] that each feature may have; infinite where there is no bound."""
    level, onset = targets, np.zeros_like(targets)  # where the activation is the target; above what it is active
    if config.architecture == "jumprelu":
        onset = np.maximum(own["threshold"], 0)
    elif config.architecture == "gated":
        level, onset = (targets - own["b_mag"]) / np.exp(own["r_mag"]), -own["b_gate"]
    margin = 1e-4 * np.abs(onset) + 1e-6  # more than rounding
    off = (targets > 0) & (level <= onset)
    if bound == "exactly" and off.any():
        raise MusaeError(
            f"feature {features[off][0]} cannot be held at exactly {targets[off][0]:.3g}: it is inactive up to its "
            "threshold, and above it more than that; give a greater target, or hold it at least there"
        )
    floor = np.where(targets > 0, np.maximum(level, onset + margin), -np.inf)
    ceiling = np.maximum(level, np.where(level <= onset, onset - margin, level))
    return (
        np.full_like(floor, -np.inf) if bound == "at_most" else floor,
        np.full_like(ceiling, np.inf) if bound == "at_least" else ceiling,
    )


def _one_at_a_time(W_enc: np.ndarray, W_dec: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Directions [n, D] in the span of the decoder's rows, each of which raises its own feature's pre-activation by 1
    and leaves those of the others."""
    gains = W_dec @ W_enc  # [n, n]: by how much adding feature i raises pre-activation j
    own = np.diag(gains)
    size = np.linalg.norm(W_dec, axis=1) * np.linalg.norm(W_enc, axis=0)
    if np.any(own <= 1e-3 * size):
        raise MusaeError(
            f"feature {features[own <= 1e-3 * size][0]} cannot be held, because adding its decoder row does not raise "
            "its own pre-activation; clamp it, or add it"
        )
    if len(own) and np.linalg.cond(gains / np.sqrt(np.outer(own, own))) > 1e4:
        raise MusaeError(
            f"features {', '.join(map(str, features))} cannot be held together, because their decoder rows are nearly "
            "dependent; leave one out"
        )
    return np.linalg.solve(gains, W_dec)
