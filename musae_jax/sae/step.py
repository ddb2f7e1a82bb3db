"""One training step for every architecture: a pure `train_step(recipe, state, batch) -> (state, metrics)`.

Everything is fp32. Inputs are centred and scaled by constants estimated once; `fold` moves them into the weights
exactly. Decoder rows have norm 1 after every step and their gradient is projected accordingly. A step whose loss or
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

from musae_jax.sae.products import Active, activations, decode, decode_list, encode
from musae_jax.sae.recipe import NEVER, Knobs, Memory, Params, Recipe, Tokens
from musae_jax.sae.sae import SAE, SAEConfig
from musae_jax.sae.shards import all_tokens, decode_groups, largest, over_tokens, token_count

NO_TOKEN = -1e30  # a pre-activation below every threshold


@flax.struct.dataclass
class TrainState:
    """All that changes in training; a pytree of arrays.

    params: W_enc_t [F, D] (the encoder transposed: both matrices have a row per latent), b_enc [F], W_dec [F, D] with
    unit rows, b_dec [D], and the architecture's own; all in centred and scaled units.
    center [D], scale []: x' = (x − center) / scale.
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
    shape = (recipe.d_sae, recipe.d_in)
    if recipe.init == "tied":
        W_dec = _unit_rows(jax.random.normal(key, shape))
        W_enc_t = jnp.array(W_dec)
    else:
        encoder_key, decoder_key = jax.random.split(key)
        W_dec = _unit_rows(jax.random.uniform(decoder_key, shape, minval=-1.0))
        # PyTorch takes the second axis of W_enc for the fan-in, which is F.
        W_enc_t = jax.random.uniform(encoder_key, shape, minval=-1.0) * (6 / recipe.d_sae) ** 0.5
    params = {"W_enc_t": W_enc_t, "b_enc": jnp.zeros(recipe.d_sae), "W_dec": W_dec, "b_dec": jnp.zeros(recipe.d_in)}
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
    active: Active | None = None,
) -> tuple[jax.Array, tuple[dict[str, jax.Array], Memory]]:
    """(loss, (parts, new memory)) of centred tokens x [N, D].

    `dead` bool [F] (None: no AuxK); `keep` bool [N] (None: all tokens count; rows of x that do not must be 0);
    `active`: what the recipe's `choose` has listed of these tokens, with `memory` the new one (None: nothing is listed,
    all is computed densely; the result is the same but for rounding).

    loss = reconstruction + penalty of the architecture + auxk_alpha · AuxK. Reconstruction: ‖x − x̂‖² over the batch,
    divided as `Recipe.loss` says; with Matryoshka groups its mean over the nested prefixes. AuxK: the k_aux largest
    activations among dead latents, decoded without b_dec, against the residual e = x − x̂ (a constant there), as a
    share of the variance of e.
    """
    count = _count(x, keep)
    variance = _variance(x, keep)
    tokens = Tokens(x, keep, count, variance if recipe.loss == "fvu" else count)
    ends, W_dec = recipe.group_ends, params["W_dec"]
    if active is None:
        pre = preactivations(params, x, keep)  # [N, F]
        f, memory = recipe.activate(params, pre, knobs, memory, count)
        decoded = decode_groups(f, W_dec, ends)
        fires = over_tokens(column_counts(f > 0))  # [F]
    else:
        pre = None
        f = activations(x - params["b_dec"], params["W_enc_t"], params["b_enc"], active)  # [E]
        group = jnp.searchsorted(jnp.array(ends), active.latent, side="right")
        rows = len(ends) * len(x)
        decoded = decode_list(rows, f, group * len(x) + active.token, active.latent, W_dec).reshape(-1, *x.shape)
        fires = jnp.zeros(recipe.d_sae, jnp.int32).at[active.latent].add(f > 0)
    errors = nested_errors(params, decoded, tokens)
    squares = [over_tokens(jnp.sum(error**2)) for error in errors]
    error = errors[-1]
    auxk = jnp.zeros(())
    if dead is not None:
        if active is not None:  # no more are dead than there is room for
            room = auxk_room(recipe)
            latents = jnp.nonzero(dead, size=room, fill_value=0)[0]
            dead = jnp.arange(room) < dead.sum()
            some = {name: params[name][latents] for name in ("W_enc_t", "b_enc")} | {"b_dec": params["b_dec"]}
            pre, W_dec = preactivations(some, x, keep), W_dec[latents]
        auxk = _auxk(recipe, pre, W_dec, dead, jax.lax.stop_gradient(error), keep)
    loss = sum(squares) / (len(squares) * tokens.total)
    loss = loss + recipe.penalty(params, tokens, pre, f, knobs)
    if recipe.auxk_alpha:
        loss = loss + knobs["auxk_alpha"] * auxk
    parts = {"fvu": squares[-1] / variance, "auxk": auxk, "l0": fires.sum() / count, "fired": fires > 0}
    if len(squares) > 1:
        parts["fvu_first_group"] = squares[0] / variance
    return loss, (parts, memory)


