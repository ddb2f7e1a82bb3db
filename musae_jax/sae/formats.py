"""SAEs on disk, in the layout of SAELens 6, which most tools read; three more files of ours that others ignore.

cfg.json                      architecture, d_in, d_sae, dtype, device, apply_b_dec_to_input, normalize_activations,
                              reshape_activations, metadata {…}; k if architecture is topk
sae_weights.safetensors       W_enc [D, F], b_enc [F], W_dec [F, D], b_dec [D], threshold [F] if jumprelu;
                              b_gate, r_mag, b_mag [F] in place of b_enc if gated
golden.safetensors            x [n, D] with its f [n, F] and x_hat [n, D], recomputed at load: the wrong rule, a
                              changed weight or a bias applied twice cannot go unseen
feature_maximum.safetensors   maximum [F], optional: each feature's largest activation, the unit of steering
"""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from musae_jax.disk import disk_errors
from musae_jax.errors import MusaeError
from musae_jax.files import atomic_path, read_json, write_json
from musae_jax.sae.sae import ARCHITECTURES, SAE, SAEConfig

CONFIG, WEIGHTS, GOLDEN, MAXIMUM = (
    "cfg.json",
    "sae_weights.safetensors",
    "golden.safetensors",
    "feature_maximum.safetensors",
)
GOLDEN_ROWS = 16
_KNOWN = {
    "architecture",
    "d_in",
    "d_sae",
    "dtype",
    "device",
    "apply_b_dec_to_input",
    "normalize_activations",
    "reshape_activations",
    "metadata",
    "k",
    "rescale_acts_by_decoder_norm",
}


def save_sae(folder: str | Path, sae: SAE, golden: Any = None) -> None:
    """Writes an SAE so that `load_sae` and SAELens read it; each file is replaced atomically, cfg.json last.

    `golden` are activations [n, D] to check the SAE with from now on; without, some are made up from its weights.

    Raises:
      MusaeError: weights that are not finite or do not fit the config, or the disk refuses a file.
    """
    folder = Path(folder)
    config = sae.config
    params = {name: np.asarray(value, np.float32) for name, value in sae.params.items()}
    _check_weights(folder / WEIGHTS, config, params)
    record = {
        "architecture": config.architecture,
        "d_in": config.d_in,
        "d_sae": config.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": config.apply_b_dec_to_input,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": dict(config.metadata),
    }
    if config.architecture == "topk":
        record["k"] = config.k
        record["rescale_acts_by_decoder_norm"] = False
    elif config.k is not None:
        record["metadata"]["k"] = config.k
    candidates = _made_up(params) if golden is None else np.asarray(golden, np.float32)
    _write_tensors(folder / WEIGHTS, params)
    _write_tensors(folder / GOLDEN, _golden(config, params, candidates))
    if sae.maximum is not None:
        save_maximum(folder, sae.maximum)
    with disk_errors(folder / CONFIG):
        write_json(folder / CONFIG, record)


def save_maximum(folder: str | Path, maximum: Any) -> None:
    """Writes each feature's largest activation [F] beside a saved SAE; `load_sae` reads it into `SAE.maximum`."""
    maximum = np.asarray(maximum, np.float32)
    features = read_json(Path(folder) / CONFIG)["d_sae"] if (Path(folder) / CONFIG).exists() else maximum.size
    if maximum.shape != (features,) or not np.isfinite(maximum).all() or (maximum < 0).any():
        raise MusaeError(
            f"the maxima for {folder} have shape {maximum.shape}, but {features} finite values >= 0 are needed, one a"
            " feature; compute the features' statistics again"
        )
    _write_tensors(Path(folder) / MAXIMUM, {"maximum": maximum})


