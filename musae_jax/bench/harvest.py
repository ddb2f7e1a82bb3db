"""How fast residuals are harvested: ours beside transformers', with the same random weights of the true size."""

import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from musae_jax.bench.child import figure_of
from musae_jax.bench.engines import (
    DECODERS,
    ENGINES,
    load_engines,
    rows_of_pairs,
    some_codes,
    write_checkpoint,
)
from musae_jax.bench.rows import bench_row

Progress = Callable[[int, int, str], None]


@dataclasses.dataclass(frozen=True)
class HarvestBench:
    """What is harvested: the block in the middle, of `batch_size` unconditional clips of `frames` frames.

    Attributes:
      size: of the decoder, "small", "medium" or "large" ("tiny" for tests).
      ours, theirs: the dtypes of either.
      turns: timed turns of each, after one that is not.
    """

    size: str = "small"
    batch_size: int = 4
    frames: int = 500
    ours: tuple[str, ...] = ("float32", "mixed")
    theirs: tuple[str, ...] = ("float32", "bfloat16")
    turns: int = 5


def bench_harvest(bench: HarvestBench | None = None, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Rows, see `bench_row`; the engines take turns and the median is taken.

    harvest/tokens   positions a second, each dtype beside each of transformers.
    harvest/memory   peak MiB beyond the model, in a process of its own (on GPUs, of the device, model included), beside
                     transformers' float32; on Linux.
    harvest/apart    root mean square of the difference from transformers' float32, as a share of the residuals'.
    """
    b = bench or HarvestBench()
    layer = DECODERS[b.size]["num_hidden_layers"] // 2 - 1
    config = {"size": b.size, "layer": layer, "batch_size": b.batch_size, "positions": b.frames + 1}
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(folder, b.size)
        memory = _memory_rows(b, config, folder)
        engines = load_engines(folder, b.ours, b.theirs)
    seconds: dict[tuple[str, str], list[float]] = {name: [] for name in engines}
    for turn in range(b.turns + 1):
        codes = some_codes(b.batch_size, b.frames, turn)
        residuals = {}
        for name, engine in engines.items():
            start = time.perf_counter()
            residuals[name] = np.asarray(engine.harvest(codes, layer), np.float64)
            seconds[name].append(time.perf_counter() - start)
        if progress:
            progress(turn + 1, b.turns + 1, "turns")
    positions = b.batch_size * (b.frames + 1)
    rate = {name: positions / float(np.median(times[1:])) for name, times in seconds.items()}
    rows = rows_of_pairs("harvest/tokens", config, rate, "tokens/s") + memory
    exact = residuals.get(("transformers", "float32"))
    for (engine, dtype), found in residuals.items() if exact is not None else ():
        if found is not exact:
            apart = float(np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2)))
            rows.append(bench_row(f"harvest/apart {engine}", config, apart, "share", dtype=dtype))
    return rows


def _memory_rows(b: HarvestBench, config: dict[str, Any], folder: str) -> list[dict[str, Any]]:
    if not sys.platform.startswith("linux"):
        return []
    arguments = (folder, str(config["layer"]), str(b.batch_size), str(b.frames))
    ours, theirs = (
        figure_of(f"the harvest with {name}", "-m", "musae_jax.bench.engines", name, *arguments) for name in ENGINES
    )
    return [bench_row("harvest/memory", config, ours, "MiB", theirs, "transformers float32", False)]
