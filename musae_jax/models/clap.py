"""CLAP (Wu et al., arXiv 2211.06687): sound and words in one space, where a cosine says how well they fit.

The towers are `htsat` and `roberta`; each is followed by two linear layers into the common space.

    params = {"audio": …, "text": …, "audio_projection": …, "text_projection": …, "logit_scale": {"audio", "text"}}
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import soxr
from flax.traverse_util import flatten_dict, unflatten_dict

from musae_jax.audio.clap_mel import ClapMelConfig, clap_mel, repeat_pad, window_starts
from musae_jax.batching import in_batches
from musae_jax.errors import MusaeError
from musae_jax.models.hf_config import read_fields
from musae_jax.models.htsat import HTSAT, HTSATConfig
from musae_jax.models.roberta import Roberta, RobertaConfig
from musae_jax.models.t5 import ACTIVATIONS
from musae_jax.models.tokens import tokenize

BATCH = 16  # windows of sound or texts at a time, at most
TEMPERATURE = 0.07  # of a new model, CLIP's


@dataclasses.dataclass(frozen=True)
class ClapConfig:
    """The static configuration of both towers, of what joins them and of the front end; hashable."""

    audio: HTSATConfig
    text: RobertaConfig
    mel: ClapMelConfig = dataclasses.field(default_factory=ClapMelConfig)
    projection_dim: int = 512  # P
    projection_hidden_act: str = "relu"

    @property
    def sampling_rate(self) -> int:
        """Audio samples per second."""
        return self.mel.sampling_rate

    @classmethod
    def from_hf(cls, values: dict, preprocessor: dict | None = None) -> tuple["ClapConfig", list[str]]:
        """The config in the dictionaries of config.json and preprocessor_config.json (LAION's values without it), and
        the list of problems found."""
        parts = {name: values.get(name) for name in ("audio_config", "text_config")}
        lacking = [f"the block {name} is missing" for name, part in parts.items() if not isinstance(part, dict)]
        parts = {name: part if isinstance(part, dict) else {} for name, part in parts.items()}
        audio, problems = HTSATConfig.from_hf(parts["audio_config"])
        text, found = RobertaConfig.from_hf(parts["text_config"])
        problems += found
        mel, found = _read_mel(preprocessor or {})
        problems += found
        rest = {name: value for name, value in values.items() if name not in parts}
        ignored = ("hidden_size", "num_hidden_layers", "initializer_factor", "logit_scale_init_value")
        ignored += ("text_config_dict", "audio_config_dict")
        joint, found = read_fields(cls, rest, "config", ignored, {"model_type": ("clap",)})
        config = cls(audio, text, mel, **joint)
        return config, lacking + problems + found + config.problems()

    def problems(self) -> list[str]:
        """What of the parts does not fit together, a sentence each."""
        mel, found = self.mel, []
        if self.projection_hidden_act not in ACTIVATIONS:
            found.append(f"projection_hidden_act is {self.projection_hidden_act!r}, which is not supported")
        if mel.feature_size != self.audio.num_mel_bins:
            found.append(f"the front end gives {mel.feature_size} mel bands, the tower reads {self.audio.num_mel_bins}")
        if mel.frames > self.audio.frames:
            found.append(f"the front end gives {mel.frames} frames, the tower reads up to {self.audio.frames}")
        if not mel.frequency_min < mel.frequency_max <= mel.sampling_rate / 2:
            found.append(
                f"the front end's bands reach from {mel.frequency_min:g} to {mel.frequency_max:g} Hz in sound of "
                f"{mel.sampling_rate} Hz"
            )
        if mel.fft_window_size > mel.samples:
            found.append(f"the front end's transform of {mel.fft_window_size} samples is longer than its window")
        return found

    def to_hf(self) -> dict:
        """The dictionary of config.json that transformers reads back."""
        return {
            "architectures": ["ClapModel"],
            "model_type": "clap",
            "dtype": "float32",
            "projection_dim": self.projection_dim,
            "projection_hidden_act": self.projection_hidden_act,
            "audio_config": {**self.audio.to_hf(), "projection_dim": self.projection_dim},
            "text_config": {**self.text.to_hf(), "projection_dim": self.projection_dim},
        }

    def preprocessor(self) -> dict:
        """The dictionary of preprocessor_config.json that transformers reads back."""
        return {
            "feature_extractor_type": "ClapFeatureExtractor",
            "processor_class": "ClapProcessor",
            **dataclasses.asdict(self.mel),
            "truncation": "rand_trunc",
            "padding": "repeatpad",
            "padding_side": "right",
            "padding_value": 0.0,
            "return_attention_mask": False,
            "top_db": None,
        }


def _read_mel(values: dict) -> tuple[ClapMelConfig, list[str]]:
    ignored = ("processor_class", "padding_side", "padding_value", "return_attention_mask")
    ignored += ("n_fft", "nb_frequency_bins", "nb_max_samples", "chunk_length_s")  # follow from the others
    fixed = {
        "feature_extractor_type": ("ClapFeatureExtractor",),
        "truncation": ("rand_trunc",),  # "fusion" has other filters
        "padding": ("repeatpad",),
        "top_db": (None,),
    }
    known, problems = read_fields(ClapMelConfig, values, "preprocessor_config", ignored, fixed)
    return ClapMelConfig(**known), problems


@flax.struct.dataclass
class Clap:
    """A model; the tokenizer may be None (give token ids to `text_embeddings` then)."""

    config: ClapConfig = flax.struct.field(pytree_node=False)
    params: Any = None
    tokenizer: Any = flax.struct.field(pytree_node=False, default=None)


class JointProjection(nn.Module):
    """From a tower's vector to the common space: [B, D] to [B, P]."""

    config: ClapConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        h = ACTIVATIONS[c.projection_hidden_act](nn.Dense(c.projection_dim, name="first")(x))
        return nn.Dense(c.projection_dim, name="second")(h)


@functools.partial(jax.jit, static_argnames=("config",))
def audio_embeddings(config: ClapConfig, params: Any, mel: Any) -> jax.Array:
    """Log-mel spectrograms in dB (`clap_mel`), [B, T, M] or as transformers has them [B, 1, T, M], to embeddings of
    length 1, float32 [B, P].

    Raises:
      MusaeError: the spectrograms have another shape, other bands, or more frames than the tower holds.
    """
    mel = jnp.asarray(mel, jnp.float32)
    if mel.ndim == 4 and mel.shape[1] == 1:
        mel = mel[:, 0]
    if mel.ndim != 3:
        raise MusaeError(f"the spectrograms have shape {mel.shape}, but this model reads [B, T, M]")
    x = HTSAT(config.audio).apply({"params": params["audio"]}, mel)
    return _unit(JointProjection(config).apply({"params": params["audio_projection"]}, x))


@functools.partial(jax.jit, static_argnames=("config",))
def text_embeddings(config: ClapConfig, params: Any, ids: Any, mask: Any) -> jax.Array:
    """Token ids [B, L] and mask [B, L] (1 for a real token) to embeddings of length 1, float32 [B, P].

    Raises:
      MusaeError: the texts are longer than the tower's positions reach.
    """
    ids, mask = jnp.asarray(ids, jnp.int32), jnp.asarray(mask)
    if ids.ndim != 2 or mask.shape != ids.shape or ids.shape[1] > config.text.longest:
        raise MusaeError(
            f"the token ids have shape {ids.shape} and their mask {mask.shape}, but this model reads [B, L] with at "
            f"most {config.text.longest} tokens a text"
        )
    x = Roberta(config.text).apply({"params": params["text"]}, ids, mask)
    return _unit(JointProjection(config).apply({"params": params["text_projection"]}, x))


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def embed_audio(clap: Clap, audio: Any, sampling_rate: int) -> np.ndarray:
    """Clips float [B, S] at `sampling_rate` Hz (resampled with soxr where the model's is another) to embeddings of
    length 1, float32 [B, P].

    Clips shorter than the model's window are repeated to fill it. Of longer ones, windows from the first sample to the
    last, at most half a window apart, are averaged and the mean brought back to length 1.

    Raises:
      MusaeError: the audio is not [B, S], or holds samples that are not numbers.
    """
    config, mel = clap.config, clap.config.mel
    audio = np.asarray(audio, np.float32)
    if audio.ndim != 2 or not audio.size:
        raise MusaeError(f"the sound has shape {audio.shape}; give mono clips [B, S]")
    if not np.isfinite(audio).all():
        raise MusaeError("the sound holds samples that are not numbers (NaN or infinite); export it again")
    if sampling_rate != mel.sampling_rate:
        audio = np.stack([soxr.resample(clip, sampling_rate, mel.sampling_rate) for clip in audio])
    if audio.shape[1] < mel.samples:
        audio = np.stack([repeat_pad(mel, clip) for clip in audio])
    starts = window_starts(mel, audio.shape[1])

    def embed(places: np.ndarray) -> jax.Array:
        windows = [audio[clip, start : start + mel.samples] for clip, start in places]
        return audio_embeddings(config, clap.params, clap_mel(mel, windows))

    places = np.asarray([(clip, start) for clip in range(len(audio)) for start in starts])
    found = in_batches(embed, places, _batch(len(places)))
    mean = found.reshape(len(audio), len(starts), -1).mean(axis=1)
    return mean / np.maximum(np.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)


def embed_text(clap: Clap, texts: str | Sequence[str]) -> np.ndarray:
    """Texts to embeddings of length 1, float32 [N, P].

    Raises:
      MusaeError: there is no text or no tokenizer, or a text is longer than the model reads.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    config = clap.config
    if clap.tokenizer is None:
        raise MusaeError("this CLAP has no tokenizer files; add tokenizer.json to its folder or give token ids")
    if not texts:
        raise MusaeError("there is no text to embed; give one at least")
    ids, mask = tokenize(clap.tokenizer, texts, config.text.pad_token_id)
    longest = int(mask.sum(axis=1).max())
    if longest > config.text.longest:
        raise MusaeError(f"a text has {longest} tokens, but this model reads {config.text.longest}; shorten it")
    ids, mask = ids[:, : config.text.longest], mask[:, : config.text.longest]

    def embed(rows: np.ndarray) -> jax.Array:
        return text_embeddings(config, clap.params, ids[rows], mask[rows])

    return in_batches(embed, np.arange(len(texts)), _batch(len(texts)))


def _batch(rows: int) -> int:
    """How many of so many rows to embed at a time: one of a few sizes, so that little is compiled or filled up."""
    return min(BATCH, 1 << (rows - 1).bit_length())


def random_clap(config: ClapConfig, key: jax.Array, tokenizer: Any = None) -> Clap:
    """A model with random parameters, kernels by fan-in and tables with deviation 0.02: a start for training.

    Raises:
      MusaeError: the configuration cannot be computed.
    """
    problems = config.audio.problems() + config.text.problems() + config.problems()
    if problems:
        raise MusaeError(f"this configuration is no CLAP: {'; '.join(problems)}")
    # NumPy draws: compiling a generator for every shape would take most of a minute.
    bits = np.asarray(jax.random.bits(key, (4,), np.uint32))
    draw = np.random.Generator(np.random.Philox(np.random.SeedSequence(bits.tolist())))
    params: dict[tuple[str, ...], jax.Array] = {}
    for path, shape in sorted(parameter_shapes(config).items()):
        if path[0] == "logit_scale":
            value = np.full(shape, -math.log(TEMPERATURE))
        elif path[-1] in ("scale", "var", "bias", "mean"):
            value = np.full(shape, float(path[-1] in ("scale", "var")))
        else:
            deviation = math.prod(shape[:-1]) ** -0.5 if path[-1] == "kernel" else 0.02
            value = draw.standard_normal(shape, np.float32) * np.float32(deviation)
        params[path] = jnp.asarray(value, jnp.float32)
    return Clap(config=config, params=unflatten_dict(params), tokenizer=tokenizer)


def parameter_shapes(config: ClapConfig) -> dict[tuple[str, ...], tuple[int, ...]]:
    """The shape of every parameter, by path; nothing is computed."""
    key, ids = jax.random.key(0), jnp.zeros((1, 1), jnp.int32)
    mel = jnp.zeros((1, 1, config.audio.num_mel_bins))
    tree = {
        "audio": jax.eval_shape(HTSAT(config.audio).init, key, mel)["params"],
        "text": jax.eval_shape(Roberta(config.text).init, key, ids, ids)["params"],
    }
    for tower, width in {"audio": config.audio.hidden_size, "text": config.text.hidden_size}.items():
        tree[f"{tower}_projection"] = jax.eval_shape(JointProjection(config).init, key, jnp.zeros((1, width)))["params"]
    shapes = {path: leaf.shape for path, leaf in flatten_dict(tree).items()}
    return shapes | {("logit_scale", tower): () for tower in ("audio", "text")}
