"""MusicGen's harvest and its decode step on a TPU slice (`slices`), at the published sizes."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from musae_jax.bench.engines import read_in_a_step, true_config
from musae_jax.bench.slices import PodFigures, Slice, Work, measure, open_slice
from musae_jax.errors import MusaeError
from musae_jax.mesh import DATA, MODEL
from musae_jax.models import encodec, generate
from musae_jax.models.decoder import TextStates
from musae_jax.models.edits import CONDITIONAL, UNCONDITIONAL
from musae_jax.models.layout import ROWS, WHOLE, check_model_parallel, param_shardings
from musae_jax.models.musicgen import MusicGenConfig, encode_audio, forward, parameter_shapes

TEXT_TOKENS = 16
GUIDED = ((CONDITIONAL, UNCONDITIONAL),)  # one pass of twice the rows


def measure_encode(
    size: str, topology: str, model_parallel: int, rows: int, seconds: float = 10.0, dtype: str = "float32"
) -> PodFigures:
    """The codec's pass of a harvest: `rows` clips of sound to codes, in float32 whatever the decoder's `dtype`.

    Raises:
      MusaeError: libtpu is missing, the slice is unknown, or the model and the clips do not fit it.
    """
    slice, config, params = _model(size, topology, model_parallel, rows, dtype)
    audio = _array(slice, (rows, round(seconds * config.sampling_rate)), jnp.float32, ROWS)
    work = Work(
        call="pass",
        calls="passes",
        amount=rows * seconds,
        unit="s of music",
        sizes=f"encoding {rows} clips of {seconds:g} s beside musicgen-{size} in {dtype}",
        remedy="raise model_parallel or lower rows",
        arguments=_bytes((params, audio)),
    )
    return measure(slice, lambda: encode_audio.lower(config, params, audio), work)


def measure_harvest(
    size: str, topology: str, model_parallel: int, rows: int, seconds: float = 10.0, dtype: str = "float32"
) -> PodFigures:
    """The decoder's pass of a harvest: the codes of `rows` clips to the residuals of the block in the middle.

    Raises:
      MusaeError: libtpu is missing, the slice is unknown, or the model and the clips do not fit it.
    """
    slice, config, params = _model(size, topology, model_parallel, rows, dtype)
    layer, frames = config.decoder.num_hidden_layers // 2 - 1, config.frames(seconds)
    codes = _array(slice, (rows, config.num_codebooks, frames), jnp.int32, ROWS)

    def harvest(params: Any, codes: jax.Array) -> jax.Array:
        return forward(config, params, codes, taps=(layer,), logits=False).residuals[layer]

    work = Work(
        call="pass",
        calls="passes",
        amount=rows * (frames + 1),
        unit="tokens",
        sizes=f"harvesting musicgen-{size} in {dtype} with {rows} clips of {seconds:g} s",
        remedy="raise model_parallel or lower rows",
        arguments=_bytes((params, codes)),
    )
    return measure(slice, lambda: jax.jit(harvest).lower(params, codes), work)


def measure_decode(
    size: str, topology: str, model_parallel: int, rows: int, seconds: float = 30.0, dtype: str = "bfloat16"
) -> PodFigures:
    """One step of generation: the next frame of `rows` prompts with guidance, in a window of `seconds`.

    A step reads every weight and the whole cache once: that is its traffic, whatever the compiler adds.

    Raises:
      MusaeError: libtpu is missing, the slice is unknown, or the model and the windows do not fit it.
    """
    slice, config, params = _model(size, topology, model_parallel, rows, dtype)
    c, decoder, mesh = config.decoder, params["decoder"], slice.mesh
    text = TextStates(
        states=_array(slice, (rows, TEXT_TOKENS, c.hidden_size), dtype, ROWS),
        mask=_array(slice, (rows, TEXT_TOKENS), jnp.int32, ROWS),
    )
    span = config.frames(seconds)
    capacity = generate.rounded_columns(span + c.delays)

    def start(params: Any, text: TextStates) -> tuple[Any, generate.State]:
        codes, known = jnp.zeros((rows, c.num_codebooks, 2 * span), jnp.int32), jnp.zeros(rows, jnp.int32)
        keys = jax.random.split(jax.random.key(0), rows)
        state = generate._start(config, params["decoder"], codes, keys, 0, known, span, capacity, GUIDED, mesh=mesh)
        return generate._conditions(config, params, text, None, GUIDED, mesh=mesh), state

    conditions, state = jax.tree.map(lambda leaf: _as_made(slice, leaf), jax.eval_shape(start, params, text))
    per_row, number, count = _array(slice, (rows,), jnp.int32, ROWS), jnp.float32(1), jnp.int32(0)
    work = Work(
        call="step",
        calls="steps",
        amount=rows / config.frame_rate,
        unit="s of music",
        sizes=f"generating with musicgen-{size} in {dtype} for {rows} prompts in windows of {seconds:g} s",
        remedy="raise model_parallel, or lower rows or seconds",
        arguments=_bytes((params, conditions, state)),
        traffic=_bytes((read_in_a_step(decoder), conditions, state.caches)),
    )

    def lower() -> Any:
        given = (conditions, state, count, per_row, per_row, count, number, number, None, None, 250, GUIDED)
        return generate._advance.lower(config, decoder, *given, mesh=mesh)

    return measure(slice, lower, work)


def _model(
    size: str, topology: str, model_parallel: int, rows: int, dtype: str
) -> tuple[Slice, MusicGenConfig, dict[str, Any]]:
    """The slice, the configuration of a published size, and its parameters' shapes there."""
    slice, config = open_slice(topology, model_parallel), true_config(size)
    check_model_parallel(config, slice.mesh)
    if rows % slice.mesh.shape[DATA]:
        raise MusaeError(f"rows is {rows}, but the {slice.mesh.shape[DATA]} devices along data must get equal parts")
    params = unflatten_dict(
        {
            path: jax.ShapeDtypeStruct(shape, dtype if path[0] == "decoder" else jnp.float32)
            for path, shape in parameter_shapes(config).items()
        }
    ) | {"audio": encodec.encodec_shapes(config.audio)}
    shardings = param_shardings(slice.mesh, params)
    return (
        slice,
        config,
        jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, shardings),
    )


def _array(slice: Slice, shape: tuple[int, ...], dtype: Any, spec: P) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(slice.mesh, spec))


def _as_made(slice: Slice, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """What `generate` makes, laid out as it lays it: [rows, …], keys and values [rows, H, …], a number."""
    heads = leaf.ndim == 4 and leaf.shape[1] > 1  # the mask is [rows, 1, 1, L]
    return _array(slice, leaf.shape, leaf.dtype, P(DATA, MODEL) if heads else ROWS if leaf.ndim else WHOLE)


def _bytes(tree: Any) -> int:
    """What a chip holds of a tree of laid-out shapes."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * getattr(leaf.dtype, "itemsize", 4)
        for leaf in jax.tree.leaves(tree)
    )
