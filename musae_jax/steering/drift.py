"""How far steering leads away: from the model's own predictions, and from music."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musae_jax.models.decoder import TextStates
from musae_jax.models.delay import delayed_targets
from musae_jax.models.edits import Edits
from musae_jax.models.musicgen import MusicGenConfig, forward


@functools.partial(jax.jit, static_argnames=("config",))
def prediction_drift(
    config: MusicGenConfig,
    params: Any,
    codes: Any,
    text: TextStates,
    steered_text: TextStates,
    edits: Edits,
    guidance_scale: Any,
) -> jax.Array:
    """KL(steered ‖ unsteered) of the next token on the same tokens, in nats: [B, K] a clip and codebook.

    Teacher-forced on codes [B, K, T], with guidance, before any sampling rule; `text` and `steered_text` are what the
    unsteered and the steered model are asked for. Means over the real frames.
    """

    def predict(text: TextStates, edits: Edits | None) -> jax.Array:
        conditional = forward(config, params, codes, text, edits=edits).logits
        free = forward(config, params, codes, edits=edits).logits
        return jax.nn.log_softmax(free + guidance_scale * (conditional - free))  # [B, K, P, V]

    steered, plain = predict(steered_text, edits), predict(text, None)
    mask = delayed_targets(codes, config.audio_channels)[1]  # [K, P]
    nats = jnp.sum(jnp.exp(steered) * (steered - plain), -1)
    return jnp.sum(jnp.where(mask, nats, 0.0), -1) / mask.sum(-1)


def frechet_distance(x: Any, reference: Any) -> float:
    """FAD of embeddings [N, E] to those of a reference [M, E]: |μ − ν|² + tr(A + B − 2 √(AB)), A and B covariances.

    tr √(AB) = Σ √ eigenvalues of √A B √A. Biased upwards where N or M is small: compare sets of one size.
    """
    x, reference = np.asarray(x, np.float64), np.asarray(reference, np.float64)
    a, b = np.cov(x, rowvar=False), np.cov(reference, rowvar=False)
    values, vectors = np.linalg.eigh(a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ b @ root).clip(0)).sum()
    return float(((x.mean(0) - reference.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * cross)


def kernel_distance(x: Any, reference: Any) -> float:
    """KAD: the unbiased squared maximum mean discrepancy of embeddings [N, E] to a reference [M, E], times 100.

    The kernel is exp(-d² / 2σ²), σ the median distance within the reference (Chung et al., arXiv 2502.15602). About 0,
    and below as often as above, for two samples of one distribution, whatever their sizes.
    """
    x, reference = np.asarray(x, np.float64), np.asarray(reference, np.float64)

    def squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T, 0)

    n, m = len(x), len(reference)
    within = squared(reference, reference)
    width = np.median(within[np.triu_indices(m, 1)])  # of d², the square of the median of d
    kernel = lambda d: np.exp(-d / (2 * max(width, 1e-30)))  # noqa: E731
    same_x = (kernel(squared(x, x)).sum() - n) / (n * (n - 1))
    same_reference = (kernel(within).sum() - m) / (m * (m - 1))
    return 100 * float(same_x + same_reference - 2 * kernel(squared(x, reference)).mean())
