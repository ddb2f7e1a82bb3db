"""Activations of a dictionary over a corpus, held in memory: sparse for an SAE, dense for raw neurons.

One row per frame, clip after clip: row n·T + t is frame t of clip n. The start step of the decoder is dropped here,
once, so that frame t is the position that has just read codebook 0 of frame t and lines up with truth at 50 Hz.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import jax
import numpy as np
import scipy.sparse

from musae_jax.errors import MusaeError

Pooling = Literal["mean", "max", "share"]
Encode = Callable[[jax.Array], jax.Array]  # [N, d_in] -> [N, F]


@dataclass(frozen=True)
class Activity:
    """What a dictionary of F features did in n clips of T frames each.

    `values` is [n·T, F], a scipy CSR array or a NumPy array; the functions of this project take both. `stream_mean`
    [n, D], where it is known, is the mean over each clip's frames of what the dictionary read.
    """

    clip_ids: tuple[str, ...]
    frames: int
    values: Any
    stream_mean: np.ndarray | None = None

    def __post_init__(self):
        if self.values.shape[0] != len(self.clip_ids) * self.frames:
            raise ValueError(
                f"{self.values.shape[0]} rows cannot be {len(self.clip_ids)} clips of {self.frames} frames"
            )

    @property
    def features(self) -> int:
        """F, the number of features."""
        return self.values.shape[1]

    @cached_property
    def clip_mean(self) -> np.ndarray:
        """Mean activation over the frames of each clip. [n, F]"""
        if scipy.sparse.issparse(self.values):
            clips, frames = len(self.clip_ids), self.frames
            ones = np.full(clips * frames, 1.0 / frames, np.float32)
            pool = scipy.sparse.csr_array((ones, (np.repeat(np.arange(clips), frames), np.arange(clips * frames))))
            return np.asarray((pool @ self.values).todense(), np.float32)
        return self.values.reshape(len(self.clip_ids), self.frames, -1).mean(1, dtype=np.float32)

    @cached_property
    def clip_max(self) -> np.ndarray:
        """Greatest activation in each clip. [n, F]"""
        if not scipy.sparse.issparse(self.values):
            return self.values.reshape(len(self.clip_ids), self.frames, -1).max(1)
        maximum = np.zeros((len(self.clip_ids), self.features), np.float32)
        matrix = scipy.sparse.csr_array(self.values)
        for clip in range(len(self.clip_ids)):
            rows = slice(matrix.indptr[clip * self.frames], matrix.indptr[(clip + 1) * self.frames])
            np.maximum.at(maximum[clip], matrix.indices[rows], matrix.data[rows])
        return maximum

    @cached_property
    def clip_share(self) -> np.ndarray:
        """Share of the frames of each clip on which a feature is above 0. [n, F]"""
        return Activity(self.clip_ids, self.frames, self.values > 0).clip_mean

    def pooled(self, pooling: Pooling) -> np.ndarray:
        """One number a clip: its mean activation, the greatest, or the share of frames that are active. [n, F]"""
        return getattr(self, f"clip_{pooling}")

    def rows(self, clips: Sequence[int] | np.ndarray) -> np.ndarray:
        """Row numbers of the frames of the clips numbered `clips`, in that order. [len(clips)·T]"""
        return (np.asarray(clips)[:, None] * self.frames + np.arange(self.frames)).reshape(-1)

    def subset(self, clips: Sequence[int] | np.ndarray) -> "Activity":
        """The same dictionary over some of the clips, given by their numbers."""
        means = None if self.stream_mean is None else self.stream_mean[np.asarray(clips, int)]
        return Activity(tuple(self.clip_ids[c] for c in clips), self.frames, self.values[self.rows(clips)], means)

    def curve(self, clip: int, feature: int) -> np.ndarray:
        """Activation of one feature over one clip, at the frame rate. [T]"""
        rows = self.values[clip * self.frames : (clip + 1) * self.frames, [feature]]
        return np.asarray(rows.todense() if scipy.sparse.issparse(rows) else rows, np.float32).reshape(-1)


def encode_store(
    store: Any,
    encode: Encode,
    drop_start: bool = True,
    chunk: int = 4096,
    progress: Callable[[int, int, str], None] | None = None,
) -> Activity:
    """Runs every activation of `store` through `encode` and keeps what is not zero.

    `store` gives `.clip_ids` and `.shards()`, an iterator of (ids, residuals [n, P, d_in]); `encode` maps [N, d_in] to
    [N, F] and is compiled once for `chunk` rows. Memory grows with the number of non-zero activations only. `progress`
    is called with the number of clips done, their number, and "clips".
    """
    encode = jax.jit(encode)
    ids: list[str] = []
    blocks, means = [], []
    frames = None
    for names, residuals in store.shards():
        residuals = residuals[:, 1:] if drop_start else residuals  # [n, T, d_in]
        frames = residuals.shape[1] if frames is None else frames
        if residuals.shape[1] != frames:
            raise MusaeError(
                f"a shard of the store has {residuals.shape[1]} frames a clip, the first has {frames}; harvest again"
            )
        flat = residuals.reshape(-1, residuals.shape[-1])  # [N, d_in]
        for start in range(0, len(flat), chunk):
            part = np.asarray(flat[start : start + chunk], np.float32)
            padded = np.zeros((chunk, part.shape[1]), np.float32)  # one shape, one compilation
            padded[: len(part)] = part
            blocks.append(scipy.sparse.csr_array(np.asarray(encode(padded), np.float32)[: len(part)]))
        ids += list(names)
        means.append(residuals.mean(1, dtype=np.float32))
        if progress:
            progress(len(ids), len(store.clip_ids), "clips")
    if not ids:
        raise MusaeError("the activation store holds no clips; harvest some music first")
    values = scipy.sparse.csr_array(scipy.sparse.vstack(blocks, format="csr"))
    return Activity(tuple(ids), frames, values, np.concatenate(means))


def sae_activity(store: Any, sae: Any, **options: Any) -> Activity:
    """What the features of `sae` (an `SAE(config, params)`) do over `store`; options as for `encode_store`."""
    from musae_jax.sae.sae import sae_encode

    return encode_store(store, lambda x: sae_encode(sae.config, sae.params, x), **options)


def neuron_activity(store: Any, drop_start: bool = True, limit: int = 2**28) -> Activity:
    """The residual stream itself, as a dictionary of d_in neurons, the baseline that an SAE must beat.

    At most `limit` numbers are held: beyond that only the first clips are kept, which says so through `clip_ids`.
    """
    ids: list[str] = []
    blocks = []
    for names, residuals in store.shards():
        block = np.asarray(residuals[:, 1:] if drop_start else residuals, np.float32)
        ids += list(names)
        blocks.append(block)
        if sum(b.size for b in blocks) >= limit:
            break
    if not ids:
        raise MusaeError("the activation store holds no clips; harvest some music first")
    values = np.concatenate(blocks)  # [n, T, d_in]
    return Activity(tuple(ids), values.shape[1], values.reshape(-1, values.shape[-1]))