def load_sae(folder: str | Path) -> SAE:
    """Reads an SAE folder; fp32 whatever was stored, and checked against its golden triple where it has one.

    A decoder norm folded at run time (`rescale_acts_by_decoder_norm`) is folded into the weights here.

    Raises:
      MusaeError: a file is missing or damaged, an inference rule or a field is unknown, or the golden triple disagrees.
    """
    folder = Path(folder)
    if not (folder / CONFIG).exists():
        raise MusaeError(f"{folder} holds no SAE (no {CONFIG}); give a folder that `musae train` or SAELens wrote")
    record = read_json(folder / CONFIG)
    config = _read_config(folder / CONFIG, record)
    params = _read_tensors(folder / WEIGHTS)
    params = {name: np.asarray(value, np.float32) for name, value in params.items()}
    _check_weights(folder / WEIGHTS, config, params)
    if record.get("rescale_acts_by_decoder_norm"):
        params = _fold_decoder_norm(folder / WEIGHTS, config, params)
    if (folder / GOLDEN).exists():
        _check_golden(folder, config, params)
    maximum = None
    if (folder / MAXIMUM).exists():
        maximum = _read_tensors(folder / MAXIMUM).get("maximum")
        if maximum is None or maximum.shape != (config.d_sae,):
            raise MusaeError(f"{folder / MAXIMUM} does not hold `maximum` [{config.d_sae}]; delete it and run it again")
        maximum = jnp.asarray(maximum, jnp.float32)
    return SAE(config, {name: jnp.asarray(value) for name, value in params.items()}, maximum)


def _read_config(path: Path, record: Any) -> SAEConfig:
    def refuse(what: str) -> MusaeError:
        return MusaeError(f"{path} cannot be used: {what}; convert the SAE to SAELens 6 with a rule that is known here")

    if not isinstance(record, dict):
        raise refuse("it is not a JSON object")
    if "activation_fn_str" in record or "activation_fn" in record:
        raise refuse("it is the flat layout of SAELens 5 or older (activation_fn_str)")
    architecture = record.get("architecture")
    if architecture not in ARCHITECTURES:
        raise refuse(f"architecture is {architecture!r}, known are {', '.join(ARCHITECTURES)}")
    if unknown := sorted(set(record) - _KNOWN):
        raise refuse(f"unknown fields {', '.join(unknown)}")
    for name in ("normalize_activations", "reshape_activations"):
        if record.get(name, "none") not in ("none", None):
            raise refuse(f"{name} is {record[name]!r}, only 'none' is known")
    for name in ("d_in", "d_sae", *(("k",) if architecture == "topk" else ())):
        value = record.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise refuse(f"{name} is {value!r}, a positive integer is needed")
    metadata = record.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise refuse("metadata is not a JSON object")
    k = record["k"] if architecture == "topk" else metadata.get("k")
    if architecture == "topk" and k > record["d_sae"]:
        raise refuse(f"k = {k} is more than d_sae = {record['d_sae']}")
    if "apply_b_dec_to_input" not in record:
        raise refuse("apply_b_dec_to_input is missing")
    return SAEConfig(record["d_in"], record["d_sae"], architecture, k, bool(record["apply_b_dec_to_input"]), metadata)


def _check_weights(path: Path, config: SAEConfig, params: dict[str, np.ndarray]) -> None:
    shapes = {"W_enc": (config.d_in, config.d_sae), "W_dec": (config.d_sae, config.d_in), "b_dec": (config.d_in,)}
    per_feature = {"jumprelu": ("b_enc", "threshold"), "gated": ("b_gate", "r_mag", "b_mag")}
    shapes |= {name: (config.d_sae,) for name in per_feature.get(config.architecture, ("b_enc",))}
    problems = [f"{name} is missing" for name in sorted(set(shapes) - set(params))]
    problems += [f"{name} is unknown" for name in sorted(set(params) - set(shapes))]
    for name in sorted(set(shapes) & set(params)):
        if params[name].shape != shapes[name]:
            problems.append(f"{name} is {list(params[name].shape)}, not {list(shapes[name])}")
        elif not np.isfinite(params[name]).all():
            problems.append(f"{name} holds values that are not finite")
    if problems:
        raise MusaeError(
            f"{path} does not fit a {config.architecture} SAE with d_in {config.d_in} and d_sae {config.d_sae}:"
            f" {'; '.join(problems)}"
        )


