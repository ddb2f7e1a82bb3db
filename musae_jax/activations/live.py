"""Residuals computed when they are read: a store without a disk."""

import collections
import dataclasses
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from musae_jax.activations.harvest import SHARD_BYTES, clips_per_shard
from musae_jax.activations.residuals import check_layers, clip_residuals, describe_residuals, hook_name, order_clips
from musae_jax.activations.store import json_sha256, names_sha256
from musae_jax.audio.clips import Clip, split_tracks
from musae_jax.models.musicgen import MusicGen

KEPT_MB = 1024  # of residuals that wait for the streams of other layers


@dataclasses.dataclass
class LiveActivations:
    """One layer of a model over some clips; an `Activations` whose shards are run through the model at every read.

    A shard is a pure function of the weights and the sound, so nothing but the position in the stream needs saving: a
    resumed stream computes its buffer again, bit for bit on the same backend. (On a GPU a new process may choose other
    matrix kernels; `XLA_FLAGS=--xla_gpu_autotune_level=0` fixes them, and the training step needs it as much.)
    """

    name: str
    description: dict[str, Any]
    content_sha256: str
    layer: int
    model: "_Model"

    @property
    def d_in(self) -> int:
        """D, the width of the residual stream."""
        return self.description["d"]

    @property
    def positions(self) -> int:
        """P, the positions per clip: the start step, then the frames."""
        return self.description["positions"]

    @property
    def hook(self) -> str:
        return self.description["hook"]

    @property
    def clip_ids(self) -> tuple[str, ...]:
        return tuple(clip.id for clip in self.model.clips)

    @property
    def tracks(self) -> dict[str, str]:
        """Clip id -> the track it was cut from."""
        return {clip.id: clip.track for clip in self.model.clips}

    @property
    def split(self) -> dict[str, str]:
        """Clip id -> "label" or "score"."""
        return split_tracks(self.model.clips, self.description["split"]["seed"])

    def __len__(self) -> int:
        """The number of shards."""
        return -(-len(self.model.clips) // self.model.per_shard)

    def shard_clips(self, index: int) -> tuple[str, ...]:
        """The clip ids of one shard."""
        return tuple(clip.id for clip in self.model.members(index))

    def shard(self, index: int) -> tuple[tuple[str, ...], np.ndarray]:
        """(clip ids, residuals [n, P, D] float32) of one shard.

        Raises:
          MusaeError: a sound file cannot be read, or the model gives values that are not finite.
        """
        return self.shard_clips(index), self.model.residuals(index, self.layer)

    def shards(self) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
        """All shards in order, each as (clip ids, residuals [n, P, D])."""
        for index in range(len(self)):
            yield self.shard(index)


def live_activations(
    mg: MusicGen,
    clips: Sequence[Clip],
    layers: Iterable[int],
    seconds: float,
    batch_size: int = 8,
    model: str = "",
    shard_bytes: int = SHARD_BYTES,
    seed: int = 0,
) -> dict[int, LiveActivations]:
    """What `harvest` with the same arguments would write as float32, to the bit, computed when it is read.

    Layers that are read in step (one stream for several SAEs) share a pass of the model: whichever asks first has all
    of them computed, and the others are kept for a while.

    Raises:
      MusaeError: no clips, or a layer that the model lacks.
    """
    layers = check_layers(mg, layers)
    common = {**describe_residuals(mg, clips, seconds, model, seed), "dtype": "float32"}
    per_shard = clips_per_shard(common["positions"], common["d"], shard_bytes)
    shared = _Model(mg, tuple(order_clips(clips, seed, per_shard)), layers, seconds, batch_size, per_shard)
    ids = [clip.id for clip in shared.clips]
    common |= {"clips": len(ids), "clips_sha256": names_sha256(ids), "clips_per_shard": per_shard}
    stores = {}
    for layer in layers:
        description = {**common, "hook": hook_name(layer), "layer": layer}
        name = f"the live stream of {model or 'the model'} at {hook_name(layer)}"
        stores[layer] = LiveActivations(name, description, json_sha256(description), layer, shared)
    return stores


class _Model:
    """Runs shards through the model, all layers at once."""

    def __init__(self, mg, clips, layers, seconds, batch_size, per_shard):
        self.mg, self.clips, self.layers, self.seconds = mg, clips, layers, seconds
        self.batch_size, self.per_shard = batch_size, per_shard
        self._lock = threading.Lock()  # readers come from the threads of several streams
        self._kept: collections.OrderedDict[int, dict[int, np.ndarray]] = collections.OrderedDict()

    def members(self, shard: int) -> tuple[Clip, ...]:
        return self.clips[shard * self.per_shard : (shard + 1) * self.per_shard]

    def residuals(self, shard: int, layer: int) -> np.ndarray:
        """[n, P, D] of one layer; what the other layers gave is kept until they are read, `KEPT_MB` at most."""
        with self._lock:
            kept = self._kept.pop(shard, {})
            if layer not in kept:
                members = self.members(shard)
                starts = range(0, len(members), self.batch_size)
                parts = ((members[start : start + self.batch_size], self.layers) for start in starts)
                batches = list(clip_residuals(self.mg, parts, self.seconds, self.batch_size))
                kept = {layer: np.concatenate([part[layer] for part in batches]) for layer in self.layers}
            residuals = kept.pop(layer)
            if kept:
                self._kept[shard] = kept
            while sum(a.nbytes for kept in self._kept.values() for a in kept.values()) > KEPT_MB * 2**20:
                self._kept.popitem(last=False)  # the oldest; computed again, should it be read after all
            return residuals
