"""What can be chosen of a steering experiment; the flags list it, so it lies apart from the numerics."""

from typing import Literal

Arm = Literal["sae", "random", "decoder", "inactive", "other_layer", "diff_in_means", "probe", "pca", "prompt"]
ARMS: tuple[Arm, ...] = ("sae", "random", "decoder", "inactive", "other_layer", "diff_in_means", "probe", "prompt")
How = Literal["contrast", "add"]  # what a feature's vector is
