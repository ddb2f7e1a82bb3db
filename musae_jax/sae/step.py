"""One training step for every architecture: a pure `train_step(recipe, state, batch) -> (state, metrics)`.

Everything is fp32. Inputs are centred and scaled by constants estimated once; `fold` moves them into the weights
exactly. Decoder columns have norm 1 after every step and their gradient is projected accordingly. A step whose loss or
gradient is not finite changes nothing and is counted. Metrics are computed in the step and stay on the device.

A state whose arrays have one more axis [G] in front holds a group of G SAEs that differ in their weights and in the
`traced` fields of their recipes only; the very same step then trains all of them on one batch.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from musae_jax.sae.recipe import NEVER, Knobs, Memory, Params, Recipe, Tokens
from musae_jax.sae.sae import SAE, SAEConfig
from musae_jax.sae.shards import all_tokens, decode_groups, largest, over_tokens, token_count

NO_TOKEN = -1e30  # a pre-activation below every threshold


@flax.struct.dataclass
class TrainState:
    """All that changes in training; a pytree of arrays.

    params: W_enc [D, F], b_enc [F], W_dec_t [D, F] with unit columns (the decoder transposed: so laid out, its gradient
    is a matrix product that CPUs do twice as fast), b_dec [D], and the architecture's own; all in centred and scaled
    units.  center [D], scale []: x' = (x − center) / scale.
    knobs: the traced fields of the recipe, each [].  adam: optax state.  step []: batches seen.
    idle [F]: tokens since a latent last fired.  memory: the architecture's own.
    skipped []: batches left out because something was not finite.  filtered []: tokens left out for their norm.
    """

    params: Params
    center: jax.Array
    scale: jax.Array
    knobs: Knobs
    adam: Any
    step: jax.Array
    idle: jax.Array
    memory: Memory
    skipped: jax.Array
    filtered: jax.Array


def init_state(recipe: Recipe, key: jax.Array, center: Any = None, scale: Any = 1.0) -> TrainState:
    """Weights as `Recipe.init` says, no biases; `center` [D] and `scale` [] as estimated from the data."""
    shape = (recipe.d_in, recipe.d_sae)
    if recipe.init == "tied":
        W_dec_t = _unit_columns(jax.random.normal(key, shape))
        W_enc = jnp.array(W_dec_t)
    else:
        encoder_key, decoder_key = jax.random.split(key)
        W_dec_t = _unit_columns(jax.random.uniform(decoder_key, shape, minval=-1.0))
        # PyTorch takes the second axis for the fan-in, which here is F.
        W_enc = jax.random.uniform(encoder_key, shape, minval=-1.0) * (6 / recipe.d_sae) ** 0.5
    params = {"W_enc": W_enc, "b_enc": jnp.zeros(recipe.d_sae), "W_dec_t": W_dec_t, "b_dec": jnp.zeros(recipe.d_in)}
    params |= recipe.extra_params()
    # Every leaf is its own buffer: donation refuses one that appears twice.
    return TrainState(
        params=params,
        center=jnp.zeros(recipe.d_in) if center is None else jnp.array(center, jnp.float32),
        scale=jnp.array(scale, jnp.float32),
        knobs={name: jnp.array(value, jnp.float32) for name, value in recipe.knobs().items()},
        adam=_adam(recipe).init(params),
        step=jnp.array(0, jnp.int32),
        idle=jnp.zeros(recipe.d_sae, jnp.int32),
        memory=recipe.memory(),
        skipped=jnp.array(0, jnp.int32),
        filtered=jnp.array(0, jnp.int32),
    )


def column_counts(mask: jax.Array) -> jax.Array:
    """How many entries of each column of a bool [N, F] are set, int32 [F]."""
    if mask.shape[0] % 128 == 0:  # bytes first: four times as fast as integers on CPUs
        parts = jnp.sum(mask.reshape(-1, 128, mask.shape[1]).astype(jnp.uint8), axis=1, dtype=jnp.uint8)
        return jnp.sum(parts.astype(jnp.int32), axis=0)
    return jnp.sum(mask, axis=0, dtype=jnp.int32)


# --- the loss ---------------------------------------------------------------------------------------------------------


def losses(
    recipe: Recipe,
    params: Params,
    x: jax.Array,
    knobs: Knobs,
    memory: Memory,
    dead: jax.Array | None = None,
    keep: jax.Array | None = None,
) -> tuple[jax.Array, tuple[dict[str, jax.Array], Memory]]:
    """(loss, (parts, new memory)) of centred tokens x [N, D].

    `dead` bool [F] (None: no AuxK); `keep` bool [N] (None: all tokens count; rows of x that do not must be 0).

    loss = reconstruction + penalty of the architecture + auxk_alpha · AuxK. Reconstruction: ‖x − x̂‖² over the batch,
    divided as `Recipe.loss` says; with Matryoshka groups its mean over the nested prefixes. AuxK: the k_aux largest
    activations among dead latents, decoded without b_dec, against the residual e = x − x̂ (a constant there), as a
    share of the variance of e.
    """
    count = _count(x, keep)
    variance = _variance(x, keep)
    tokens = Tokens(x, keep, count, variance if recipe.loss == "fvu" else count)
    # b_dec is moved out of the matmul so that its gradient sums over the batch before the matrix product, not after.
    pre = x @ params["W_enc"] + (params["b_enc"] - params["b_dec"] @ params["W_enc"])  # [N, F]
    if keep is not None:
        pre = jnp.where(keep[:, None], pre, NO_TOKEN)
    f, memory = recipe.activate(params, pre, knobs, memory, count)
    errors = nested_errors(params, f, tokens, recipe.group_ends)
    squares = [over_tokens(jnp.sum(error**2)) for error in errors]
    error = errors[-1]
    auxk = jnp.zeros(())
    if dead is not None:
        auxk = _auxk(recipe, params, pre, dead, jax.lax.stop_gradient(error), keep)
    fires = over_tokens(column_counts(f > 0))  # [F]
    loss = sum(squares) / (len(squares) * tokens.total)
    loss = loss + recipe.penalty(params, tokens, pre, f, knobs)
    if recipe.auxk_alpha:
        loss = loss + knobs["auxk_alpha"] * auxk
    parts = {"fvu": squares[-1] / variance, "auxk": auxk, "l0": fires.sum() / count, "fired": fires > 0}
    if len(squares) > 1:
        parts["fvu_first_group"] = squares[0] / variance
    return loss, (parts, memory)


def nested_errors(params: Params, f: jax.Array, tokens: Tokens, ends: tuple[int, ...]) -> list[jax.Array]:
    """x − x̂ [N, D] of each nested prefix of the latents, 0 where a token does not count; costs one decoding in all."""
    error, errors = tokens.x - params["b_dec"], []
    for part in decode_groups(f, params["W_dec_t"], ends):
        error = error - part
        errors.append(error if tokens.keep is None else error * tokens.keep[:, None])
    return errors


def _auxk(recipe: Recipe, params: Params, pre: jax.Array, dead: jax.Array, target: jax.Array, keep: Any) -> jax.Array:
    candidates = jnp.where(dead, jax.nn.relu(pre), 0.0)  # [N, F]
    still = jax.lax.stop_gradient(candidates)

    def kth_largest():
        return largest(still, recipe.k_aux_used).min(-1, keepdims=True)

    # With k_aux dead latents or fewer all of them are taken, and the search for the largest is saved.
    least = jax.lax.cond(dead.sum() > recipe.k_aux_used, kth_largest, lambda: jnp.zeros((still.shape[0], 1)))
    guess = jnp.where(still >= least, candidates, 0.0) @ params["W_dec_t"].T  # without b_dec
    return over_tokens(jnp.sum((target - guess) ** 2)) / _variance(target, keep)


def _variance(x: jax.Array, keep: jax.Array | None) -> jax.Array:
    """‖x − mean x‖² over the tokens [N, D] that count, never 0."""
    mean = over_tokens(x.sum(0)) / jnp.maximum(_count(x, keep), 1)  # rows that do not count are 0
    squares = (x - mean) ** 2 if keep is None else (x - mean) ** 2 * keep[:, None]
    return jnp.maximum(over_tokens(jnp.sum(squares)), 1e-30)


def _count(x: jax.Array, keep: jax.Array | None) -> Any:
    """How many of the tokens [N, D] count, on all devices."""
    return token_count(x.shape[0]) if keep is None else over_tokens(keep.sum(dtype=jnp.int32))


# --- the step ---------------------------------------------------------------------------------------------------------


def update(recipe: Recipe, state: TrainState, batch: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimiser step on raw activations [N, D]. Pure; `train_step` is the same, jitted, its state donated, and
    `parallel` has it on many devices.

    Metrics are [], or [G] for the state of a group: loss, fvu, auxk, l0, dead (share of latents), grad_norm, lr,
    skipped (batches so far), filtered (tokens so far, with max_norm), fvu_first_group (with group_fractions) and those
    of the architecture.
    """
    grouped = state.step.ndim == 1
    lift = over_group if grouped else _as_it_is
    # A group shares its tokens, and so its centre and scale.
    center, scale = (state.center[0], state.scale[0]) if grouped else (state.center, state.scale)
    x = (batch.astype(jnp.float32) - center) / scale
    keep = None if recipe.max_norm is None else norm_filter(recipe.max_norm, batch)
    if keep is not None:
        x = jnp.where(keep[:, None], x, 0.0)
    dead = state.idle >= recipe.dead_after_used

    def gradients(with_auxk: bool) -> Any:
        def of_one(state: TrainState, dead: jax.Array) -> Any:
            rise = recipe.sparsity_schedule(state.step)
            knobs = {n: v * rise if n in ("l1_coefficient", "l0_coefficient") else v for n, v in state.knobs.items()}
            loss = functools.partial(
                losses, recipe, x=x, knobs=knobs, memory=state.memory, dead=dead if with_auxk else None, keep=keep
            )
            outcome, grads = jax.value_and_grad(loss, has_aux=True)(state.params)
            return outcome, jax.tree.map(over_tokens, grads)

        return lift(of_one)(state, dead)

    # AuxK costs as much as the rest, so without dead latents it is not computed at all.
    if recipe.auxk_alpha:
        outcome = jax.lax.cond(dead.any(), lambda: gradients(True), lambda: gradients(False))
    else:
        outcome = gradients(False)
    size, count = token_count(batch.shape[0]), _count(batch, keep)
    return lift(lambda state, outcome, dead: _advance(recipe, state, outcome, dead, size, count))(state, outcome, dead)


