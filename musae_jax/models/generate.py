"""Sampling codes and sound: one jitted loop with a key-value cache, for whole clips and for streams alike."""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from musae_jax.errors import MusaeError
from musae_jax.mesh import DATA
from musae_jax.models.chroma import encode_melody, window_chroma
from musae_jax.models.decoder import Cache, Cross, Decoder, Prefix, TextStates
from musae_jax.models.delay import apply_delay, codebook_delays, undo_delay
from musae_jax.models.edits import CONDITIONAL, UNCONDITIONAL, Edits, edits_from, edits_specs, prepare_edits
from musae_jax.models.layout import HEADS, ROWS, WHOLE, data_devices, equal_rows, laid, mesh_of, over_rows, rows_or_one
from musae_jax.models.musicgen import MusicGenConfig, condition_rows, encode_condition
from musae_jax.models.piecewise import Pieces, decode_rows, lookahead_frames, rows_by_length
from musae_jax.models.prompts import prompt_codes
from musae_jax.models.windows import Window, plan_windows

CAPACITY_STEP = 64  # lengths are rounded up to this many columns, so that similar durations share a compilation
WINDOW_SECONDS = 30.0  # what MusicGen was trained on; audiocraft's max_duration
STRIDE_SECONDS = 18.0  # audiocraft's extend_stride

Passes = tuple[tuple[int, ...], ...]  # the branches of guidance, those of each forward pass


@flax.struct.dataclass
class Generated:
    """codes int32 [B, K, T] and audio float32 [B, S] (stereo [B, 2, S]; None if it was not asked for).

    `frames` int [B] is how many of the T are each row's own; what comes after is code 0 and silence.
    """

    codes: jax.Array
    audio: jax.Array | None
    frames: np.ndarray


@flax.struct.dataclass
class State:
    """Where a window stands: columns [B, K, C] are written up to and including `position`, and prompts all over."""

    caches: tuple[Cache, ...]  # one a forward pass
    columns: jax.Array
    position: jax.Array
    keys: jax.Array  # one random key a row


_STATE = State(caches=ROWS, columns=ROWS, position=WHOLE, keys=ROWS)  # on a mesh
_edit_rows = functools.partial(edits_specs, axis=DATA)


def generate(
    config: MusicGenConfig,
    params: Any,
    text: TextStates | None,
    key: jax.Array,
    seconds: float | Sequence[float] = 8.0,
    guidance_scale: float | None = None,
    top_k: int | None = None,
    temperature: float | None = None,
    edits: Edits | None = None,
    batch_size: int | None = None,
    audio: bool = True,
    *,
    top_p: float | None = None,
    prompt: Any = None,
    melody: Any = None,
    two_pass: bool = False,
    window_seconds: float = WINDOW_SECONDS,
    stride_seconds: float = STRIDE_SECONDS,
) -> Generated:
    """Samples round(seconds · frame_rate) frames for each row of `text` and `melody`, or `batch_size` of neither.

    A melody (for melody checkpoints alone; one row may serve all) is sound [B, S] at `config.sampling_rate` Hz, of
    which each window follows what is heard at its time, from the beginning again where the melody is shorter; or, for
    music within one window, chroma [B, M, C] from `encode_melody`.

    `seconds` is one duration, or one for each row. `prompt` is what to go on from: codes [B, K, P], sound [B, S], or a
    list with one of them (or None) for each row, see `prompt_codes`. It opens the result, its codes unchanged, and
    `seconds` are added to it (audiocraft's `duration` counts the prompt).

    `guidance_scale` s mixes logits as u + s · (c − u); 1 skips the unconditional branch. `two_pass` runs the branches
    one after the other (audiocraft's `two_step_cfg`): the same but for rounding, with half the activations in memory.
    `temperature` 0 is greedy; `top_k` 0 keeps every token; `top_p` keeps the fewest tokens whose probabilities, at that
    temperature and among the top k, reach it (1: all of them).

    `key` is a typed key, or a key for each row: rows with the same key, prompt and settings give the same clip,
    whatever else is in the batch and (but for the last K − 1 frames) whatever its length. Beyond `window_seconds` the
    music is made in windows that begin every `stride_seconds` and keep what they share with the one before. A new edit
    strength, guidance, temperature, top_p or key never compiles again. What is None is the model's own
    (`config.sampling`, from its generation_config.json, else audiocraft's).

    Raises:
      MusaeError: a setting out of range, or rows of text, prompts, keys and durations that do not match.
    """
    run = _Run(
        config, params, text, key, seconds, guidance_scale, top_k, temperature, edits, batch_size, top_p, prompt,
        melody, two_pass, window_seconds, stride_seconds,
    )  # fmt: skip
    codes = run.until(max(run.frames))
    sound = decode_rows(config, params, codes, run.frames) if audio else None
    return Generated(codes=codes, audio=sound, frames=np.asarray(run.frames))


