"""MusicGen as one value: text encoder, decoder and codec, and the pure functions that run them."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from musae_jax.errors import MusaeError
from musae_jax.models import encodec, t5
from musae_jax.models.decoder import Cache, Cross, Decoder, DecoderConfig, Prefix, TextStates
from musae_jax.models.delay import apply_delay
from musae_jax.models.edits import Edits, prepare_edits
from musae_jax.models.melody import MelodyConfig, prefix_states
from musae_jax.models.t5 import T5Config, T5Encoder
from musae_jax.models.tokens import tokenize


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How `generate` samples unless told otherwise. Defaults are audiocraft's."""

    guidance_scale: float = 3.0
    top_k: int = 250
    top_p: float = 1.0
    temperature: float = 1.0


@dataclasses.dataclass(frozen=True)
class MusicGenConfig:
    """The three parts' static configurations; hashable, so it can be a static argument of `jax.jit`. `melody` is None
    in a model that takes none."""

    text: T5Config
    audio: encodec.EncodecConfig
    decoder: DecoderConfig
    melody: MelodyConfig | None = None
    sampling: Sampling = Sampling()

    @property
    def sampling_rate(self) -> int:
        """Audio samples per second."""
        return self.audio.sampling_rate

    @property
    def hop_length(self) -> int:
        """Audio samples per frame."""
        return math.prod(self.audio.upsampling_ratios)

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sampling_rate / self.hop_length

    @property
    def num_codebooks(self) -> int:
        """K, in stereo those of both channels."""
        return self.decoder.num_codebooks

    @property
    def audio_channels(self) -> int:
        """1, or 2 in a stereo model."""
        return self.decoder.audio_channels

    @property
    def projects_text(self) -> bool:
        """Whether T5 and the decoder differ in width, so that a projection stands between."""
        return self.text.d_model != self.decoder.hidden_size

    @property
    def projects_melody(self) -> bool:
        """Whether the model takes a melody that is not by chance as wide as the decoder."""
        return self.melody is not None and self.melody.num_chroma != self.decoder.hidden_size

    def frames(self, seconds: float) -> int:
        """The number of frames nearest to a duration in seconds, at least one."""
        return max(1, round(float(seconds) * self.frame_rate))


@flax.struct.dataclass
class MusicGen:
    """A model: params = {"text", "projection", "decoder", "audio"}, and "melody_projection" in a melody checkpoint; the
    tokenizer may be None (give token ids then)."""

    config: MusicGenConfig = flax.struct.field(pytree_node=False)
    params: Any = None
    tokenizer: Any = flax.struct.field(pytree_node=False, default=None)


@flax.struct.dataclass
class Output:
    """logits [B, K, P, V] (None if not asked for), residuals {layer: [B, P, D]}, cache (keys and values, or None).

    Position p is that of the music, column p of the delayed layout, in a melody checkpoint too: what stands before the
    music there is not returned. transformers' `hidden_states` have it at N + p, N = chroma_length + L."""

    logits: jax.Array | None
    residuals: dict[int, jax.Array]
    cache: Cache | None = None


@functools.partial(jax.jit, static_argnames=("config",))
def text_states(config: MusicGenConfig, params: Any, ids: jax.Array, mask: jax.Array) -> TextStates:
    """T5 states of token ids [B, L], projected to the decoder's width and multiplied by the mask [B, L]."""
    states = T5Encoder(config.text).apply({"params": params["text"]}, ids, mask)
    if config.projects_text:
        states = states @ params["projection"]["kernel"] + params["projection"]["bias"]
    return TextStates(states=states * mask[..., None].astype(states.dtype), mask=mask)


def encode_text(mg: MusicGen, texts: Sequence[str] | Any, mask: Any = None) -> TextStates:
    """Prompts to what the decoder attends to: states [B, L, D] and mask [B, L].

    `texts` are strings, or token ids [B, L] with an optional mask (without one, padding ids are masked). Strings are
    padded to a multiple of 16 tokens, so that prompts of similar length do not compile again; padding changes nothing.
    A melody checkpoint reads padding as zero states, so there they are padded to the longest of them and no further.
    """
    if isinstance(texts, str):
        texts = [texts]
    if isinstance(texts, Sequence) and len(texts) and all(isinstance(text, str) for text in texts):
        if mg.tokenizer is None:
            raise MusaeError(
                "this checkpoint has no tokenizer files, so encode_text cannot read strings; add tokenizer.json to its "
                "folder or pass token ids [B, L]"
            )
        multiple = 16 if mg.config.melody is None else 1
        ids, mask = tokenize(mg.tokenizer, texts, mg.config.text.pad_token_id, multiple)
    else:
        ids = np.asarray(texts) if not isinstance(texts, jax.Array) else texts
        if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
            raise MusaeError(
                f"encode_text was given an array of shape {ids.shape} and type {ids.dtype}; give a list of strings or "
                "integer token ids [B, L]"
            )
    ids = jnp.asarray(ids, jnp.int32)
    mask = ids != mg.config.text.pad_token_id if mask is None else jnp.asarray(mask)
    if mask.shape != ids.shape:
        raise MusaeError(f"the mask has shape {mask.shape} and the token ids {ids.shape}; give both as [B, L]")
    return text_states(mg.config, mg.params, ids, mask.astype(jnp.int32))


