"""The T5 text encoder (Raffel et al., arXiv 1910.10683), as transformers' `T5EncoderModel` computes it."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from musae_jax.models.hf_config import read_fields

# Large, finite: a row of attention with every key masked must give numbers, not NaN.
MASKED = -1e9

ACTIVATIONS = {
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
}


@dataclasses.dataclass(frozen=True)
class T5Config:
    """The attributes of transformers' `T5Config` that the encoder uses."""

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "relu"  # an activation, or "gated-" and an activation
    initializer_factor: float = 1.0
    pad_token_id: int = 0
    eos_token_id: int = 1

    @property
    def gated(self) -> bool:
        return self.feed_forward_proj.startswith("gated-")

    @property
    def activation(self) -> str:
        name = self.feed_forward_proj.removeprefix("gated-")
        return "gelu_new" if self.feed_forward_proj == "gated-gelu" else name  # transformers' own special case

    @classmethod
    def from_hf(cls, values: dict) -> tuple["T5Config", list[str]]:
        """The config in a Hugging Face dictionary, and the list of problems found."""
        ignored = ("num_decoder_layers", "dropout_rate", "classifier_dropout", "n_positions", "output_past")
        derived = ("dense_act_fn", "is_gated_act", "scale_decoder_outputs")  # follow from feed_forward_proj
        known, problems = read_fields(cls, values, "text_encoder", (*ignored, *derived), {"model_type": ("t5",)})
        config = cls(**known)
        if config.activation not in ACTIVATIONS:
            problems.append(f"text_encoder.feed_forward_proj is {config.feed_forward_proj!r}, which is not supported")
        buckets, distance = config.relative_attention_num_buckets, config.relative_attention_max_distance
        if buckets < 4 or distance <= buckets // 4:  # half look back, and half of those are for one distance each
            problems.append(f"text_encoder has {buckets} buckets for relative distances up to {distance}")
        return config, problems

    def to_hf(self) -> dict:
        """The dictionary that transformers reads back."""
        return {"model_type": "t5", **dataclasses.asdict(self), "is_encoder_decoder": False, "use_cache": False}


def relative_buckets(length: int, buckets: int, max_distance: int) -> np.ndarray:
    """The bucket of every (query, key) pair, int32 [L, L]: half the buckets look back, half ahead; near distances have
    one each, far ones share by the logarithm (transformers, `_relative_position_bucket`)."""
    relative = np.arange(length)[None, :] - np.arange(length)[:, None]
    buckets //= 2
    distance = np.abs(relative)
    exact = buckets // 2
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact)) / np.float32(
        math.log(max_distance / exact)
    )
    far = np.minimum(exact + (ratio * np.float32(buckets - exact)).astype(np.int32), buckets - 1)
    return ((relative > 0) * buckets + np.where(distance < exact, distance, far)).astype(np.int32)


def deviations(config: T5Config) -> dict[str, float]:
    """The standard deviation of each kind of parameter in a new encoder (Mesh TensorFlow's, as transformers draws)."""
    into, hidden, inner = config.d_model**-0.5, config.d_ff**-0.5, (config.num_heads * config.d_kv) ** -0.5
    relative = {"embedding": 1.0, "relative_bias": into, "query": into * config.d_kv**-0.5, "key": into, "value": into}
    relative |= {"out": inner, "up": into, "gate": into, "down": hidden}
    return {name: config.initializer_factor * value for name, value in relative.items()}


class RMSNorm(nn.Module):
    """Scale only, no mean subtracted; the mean square is taken in fp32."""

    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        square = jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
        return scale * (x * jax.lax.rsqrt(square + self.epsilon)).astype(x.dtype)


def _dense(features: int, name: str) -> nn.Dense:
    return nn.Dense(features, use_bias=False, name=name)


class T5Block(nn.Module):
    """Self-attention and feed-forward, each on a normalised copy of the residual stream."""

    config: T5Config

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:  # [B, L, D], [B, H, L, L]
        c = self.config
        heads, inner = (c.num_heads, c.d_kv), c.num_heads * c.d_kv
        h = RMSNorm(c.layer_norm_epsilon, name="attention_norm")(x)
        query = _dense(inner, "query")(h).reshape(*h.shape[:2], *heads)
        key = _dense(inner, "key")(h).reshape(*h.shape[:2], *heads)
        value = _dense(inner, "value")(h).reshape(*h.shape[:2], *heads)
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key).astype(jnp.float32) + bias  # T5 does not scale by √d
        weights = jax.nn.softmax(scores, axis=-1).astype(h.dtype)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(*h.shape[:2], inner)
        x = x + _dense(c.d_model, "out")(mixed)

        h = RMSNorm(c.layer_norm_epsilon, name="ffn_norm")(x)
        up = ACTIVATIONS[c.activation](_dense(c.d_ff, "up")(h))
        if c.gated:
            up = up * _dense(c.d_ff, "gate")(h)
        return x + _dense(c.d_model, "down")(up)


class T5Encoder(nn.Module):
    """Token ids int32 [B, L] and mask [B, L] (1 for a real token) to states [B, L, d_model]."""

    config: T5Config

    @nn.compact
    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        c = self.config
        init = nn.initializers.normal()  # `deviations` says how a new model is really drawn
        embedding = self.param("embedding", init, (c.vocab_size, c.d_model))
        # transformers keeps this table in block 0 and shares it with all the others.
        table = self.param("relative_bias", init, (c.relative_attention_num_buckets, c.num_heads))
        buckets = relative_buckets(ids.shape[1], c.relative_attention_num_buckets, c.relative_attention_max_distance)
        position = jnp.transpose(table[buckets], (2, 0, 1))[None].astype(jnp.float32)  # [1, H, L, L]
        bias = position + jnp.where(mask > 0, 0.0, MASKED)[:, None, None, :]
        x = embedding[ids]
        for i in range(c.num_layers):
            x = T5Block(c, name=f"block_{i}")(x, bias)
        return RMSNorm(c.layer_norm_epsilon, name="norm")(x)
