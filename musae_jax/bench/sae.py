"""How fast SAEs are trained: ours beside the PyTorch libraries', from the same weights, on the same batches, in one go.

The trainers take turns of ten steps, so that whatever else the machine does falls on all of them. What each has learned
is compared on tokens that none has seen. The step is also compared with its floor, the encoder's matrix product alone.
"""

import dataclasses
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musae_jax.activations.batches import Batches
from musae_jax.activations.store import StoreWriter, open_store
from musae_jax.bench import trainers
from musae_jax.bench.child import figure_of
from musae_jax.bench.rows import bench_row
from musae_jax.bench.trainers import TRAINERS, Ours, Size, peak_memory, some_weights
from musae_jax.errors import MusaeError
from musae_jax.sae.products import a_list_pays

CALL = 10  # steps of a turn
STATED = Size(512, 16384, 32, 1024)  # the size for which targets are stated, on two CPU cores
MODULES = {"sae-lens": "sae_lens", "dictionary-learning": "dictionary_learning", "eai-sparsify": "sparsify"}

Progress = Callable[[int, int, str], None]


@dataclasses.dataclass(frozen=True)
class SaeBench:
    """What is trained.

    Attributes:
      size: d_in, d_sae, k and batch_size.
      turns: of ten steps each, after one that is not timed.
      peers: names of PyPI packages in `MODULES`.
    """

    size: Size = STATED
    turns: int = 6
    peers: tuple[str, ...] = ("sae-lens",)


