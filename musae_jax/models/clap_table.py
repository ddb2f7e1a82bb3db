"""CLAP weights between Hugging Face tensor names and our parameters: one table, read in both directions."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from musae_jax.models.clap import ClapConfig, parameter_shapes
from musae_jax.models.folder import take_tensors
from musae_jax.models.htsat import relative_places

LINEAR, IMAGE = (1, 0), (2, 3, 1, 0)  # our axes in terms of torch's: [out, in], [out, in, height, width]

# Numbers that follow from the configuration, and how many batches a norm has seen.
IGNORED = re.compile(
    r".*\.(relative_position_index|num_batches_tracked)|text_model\.embeddings\.(position|token_type)_ids"
)


@dataclasses.dataclass(frozen=True)
class Row:
    """Theirs and ours, with {s} for a stage and {i} for a block; `axes` transposes theirs to ours."""

    theirs: str
    ours: str
    axes: tuple[int, ...] | None = None


def _linear(theirs: str, ours: str) -> list[Row]:
    return [Row(f"{theirs}.weight", f"{ours}/kernel", LINEAR), Row(f"{theirs}.bias", f"{ours}/bias")]


def _norm(theirs: str, ours: str) -> list[Row]:
    return [Row(f"{theirs}.weight", f"{ours}/scale"), Row(f"{theirs}.bias", f"{ours}/bias")]


def _rows() -> list[Row]:
    text, layer = "text_model.embeddings", "text_model.encoder.layer.{i}"
    audio, block = "audio_model.audio_encoder", "audio_model.audio_encoder.layers.{s}.blocks.{i}"
    merging, ours, our_text = f"{audio}.layers.{{s}}.downsample", "audio/stage_{s}_block_{i}", "text/block_{i}"
    rows = [
        Row("logit_scale_a", "logit_scale/audio"),
        Row("logit_scale_t", "logit_scale/text"),
        Row(f"{text}.word_embeddings.weight", "text/words"),
        Row(f"{text}.position_embeddings.weight", "text/positions"),
        Row(f"{text}.token_type_embeddings.weight", "text/types"),
        *_norm(f"{text}.LayerNorm", "text/norm"),
        *_linear(f"{layer}.attention.output.dense", f"{our_text}/out"),
        *_norm(f"{layer}.attention.output.LayerNorm", f"{our_text}/attention_norm"),
        *_linear(f"{layer}.intermediate.dense", f"{our_text}/up"),
        *_linear(f"{layer}.output.dense", f"{our_text}/down"),
        *_norm(f"{layer}.output.LayerNorm", f"{our_text}/ffn_norm"),
        *_linear("text_model.pooler.dense", "text/pooler"),
        *_norm(f"{audio}.batch_norm", "audio/batch_norm"),
        Row(f"{audio}.batch_norm.running_mean", "audio/batch_norm/mean"),
        Row(f"{audio}.batch_norm.running_var", "audio/batch_norm/var"),
        Row(f"{audio}.patch_embed.proj.weight", "audio/patches/kernel", IMAGE),
        Row(f"{audio}.patch_embed.proj.bias", "audio/patches/bias"),
        *_norm(f"{audio}.patch_embed.norm", "audio/patch_norm"),
        *_norm(f"{block}.layernorm_before", f"{ours}/attention_norm"),
        Row(f"{block}.attention.self.relative_position_bias_table", f"{ours}/relative_bias"),
        *_linear(f"{block}.attention.output.dense", f"{ours}/out"),
        *_norm(f"{block}.layernorm_after", f"{ours}/ffn_norm"),
        *_linear(f"{block}.intermediate.dense", f"{ours}/up"),
        *_linear(f"{block}.output.dense", f"{ours}/down"),
        *_norm(f"{merging}.norm", "audio/merging_{s}/norm"),
        Row(f"{merging}.reduction.weight", "audio/merging_{s}/reduction/kernel", LINEAR),
        *_norm(f"{audio}.norm", "audio/norm"),
    ]
    for name in ("query", "key", "value"):
        rows += _linear(f"{layer}.attention.self.{name}", f"{our_text}/{name}")
        rows += _linear(f"{block}.attention.self.{name}", f"{ours}/{name}")
    for tower in ("audio", "text"):
        rows += _linear(f"{tower}_projection.linear1", f"{tower}_projection/first")
        rows += _linear(f"{tower}_projection.linear2", f"{tower}_projection/second")
    return rows


def _pattern(template: str) -> re.Pattern:
    return re.compile(re.escape(template).replace(r"\{s\}", r"(?P<s>\d+)").replace(r"\{i\}", r"(?P<i>\d+)"))


TABLE = [(_pattern(row.ours), row) for row in _rows()]


def hf_shapes(config: ClapConfig) -> dict[str, tuple[tuple[int, ...], Row, str]]:
    """For every tensor of weights that transformers has: its shape, its row, and our path."""
    wanted = {}
    for parts, shape in parameter_shapes(config).items():
        path = "/".join(parts)
        match, row = next((match, row) for pattern, row in TABLE if (match := pattern.fullmatch(path)))
        theirs = shape if row.axes is None else tuple(shape[axis] for axis in np.argsort(row.axes))
        wanted[row.theirs.format(**match.groupdict())] = (theirs, row, path)
    return wanted


def clap_from_hf(tensors: Mapping[str, Any], config: ClapConfig) -> tuple[dict[str, Any], list[str]]:
    """Hugging Face tensors to our params, float32, and every problem found; with any the params are unusable."""
    wanted = hf_shapes(config)
    known = {key: value for key, value in tensors.items() if key in wanted or not IGNORED.fullmatch(key)}
    found, problems = take_tensors(known, {key: shape for key, (shape, _, _) in wanted.items()})
    flat = {}
    for key, value in found.items():
        _, row, path = wanted[key]
        flat[path] = jnp.asarray(value if row.axes is None else value.transpose(row.axes), jnp.float32)
    return unflatten_dict(flat, sep="/"), problems


def clap_to_hf(params: Mapping[str, Any], config: ClapConfig) -> dict[str, np.ndarray]:
    """Our params to every tensor of transformers' `ClapModel`: the weights in float32, and its buffers."""
    flat = flatten_dict(params, sep="/")
    tensors = {}
    for key, (_, row, path) in hf_shapes(config).items():
        value = np.asarray(flat[path], np.float32)
        tensors[key] = value if row.axes is None else value.transpose(np.argsort(row.axes))
        if key.endswith("relative_position_bias_table"):
            # Some versions of transformers leave what a file lacks uninitialised.
            tensors[key.replace("bias_table", "index")] = relative_places(config.audio.window_size)
    length = config.text.max_position_embeddings
    return tensors | {
        "audio_model.audio_encoder.batch_norm.num_batches_tracked": np.zeros((), np.int64),
        "text_model.embeddings.position_ids": np.arange(length)[None],
        "text_model.embeddings.token_type_ids": np.zeros((1, length), np.int64),
    }
