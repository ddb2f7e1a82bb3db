"""Training state on disk: orbax's `CheckpointManager`, so that a killed run goes on from its last save."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from musae_jax.errors import MusaeError


class TrainingCheckpoints:
    """Numbered checkpoints of one pytree of arrays under `folder`; orbax renames a finished one into place."""

    def __init__(self, folder: str | Path, keep: int = 2):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(Path(folder).absolute(), options=options)

    def save(self, step: int, state: Any, note: dict) -> None:
        """Writes `state` and the JSON-able `note` (data position, config) under number `step`."""
        self._manager.save(
            step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), note=ocp.args.JsonSave(note))
        )
        self._manager.wait_until_finished()

    def note(self) -> dict | None:
        """The note of the newest checkpoint, or None where there is none."""
        step = self._manager.latest_step()
        if step is None:
            return None
        return self._manager.restore(step, args=ocp.args.Composite(note=ocp.args.JsonRestore()))["note"]

    def restore(self, template: Any) -> tuple[int, Any]:
        """(step, state) of the newest checkpoint; `template` is a state of the same training, in jax arrays.

        Raises:
          MusaeError: the checkpoint is of another state, or damaged.
        """
        step = self._manager.latest_step()
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract)))
        except ValueError as error:
            raise MusaeError(
                f"{self._manager.directory} holds the state of another training, or a damaged one; delete it, "
                "or choose another folder"
            ) from error
        return step, jax.tree.map(_as_before, restored["state"], template)

    def close(self) -> None:
        self._manager.close()


def _as_before(leaf: jax.Array, before: jax.Array) -> jax.Array:
    """A copy, because a training step gives its state's buffers away and orbax's may be shared; bound to a device where
    the state before was, or the step would be compiled again for a state of another kind."""
    return jnp.array(leaf if before.committed else np.asarray(leaf), copy=True)
