"""ReLU with an L1 penalty (Bricken et al. 2023): the baseline; what it keeps it shrinks."""

import dataclasses
from typing import Any, ClassVar

import jax

from musae_jax.sae.recipe import Knobs, Memory, Params, Recipe, without_auxk


@dataclasses.dataclass(frozen=True)
class ReLUConfig(Recipe):
    """How to train a ReLU SAE; the other fields are in `Recipe`.

    Attributes:
      l1_coefficient: with unit-variance inputs and the loss in fractions of variance 5 is the value of Anthropic's April
        2024 update, whose inputs have norm sqrt(D) and whose decoder norms are in the penalty.
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
