"""Products with an SAE's matrices, each of which has a row per latent: dense ones, and ones with a list of activations.

A batch activates k of F latents per token, so N·F numbers are computed to choose N·k. What comes after the choice,
decoding and every gradient, needs the chosen ones only. Where k is a small share of F, walking a list of them is faster
on CPUs than four more dense products.
"""

import functools
import math
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

BLOCK = 128  # entries of a list that are gathered at a time; few enough that their rows stay in the cache
GROUP = 32  # neighbouring latents that are asked together whether any of them is active


class Active(NamedTuple):
    """The activations of a batch that are not 0, as a list: the number [E] of each, its token [E] and its latent [E].

    Entries left over have the number 0.
    """

    value: jax.Array
    token: jax.Array
    latent: jax.Array


# --- dense ------------------------------------------------------------------------------------------------------------


@jax.custom_vjp
def encode(x: jax.Array, W_enc_t: jax.Array) -> jax.Array:
    """x [N, D] @ W_enc_t [F, D].T -> [N, F]."""
    return x @ W_enc_t.T


@jax.custom_vjp
def decode(f: jax.Array, W_dec: jax.Array) -> jax.Array:
    """f [N, F] @ W_dec [F, D] -> [N, D]."""
    return f @ W_dec


def _by_rows(by_latent: jax.Array, by_input: jax.Array) -> jax.Array:
    """by_latent [N, F].T @ by_input [N, D] -> [F, D]: the gradient of a matrix.

    CPUs take half as long again for a product whose first factor lies transposed, so the other order is computed; the
    barrier keeps XLA from turning it back.
    """
    return jax.lax.optimization_barrier(by_input.T @ by_latent).T


encode.defvjp(lambda x, W: (x @ W.T, (x, W)), lambda xW, by_f: (by_f @ xW[1], _by_rows(by_f, xW[0])))
decode.defvjp(lambda f, W: (f @ W, (f, W)), lambda fW, by_x: (by_x @ fW[1].T, _by_rows(fW[0], by_x)))


# --- with a list ------------------------------------------------------------------------------------------------------


def a_list_pays(d_sae: int, k: int) -> bool:
    """Whether the list of k activations per token is the faster way here (`musae bench sae` times both).

    Walking it takes one core, dense products take all; accelerators gain nothing.
    """
    one_device = jax.sharding.get_abstract_mesh().empty
    return one_device and jax.default_backend() == "cpu" and d_sae >= 32 * k * (os.cpu_count() or 1)


def list_largest(pre: jax.Array, k: int, most: Any) -> Active:
    """The `most` (<= k) largest entries of each row of pre [N, F], of them the positive ones; N·k places."""
    value, latent = jax.lax.top_k(pre, k)
    value = jnp.where((jnp.arange(k) < most) & (value > 0), value, 0.0)
    token = jnp.repeat(jnp.arange(len(pre)), k)
    return _in_blocks(Active(value.reshape(-1), token, latent.reshape(-1)))


def list_above(pre: jax.Array, threshold: jax.Array, total: int) -> Active:
    """The entries of pre [N, F] above a threshold >= 0, of which there are at most `total`.

    Most groups of neighbouring latents have none, so groups are looked for first, then entries in those.
    """
    width = math.gcd(pre.shape[1], GROUP)
    groups = pre.reshape(-1, width)
    busy = jnp.any(groups > threshold, axis=1)
    at = jnp.nonzero(busy, size=total, fill_value=0)[0]  # [total]
    place = jnp.arange(total)
    above = (groups[at] > threshold) & (place < busy.sum())[:, None]
    found = jnp.nonzero(above.reshape(-1), size=total, fill_value=0)[0]
    entry = at[found // width] * width + found % width
    value = jnp.where(place < above.sum(), pre.reshape(-1)[entry], 0.0)
    return _in_blocks(Active(value, entry // pre.shape[1], entry % pre.shape[1]))


def _in_blocks(active: Active) -> Active:
    return Active(*(jnp.pad(array, (0, -len(array) % BLOCK)) for array in active))


@jax.custom_vjp
def activations(x: jax.Array, W_enc_t: jax.Array, b_enc: jax.Array, active: Active) -> jax.Array:
    """active.value [E], as the function x [N, D] @ W_enc_t [F, D].T + b_enc [F] that it came of."""
    return active.value


def _activations_bwd(residuals: Any, by_value: jax.Array) -> Any:
    x, W_enc_t, active = residuals
    by_value = jnp.where(active.value > 0, by_value, 0.0)
    by_W = _add_rows(by_value, x, active.token, active.latent, len(W_enc_t))
    by_b = jnp.zeros(len(W_enc_t)).at[active.latent].add(by_value)
    by_x = _add_rows(by_value, W_enc_t, active.latent, active.token, len(x))
    return by_x, by_W, by_b, None


activations.defvjp(lambda x, W, b, active: (active.value, (x, W, active)), _activations_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def decode_list(rows: int, value: jax.Array, to: jax.Array, latent: jax.Array, W_dec: jax.Array) -> jax.Array:
    """[rows, D]: each sums, over the entries that go `to` it, value [E] times row `latent` [E] of W_dec [F, D]."""
    return _add_rows(value, W_dec, latent, to, rows)


def _decode_list_fwd(rows: int, value: jax.Array, to: jax.Array, latent: jax.Array, W_dec: jax.Array) -> Any:
    return _add_rows(value, W_dec, latent, to, rows), (value, to, latent, W_dec)


def _decode_list_bwd(rows: int, residuals: Any, by_row: jax.Array) -> Any:
    value, to, latent, W_dec = residuals

    def dots(entries: Any) -> jax.Array:
        rows, latents = entries
        return jnp.sum(by_row[rows] * W_dec[latents], axis=-1)

    by_value = jax.lax.map(dots, (to.reshape(-1, BLOCK), latent.reshape(-1, BLOCK))).reshape(-1)
    return by_value, None, None, _add_rows(value, by_row, to, latent, len(W_dec))


decode_list.defvjp(_decode_list_fwd, _decode_list_bwd)


def _add_rows(by: jax.Array, rows: jax.Array, source: jax.Array, to: jax.Array, count: int) -> jax.Array:
    """Sums by [E] · rows[source] at the rows `to` of a matrix with `count` rows, block after block."""

    def add(block: jax.Array, total: jax.Array) -> jax.Array:
        by_b, source_b, to_b = (jax.lax.dynamic_slice(a, (block * BLOCK,), (BLOCK,)) for a in (by, source, to))
        return total.at[to_b].add(by_b[:, None] * rows[source_b])

    return jax.lax.fori_loop(0, len(by) // BLOCK, add, jnp.zeros((count, rows.shape[1]), rows.dtype))