def preactivations(params: Params, x: jax.Array, keep: jax.Array | None) -> jax.Array:
    """p = (x − b_dec) W_enc + b_enc [N, F], hugely negative for tokens that do not count."""
    # b_dec is moved out of the matmul so that its gradient sums over the batch before the matrix product, not after.
    pre = encode(x, params["W_enc_t"]) + (params["b_enc"] - params["W_enc_t"] @ params["b_dec"])
    return pre if keep is None else jnp.where(keep[:, None], pre, NO_TOKEN)


def nested_errors(params: Params, decoded: Sequence[jax.Array], tokens: Tokens) -> list[jax.Array]:
    """x − x̂ [N, D] of each nested prefix of the latents, 0 where a token does not count; `decoded` is by groups."""
    error, errors = tokens.x - params["b_dec"], []
    for part in decoded:
        error = error - part
        errors.append(error if tokens.keep is None else error * tokens.keep[:, None])
    return errors


def auxk_room(recipe: Recipe) -> int:
    """For how many dead latents AuxK is computed beside a list of activations; more are a case for dense products."""
    return max(1, recipe.d_sae // 8)


def _auxk(recipe: Recipe, pre: jax.Array, W_dec: jax.Array, dead: jax.Array, target: jax.Array, keep: Any) -> jax.Array:
    """AuxK of all latents, or of some that are all of the dead ones: pre [N, M], W_dec [M, D], dead [M]."""
    candidates = jnp.where(dead, jax.nn.relu(pre), 0.0)  # [N, M]
    still = jax.lax.stop_gradient(candidates)
    k = min(recipe.k_aux_used, len(W_dec))

    def kth_largest():
        return largest(still, k).min(-1, keepdims=True)

    # With k_aux dead latents or fewer all of them are taken, and the search for the largest is saved.
    least = jax.lax.cond(dead.sum() > k, kth_largest, lambda: jnp.zeros((still.shape[0], 1)))
    guess = decode(jnp.where(still >= least, candidates, 0.0), W_dec)  # without b_dec
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
    size, count = token_count(batch.shape[0]), _count(batch, keep)

    def gradients(with_auxk: bool, chosen: Any) -> Any:
        def of_one(state: TrainState, dead: jax.Array, chosen: Any) -> Any:
            rise = recipe.sparsity_schedule(state.step)
            knobs = {n: v * rise if n in ("l1_coefficient", "l0_coefficient") else v for n, v in state.knobs.items()}
            active, memory = chosen or (None, state.memory)
            loss = functools.partial(
                losses, recipe, x=x, knobs=knobs, memory=memory, dead=dead if with_auxk else None, keep=keep,
                active=active,
            )  # fmt: skip
            outcome, grads = jax.value_and_grad(loss, has_aux=True)(state.params)
            return outcome, jax.tree.map(over_tokens, grads)

        return lift(of_one)(state, dead, chosen)

    def outcome(chosen: Any) -> Any:
        if not recipe.auxk_alpha:
            return gradients(False, chosen)
        # AuxK costs as much as the rest, so without dead latents it is not computed at all.
        return jax.lax.cond(dead.any(), lambda: gradients(True, chosen), lambda: gradients(False, chosen))

    def choose(state: TrainState) -> Any:
        pre = preactivations(state.params, x, keep)
        return recipe.choose(pre, state.knobs, state.memory, count)

    if recipe.sparse_used:
        few_dead = dead.sum(-1).max() <= auxk_room(recipe)
        out = jax.lax.cond(few_dead, lambda: outcome(lift(choose)(state)), lambda: outcome(None))
    else:
        out = outcome(None)
    return lift(lambda state, out, dead: _advance(recipe, state, out, dead, size, count))(state, out, dead)


def _advance(recipe: Recipe, state: TrainState, outcome: Any, dead: jax.Array, size: int, count: Any) -> Any:
    (loss, (parts, memory)), grads = outcome
    # Unit rows can only turn: the gradient along them would do nothing but feed Adam's moments.
    W_dec = state.params["W_dec"]
    grads["W_dec"] = grads["W_dec"] - W_dec * jnp.sum(grads["W_dec"] * W_dec, axis=1, keepdims=True)
    norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    grads = jax.tree.map(lambda g: g * jnp.minimum(1.0, recipe.grad_clip / jnp.maximum(norm, 1e-12)), grads)
    moves, adam = _adam(recipe).update(grads, state.adam)
    share = recipe.schedule(state.step)
    params = {name: p - share * recipe.rate(name, state.knobs) * moves[name] for name, p in state.params.items()}
    params["W_dec"] = _unit_rows(params["W_dec"])
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


def _unit_rows(matrix: jax.Array) -> jax.Array:
    return matrix / jnp.maximum(jnp.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)


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
        "W_enc": state.params["W_enc_t"].T,
        "W_dec": state.params["W_dec"],
        "b_dec": state.center + state.scale * state.params["b_dec"],
        **recipe.inference_params(state.params, state.memory, state.scale),
    }
    k = getattr(recipe, "k", None)
    return SAE(SAEConfig(recipe.d_in, recipe.d_sae, recipe.rule, k, True, dict(metadata or {})), params)
