"""The Audio Spectrogram Transformer (Gong et al. 2021, arXiv 2104.01778), which tells what is heard in a sound.

One implementation reads every checkpoint of transformers' `ASTForAudioClassification`: AST on AudioSet, MAEST on the
styles of Discogs (Alonso-Jiménez et al. 2023, arXiv 2309.16418), and small ones. They differ in their sizes, their
labels and their front ends (`ast_front_end`).
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import soxr
from flax.traverse_util import flatten_dict, unflatten_dict

from musae_jax.batching import in_batches
from musae_jax.errors import MusaeError
from musae_jax.files import atomic_folder, write_json
from musae_jax.models.ast_front_end import FrontEnd
from musae_jax.models.ast_table import ast_from_hf, ast_to_hf
from musae_jax.models.folder import (
    CONFIG,
    INDEX,
    WEIGHTS,
    fetch_model,
    local_folder,
    read_object,
    read_tensors,
    refuse,
    save_tensors,
)
from musae_jax.models.hf_config import read_fields
from musae_jax.models.t5 import ACTIVATIONS

MODEL_TYPE = "audio-spectrogram-transformer"
PREPROCESSOR = "preprocessor_config.json"
SINGLE, MULTI = "single_label_classification", "multi_label_classification"
BATCH = 8  # windows at a time


@dataclasses.dataclass(frozen=True)
class ASTConfig:
    """The attributes of transformers' `ASTConfig` that matter, and the names of the C classes (its `id2label`)."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    patch_size: int = 16  # bands and frames
    qkv_bias: bool = True
    frequency_stride: int = 10
    time_stride: int = 10
    max_length: int = 1024  # frames of a window
    num_mel_bins: int = 128
    problem_type: str = MULTI  # what is not stated is taken as that: several tags may be true of one sound
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")

    @property
    def patches(self) -> int:
        """The patches of a window, which overlap where a stride is less than `patch_size`."""
        bands = (self.num_mel_bins - self.patch_size) // self.frequency_stride + 1
        return bands * ((self.max_length - self.patch_size) // self.time_stride + 1)

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> tuple["ASTConfig", list[str]]:
        """The config in a Hugging Face dictionary, and the list of problems found."""
        dropouts = ("hidden_dropout_prob", "attention_probs_dropout_prob")
        known, problems = read_fields(cls, values, "config", dropouts, {"model_type": (MODEL_TYPE,)})
        names = values.get("id2label")
        if isinstance(names, dict) and names:
            known["labels"] = tuple(names.get(str(i)) for i in range(len(names)))
            if not all(isinstance(name, str) for name in known["labels"]):
                problems.append(f"config.id2label does not name the classes 0 to {len(names) - 1}")
        elif names is not None:
            problems.append("config.id2label is no object of class names")
        config = cls(**known)
        if config.hidden_act not in ACTIVATIONS:
            problems.append(f"config.hidden_act is {config.hidden_act!r}, which is not supported")
        if config.problem_type not in (SINGLE, MULTI):
            problems.append(f"config.problem_type is {config.problem_type!r}, but {SINGLE} or {MULTI} is expected")
        if config.hidden_size % config.num_attention_heads:
            problems.append(
                f"config.hidden_size is {config.hidden_size}, no multiple of {config.num_attention_heads} heads"
            )
        if config.patch_size > min(config.num_mel_bins, config.max_length):
            problems.append(
                f"config.patch_size is {config.patch_size}, more than the {config.num_mel_bins} bands or "
                f"{config.max_length} frames"
            )
        return config, problems

    def to_hf(self) -> dict[str, Any]:
        """The dictionary that transformers reads back."""
        values = dataclasses.asdict(self)
        labels = values.pop("labels")
        return {
            "model_type": MODEL_TYPE,
            "architectures": ["ASTForAudioClassification"],
            "dtype": "float32",
            **values,
            "id2label": {str(i): name for i, name in enumerate(labels)},
            "label2id": {name: i for i, name in enumerate(labels)},
        }


class ASTBlock(nn.Module):
    """Self-attention and feed-forward, each on a normalised copy of the residual stream; [B, P, D] -> [B, P, D]."""

    config: ASTConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        heads = (c.num_attention_heads, c.hidden_size // c.num_attention_heads)
        h = nn.LayerNorm(c.layer_norm_eps, use_fast_variance=False, name="attention_norm")(x)
        query, key, value = (
            nn.Dense(c.hidden_size, use_bias=c.qkv_bias, name=name)(h).reshape(*h.shape[:2], *heads)
            for name in ("query", "key", "value")
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) * heads[1] ** -0.5
        mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, axis=-1), value)
        x = x + nn.Dense(c.hidden_size, name="out")(mixed.reshape(x.shape))
        h = nn.LayerNorm(c.layer_norm_eps, use_fast_variance=False, name="ffn_norm")(x)
        h = ACTIVATIONS[c.hidden_act](nn.Dense(c.intermediate_size, name="up")(h))
        return x + nn.Dense(c.hidden_size, name="down")(h)