def encode_prompts(mg: MusicGen, prompts: Sequence[str]) -> TextStates:
    """States of prompts of which some may be empty: those attend to nothing (as audiocraft's conditioner has it)."""
    text = encode_text(mg, list(prompts))
    asked = np.asarray([bool(prompt) for prompt in prompts])[:, None]
    return text.replace(states=text.states * asked[..., None], mask=text.mask * asked)


def forward(
    config: MusicGenConfig,
    params: Any,
    codes: Any,
    text: TextStates | None = None,
    taps: Sequence[int] = (),
    edits: Edits | None = None,
    delayed: bool = False,
    logits: bool = True,
    melody: Any = None,
) -> Output:
    """The decoder, teacher-forced.

    Codes int [B, K, T] give P = T + 1 positions (the start step and the frames, delayed; 501 for 10 s); with
    `delayed=True` they are columns [B, K, P] used as they lie. `text=None` is unconditional: no cross-attention is
    computed, since its keys and values would be zero. `taps` are 0-based layers whose residual stream (after that
    layer's edits) is returned. With `logits=False` nothing above the highest tap is computed. `edits` with two branches
    use the conditional one where there is text or melody and the unconditional one where there is neither.

    `melody` is chroma [B, M, C] (`encode_melody`), for melody checkpoints alone; its rows or the text's may be one for
    all. There, positions, residuals and edits are those of the music, and what stands before it is neither returned nor
    edited.
    """
    c = config.decoder
    taps = tuple(int(layer) for layer in taps)
    for layer in taps:
        if not 0 <= layer < c.num_hidden_layers:
            raise MusaeError(f"tap {layer} is not a layer of this model; choose from 0 to {c.num_hidden_layers - 1}")
    if np.ndim(codes) != 3 or np.shape(codes)[1] != c.num_codebooks:
        raise MusaeError(f"the codes have shape {np.shape(codes)}, but this model reads [B, {c.num_codebooks}, T]")
    edits = prepare_edits(edits, c.num_hidden_layers, c.hidden_size)
    rows, given = np.shape(codes)[0], condition_rows(config, text, melody)
    if config.melody is not None and given not in (None, 1, rows):
        raise MusaeError(f"there are {given} rows of text and melody for {rows} rows of codes; give as many, or one")
    codes = jnp.asarray(codes, jnp.int32)
    return _forward(config, params, codes, text, melody, taps, edits, delayed, logits)


@functools.partial(jax.jit, static_argnames=("config", "taps", "delayed", "logits"))
def _forward(config, params, codes, text, melody, taps, edits, delayed, logits) -> Output:
    c = config.decoder
    columns = codes if delayed else apply_delay(codes, c.pad_token_id, c.audio_channels)
    condition = encode_condition(config, params, text, melody)
    out, residuals, _ = Decoder(c).apply(
        {"params": params["decoder"]}, columns, condition, taps=taps, edits=edits, logits=logits
    )
    return Output(logits=out, residuals=residuals)


def condition_rows(config: MusicGenConfig, text: TextStates | None, melody: Any, sound: bool = False) -> int | None:
    """B of text and melody together, None where neither is given; with `sound` the melody may also be sound [B, S].

    Raises:
      MusaeError: a melody for a model that takes none or of another shape, or rows that do not fit the text's.
    """
    rows = set() if text is None else {text.states.shape[0]}
    if melody is not None:
        refuse_melody(config)
        shape = np.shape(melody)
        chroma = len(shape) == 3 and shape[1] > 0 and shape[2] == config.melody.num_chroma
        if not chroma and not (sound and len(shape) == 2 and shape[1] > 0):
            read = f"[B, M, {config.melody.num_chroma}]{' or sound [B, S]' if sound else ''}"
            raise MusaeError(f"the melody has shape {shape}, but this model reads {read}")
        rows.add(shape[0])
    if len(rows - {1}) > 1:
        raise MusaeError(f"the melody has {shape[0]} rows and the text {text.states.shape[0]}; give as many, or one")
    return max(rows, default=None)


def refuse_melody(config: MusicGenConfig) -> None:
    """Raises a `MusaeError` if the model takes no melody."""
    if config.melody is None:
        raise MusaeError(
            "this model takes no melody; choose a checkpoint such as facebook/musicgen-melody, or leave the melody out"
        )


