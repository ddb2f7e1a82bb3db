"""Shuffled batches of activations: bounded memory, the same stream for the same seed, and a place to go on from.

An epoch visits the shards in a random order, a group at a time, and reads each of them once and from end to end. The
tokens of a group are shuffled together and dealt out; a batch may take the end of one group and the start of the next,
so no token is lost. While one group is dealt, a thread reads the next, so that training does not wait for the disk, the
network or the model; each group takes half of the buffer. Activations that fit the buffer are one group, read once.

The stream is a fixed infinite sequence, a function of the activations, the seed and the buffer's size. Its state is one
number, the tokens dealt so far: the order is drawn again from the seed, and the buffer is read, or computed, again.
"""

import concurrent.futures
import dataclasses
import threading
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from musae_jax.activations.source import Activations
from musae_jax.activations.store import DTYPES
from musae_jax.errors import MusaeError

READERS = 4  # shards read at a time: hashing runs at about 1 GB/s a core, and an object store's connections are slower


@dataclasses.dataclass
class Batches:
    """An endless iterator of float32 batches [batch_size, D].

    Attributes:
      store: the activations, on disk or live.
      batch_size: N, in tokens.
      seed: of the order.
      clips: only these clip ids; all by default.
      drop_start: leave out position 0, which is the same vector in every clip.
      buffer_mb: the most memory for tokens, in MiB, but a group is at least one shard. On top come the shards being
        read, four at a time, if they are not mapped from disk.
      read_ahead: read the next group while one is dealt; the stream is the same without.
      tokens: how many were dealt so far; the whole state.
    """

    store: Activations
    batch_size: int
    seed: int = 0
    clips: Collection[str] | None = None
    drop_start: bool = True
    buffer_mb: float = 512
    read_ahead: bool = True
    tokens: int = 0

    def __post_init__(self):
        if self.batch_size < 1:
            raise MusaeError(f"the batch size is {self.batch_size}, but it must be at least 1")
        wanted = None if self.clips is None else set(self.clips)
        self._rows = [  # per shard, the numbers of the clips to take
            [i for i, id in enumerate(self.store.shard_clips(shard)) if wanted is None or id in wanted]
            for shard in range(len(self.store))
        ]
        self._first = int(self.drop_start)
        per_clip = self.store.positions - self._first
        self._sizes = [len(rows) * per_clip for rows in self._rows]  # tokens per shard
        if not sum(self._sizes):
            raise MusaeError(f"none of the {len(wanted or ())} clips to use is in {self.store.name}; harvest them")
        self._plans: dict[int, _Plan] = {}
        self._at: tuple[int, int] | None = None  # the group that is dealt: (epoch, number in the epoch)
        self._order = np.zeros(0, np.int64)  # of its tokens
        self._held: tuple[_Shards, np.ndarray] = (), np.zeros(0)  # its shards and their tokens [n, D] before shuffling
        self._ahead: _Ahead | None = None
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "read-ahead")

    @property
    def epoch_tokens(self) -> int:
        """Tokens in one epoch."""
        return sum(self._sizes)

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on, as plain JSON."""
        return {
            "tokens": self.tokens,
            "epoch_tokens": self.epoch_tokens,
            "seed": self.seed,
            "buffer_mb": self.buffer_mb,
            "content_sha256": self.store.content_sha256,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on after a `state()` of the same stream.

        Raises:
          MusaeError: the state is of another stream.
        """
        for name, here in self.state().items():
            if name != "tokens" and state.get(name) != here:
                raise MusaeError(
                    f"the saved training state belongs to other activations ({name} is {state.get(name)!r} there, and"
                    f" {here!r} for {self.store.name}); delete the SAE's folder and train again"
                )
        self.tokens = state["tokens"]

    def close(self) -> None:
        """Ends reading ahead; without it, the process ends only when the next group has been read."""
        if self._ahead is not None:
            self._ahead.stop.set()
        self._ahead, self.read_ahead = None, False
        self._thread.shutdown()

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def __next__(self) -> np.ndarray:
        """The next batch, float32 [batch_size, D]."""
        batch = np.empty((self.batch_size, self.store.d_in), np.float32)
        filled = 0
        while filled < self.batch_size:
            epoch, offset = divmod(self.tokens + filled, self.epoch_tokens)
            ends = self._plan(epoch).ends
            number = int(np.searchsorted(ends, offset, side="right"))
            self._deal_from(epoch, number)
            start = offset - (ends[number - 1] if number else 0)
            rows = self._order[start : start + self.batch_size - filled]
            tokens, part = self._held[1], batch[filled : filled + len(rows)]
            if tokens.dtype == part.dtype:
                np.take(tokens, rows, axis=0, out=part, mode="clip")  # 2 to 3 times as fast as part[:] = tokens[rows]
            else:
                part[:] = tokens[rows]
            filled += len(rows)
        self.tokens += filled  # not before the batch is whole: after an error the state still says where to go on
        return batch

    def _plan(self, epoch: int) -> "_Plan":
        """The groups of an epoch."""
        if epoch not in self._plans:
            used = [shard for shard, size in enumerate(self._sizes) if size]
            limit = self.buffer_mb * 2**20 / (self.store.d_in * self._dtype.itemsize)  # tokens
            if self.epoch_tokens <= limit:
                groups = [tuple(used)]
            else:
                groups, size = [], limit
                for shard in np.random.default_rng([self.seed, epoch]).permutation(used).tolist():
                    if size + self._sizes[shard] > limit / 2:
                        groups.append(())
                        size = 0
                    groups[-1] += (shard,)
                    size += self._sizes[shard]
            ends = np.cumsum([sum(self._sizes[shard] for shard in group) for group in groups])
            self._plans = {e: plan for e, plan in self._plans.items() if abs(e - epoch) <= 1}
            self._plans[epoch] = _Plan(groups, ends)
        return self._plans[epoch]

    @property
    def _dtype(self) -> np.dtype:
        return DTYPES[self.store.description["dtype"]]

    def _deal_from(self, epoch: int, number: int) -> None:
        """Brings group `number` of an epoch into memory, and has the one after it read."""
        if self._at == (epoch, number):
            return
        groups = self._plan(epoch).groups
        shards = groups[number]
        if self._held[0] != shards:
            self._at, self._held = None, ((), np.zeros(0))  # freed before more is read, which may also fail
            self._held = shards, self._take_ahead(shards)
        self._order = np.random.default_rng([self.seed, epoch, number, 1]).permutation(len(self._held[1]))
        self._at = epoch, number
        following = groups[number + 1] if number + 1 < len(groups) else self._plan(epoch + 1).groups[0]
        if self.read_ahead and following != shards and self._ahead is None:
            stop = threading.Event()
            self._ahead = _Ahead(following, stop, self._thread.submit(self._load, following, stop))

    def _take_ahead(self, shards: "_Shards") -> np.ndarray:
        """The tokens of these shards: what the thread read if it read them, else read now."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead.shards == shards:
            return ahead.tokens.result()
        if ahead is not None:  # after `restore`
            ahead.stop.set()
            concurrent.futures.wait([ahead.tokens])
        return self._load(shards, threading.Event())

    def _load(self, shards: "_Shards", stop: threading.Event) -> np.ndarray:
        """The tokens of some shards in their order, in the stored dtype [n, D]."""
        ends = np.cumsum([self._sizes[shard] for shard in shards])
        tokens = np.empty((ends[-1], self.store.d_in), self._dtype)

        def read(shard: int, end: int) -> None:
            if stop.is_set():
                return  # nobody waits for it
            _, residuals = self.store.shard(shard)  # [n, P, D]
            start = end - self._sizes[shard]
            for row in self._rows[shard]:  # clip by clip, so that no second copy of the shard is made
                clip = residuals[row, self._first :]
                tokens[start : start + len(clip)] = clip
                start += len(clip)

        with concurrent.futures.ThreadPoolExecutor(READERS, "read-shard") as readers:
            for done in [readers.submit(read, shard, int(end)) for shard, end in zip(shards, ends)]:
                try:
                    done.result()
                except BaseException:
                    stop.set()  # the others need not be read either
                    raise
        return tokens


_Shards = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class _Plan:
    groups: list[_Shards]  # the shards of each group, in the order in which they are visited
    ends: np.ndarray  # where each group ends, in tokens of the epoch


@dataclasses.dataclass(frozen=True)
class _Ahead:
    shards: _Shards
    stop: threading.Event
    tokens: concurrent.futures.Future
