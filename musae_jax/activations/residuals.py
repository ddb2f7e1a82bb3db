"""Music through the model: encode the sound, run the decoder over the codes, hand out the residual stream of layers."""

import concurrent.futures
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from musae_jax.audio.clips import Clip, load_clip, split_tracks
from musae_jax.errors import MusaeError
from musae_jax.models.layout import equal_rows, place_rows
from musae_jax.models.musicgen import MusicGen, encode_audio, forward


def hook_name(layer: int) -> str:
    """`blocks.{i}.resid_post`: the residual stream after block i, counted from 0."""
    return f"blocks.{layer}.resid_post"


def describe_residuals(mg: MusicGen, clips: Sequence[Clip], seconds: float, model: str, seed: int) -> dict[str, Any]:
    """The part of a store's description (see `store`) that all layers share, without dtype and clips.

    Teacher-forced and unconditional (no text, one branch), as the published SAEs were trained: a clip of T frames gives
    P = T + 1 positions, the start step first.

    Raises:
      MusaeError: there are no clips.
    """
    if not clips:
        raise MusaeError("there are no clips to harvest; give a folder of music")
    samples = jax.ShapeDtypeStruct((1, round(seconds * mg.config.sampling_rate)), np.float32)
    codes = jax.eval_shape(lambda params, audio: encode_audio(mg.config, params, audio), mg.params, samples)
    return {
        "model": model,
        "revision": weights_sha256(mg.params),
        "codec": {
            "revision": weights_sha256(mg.params["audio"]),
            "sampling_rate": mg.config.sampling_rate,
            "codebooks": codes.shape[1],
        },
        "d": mg.config.decoder.hidden_size,
        "positions": codes.shape[-1] + 1,
        "frame_rate": mg.config.frame_rate,
        "seconds": float(seconds),
        "delayed": True,
        "text": "none",
        "order": {"seed": seed},
        "split": {"seed": seed},
    }


def check_layers(mg: MusicGen, layers: Iterable[int]) -> tuple[int, ...]:
    """The layers, each once; one that the model lacks is a `MusaeError`."""
    layers = tuple(dict.fromkeys(int(layer) for layer in layers))
    count = mg.config.decoder.num_hidden_layers
    for layer in layers:
        if not 0 <= layer < count:
            raise MusaeError(f"layer {layer} is not in this model; choose from 0 to {count - 1}")
    return layers


def order_clips(clips: Sequence[Clip], seed: int, per_shard: int) -> list[Clip]:
    """The clips in the order of a store with `per_shard` of them in a shard; the rule is in the store's protocol.

    A folder's order does not shine through, and whoever wants one half of the tracks reads, or computes, little else.
    """
    clips = sorted(clips, key=lambda clip: hashlib.sha256(f"{seed}:{clip.id}".encode()).digest())
    split = split_tracks(clips, seed)
    halves = [[clip for clip in clips if split[clip.id] == half] for half in ("label", "score")]
    whole = [len(half) // per_shard * per_shard for half in halves]
    ordered = []
    for start in range(0, max(whole), per_shard):
        for half, end in zip(halves, whole):
            ordered += half[start : min(start + per_shard, end)]
    return ordered + halves[0][whole[0] :] + halves[1][whole[1] :]


def clip_residuals(
    mg: MusicGen, parts: Iterable[tuple[Sequence[Clip], tuple[int, ...]]], seconds: float, batch_size: int
) -> Iterator[dict[int, np.ndarray]]:
    """For each part, (at most `batch_size` clips, layers): {layer: residuals [n, P, D]}, float32.

    Every pass has `batch_size` rows, filled up with silence, to keep one shape; where the parameters lie on several
    devices (`models.layout`) these share them equally, and there may be a few more. The sound of the next part is read
    while the model runs, and a part's numbers are fetched while the next one is computed.

    Raises:
      MusaeError: a sound file cannot be read, or the model gives values that are not finite.
    """
    samples, rows = round(seconds * mg.config.sampling_rate), equal_rows(mg.params, batch_size)

    def read(clips: Sequence[Clip]) -> np.ndarray:
        audio = np.zeros((rows, samples), np.float32)
        for row, clip in enumerate(clips):
            audio[row] = load_clip(clip, mg.config.sampling_rate, seconds)
        return audio

    def fetch(count: int, residuals: dict[int, jax.Array]) -> dict[int, np.ndarray]:
        arrays = {layer: np.asarray(array, np.float32)[:count] for layer, array in residuals.items()}
        for layer, array in arrays.items():
            bad = count - int(np.isfinite(array).all(axis=(1, 2)).sum())
            if bad:
                raise MusaeError(
                    f"the model gives values that are not finite at {hook_name(layer)} for {bad} of {count} clips;"
                    " its weights are damaged"
                )
        return arrays

    with concurrent.futures.ThreadPoolExecutor(1, "read-sound") as reader:
        waiting = running = None
        for part in itertools.chain(parts, [None]):
            following = None if part is None else (part, reader.submit(read, part[0]))
            if waiting is not None:
                (clips, layers), audio = waiting
                codes = encode_audio(mg.config, mg.params, place_rows(mg.params, audio.result()))  # [B, K, T]
                started = len(clips), forward(mg.config, mg.params, codes, taps=layers, logits=False).residuals
                if running is not None:
                    yield fetch(*running)
                running = started
            waiting = following
        if running is not None:
            yield fetch(*running)


def weights_sha256(params: Any) -> str:
    """A hash of every weight, with its name and shape: the model's revision wherever the file came from."""
    digest = hashlib.sha256()
    for path, leaf in sorted((jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree.leaves_with_path(params)):
        array = np.asarray(leaf)
        digest.update(f"{path}{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return digest.hexdigest()