def bench_sae(bench: SaeBench | None = None, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Rows, see `bench_row`; of times the median over turns is taken.

    sae/topk/tokens        tokens/s of TopK, beside each peer's.
    sae/topk/{list,dense}  the two ways of computing the same step; sae/topk is the one that is the default here.
    sae/batch_topk/tokens  of BatchTopK; {list,dense} likewise.
    sae/*/over_encoder     time of a step over that of x @ W_enc alone.
    sae/topk/fvu           on tokens not trained on, after all steps, beside each peer's and another seed of ours.
    sae/topk/memory        peak MiB of a process that trains (on GPUs, of the device), beside each peer's; on Linux.
    sae/feed/wait          share of training time spent waiting for batches read from disk.

    Raises:
      MusaeError: a peer is not installed.
    """
    b = bench or SaeBench()
    for peer in b.peers:
        if importlib.util.find_spec(MODULES[peer]) is None:
            raise MusaeError(
                f"{peer} is not installed; run `pip install 'musae_jax[peers]'` (see pyproject.toml for those it leaves"
                " out), or choose others with --peers"
            )
    data = _Mixture(b.size)
    held_out = data.batches(1)[0]
    encoder = jax.jit(lambda x, W: x @ W.T)
    W = some_weights(b.size)
    contestants: dict[str, Any] = {
        f"{architecture}/{way}": Ours(b.size, W, architecture, way == "list")
        for architecture in ("topk", "batch_topk")
        for way in ("list", "dense")
    }
    contestants |= {peer: TRAINERS[peer](b.size, W) for peer in b.peers}
    contestants["another seed"] = Ours(b.size, some_weights(b.size, 1))
    times: dict[str, list[float]] = {name: [] for name in (*contestants, "encoder")}
    for turn in range(b.turns + 1):
        stack = data.batches(CALL)
        for name, trainer in contestants.items():
            start = time.perf_counter()
            trainer.steps(stack)
            times[name].append((time.perf_counter() - start) / CALL)
        start = time.perf_counter()
        for batch in stack:
            encoder(batch, W).block_until_ready()
        times["encoder"].append((time.perf_counter() - start) / CALL)
        if progress:
            progress(turn + 1, b.turns + 1, "turns")
    step = {name: float(np.median(seconds[1:])) for name, seconds in times.items()}
    fvu = {name: _fvu(trainer.params(), held_out, b.size.k) for name, trainer in contestants.items()}
    return [*_rows(b, step, fvu), *_memory_rows(b), _feed_row(b, contestants["topk/list"], data)]


def _rows(b: SaeBench, step: dict[str, float], fvu: dict[str, float]) -> list[dict[str, Any]]:
    config, rows, n = {**b.size._asdict(), "turns": b.turns}, [], b.size.batch_size
    for architecture in ("topk", "batch_topk"):
        way = "list" if a_list_pays(b.size.d_sae, b.size.k) else "dense"
        ours = step[f"{architecture}/{way}"]
        for peer in (b.peers if architecture == "topk" else ()) or (None,):
            theirs = n / step[peer] if peer else None
            rows.append(bench_row(f"sae/{architecture}/tokens", config, n / ours, "tokens/s", theirs, peer))
        for one in ("list", "dense"):
            rows.append(bench_row(f"sae/{architecture}/{one}", config, n / step[f"{architecture}/{one}"], "tokens/s"))
        over = ours / step["encoder"]
        rows.append(bench_row(f"sae/{architecture}/over_encoder", config, over, "times", more_is_better=False))
    for other in (*b.peers, "another seed"):
        rows.append(bench_row("sae/topk/fvu", config, fvu["topk/list"], "share", fvu[other], other, False))
    return rows


def _memory_rows(b: SaeBench) -> list[dict[str, Any]]:
    """Every trainer in a process of its own; on an accelerator ours in this one, which already holds its memory."""

    if not sys.platform.startswith("linux"):
        return []

    def peak(name: str) -> float:
        if name == "musae_jax" and jax.default_backend() != "cpu":
            return peak_memory(name, b.size)
        return figure_of(f"the training with {name}", trainers.__file__, name, *map(str, b.size))

    config, ours = dict(b.size._asdict()), peak("musae_jax")
    others = [(peak(peer), peer) for peer in b.peers] or [(None, None)]
    return [bench_row("sae/topk/memory", config, ours, "MiB", other, name, False) for other, name in others]


def _feed_row(b: SaeBench, trainer: Ours, data: "_Mixture") -> dict[str, Any]:
    """Trains from a store on disk whose groups are read while the one before is dealt."""
    n, clips, per_shard = b.size.batch_size, 48, 4  # a clip is a batch, and two epochs are read
    with tempfile.TemporaryDirectory() as folder:
        about = {"model": "mixture", "hook": "blocks.0", "layer": 0, "d": b.size.d_in, "positions": n}
        writer = StoreWriter(folder, {**about, "dtype": "float32"}, [str(i) for i in range(clips)], per_shard)
        while not writer.complete:
            writer.write_shard(data.batches(per_shard))
        epoch_mb = clips * n * b.size.d_in * 4 / 2**20
        batches = Batches(open_store(folder), n, drop_start=False, buffer_mb=epoch_mb / 2)
        steps = 2 * clips // CALL
        waited, start = 0.0, None
        for number in range(steps + 1):
            before = time.perf_counter()
            stack = np.stack([next(batches) for _ in range(CALL)])
            waited += time.perf_counter() - before
            trainer.steps(stack)
            if number == 0:  # the first group has nothing to be read beside
                waited, start = 0.0, time.perf_counter()
        share = waited / (time.perf_counter() - start)
        batches.close()
    return bench_row("sae/feed/wait", dict(b.size._asdict()), share, "share of time", more_is_better=False)


class _Mixture:
    """Tokens [N, D] that are sums of 16 of 4096 directions with exponential weights."""

    def __init__(self, size: Size):
        self.size, self.rng = size, np.random.default_rng(2**31)  # not a seed of weights
        directions = self.rng.standard_normal((4096, size.d_in), np.float32)
        self.directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)

    def batches(self, count: int) -> np.ndarray:
        """[count, N, D]"""
        shape = (count, self.size.batch_size, 16)
        which, weight = self.rng.integers(4096, size=shape), self.rng.standard_exponential(shape, np.float32)
        return np.stack([np.einsum("nk,nkd->nd", w, self.directions[i]) for i, w in zip(which, weight)])


def _fvu(params: dict[str, Any], x: np.ndarray, k: int) -> float:
    """Of a TopK SAE, whoever trained it; x [N, D]."""
    pre = jnp.maximum((x - params["b_dec"]) @ params["W_enc_t"].T + params["b_enc"], 0)
    value, latent = jax.lax.top_k(pre, k)
    x_hat = np.einsum("nk,nkd->nd", value, np.asarray(params["W_dec"])[np.asarray(latent)]) + params["b_dec"]
    return float(((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum())
