"""What is done with whole `Edits`, whatever they hold: several in one, a schedule, one branch, a batch row each.

Values change no shapes, so another schedule, branch or row compiles nothing again.
"""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from musae_jax.errors import MusaeError
from musae_jax.models.edits import Edits, FunctionEdit, PerRow, functions_of, map_functions

Branches = Literal["both", "conditional", "unconditional"]
_SHARES = {"conditional": (1.0, 0.0), "unconditional": (0.0, 1.0)}


def combine(*edits: Edits) -> Edits:
    """All of them in one: vectors of a layer are added up, functions follow one another in the order given.

    Each function is given the stream as all vectors and the functions before it left it.
    """
    vectors: dict[int, jax.Array] = {}
    functions: dict[int, tuple[FunctionEdit, ...]] = {}
    for one in edits:
        for layer, vector in one.vectors.items():
            vector = jnp.asarray(vector, jnp.float32)
            if layer in vectors:
                vectors[layer] = jnp.add(*_same_length(vectors[layer], vector, axis=-2))
            else:
                vectors[layer] = vector
        for layer in one.functions:
            functions[layer] = functions.get(layer, ()) + functions_of(one, layer)
    return Edits(vectors=vectors, functions=functions)


def during(edits: Edits, factors: Any) -> Edits:
    """The edits times a schedule: 1 is the whole change, 0 none, 0.5 half of it.

    `factors` are [P] (one a position, the last for all that come after), [B, P] or [G, B, P]; see `schedules`.
    """
    factors = jnp.asarray(factors, jnp.float32)
    vectors = {}
    for layer, vector in edits.vectors.items():
        vector = jnp.atleast_2d(jnp.asarray(vector, jnp.float32))  # [..., P, D]
        vectors[layer] = jnp.multiply(*_same_length(vector, factors[..., None], axis=-2))

    def scheduled(edit: FunctionEdit) -> FunctionEdit:
        gate = jnp.atleast_1d(jnp.asarray(edit.gate, jnp.float32))
        return edit.replace(gate=jnp.multiply(*_same_length(gate, factors, axis=-1)))

    return Edits(vectors=vectors, functions=map_functions(edits, scheduled))


def on_branches(edits: Edits, branches: Branches) -> Edits:
    """The edits in one branch of classifier-free guidance only, or as they are ("both").

    Guidance mixes u + s · (c − u): what is done to the conditional branch alone counts s times, what is done to the
    unconditional alone 1 − s times, so there steering turns around.
    """
    if branches == "both":
        return edits
    if branches not in _SHARES:
        raise MusaeError(f"branches is {branches!r}; choose both, conditional or unconditional")
    return during(edits, jnp.asarray(_SHARES[branches])[:, None, None])  # [G, 1, 1]


def stack(edits: Sequence[Edits]) -> Edits:
    """One `Edits` for a batch, of one for each of its rows: a whole sweep is one batch.

    Arrays that all rows share (the very same object) are kept once. Rows in which the functions of a layer are the same
    but for their arrays' values run as one; where they differ, every row computes all of them, and those that are not
    its own count nothing.

    Raises:
      MusaeError: there are no rows, or one is for a batch already.
    """
    rows = list(edits)
    if not rows:
        raise MusaeError("there are no edits to stack; give one for each row of the batch (`Edits()` changes nothing)")
    vectors = {
        layer: _rows([row.vectors.get(layer) for row in rows], 4)
        for layer in sorted({i for r in rows for i in r.vectors})
    }
    functions = {}
    for layer in sorted({i for r in rows for i in r.functions}):
        slots = _slots([functions_of(row, layer) for row in rows])
        functions[layer] = tuple(_merge(slot, len(rows)) for slot in slots)
    return Edits(vectors=vectors, functions=functions)


def _same_length(a: jax.Array, b: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """Both with as many positions: the shorter goes on with its last one; 1 (or none) is broadcast anyway."""
    lengths = [x.shape[axis] if x.ndim >= -axis else 1 for x in (a, b)]
    return tuple(_lengthen(x, max(lengths), axis) if n > 1 else x for x, n in zip((a, b), lengths))


def _lengthen(x: jax.Array, length: int, axis: int) -> jax.Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, length - x.shape[axis])
    return jnp.pad(x, widths, mode="edge")


def _rows(values: Sequence[Any], rank: int) -> jax.Array:
    """One row's values each, [G, 1, P, …] but for missing axes, or None (0) -> [G, B, P, …]."""
    last = next((jnp.shape(value)[-1:] for value in values if value is not None), ()) if rank == 4 else ()
    whole = []
    for value in values:
        value = jnp.zeros(last) if value is None else jnp.asarray(value, jnp.float32)
        value = value.reshape((1,) * (rank - value.ndim) + value.shape)
        if value.shape[1] != 1:
            raise MusaeError(f"an edit to stack is for {value.shape[1]} rows already; give one for each row")
        whole.append(value)
    branches, positions = (max(value.shape[axis] for value in whole) for axis in (0, 2))
    whole = [_lengthen(value, positions, 2) for value in whole]
    return jnp.concatenate([jnp.broadcast_to(value, (branches, *value.shape[1:])) for value in whole], axis=1)


Slot = dict[int, FunctionEdit]  # {row: its function}, all of one signature


def _signature(edit: FunctionEdit) -> Any:
    """What must be the same for two functions to run as one."""
    leaves, tree = jax.tree.flatten(edit.arrays, is_leaf=lambda leaf: isinstance(leaf, PerRow))
    if any(isinstance(leaf, PerRow) for leaf in leaves):
        raise MusaeError("an edit to stack is for several rows already; give one for each row")
    return edit.function, tree, tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)


def _slots(rows: Sequence[tuple[FunctionEdit, ...]]) -> list[Slot]:
    """The functions of all rows laid side by side, each row's in its order."""
    slots: list[tuple[Any, Slot]] = []
    for row, edits in enumerate(rows):
        at = 0
        for edit in edits:
            signature = _signature(edit)
            place = next((i for i in range(at, len(slots)) if slots[i][0] == signature), None)
            if place is None:
                place = at
                slots.insert(place, (signature, {}))
            slots[place][1][row] = edit
            at = place + 1
    return [slot for _, slot in slots]


def _merge(slot: Slot, rows: int) -> FunctionEdit:
    """One function for the batch; rows without one count nothing of another's."""
    some = next(iter(slot.values()))
    edits = [slot.get(row, some.replace(gate=0.0)) for row in range(rows)]
    tree = jax.tree.structure(some.arrays)
    leaves = [
        same[0] if all(leaf is same[0] for leaf in same) else PerRow(jnp.stack([jnp.asarray(leaf) for leaf in same]))
        for same in zip(*(jax.tree.leaves(edit.arrays) for edit in edits))
    ]
    return some.replace(arrays=jax.tree.unflatten(tree, leaves), gate=_rows([edit.gate for edit in edits], 3))