class ASTClassifier(nn.Module):
    """Mel spectrogram [B, max_length, num_mel_bins] to logits [B, C]."""

    config: ASTConfig

    @nn.compact
    def __call__(self, mel: jax.Array) -> jax.Array:
        c, init = self.config, nn.initializers.normal()  # `random_tagger` says how a new model is really drawn
        strides = (c.frequency_stride, c.time_stride)
        image = mel.transpose(0, 2, 1)[..., None]  # [B, M, T, 1]: patches are counted along time first
        size = (c.patch_size, c.patch_size)
        x = nn.Conv(c.hidden_size, size, strides, padding="VALID", name="patch")(image)
        x = x.reshape(len(mel), c.patches, c.hidden_size)
        tokens = [self.param(name, init, (1, 1, c.hidden_size)) for name in ("cls_token", "distillation_token")]
        x = jnp.concatenate([*(jnp.broadcast_to(t, (len(mel), 1, c.hidden_size)) for t in tokens), x], axis=1)
        x = x + self.param("positions", init, (1, c.patches + 2, c.hidden_size))  # [B, P + 2, D]
        for i in range(c.num_hidden_layers):
            x = ASTBlock(c, name=f"block_{i}")(x)
        x = nn.LayerNorm(c.layer_norm_eps, use_fast_variance=False, name="norm")(x[:, :2])
        pooled = nn.LayerNorm(c.layer_norm_eps, use_fast_variance=False, name="head_norm")(x.mean(1))
        return nn.Dense(len(c.labels), name="head")(pooled)


@flax.struct.dataclass
class Tagger:
    """An audio classifier: its sizes and labels, its parameters, and what it hears of a sound."""

    config: ASTConfig = flax.struct.field(pytree_node=False)
    params: dict[str, Any]
    front_end: FrontEnd = flax.struct.field(pytree_node=False, default=FrontEnd())


def tag_logits(config: ASTConfig, params: Mapping[str, Any], mel: jax.Array) -> jax.Array:
    """Normalised mel spectrogram [B, T, M] of a front end -> logits [B, C]; T is `max_length`, M `num_mel_bins`.

    Raises:
      MusaeError: the spectrogram has another shape; the positions that the model has learned fit no other.
    """
    if mel.ndim != 3 or mel.shape[1:] != (config.max_length, config.num_mel_bins):
        raise MusaeError(
            f"the tagger was given a spectrogram of shape {mel.shape}, but it expects "
            f"[B, {config.max_length}, {config.num_mel_bins}]; cut the sound with its front end's windows"
        )
    return ASTClassifier(config).apply({"params": params}, mel)


@functools.partial(jax.jit, static_argnames=("config",))
def tag_probabilities(config: ASTConfig, params: Mapping[str, Any], mel: jax.Array) -> jax.Array:
    """`tag_logits` as probabilities: sigmoid, or softmax where the config says that one class excludes the others."""
    logits = tag_logits(config, params, mel)
    return jax.nn.softmax(logits) if config.problem_type == SINGLE else jax.nn.sigmoid(logits)


def tag(tagger: Tagger, audio: np.ndarray, rate: int) -> np.ndarray:
    """How probable each tag is in each sound: [B, S] in -1..1 at `rate` Hz -> float32 [B, C].

    Sigmoid, or softmax where the config says that one class excludes the others. Of a sound longer than the model's
    window it is the mean over windows (`FrontEnd.windows`).

    Raises:
      MusaeError: the audio is not [B, S], or holds nothing.
    """
    audio = np.asarray(audio, np.float32)
    if audio.ndim != 2 or not audio.size:
        raise MusaeError(f"the tagger was given audio of shape {audio.shape}, but it expects [B, S]; stack mono clips")
    config, front_end = tagger.config, tagger.front_end
    parts, size = [], 0
    for start in range(0, len(audio), BATCH):
        clips = audio[start : start + BATCH]
        if rate != front_end.sampling_rate:
            clips = [soxr.resample(clip, rate, front_end.sampling_rate) for clip in clips]
        windows = np.stack([front_end.windows(clip, config.max_length) for clip in clips])  # [b, W, T, M]
        size = size or min(BATCH, windows.shape[0] * windows.shape[1])
        rows = windows.reshape(-1, *windows.shape[2:])
        found = in_batches(lambda mel: tag_probabilities(config, tagger.params, mel), rows, size)
        parts.append(found.reshape(*windows.shape[:2], -1).mean(1))
    return np.concatenate(parts)


