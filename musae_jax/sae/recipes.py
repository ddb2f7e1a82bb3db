"""The architectures that can be trained, by the name that flags and YAML files use."""

import dataclasses
import math

from musae_jax.config import TrainConfig
from musae_jax.errors import MusaeError
from musae_jax.sae.batch_topk import BatchTopKConfig
from musae_jax.sae.gated import GatedConfig
from musae_jax.sae.jumprelu import JumpReLUConfig
from musae_jax.sae.recipe import Recipe
from musae_jax.sae.relu import ReLUConfig
from musae_jax.sae.topk import TopKConfig

RECIPES: dict[str, type[Recipe]] = {
    recipe.architecture: recipe for recipe in (BatchTopKConfig, TopKConfig, JumpReLUConfig, ReLUConfig, GatedConfig)
}


# Of batch_topk unless told otherwise, each group as large as all before it; docs/concepts.md has what it is worth.
NESTED = (1 / 8, 1 / 8, 1 / 4, 1 / 2)

# Of TrainConfig, but not of how one SAE is trained.
_AROUND = ("architecture", "drop_start", "splice_clips", "log", "model_parallel")


def train_recipe(config: TrainConfig, d_in: int, seed: int) -> Recipe:
    """The recipe that a run's configuration asks for.

    Raises:
      MusaeError: a field is set that this architecture does not have, or its value is impossible.
    """
    recipe = RECIPES[config.architecture]
    known = {field.name for field in dataclasses.fields(recipe)}
    asked = {name: value for name, value in vars(config).items() if name not in _AROUND}
    if "k" not in known:
        del asked["k"]
    asked["d_sae"] = config.d_sae if config.d_sae is not None else 2 ** math.ceil(math.log2(2 * d_in))
    if config.group_fractions is None and config.architecture == "batch_topk" and asked["d_sae"] >= 1 / NESTED[0]:
        asked["group_fractions"] = NESTED
    asked = {name: value for name, value in asked.items() if value is not None}
    if unknown := sorted(set(asked) - known):
        raise MusaeError(
            f"{' and '.join(unknown)} of train is set, but the architecture {config.architecture} has no such field;"
            " leave it out"
        )
    return recipe(d_in=d_in, seed=seed, **asked)


def recipe_name(config: TrainConfig, d_in: int) -> str:
    """The name of the SAE's folder, as in matryoshka-batchtopk-512-k32."""
    recipe = train_recipe(config, d_in, seed=0)
    nested = "matryoshka-" if recipe.group_fractions else ""
    sparsity = f"k{recipe.k}" if hasattr(recipe, "k") else f"l1-{recipe.l1_coefficient:g}"
    return f"{nested}{recipe.architecture.replace('_', '')}-{recipe.d_sae}-{sparsity}"
