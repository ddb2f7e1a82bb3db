"""Shuffled batches of activations: bounded memory, the same stream for the same seed, and a place to go on from.

An epoch visits the shards in a random order, a few at a time: as many as fit the buffer. The tokens of such a group are
shuffled together and dealt out; a batch may take the end of one group and the start of the next, so no token is lost.
The stream is thus a fixed infinite sequence, and its state is one number, the tokens dealt so far. A store that fits
the buffer is one group, read once.
"""

import dataclasses
from collections.abc import Collection, Iterator

import numpy as np

from musae_jax.activations.store import Store
from musae_jax.errors import MusaeError


@dataclasses.dataclass
class Batches:
    """An endless iterator of float32 batches [batch_size, D].

    Attributes:
      store: where the activations lie.
      batch_size: N, in tokens.
      seed: of the order.
      clips: only these clip ids; all by default.
      drop_start: leave out position 0, which is the same vector in every clip.
      buffer_mb: the most memory for shuffled activations, in MiB (at least one shard is always held).
      tokens: how many were dealt so far; the whole state.
    """

    store: Store
    batch_size: int
    seed: int = 0
    clips: Collection[str] | None = None
    drop_start: bool = True
    buffer_mb: int = 512
    tokens: int = 0

    def __post_init__(self):
        first = 1 if self.drop_start else 0
        wanted = None if self.clips is None else set(self.clips)
        self._rows = [  # per shard, the numbers of the clips to take
            np.array([i for i, id in enumerate(row["clips"]) if wanted is None or id in wanted], np.int64)
            for row in self.store.rows
        ]
        per_clip = self.store.positions - first
        self._sizes = [len(rows) * per_clip for rows in self._rows]  # tokens per shard
        self._used = [shard for shard, size in enumerate(self._sizes) if size]
        if not self._used:
            raise MusaeError(f"none of the {len(wanted or ())} clips to use is in {self.store.folder}; harvest them")
        self._first = first
        self._loaded: tuple[tuple[int, ...], np.ndarray] | None = None  # shards, tokens [n, D] before shuffling
        self._group: tuple[tuple[int, int], np.ndarray] | None = None  # (epoch, group), order of its tokens
        self._plan: tuple[int, list[tuple[int, ...]]] | None = None

    @property
    def epoch_tokens(self) -> int:
        """Tokens in one epoch."""
        return sum(self._sizes)

    def state(self) -> dict[str, int]:
        """What `restore` needs to go on, as plain JSON."""
        return {"tokens": self.tokens, "epoch_tokens": self.epoch_tokens, "seed": self.seed}

    def restore(self, state: dict[str, int]) -> None:
        """Goes on after a `state()` of the same stream."""
        if {**self.state(), "tokens": 0} != {**state, "tokens": 0}:
            raise MusaeError(
                f"the saved training state belongs to other activations ({state['epoch_tokens']} tokens an epoch, seed"
                f" {state['seed']}; {self.store.folder} gives {self.epoch_tokens}, seed {self.seed});"
                " delete the SAE's folder and train again"
            )
        self.tokens = state["tokens"]

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def __next__(self) -> np.ndarray:
        """The next batch, float32 [batch_size, D]."""
        parts, missing = [], self.batch_size
        while missing:
            epoch, offset = divmod(self.tokens, self.epoch_tokens)
            groups = self._groups(epoch)
            number = 0
            while offset >= (size := sum(self._sizes[shard] for shard in groups[number])):
                offset -= size
                number += 1
            buffer, order = self._shuffled(epoch, number, groups[number])
            part = buffer[order[offset : offset + missing]]
            parts.append(part)
            missing -= len(part)
            self.tokens += len(part)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _groups(self, epoch: int) -> list[tuple[int, ...]]:
        """The shards of each group of an epoch, in the order in which they are visited."""
        if self._plan is None or self._plan[0] != epoch:
            limit = self.buffer_mb * 2**20 // (4 * self.store.d_in)
            if self.epoch_tokens <= limit:
                groups = [tuple(self._used)]
            else:
                groups, size = [], limit
                for shard in np.random.default_rng([self.seed, epoch]).permutation(self._used).tolist():
                    if size + self._sizes[shard] > limit:
                        groups.append(())
                        size = 0
                    groups[-1] += (shard,)
                    size += self._sizes[shard]
            self._plan = epoch, groups
        return self._plan[1]

    def _shuffled(self, epoch: int, number: int, shards: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        if self._loaded is None or self._loaded[0] != shards:
            self._loaded = None  # freed before the next group is read
            buffer = np.empty((sum(self._sizes[shard] for shard in shards), self.store.d_in), np.float32)
            start = 0
            for shard in shards:
                _, residuals = self.store.shard(shard)  # [n, P, D]
                for row in self._rows[shard]:  # clip by clip, so that no second copy of the shard is made
                    tokens = residuals[row, self._first :]
                    buffer[start : start + len(tokens)] = tokens
                    start += len(tokens)
            self._loaded = shards, buffer
        if self._group is None or self._group[0] != (epoch, number):
            order = np.random.default_rng([self.seed, epoch, number, 1]).permutation(len(self._loaded[1]))
            self._group = (epoch, number), order
        return self._loaded[1], self._group[1]
