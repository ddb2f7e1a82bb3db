"""SAELens folders (cfg.json, sae_weights.safetensors) of every version, read into our rules.

Version 6 keeps the rule at the top of cfg.json and all else in `metadata`. Versions 1 to 5 wrote one flat list with
every setting of the training, and so do the paper's published SAEs (5.3.2, architecture "standard" with activation_fn
"topk"). What SAELens does around a rule is folded into the weights where that is exact: decoder norms, the input scale
and whitening kept beside a training checkpoint, fine-tuning factors. A field or value that is not known is refused.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from musae_jax.errors import MusaeError
from musae_jax.files import read_json
from musae_jax.sae.folding import Params, fold_decoder_norm, fold_feature_scale, fold_input_scale, fold_whitening
from musae_jax.sae.hooks import with_our_hook
from musae_jax.sae.sae import SAEConfig
from musae_jax.sae.saelens_fields import FLAT_METADATA, FLAT_TRAINING, TRAINING
from musae_jax.sae.tensors import check_tensors, read_tensors

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
SCALER, WHITENING = "activation_scaler.json", "activation_whitening.safetensors"
LAYOUT = "6.0.0"  # the version of SAELens whose layout we write

_RULE = {
    "architecture",
    "d_in",
    "d_sae",
    "dtype",
    "device",
    "apply_b_dec_to_input",
    "normalize_activations",
    "reshape_activations",
    "k",
    "rescale_acts_by_decoder_norm",
}
_FLAT_NAMES = {  # version 1 and 2 -> 3 to 5
    "hook_point": "hook_name",
    "hook_point_layer": "hook_layer",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
_SAME_RULE = {"batchtopk": "jumprelu", "matryoshka_batchtopk": "jumprelu"}  # in training checkpoints; the rule after it


def read_saelens(folder: Path) -> tuple[SAEConfig, Params]:
    """(config, params) of an SAE folder in the layout of SAELens, all folded, in float32.

    Raises:
      MusaeError: a file is missing or damaged, or the rule, a field or a tensor is not one that is known here.
    """
    path = folder / CONFIG
    record = read_json(path)
    if not isinstance(record, dict):
        raise _refuse(path, "it is not a JSON object")
    flat = "metadata" not in record or not {"activation_fn", "activation_fn_str"}.isdisjoint(record)
    record = _from_flat(path, record) if flat else record
    config = _config(path, record)
    params = read_tensors(folder / WEIGHTS)
    scale = _finetuning_scale(folder / WEIGHTS, params, record.get("finetuning_scaling_factor"))
    _threshold(params, record["architecture"])
    check_tensors(folder / WEIGHTS, config, params)
    if scale is not None:
        params = fold_feature_scale(params, scale)
    return config, _fold(folder, record, config, params)


def _refuse(path: Path, what: str) -> MusaeError:
    return MusaeError(f"{path} cannot be used: {what}; convert the SAE to SAELens 6 with a rule that is known here")


def _config(path: Path, record: dict[str, Any]) -> SAEConfig:
    written = record.get("architecture")
    architecture = _SAME_RULE.get(written, written)
    known = ("standard", "topk", "jumprelu", "gated", "groupmax")
    if architecture not in known:
        raise _refuse(path, f"architecture is {written!r}, known are {', '.join((*known, *_SAME_RULE))}")
    if unknown := sorted(set(record) - _RULE - TRAINING - {"metadata", "finetuning_scaling_factor"}):
        raise _refuse(path, f"unknown fields {', '.join(unknown)}")
    if record.get("reshape_activations", "none") not in ("none", None):
        raise _refuse(path, f"reshape_activations is {record['reshape_activations']!r}, only 'none' is known")
    if record.get("rescale_acts_by_decoder_norm") and written not in ("topk", *_SAME_RULE):
        raise _refuse(path, f"rescale_acts_by_decoder_norm is not a part of the rule {written}")
    has_k = architecture in ("topk", "groupmax")
    for name in ("d_in", "d_sae", *(("k",) if has_k else ())):
        value = record.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise _refuse(path, f"{name} is {value!r}, a positive integer is needed")
    metadata = record["metadata"] or {}
    if not isinstance(metadata, dict):
        raise _refuse(path, "metadata is not a JSON object")
    if metadata.get("sae_lens_version") == LAYOUT:  # ours
        metadata = {name: value for name, value in metadata.items() if name != "sae_lens_version"}
    if training := {name: record[name] for name in sorted(TRAINING & set(record))}:
        metadata = {**metadata, "training": training}
    k = record.get("k") if has_k or written in _SAME_RULE else metadata.get("k")
    if architecture == "topk" and k > record["d_sae"]:
        raise _refuse(path, f"k = {k} is more than d_sae = {record['d_sae']}")
    if architecture == "groupmax" and record["d_sae"] % k:
        raise _refuse(path, f"k = {k} does not divide d_sae = {record['d_sae']}")
    if not isinstance(record.get("apply_b_dec_to_input"), bool):
        found = record.get("apply_b_dec_to_input", "missing")
        raise _refuse(path, f"apply_b_dec_to_input is {found}, not true or false")
    return SAEConfig(
        record["d_in"], record["d_sae"], architecture, k, record["apply_b_dec_to_input"], with_our_hook(metadata)
    )


def _from_flat(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    """A flat config of version 1 to 5 as version 6 would write it, by the rules of SAELens where that is one."""
    record = {_FLAT_NAMES.get(name, name): value for name, value in record.items()}
    own = {"activation_fn", "activation_fn_kwargs", "finetuning_scaling_factor"}
    if unknown := sorted(set(record) - _RULE - FLAT_TRAINING - FLAT_METADATA - own):
        raise _refuse(path, f"unknown fields {', '.join(unknown)}")
    new = {name: record[name] for name in _RULE & set(record)}
    new.setdefault("architecture", "standard")
    new.setdefault("apply_b_dec_to_input", True)
    hook = str(record.get("hook_name", ""))
    new.setdefault("reshape_activations", "hook_z" if "hook_z" in hook else "none")
    if new.get("normalize_activations") is True:
        new["normalize_activations"] = "expected_average_only_in"
    activation, options = record.get("activation_fn", "relu"), record.get("activation_fn_kwargs") or {}
    if activation == "topk" and new["architecture"] in ("standard", "topk"):
        if set(options) != {"k"}:
            raise _refuse(path, f"activation_fn_kwargs are {options}, only k is known")
        new.update(architecture="topk", k=options["k"])
    elif activation != "relu" or options or new["architecture"] == "topk":
        raise _refuse(path, f"activation_fn is {activation!r} with {options} in the rule {new['architecture']!r}")
    if record.get("finetuning_scaling_factor"):
        new["finetuning_scaling_factor"] = True
    metadata = {name: record[name] for name in sorted(FLAT_METADATA & set(record))}
    if version := metadata.pop("sae_lens_version", None):
        metadata["sae_lens_training_version"] = version
    training = {name: record[name] for name in sorted(FLAT_TRAINING & set(record))}
    new["metadata"] = {**metadata, **({"training": training} if training else {})}
    return new


def _finetuning_scale(path: Path, params: Params, wanted: Any) -> np.ndarray | None:
    """The factor on f before it is decoded [F], taken out of `params`, if it does anything."""
    found = [name for name in ("finetuning_scaling_factor", "scaling_factor") if name in params]
    if not found:
        if wanted:
            raise MusaeError(f"{path} lacks the finetuning_scaling_factor that {CONFIG} asks for; get it again")
        return None
    scale = params.pop(found[0])
    if scale.shape != params.get("b_enc", params.get("b_mag", scale)).shape or not np.isfinite(scale).all():
        raise MusaeError(f"{path} holds a {found[0]} of shape {list(scale.shape)}, not one finite value a feature")
    if np.all(scale == 1):
        return None
    if not wanted:
        raise MusaeError(
            f"{path} holds a {found[0]} that is not 1, but {CONFIG} does not say finetuning_scaling_factor; say in"
            f" {CONFIG} whether it applies"
        )
    return scale


def _threshold(params: Params, written: str) -> None:
    """The threshold under the name and in the shape of the rule, as SAELens does it after training."""
    if written == "jumprelu" and "log_threshold" in params:
        params["threshold"] = np.exp(params.pop("log_threshold"))
    if written in _SAME_RULE and params.get("topk_threshold", np.zeros(1)).shape == () and "b_enc" in params:
        params["threshold"] = np.full_like(params["b_enc"], params.pop("topk_threshold"))


def _fold(folder: Path, record: dict[str, Any], config: SAEConfig, params: Params) -> Params:
    rescaled = bool(record.get("rescale_acts_by_decoder_norm"))
    normalise = record.get("normalize_activations") or "none"
    if rescaled and not np.linalg.norm(params["W_dec"], axis=1).all():
        raise MusaeError(
            f"{folder / WEIGHTS} has decoder rows of norm 0, which rescale_acts_by_decoder_norm cannot be applied to;"
            " remove those features"
        )
    if normalise == "covariance_whitening" and (folder / WHITENING).exists():
        # The norms belong to the decoder that was trained, before it is turned.
        params = fold_decoder_norm(params, threshold_is_rescaled=True) if rescaled else params
        whitening = read_tensors(folder / WHITENING)
        d = config.d_in
        shapes = {"mean": (d,), "matrix": (d, d), "inverse_matrix": (d, d)}
        if {name: value.shape for name, value in whitening.items()} != shapes:
            raise MusaeError(f"{folder / WHITENING} does not hold mean, matrix and inverse_matrix of width {d}")
        return fold_whitening(config, params, *(whitening[name] for name in shapes))
    if normalise == "expected_average_only_in" and (scale := _input_scale(folder)) is not None:
        params = fold_input_scale(params, scale)
        if rescaled and "threshold" in params:
            params = {**params, "threshold": params["threshold"] / np.float32(scale)}
    elif normalise in ("layer_norm", "constant_norm_rescale"):
        raise _refuse(
            folder / CONFIG, f"normalize_activations {normalise!r} depends on each token and cannot be folded"
        )
    elif normalise in ("expected_average_only_in", "covariance_whitening"):
        beside = SCALER if normalise == "expected_average_only_in" else WHITENING
        raise _refuse(folder / CONFIG, f"normalize_activations is {normalise!r}, but {beside} is not there")
    elif normalise != "none":
        raise _refuse(folder / CONFIG, f"normalize_activations is {normalise!r}, which is unknown")
    return fold_decoder_norm(params, threshold_is_rescaled=True) if rescaled else params


def _input_scale(folder: Path) -> float | None:
    if not (folder / SCALER).exists():
        return None
    scale = read_json(folder / SCALER)
    scale = scale.get("scaling_factor") if isinstance(scale, dict) else None
    if not isinstance(scale, float) or not 0 < scale < float("inf"):
        raise MusaeError(f"{folder / SCALER} has scaling_factor {json.dumps(scale)}, not a number > 0; get it again")
    return scale
