"""How fast residuals are harvested: ours beside transformers', with the same random weights of the true size."""

import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from musae_jax.bench.child import figure_of
from musae_jax.bench.engines import DECODERS, ENGINES, Ours, Transformers, some_codes, write_checkpoint
from musae_jax.bench.rows import bench_row

Progress = Callable[[int, int, str], None]


@dataclasses.dataclass(frozen=True)
class HarvestBench:
    """What is harvested: the block in the middle, of `batch_size` unconditional clips of `frames` frames.

    Attributes:
      size: of the decoder, "small", "medium" or "large" ("tiny" for tests).
      dtypes: of transformers.
      turns: timed turns of each, after one that is not.
    """

    size: str = "small"
    batch_size: int = 4
    frames: int = 500
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    turns: int = 5


def bench_harvest(bench: HarvestBench | None = None, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Rows, see `bench_row`; the engines take turns and the median is taken.

    harvest/tokens   positions a second, beside each dtype of transformers.
    harvest/memory   peak MiB beyond the model, in a process of its own (on GPUs, of the device, model included), beside
                     transformers' float32; on Linux.
    harvest/apart    largest difference from transformers' float32, as a share of the largest residual.
    """
    b = bench or HarvestBench()
    layer = DECODERS[b.size]["num_hidden_layers"] // 2 - 1
    config = {"size": b.size, "layer": layer, "batch_size": b.batch_size, "positions": b.frames + 1}
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(folder, b.size)
        memory = _memory_rows(b, config, folder)
        ours = Ours(folder)
        theirs = {f"transformers {dtype}": Transformers(folder, dtype) for dtype in b.dtypes}
    seconds: dict[str, list[float]] = {name: [] for name in ("ours", *theirs)}
    for turn in range(b.turns + 1):
        codes = some_codes(b.batch_size, b.frames, turn)
        residuals = {}
        for name, engine in {"ours": ours, **theirs}.items():
            start = time.perf_counter()
            residuals[name] = engine.harvest(codes, layer)
            seconds[name].append(time.perf_counter() - start)
        if progress:
            progress(turn + 1, b.turns + 1, "turns")
    positions = b.batch_size * (b.frames + 1)
    rate = {name: positions / float(np.median(times[1:])) for name, times in seconds.items()}
    rows = [bench_row("harvest/tokens", config, rate["ours"], "tokens/s", rate[name], name) for name in theirs]
    rows += memory
    if "float32" in b.dtypes:
        exact = residuals["transformers float32"].numpy()
        apart = np.abs(np.asarray(residuals["ours"]) - exact).max() / np.abs(exact).max()
        rows.append(bench_row("harvest/apart", config, float(apart), "share", more_is_better=False))
    return rows


def _memory_rows(b: HarvestBench, config: dict[str, Any], folder: str) -> list[dict[str, Any]]:
    if not sys.platform.startswith("linux"):
        return []
    arguments = (folder, str(config["layer"]), str(b.batch_size), str(b.frames))
    ours, theirs = (
        figure_of(f"the harvest with {name}", "-m", "musae_jax.bench.engines", name, *arguments) for name in ENGINES
    )
    return [bench_row("harvest/memory", config, ours, "MiB", theirs, "transformers float32", False)]
