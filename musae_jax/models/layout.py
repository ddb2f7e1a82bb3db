"""How a MusicGen lies on a mesh of devices: rows of a batch along `data`, the decoder's matrices along `model`.

Along `model` each device holds some of the attention heads, of the feed-forward's columns and of the vocabulary, as in
Megatron-LM (Shoeybi et al., arXiv 1909.08053): a sum goes round after each attention and each feed-forward, and the
logits are gathered. Norms, embeddings, text encoder and codec are whole on every device. Along `data` nothing is said
at all.

A model that `place_musicgen` has put on a mesh is used by the same functions. `forward`, `encode_audio` and
`decode_codes` follow their inputs, which `place_rows` cuts; `generate` cuts its rows by itself.
"""

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from musae_jax.errors import MusaeError
from musae_jax.mesh import DATA, MODEL
from musae_jax.models.musicgen import MusicGen, MusicGenConfig

PARAMETERS = (  # what is cut, by path; the rest is whole
    (r"decoder/block_\d+/(self|cross)_attention/(query|key|value)/kernel", P(None, MODEL)),  # [D, H·d]
    (r"decoder/block_\d+/(self|cross)_attention/out/kernel", P(MODEL)),  # [H·d, D]
    (r"decoder/block_\d+/up/kernel", P(None, MODEL)),  # [D, ffn]
    (r"decoder/block_\d+/down/kernel", P(MODEL)),  # [ffn, D]
    (r"decoder/heads", P(None, None, MODEL)),  # [D, K, V]
)
ROWS, HEADS, WHOLE = P(DATA), P(None, MODEL), P()


def param_shardings(mesh: Mesh, params: Any) -> Any:
    """The sharding of every parameter; `params` may be a tree of shapes."""

    def of_leaf(path: Any, _: Any) -> NamedSharding:
        name = "/".join(part.key for part in path)
        return NamedSharding(mesh, next((spec for pattern, spec in PARAMETERS if re.fullmatch(pattern, name)), P()))

    return jax.tree_util.tree_map_with_path(of_leaf, params)


def check_model_parallel(config: MusicGenConfig, mesh: Mesh) -> None:
    """Raises a `MusaeError` if the decoder cannot be cut evenly along `model`."""
    parts = mesh.shape[MODEL]
    for name in ("num_attention_heads", "ffn_dim", "vocab_size"):
        value = getattr(config.decoder, name)
        if value % parts:
            raise MusaeError(
                f"model_parallel is {parts}, but it must divide the decoder's {name}, which is {value}; choose another"
            )


def place_musicgen(mg: MusicGen, mesh: Mesh) -> MusicGen:
    """The model on the devices of a mesh (`mesh.make_mesh`); as it is where that is one device.

    Raises:
      MusaeError: the decoder cannot be cut evenly along `model`.
    """
    check_model_parallel(mg.config, mesh)
    return mg if mesh.size == 1 else mg.replace(params=jax.device_put(mg.params, param_shardings(mesh, mg.params)))


def mesh_of(params: Any) -> Mesh | None:
    """The mesh that parameters lie on; None where it is one device, or not known while tracing."""
    sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
    return sharding.mesh if isinstance(sharding, NamedSharding) and sharding.mesh.axis_names == (DATA, MODEL) else None


def data_devices(params: Any) -> int:
    """How many devices share the rows of a batch."""
    mesh = mesh_of(params)
    return 1 if mesh is None else mesh.shape[DATA]


def equal_rows(params: Any, rows: int) -> int:
    """The least number of rows from `rows` upwards that the devices can share equally."""
    return rows + -rows % data_devices(params)


def place_rows(params: Any, rows: Any) -> Any:
    """Arrays [B, …] cut along B, beside parameters on a mesh; unchanged where there is one device."""
    mesh = mesh_of(params)
    return rows if mesh is None else jax.device_put(rows, NamedSharding(mesh, ROWS))


def over_rows(out: Any, static: tuple[str, ...], donate: tuple[str, ...] = (), **specs: Any) -> Callable[..., Any]:
    """`jax.jit` of a function that works row by row, with one keyword more: `mesh`.

    On a mesh each device calls the function with its own rows alone, so that whatever it does with the order of rows
    (two branches of guidance lie one after the other) moves nothing between devices. `specs` names the arguments with
    rows: by a `PartitionSpec` for all their arrays, or a function from the argument to one for each. The others are
    whole. `out` is the same of what is returned.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def on_mesh(*positional: Any, mesh: Mesh | None = None) -> Any:
            arguments = signature.bind(*positional).arguments
            if mesh is None:
                return function(**arguments)
            fixed = {name: arguments.pop(name) for name in static}
            cut = {name: specs.get(name, WHOLE) for name in arguments}
            cut = {name: spec(arguments[name]) if callable(spec) else spec for name, spec in cut.items()}
            own = jax.shard_map(
                lambda arrays: function(**fixed, **arrays),
                mesh=mesh, in_specs=(cut,), out_specs=out, axis_names={DATA}, check_vma=False,
            )  # fmt: skip
            return own(arguments)

        mesh = inspect.Parameter("mesh", inspect.Parameter.KEYWORD_ONLY, default=None)
        on_mesh.__signature__ = signature.replace(parameters=[*signature.parameters.values(), mesh])
        return jax.jit(on_mesh, static_argnames=(*static, "mesh"), donate_argnames=donate)

    return decorate


def rows_or_one(tree: Any) -> Any:
    """The specs of arrays [B, …], some of which have one row for all."""
    return jax.tree.map(lambda x: ROWS if x.shape[0] > 1 else WHOLE, tree)


def laid(x: jax.Array, spec: P) -> jax.Array:
    """x laid out by `spec` along `model` inside `over_rows`, where something must be said; elsewhere x."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.lax.with_sharding_constraint(x, spec) if DATA in mesh.manual_axes else x
