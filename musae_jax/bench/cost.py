"""How the engine's cost grows with batch, length and size, beside the floor that this device sets.

A decode step reads every weight and the whole cache once: its floor is those bytes at the bandwidth of a plain sum. A
harvest multiplies: its floor is the FLOPs at the rate of one large product. Both rates are measured in the same run.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from musae_jax.bench.engines import read_in_a_step, seconds_of, true_config
from musae_jax.bench.rows import bench_row
from musae_jax.errors import MusaeError
from musae_jax.models import encodec
from musae_jax.models.decoder import TextStates
from musae_jax.models.generate import WINDOW_SECONDS, generate_stream, rounded_columns
from musae_jax.models.musicgen import MusicGenConfig, forward, parameter_shapes
from musae_jax.models.precision import leaf_dtype

Progress = Callable[[int, int, str], None]


@dataclasses.dataclass(frozen=True)
class CostBench:
    """What is measured, in every combination.

    Attributes:
      sizes: of the decoder, "small", "medium" or "large" ("tiny" for tests).
      batches: prompts of a generation, each with its unconditional twin, and clips of a harvest.
      seconds: of music.
      dtype: see `precision`.
      turns: timed chunks of a second, and harvests, of which the median is taken.
    """

    sizes: tuple[str, ...] = ("small",)
    batches: tuple[int, ...] = (1, 8)
    seconds: tuple[float, ...] = (8.0, 30.0)
    dtype: str = "float32"
    turns: int = 2


def bench_cost(bench: CostBench | None = None, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Rows, see `bench_row`; the peer is the floor and the ratio how much of it is reached.

    cost/bandwidth   bytes a second, in 1e9, of the sum of a large array.
    cost/product     FLOP a second, in 1e9, of the product of two large matrices in the kernels' dtype.
    cost/generate    decoder steps a second of a stream with guidance, codec included.
    cost/harvest     positions a second, up to the block in the middle.

    Raises:
      MusaeError: `seconds` leave no room for the timed chunks, or are more than a window.
    """
    b = bench or CostBench()
    for seconds in b.seconds:
        if not b.turns + 1 <= seconds <= WINDOW_SECONDS:
            raise MusaeError(
                f"--seconds is {seconds:g}; give {b.turns + 1} to {WINDOW_SECONDS:g}, a window of which some is timed"
            )
    kernels = jnp.dtype(leaf_dtype(("decoder", "kernel"), b.dtype))
    bandwidth, flops = _bandwidth(), product_rate(kernels)
    rows = [
        bench_row("cost/bandwidth", {}, bandwidth / 1e9, "GB/s"),
        bench_row("cost/product", {}, flops / 1e9, "GFLOP/s", dtype=str(kernels)),
    ]
    total = len(b.sizes) * len(b.batches) * len(b.seconds) * 2
    for size in b.sizes:
        config = true_config(size)
        params = _some_params(config, b.dtype)
        for batch in b.batches:
            for seconds in b.seconds:
                shown = {"size": size, "batch_size": batch, "seconds": seconds}
                rate, least = _steps(config, params, batch, seconds, b.turns), _bytes(config, params, batch, seconds)
                row = bench_row("cost/generate", shown, rate, "steps/s", bandwidth / least, "floor", dtype=b.dtype)
                rows.append(row)
                rate, least = _positions(config, params, batch, seconds, b.turns), _flops(config, seconds)
                row = bench_row("cost/harvest", shown, rate, "positions/s", flops / least, "floor", dtype=b.dtype)
                rows.append(row)
                if progress:
                    progress(len(rows) - 2, total, "figures")
    return rows


def _some_params(config: MusicGenConfig, dtype: str) -> dict[str, Any]:
    """The decoder's and the codec's, of plausible size: drawn once and repeated, since drawing billions takes long."""
    pool = 0.02 * np.random.default_rng(0).standard_normal(1 << 20, np.float32)
    shapes = {path: shape for path, shape in parameter_shapes(config).items() if path[0] == "decoder"}
    flat = {p: jnp.asarray(np.resize(pool, s), leaf_dtype(p, dtype)) for p, s in shapes.items()}
    return unflatten_dict(flat) | {"audio": encodec.random_encodec(config.audio, jax.random.key(0))}


def _steps(config: MusicGenConfig, params: Any, batch: int, seconds: float, turns: int) -> float:
    width = config.decoder.hidden_size
    text = TextStates(states=jnp.ones((batch, 16, width)), mask=jnp.ones((batch, 16), jnp.int32))
    chunks = generate_stream(config, params, text, jax.random.key(0), seconds)
    next(chunks)  # compiles
    taken = [seconds_of(lambda: next(chunks)) for _ in range(turns)]
    return config.frame_rate / float(np.median(taken))


def _positions(config: MusicGenConfig, params: Any, batch: int, seconds: float, turns: int) -> float:
    c, layer = config.decoder, config.decoder.num_hidden_layers // 2 - 1
    shape = (batch, c.num_codebooks, config.frames(seconds))
    codes = np.random.default_rng(0).integers(c.vocab_size, size=shape)

    def run() -> Any:
        return jax.block_until_ready(forward(config, params, codes, taps=(layer,), logits=False).residuals)

    run()
    return batch * (shape[-1] + 1) / float(np.median([seconds_of(run) for _ in range(turns)]))


def _bytes(config: MusicGenConfig, params: Any, batch: int, seconds: float) -> float:
    """What a decode step reads: the weights but the embeddings and the text's keys and values, and the cache."""
    c, read = config.decoder, sum(leaf.nbytes for leaf in read_in_a_step(params["decoder"]))
    capacity = rounded_columns(config.frames(seconds) + c.delays)
    cell = params["decoder"]["embedding"].dtype.itemsize
    return read + 2 * batch * c.num_hidden_layers * 2 * capacity * c.hidden_size * cell


def _flops(config: MusicGenConfig, seconds: float) -> float:
    """Of a position, up to the block in the middle; half of the attention is masked."""
    c, positions = config.decoder, config.frames(seconds) + 1
    products = 4 * c.hidden_size**2 + 2 * c.hidden_size * c.ffn_dim
    return c.num_hidden_layers // 2 * (2 * products + 2 * c.hidden_size * positions)


def _bandwidth() -> float:
    array = jnp.ones(1 << 28, jnp.float32)
    total = jax.jit(jnp.sum)
    return array.nbytes / best_of(lambda: total(array))


def product_rate(dtype: Any) -> float:
    """FLOP a second of the product of two large matrices."""
    side = 4096
    a, b = jnp.ones((side, side), dtype), jnp.ones((side, side), dtype)
    product = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))
    return 2 * side**3 / best_of(lambda: product(a, b))


def best_of(call: Callable[[], Any], times: int = 5) -> float:
    """Seconds of the fastest of so many calls, after one that is not timed."""
    jax.block_until_ready(call())
    return min(seconds_of(lambda: jax.block_until_ready(call())) for _ in range(times))
