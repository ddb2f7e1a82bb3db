"""Edits: changes to the residual stream, applied inside the model after a block.

They are plain data (arrays, or a static function with its arrays), so this file knows nothing of autoencoders, and a
change of strength never compiles anything again.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from musae_jax.errors import MusaeError

CONDITIONAL, UNCONDITIONAL = 0, 1  # the branches of classifier-free guidance


@flax.struct.dataclass
class PerRow:
    """An array [B, …] among the arrays of a `FunctionEdit` of which each row of the batch has its own part."""

    values: jax.Array


@flax.struct.dataclass
class FunctionEdit:
    """h + gate · function(arrays, h). An SAE edit is a function giving decode(f′) − decode(f), so its error is kept.

    `function` maps (arrays, residuals [G, B, P, D]) to a change of that shape. It is static: pass a function defined in
    a module (or an instance of a frozen dataclass), not a fresh lambda, or every call compiles again. Where `arrays`
    has `PerRow`s, the function is given one row at a time, its own arrays and residuals [G, 1, P, D]. `gate` is a
    number or an array [P], [B, P] or [G, B, P].
    """

    function: Callable[[Any, jax.Array], jax.Array] = flax.struct.field(pytree_node=False)
    arrays: Any = ()
    gate: Any = 1.0


@flax.struct.dataclass
class Edits:
    """What to change after which block (0-based layer i is the hook `blocks.{i}.resid_post`).

    `vectors[i]` is added: [D] everywhere, [P, D] per position, [B, P, D] per batch row, [G, B, P, D] per branch of
    guidance (0 conditional, 1 unconditional; G is 1 or 2). Axes of length 1 are broadcast; positions beyond the last
    given use the last one. Position p reads column p of the delayed layout: the start step, then the frames.
    `functions[i]` is a `FunctionEdit` or several in their order. The vector is added first; each function is given the
    stream as those before it left it.
    """

    vectors: Mapping[int, Any] = flax.struct.field(default_factory=dict)
    functions: Mapping[int, FunctionEdit | tuple[FunctionEdit, ...]] = flax.struct.field(default_factory=dict)


def functions_of(edits: Edits, layer: int) -> tuple[FunctionEdit, ...]:
    """The functions after block `layer`, in their order; () if there are none."""
    functions = edits.functions.get(layer, ())
    return (functions,) if isinstance(functions, FunctionEdit) else tuple(functions)


def map_functions(edits: Edits, change: Callable[[FunctionEdit], Any]) -> dict[int, tuple[Any, ...]]:
    """{layer: what `change` makes of each of its functions}."""
    return {layer: tuple(change(edit) for edit in functions_of(edits, layer)) for layer in edits.functions}


def prepare_edits(edits: Edits | None, layers: int, width: int) -> Edits | None:
    """The same edits with strong fp32 arrays (a Python float would compile again) and their shapes checked."""
    if edits is None:
        return None
    for layer in (*edits.vectors, *edits.functions):
        if not 0 <= layer < layers:
            raise MusaeError(
                f"the edits name layer {layer}, but this model has layers 0 to {layers - 1}; choose one of those"
            )
    vectors = {}
    for layer, vector in edits.vectors.items():
        vector = jnp.asarray(vector, jnp.float32)
        if not 1 <= vector.ndim <= 4 or vector.shape[-1] != width:
            raise MusaeError(
                f"the vector for layer {layer} has shape {vector.shape}, but the residual stream is {width} wide; "
                f"give [{width}], [P, {width}], [B, P, {width}] or [G, B, P, {width}]"
            )
        vectors[layer] = vector

    def strong(edit: FunctionEdit) -> FunctionEdit:
        gate = jnp.asarray(edit.gate, jnp.float32)
        if gate.ndim > 3:
            raise MusaeError(
                f"the gate of an edit has shape {gate.shape}; give a number, [P], [B, P] or [G, B, P] of factors"
            )
        return edit.replace(gate=gate, arrays=jax.tree.map(jnp.asarray, edit.arrays))

    return Edits(vectors=vectors, functions=map_functions(edits, strong))


def edits_from(edits: Edits | None, start: int, positions: int) -> Edits | None:
    """The edits of the `positions` from `start` on: what a window of a longer clip reads as its positions 0, 1, …"""
    if edits is None:
        return None

    def cut(values: jax.Array, axis: int) -> jax.Array:
        if values.ndim < -axis or values.shape[axis] == 1:
            return values
        return jnp.take(values, np.minimum(start + np.arange(positions), values.shape[axis] - 1), axis=axis)

    return Edits(
        vectors={layer: cut(vector, -2) for layer, vector in edits.vectors.items()},
        functions=map_functions(edits, lambda edit: edit.replace(gate=cut(edit.gate, -1))),
    )


def edits_specs(edits: Edits | None, axis: str) -> Edits | None:
    """The same tree with a `PartitionSpec` for each array: batch rows are cut along `axis` of a mesh."""
    if edits is None:
        return None

    def rows_at(values: jax.Array, last: int) -> P:
        return P(*(None,) * (values.ndim - last), axis) if values.ndim >= last and values.shape[-last] > 1 else P()

    def of_function(edit: FunctionEdit) -> FunctionEdit:
        specs = jax.tree.map(lambda x: PerRow(P(axis)) if _is_per_row(x) else P(), edit.arrays, is_leaf=_is_per_row)
        return edit.replace(arrays=specs, gate=rows_at(edit.gate, 2))

    return Edits(
        vectors={layer: rows_at(vector, 3) for layer, vector in edits.vectors.items()},
        functions=map_functions(edits, of_function),
    )


def _is_per_row(leaf: Any) -> bool:
    return isinstance(leaf, PerRow)


def _change(edit: FunctionEdit, h: jax.Array) -> jax.Array:
    """What the function adds to h [G, B, P, D], before its gate."""
    leaves = jax.tree.leaves(edit.arrays, is_leaf=_is_per_row)
    rows = {leaf.values.shape[0] for leaf in leaves if _is_per_row(leaf)}
    if not rows:
        return edit.function(edit.arrays, h)
    if rows != {h.shape[1]}:
        raise MusaeError(
            f"an edit has arrays for {' and '.join(map(str, sorted(rows)))} rows, but the batch has {h.shape[1]} clips;"
            " give as many edits to `stack` as there are clips"
        )
    axes = jax.tree.map(lambda x: 0 if _is_per_row(x) else None, edit.arrays, is_leaf=_is_per_row)
    arrays = jax.tree.map(lambda x: x.values if _is_per_row(x) else x, edit.arrays, is_leaf=_is_per_row)
    return jax.vmap(edit.function, in_axes=(axes, 1), out_axes=1)(arrays, h[:, :, None])[:, :, 0]


def _select(values: jax.Array, branches: tuple[int, ...], positions: jax.Array) -> jax.Array:
    """Values [G?, B?, P?, D] for these branches and positions, every missing axis 1."""
    values = values.reshape((1,) * (4 - values.ndim) + values.shape)
    if values.shape[0] > 1:
        values = values[jnp.asarray(branches)]
    if values.shape[2] > 1:
        values = jnp.take(values, jnp.minimum(positions, values.shape[2] - 1), axis=2, mode="clip")
    return values


def apply_edits(
    edits: Edits | None, layer: int, x: jax.Array, positions: jax.Array, branches: tuple[int, ...]
) -> jax.Array:
    """The stream x [G·B, P, D] after block `layer`, edited; `branches` names the G branches in row order."""
    if edits is None or (layer not in edits.vectors and layer not in edits.functions):
        return x
    h = x.reshape(len(branches), -1, *x.shape[1:])  # [G, B, P, D]
    edited = h
    if layer in edits.vectors:
        edited = edited + _select(edits.vectors[layer], branches, positions).astype(h.dtype)
    for edit in functions_of(edits, layer):
        gate = _select(jnp.asarray(edit.gate)[..., None], branches, positions)
        edited = edited + (gate * _change(edit, edited)).astype(h.dtype)
    if edited.shape != h.shape:
        raise MusaeError(
            f"the edit of layer {layer} does not fit a batch of {h.shape[1]} clips with {h.shape[2]} positions; "
            "its batch axis must be 1 or that size"
        )
    return edited.reshape(x.shape)
