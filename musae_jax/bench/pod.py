"""The SAE's training step on a TPU slice (`slices`). A layout that gathers the features is an error."""

import jax
import jax.numpy as jnp

from musae_jax.bench.hlo import gathers_of_features
from musae_jax.bench.slices import PodFigures, Work, measure, open_slice
from musae_jax.errors import MusaeError
from musae_jax.mesh import DATA
from musae_jax.sae.parallel import check_layout, jit_steps
from musae_jax.sae.recipe import Recipe
from musae_jax.sae.step import init_state


def measure_pod(recipe: Recipe, topology: str, model_parallel: int) -> PodFigures:
    """Compiles one step of `recipe` for a slice such as "v5e:16x16" and reads the figures off.

    Raises:
      MusaeError: libtpu is missing, the slice is unknown, the recipe cannot be laid out on it, does not fit a chip, or
        the compiled step gathers the features.
    """
    slice = open_slice(topology, model_parallel)
    check_layout(recipe, slice.mesh)
    state = jax.eval_shape(lambda: init_state(recipe, jax.random.key(0)))
    batches = jax.ShapeDtypeStruct((1, recipe.batch_size, recipe.d_in), jnp.float32)
    work = Work(
        call="step",
        calls="steps",
        amount=recipe.batch_size,
        unit="tokens",
        sizes=f"d_sae = {recipe.d_sae} with batch_size = {recipe.batch_size}",
        remedy="raise model_parallel, or lower batch_size or d_sae",
    )
    figures = measure(slice, lambda: jit_steps(slice.mesh, recipe, state).lower(state, batches), work)
    tokens = recipe.batch_size // slice.mesh.shape[DATA]
    if gathers := gathers_of_features(figures.collectives, recipe.d_in, tokens, recipe.d_sae):
        worst = max(gathers, key=lambda one: one.bytes)
        raise MusaeError(
            f"the step on {slice} gathers the features: {worst.kind} of {worst.bytes / 2**20:.0f} MiB for"
            f" {worst.origin.split('/')[-1] or 'an unnamed operation'}; lower model_parallel, k or k_aux"
        )
    return figures