def _advance(recipe: Recipe, state: TrainState, outcome: Any, dead: jax.Array, size: int, count: Any) -> Any:
    (loss, (parts, memory)), grads = outcome
    # Unit columns can only turn: the gradient along them would do nothing but feed Adam's moments.
    W_dec_t = state.params["W_dec_t"]
    grads["W_dec_t"] = grads["W_dec_t"] - W_dec_t * jnp.sum(grads["W_dec_t"] * W_dec_t, axis=0)
    norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    grads = jax.tree.map(lambda g: g * jnp.minimum(1.0, recipe.grad_clip / jnp.maximum(norm, 1e-12)), grads)
    moves, adam = _adam(recipe).update(grads, state.adam)
    share = recipe.schedule(state.step)
    params = {name: p - share * recipe.rate(name, state.knobs) * moves[name] for name, p in state.params.items()}
    params["W_dec_t"] = _unit_columns(params["W_dec_t"])
    idle = jnp.where(parts.pop("fired"), 0, jnp.minimum(state.idle + count, NEVER))
    moved = {"params": params, "adam": adam, "idle": idle, "memory": memory}
    old = {name: getattr(state, name) for name in moved}
    kept = jax.tree.map(lambda new, before: jnp.where(finite, new, before), moved, old)
    skipped = state.skipped + jnp.where(finite, 0, 1)
    filtered = state.filtered + (size - count)
    metrics = {**parts, "loss": loss, "grad_norm": norm, "lr": share * state.knobs["lr"], "dead": dead.mean()}
    metrics |= {"skipped": skipped, **recipe.report(params, memory)}
    if recipe.max_norm is not None:
        metrics["filtered"] = filtered
    return state.replace(**kept, step=state.step + 1, skipped=skipped, filtered=filtered), metrics


