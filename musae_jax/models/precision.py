"""The type in which weights are kept and multiplied."""

from typing import Any

import jax
import jax.numpy as jnp

DTYPES = ("float32", "mixed", "bfloat16", "float16")


def cast_params(params: Any, dtype: str) -> Any:
    """MusicGen parameters for computation in `dtype`, one of `DTYPES`.

    "mixed": the decoder multiplies in bfloat16 and adds up in float32; its residual stream, norms, attention and cache
    and the text encoder stay float32. "bfloat16" and "float16" are the type of every parameter and of the computation,
    but for the codec: it is float32 always, a small part of the model, and what is heard.
    """

    def cast(path: tuple[jax.tree_util.DictKey, ...], x: Any) -> jax.Array:
        return jnp.asarray(x, leaf_dtype(tuple(entry.key for entry in path), dtype))

    return jax.tree.map_with_path(cast, params)


def leaf_dtype(path: tuple[str, ...], dtype: str) -> str:
    """The type of one parameter, such as ("decoder", "block_3", "up", "kernel")."""
    if path[0] == "audio":
        return "float32"
    if dtype == "mixed":
        return "bfloat16" if path[0] == "decoder" and path[-1] in ("kernel", "heads") else "float32"
    return dtype
