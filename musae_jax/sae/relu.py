"""ReLU with an L1 penalty (Bricken et al. 2023): the baseline; what it keeps it shrinks."""

import dataclasses
from typing import Any, ClassVar

import jax

from musae_jax.sae.recipe import Knobs, Memory, Params, Recipe, without_auxk


@dataclasses.dataclass(frozen=True)
class ReLUConfig(Recipe):
    """How to train a ReLU SAE; the other fields are in `Recipe`.

    Attributes:
      l1_coefficient: of Σ f; 5 is that of Anthropic's April 2024 update, which scales inputs as here, to norm sqrt(D).
    """

    architecture: ClassVar[str] = "relu"
    rule: ClassVar[str] = "standard"

    l1_coefficient: float = 5.0
    auxk_alpha: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        without_auxk(self)

    def activate(self, params: Params, pre: jax.Array, knobs: Knobs, memory: Memory, count: Any) -> Any:
        return jax.nn.relu(pre), memory