train_step = functools.partial(jax.jit, static_argnames=("recipe",), donate_argnames=("state",))(update)


def updates(recipe: Recipe, state: TrainState, batches: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
    """`update` on each of batches [S, N, D] in turn, in one call; every metric comes back with [S] in front.

    Working memory is taken once for all S steps, which on CPUs is worth a sixth of the time.
    """
    return jax.lax.scan(functools.partial(update, recipe), state, batches)


train_steps = functools.partial(jax.jit, static_argnames=("recipe",), donate_argnames=("state",))(updates)


def norm_filter(max_norm: float, batch: Any) -> jax.Array:
    """Which raw tokens [N, D] have at most `max_norm` times the batch's median norm; bool [N].

    A norm that is no number passes: such a batch is to be skipped and counted, not mended.
    """
    norms = jnp.linalg.norm(jnp.asarray(batch, jnp.float32), axis=1)
    return ~(norms > max_norm * jnp.median(all_tokens(norms)))


def _adam(recipe: Recipe) -> optax.GradientTransformation:
    return optax.scale_by_adam(b1=recipe.adam_b1, b2=recipe.adam_b2, eps=recipe.adam_eps)


def _unit_columns(matrix: jax.Array) -> jax.Array:
    return matrix / jnp.maximum(jnp.linalg.norm(matrix, axis=0), 1e-12)


def over_group(function: Any) -> Any:
    """`function` of one member, for arrays with [G] in front."""
    if jax.default_backend() == "cpu":  # a quarter faster than vmap there, and the working memory of one member
        return lambda *arguments: jax.lax.map(lambda member: function(*member), arguments)
    return jax.vmap(function)


def _as_it_is(function: Any) -> Any:
    return function


# --- groups, and what comes out ---------------------------------------------------------------------------------------


def group_key(recipe: Recipe) -> Recipe:
    """Equal for recipes that one group can train: traced fields say only whether they are 0, seeds do not count."""
    return recipe.with_knobs({name: int(value > 0) for name, value in recipe.knobs().items()})


def group_recipe(recipes: Sequence[Recipe]) -> Recipe:
    """The static recipe of a group's step: the traced fields at their largest."""
    values = [recipe.knobs() for recipe in recipes]
    return recipes[0].with_knobs({name: max(value[name] for value in values) for name in values[0]})


def stack_states(states: Sequence[TrainState]) -> TrainState:
    """The state of a group, every array with [G] in front."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def group_member(state: TrainState, index: int) -> TrainState:
    """The state of one SAE of a group."""
    return jax.tree.map(lambda leaf: leaf[index], state)


def fold(recipe: Recipe, state: TrainState, metadata: dict[str, Any] | None = None) -> SAE:
    """The SAE on raw activations that computes what the trained one computes on centred and scaled ones.

    With x' = (x − c) / s: b_dec = c + s b'_dec, other biases and thresholds s times theirs, the matrices as they are.
    Features come out s times as large, which keeps the decoder's rows at unit norm, and the reconstruction is exact.
    """
    params = {
        "W_enc": state.params["W_enc"],
        "W_dec": state.params["W_dec_t"].T,
        "b_dec": state.center + state.scale * state.params["b_dec"],
        **recipe.inference_params(state.params, state.memory, state.scale),
    }
    k = getattr(recipe, "k", None)
    return SAE(SAEConfig(recipe.d_in, recipe.d_sae, recipe.rule, k, True, dict(metadata or {})), params)
