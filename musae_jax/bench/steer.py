"""What steering costs: generation with features added, clamped and held beside our own without, in one run."""

import dataclasses
import itertools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musae_jax.bench.engines import seconds_of
from musae_jax.bench.rows import bench_row
from musae_jax.models.edits import Edits
from musae_jax.models.generate import generate
from musae_jax.models.musicgen import MusicGen, encode_text, forward
from musae_jax.sae.sae import SAE, SAEConfig
from musae_jax.steering.combining import during, stack
from musae_jax.steering.directions import steer
from musae_jax.steering.operations import clamp, hold
from musae_jax.steering.schedules import beats

Progress = Callable[[int, int, str], None]
PEER = "our own unsteered generation"
PROMPTS = ("slow flute solo in D minor", "drums and bass, fast")


@dataclasses.dataclass(frozen=True)
class SteerBench:
    """What is steered: an SAE of random weights after the block in the middle (only its size counts here).

    Attributes:
      batch_size: clips at a time; guidance doubles the rows.
      seconds: of a clip.
      d_sae: features of the SAE, and `touched` of them steered at once.
      turns: timed turns of each, after one that is not timed.
      features, strengths, prompts, sweep_seconds, sweep_batch: of the sweep, a clip for each of the first three.
    """

    batch_size: int = 1
    seconds: float = 4.0
    d_sae: int = 2048
    touched: int = 4
    turns: int = 15
    features: int = 8
    strengths: tuple[float, ...] = (-1.0, -0.5, 0.5, 1.0, 2.0)
    prompts: tuple[str, ...] = PROMPTS
    sweep_seconds: float = 4.0
    sweep_batch: int = 16


