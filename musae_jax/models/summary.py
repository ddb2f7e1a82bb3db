"""What a checkpoint is, told from its configuration and the headers of its files; no weights are read."""

import collections
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from musae_jax.models.audiocraft import CODEC, LM, beside, is_audiocraft, read_codec, read_lm
from musae_jax.models.audiocraft_table import TEXT
from musae_jax.models.checkpoints import find_folder, read_config
from musae_jax.models.decoder import DecoderConfig
from musae_jax.models.encodec import EncodecConfig, encodec_shapes
from musae_jax.models.encodec_table import CODEBOOK_EXTRAS
from musae_jax.models.folder import TOKENIZER_FILES, read_tensors, refuse, weight_files
from musae_jax.models.musicgen import parameter_shapes


def describe_model(source: str | Path) -> str:
    """A few lines: sizes, layers, heads, codebooks, rates, channels, parameters, and how the files are laid out.

    Raises:
      MusaeError: there is no such model, a file is damaged, or its configuration is not one that we know.
    """
    folder = find_folder(source)
    return _describe_audiocraft(folder) if is_audiocraft(folder) else _describe_hf(folder)


def _describe_hf(folder: Path) -> str:
    config = read_config(folder)
    tensors, problems = read_tensors(folder, shapes_only=True)
    refuse(folder, problems)
    codec = (leaf.shape for leaf in jax.tree.leaves(encodec_shapes(config.audio)))
    count = sum(map(math.prod, [*parameter_shapes(config).values(), *codec]))
    sizes = f"{_sizes(config.decoder)}, {_sound(config.decoder, config.audio)}, {count / 1e6:.1f} M parameters"
    tokenizer = "with" if _has_tokenizer(folder) else "without"
    files, _ = weight_files(folder)
    return "\n".join(
        [
            f"{_kind(config.melody is not None)}: {sizes}, {tokenizer} tokenizer",
            f"Hugging Face layout, {_files(files)}, {_dtypes(tensors)}",
            f"text encoder of {config.text.num_layers} blocks of width {config.text.d_model}, in the same files",
        ]
    )


def _describe_audiocraft(folder: Path) -> str:
    lm, state, problems = read_lm(folder, shapes_only=True)
    codec, found = read_codec(folder, lm, shapes_only=True)
    parts = list(state.values()) + [v for key, v in codec.tensors.items() if not key.endswith(CODEBOOK_EXTRAS)]
    count = f"{sum(math.prod(part.shape) for part in parts) / 1e6:.1f} M parameters in the files"
    kind = _kind(lm.melody is not None)
    sound = f"codec {codec.name}, which is not here" if codec.config is None else _sound(lm.decoder, codec.config)
    if codec.config is None and codec.name is None:
        sound = "a codec of an unknown kind"
    texts = beside(folder, lm.text_encoder)
    trained = any(name.startswith(f"{TEXT}.t5.") for name in state)
    where = f"from {texts}" if texts else f"which is not here: put its folder at {folder / (lm.text_encoder or '?')}"
    lines = [
        f"{kind}: {_sizes(lm.decoder)}, {sound}, {count}",
        f"audiocraft layout, {_files([folder / LM, folder / CODEC])}, {_dtypes(state)}",
        f"text encoder {lm.text_encoder or '(none)'}, {where}{'; its own weights are in the file' if trained else ''}",
    ]
    if problems + found:
        lines.append(f"musae cannot load it: {'; '.join(problems + found)}")
    return "\n".join(lines)


def _kind(melody: bool) -> str:
    return "MusicGen that takes a melody" if melody else "MusicGen"


def _sizes(c: DecoderConfig) -> str:
    return (
        f"{c.num_hidden_layers} blocks of width {c.hidden_size} and {c.num_attention_heads} heads,"
        f" {c.num_codebooks} codebooks of {c.vocab_size}"
    )


def _sound(decoder: DecoderConfig, codec: EncodecConfig) -> str:
    channels = "stereo" if decoder.audio_channels == 2 else "mono"
    return f"{codec.sampling_rate / codec.hop_length:g} Hz frames, {codec.sampling_rate} Hz {channels} sound"


def _files(paths: Iterable[Path]) -> str:
    paths = list(paths)
    names = paths[0].name if len(paths) == 1 else f"{paths[0].name} and {len(paths) - 1} more"
    return f"{names}, {sum(path.stat().st_size for path in paths) / 2**20:.1f} MiB"


def _dtypes(tensors: Mapping[str, Any]) -> str:
    """The types of the weights, those of most numbers first."""
    counts: collections.Counter[str] = collections.Counter()
    for tensor in tensors.values():
        if jnp.issubdtype(tensor.dtype, jnp.floating):
            counts[str(tensor.dtype)] += math.prod(tensor.shape)
    return " and ".join(name for name, _ in counts.most_common())


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (TOKENIZER_FILES[0], TOKENIZER_FILES[-1]))
