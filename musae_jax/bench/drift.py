"""How far a narrower dtype leads away from float32: the residual stream layer by layer, logits, greedy codes."""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musae_jax.bench.rows import bench_row
from musae_jax.models.generate import generate
from musae_jax.models.musicgen import MusicGen, encode_text, forward
from musae_jax.models.precision import cast_params
from musae_jax.models.tokens import tokenize

Progress = Callable[[int, int, str], None]
PROMPTS = ("slow piano in A minor", "fast drums and bass, no melody", "flute solo", "calm strings with a deep bass")


@dataclasses.dataclass(frozen=True)
class DriftBench:
    """What is compared: `dtypes` with float32, on `clips` of `seconds` that the model has made itself in float32."""

    dtypes: tuple[str, ...] = ("mixed", "bfloat16")
    clips: int = 4
    seconds: float = 5.0


def bench_drift(
    mg: MusicGen, model: str = "", bench: DriftBench | None = None, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """Rows, see `bench_row`, for a model loaded in float32. The same codes and prompts are read in each dtype; what it
    gives is compared with float32's at the highest precision of products that the device has.

    drift/text            the text's states: root mean square of the difference, as a share of the states' own.
    drift/blocks.{i}.resid_post   the same of the residual stream after each block.
    drift/logits          Kullback-Leibler divergence of a code's distribution from float32's, mean, in nats.
    drift/greedy          share of codes whose likeliest value is float32's.

    The control beside each: float32 arithmetic on weights that were rounded to that dtype, the part of the drift that
    no arithmetic could avoid. The rows of "float32" are the floor: this device's ordinary float32 (TF32 on some GPUs),
    the clips read one by one, so that sums are taken in another order.
    """
    b = bench or DriftBench()
    exact = cast_params(mg.params, "float32")
    text = _prompts(mg, b.clips)
    made = generate(mg.config, exact, encode_text(mg, *text), jax.random.key(0), b.seconds, audio=False)
    config = {"model": model, "clips": b.clips, "seconds": b.seconds}
    with jax.default_matmul_precision("highest"):
        reference = _read(mg, exact, text, made.codes)
    alone = [_read(mg, exact, tuple(x[i : i + 1] for x in text), made.codes[i : i + 1]) for i in range(b.clips)]
    rows = _rows(config, "float32", _apart(reference, jax.tree.map(lambda *x: jnp.concatenate(x), *alone)))
    for number, dtype in enumerate(b.dtypes):
        drift = _apart(reference, _read(mg, cast_params(exact, dtype), text, made.codes))
        with jax.default_matmul_precision("highest"):
            control = _apart(reference, _read(mg, _rounded(exact, dtype), text, made.codes))
        rows += _rows(config, dtype, drift, control)
        if progress:
            progress(number + 1, len(b.dtypes), "dtypes")
    return rows


def _rounded(params: Any, dtype: str) -> Any:
    narrow = jax.eval_shape(functools.partial(cast_params, dtype=dtype), params)
    return jax.tree.map(lambda x, like: x.astype(like.dtype).astype(x.dtype), params, narrow)


def _prompts(mg: MusicGen, clips: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and mask of some prompts; without a tokenizer any ids."""
    c = mg.config.text
    if mg.tokenizer is not None:
        return tokenize(mg.tokenizer, [PROMPTS[i % len(PROMPTS)] for i in range(clips)], c.pad_token_id)
    ids = np.random.default_rng(0).integers(2, c.vocab_size, size=(clips, 12))
    return ids, np.ones_like(ids)


def _read(mg: MusicGen, params: Any, text: tuple[np.ndarray, np.ndarray], codes: jax.Array) -> dict[str, jax.Array]:
    """What is compared, by the names of the rows; the logits [B, K, P, V] where every codebook has a code to come."""
    states = encode_text(mg.replace(params=params), *text)
    c = mg.config.decoder
    out = forward(mg.config, params, codes, states, taps=tuple(range(c.num_hidden_layers)))
    residuals = {f"blocks.{i}.resid_post": x for i, x in out.residuals.items()}
    return {"text": states.states, **residuals, "logits": out.logits[:, :, c.delays - 1 : -1]}


@jax.jit
def _apart(reference: dict[str, jax.Array], found: dict[str, jax.Array]) -> dict[str, jax.Array]:
    def relative(one: jax.Array, other: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.mean(jnp.square(other.astype(jnp.float32) - one)) / jnp.mean(jnp.square(one)))

    apart = {name: relative(value, found[name]) for name, value in reference.items() if name != "logits"}
    expected, given = (jax.nn.log_softmax(x["logits"].astype(jnp.float32)) for x in (reference, found))
    divergence = jnp.mean(jnp.sum(jnp.exp(expected) * (expected - given), axis=-1))
    apart["logits"] = jnp.maximum(divergence, 0.0)  # sums of fp32 may end below
    apart["greedy"] = jnp.mean(expected.argmax(-1) == given.argmax(-1))
    return apart


def _rows(
    config: dict[str, Any], dtype: str, drift: dict[str, jax.Array], control: dict[str, jax.Array] | None = None
) -> list[dict[str, Any]]:
    order = ["text", *sorted((name for name in drift if name.startswith("blocks")), key=_layer), "logits", "greedy"]
    rows = []
    for name in order:
        unit = {"logits": "nats", "greedy": "share"}.get(name, "relative RMS")
        peer = {} if control is None else {"peer": float(control[name]), "peer_name": "rounded weights alone"}
        more = name == "greedy"
        row = bench_row(f"drift/{name}", config, float(drift[name]), unit, **peer, more_is_better=more, dtype=dtype)
        rows.append(row)
    return rows


def _layer(name: str) -> int:
    return int(re.sub(r"\D", "", name))