@functools.partial(jax.jit, static_argnames=("config", "guided"))
def encode_condition(
    config: MusicGenConfig, params: Any, text: TextStates | None, melody: Any = None, guided: bool = False
) -> Cross | Prefix | None:
    """What the music attends to besides itself, with B rows (or one row for any number).

    With `guided` a prefix has B more rows, those of the unconditional branch: zeros for the text, the null melody. A
    `Cross` never needs them.
    """
    decoder, variables = Decoder(config.decoder), {"params": params["decoder"]}
    if config.melody is None:
        return None if text is None else decoder.apply(variables, text, method="cross")
    projection = params["melody_projection"] if config.projects_melody else None
    build = functools.partial(prefix_states, config.melody, projection, config.decoder.hidden_size)
    states = build(text, None if melody is None else jnp.asarray(melody))  # [B, N, D]
    rows, null = len(states), text is None and melody is None
    if guided:
        dropped = None if text is None else jax.tree.map(lambda x: jnp.zeros_like(x[:1]), text)
        states = jnp.concatenate([states, build(dropped, None)])
    prefix = decoder.apply(variables, states, method="prefix").replace(null=null)
    if guided:
        # The unconditional rows are all alike: computed once, repeated afterwards.
        prefix = jax.tree.map(lambda x: jnp.concatenate([x[:rows], jnp.repeat(x[rows:], rows, axis=0)]), prefix)
    return prefix


@functools.partial(jax.jit, static_argnames=("config",))
def encode_audio(config: MusicGenConfig, params: Any, audio: Any) -> jax.Array:
    """Audio float [B, S] at `config.sampling_rate` Hz, −1 … 1, to codes int32 [B, K, T].

    A stereo model takes [B, 2, S] (mono [B, S] counts as both channels) and gives codebooks left, right, left, …
    """
    audio = jnp.asarray(audio, jnp.float32)
    if config.audio_channels == 1:
        return encodec.encode(config.audio, params["audio"], audio)
    sides = (audio, audio) if audio.ndim == 2 else (audio[:, 0], audio[:, 1])
    codes = [encodec.encode(config.audio, params["audio"], side) for side in sides]
    return jnp.stack(codes, axis=2).reshape(codes[0].shape[0], -1, codes[0].shape[-1])


@functools.partial(jax.jit, static_argnames=("config",))
def decode_codes(config: MusicGenConfig, params: Any, codes: Any) -> jax.Array:
    """Codes int [B, K, T] to audio float32 [B, S], in stereo [B, 2, S]; S = T · hop_length."""
    codes = jnp.asarray(codes, jnp.int32)
    if config.audio_channels == 1:
        return encodec.decode(config.audio, params["audio"], codes)
    return jnp.stack([encodec.decode(config.audio, params["audio"], codes[:, side::2]) for side in (0, 1)], axis=1)


def random_musicgen(config: MusicGenConfig, key: jax.Array, tokenizer: Any = None) -> MusicGen:
    """A model with random parameters, drawn as the original training does: a start for training, and the control."""
    c = config.decoder
    spread = {
        "text": t5.deviations(config.text),
        "projection": {"kernel": c.initializer_factor},
        "melody_projection": {"kernel": c.initializer_factor},
        "decoder": dict.fromkeys(_LEAVES, c.initializer_factor),
    }
    # NumPy draws: compiling a generator for every shape would take most of a minute.
    bits = np.asarray(jax.random.bits(key, (4,), np.uint32))
    draw = np.random.Generator(np.random.Philox(np.random.SeedSequence(bits.tolist())))
    params: dict[tuple[str, ...], jax.Array] = {}
    for path, shape in sorted(parameter_shapes(config).items()):
        if path[-1] in ("scale", "bias"):
            params[path] = jnp.full(shape, float(path[-1] == "scale"), jnp.float32)
        else:
            kind = next(name for name in reversed(path) if name in spread[path[0]])
            params[path] = jnp.asarray(draw.standard_normal(shape, np.float32) * np.float32(spread[path[0]][kind]))
    # The codec draws for itself; this generator compiles in a second where the default takes twenty.
    seed = jax.random.wrap_key_data(jnp.asarray(bits), impl="unsafe_rbg")
    tree = unflatten_dict(params) | {"audio": encodec.random_encodec(config.audio, seed)}
    return MusicGen(config=config, params=tree, tokenizer=tokenizer)


_LEAVES = ("kernel", "embedding", "heads")


def parameter_shapes(config: MusicGenConfig) -> dict[tuple[str, ...], tuple[int, ...]]:
    """The shape of every parameter but the codec's, by path; nothing is computed."""
    key, ids = jax.random.key(0), jnp.zeros((1, 2), jnp.int32)
    columns = jnp.zeros((1, config.num_codebooks, 2), jnp.int32)
    tree = {
        "text": jax.eval_shape(T5Encoder(config.text).init, key, ids, ids)["params"],
        "decoder": jax.eval_shape(Decoder(config.decoder).init, key, columns)["params"],
    }
    shapes = {path: leaf.shape for path, leaf in flatten_dict(tree).items()}
    if config.projects_text:
        shapes["projection", "kernel"] = (config.text.d_model, config.decoder.hidden_size)
        shapes["projection", "bias"] = (config.decoder.hidden_size,)
    if config.projects_melody:
        shapes["melody_projection", "kernel"] = (config.melody.num_chroma, config.decoder.hidden_size)
        shapes["melody_projection", "bias"] = (config.decoder.hidden_size,)
    return shapes
