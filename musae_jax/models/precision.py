"""In which dtype a model is held, which is also that of its computation: a product has the dtype of its matrix, the
residual stream that of the embeddings, and softmax, means, variances and logits are always taken in fp32.

float32    everything.
bfloat16   everything but the codec: half the memory and, where memory is what takes the time, twice the speed. Slow on
           CPUs.
float16    the same in fp16, whose small range is the caller's risk.
mixed      bfloat16 matrices; embeddings, norms, biases and with them the residual stream in fp32.

The codec is float32 always: it is a tenth of the smallest model, and rounding it would change codes and sound.
"""

from typing import Any

import jax
import jax.numpy as jnp

DTYPES = ("float32", "bfloat16", "float16", "mixed")
_MATRICES = ("kernel", "heads")


def leaf_dtype(path: str, dtype: str) -> jnp.dtype:
    """The dtype of the parameter at `path`, such as "decoder/block_3/up/kernel"."""
    parts = path.split("/")
    if parts[0] == "audio":
        return jnp.dtype(jnp.float32)
    if dtype == "mixed":
        return jnp.dtype(jnp.bfloat16 if parts[-1] in _MATRICES else jnp.float32)
    return jnp.dtype(dtype)


def cast_params(params: Any, dtype: str) -> Any:
    """A model's params as `load_musicgen` gives them with this dtype."""

    def cast(path: tuple[Any, ...], value: jax.Array) -> jax.Array:
        return jnp.asarray(value, leaf_dtype("/".join(str(entry.key) for entry in path), dtype))

    return jax.tree_util.tree_map_with_path(cast, params)


def as_matrix(inputs: jax.Array, kernel: jax.Array, bias: jax.Array | None, dtype: Any) -> tuple[jax.Array, ...]:
    """For `nn.Dense(promote_dtype=…)`: the inputs in their matrix's dtype, where flax would take the wider of the two."""
    return inputs.astype(kernel.dtype), kernel, bias
