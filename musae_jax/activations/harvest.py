"""Music to residuals: encode the sound, run the decoder over the codes, keep the residual stream of chosen layers."""

import concurrent.futures
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from musae_jax.activations.store import DTYPES, Store, StoreWriter, open_store
from musae_jax.audio.clips import Clip, load_clip
from musae_jax.errors import MusaeError
from musae_jax.models.musicgen import MusicGen, encode_audio, forward

SHARD_BYTES = 32 * 2**20  # of float32; a killed harvest loses at most one shard of work

Progress = Callable[[int, int, str], None]


def hook_name(layer: int) -> str:
    """`blocks.{i}.resid_post`: the residual stream after block i, counted from 0."""
    return f"blocks.{layer}.resid_post"


def harvest(
    mg: MusicGen,
    clips: Sequence[Clip],
    layers: Sequence[int],
    seconds: float,
    out: str | Path,
    batch_size: int = 8,
    dtype: str = "float32",
    model: str = "",
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> dict[int, Store]:
    """Writes one activation store per layer to `out/blocks.{i}.resid_post` and returns them, open.

    Teacher-forced and unconditional (no text, one branch), as the published SAEs were trained: a clip of T frames
    gives P = T + 1 positions, the start step first. Clips are `seconds` long, zero-padded where shorter. Memory does
    not depend on the number of clips. A harvest that was killed goes on after its last whole shard; a finished one
    returns at once. `model` is the name recorded beside the hash of the weights; a shard
    holds about `shard_bytes` of float32; `progress` counts clips.

    Raises:
      MusaeError: no clips, a layer that the model lacks, `out` holds other activations, or the disk refuses a file.
    """
    out, layers = Path(out), tuple(dict.fromkeys(int(layer) for layer in layers))
    if not clips:
        raise MusaeError("there are no clips to harvest; give a folder of music")
    count, width = mg.config.decoder.num_hidden_layers, mg.config.decoder.hidden_size
    for layer in layers:
        if not 0 <= layer < count:
            raise MusaeError(f"layer {layer} is not in this model; choose from 0 to {count - 1}")
    if dtype not in DTYPES:
        raise MusaeError(f"activations cannot be stored as {dtype!r}; use {', '.join(DTYPES)}")
    samples = round(seconds * mg.config.sampling_rate)
    codes = jax.eval_shape(lambda params, audio: encode_audio(mg.config, params, audio), mg.params, _audio(1, samples))
    positions = codes.shape[-1] + 1
    common = {
        "model": model,
        "revision": weights_sha256(mg.params),
        "d": width,
        "positions": positions,
        "frame_rate": mg.config.frame_rate,
        "seconds": seconds,
        "delayed": True,
        "text": "none",
        "dtype": dtype,
    }
    ids = [clip.id for clip in clips]
    per_shard = max(1, shard_bytes // (4 * positions * width))
    writers = {
        layer: StoreWriter(out / hook_name(layer), {**common, "hook": hook_name(layer), "layer": layer}, ids, per_shard)
        for layer in layers
    }
    shards = range(min((writer.done for writer in writers.values()), default=0), -(-len(clips) // per_shard))
    done = min(shards.start * per_shard, len(clips))
    if progress:
        progress(done, len(clips), "clips")
    with concurrent.futures.ThreadPoolExecutor(1) as reader:  # the next batch is read while the model runs
        ahead = _read(reader, mg, clips, seconds, shards, per_shard, batch_size)
        for shard in shards:
            size = min(per_shard, len(clips) - shard * per_shard)
            todo = [layer for layer in layers if writers[layer].done == shard]
            blocks = {layer: np.empty((size, positions, width), DTYPES[dtype]) for layer in todo}
            for start in range(0, size, batch_size):
                real = min(batch_size, size - start)
                codes = encode_audio(mg.config, mg.params, next(ahead))  # [B, K, T]
                residuals = forward(mg.config, mg.params, codes, taps=tuple(todo), logits=False).residuals
                for layer in todo:
                    blocks[layer][start : start + real] = np.asarray(residuals[layer])[:real]  # [B, P, D]
                done += real
                if progress:
                    progress(done, len(clips), "clips")
            for layer in todo:
                bad = size - int(np.isfinite(blocks[layer].astype(np.float32)).all(axis=(1, 2)).sum())
                if bad:
                    raise MusaeError(
                        f"the model gives values that are not finite at {hook_name(layer)} for {bad} of {size} clips;"
                        " its weights are damaged, or another dtype than float16 is needed"
                    )
                writers[layer].write_shard(blocks[layer])
    return {layer: open_store(out / hook_name(layer)) for layer in layers}


def weights_sha256(params: Any) -> str:
    """A hash of every weight, with its name and shape: the model's revision wherever the file came from."""
    digest = hashlib.sha256()
    for path, leaf in sorted((jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree.leaves_with_path(params)):
        array = np.asarray(leaf)
        digest.update(f"{path}{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return digest.hexdigest()


def _audio(batch: int, samples: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch, samples), np.float32)


def _read(reader, mg, clips, seconds, shards, per_shard, batch_size):
    """Batches of sound [B, S], one ahead; the last batch of a shard is filled up with silence to keep one shape."""
    samples = round(seconds * mg.config.sampling_rate)

    def read(part: Sequence[Clip]) -> np.ndarray:
        audio = np.zeros((batch_size, samples), np.float32)
        for row, clip in enumerate(part):
            audio[row] = load_clip(clip, mg.config.sampling_rate, seconds)
        return audio

    batches = (
        clips[shard * per_shard : (shard + 1) * per_shard][start : start + batch_size]
        for shard in shards
        for start in range(0, min(per_shard, len(clips) - shard * per_shard), batch_size)
    )
    pending = None
    for part in batches:
        following = reader.submit(read, part)
        if pending is not None:
            yield pending.result()
        pending = following
    if pending is not None:
        yield pending.result()