def generate_stream(
    config: MusicGenConfig,
    params: Any,
    text: TextStates | None,
    key: jax.Array,
    seconds: float | Sequence[float] = 8.0,
    guidance_scale: float | None = None,
    top_k: int | None = None,
    temperature: float | None = None,
    edits: Edits | None = None,
    batch_size: int | None = None,
    chunk_seconds: float = 1.0,
    *,
    top_p: float | None = None,
    prompt: Any = None,
    melody: Any = None,
    two_pass: bool = False,
    window_seconds: float = WINDOW_SECONDS,
    stride_seconds: float = STRIDE_SECONDS,
) -> Iterator[Generated]:
    """As `generate`, yielding codes and audio as they come, as NumPy arrays; the chunks laid end to end are what
    `generate` returns (the sound but for rounding), the prompt included.

    The sound of a chunk is held back by the few frames that the codec looks ahead.
    """
    chunk = config.frames(_positive("chunk_seconds", chunk_seconds))
    run = _Run(
        config, params, text, key, seconds, guidance_scale, top_k, temperature, edits, batch_size, top_p, prompt,
        melody, two_pass, window_seconds, stride_seconds,
    )  # fmt: skip
    groups = [
        (length, rows, Pieces(config, params, len(rows), length, chunk))
        for length, rows in rows_by_length(run.frames).items()
    ]
    total, ahead, hop = max(run.frames), lookahead_frames(config.audio), config.hop_length
    for done in range(0, total, chunk):
        end = min(done + chunk, total)
        codes = run.until(min(end + ahead, total))
        channels = (config.audio_channels,) * (config.audio_channels > 1)
        audio = np.zeros((len(run.frames), *channels, (end - done) * hop), np.float32)
        for length, rows, pieces in groups:
            if done < length:
                sound = pieces.until(codes if len(groups) == 1 else codes[rows], min(end, length))
                audio[rows, ..., : sound.shape[-1]] = sound
        frames = np.clip(np.asarray(run.frames) - done, 0, end - done)
        yield Generated(codes=np.asarray(codes)[..., done:end], audio=audio, frames=frames)


