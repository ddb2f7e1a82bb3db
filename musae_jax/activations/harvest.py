"""From a model and music to an activation store for each layer."""

from collections.abc import Callable, Iterable, Sequence
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
    progress: Progress | None = None,
) -> dict[int, Store]:
    """Writes one activation store per layer to `out/blocks.{i}.resid_post` and returns them, open.

    Teacher-forced and unconditional; clips are `seconds` long, zero-padded where shorter, and written in an order drawn
    from `seed`, from which the split by track also comes. `out` is a folder or a URL (gs://…, s3://…). Memory does not
    depend on the number of clips. A harvest that was killed goes on with the shards that are missing; a finished one
    returns at once. `model` is the name recorded beside the hash of the weights; `dtype` is "float32", "bfloat16" or
    "float16"; a shard holds about `shard_bytes` of float32; `progress` counts clips.

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
    lacking = {layer: set(writer.missing) for layer, writer in writers.items()}
    todo = {  # shard -> the layers that lack it
        shard: tuple(layer for layer in layers if shard in lacking[layer])
        for shard in sorted(set().union(*lacking.values()))
    }
    members = {shard: clips[shard * per_shard : (shard + 1) * per_shard] for shard in todo}
    done = len(clips) - sum(map(len, members.values()))
    if progress:
        progress(done, len(clips), "clips")
    parts = [
        (members[shard][start : start + batch_size], todo[shard])
        for shard in todo
        for start in range(0, len(members[shard]), batch_size)
    ]
    residuals = clip_residuals(mg, parts, seconds, batch_size)
    for shard, missing in todo.items():
        size = len(members[shard])
        blocks = {layer: np.empty((size, positions, width), DTYPES[dtype]) for layer in missing}
        for start in range(0, size, batch_size):
            part = next(residuals)
            for layer in missing:
                blocks[layer][start : start + batch_size] = part[layer]
            done += min(batch_size, size - start)
            if progress:
                progress(done, len(clips), "clips")
        for layer in missing:
            if dtype == "float16" and not np.isfinite(blocks[layer]).all():
                raise MusaeError(f"{hook_name(layer)} holds values that float16 cannot; use bfloat16 or float32")
            writers[layer].write_shard(blocks[layer])
    return {layer: open_store(writers[layer].folder) for layer in layers}


def clips_per_shard(positions: int, width: int, shard_bytes: int) -> int:
    """How many clips of [positions, width] float32 a shard of about `shard_bytes` holds."""
    return max(1, shard_bytes // (4 * positions * width))
