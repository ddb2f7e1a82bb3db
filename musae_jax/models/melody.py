"""The melody flavour of MusicGen: what stands before the music, since its decoder has no cross-attention.

The prefix is the melody's chroma (one pitch class per chroma frame, repeated or cut to `chroma_length`) and then the
text, both projected to the decoder's width (Copet et al., arXiv 2306.05284, section 3.4; transformers'
`MusicgenMelodyForConditionalGeneration`).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from musae_jax.models.decoder import TextStates
from musae_jax.models.hf_config import read_fields


@dataclasses.dataclass(frozen=True)
class MelodyConfig:
    """The attributes of transformers' `MusicgenMelodyConfig` beside those of its three parts."""

    num_chroma: int = 12
    chroma_length: int = 235  # chroma frames in the prefix: 30 s

    @classmethod
    def from_hf(cls, values: dict) -> tuple["MelodyConfig", list[str]]:
        """The config among the top-level values of a Hugging Face dictionary, and the list of problems found."""
        names = [field.name for field in dataclasses.fields(cls)]
        known, problems = read_fields(cls, {name: values[name] for name in names if name in values}, "config.json")
        return cls(**known), problems


def null_melody(config: MelodyConfig) -> jax.Array:
    """The chroma [1, 1, C] that stands for no melody: the first pitch class throughout, as silence has it too."""
    return jnp.zeros((1, 1, config.num_chroma)).at[..., 0].set(1.0)


def prefix_states(
    config: MelodyConfig, projection: Any, width: int, text: TextStates | None, melody: jax.Array | None
) -> jax.Array:
    """The prefix [B, N, D], N = chroma_length + L, of text states [B, L, D] and chroma [B, M, C]; either may have one
    row for all of the other's. Without text there is one zero state, which is how training drops the text.

    `projection` holds the kernel [C, D] and bias [D] of the chroma, or is None where C = D.
    """
    states = jnp.zeros((1, 1, width)) if text is None else text.states
    chroma = (null_melody(config) if melody is None else melody).astype(states.dtype)
    if projection is not None:
        chroma = chroma @ projection["kernel"] + projection["bias"]  # [B, M, D]
    chroma = chroma[:, jnp.arange(config.chroma_length) % chroma.shape[1]]  # repeated or cut
    rows = max(len(chroma), len(states))
    return jnp.concatenate([jnp.broadcast_to(x, (rows, *x.shape[1:])) for x in (chroma, states)], axis=1)
