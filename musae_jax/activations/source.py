"""What trainer, measures and features read: activations in shards of whole clips, from a disk or from a model."""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np


class Activations(Protocol):
    """Activations of one hook of one model. `store.Store` reads them, `live.LiveActivations` computes them.

    The same shard always holds the same numbers, so a position in a stream of batches is enough to go on from.

    Attributes:
      name: what to call them in a message.
      description: what they are; the keys are those of the store's protocol.
      content_sha256: equal for equal activations.
      d_in: D, their width.
      positions: P a clip, the start step first.
      hook: `blocks.{i}.resid_post`.
      clip_ids: of all clips, in order.
    """

    name: str
    description: dict[str, Any]
    content_sha256: str

    @property
    def d_in(self) -> int: ...

    @property
    def positions(self) -> int: ...

    @property
    def hook(self) -> str: ...

    @property
    def clip_ids(self) -> tuple[str, ...]: ...

    def __len__(self) -> int:
        """The number of shards."""
        ...

    def shard_clips(self, index: int) -> tuple[str, ...]:
        """The clip ids of one shard."""
        ...

    def shard(self, index: int) -> tuple[tuple[str, ...], np.ndarray]:
        """(clip ids, residuals [n, P, D]) of one shard, read-only; may be called from another thread."""
        ...

    def shards(self) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
        """All shards in order."""
        ...
