"""What an SAE does to its input and output around its rule, folded into its weights: pure functions, exact.

Each takes and returns params of `SAE` as NumPy arrays; what the SAE computes from x stays the same.
"""

import numpy as np

from musae_jax.sae.sae import SAEConfig

_PER_FEATURE = ("b_enc", "threshold", "b_gate", "b_mag")  # [F], in the units of f; r_mag is a log ratio

Params = dict[str, np.ndarray]


def fold_decoder_norm(params: Params, threshold_is_rescaled: bool = False) -> Params:
    """Unit decoder rows: f becomes f times its row's norm, and x̂ stays.

    This is what `rescale_acts_by_decoder_norm` of SAELens does at run time; `threshold_is_rescaled` says that the
    threshold was already measured on those rescaled activations. Rows of norm 0 must not occur.
    """
    norm = np.linalg.norm(params["W_dec"].astype(np.float64), axis=1)  # [F]
    names = set(_PER_FEATURE) - ({"threshold"} if threshold_is_rescaled else set())
    folded = {name: value * norm if name in names else value for name, value in params.items()}
    return _single({**folded, "W_enc": params["W_enc"] * norm, "W_dec": params["W_dec"] / norm[:, None]})


def fold_input_scale(params: Params, scale: float) -> Params:
    """For an SAE that was trained on scale · x and whose x̂ is divided by scale: one that takes x and gives x̂."""
    folded = {"W_enc": params["W_enc"] * scale, "W_dec": params["W_dec"] / scale, "b_dec": params["b_dec"] / scale}
    return _single({**params, **folded})


def fold_whitening(config: SAEConfig, params: Params, mean: np.ndarray, matrix: np.ndarray, inverse: np.ndarray):
    """For an SAE that was trained on z = (x − mean) matrix and whose x̂ is ẑ inverse + mean: one that takes x.

    mean is [D], matrix and inverse [D, D] (arXiv 2511.13981).
    """
    mean, matrix, inverse = (np.asarray(value, np.float64) for value in (mean, matrix, inverse))
    encoder = matrix @ params["W_enc"]
    folded = {"W_enc": encoder, "W_dec": params["W_dec"] @ inverse, "b_dec": params["b_dec"] @ inverse + mean}
    if not config.apply_b_dec_to_input:  # otherwise the new b_dec takes the mean away
        shift = mean @ encoder  # [F]
        for name in ("b_enc", "b_gate", "b_mag"):
            if name in params:
                folded[name] = params[name] - shift * (np.exp(params["r_mag"]) if name == "b_mag" else 1.0)
    return _single({**params, **folded})


def fold_feature_scale(params: Params, scale: np.ndarray) -> Params:
    """For an SAE whose f is multiplied by scale [F] before it is decoded: f stays, W_dec's rows take the scale."""
    return _single({**params, "W_dec": params["W_dec"] * np.asarray(scale)[:, None]})


def _single(params: Params) -> Params:
    return {name: np.asarray(value, np.float32) for name, value in params.items()}