def bench_steer(
    mg: MusicGen, model: str, bench: SteerBench | None = None, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """Rows, see `bench_row`; each way of steering takes turns with generation left alone, and the fastest turns are
    compared: whatever else the machine does only adds, and would hide a few percent.

    steer/add, add on beats, clamp, clamp topk, hold   seconds of music a second, text and sound included; on CPUs
                  another row for each with the CPU time, which other work on the machine does not change.
    steer/add, work, …   floating-point operations to read a clip once, as XLA counts them: the same at every run.
    steer/sweep   seconds for a clip of every feature, strength and prompt, added, in batches of one shape; compiling
                  left out. Its peer is as many clips in as many batches without edits.
    """
    b = bench or SteerBench()
    layer, rate = mg.config.decoder.num_hidden_layers // 2, mg.config.frame_rate
    sae, topk = (_random_sae(mg.config.decoder.hidden_size, b.d_sae, layer, rule) for rule in ("jumprelu", "topk"))
    amounts = dict.fromkeys(range(b.touched), 0.5)
    ways = {
        "unsteered": None,
        "add": steer(sae, amounts),
        "add on beats": during(steer(sae, amounts), beats(b.seconds, rate, 120)),
        "clamp": clamp(sae, amounts),
        "clamp topk": clamp(topk, amounts),
        "hold": hold(sae, amounts),
    }
    prompts = list(itertools.islice(itertools.cycle(b.prompts), b.batch_size))
    call = {way: lambda e=edits: _generate(mg, prompts, b.seconds, e) for way, edits in ways.items()}
    taken = _in_turns(call, b.turns, progress)
    music = b.batch_size * b.seconds
    config: dict[str, Any] = {"model": model, "layer": layer, "d_sae": b.d_sae, "touched": b.touched}
    config |= {"batch_size": b.batch_size, "seconds": b.seconds}
    wall, cpu = ({way: min(time[i] for time in times) for way, times in taken.items()} for i in (0, 1))
    work = {way: _work(mg, prompts, b.seconds, edits) for way, edits in ways.items()}
    rows = []
    for way in list(ways)[1:]:
        speeds = music / wall[way], music / wall["unsteered"]
        rows.append(bench_row(f"steer/{way}", config, speeds[0], "s of music/s", speeds[1], PEER))
        rows += _cpu_row(f"steer/{way}, CPU time", config, cpu[way], cpu["unsteered"])
        rows.append(
            bench_row(f"steer/{way}, work", config, work[way], "MFLOP", work["unsteered"], PEER, more_is_better=False)
        )
    return rows + _sweep_rows(mg, sae, b, {**config, "touched": 1})


def _cpu_row(name: str, config: dict[str, Any], ours: float, peer: float) -> list[dict[str, Any]]:
    """What the processors of this machine had to do, which other work on it does not change; none on accelerators."""
    if jax.default_backend() != "cpu":
        return []
    return [bench_row(name, config, ours, "CPU s", peer, PEER, more_is_better=False)]


def _sweep_rows(mg: MusicGen, sae: SAE, b: SteerBench, config: dict[str, Any]) -> list[dict[str, Any]]:
    plan = list(itertools.product(range(b.features), b.strengths, b.prompts))
    plan += plan[-1:] * (-len(plan) % b.sweep_batch)  # one shape
    chunks = [plan[i : i + b.sweep_batch] for i in range(0, len(plan), b.sweep_batch)]

    def sweep(steered: bool, chunks: list[Any] = chunks) -> None:
        for chunk in chunks:
            edits = stack([steer(sae, {feature: strength}) for feature, strength, _ in chunk]) if steered else None
            _generate(mg, [prompt for _, _, prompt in chunk], b.sweep_seconds, edits)

    for steered in (True, False):
        sweep(steered, chunks[:1])
    (wall, cpu), (peer, peer_cpu) = (_seconds_of(lambda s=steered: sweep(s)) for steered in (True, False))
    sizes = {"features": b.features, "strengths": len(b.strengths), "prompts": len(b.prompts)}
    config = config | sizes | {"seconds": b.sweep_seconds, "batch_size": b.sweep_batch}
    row = bench_row("steer/sweep", config, wall, "s", peer, PEER, more_is_better=False)
    return [row, *_cpu_row("steer/sweep, CPU time", config, cpu, peer_cpu)]


def _seconds_of(call: Callable[[], None]) -> tuple[float, float]:
    """How long a call takes, on the wall's clock and in CPU time of this process."""
    start = time.process_time()
    return seconds_of(call), time.process_time() - start


def _in_turns(
    call: dict[str, Callable[[], None]], turns: int, progress: Progress | None
) -> dict[str, list[tuple[float, float]]]:
    """Seconds of each call in each turn; the order turns around, so that none always follows the same."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in call}
    for turn in range(turns + 1):
        for name in list(call)[:: 1 if turn % 2 else -1]:
            taken[name].append(_seconds_of(call[name]))
        if progress:
            progress(turn, turns, "turns")
    return {name: times[1:] for name, times in taken.items()}


def _generate(mg: MusicGen, prompts: list[str], seconds: float, edits: Edits | None) -> None:
    text = encode_text(mg, prompts)
    made = generate(mg.config, mg.params, text, jax.random.key(0), seconds=seconds, edits=edits)
    jax.block_until_ready((made.codes, made.audio))


def _work(mg: MusicGen, prompts: list[str], seconds: float, edits: Edits | None) -> float:
    """MFLOP of a forward pass over clips of so many seconds."""
    codes = jnp.zeros((len(prompts), mg.config.num_codebooks, mg.config.frames(seconds)), jnp.int32)
    read = jax.jit(lambda params, text, edits: forward(mg.config, params, codes, text, edits=edits).logits)
    return read.lower(mg.params, encode_text(mg, prompts), edits).compile().cost_analysis()["flops"] / 1e6


def _random_sae(d_in: int, d_sae: int, layer: int, architecture: str) -> SAE:
    rng = np.random.default_rng(0)
    W_dec = rng.normal(size=(d_sae, d_in))
    W_dec /= np.linalg.norm(W_dec, axis=1, keepdims=True)
    params = {"W_enc": W_dec.T, "W_dec": W_dec, "b_enc": np.zeros(d_sae), "b_dec": np.zeros(d_in)}
    if architecture == "jumprelu":
        params["threshold"] = np.full(d_sae, 0.1)
    config = SAEConfig(d_in, d_sae, architecture, min(32, d_sae), metadata={"hook_name": f"blocks.{layer}.resid_post"})
    return SAE(config, {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}, jnp.ones(d_sae))
