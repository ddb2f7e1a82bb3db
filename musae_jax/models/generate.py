"""Sampling codes and sound: one jitted loop with a key-value cache, for whole clips and for streams alike."""

import functools
import math
from collections.abc import Iterator
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from musae_jax.errors import MusaeError
from musae_jax.models import encodec
from musae_jax.models.decoder import Cache, Decoder, TextStates, unconditional
from musae_jax.models.delay import codebook_delays, undo_delay
from musae_jax.models.edits import CONDITIONAL, UNCONDITIONAL, Edits, prepare_edits
from musae_jax.models.musicgen import MusicGenConfig, condition_rows, decode_codes, encode_condition

CAPACITY_STEP = 64  # lengths are rounded up to this many columns, so that similar durations share a compilation


@flax.struct.dataclass
class Generated:
    """codes int32 [B, K, T] and audio float32 [B, S] (stereo [B, 2, S]; None if it was not asked for)."""

    codes: jax.Array
    audio: jax.Array | None


@flax.struct.dataclass
class State:
    """Where a generation stands: columns [B, K, C] are written up to and including `position`."""

    cache: Cache
    columns: jax.Array
    position: jax.Array
    keys: jax.Array  # one random key a row


def generate(
    config: MusicGenConfig,
    params: Any,
    text: TextStates | None,
    key: jax.Array,
    seconds: float = 8.0,
    guidance_scale: float = 3.0,
    top_k: int = 250,
    temperature: float = 1.0,
    edits: Edits | None = None,
    batch_size: int | None = None,
    audio: bool = True,
    melody: Any = None,
) -> Generated:
    """Samples T = round(seconds · frame_rate) frames for each row of `text` and `melody` (chroma [B, M, C], from
    `encode_melody`, for melody checkpoints alone; one row may serve all), or `batch_size` unconditional clips.

    `guidance_scale` s mixes logits as u + s · (c − u); 1 skips the unconditional branch. `temperature` 0 is greedy;
    `top_k` 0 keeps every token. `key` is a typed key, or a key for each row: rows with the same key, prompt and
    settings give the same clip, whatever else is in the batch and (but for the last K − 1 frames) whatever its length.
    A new edit strength, guidance, temperature or key never compiles again. Defaults are audiocraft's.
    """
    run = _Run(config, params, text, key, seconds, guidance_scale, top_k, temperature, edits, batch_size, melody)
    state = run.advance(run.start(), run.steps)
    codes = run.codes(state)
    return Generated(codes=codes, audio=decode_codes(config, params, codes) if audio else None)


def generate_stream(
    config: MusicGenConfig,
    params: Any,
    text: TextStates | None,
    key: jax.Array,
    seconds: float = 8.0,
    guidance_scale: float = 3.0,
    top_k: int = 250,
    temperature: float = 1.0,
    edits: Edits | None = None,
    batch_size: int | None = None,
    chunk_seconds: float = 1.0,
    melody: Any = None,
) -> Iterator[Generated]:
    """As `generate`, yielding codes and audio as they come; the chunks laid end to end are what `generate` returns.

    The sound of a chunk is held back by the few frames that the codec looks ahead. Each chunk decodes the clip from its
    beginning (the codec's LSTM remembers everything), at one compiled length.
    """
    run = _Run(config, params, text, key, seconds, guidance_scale, top_k, temperature, edits, batch_size, melody)
    chunk = config.frames(_positive("chunk_seconds", chunk_seconds))
    state, done, ahead = run.start(), 0, lookahead_frames(config.audio)
    while done < run.frames:
        end = min(done + chunk, run.frames)
        state = run.advance(state, min(end + ahead + config.decoder.delays - 1, run.steps))
        codes = run.codes(state)
        sound = decode_codes(config, params, codes)
        hop = config.hop_length
        yield Generated(codes=codes[..., done:end], audio=sound[..., done * hop : end * hop])
        done = end


def lookahead_frames(config: encodec.EncodecConfig) -> int:
    """How many frames after a frame its sound depends on, rounded up."""
    rate, ahead = 1, 0.0  # samples a frame at this depth, frames
    for layer in encodec.decoder_layers(config):
        if layer.kind == "conv":
            ahead += 0 if config.use_causal_conv else (layer.kernel - 1) * layer.dilation / 2 / rate
        elif layer.kind == "residual":
            ahead += 0 if config.use_causal_conv else (config.residual_kernel_size - 1) * layer.dilation / 2 / rate
        elif layer.kind == "transposed":
            ahead += 1 / rate
            rate *= layer.stride
    return math.ceil(ahead)


