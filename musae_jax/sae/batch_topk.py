"""BatchTopK (Bussmann et al. 2024): the k·N largest activations of a batch are kept, so k is a mean, not a quota.

One pure `train_step(config, state, batch) -> (state, metrics)`. Everything is fp32. The loss and AuxK (Gao et al. 2024)
are both fractions of variance, so the coefficient of AuxK means the same at any scale of activations. Inputs are
centred and scaled by constants estimated once; `fold` moves them into the weights exactly. After training the rule is
a JumpReLU whose threshold is the running mean of the batches' thresholds, so single tokens can be encoded.
"""

import dataclasses
import functools
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from musae_jax.errors import MusaeError
from musae_jax.sae.sae import SAE, SAEConfig

Params = dict[str, jax.Array]
NEVER = 2**30  # a latent that has not fired for this many tokens has stopped being counted


@dataclasses.dataclass(frozen=True)
class BatchTopKConfig:
    """How to train; the recipe is that of the dictionary_learning library except where a field says otherwise.

    Attributes:
      d_in, d_sae: D and F.
      k: active features per token, on average over a batch.
      steps, batch_size: optimiser steps, and N tokens in each.
      lr: peak learning rate of Adam (0.9, 0.999); None: 2e-4 / sqrt(F / 2^14) for 30,000 steps and more, and
        sqrt(30,000 / steps) times that for fewer, at most tenfold: a short run at the usual rate ends unfinished.
      lr_warm_up_steps: linear from 0; None: min(1000, steps / 20).
      lr_decay_steps: linear to 0 at the end; None: the last fifth.
      grad_clip: largest global norm of a gradient.
      auxk_alpha: weight of AuxK.
      k_aux: dead latents per token in AuxK; None: d_in / 2.
      dead_after_tokens: a latent is dead after so many tokens without firing; None: a tenth of the run, at most 10M
        (the usual 10M would make nothing dead in a short run).
      threshold_decay: of the running mean of the batches' thresholds; None: 0.99, or 1 − 20 / steps if that is less.
      count_tolerance: how far the number of kept activations may be from k·N, as a share; the price of exactness is
        passes over the [N, F] activations.
      seed: of the weights and of the order of the data.
    """

    d_in: int
    d_sae: int
    k: int = 32
    steps: int = 2000
    batch_size: int = 2048
    lr: float | None = None
    lr_warm_up_steps: int | None = None
    lr_decay_steps: int | None = None
    grad_clip: float = 1.0
    auxk_alpha: float = 1 / 32
    k_aux: int | None = None
    dead_after_tokens: int | None = None
    threshold_decay: float | None = None
    count_tolerance: float = 0.002
    seed: int = 0

    def __post_init__(self):
        for name in ("d_in", "d_sae", "k", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise MusaeError(f"{name} of the SAE is {getattr(self, name)}, but it must be at least 1")
        if self.k > self.d_sae:
            raise MusaeError(f"k = {self.k} features per token were asked of an SAE with d_sae = {self.d_sae}; lower k")

    @property
    def tokens(self) -> int:
        return self.steps * self.batch_size

    @property
    def k_aux_used(self) -> int:
        return min(self.d_sae, self.k_aux if self.k_aux is not None else max(1, self.d_in // 2))

    @property
    def dead_after_used(self) -> int:
        if self.dead_after_tokens is not None:
            return min(self.dead_after_tokens, NEVER - 1)
        return min(10_000_000, self.tokens // 10)

    @property
    def lr_used(self) -> float:
        if self.lr is not None:
            return self.lr
        return 2e-4 / math.sqrt(self.d_sae / 2**14) * min(10.0, max(1.0, math.sqrt(30_000 / self.steps)))

    @property
    def threshold_decay_used(self) -> float:
        return self.threshold_decay if self.threshold_decay is not None else max(0.0, min(0.99, 1 - 20 / self.steps))

    def learning_rate(self, step: jax.Array) -> jax.Array:
        """Of optimiser step 0, 1, …"""
        peak = self.lr_used
        warm_up = self.lr_warm_up_steps if self.lr_warm_up_steps is not None else min(1000, self.steps // 20)
        decay = self.lr_decay_steps if self.lr_decay_steps is not None else self.steps // 5
        up = (step + 1) / max(warm_up, 1)
        down = (self.steps - step) / max(decay, 1)
        return peak * jnp.clip(jnp.minimum(up, down), 0.0, 1.0)


@flax.struct.dataclass
class TrainState:
    """All that changes in training; a pytree of arrays.

    params: W_enc [D, F], b_enc [F], W_dec_t [D, F] with unit columns (the decoder transposed: so laid out, its gradient
    is a matrix product that CPUs do twice as fast), b_dec [D]; all in centred and scaled units.
    center [D], scale []: x' = (x − center) / scale.
    adam: optax state.  step []: batches seen.  idle [F]: tokens since a latent last fired.
    threshold []: of the last batch, where the next search starts.  threshold_mean []: running mean, with the weight
    threshold_weight [] it has gathered.  skipped []: batches left out because something was not finite.
    """

    params: Params
    center: jax.Array
    scale: jax.Array
    adam: Any
    step: jax.Array
    idle: jax.Array
    threshold: jax.Array
    threshold_mean: jax.Array
    threshold_weight: jax.Array
    skipped: jax.Array


def init_state(config: BatchTopKConfig, key: jax.Array, center: Any = None, scale: Any = 1.0) -> TrainState:
    """Random unit decoder rows, the encoder their transpose, no biases (b_dec = 0 is the mean: inputs are centred)."""
    W_dec_t = _unit_columns(jax.random.normal(key, (config.d_in, config.d_sae)))
    params = {
        "W_enc": jnp.array(W_dec_t),
        "b_enc": jnp.zeros(config.d_sae),
        "W_dec_t": W_dec_t,
        "b_dec": jnp.zeros(config.d_in),
    }
    # Every leaf is its own buffer: donation refuses one that appears twice.
    return TrainState(
        params=params,
        center=jnp.zeros(config.d_in) if center is None else jnp.array(center, jnp.float32),
        scale=jnp.array(scale, jnp.float32),
        adam=_adam().init(params),
        step=jnp.array(0, jnp.int32),
        idle=jnp.zeros(config.d_sae, jnp.int32),
        threshold=jnp.array(0.0, jnp.float32),
        threshold_mean=jnp.array(0.0, jnp.float32),
        threshold_weight=jnp.array(0.0, jnp.float32),
        skipped=jnp.array(0, jnp.int32),
    )


def column_counts(mask: jax.Array) -> jax.Array:
    """How many entries of each column of a bool [N, F] are set, int32 [F]."""
    if mask.shape[0] % 128 == 0:  # bytes first: four times as fast as integers on CPUs
        parts = jnp.sum(mask.reshape(-1, 128, mask.shape[1]).astype(jnp.uint8), axis=1, dtype=jnp.uint8)
        return jnp.sum(parts.astype(jnp.int32), axis=0)
    return jnp.sum(mask, axis=0, dtype=jnp.int32)


def batch_threshold(values: jax.Array, count: int, guess: jax.Array, tolerance: float = 0.0) -> jax.Array:
    """τ >= 0 with `count` entries of values [N, F] above it, up to ties and `tolerance` (a share of count).

    A bracketed search on the number of entries above τ: false position on the logarithm of that number, every third
    probe a bisection, the first probe `guess`. A sort of N·F numbers is never made. 0 where no more than `count`
    entries are positive; where ties leave no exact τ, fewer entries are above it.
    """
    low, high = math.floor(count * (1 - tolerance)), math.ceil(count * (1 + tolerance))

    def above(threshold):
        return jnp.sum(column_counts(values > threshold))

    def unfinished(search):
        left, right, _, _, found, _, probes = search
        return ~((found >= low) & (found <= high)) & (probes < 96) & (jnp.nextafter(left, right) < right)

    def probe(search):
        left, right, n_left, n_right, _, _, probes = search
        a, b = jnp.log(n_left + 0.5), jnp.log(n_right + 0.5)
        share = jnp.clip((a - math.log(count + 0.5)) / jnp.maximum(a - b, 1e-6), 0.02, 0.98)
        share = jnp.where(probes % 3 == 2, 0.5, share)
        point = left + share * (right - left)
        point = jnp.where((probes == 0) & (guess > left) & (guess < right), guess, point)
        point = jnp.clip(point, jnp.nextafter(left, right), jnp.nextafter(right, left))
        n = above(point)
        more = n > count
        return (
            jnp.where(more, point, left),
            jnp.where(more, right, point),
            jnp.where(more, n, n_left),
            jnp.where(more, n_right, n),
            n,
            point,
            probes + 1,
        )

    zero = jnp.zeros((), values.dtype)
    positive = above(zero)
    top = jnp.maximum(jnp.max(values), zero)
    search = (zero, top, positive, jnp.zeros((), jnp.int32), positive, zero, jnp.zeros((), jnp.int32))
    _, right, _, _, found, point, _ = jax.lax.while_loop(unfinished, probe, search)
    # Ties can make the count jump over the goal: then the side with fewer is taken, as many as k·N at most.
    point = jnp.where((found >= low) & (found <= high), point, right)
    return jnp.where(positive <= count, zero, point)


def losses(
    config: BatchTopKConfig, params: Params, x: jax.Array, guess: jax.Array, dead: jax.Array | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(loss, parts) of centred tokens x [N, D]; `guess` a first threshold, `dead` bool [F] (None: no AuxK).

    loss = FVU + auxk_alpha · AuxK. FVU = ‖x − x̂‖² / ‖x − mean x‖² over the batch. AuxK: the k_aux largest activations
    among dead latents, decoded without b_dec, against the residual e = x − x̂ (a constant there), as a share of the
    variance of e.
    """
    # b_dec is moved out of the matmul so that its gradient sums over the batch before the matrix product, not after.
    pre = x @ params["W_enc"] + (params["b_enc"] - params["b_dec"] @ params["W_enc"])  # [N, F]
    threshold = batch_threshold(jax.lax.stop_gradient(pre), config.k * x.shape[0], guess, config.count_tolerance)
    f = jnp.where(pre > threshold, pre, 0.0)  # the threshold is never negative, so this is a ReLU too
    error = x - (f @ params["W_dec_t"].T + params["b_dec"])  # [N, D]
    fvu = jnp.sum(error**2) / _variance(x)
    auxk = jnp.zeros(())
    if dead is not None:
        auxk = _auxk(config, params, pre, dead, jax.lax.stop_gradient(error))
    fires = column_counts(f > 0)  # [F]
    parts = {"fvu": fvu, "auxk": auxk, "l0": fires.sum() / x.shape[0], "threshold": threshold, "fired": fires > 0}
    return fvu + config.auxk_alpha * auxk, parts


def _auxk(config: BatchTopKConfig, params: Params, pre: jax.Array, dead: jax.Array, target: jax.Array) -> jax.Array:
    candidates = jnp.where(dead, jax.nn.relu(pre), 0.0)  # [N, F]
    still = jax.lax.stop_gradient(candidates)

    def largest():
        return jax.lax.top_k(still, config.k_aux_used)[0].min(-1, keepdims=True)

    # With k_aux dead latents or fewer all of them are taken, and the search for the largest is saved.
    least = jax.lax.cond(dead.sum() > config.k_aux_used, largest, lambda: jnp.zeros((still.shape[0], 1)))
    guess = jnp.where(still >= least, candidates, 0.0) @ params["W_dec_t"].T  # without b_dec
    return jnp.sum((target - guess) ** 2) / _variance(target)


def _variance(x: jax.Array) -> jax.Array:
    """‖x − mean x‖² over tokens [N, D], never 0."""
    return jnp.maximum(jnp.sum((x - x.mean(0)) ** 2), 1e-30)


def update(config: BatchTopKConfig, state: TrainState, batch: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimiser step on raw activations [N, D]. Pure; `train_step` is the same, jitted, its state donated."""
    x = (batch.astype(jnp.float32) - state.center) / state.scale
    dead = state.idle >= config.dead_after_used

    def gradients(dead: jax.Array | None) -> Any:
        loss = functools.partial(losses, config, x=x, guess=state.threshold, dead=dead)
        return jax.value_and_grad(loss, has_aux=True)(state.params)

    # AuxK costs as much as the rest, so without dead latents it is not computed at all.
    if config.auxk_alpha > 0:
        (loss, parts), grads = jax.lax.cond(dead.any(), lambda: gradients(dead), lambda: gradients(None))
    else:
        (loss, parts), grads = gradients(None)
    # Unit columns can only turn: the gradient along them would do nothing but feed Adam's moments.
    W_dec_t = state.params["W_dec_t"]
    grads["W_dec_t"] = grads["W_dec_t"] - W_dec_t * jnp.sum(grads["W_dec_t"] * W_dec_t, axis=0)
    norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    grads = jax.tree.map(lambda g: g * jnp.minimum(1.0, config.grad_clip / jnp.maximum(norm, 1e-12)), grads)
    steps, adam = _adam().update(grads, state.adam)
    lr = config.learning_rate(state.step)
    params = jax.tree.map(lambda p, s: p - lr * s, state.params, steps)
    params["W_dec_t"] = _unit_columns(params["W_dec_t"])
    decay = config.threshold_decay_used
    moved = dict(
        params=params,
        adam=adam,
        idle=jnp.where(parts["fired"], 0, jnp.minimum(state.idle + x.shape[0], NEVER)),
        threshold=parts["threshold"],
        threshold_mean=decay * state.threshold_mean + (1 - decay) * parts["threshold"],
        threshold_weight=decay * state.threshold_weight + (1 - decay),
    )
    old = {name: getattr(state, name) for name in moved}
    kept = jax.tree.map(lambda new, before: jnp.where(finite, new, before), moved, old)
    skipped = state.skipped + jnp.where(finite, 0, 1)
    state = state.replace(**kept, step=state.step + 1, skipped=skipped)
    metrics = {name: parts[name] for name in ("fvu", "auxk", "l0", "threshold")}
    metrics |= {"loss": loss, "grad_norm": norm, "lr": lr, "dead": dead.mean(), "skipped": skipped}
    return state, metrics


train_step = functools.partial(jax.jit, static_argnames=("config",), donate_argnames=("state",))(update)


@functools.partial(jax.jit, static_argnames=("config",), donate_argnames=("state",))
def train_steps(
    config: BatchTopKConfig, state: TrainState, batches: jax.Array
) -> tuple[TrainState, dict[str, jax.Array]]:
    """`train_step` on each of batches [S, N, D] in turn, in one call; every metric comes back as [S].

    Working memory is taken once for all S steps, which on CPUs is worth a sixth of the time.
    """
    return jax.lax.scan(functools.partial(update, config), state, batches)


def fold(config: BatchTopKConfig, state: TrainState, metadata: dict[str, Any] | None = None) -> SAE:
    """The SAE on raw activations that computes what the trained one computes on centred and scaled ones.

    With x' = (x − c) / s: b_dec = c + s b'_dec, b_enc = s b'_enc, threshold = s θ', the matrices as they are. Features
    come out s times as large, which keeps the decoder's rows at unit norm, and the reconstruction is exact.
    """
    threshold = state.threshold_mean / jnp.maximum(state.threshold_weight, 1e-12)
    params = {
        "W_enc": state.params["W_enc"],
        "b_enc": state.params["b_enc"] * state.scale,
        "W_dec": state.params["W_dec_t"].T,
        "b_dec": state.center + state.scale * state.params["b_dec"],
        "threshold": jnp.full(config.d_sae, threshold * state.scale),
    }
    return SAE(SAEConfig(config.d_in, config.d_sae, "jumprelu", config.k, True, dict(metadata or {})), params)


def _adam() -> optax.GradientTransformation:
    return optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)


def _unit_columns(matrix: jax.Array) -> jax.Array:
    return matrix / jnp.maximum(jnp.linalg.norm(matrix, axis=0), 1e-12)
