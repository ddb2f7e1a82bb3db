"""One training step on many devices: how the state and the batch lie on a mesh, and the same step jitted for it.

The mesh has the axes `data`, over which the tokens of a batch are cut, and `model`, over which the features are: every
array [F, ...] (encoder, decoder, Adam's moments, idle, what an architecture keeps per feature). What has no F is on
every device. XLA inserts the sums; it never gathers the features (`shards`). Where a mesh may be None, that stands for
one device. Processes that `jax.distributed` has joined make one mesh: all of them draw the same batches, and each puts
its own rows on its devices.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from musae_jax.errors import MusaeError
from musae_jax.mesh import DATA, MODEL, make_mesh
from musae_jax.sae.recipe import Recipe
from musae_jax.sae.shards import piece_size
from musae_jax.sae.step import TrainState, train_steps, update, updates

WHOLE = ("b_dec", "center")  # the arrays [D]; every other one that is no number of its own begins with F
PIECES = 16  # of a device's features in Matryoshka: each takes as much memory as the tokens do

Steps = Callable[[TrainState, jax.Array], tuple[TrainState, dict[str, jax.Array]]]


def training_mesh(recipes: Sequence[Recipe], model_parallel: int = 1) -> Mesh | None:
    """The mesh of all devices, or None where there is one device, and so nothing to lay out.

    Raises:
      MusaeError: the devices cannot be so divided, or a recipe's batch or dictionary cannot.
    """
    mesh = make_mesh(model_parallel)
    for recipe in recipes:
        check_layout(recipe, mesh)
    return mesh if mesh.size > 1 else None


def check_layout(recipe: Recipe, mesh: Mesh) -> None:
    """Refuses what cannot be cut evenly.

    Raises:
      MusaeError: batch_size, d_sae or group_fractions do not fit the mesh, or `sparse` is set for several devices.
    """
    if recipe.sparse and mesh.size > 1:
        raise _one_device(mesh.size)
    for name, axis in (("batch_size", DATA), ("d_sae", MODEL)):
        value, parts = getattr(recipe, name), mesh.shape[axis]
        if value % parts:
            raise MusaeError(
                f"{name} of the SAE is {value}, but the {parts} devices along {axis} must get equal parts; choose a"
                f" multiple of {parts}, such as {-(-value // parts) * parts}, or another model_parallel"
            )
    shards = mesh.shape[MODEL]
    if shards > 1 and len(recipe.group_ends) > 1:
        size = piece_size(recipe.d_sae, recipe.group_ends, shards)
        if recipe.d_sae // shards // size > PIECES:
            raise MusaeError(
                f"group_fractions of the SAE end at the latents {', '.join(map(str, recipe.group_ends))}, which cuts"
                f" the {recipe.d_sae // shards} of a device in pieces of {size}; choose fractions and a model_parallel"
                f" that leave at most {PIECES} equal pieces"
            )


def _one_device(devices: int) -> MusaeError:
    return MusaeError(f"sparse is set, but a list of active latents is for one device, not {devices}; leave it out")


# --- the layout -------------------------------------------------------------------------------------------------------


def state_shardings(mesh: Mesh, state: TrainState) -> TrainState:
    """The sharding of every array of a state, or of a group's; `state` may be one of shapes."""
    lead = len(state.step.shape)

    def of_leaf(path: Any, leaf: Any) -> NamedSharding:
        name = getattr(path[-1], "key", getattr(path[-1], "name", None))
        if len(leaf.shape) == lead or name in WHOLE:
            return NamedSharding(mesh, P())
        return NamedSharding(mesh, P(*(None,) * lead, MODEL))

    return jax.tree_util.tree_map_with_path(of_leaf, state)


def batches_sharding(mesh: Mesh) -> NamedSharding:
    """Of batches [S, N, D]."""
    return NamedSharding(mesh, P(None, DATA))


def place_batches(mesh: Mesh | None, batches: np.ndarray) -> Any:
    """Batches [S, N, D], the same on every process, of which each device gets its rows only."""
    if mesh is None:
        return batches
    return jax.make_array_from_callback(batches.shape, batches_sharding(mesh), lambda index: batches[index])


def make_state(mesh: Mesh | None, make: Callable[[], TrainState]) -> TrainState:
    """The state that `make` computes, each part of it on its device from the start."""
    if mesh is None:
        return make()
    return jax.jit(make, out_shardings=state_shardings(mesh, jax.eval_shape(make)))()


def whole_state(state: TrainState) -> TrainState:
    """The state on the host as NumPy arrays; every process must ask for it, and each gets all of it."""

    def whole(leaf: jax.Array) -> np.ndarray:
        if leaf.is_fully_addressable:
            return np.asarray(leaf)
        everywhere = NamedSharding(leaf.sharding.mesh, P())
        return np.asarray(jax.jit(_same, out_shardings=everywhere)(leaf).addressable_data(0))

    return jax.tree.map(whole, state)


def _same(x: jax.Array) -> jax.Array:
    return x


# --- the step ---------------------------------------------------------------------------------------------------------


def sharded_steps(mesh: Mesh | None, recipe: Recipe, state: TrainState) -> Steps:
    """`train_steps` of a recipe on a mesh: (state, batches [S, N, D]) -> (state, metrics), the state donated.

    `state` says the shapes only. The metrics are on every device.
    """
    if mesh is None:
        return functools.partial(train_steps, recipe)
    step = jit_steps(mesh, recipe, state)

    def steps(state: TrainState, batches: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        with jax.set_mesh(mesh):  # by which `shards` knows the axes
            return step(state, batches)

    return steps


def jit_steps(mesh: Mesh, recipe: Recipe, state: TrainState) -> Any:
    """What `sharded_steps` calls, to be traced under `jax.set_mesh(mesh)`."""
    shardings = state_shardings(mesh, state)
    return jax.jit(
        functools.partial(updates, recipe),
        in_shardings=(shardings, batches_sharding(mesh)),
        out_shardings=(shardings, NamedSharding(mesh, P())),
        donate_argnums=0,
    )


def pmapped_step(recipe: Recipe) -> Steps:
    """`train_step` under `jax.pmap`: (state, batch [devices, N / devices, D]) -> (state, metrics), the state donated.

    The state is whole on every device, and so the dictionary cannot be larger than one device holds.
    """
    if recipe.sparse:
        raise _one_device(jax.device_count())
    step = functools.partial(update, recipe)
    return jax.pmap(step, axis_name=DATA, in_axes=(None, 0), out_axes=None, donate_argnums=0)
