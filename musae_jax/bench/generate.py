"""How fast music is generated: ours beside transformers', with the same random weights of the true size, in one run."""

import dataclasses
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from musae_jax.bench.engines import (
    Ours,
    Transformers,
    load_engines,
    rows_of_pairs,
    seconds_of,
    some_codes,
    write_checkpoint,
)
from musae_jax.bench.rows import bench_row

Progress = Callable[[int, int, str], None]


@dataclasses.dataclass(frozen=True)
class GenerateBench:
    """What is generated.

    Attributes:
      size: of the decoder, "small", "medium" or "large" ("tiny" for tests).
      batch_size: prompts at a time; guidance doubles the rows.
      frames: the two lengths whose difference is timed, so that the text, the codec and the start do not count.
      ours, theirs: the dtypes of either.
      codec_batch, codec_seconds: clips for the codec.
      turns: timed turns of each.
    """

    size: str = "small"
    batch_size: int = 1
    frames: tuple[int, int] = (66, 122)
    ours: tuple[str, ...] = ("float32", "mixed")
    theirs: tuple[str, ...] = ("float32", "bfloat16")
    codec_batch: int = 4
    codec_seconds: float = 10.0
    turns: int = 3


def bench_generate(bench: GenerateBench | None = None, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Rows, see `bench_row`; the engines take turns and the median is taken.

    generate/steps     decoder steps (frames) a second, guidance 3, top-k 250, each dtype beside each of transformers.
    generate/compile   seconds that the first call of ours takes longer.
    codec/encode, codec/decode   seconds of sound a second, beside transformers' float32.
    """
    b = bench or GenerateBench()
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(folder, b.size)
        engines = load_engines(folder, b.ours, b.theirs)
    ours = engines["musae_jax", b.ours[0]]
    vocabulary = ours.mg.config.text.vocab_size
    ids = np.random.default_rng(0).integers(3, vocabulary, size=(b.batch_size, 12))
    first = seconds_of(lambda: ours.generate(ids, b.frames[1]))
    for engine in engines.values():
        for frames in b.frames:
            engine.generate(ids, frames)
    steps: dict[tuple[str, str], list[float]] = {name: [] for name in engines}
    warm = []
    for turn in range(b.turns):
        for name, engine in engines.items():
            short, long = (seconds_of(lambda: engine.generate(ids, frames)) for frames in b.frames)  # noqa: B023
            steps[name].append((b.frames[1] - b.frames[0]) / max(long - short, 1e-9))
            if engine is ours:
                warm.append(long)
        if progress:
            progress(turn + 1, b.turns, "turns")
    config = {"size": b.size, "batch_size": b.batch_size, "guidance_scale": 3.0, "top_k": 250}
    rate = {name: float(np.median(rates)) for name, rates in steps.items()}
    rows = rows_of_pairs("generate/steps", config, rate, "steps/s")
    rows.append(bench_row("generate/compile", config, first - float(np.median(warm)), "s", dtype=b.ours[0]))
    exact = engines.get(("transformers", "float32"))
    return rows if exact is None else rows + _codec_rows(b, ours, exact)


def _codec_rows(b: GenerateBench, ours: Ours, theirs: Transformers) -> list[dict[str, Any]]:
    config, mg = {"batch_size": b.codec_batch, "seconds": b.codec_seconds}, ours.mg.config
    noise = np.random.default_rng(0).standard_normal((b.codec_batch, round(b.codec_seconds * mg.sampling_rate)))
    audio, codes = 0.1 * noise.astype(np.float32), some_codes(b.codec_batch, mg.frames(b.codec_seconds))
    rows = []
    for what, value in (("encode", audio), ("decode", codes)):
        taken: dict[str, list[float]] = {"ours": [], "theirs": []}
        for _ in range(b.turns + 1):
            for name, engine in (("ours", ours), ("theirs", theirs)):
                taken[name].append(seconds_of(lambda: getattr(engine, what)(value)))  # noqa: B023
        sound = b.codec_batch * b.codec_seconds
        one, other = (sound / float(np.median(taken[name][1:])) for name in ("ours", "theirs"))
        rows.append(bench_row(f"codec/{what}", config, one, "s of sound/s", other, "transformers float32"))
    return rows
