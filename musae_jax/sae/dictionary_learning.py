"""Folders of dictionary_learning: config.json, whose trainer.dict_class is the rule, and ae.pt, a file of torch.

What each class computes is that of its own `from_pretrained` and `encode`: AutoEncoder gets unit decoder rows on the
way, BatchTopKSAE and MatryoshkaBatchTopKSAE use their threshold, and JumpReluAutoEncoder leaves b_dec in its input.
"""

from pathlib import Path
from typing import Any

import numpy as np

from musae_jax.errors import MusaeError
from musae_jax.files import read_json
from musae_jax.sae.folding import Params, fold_decoder_norm
from musae_jax.sae.hooks import our_hook
from musae_jax.sae.sae import SAEConfig
from musae_jax.sae.tensors import check_tensors
from musae_jax.torch_file import read_torch_file

CONFIG, WEIGHTS = "config.json", "ae.pt"
_LINEAR = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec"}  # the matrices transposed
_GATED = {"decoder_bias": "b_dec", "gate_bias": "b_gate", "mag_bias": "b_mag"}
_CLASSES: dict[str, tuple[str, dict[str, str]]] = {  # class -> rule, and their names of tensors where not ours
    "AutoEncoder": ("standard", {**_LINEAR, "bias": "b_dec"}),
    "AutoEncoderNew": ("standard", {**_LINEAR, "decoder.bias": "b_dec"}),
    "GatedAutoEncoder": ("gated", {**_LINEAR, **_GATED}),
    "AutoEncoderTopK": ("topk", _LINEAR),
    "BatchTopKSAE": ("jumprelu", _LINEAR),
    "MatryoshkaBatchTopKSAE": ("jumprelu", {}),
    "JumpReluAutoEncoder": ("jumprelu", {}),
}
_RAW_INPUT = ("AutoEncoderNew", "JumpReluAutoEncoder")


def is_dictionary_learning(folder: Path) -> bool:
    """Whether a folder has the files of dictionary_learning."""
    return (folder / CONFIG).exists() and (folder / WEIGHTS).exists()


def read_dictionary_learning(folder: Path) -> tuple[SAEConfig, Params]:
    """(config, params) of a trainer's folder, in float32; ae.pt is never unpickled (see `torch_file`).

    Raises:
      MusaeError: a file is missing or damaged, or the class, a tensor or k is not what is known here.
    """
    path = folder / CONFIG
    record = read_json(path)
    trainer = record.get("trainer") if isinstance(record, dict) else None
    if not isinstance(trainer, dict):
        raise MusaeError(f"{path} has no block `trainer`, which dictionary_learning writes; get the folder again")
    kind = trainer.get("dict_class")
    if kind not in _CLASSES:
        raise MusaeError(
            f"{path} names the dict_class {kind!r}, known are {', '.join(_CLASSES)}; convert the SAE to SAELens 6"
        )
    architecture, names = _CLASSES[kind]
    tensors = {name: np.asarray(value, np.float32) for name, value in read_torch_file(folder / WEIGHTS).items()}
    k = _take_k(folder, trainer, tensors)
    groups = tensors.pop("group_sizes", None)
    params = {names.get(name, name): value for name, value in tensors.items()}
    if names:
        params.update({name: params[name].T.copy() for name in ("W_enc", "W_dec") if name in params})
    if params.get("W_enc", np.zeros(1)).ndim != 2:
        raise MusaeError(f"{folder / WEIGHTS} holds no encoder matrix of a {kind}; get it again")
    d_in, d_sae = params["W_enc"].shape
    if architecture == "topk":
        params.pop("threshold", None)  # kept for a use_threshold=True that is not the default
        if k is None or not 0 < k <= d_sae:
            raise MusaeError(f"{path} has k = {k}, but 1 to {d_sae} features can be active; mend it")
    elif kind in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        if params.get("threshold", np.zeros(1)).shape != ():
            raise MusaeError(f"{folder / WEIGHTS} of a {kind} holds no single threshold; get it again")
        params["threshold"] = np.full(d_sae, params["threshold"], np.float32)
    metadata = _metadata(trainer, kind, groups)
    config = SAEConfig(d_in, d_sae, architecture, k, kind not in _RAW_INPUT, metadata)
    check_tensors(folder / WEIGHTS, config, params)
    norm = np.linalg.norm(params["W_dec"], axis=1)
    if kind == "AutoEncoder" and not np.allclose(norm, 1.0):
        if not norm.all():
            raise MusaeError(f"{folder / WEIGHTS} has decoder columns of norm 0, which cannot be made 1; remove them")
        params = fold_decoder_norm(params)
    return config, params


def _take_k(folder: Path, trainer: dict[str, Any], tensors: Params) -> int | None:
    """k of the config, taken out of `tensors` too, where both must agree."""
    stored, written = tensors.pop("k", None), trainer.get("k")
    if written is not None and (not isinstance(written, int) or isinstance(written, bool)):
        raise MusaeError(f"{folder / CONFIG} has k = {written!r}, a positive integer is needed; mend it")
    if stored is None:
        return written
    if stored.shape != () or (written is not None and int(stored) != written):
        raise MusaeError(f"{folder / WEIGHTS} has k = {stored}, but {CONFIG} says {written}; get both again")
    return int(stored)


def _metadata(trainer: dict[str, Any], kind: str, groups: np.ndarray | None) -> dict[str, Any]:
    metadata: dict[str, Any] = {"trained_as": kind, "model_name": trainer.get("lm_name") or "", "training": trainer}
    name, layer = trainer.get("submodule_name"), trainer.get("layer")
    if isinstance(name, str):
        metadata["hook_name"] = our_hook(name)
    elif isinstance(layer, int) and not isinstance(layer, bool):
        metadata["hook_layer"] = layer  # which place in that layer, the file does not say
    if groups is not None:
        metadata["group_sizes"] = [int(size) for size in groups]
    return metadata