class _Run:
    """The checked, array-valued settings of one generation, and how far it has come."""

    def __init__(
        self, config, params, text, key, seconds, guidance_scale, top_k, temperature, edits, batch_size, top_p, prompt,
        melody, two_pass, window_seconds, stride_seconds,
    ):  # fmt: skip
        c, own = config.decoder, config.sampling
        guidance_scale = own.guidance_scale if guidance_scale is None else guidance_scale
        top_k = own.top_k if top_k is None else top_k
        temperature = own.temperature if temperature is None else temperature
        top_p = own.top_p if top_p is None else top_p
        self.config, self.params, self.mesh = config, params["decoder"], mesh_of(params)
        codes, known = (None, ()) if prompt is None else prompt_codes(config, params, prompt)
        given = condition_rows(config, text, melody, sound=True)
        rows = _rows(given, batch_size, known, seconds)
        if rows != equal_rows(params, rows):
            raise MusaeError(
                f"there are {rows} rows for the {data_devices(params)} devices along data, which must get equal parts;"
                f" give {equal_rows(params, rows)}, or fewer devices"
            )
        if prompt is None:
            codes, known = jnp.zeros((rows, c.num_codebooks, 0), jnp.int32), (0,) * rows
        elif len(known) != rows:  # one for all
            codes, known = jnp.repeat(codes, rows, axis=0), known * rows
        seconds = seconds if np.ndim(seconds) else [seconds] * rows
        self.frames = tuple(p + config.frames(_positive("seconds", s)) for p, s in zip(known, seconds))
        window = config.frames(_positive("window_seconds", window_seconds))
        stride = config.frames(_positive("stride_seconds", stride_seconds))
        if stride >= window:
            raise MusaeError(
                f"stride_seconds is {stride_seconds} and window_seconds {window_seconds}; windows must overlap, so "
                "give a smaller stride"
            )
        self.windows = plan_windows(known, self.frames, window, stride)
        self.span = max(w.longest for w in self.windows)
        self.capacity = rounded_columns(self.span + c.delays)
        # Room for a whole window wherever one begins.
        room = max(self.frames) + window - codes.shape[-1]
        self.codes = jnp.pad(codes, ((0, 0), (0, 0), (0, room)))
        # A traced scale may be anything, so both branches are then computed.
        plain = not isinstance(guidance_scale, jax.core.Tracer) and float(guidance_scale) == 1.0
        if given is None:
            self.passes: Passes = ((UNCONDITIONAL,),)
        elif plain:
            self.passes = ((CONDITIONAL,),)
        else:
            self.passes = ((CONDITIONAL,), (UNCONDITIONAL,)) if two_pass else ((CONDITIONAL, UNCONDITIONAL),)
        if not isinstance(guidance_scale, jax.core.Tracer) and not math.isfinite(guidance_scale):
            raise MusaeError(f"guidance_scale is {guidance_scale}; give a finite number (1: no guidance)")
        if not isinstance(temperature, jax.core.Tracer) and not 0 <= float(temperature) < math.inf:
            raise MusaeError(f"temperature is {temperature}; give a number from 0 (greedy) upwards")
        if not isinstance(top_p, jax.core.Tracer) and not 0 < float(top_p) <= 1:
            raise MusaeError(f"top_p is {top_p}; give a number above 0 and up to 1 (every token)")
        self.keys = _row_keys(key, rows)
        self.top_k = 0 if int(top_k) >= c.vocab_size else max(int(top_k), 0)
        every = not isinstance(top_p, jax.core.Tracer) and float(top_p) == 1.0
        self.top_p = None if every else jnp.asarray(top_p, jnp.float32)
        self.scale, self.temperature = jnp.asarray(guidance_scale, jnp.float32), jnp.asarray(temperature, jnp.float32)
        self.edits = prepare_edits(edits, c.num_hidden_layers, c.hidden_size)
        if melody is not None and np.ndim(melody) == 3 and len(self.windows) > 1:
            raise MusaeError(
                f"the chroma of a melody is followed for one window of {window_seconds:g} s; give fewer seconds, or"
                " the melody's sound [B, S]"
            )
        self.melody, self.conditions = melody, None
        self.condition = lambda chroma: _conditions(config, params, text, chroma, self.passes, mesh=self.mesh)
        self.at, self.done, self.state = 0, 0, None  # the window, the frames that are final, and how far the window is

    def until(self, end: int) -> jax.Array:
        """The codes [B, K, longest row] so far, final up to frame `end` and 0 where nothing is known yet."""
        while self.done < end:
            window = self.windows[self.at]
            if self.state is None:
                self.state = self._enter(window)
            stop = min(end - window.start, window.longest)
            self.state = _advance(
                self.config, self.params, self.conditions, self.state, jnp.int32(window.start),
                jnp.asarray(window.known), jnp.asarray(window.frames),
                jnp.int32(stop + self.config.decoder.delays - 1), self.scale, self.temperature, self.top_p,
                self._edits(window), self.top_k, self.passes, mesh=self.mesh,
            )  # fmt: skip
            self.codes = _store(
                self.config, self.codes, self.state.columns, jnp.int32(window.start), jnp.asarray(window.known),
                jnp.asarray(window.frames), self.span, mesh=self.mesh,
            )  # fmt: skip
            self.done = window.start + stop
            if stop == window.longest:
                self.at, self.state = self.at + 1, None
                if self.at == len(self.windows):
                    self.done = max(self.frames)
        return self.codes[..., : max(self.frames)]

    def _enter(self, window: Window) -> State:
        """A window with its prompts written and all that every row is given read, in one pass."""
        if self.conditions is None or self.melody is not None:
            self.conditions = self.condition(self._chroma(window))
        state = _start(
            self.config, self.params, self.codes, self.keys, jnp.int32(window.start), jnp.asarray(window.known),
            self.span, self.capacity, self.passes, mesh=self.mesh,
        )  # fmt: skip
        if not window.given:
            return state
        length = min(rounded_columns(window.given), self.capacity)
        return _read(
            self.config, self.params, self.conditions, state, jnp.int32(window.given), self._edits(window), length,
            self.passes, mesh=self.mesh,
        )  # fmt: skip

    def _chroma(self, window: Window) -> Any:
        """The chroma [B, M, C] that a window follows, or None."""
        if self.melody is None or np.ndim(self.melody) == 3:
            return self.melody
        if len(self.windows) == 1 and not window.start:  # as in training: a short melody is repeated as chroma
            return encode_melody(self.config, self.melody)
        return window_chroma(self.config, self.melody, window.start)

    def _edits(self, window: Window) -> Edits | None:
        if len(self.windows) == 1:
            return self.edits
        return edits_from(self.edits, window.start, self.capacity)


