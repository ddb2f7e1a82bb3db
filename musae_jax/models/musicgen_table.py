"""MusicGen weights between Hugging Face tensor names and our parameters: one table, read in both directions.

The codec has a table of its own (`encodec_table`); its keys follow the prefix `audio_encoder.`.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from musae_jax.models.encodec_table import encodec_from_hf, encodec_to_hf
from musae_jax.models.musicgen import MusicGenConfig, parameter_shapes
from musae_jax.models.precision import leaf_dtype

AUDIO = "audio_encoder."

# Written by some versions, recomputed or unused here. `embed_tokens` is T5's tied copy of `shared`; the decoder half of
# a whole T5 and the positions are never run.
IGNORED = tuple(
    re.compile(pattern)
    for pattern in (
        r"decoder\.model\.decoder\.embed_positions\.weights?",
        r"text_encoder\.encoder\.embed_tokens\.weight",
        r"text_encoder\.decoder\..*",
        r"text_encoder\.lm_head\.weight",
    )
)
TIED = {"text_encoder.shared.weight": "text_encoder.encoder.embed_tokens.weight"}


@dataclasses.dataclass(frozen=True)
class Row:
    """Theirs and ours, with {i} for a layer and {k} for a codebook. `flip` transposes; `stack` is the axis along which
    the tensors of all codebooks lie in ours; `gated` limits the row to T5s of that kind."""

    theirs: str
    ours: str
    flip: bool = False
    stack: int | None = None
    gated: bool | None = None


def _linear(theirs: str, ours: str, gated: bool | None = None) -> Row:
    return Row(f"{theirs}.weight", f"{ours}/kernel", flip=True, gated=gated)


def _norm(theirs: str, ours: str) -> list[Row]:
    return [Row(f"{theirs}.weight", f"{ours}/scale"), Row(f"{theirs}.bias", f"{ours}/bias")]


def _rows() -> list[Row]:
    t5, block = "text_encoder.encoder", "text_encoder.encoder.block.{i}.layer"
    decoder, layer = "decoder.model.decoder", "decoder.model.decoder.layers.{i}"
    rows = [
        Row("text_encoder.shared.weight", "text/embedding"),
        Row(f"{t5}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "text/relative_bias"),
        Row(f"{block}.0.layer_norm.weight", "text/block_{i}/attention_norm/scale"),
        Row(f"{block}.1.layer_norm.weight", "text/block_{i}/ffn_norm/scale"),
        _linear(f"{block}.1.DenseReluDense.wi", "text/block_{i}/up", gated=False),
        _linear(f"{block}.1.DenseReluDense.wi_0", "text/block_{i}/up", gated=True),
        _linear(f"{block}.1.DenseReluDense.wi_1", "text/block_{i}/gate", gated=True),
        _linear(f"{block}.1.DenseReluDense.wo", "text/block_{i}/down"),
        Row(f"{t5}.final_layer_norm.weight", "text/norm/scale"),
        _linear("enc_to_dec_proj", "projection"),
        Row("enc_to_dec_proj.bias", "projection/bias"),
        _linear("audio_enc_to_dec_proj", "melody_projection"),
        Row("audio_enc_to_dec_proj.bias", "melody_projection/bias"),
        Row(f"{decoder}.embed_tokens.{{k}}.weight", "decoder/embedding", stack=0),
        *_norm(f"{layer}.self_attn_layer_norm", "decoder/block_{i}/self_norm"),
        *_norm(f"{layer}.encoder_attn_layer_norm", "decoder/block_{i}/cross_norm"),
        *_norm(f"{layer}.final_layer_norm", "decoder/block_{i}/ffn_norm"),
        _linear(f"{layer}.fc1", "decoder/block_{i}/up"),
        _linear(f"{layer}.fc2", "decoder/block_{i}/down"),
        *_norm(f"{decoder}.layer_norm", "decoder/norm"),
        Row("decoder.lm_heads.{k}.weight", "decoder/heads", flip=True, stack=1),
    ]
    for theirs, ours in {"q": "query", "k": "key", "v": "value", "o": "out"}.items():
        rows.append(_linear(f"{block}.0.SelfAttention.{theirs}", f"text/block_{{i}}/{ours}"))
    for theirs, ours in {"self_attn": "self_attention", "encoder_attn": "cross_attention"}.items():
        for name, projection in {"q": "query", "k": "key", "v": "value", "out": "out"}.items():
            rows.append(_linear(f"{layer}.{theirs}.{name}_proj", f"decoder/block_{{i}}/{ours}/{projection}"))
    return rows


TABLE = _rows()


def _pattern(template: str) -> re.Pattern:
    return re.compile(re.escape(template).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{k\}", r"(?P<k>\d+)"))


def hf_shapes(config: MusicGenConfig) -> dict[str, tuple[tuple[int, ...], Row, str, int | None]]:
    """For every tensor that transformers has: its shape, its row, our path, and its codebook where ours is a stack."""
    wanted = {}
    for parts, shape in parameter_shapes(config).items():
        path = "/".join(parts)
        for row in TABLE:
            match = _pattern(row.ours).fullmatch(path)
            if match is None or row.gated not in (None, config.text.gated):
                continue
            key = row.theirs.replace("{i}", match.groupdict().get("i", ""))
            one = shape if row.stack is None else shape[: row.stack] + shape[row.stack + 1 :]
            one = one[::-1] if row.flip else one
            for k in range(1 if row.stack is None else shape[row.stack]):
                wanted[key.replace("{k}", str(k))] = (one, row, path, None if row.stack is None else k)
    return wanted


def musicgen_from_hf(
    tensors: Mapping[str, Any], config: MusicGenConfig, dtype: str = "float32"
) -> tuple[dict[str, Any], list[str]]:
    """Hugging Face tensors to our params, of `dtype` (see `cast_params`), and every problem found; with any they are
    unusable. Tensors are taken one by one, so that no second copy of a large model is ever held."""
    wanted = hf_shapes(config)
    problems, used, flat = [], set(), {}
    stacks: dict[str, dict[int, jax.Array]] = {}
    for key, (shape, row, path, k) in wanted.items():
        name = key if key in tensors else TIED.get(key, key)
        if name not in tensors:
            problems.append(f"tensor {key} is missing (expected shape {shape})")
            continue
        used.add(name)
        value = np.asarray(tensors[name])
        if value.shape != shape:
            problems.append(f"tensor {name} has shape {value.shape}, expected {shape}")
            continue
        if not jnp.issubdtype(value.dtype, jnp.floating):
            problems.append(f"tensor {name} holds {value.dtype}, expected floating point")
            continue
        if not np.isfinite(value).all():
            problems.append(f"tensor {name} has values that are not finite")
        value = jnp.asarray(value.T if row.flip else value, leaf_dtype(tuple(path.split("/")), dtype))
        if k is None:
            flat[path] = value
        else:
            stacks.setdefault(path, {})[k] = value
    axes = {row.ours: row.stack for row in TABLE}
    flat |= {path: jnp.stack([slices[k] for k in sorted(slices)], axis=axes[path]) for path, slices in stacks.items()}
    codec = {key.removeprefix(AUDIO): value for key, value in tensors.items() if key.startswith(AUDIO)}
    audio, used_audio, codec_problems = encodec_from_hf(codec, config.audio)
    problems += [f"tensor {AUDIO}{problem}" for problem in codec_problems]
    used |= {AUDIO + key for key in used_audio}
    for key in sorted(set(tensors) - used):
        if not any(pattern.fullmatch(key) for pattern in IGNORED):
            problems.append(f"tensor {key} has no place in this model")
    params = unflatten_dict(flat, sep="/")
    params["audio"] = jax.tree.map(jnp.asarray, audio)
    return params, problems


def musicgen_to_hf(params: Mapping[str, Any], config: MusicGenConfig) -> dict[str, np.ndarray]:
    """Our params to every tensor of transformers' `MusicgenForConditionalGeneration` or its melody kin, float32."""
    flat = flatten_dict({name: tree for name, tree in params.items() if name != "audio"}, sep="/")
    tensors = {}
    for key, (_, row, path, k) in hf_shapes(config).items():
        value = np.asarray(flat[path], np.float32)
        value = value if k is None else np.take(value, k, axis=row.stack)
        tensors[key] = value.T if row.flip else value
    return tensors | {AUDIO + key: value for key, value in encodec_to_hf(params["audio"], config.audio).items()}