def parameter_shapes(config: ASTConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter, by its path with slashes; nothing is computed."""
    mel = jax.ShapeDtypeStruct((1, config.max_length, config.num_mel_bins), jnp.float32)
    tree = jax.eval_shape(ASTClassifier(config).init, jax.random.key(0), mel)["params"]
    return {path: leaf.shape for path, leaf in flatten_dict(tree, sep="/").items()}


def random_tagger(config: ASTConfig, key: jax.Array, front_end: FrontEnd | None = None) -> Tagger:
    """A tagger with random parameters: a start for training, and the control. Biases are 0, norms 1, all else normal
    with the deviation `initializer_range`. The front end is AST's with the config's bands unless one is given."""
    # NumPy draws: compiling a generator for every shape would take most of a minute.
    bits = np.asarray(jax.random.bits(key, (4,), np.uint32))
    draw = np.random.Generator(np.random.Philox(np.random.SeedSequence(bits.tolist())))
    params = {}
    for path, shape in sorted(parameter_shapes(config).items()):
        if path.endswith(("/scale", "/bias")):
            params[path] = jnp.full(shape, float(path.endswith("/scale")), jnp.float32)
        else:
            params[path] = jnp.asarray(draw.standard_normal(shape, np.float32) * np.float32(config.initializer_range))
    front_end = front_end or FrontEnd(num_mel_bins=config.num_mel_bins)
    return Tagger(config=config, params=unflatten_dict(params, sep="/"), front_end=front_end)


def load_tagger(source: str | Path, revision: str | None = None) -> Tagger:
    """A tagger from a folder or a hub id, such as "MIT/ast-finetuned-audioset-10-10-0.4593".

    The folder holds config.json, model.safetensors (or the other forms that `read_tensors` knows) and
    preprocessor_config.json; a model of 128 bands may lack the last one, and hears as AST does on AudioSet.

    Raises:
      MusaeError: nothing is there, or there are missing, misshapen or unknown tensors or attributes; it names them all.
    """
    folder = local_folder(source, "or a hub id such as MIT/ast-finetuned-audioset-10-10-0.4593")
    if folder is None:
        folder = fetch_model(str(source), revision, extra=(PREPROCESSOR,))
    config, problems = ASTConfig.from_hf(read_object(folder / CONFIG))
    front_end, found = _read_front_end(folder, config)
    refuse(folder, problems + found, "an audio classifier")
    tensors, problems = read_tensors(folder)
    params, found = ast_from_hf(tensors, parameter_shapes(config))
    refuse(folder, problems + found, "an audio classifier")
    return Tagger(config=config, params=params, front_end=front_end)


def save_tagger(folder: str | Path, tagger: Tagger) -> None:
    """Writes the folder that `load_tagger` and transformers' `ASTForAudioClassification` read, float32.

    Other files of an existing folder stay.
    """
    folder = Path(folder)
    if folder.exists():
        _write(folder, tagger)
    else:
        with atomic_folder(folder) as temporary:
            _write(temporary, tagger)


def _write(folder: Path, tagger: Tagger) -> None:
    save_tensors(folder / WEIGHTS, ast_to_hf(tagger.params))
    (folder / INDEX).unlink(missing_ok=True)
    write_json(folder / PREPROCESSOR, tagger.front_end.to_hf(tagger.config.max_length))
    write_json(folder / CONFIG, tagger.config.to_hf())


def _read_front_end(folder: Path, config: ASTConfig) -> tuple[FrontEnd, list[str]]:
    path = folder / PREPROCESSOR
    front_end, problems = FrontEnd.from_hf(read_object(path) if path.is_file() else {})
    if front_end.num_mel_bins != config.num_mel_bins:
        stated = "" if path.is_file() else f" (there is no {PREPROCESSOR}, so it is AST's)"
        problems.append(
            f"its front end gives {front_end.num_mel_bins} bands{stated} and the model takes {config.num_mel_bins}"
        )
    return front_end, problems
