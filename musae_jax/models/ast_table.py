"""AST weights between Hugging Face tensor names and our parameters: one table, read in both directions.

The names are those on disk. In memory transformers 5 calls some of them otherwise, and turns them back as it writes.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from musae_jax.models.folder import take_tensors

Shapes = Mapping[str, tuple[int, ...]]  # of every parameter, by its path with slashes


@dataclasses.dataclass(frozen=True)
class Row:
    """Theirs and ours, with {i} for a layer; `axes` are the axes of theirs in the order in which ours has them."""

    theirs: str
    ours: str
    axes: tuple[int, ...] | None = None


def _linear(theirs: str, ours: str, axes: tuple[int, ...] = (1, 0)) -> list[Row]:
    return [Row(f"{theirs}.weight", f"{ours}/kernel", axes), Row(f"{theirs}.bias", f"{ours}/bias")]


def _norm(theirs: str, ours: str) -> list[Row]:
    return [Row(f"{theirs}.weight", f"{ours}/scale"), Row(f"{theirs}.bias", f"{ours}/bias")]


def _rows() -> list[Row]:
    body = "audio_spectrogram_transformer"
    embeddings, layer = f"{body}.embeddings", f"{body}.encoder.layer.{{i}}"
    rows = [
        Row(f"{embeddings}.cls_token", "cls_token"),
        Row(f"{embeddings}.distillation_token", "distillation_token"),
        Row(f"{embeddings}.position_embeddings", "positions"),
        *_linear(f"{embeddings}.patch_embeddings.projection", "patch", axes=(2, 3, 1, 0)),
        *_norm(f"{layer}.layernorm_before", "block_{i}/attention_norm"),
        *_linear(f"{layer}.attention.output.dense", "block_{i}/out"),
        *_norm(f"{layer}.layernorm_after", "block_{i}/ffn_norm"),
        *_linear(f"{layer}.intermediate.dense", "block_{i}/up"),
        *_linear(f"{layer}.output.dense", "block_{i}/down"),
        *_norm(f"{body}.layernorm", "norm"),
        *_norm("classifier.layernorm", "head_norm"),
        *_linear("classifier.dense", "head"),
    ]
    for name in ("query", "key", "value"):
        rows += _linear(f"{layer}.attention.attention.{name}", f"block_{{i}}/{name}")
    return rows


TABLE = {row.ours: row for row in _rows()}


def _places(shapes: Shapes) -> dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """For every tensor of theirs: our path, the axes that make it ours, and the shape that it must have."""
    places = {}
    for path, shape in shapes.items():
        number = re.search(r"block_(\d+)/", path)
        row = TABLE[path.replace(number[0], "block_{i}/") if number else path]
        axes = row.axes or tuple(range(len(shape)))
        theirs = tuple(shape[axes.index(axis)] for axis in range(len(shape)))
        places[row.theirs.replace("{i}", number[1] if number else "")] = (path, axes, theirs)
    return places


def ast_from_hf(tensors: Mapping[str, Any], shapes: Shapes) -> tuple[dict[str, Any], list[str]]:
    """Hugging Face tensors to our params, float32, and every problem found; with any the params are unusable."""
    places = _places(shapes)
    found, problems = take_tensors(tensors, {key: shape for key, (_, _, shape) in places.items()})
    flat = {places[key][0]: jnp.asarray(value.transpose(places[key][1]), jnp.float32) for key, value in found.items()}
    return unflatten_dict(flat, sep="/"), problems


def ast_to_hf(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Our params to every tensor of transformers' `ASTForAudioClassification`, float32."""
    flat = {path: np.asarray(value, np.float32) for path, value in flatten_dict(params, sep="/").items()}
    places = _places({path: value.shape for path, value in flat.items()})
    return {
        key: np.ascontiguousarray(flat[path].transpose(np.argsort(axes))) for key, (path, axes, _) in places.items()
    }
