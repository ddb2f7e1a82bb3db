"""Folders of sparsify (EleutherAI, `SparseCoder`): cfg.json and sae.safetensors, one folder a hook.

encoder.weight [F, D], encoder.bias [F], W_dec [F, D], b_dec [D]; f is the k largest of relu((x − b_dec) encoder), or
the largest of each of k groups (`groupmax`). Transcoders and skip connections are not autoencoders and are refused.
"""

from pathlib import Path
from typing import Any

from musae_jax.errors import MusaeError
from musae_jax.files import read_json
from musae_jax.sae.folding import Params
from musae_jax.sae.hooks import our_hook, with_our_hook
from musae_jax.sae.sae import SAEConfig
from musae_jax.sae.tensors import check_tensors, read_tensors

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
_RULE = {"activation", "d_in", "expansion_factor", "k", "num_latents", "signed", "skip_connection", "transcode"}
_TRAINING = {"multi_topk", "normalize_decoder"}
_NAMES = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}


def read_sparsify(folder: Path) -> tuple[SAEConfig, Params]:
    """(config, params) of one hook's folder, in float32; the folder's name, if it is a hook's, becomes hook_name.

    Raises:
      MusaeError: a file is missing or damaged, or the rule, a field or a tensor is not one that is known here.
    """
    path = folder / CONFIG
    record = read_json(path)

    def refuse(what: str) -> MusaeError:
        return MusaeError(f"{path} cannot be used: {what}; only autoencoders of sparsify with a known rule are read")

    if not isinstance(record, dict):
        raise refuse("it is not a JSON object")
    if unknown := sorted(set(record) - _RULE - _TRAINING):
        raise refuse(f"unknown fields {', '.join(unknown)}")
    for name in ("transcode", "skip_connection", "signed"):
        if record.get(name):
            raise refuse(f"{name} is {record[name]}")
    architecture = record.get("activation", "topk")  # older versions had no other
    if architecture not in ("topk", "groupmax"):
        raise refuse(f"activation is {architecture!r}, known are topk and groupmax")
    for name in ("d_in", "k"):
        if not _positive(record.get(name)):
            raise refuse(f"{name} is {record.get(name)!r}, a positive integer is needed")
    d_in, k = record["d_in"], record["k"]
    d_sae = record.get("num_latents") or d_in * record.get("expansion_factor", 0)
    if not _positive(d_sae):
        raise refuse("neither num_latents nor expansion_factor says how many features there are")
    if k > d_sae or (architecture == "groupmax" and d_sae % k):
        raise refuse(f"k = {k} does not fit {d_sae} features")
    metadata: dict[str, Any] = {"trained_as": "sparsify", "training": {n: record[n] for n in _TRAINING & set(record)}}
    if our_hook(folder.name) != folder.name:
        metadata = with_our_hook({**metadata, "hook_name": folder.name})
    config = SAEConfig(d_in, d_sae, architecture, k, True, metadata)
    params = {_NAMES.get(name, name): value for name, value in read_tensors(folder / WEIGHTS).items()}
    if "W_enc" in params:
        params["W_enc"] = params["W_enc"].T.copy()
    check_tensors(folder / WEIGHTS, config, params)
    return config, params


def _positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
