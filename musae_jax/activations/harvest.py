"""From a model and music to an activation store for each layer."""

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from musae_jax.activations.residuals import check_layers, clip_residuals, describe_residuals, hook_name, order_clips
from musae_jax.activations.store import DTYPES, Store, StoreWriter, open_store
from musae_jax.audio.clips import Clip, split_tracks
from musae_jax.errors import MusaeError
from musae_jax.models.musicgen import MusicGen
from musae_jax.places import Place, inside, open_place

SHARD_BYTES = 32 * 2**20  # of float32; a killed harvest loses at most one shard of work

Progress = Callable[[int, int, str], None]


def harvest(
    mg: MusicGen,
    clips: Sequence[Clip],
    layers: Iterable[int],
    seconds: float,
    out: str | Path | Place,
    batch_size: int = 8,
    dtype: str = "float32",
    model: str = "",
    shard_bytes: int = SHARD_BYTES,
    seed: int = 0,
    process: int = 0,
    processes: int = 1,
    progress: Progress | None = None,
) -> dict[int, Store]:
    """Writes one activation store per layer to `out/blocks.{i}.resid_post` and returns them, open.

    Teacher-forced and unconditional; clips are `seconds` long, zero-padded where shorter, and written in an order drawn
    from `seed`, from which the split by track also comes. `out` is a folder or a URL (gs://…, s3://…). Memory does not
    depend on the number of clips. A harvest that was killed goes on with the shards that are missing; a finished one
    returns at once. `model` is the name recorded beside the hash of the weights; `dtype` is "float32", "bfloat16" or
    "float16"; a shard holds about `shard_bytes` of float32; `progress` counts clips.

    The devices are those that the parameters lie on (`models.layout`). Several `processes`, on machines that all see
    `out`, call this with the same arguments and each its own `process`, from 0. They say nothing to each other: each
    writes its share of the shards and then those still missing, so that it returns when all are there, whatever has
    become of the others.

    Raises:
      MusaeError: no clips, a layer that the model lacks, `out` holds other activations, the model gives values that
        are not finite or too large for the dtype, or the disk refuses a file.
    """
    place, layers = open_place(out), check_layers(mg, layers)
    if dtype not in DTYPES:
        raise MusaeError(f"activations cannot be stored as {dtype!r}; use {', '.join(DTYPES)}")
    common = {**describe_residuals(mg, clips, seconds, model, seed), "dtype": dtype}
    positions, width = common["positions"], common["d"]
    per_shard = clips_per_shard(positions, width, shard_bytes)
    clips, split = order_clips(clips, seed, per_shard), split_tracks(clips, seed)
    writers = {
        layer: StoreWriter(
            inside(place, hook_name(layer)),
            {**common, "hook": hook_name(layer), "layer": layer},
            [clip.id for clip in clips],
            per_shard,
            tracks={clip.id: clip.track for clip in clips},
            split=split,
        )
        for layer in layers
    }
    members = [clips[start : start + per_shard] for start in range(0, len(clips), per_shard)]  # of each shard
    done = 0

    def add(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, len(clips), "clips")

    lacking = set().union(*(writer.missing for writer in writers.values()))
    add(len(clips) - sum(len(members[shard]) for shard in lacking))
    planned: collections.deque[tuple[int, tuple[int, ...]]] = collections.deque()  # shards and the layers to write

    def parts() -> Iterator[tuple[list[Clip], tuple[int, ...]]]:
        """What the model is to read, asked for shortly before it does."""
        for shard in divide(sorted(lacking), process, processes):
            todo = tuple(layer for layer in layers if not writers[layer].has_shard(shard))
            if not todo:  # another process was here
                add(len(members[shard]))
                continue
            planned.append((shard, todo))
            for start in range(0, len(members[shard]), batch_size):
                yield members[shard][start : start + batch_size], todo

    filled, blocks = 0, {}
    for residuals in clip_residuals(mg, parts(), seconds, batch_size):
        shard, todo = planned[0]
        if not filled:
            shape = len(members[shard]), positions, width
            blocks = {layer: np.empty(shape, DTYPES[dtype]) for layer in todo}
        count = len(residuals[todo[0]])
        for layer in todo:
            blocks[layer][filled : filled + count] = residuals[layer]
        filled += count
        add(count)
        if filled < len(members[shard]):
            continue
        for layer in todo:
            if dtype == "float16" and not np.isfinite(blocks[layer]).all():
                raise MusaeError(f"{hook_name(layer)} holds values that float16 cannot; use bfloat16 or float32")
            writers[layer].write_shard(blocks[layer], shard)
        planned.popleft()
        filled = 0
    return {layer: open_store(writers[layer].folder) for layer in layers}


def divide(shards: Sequence[int], process: int, processes: int) -> list[int]:
    """The order in which a process takes shards: its own share, then the others', at random so that those who help
    seldom do the same."""
    own = [shard for shard in shards if shard % processes == process]
    others = [shard for shard in shards if shard % processes != process]
    return own + np.random.default_rng(process).permutation(others).astype(int).tolist()


def clips_per_shard(positions: int, width: int, shard_bytes: int) -> int:
    """How many clips of [positions, width] float32 a shard of about `shard_bytes` holds."""
    return max(1, shard_bytes // (4 * positions * width))
