"""audiocraft's tensor names beside those of the Hugging Face layout, which `musicgen_table` reads.

The names are those of audiocraft's `models/lm.py`, `modules/transformer.py`, `modules/seanet.py` and
`quantization/core_vq.py`. Query, key and value lie one under another in one `in_proj_weight` [3·D, D].
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from musae_jax.models.encodec import EncodecConfig
from musae_jax.models.encodec_table import CODEBOOK_EXTRAS, WEIGHT_NORMS, encodec_table

TEXT, MELODY = "condition_provider.conditioners.description", "condition_provider.conditioners.self_wav"
_THIRDS = ("q_proj", "k_proj", "v_proj")

# Hugging Face's name (a pattern) and audiocraft's, for all that is one tensor in both.
_LAYER, _THEIRS = r"decoder\.model\.decoder\.layers\.(\d+)", r"transformer.layers.\1"
_NAMES = [
    (r"enc_to_dec_proj\.(weight|bias)", rf"{TEXT}.output_proj.\1"),
    (r"audio_enc_to_dec_proj\.(weight|bias)", rf"{MELODY}.output_proj.\1"),
    (r"decoder\.model\.decoder\.embed_tokens\.(\d+)\.weight", r"emb.\1.weight"),
    (r"decoder\.lm_heads\.(\d+)\.weight", r"linears.\1.weight"),
    (r"decoder\.model\.decoder\.layer_norm\.(weight|bias)", r"out_norm.\1"),
    (rf"{_LAYER}\.fc1\.weight", rf"{_THEIRS}.linear1.weight"),
    (rf"{_LAYER}\.fc2\.weight", rf"{_THEIRS}.linear2.weight"),
    (rf"{_LAYER}\.self_attn_layer_norm\.(weight|bias)", rf"{_THEIRS}.norm1.\2"),
    (rf"{_LAYER}\.encoder_attn_layer_norm\.(weight|bias)", rf"{_THEIRS}.norm_cross.\2"),
    (rf"{_LAYER}\.final_layer_norm\.(weight|bias)", rf"{_THEIRS}.norm2.\2"),
    (rf"{_LAYER}\.self_attn\.out_proj\.weight", rf"{_THEIRS}.self_attn.out_proj.weight"),
    (rf"{_LAYER}\.encoder_attn\.out_proj\.weight", rf"{_THEIRS}.cross_attention.out_proj.weight"),
    (rf"{_LAYER}\.self_attn\.[qkv]_proj\.weight", rf"{_THEIRS}.self_attn.in_proj_weight"),
    (rf"{_LAYER}\.encoder_attn\.[qkv]_proj\.weight", rf"{_THEIRS}.cross_attention.in_proj_weight"),
]


def audiocraft_name(key: str) -> tuple[str, int | None]:
    """audiocraft's name of a language model's tensor, and which third of it is meant where three lie in one."""
    third = next((i for i, name in enumerate(_THIRDS) if key.endswith(f".{name}.weight")), None)
    return next(re.sub(pattern, name, key) for pattern, name in _NAMES if re.fullmatch(pattern, key)), third


def lm_to_hf(
    state: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """audiocraft's language model under Hugging Face's names, for the tensors in `shapes`; and what is wrong with it.

    A text encoder that was trained along, with its own tensors in the file, comes out under `text_encoder.`
    """
    # torch's own attention, which audiocraft can use in place of its own, adds a module to the name.
    state = {re.sub(r"\.(self_attn|cross_attention)\.mha\.", r".\1.", name): value for name, value in state.items()}
    tensors = {
        name.replace(f"{TEXT}.t5.", "text_encoder."): value
        for name, value in state.items()
        if name.startswith(f"{TEXT}.t5.")
    }
    problems: dict[str, None] = {}  # in order, each once: three keys share a fused tensor
    used = set()
    for key, shape in shapes.items():
        name, third = audiocraft_name(key)
        expected = shape if third is None else (3 * shape[0], *shape[1:])
        if name not in state:
            problems[f"tensor {name} is missing (expected shape {expected})"] = None
            continue
        used.add(name)
        if state[name].shape != expected:
            problems[f"tensor {name} has shape {state[name].shape}, expected {expected}"] = None
        else:
            tensors[key] = state[name] if third is None else np.split(state[name], 3)[third]
    # The window of the chroma, which is always the same.
    for name in sorted(set(state) - used - {f"{MELODY}.chroma.spec.window"}):
        if not name.startswith(f"{TEXT}.t5."):
            problems[f"tensor {name} has no place in this model"] = None
    return tensors, list(problems)


def codec_to_hf(state: Mapping[str, Any], config: EncodecConfig, held: int) -> tuple[dict[str, Any], dict[str, str]]:
    """audiocraft's codec under Hugging Face's names, and audiocraft's name for each that this codec should have.

    Of its `held` codebooks those that the language model does not write are left out; names that are not known stay.
    """
    theirs: dict[str, str] = {}
    for entry in encodec_table(config):
        prefix = entry.prefix.replace(".layers.", ".model.")
        if entry.kind == "lstm":
            parts = [
                f"{kind}_{side}_l{i}"
                for kind in ("weight", "bias")
                for side in ("ih", "hh")
                for i in range(entry.shape[0])
            ]
        else:
            wrapped = "conv.conv" if entry.kind == "conv" else "convtr.convtr"
            prefix = prefix.removesuffix("conv") + wrapped
            parts = ["bias", "weight", *(name for pair in WEIGHT_NORMS for name in pair)]
        theirs |= {f"{entry.prefix}.{part}": f"{prefix}.{part}" for part in parts}
    for k in range(config.num_quantizers):
        for part in ("embed", *CODEBOOK_EXTRAS):
            theirs[f"quantizer.layers.{k}.codebook.{part}"] = f"quantizer.vq.layers.{k}._codebook.{part}"
    ours = {name: key for key, name in theirs.items()}
    spare = tuple(f"quantizer.vq.layers.{k}._codebook." for k in range(config.num_quantizers, held))
    return {ours.get(name, name): value for name, value in state.items() if not name.startswith(spare)}, theirs