def _fold_decoder_norm(path: Path, config: SAEConfig, params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """p is multiplied by the norm of W_dec's row before the rule and divided by it after: unit rows do the same."""
    norm = np.linalg.norm(params["W_dec"], axis=1)  # [F]
    if not norm.all():
        raise MusaeError(f"{path} has decoder rows of norm 0, which rescale_acts_by_decoder_norm cannot be applied to")
    biases = {name: params[name] * norm for name in ("b_enc", "b_gate", "b_mag") if name in params}
    folded = {**params, **biases, "W_enc": params["W_enc"] * norm}
    return {**folded, "W_dec": params["W_dec"] / norm[:, None]}


def _numpy_sae(config: SAEConfig, params: dict[str, np.ndarray], x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(f, how far each p is from being treated otherwise), in NumPy: the same on every device, whatever its matmuls."""
    projected = (x - params["b_dec"] if config.apply_b_dec_to_input else x) @ params["W_enc"]  # [n, F]
    if config.architecture == "gated":
        gate = projected + params["b_gate"]
        magnitude = projected * np.exp(params["r_mag"]) + params["b_mag"]
        return np.where(gate > 0, np.maximum(magnitude, 0.0), 0.0), np.abs(gate)
    pre = projected + params["b_enc"]
    if config.architecture == "topk":
        ranked = -np.sort(-pre, axis=1)
        least = ranked[:, config.k - 1, None]  # the last that is kept, and the first that is not
        best = ranked[:, config.k, None] if config.k < config.d_sae else np.full_like(least, -np.inf)
        keep = pre >= least
        margin = np.where(keep, pre - best, least - pre)
    else:
        threshold = params["threshold"] if config.architecture == "jumprelu" else np.zeros(1, np.float32)
        keep = pre > threshold
        margin = np.abs(pre - threshold)
    return np.where(keep, np.maximum(pre, 0.0), 0.0), margin


def _golden(config: SAEConfig, params: dict[str, np.ndarray], x: np.ndarray) -> dict[str, np.ndarray]:
    f, _ = _numpy_sae(config, params, x)
    best = np.argsort(-(f > 0).sum(1), kind="stable")[:GOLDEN_ROWS]  # rows where something happens say the most
    x, f = x[best], f[best]
    return {"x": x, "f": f, "x_hat": f @ params["W_dec"] + params["b_dec"]}


def _made_up(params: dict[str, np.ndarray]) -> np.ndarray:
    """Tokens that wake some features: sums of a few decoder rows, well above the thresholds."""
    rng = np.random.default_rng(0)
    features, size = params["W_dec"].shape[0], 1.0 + 4 * float(np.abs(params.get("threshold", np.zeros(1))).mean())
    rows = rng.integers(0, features, (4 * GOLDEN_ROWS, 4))
    weights = size * rng.uniform(0.5, 2.0, rows.shape)
    return (params["b_dec"] + np.einsum("nr,nrd->nd", weights, params["W_dec"][rows])).astype(np.float32)


def _check_golden(folder: Path, config: SAEConfig, params: dict[str, np.ndarray]) -> None:
    golden = _read_tensors(folder / GOLDEN)
    shapes = {"x": config.d_in, "f": config.d_sae, "x_hat": config.d_in}
    if any(name not in golden or golden[name].shape != (len(golden["x"]), d) for name, d in shapes.items()):
        raise MusaeError(f"{folder / GOLDEN} does not hold x, f and x_hat of this SAE's size; save the SAE again")
    f, margin = _numpy_sae(config, params, golden["x"])
    tolerance = 1e-4 * max(1e-6, float(np.abs(golden["f"]).max()), float(np.abs(golden["x"]).max()))
    # Within rounding of the threshold a feature may fall on either side.
    wrong = (np.abs(f - golden["f"]) > tolerance) & ((margin > tolerance) | (f > 0) & (golden["f"] > 0))
    x_hat = golden["f"] @ params["W_dec"] + params["b_dec"]
    off = np.abs(x_hat - golden["x_hat"]) > 1e-4 * max(1e-6, float(np.abs(golden["x_hat"]).max()))
    if wrong.any() or off.any():
        raise MusaeError(
            f"{folder} does not compute what it did when it was saved ({int(wrong.sum())} feature activations and"
            f" {int(off.sum())} reconstructed values of {GOLDEN} differ): {CONFIG} or {WEIGHTS} was changed;"
            " get it again"
        )


def _write_tensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    data = safetensors.numpy.save({name: np.ascontiguousarray(value) for name, value in tensors.items()})
    with disk_errors(path), atomic_path(path) as temporary:
        temporary.write_bytes(data)


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    try:
        return safetensors.numpy.load(path.read_bytes())
    except FileNotFoundError:
        raise MusaeError(f"{path} is missing; get the SAE's folder again") from None
    except (safetensors.SafetensorError, KeyError, ValueError, json.JSONDecodeError) as error:
        raise MusaeError(f"{path} is not a whole safetensors file ({error}); get it again") from None
