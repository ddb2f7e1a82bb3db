"""What the pure step must know of devices that share its work: which axis of an array lies across them.

The axes have the same names everywhere. `data` cuts the tokens [N, ...], `model` the features [..., F]. Under
`parallel.sharded_steps` XLA sees whole arrays, finds the sums that cross devices itself, and needs help in two places
only, where it would gather the features: `largest` and `decode_groups`. Under `parallel.pmapped_step` a device sees
its own tokens, and every sum over tokens goes through `over_tokens`. Where there is one device, all of these are what
one would write without them.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from musae_jax.mesh import DATA, MODEL
from musae_jax.sae.products import decode


def _mesh() -> Any:
    return jax.sharding.get_abstract_mesh()


def model_shards() -> int:
    """Over how many devices the features are cut here."""
    return dict(_mesh().shape).get(MODEL, 1)


def _own_tokens() -> bool:
    """Whether a device sees its own tokens only, as under `pmap`."""
    return not _mesh().empty and DATA in _mesh().manual_axes


def token_count(rows: int) -> int:
    """The tokens of all devices, each of which sees `rows` of them."""
    return rows * (jax.lax.axis_size(DATA) if _own_tokens() else 1)


def over_tokens(x: Any) -> Any:
    """The sum over all devices of what each has summed over its own tokens.

    Its derivative with respect to a device's share is 1, so a device's gradient is the share of its tokens; those
    shares are then to be summed the same way. (A plain `psum` would be differentiated to another `psum`, and the
    gradient come out multiplied by the number of devices.)
    """
    if not _own_tokens():
        return x
    return _summed(x) if jnp.issubdtype(x.dtype, jnp.inexact) else jax.lax.psum(x, DATA)


@jax.custom_vjp
def _summed(x: jax.Array) -> jax.Array:
    return jax.lax.psum(x, DATA)


_summed.defvjp(lambda x: (_summed(x), None), lambda _, cotangent: (cotangent,))


def most_over_tokens(x: jax.Array) -> jax.Array:
    """The largest over all devices."""
    return jax.lax.pmax(x, DATA) if _own_tokens() else x


def all_tokens(x: jax.Array) -> jax.Array:
    """The rows of all devices."""
    return jax.lax.all_gather(x, DATA, tiled=True) if _own_tokens() else x


def largest(values: jax.Array, k: int) -> jax.Array:
    """The k largest of each row of values [N, F], in falling order, [N, k]; has no gradient.

    Each device finds those of its own features; only these candidates are gathered.
    """
    mesh = _mesh()
    if mesh.empty or mesh.manual_axes:
        return jax.lax.top_k(values, k)[0]

    def of_one_device(own: jax.Array) -> jax.Array:
        own = jax.lax.top_k(own, min(k, own.shape[1]))[0]
        return jax.lax.top_k(jax.lax.all_gather(own, MODEL, axis=1, tiled=True), k)[0]

    spec = jax.sharding.PartitionSpec
    cut = functools.partial(jax.shard_map, in_specs=spec(DATA, MODEL), out_specs=spec(DATA), check_vma=False)
    return cut(of_one_device)(jax.lax.stop_gradient(values))


def decode_groups(f: jax.Array, W_dec: jax.Array, ends: tuple[int, ...]) -> list[jax.Array]:
    """f[:, a:b] @ W_dec[a:b] [N, D] for the groups of latents that `ends` cuts; costs one decoding in all.

    A slice across devices would move features between them, so there the latents are cut into equal pieces that lie on
    one device and in one group each, every piece is decoded where it is, and what travels is sums of pieces.
    """
    bounds = list(zip((0, *ends), ends))
    shards = model_shards()
    if shards == 1 or len(ends) == 1:
        return [decode(f[:, start:end], W_dec[start:end]) for start, end in bounds]
    size = piece_size(f.shape[1], ends, shards)
    f, W_dec = f.reshape(len(f), -1, size), W_dec.reshape(-1, size, W_dec.shape[1])
    pieces = jnp.einsum("ncs,csd->cnd", f, W_dec)  # [C, N, D]
    at = jnp.arange(pieces.shape[0])[:, None, None] * size
    return [jnp.sum(jnp.where((at >= start) & (at < end), pieces, 0.0), axis=0) for start, end in bounds]


def piece_size(d_sae: int, ends: tuple[int, ...], shards: int) -> int:
    """The features in the largest equal pieces that no device and no group of Matryoshka cuts."""
    return math.gcd(d_sae // shards, *ends)
