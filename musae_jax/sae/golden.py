"""The golden triple: tokens x with their f and x̂, saved beside an SAE and computed again at every load.

The wrong rule, a changed weight or a bias applied twice cannot go unseen.
"""

from pathlib import Path

import numpy as np

from musae_jax.errors import MusaeError
from musae_jax.sae.sae import SAEConfig
from musae_jax.sae.tensors import read_tensors

GOLDEN = "golden.safetensors"
GOLDEN_ROWS = 16


def golden_triple(config: SAEConfig, params: dict[str, np.ndarray], x: np.ndarray | None = None) -> dict:
    """{"x" [n, D], "f" [n, F], "x_hat" [n, D]} of the n <= 16 tokens of `x` [N, D] that wake the most features.

    Without `x`, tokens are made up from the decoder's rows.
    """
    x = _made_up(params) if x is None else np.asarray(x, np.float32)
    f, _ = _encode(config, params, x)
    best = np.argsort(-(f > 0).sum(1), kind="stable")[:GOLDEN_ROWS]  # rows where something happens say the most
    x, f = x[best], f[best]
    return {"x": x, "f": f, "x_hat": f @ params["W_dec"] + params["b_dec"]}


def check_golden(folder: Path, config: SAEConfig, params: dict[str, np.ndarray]) -> None:
    """Raises a `MusaeError` if the SAE does not compute the triple in its folder; without one, there is no check."""
    if not (folder / GOLDEN).exists():
        return
    golden = read_tensors(folder / GOLDEN)
    shapes = {"x": config.d_in, "f": config.d_sae, "x_hat": config.d_in}
    if any(name not in golden or golden[name].shape != (len(golden["x"]), d) for name, d in shapes.items()):
        raise MusaeError(f"{folder / GOLDEN} does not hold x, f and x_hat of this SAE's size; save the SAE again")
    f, margin = _encode(config, params, golden["x"])
    tolerance = 1e-4 * max(1e-6, float(np.abs(golden["f"]).max()), float(np.abs(golden["x"]).max()))
    # Within rounding of the threshold a feature may fall on either side.
    wrong = (np.abs(f - golden["f"]) > tolerance) & ((margin > tolerance) | (f > 0) & (golden["f"] > 0))
    x_hat = golden["f"] @ params["W_dec"] + params["b_dec"]
    off = np.abs(x_hat - golden["x_hat"]) > 1e-4 * max(1e-6, float(np.abs(golden["x_hat"]).max()))
    if wrong.any() or off.any():
        raise MusaeError(
            f"{folder} does not compute what it did when it was saved ({int(wrong.sum())} feature activations and"
            f" {int(off.sum())} reconstructed values of {GOLDEN} differ): its config or its weights were changed;"
            " get it again"
        )


def _encode(config: SAEConfig, params: dict[str, np.ndarray], x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(f, how far each p is from being treated otherwise), in NumPy: the same on every device, whatever its matmuls."""
    pre = (x - params["b_dec"] if config.apply_b_dec_to_input else x) @ params["W_enc"]  # [n, F]
    if config.architecture == "gated":
        gate = pre + params["b_gate"]
        pre = pre * np.exp(params["r_mag"]) + params["b_mag"]
        return np.where(gate > 0, np.maximum(pre, 0.0), 0.0), np.minimum(np.abs(gate), np.abs(pre))
    pre = pre + params["b_enc"]
    if config.architecture == "topk":
        keep, margin = _largest(pre, config.k)
    elif config.architecture == "groupmax":
        keep, margin = _largest(pre.reshape(len(pre), config.k, -1), 1)
        keep, margin = keep.reshape(pre.shape), margin.reshape(pre.shape)
    else:
        threshold = params["threshold"] if config.architecture == "jumprelu" else np.zeros(1, np.float32)
        keep = pre > threshold
        margin = np.abs(pre - threshold)
    return np.where(keep, np.maximum(pre, 0.0), 0.0), margin


def _largest(pre: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Which are the k largest of the last axis, and how far each is from being treated otherwise."""
    ranked = -np.sort(-pre, axis=-1)
    least = ranked[..., k - 1, None]  # the last that is kept, and the first that is not
    best = ranked[..., k, None] if k < pre.shape[-1] else np.full_like(least, -np.inf)
    keep = pre >= least
    return keep, np.where(keep, pre - best, least - pre)


def _made_up(params: dict[str, np.ndarray]) -> np.ndarray:
    """Tokens that wake some features: sums of a few decoder rows, well above the thresholds."""
    rng = np.random.default_rng(0)
    features, size = params["W_dec"].shape[0], 1.0 + 4 * float(np.abs(params.get("threshold", np.zeros(1))).mean())
    rows = rng.integers(0, features, (4 * GOLDEN_ROWS, 4))
    weights = size * rng.uniform(0.5, 2.0, rows.shape)
    return (params["b_dec"] + np.einsum("nr,nrd->nd", weights, params["W_dec"][rows])).astype(np.float32)