@over_rows(out=ROWS, static=("config", "passes"), text=rows_or_one, melody=rows_or_one)
def _conditions(config, params, text, melody, passes: Passes) -> tuple[Cross | Prefix | None, ...]:
    """What the music attends to in each pass; the rows of guidance's two branches lie one after the other."""
    condition = encode_condition(config, params, text, melody, guided=sum(map(len, passes)) == 2)
    if len(passes) == 1:
        return (condition,)
    if not isinstance(condition, Prefix):
        return condition, None
    half = len(condition.keys[0]) // 2
    return jax.tree.map(lambda x: x[:half], condition), jax.tree.map(lambda x: x[half:], condition)


def _rows(given: int | None, batch_size: int | None, known: Sequence[int], seconds: Any) -> int:
    """How many rows there are, by whatever names more than one; `given`: those of text and melody."""
    if given is not None and batch_size not in (None, given):
        raise MusaeError(f"batch_size is {batch_size} but the prompts have {given} rows; leave one of them out")
    rows = batch_size if given is None else given
    if rows is None:
        rows = max(len(known), np.size(seconds) if np.ndim(seconds) else 1)
    if known and len(known) not in (1, rows):
        raise MusaeError(f"there are {len(known)} prompts to go on from for {rows} rows; give one, or one a row")
    if np.ndim(seconds) and np.shape(seconds) != (rows,):
        raise MusaeError(f"there are {np.size(seconds)} durations for {rows} rows; give one, or one a row")
    return rows


def rounded_columns(columns: int) -> int:
    """The length of the cache in which so many columns are written."""
    return math.ceil(columns / CAPACITY_STEP) * CAPACITY_STEP


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


@over_rows(out=_STATE, static=("config", "span", "capacity", "passes"), codes=ROWS, keys=ROWS, known=ROWS)
def _start(config, params, codes, keys, start, known, span: int, capacity: int, passes: Passes) -> State:
    """An empty cache, and the columns of the window at frame `start` with what is known of each row."""
    c = config.decoder
    width = c.hidden_size // c.num_attention_heads

    def empty(branches: tuple[int, ...], *shape: int) -> tuple[jax.Array, ...]:
        # A buffer each: donating a state whose arrays share one fails.
        lines = (len(branches) * codes.shape[0], c.num_attention_heads, *shape)
        return tuple(laid(jnp.zeros(lines, params["embedding"].dtype), HEADS) for _ in range(c.num_hidden_layers))

    given = jax.lax.dynamic_slice_in_dim(codes, start, span, axis=2)
    return State(
        caches=tuple(Cache(keys=empty(b, width, capacity), values=empty(b, capacity, width)) for b in passes),
        columns=apply_delay(given, c.pad_token_id, c.audio_channels, known[:, None, None], capacity),
        position=jnp.zeros((), jnp.int32),
        keys=keys,
    )


def _decode(config, params, conditions, caches, columns, start, edits, passes: Passes):
    """The logits [G·B, K, P, V] of all branches for columns [B, K, P] at positions from `start`, and the caches."""
    decoder, logits, after = Decoder(config.decoder), [], []
    for branches, condition, cache in zip(passes, conditions, caches):
        out, _, cache = decoder.apply(
            {"params": params},
            jnp.concatenate([columns] * len(branches)),
            condition,
            cache,
            start,
            edits=edits,
            branches=branches,
        )
        logits.append(out)
        after.append(cache)
    return jnp.concatenate(logits), tuple(after)


