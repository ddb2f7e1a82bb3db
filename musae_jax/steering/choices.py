"""The words of a steering experiment, apart from its numerics, so that flags can list them without loading JAX."""

from typing import Literal

Arm = Literal["sae", "random", "decoder", "inactive", "other_layer", "diff_in_means", "probe", "pca", "prompt"]
ARMS: tuple[Arm, ...] = ("sae", "random", "decoder", "inactive", "other_layer", "diff_in_means", "probe", "prompt")
How = Literal["contrast", "add"]  # what a feature's vector is
