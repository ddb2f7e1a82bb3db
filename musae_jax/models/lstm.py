"""The stacked LSTM inside EnCodec, arranged for speed: input products are hoisted out of the time loop."""

import flax.linen as nn
import jax
import jax.numpy as jnp

PRECISION = jax.lax.Precision.HIGHEST


def _cell(gates: jax.Array, c: jax.Array) -> tuple[jax.Array, jax.Array]:
    i, f, g, o = jnp.split(gates, 4, axis=-1)  # PyTorch's order
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


State = tuple[jax.Array, jax.Array]  # a layer's output and cell, [B, D] each


def lstm_scan(inputs: jax.Array, recurrent: jax.Array, state: State | None = None) -> tuple[State, jax.Array]:
    """One layer: inputs [T, B, 4·D] (projected, bias added), recurrent [D, 4·D], the state before (None: zeros) -> the
    state after, and the outputs [T, B, D]."""

    def step(state: State, x: jax.Array) -> tuple[State, jax.Array]:
        h, c = _cell(x + jnp.matmul(state[0], recurrent, precision=PRECISION), state[1])
        return (h, c), h

    zero = jnp.zeros((inputs.shape[1], recurrent.shape[0]), inputs.dtype)
    return jax.lax.scan(step, (zero, zero) if state is None else state, inputs)


class LSTM(nn.Module):
    """`layers` LSTMs one after another plus a skip over all of them: [B, T, D] -> [B, T, D], and every layer's state
    after the last frame, from which the next frames go on.

    Parameters per layer l: `input_l` [D, 4·D], `recurrent_l` [D, 4·D], `bias_l` [4·D] (PyTorch's two biases summed),
    gates in the order i, f, g, o.
    """

    layers: int

    @nn.compact
    def __call__(self, x: jax.Array, states: tuple[State, ...] | None = None) -> tuple[jax.Array, tuple[State, ...]]:
        width = x.shape[-1]
        after = []
        init = _uniform(width**-0.5)
        h = x.transpose(1, 0, 2)  # [T, B, D]
        for layer in range(self.layers):
            projection = self.param(f"input_{layer}", init, (width, 4 * width))
            recurrent = self.param(f"recurrent_{layer}", init, (width, 4 * width))
            bias = self.param(f"bias_{layer}", init, (4 * width,))
            inputs = jnp.matmul(h, projection, precision=PRECISION) + bias
            state, h = lstm_scan(inputs, recurrent, None if states is None else states[layer])
            after.append(state)
        return x + h.transpose(1, 0, 2), tuple(after)


def _uniform(bound: float):
    def init(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
