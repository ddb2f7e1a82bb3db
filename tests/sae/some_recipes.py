"""Every architecture at one tiny size, and data for it, shared so that tests compile the same functions."""

import numpy as np

from musae_jax.sae.batch_topk import BatchTopKConfig
from musae_jax.sae.gated import GatedConfig
from musae_jax.sae.jumprelu import JumpReLUConfig
from musae_jax.sae.recipe import Recipe
from musae_jax.sae.relu import ReLUConfig
from musae_jax.sae.topk import TopKConfig

D, F, N, K = 6, 24, 32, 3
SHARED = {"steps": 50, "batch_size": N, "lr": 1e-3}
GROUPS = (0.125, 0.25, 0.625)
RECIPES: dict[str, Recipe] = {
    "batch_topk": BatchTopKConfig(D, F, K, count_tolerance=0.0, **SHARED),
    "topk": TopKConfig(D, F, K, **SHARED),
    "jumprelu": JumpReLUConfig(D, F, K, bandwidth=0.5, **SHARED),
    "relu": ReLUConfig(D, F, **SHARED),
    "gated": GatedConfig(D, F, **SHARED),
    "matryoshka": BatchTopKConfig(D, F, K, count_tolerance=0.0, group_fractions=GROUPS, **SHARED),
}


def tokens(seed: int = 0, n: int = N, d: int = D) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, d)) * rng.uniform(0.5, 2, d) + rng.normal(size=d)).astype(np.float32)


def some_params(recipe: Recipe, seed: int = 0) -> dict[str, np.ndarray]:
    """Random values of every parameter of a recipe."""
    rng = np.random.default_rng(seed)
    d, f = recipe.d_in, recipe.d_sae
    shapes = {"W_enc_t": (f, d), "b_enc": (f,), "W_dec": (f, d), "b_dec": (d,)}
    shapes |= {name: value.shape for name, value in recipe.extra_params().items()}
    return {name: (0.5 * rng.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}