@over_rows(
    out=_STATE, static=("config", "length", "passes"), donate=("state",),
    conditions=ROWS, state=_STATE, edits=_edit_rows,
)  # fmt: skip
def _read(config, params, conditions, state, given, edits, length: int, passes: Passes) -> State:
    """Reads the columns before `given` in one pass; the few up to `length` are read again when they are written."""
    columns = state.columns[..., :length]
    _, caches = _decode(config, params, conditions, state.caches, columns, 0, edits, passes)
    return state.replace(caches=caches, position=given)


@over_rows(
    out=_STATE, static=("config", "top_k", "passes"), donate=("state",),
    conditions=ROWS, state=_STATE, known=ROWS, frames=ROWS, edits=_edit_rows,
)  # fmt: skip
def _advance(
    config, params, conditions, state, start, known, frames, until, scale, temperature, top_p, edits, top_k, passes
) -> State:
    c = config.decoder
    delays = jnp.asarray(codebook_delays(c.num_codebooks, c.audio_channels))
    known, frames = known[:, None], frames[:, None]  # [B, 1]

    def step(state: State) -> State:
        """Reads the column at `position`, writes the next one."""
        column = jax.lax.dynamic_slice_in_dim(state.columns, state.position, 1, axis=2)  # [B, K, 1]
        logits, caches = _decode(config, params, conditions, state.caches, column, state.position, edits, passes)
        logits = logits[:, :, 0].astype(jnp.float32)  # [G·B, K, V]
        if sum(map(len, passes)) == 2:
            conditional, unconditional = jnp.split(logits, 2)
            logits = unconditional + scale * (conditional - unconditional)
        logits = laid(logits, WHOLE)  # choosing among a cut vocabulary takes more words than gathering it
        tokens = sample(logits, state.keys, start + state.position, temperature, top_k, top_p)
        frame = state.position - delays  # the frame that the next column holds
        tokens = jnp.where((frame >= 0) & (frame < frames), tokens, c.pad_token_id)
        there = jax.lax.dynamic_slice_in_dim(state.columns, state.position + 1, 1, axis=2)[..., 0]  # [B, K]
        tokens = jnp.where(frame < known, there, tokens)
        columns = jax.lax.dynamic_update_slice_in_dim(state.columns, tokens[..., None], state.position + 1, axis=2)
        return State(caches=caches, columns=columns, position=state.position + 1, keys=state.keys)

    return jax.lax.while_loop(lambda state: state.position < until, step, state)


@over_rows(out=ROWS, static=("config", "span"), donate=("codes",), codes=ROWS, columns=ROWS, known=ROWS, frames=ROWS)
def _store(config, codes, columns, start, known, frames, span: int) -> jax.Array:
    """The codes with what a window has made so far; frames to come are 0."""
    c = config.decoder
    made = undo_delay(columns, span, c.audio_channels)
    made = jnp.where(made == c.pad_token_id, 0, made)
    there = jax.lax.dynamic_slice_in_dim(codes, start, span, axis=2)
    frame, known, frames = jnp.arange(span), known[:, None, None], frames[:, None, None]
    there = jnp.where((frame >= known) & (frame < frames), made, there)
    return jax.lax.dynamic_update_slice_in_dim(codes, there, start, axis=2)


def sample(
    logits: jax.Array,
    keys: jax.Array,
    position: jax.Array,
    temperature: jax.Array,
    top_k: int,
    top_p: jax.Array | None = None,
) -> jax.Array:
    """Tokens int32 [B, K] from logits [B, K, V] by the Gumbel-max trick, which at temperature 0 is the argmax.

    The noise belongs to (row key, position, codebook, token), so a small change of the logits, as steering makes,
    changes few tokens: steered and unsteered clips stay comparable.
    """
    noise = jax.vmap(lambda key: jax.random.gumbel(jax.random.fold_in(key, position), logits.shape[1:]))(keys)
    if top_k or top_p is not None:
        likeliest = jax.lax.top_k(logits, top_k or logits.shape[-1])[0]  # falling
        if top_p is not None:
            # The likeliest always stays: nothing comes before it.
            chances = jax.nn.softmax(likeliest / jnp.maximum(temperature, 1e-6), axis=-1)
            likeliest = jnp.where(jnp.cumsum(chances, axis=-1) - chances < top_p, likeliest, jnp.inf)
        # `.min(-1)` and not `[..., -1]`: XLA turns the latter into a full sort.
        logits = jnp.where(logits >= likeliest.min(-1, keepdims=True), logits, -jnp.inf)
    return jnp.argmax(logits + temperature * noise, axis=-1).astype(jnp.int32)
