"""Names of the place an SAE reads: everyone's, turned into ours, "blocks.{i}.resid_post" with i counted from 0."""

import re
from typing import Any

_OUTPUT_OF_A_BLOCK = (
    r"blocks\.(\d+)\.hook_resid_post",  # TransformerLens, SAELens
    r"hook_layers\.(\d+)",  # the paper's authors; its layer L is written L − 1 there, as here
    r"resid_post_layer_(\d+)",  # dictionary_learning's demo and SAEBench
    r"(?!.*encoder)(?:[\w.]+\.)?(?:layers|h)\.(\d+)",  # transformers modules, as sparsify names its folders
)


def our_hook(name: str) -> str:
    """`name` as we write it, if it is known to be the output of a block, otherwise `name` itself."""
    for pattern in _OUTPUT_OF_A_BLOCK:
        if match := re.fullmatch(pattern, name):
            return f"blocks.{match.group(1)}.resid_post"
    return name


def with_our_hook(metadata: dict[str, Any]) -> dict[str, Any]:
    """Metadata whose hook_name is ours; the name that was found is kept as hook_name_in_file."""
    found = metadata.get("hook_name")
    if not isinstance(found, str) or our_hook(found) == found:
        return metadata
    return {**metadata, "hook_name": our_hook(found), "hook_name_in_file": found}


def describe_hook(name: str) -> str:
    """The hook in words, with the number that the paper gives the layer: its layer L is our i = L − 1."""
    match = re.fullmatch(r"blocks\.(\d+)\.resid_post", our_hook(name))
    if not match:
        return name or "an unknown hook"
    i = int(match.group(1))
    return f"{our_hook(name)} (output of block {i} counted from 0; layer {i + 1} in the paper)"
