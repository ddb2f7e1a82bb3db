"""The architectures that can be trained, by the name that flags and YAML files use."""

from musae_jax.sae.batch_topk import BatchTopKConfig
from musae_jax.sae.gated import GatedConfig
from musae_jax.sae.jumprelu import JumpReLUConfig
from musae_jax.sae.recipe import Recipe
from musae_jax.sae.relu import ReLUConfig
from musae_jax.sae.topk import TopKConfig

RECIPES: dict[str, type[Recipe]] = {
    recipe.architecture: recipe for recipe in (BatchTopKConfig, TopKConfig, JumpReLUConfig, ReLUConfig, GatedConfig)
}
