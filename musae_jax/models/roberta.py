"""RoBERTa (Liu et al., arXiv 1907.11692), the text tower of CLAP, as transformers' `ClapTextModel` computes it."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from musae_jax.models.hf_config import read_fields
from musae_jax.models.t5 import ACTIVATIONS, MASKED

LayerNorm = functools.partial(nn.LayerNorm, use_fast_variance=False)  # E[x²] − E[x]² loses what the mean dwarfs


@dataclasses.dataclass(frozen=True)
class RobertaConfig:
    """The attributes of transformers' `ClapTextConfig` that matter when nothing is dropped out."""

    vocab_size: int = 50265
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    max_position_embeddings: int = 514
    type_vocab_size: int = 1
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 1
    bos_token_id: int = 0
    eos_token_id: int = 2

    @property
    def longest(self) -> int:
        """The most tokens L in a text: positions are counted from `pad_token_id` + 1."""
        return self.max_position_embeddings - self.pad_token_id - 1

    @classmethod
    def from_hf(cls, values: dict) -> tuple["RobertaConfig", list[str]]:
        """The config in a Hugging Face dictionary, and the list of problems found."""
        ignored = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "initializer_factor")
        ignored += ("projection_dim", "projection_hidden_act")  # those of the whole count
        ignored += ("fusion_hidden_size", "fusion_num_hidden_layers")  # in the first files, never used
        fixed = {"model_type": ("clap_text_model",), "position_embedding_type": ("absolute",)}
        known, problems = read_fields(cls, values, "text_config", ignored, fixed)
        config = cls(**known)
        return config, problems + config.problems()

    def problems(self) -> list[str]:
        """What cannot be computed, a sentence each."""
        found = []
        if self.hidden_act not in ACTIVATIONS:
            found.append(f"text_config.hidden_act is {self.hidden_act!r}, which is not supported")
        if self.hidden_size % self.num_attention_heads:
            found.append(
                f"text_config.hidden_size {self.hidden_size} is no multiple of {self.num_attention_heads} heads"
            )
        if self.pad_token_id >= self.vocab_size:
            found.append(f"text_config.pad_token_id {self.pad_token_id} is beyond {self.vocab_size} words")
        if self.longest < 1:
            found.append(
                f"text_config.max_position_embeddings {self.max_position_embeddings} leaves no room for a text"
            )
        return found

    def to_hf(self) -> dict:
        """The dictionary that transformers reads back."""
        return {"model_type": "clap_text_model", **dataclasses.asdict(self)}


class RobertaBlock(nn.Module):
    """Self-attention and feed-forward, each added to its input and normalised afterwards."""

    config: RobertaConfig

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:  # [B, L, D], [B, 1, 1, L]
        c = self.config
        width = c.hidden_size // c.num_attention_heads
        query, key, value = (
            nn.Dense(c.hidden_size, name=name)(x).reshape(*x.shape[:2], c.num_attention_heads, width)
            for name in ("query", "key", "value")
        )  # [B, L, H, d] each
        scores = jnp.einsum("bqhd,bkhd->bhqk", query * width**-0.5, key) + bias
        mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, axis=-1), value).reshape(x.shape)
        x = LayerNorm(epsilon=c.layer_norm_eps, name="attention_norm")(x + nn.Dense(c.hidden_size, name="out")(mixed))
        up = ACTIVATIONS[c.hidden_act](nn.Dense(c.intermediate_size, name="up")(x))
        return LayerNorm(epsilon=c.layer_norm_eps, name="ffn_norm")(x + nn.Dense(c.hidden_size, name="down")(up))


class Roberta(nn.Module):
    """Token ids int32 [B, L] and mask [B, L] (1 for a real token) to one vector a text, [B, D], within −1 and 1.

    Positions are counted over the tokens that are not padding, as transformers counts them, whatever the mask says.
    """

    config: RobertaConfig

    @nn.compact
    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        c = self.config
        init = nn.initializers.normal(0.02)
        words = self.param("words", init, (c.vocab_size, c.hidden_size))
        positions = self.param("positions", init, (c.max_position_embeddings, c.hidden_size))
        types = self.param("types", init, (c.type_vocab_size, c.hidden_size))  # every token is of type 0
        real = (ids != c.pad_token_id).astype(jnp.int32)
        places = jnp.cumsum(real, axis=1) * real + c.pad_token_id
        x = LayerNorm(epsilon=c.layer_norm_eps, name="norm")(words[ids] + types[0] + positions[places])
        bias = jnp.where(mask > 0, 0.0, MASKED)[:, None, None, :]
        for i in range(c.num_hidden_layers):
            x = RobertaBlock(c, name=f"block_{i}")(x, bias)
        return jnp.tanh(nn.Dense(c.hidden_size, name="pooler")(x[:, 0]))  # the state of <s>