class _Run:
    """The checked, array-valued settings of one generation, and its three compiled parts."""

    def __init__(
        self, config, params, text, key, seconds, guidance_scale, top_k, temperature, edits, batch_size, melody
    ):
        c = config.decoder
        self.config, self.params = config, params["decoder"]
        self.frames = config.frames(_positive("seconds", seconds))
        self.steps = self.frames + c.delays - 1
        self.capacity = math.ceil((self.steps + 1) / CAPACITY_STEP) * CAPACITY_STEP
        given = condition_rows(config, text, melody)
        if given is not None and batch_size not in (None, given):
            raise MusaeError(f"batch_size is {batch_size} but the prompts have {given} rows; leave one of them out")
        rows = given or batch_size or 1
        # A traced scale may be anything, so both branches are then computed.
        plain = not isinstance(guidance_scale, jax.core.Tracer) and float(guidance_scale) == 1.0
        self.guided = given is not None and not plain
        if not isinstance(temperature, jax.core.Tracer) and not float(temperature) >= 0:
            raise MusaeError(f"temperature is {temperature}; give a number from 0 (greedy) upwards")
        self.keys = _row_keys(key, rows)
        self.top_k = 0 if int(top_k) >= c.vocab_size else max(int(top_k), 0)
        self.scale, self.temperature = jnp.asarray(guidance_scale, jnp.float32), jnp.asarray(temperature, jnp.float32)
        self.edits = prepare_edits(edits, c.num_hidden_layers, c.hidden_size)
        self.condition = encode_condition(config, params, text, melody, self.guided)

    def start(self) -> State:
        return _start(self.config, self.params, self.keys, self.capacity, self.guided)

    def advance(self, state: State, until: int) -> State:
        return _advance(
            self.config, self.params, self.condition, state, jnp.int32(self.frames), jnp.int32(until),
            self.scale, self.temperature, self.edits, self.top_k, self.guided,
        )  # fmt: skip

    def codes(self, state: State) -> jax.Array:
        return _codes(self.config, state.columns, self.frames)


def _positive(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise MusaeError(f"{name} is {value}; give a number of seconds above 0")
    return value


def _row_keys(key: jax.Array, rows: int) -> jax.Array:
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if key.ndim == 0:
        # Not `split`: the key of a row must not depend on how many rows there are.
        return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))
    if key.shape != (rows,):
        raise MusaeError(f"there are {key.shape} random keys for {rows} rows; give one key, or one a row")
    return jnp.array(key)  # a copy, because the state is donated


@functools.partial(jax.jit, static_argnames=("config", "capacity", "guided"))
def _start(config: MusicGenConfig, params: Any, keys: jax.Array, capacity: int, guided: bool) -> State:
    c = config.decoder
    rows = keys.shape[0]
    lines = ((2 if guided else 1) * rows, c.num_attention_heads)
    width = c.hidden_size // c.num_attention_heads

    def empty(*shape: int) -> tuple[jax.Array, ...]:
        # A buffer each: donating a state whose arrays share one fails.
        return tuple(jnp.zeros((*lines, *shape), params["embedding"].dtype) for _ in range(c.num_hidden_layers))

    return State(
        cache=Cache(keys=empty(width, capacity), values=empty(capacity, width)),
        columns=jnp.full((rows, c.num_codebooks, capacity), c.pad_token_id, jnp.int32),
        position=jnp.zeros((), jnp.int32),
        keys=keys,
    )


@functools.partial(jax.jit, static_argnames=("config", "top_k", "guided"), donate_argnames=("state",))
def _advance(config, params, condition, state, frames, until, scale, temperature, edits, top_k, guided) -> State:
    c = config.decoder
    decoder = Decoder(c)
    single = UNCONDITIONAL if unconditional(condition) else CONDITIONAL
    branches = (CONDITIONAL, UNCONDITIONAL) if guided else (single,)
    delays = jnp.asarray(codebook_delays(c.num_codebooks, c.audio_channels))

    def step(state: State) -> State:
        """Reads the column at `position`, writes the next one."""
        column = jax.lax.dynamic_slice_in_dim(state.columns, state.position, 1, axis=2)  # [B, K, 1]
        logits, _, cache = decoder.apply(
            {"params": params},
            jnp.concatenate([column] * len(branches)),
            condition,
            state.cache,
            state.position,
            edits=edits,
            branches=branches,
        )
        logits = logits[:, :, 0].astype(jnp.float32)  # [G·B, K, V]
        if guided:
            conditional, unconditional = jnp.split(logits, 2)
            logits = unconditional + scale * (conditional - unconditional)
        tokens = sample(logits, state.keys, state.position, temperature, top_k)
        frame = state.position - delays  # the frame that the next column holds
        tokens = jnp.where((frame >= 0) & (frame < frames), tokens, c.pad_token_id)
        columns = jax.lax.dynamic_update_slice_in_dim(state.columns, tokens[..., None], state.position + 1, axis=2)
        return State(cache=cache, columns=columns, position=state.position + 1, keys=state.keys)

    return jax.lax.while_loop(lambda state: state.position < until, step, state)


@functools.partial(jax.jit, static_argnames=("config", "frames"))
def _codes(config: MusicGenConfig, columns: jax.Array, frames: int) -> jax.Array:
    c = config.decoder
    codes = undo_delay(columns, frames, c.audio_channels)
    return jnp.where(codes == c.pad_token_id, 0, codes)  # only in a stream: frames to come


def sample(logits: jax.Array, keys: jax.Array, position: jax.Array, temperature: jax.Array, top_k: int) -> jax.Array:
    """Tokens int32 [B, K] from logits [B, K, V] by the Gumbel-max trick, which at temperature 0 is the argmax.

    The noise belongs to (row key, position, codebook, token), so a small change of the logits, as steering makes,
    changes few tokens: steered and unsteered clips stay comparable.
    """
    noise = jax.vmap(lambda key: jax.random.gumbel(jax.random.fold_in(key, position), logits.shape[1:]))(keys)
    if top_k:
        # `.min(-1)` and not `[..., -1]`: XLA turns the latter into a full sort.
        least = jax.lax.top_k(logits, top_k)[0].min(-1, keepdims=True)
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    return jnp.argmax(logits + temperature * noise, axis=-1).astype(jnp.int32)
