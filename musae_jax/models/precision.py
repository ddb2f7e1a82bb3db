"""The type in which weights are kept and multiplied."""

from typing import Any

import jax
import jax.numpy as jnp

DTYPES = ("float32", "mixed", "bfloat16", "float16")


def cast_params(params: Any, dtype: str) -> Any:
    """MusicGen parameters for computation in `dtype`, one of `DTYPES`.

    "mixed": the decoder multiplies in bfloat16 and adds up in float32; its residual stream, norms, attention and cache,
    the text encoder and the codec stay float32. Any other dtype is that of every parameter and of the computation.
    """
    if dtype != "mixed":
        return jax.tree.map(lambda x: jnp.asarray(x, dtype), params)

    def cast(path: tuple[jax.tree_util.DictKey, ...], x: Any) -> jax.Array:
        narrow = path[0].key == "decoder" and path[-1].key in ("kernel", "heads")
        return jnp.asarray(x, jnp.bfloat16 if narrow else jnp.float32)

    return jax.tree.map_with_path(cast, params)
