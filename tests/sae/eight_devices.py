"""Run by test_parallel.py in a process of eight fake devices: prints as JSON how far each layout is from one device."""

import dataclasses
import functools
import json
import sys

import jax
import numpy as np

from musae_jax.bench.hlo import by_kind, collectives, gathers_of_features
from musae_jax.mesh import make_mesh
from musae_jax.sae.batch_topk import BatchTopKConfig
from musae_jax.sae.gated import GatedConfig
from musae_jax.sae.jumprelu import JumpReLUConfig
from musae_jax.sae.parallel import jit_steps, make_state, place_batches, pmapped_step
from musae_jax.sae.relu import ReLUConfig
from musae_jax.sae.step import group_recipe, init_state, stack_states, train_step
from musae_jax.sae.topk import TopKConfig

D, F, N, STEPS = 16, 256, 64, 6
# Not clipped, so that a multiple of the right gradient shows. Adam's usual epsilon makes a whole step of a gradient
# that is 0 but for rounding, and no two orders of summation agree on that.
COMMON = {"steps": STEPS, "batch_size": N, "lr": 1e-2, "grad_clip": 1e9, "adam_eps": 1.0}
DEAD = {"k": 3, "k_aux": 3, "dead_after_tokens": 1000}  # half of the features begin dead, more than AuxK takes
RECIPES = {
    "batch_topk": BatchTopKConfig(D, F, **DEAD, **COMMON),
    "topk": TopKConfig(D, F, **DEAD, **COMMON),
    "jumprelu": JumpReLUConfig(D, F, **DEAD, **COMMON),
    "relu": ReLUConfig(D, F, **COMMON),
    "gated": GatedConfig(D, F, **COMMON),
    "matryoshka": BatchTopKConfig(D, F, group_fractions=(0.25, 0.125, 0.625), **DEAD, **COMMON),
    "filtered": TopKConfig(D, F, max_norm=2.0, **DEAD, **COMMON),
}
LAYOUTS = {"data": 1, "both": 4, "model": 8}  # devices along model
CASES = {  # of each set of tests: recipe -> layouts; a process runs one set
    "quick": {
        "batch_topk": ("both", "pmap"),
        "topk": ("both",),
        "jumprelu": ("data",),
        "relu": ("data",),
        "gated": ("data",),
        "matryoshka": ("both",),
    },
    "slow": {
        "batch_topk": ("data", "model"),
        "topk": ("data",),
        "jumprelu": ("both", "pmap"),
        "gated": ("both", "pmap"),
        "matryoshka": ("data", "model"),
        "filtered": ("data", "pmap"),
        "group": ("both",),
    },
}


def tokens() -> np.ndarray:
    """[STEPS, N, D]: sparse sums of F directions, one of them with a huge norm."""
    rng = np.random.default_rng(0)
    weights = rng.uniform(0.5, 1.5, (STEPS, N, F)) * (rng.random((STEPS, N, F)) < 0.05)
    x = weights @ rng.normal(size=(F, D)) + 0.1 * rng.normal(size=(STEPS, N, D)) + 1
    x[:, 3] *= 9
    return x.astype(np.float32)


def first_state(recipe, seed=0):
    state = init_state(recipe, jax.random.key(seed), np.ones(D), 1.3)
    return state.replace(idle=state.idle.at[F // 2 :].set(2000))


def far(ours, right) -> float:
    """The largest difference of two trees, each array's as a share of its largest value."""

    def one(ours, right):
        ours, right = np.asarray(ours, np.float64), np.asarray(right, np.float64)
        return float(np.abs(ours - right).max() / max(np.abs(right).max(), 1e-12))

    return max(jax.tree.leaves(jax.tree.map(one, ours, right)))


def train(step, state, batches):
    """(gradients of the first step, losses, AuxK of the first step, the last state)."""
    losses, mu, auxk = [], None, None
    for batch in batches:
        state, metrics = step(state, batch)
        losses.append(np.asarray(metrics["loss"]).squeeze())
        if mu is None:  # Adam's first moment is then a tenth of the gradient
            mu, auxk = jax.tree.map(np.array, state.adam.mu), np.array(metrics["auxk"])
    return mu, np.stack(losses), auxk, state


def compare(found, right) -> dict[str, float]:
    return {
        "gradients": far(found[0], right[0]),
        "loss": far(found[1], right[1]),
        "weights": far(found[3].params, right[3].params),
        "idle": far(found[3].idle, right[3].idle),
        "auxk": float(np.min(right[2])),
    }


def on_mesh(recipe, make, model_parallel):
    mesh = make_mesh(model_parallel)
    state, x = make_state(mesh, make), tokens()
    with jax.set_mesh(mesh):
        program = jit_steps(mesh, recipe, state).lower(state, place_batches(mesh, x[:1])).compile()
    found = collectives(program.as_text())
    return train(program, state, [place_batches(mesh, batch[None]) for batch in x]), {
        "gathers": [one.origin for one in gathers_of_features(found, D, N // mesh.shape["data"], F)],
        "kinds": by_kind(found),
        "memory": program.memory_analysis().argument_size_in_bytes,
    }


def main(cases: dict[str, tuple[str, ...]]) -> None:
    results = {}
    for name, layouts in cases.items():
        recipe = RECIPES["topk" if name == "group" else name]
        make = functools.partial(first_state, recipe)
        if name == "group":
            members = [recipe, dataclasses.replace(recipe, k=2, seed=1)]
            recipe = group_recipe(members)

            def make(members=members):
                return stack_states([first_state(member, member.seed) for member in members])

        right = train(functools.partial(train_step, recipe), make(), tokens())
        for layout in layouts:
            if layout == "pmap":
                found, program = train(pmapped_step(recipe), make(), tokens().reshape(STEPS, 8, N // 8, D)), {}
            else:
                found, program = on_mesh(recipe, make, LAYOUTS[layout])
            results[f"{name} {layout}"] = {**compare(found, right), **program}
    print(json.dumps(results))


if __name__ == "__main__":
    main(CASES[sys.argv[1]])
