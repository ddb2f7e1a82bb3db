"""MusicGen's decoder: a pre-norm transformer over summed codebook embeddings (Copet et al., arXiv 2306.05284).

Text reaches it by cross-attention, or, in a melody checkpoint, as a prefix before the music.
"""

import dataclasses
import functools
import math

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from musae_jax.models.edits import CONDITIONAL, UNCONDITIONAL, Edits, apply_edits
from musae_jax.models.hf_config import read_fields
from musae_jax.models.t5 import ACTIVATIONS, MASKED

BLOCK, BLOCKS = 128, 8  # queries in a block of causal attention at least, and blocks at most
CROSS_ATTENDING, PREFIXED = "musicgen_decoder", "musicgen_melody_decoder"


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The attributes of transformers' `MusicgenDecoderConfig` that matter when nothing is dropped out."""

    model_type: str = CROSS_ATTENDING
    vocab_size: int = 2048
    max_position_embeddings: int = 2048  # kept for the file; positions are computed to any length
    num_hidden_layers: int = 24
    ffn_dim: int = 4096
    num_attention_heads: int = 16
    activation_function: str = "gelu"
    hidden_size: int = 1024
    initializer_factor: float = 0.02
    num_codebooks: int = 4  # in all: in stereo, those of both channels
    audio_channels: int = 1
    pad_token_id: int = 2048
    bos_token_id: int = 2048

    @property
    def prefixed(self) -> bool:
        """Whether conditions stand before the music, instead of being attended to across."""
        return self.model_type == PREFIXED

    @property
    def delays(self) -> int:
        """The number of different delays D: T frames take T + D columns."""
        return self.num_codebooks // self.audio_channels

    @classmethod
    def from_hf(cls, values: dict) -> tuple["DecoderConfig", list[str]]:
        """The config in a Hugging Face dictionary, and the list of problems found."""
        ignored = ("dropout", "attention_dropout", "activation_dropout", "layerdrop", "classifier_dropout")
        fixed = {"scale_embedding": (False,), "tie_word_embeddings": (False,)}
        known, problems = read_fields(cls, values, "decoder", ignored, fixed)
        c = cls(**known)
        if c.model_type not in (CROSS_ATTENDING, PREFIXED):
            problems.append(f"decoder.model_type is {c.model_type!r}, which is not supported")
        if c.activation_function not in ACTIVATIONS:
            problems.append(f"decoder.activation_function is {c.activation_function!r}, which is not supported")
        if c.audio_channels not in (1, 2) or c.num_codebooks < 1 or c.num_codebooks % c.audio_channels:
            problems.append(f"decoder has {c.num_codebooks} codebooks for {c.audio_channels} audio channels")
        if c.num_attention_heads < 1 or c.hidden_size % c.num_attention_heads:
            problems.append(f"decoder.hidden_size {c.hidden_size} is not a multiple of {c.num_attention_heads} heads")
        if c.pad_token_id != c.vocab_size:
            problems.append(
                f"decoder.pad_token_id is {c.pad_token_id}, not the row after the vocabulary ({c.vocab_size})"
            )
        return c, problems

    def to_hf(self) -> dict:
        """The dictionary that transformers reads back."""
        return dataclasses.asdict(self)


@flax.struct.dataclass
class TextStates:
    """What the decoder attends to: states [B, L, D], already multiplied by the mask [B, L] (1 for a real token).

    A melody checkpoint attends to masked states too, as zeros."""

    states: jax.Array
    mask: jax.Array


@flax.struct.dataclass
class Cache:
    """Keys [rows, H, d, capacity] and values [rows, H, capacity, d] of every layer: the order in which attention
    multiplies them, so that a decode step does not transpose the whole cache."""

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]


@flax.struct.dataclass
class Cross:
    """Cross-attention keys [B, H, d, L], values [B, H, L, d] of every layer, and the additive mask [B, 1, 1, L]."""

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    bias: jax.Array


@flax.struct.dataclass
class Prefix:
    """Keys [R, H, d, N] and values [R, H, N, d] of every layer for the N positions before the music; one row serves
    any number. `null` says that neither text nor melody was given, so that the branch is the unconditional one."""

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    null: bool = flax.struct.field(pytree_node=False, default=False)


def unconditional(condition: Cross | Prefix | None) -> bool:
    """Whether music under this condition is that of guidance's unconditional branch."""
    return condition is None or (isinstance(condition, Prefix) and condition.null)


def sinusoids(positions: jax.Array, width: int) -> jax.Array:
    """[cos, sin] of the positions at log-spaced frequencies, fp32 [P, width] (transformers'
    `MusicgenSinusoidalPositionalEmbedding`); an odd width gets a zero column."""
    half = width // 2
    step = np.float32(-math.log(10000) / max(half - 1, 1))
    frequencies = np.exp(np.arange(half, dtype=np.float32) * step)
    angles = positions.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles), jnp.zeros((len(positions), width % 2))], axis=-1)


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array,
    before: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """Attention: query [R, P, H, d], key [R, H, d, S], value [R, H, S, d], bias [R?, H?, P, S] to [R, P, H·d].

    `before` are keys [R?, H, d, N] and values [R?, H, N, d] that every position sees besides: scores are concatenated
    and not keys, so that a decode step copies neither the prefix nor the cache. Weights are divided by their sum only
    after they have been multiplied with the values, which are fewer; sums are taken in float32, where float16's range
    would not do.
    """
    multiply = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
    query = query.transpose(0, 2, 1, 3) * query.shape[-1] ** -0.5
    scores = multiply(query, key) + bias  # [R, H, P, S]
    length = 0 if before is None else before[0].shape[-1]
    if before is not None:
        scores = jnp.concatenate([multiply(query, before[0]), scores], axis=-1)  # [R, H, P, N + S]
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    total, weights = weights.sum(axis=-1, keepdims=True), weights.astype(value.dtype)
    mixed = multiply(weights[..., length:], value)
    if before is not None:
        mixed = mixed + multiply(weights[..., :length], before[1])
    mixed = (mixed / total).astype(value.dtype).transpose(0, 2, 1, 3)
    return mixed.reshape(*mixed.shape[:2], -1)


def causal_attention(query: jax.Array, key: jax.Array, value: jax.Array, before=None) -> jax.Array:
    """`attention` of every position to those up to it, in a few blocks of queries that skip the keys after them."""
    length, blocks = query.shape[1], []
    size = max(BLOCK, -(-length // BLOCKS))
    for start in range(0, length, size):
        end = min(start + size, length)
        bias = causal_bias(jnp.arange(start, end), jnp.arange(end))
        blocks.append(attention(query[:, start:end], key[..., :end], value[:, :, :end], bias, before))
    return jnp.concatenate(blocks, axis=1)


def causal_bias(queries: jax.Array, keys: jax.Array) -> jax.Array:
    """Additive mask [P, S]: a query at position p sees the keys at positions up to p."""
    return jnp.where(keys[None, :] <= queries[:, None], 0.0, MASKED)


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [..., K] times kernel [K, ...]: multiplied in the kernel's type, added up in float32, returned in x's type.

    So the kernels' type alone decides how the decoder multiplies. Written as `x @ kernel`, products of bfloat16 that
    come out as bfloat16, XLA widens the whole kernel on CPUs first, which is many times slower.
    """
    rows = x.reshape(-1, x.shape[-1]).astype(kernel.dtype)
    if len(rows) == 1 and kernel.dtype != jnp.float32:
        rows = jnp.concatenate([rows, rows])  # on CPUs XLA has a fast narrow product for two rows, but none for one
    out = jnp.tensordot(rows, kernel, 1, preferred_element_type=jnp.float32)[: x.size // x.shape[-1]]
    return out.astype(x.dtype).reshape(*x.shape[:-1], *kernel.shape[1:])


class Projection(nn.Module):
    """A linear map to `features`, without a bias."""

    features: int
    init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return product(x, self.param("kernel", self.init, (x.shape[-1], self.features)))


class Attention(nn.Module):
    """The four projections."""

    config: DecoderConfig

    def setup(self) -> None:
        c = self.config
        init = nn.initializers.normal(c.initializer_factor)
        self.query, self.key, self.value, self.out = (Projection(c.hidden_size, init) for _ in range(4))

    def _heads(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], self.config.num_attention_heads, -1)

    def queries(self, x: jax.Array) -> jax.Array:
        return self._heads(self.query(x))

    def keys_values(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self._heads(self.key(x)).transpose(0, 2, 3, 1), self._heads(self.value(x)).transpose(0, 2, 1, 3)


class Block(nn.Module):
    """Self-attention, cross-attention (not in a melody checkpoint), feed-forward; each adds to the residual stream x
    [R, P, D]."""

    config: DecoderConfig

    def setup(self) -> None:
        c = self.config
        init = nn.initializers.normal(c.initializer_factor)
        self.self_norm, self.ffn_norm = nn.LayerNorm(epsilon=1e-5), nn.LayerNorm(epsilon=1e-5)
        self.self_attention = Attention(c)
        if not c.prefixed:
            self.cross_norm, self.cross_attention = nn.LayerNorm(epsilon=1e-5), Attention(c)
        self.up, self.down = Projection(c.ffn_dim, init), Projection(c.hidden_size, init)

    def __call__(self, x, cross=None, before=None, cache=None, start=0, bias=None):
        """`cross` is (keys, values, bias) or None, `before` (keys, values) of the prefix or None. With a `cache` (keys,
        values) the new keys go to `start` in it, and `bias` masks what is not yet there. Returns the stream and the
        keys and values attended to, without the prefix's."""
        h = self.self_norm(x)
        query, (key, value) = self.self_attention.queries(h), self.self_attention.keys_values(h)
        if cache is None:
            mixed = causal_attention(query, key, value, before)
        else:
            key = jax.lax.dynamic_update_slice_in_dim(cache[0], key.astype(cache[0].dtype), start, axis=3)
            value = jax.lax.dynamic_update_slice_in_dim(cache[1], value.astype(cache[1].dtype), start, axis=2)
            mixed = attention(query, key, value, bias, before)
        x = x + self.self_attention.out(mixed)
        if cross is not None:
            # Rows beyond the text are unconditional: their keys and values would be all zero, so nothing is added.
            rows = cross[0].shape[0]
            h = self.cross_norm(x[:rows])
            added = self.cross_attention.out(attention(self.cross_attention.queries(h), *cross))
            x = x + added if rows == x.shape[0] else jnp.concatenate([x[:rows] + added, x[rows:]])
        elif self.is_initializing() and not self.config.prefixed:
            self.cross_attention.out(self.cross_attention.queries(self.cross_norm(x)).reshape(x.shape))
            self.cross_attention.keys_values(x)
        h = ACTIVATIONS[self.config.activation_function](self.up(self.ffn_norm(x)))
        return x + self.down(h), (key, value)


class Decoder(nn.Module):
    """Delayed codes to logits. Layers are unrolled, so what is above the highest tap costs nothing when unused."""

    config: DecoderConfig

    def setup(self) -> None:
        c = self.config
        init = nn.initializers.normal(c.initializer_factor)
        self.embedding = self.param("embedding", init, (c.num_codebooks, c.vocab_size + 1, c.hidden_size))
        self.blocks = [Block(c, name=f"block_{i}") for i in range(c.num_hidden_layers)]
        self.norm = nn.LayerNorm(epsilon=1e-5)
        self.heads = self.param("heads", init, (c.hidden_size, c.num_codebooks, c.vocab_size))

    def cross(self, text: TextStates) -> Cross:
        """The keys and values of the text, for every layer: computed once and used at every step."""
        pairs = [block.cross_attention.keys_values(text.states.astype(self.embedding.dtype)) for block in self.blocks]
        bias = jnp.where(text.mask > 0, 0.0, MASKED)[:, None, None, :].astype(jnp.float32)
        return Cross(keys=tuple(k for k, _ in pairs), values=tuple(v for _, v in pairs), bias=bias)

    def prefix(self, states: jax.Array) -> Prefix:
        """The keys and values of the positions before the music, whose states are [R, N, D], for every layer: computed
        once and used at every step, since the prefix does not see the music."""
        x = states.astype(self.embedding.dtype)
        positions = jnp.arange(x.shape[1])
        x = x + sinusoids(positions, x.shape[-1]).astype(x.dtype)
        pairs = []
        for block in self.blocks:
            x, pair = block(x)
            pairs.append(pair)
        return Prefix(keys=tuple(k for k, _ in pairs), values=tuple(v for _, v in pairs))

    def __call__(
        self,
        columns: jax.Array,  # int [R, K, P], delayed
        condition: Cross | Prefix | None = None,
        cache: Cache | None = None,
        start: jax.Array | int = 0,
        taps: tuple[int, ...] = (),
        edits: Edits | None = None,
        branches: tuple[int, ...] | None = None,
        logits: bool = True,
    ) -> tuple[jax.Array | None, dict[int, jax.Array], Cache]:
        """Logits [R, K, P, V] (or None), residuals {layer: [R, P, D]} after the edits of that layer, and the keys and
        values so far. The columns are those at positions start … start + P − 1; a cache holds the ones before. Neither
        positions nor outputs nor edits count a prefix: only the sinusoids go on from it."""
        if branches is None:
            branches = (UNCONDITIONAL,) if unconditional(condition) else (CONDITIONAL,)
        prefix = condition if isinstance(condition, Prefix) else None
        cross = condition if isinstance(condition, Cross) else None
        c = self.config
        length = columns.shape[-1]
        positions = start + jnp.arange(length)
        x = sum(self.embedding[k, columns[:, k]] for k in range(c.num_codebooks))  # [R, P, D]
        offset = 0 if prefix is None else prefix.keys[0].shape[-1]
        x = x + sinusoids(offset + positions, c.hidden_size).astype(x.dtype)
        bias = None if cache is None else causal_bias(positions, jnp.arange(cache.keys[0].shape[3]))  # [P, S]
        residuals, pairs = {}, []
        depth = c.num_hidden_layers if logits else max(taps, default=-1) + 1
        for i, block in enumerate(self.blocks[:depth]):
            layer_cross = None if cross is None else (cross.keys[i], cross.values[i], cross.bias)
            layer_cache = None if cache is None else (cache.keys[i], cache.values[i])
            layer_before = None if prefix is None else (prefix.keys[i], prefix.values[i])
            x, pair = block(x, layer_cross, layer_before, layer_cache, start, bias)
            x = apply_edits(edits, i, x, positions, branches)
            pairs.append(pair)
            if i in taps:
                residuals[i] = x
        held = Cache(keys=tuple(k for k, _ in pairs), values=tuple(v for _, v in pairs))
        if not logits:
            return None, residuals, held
        out = product(self.norm(x), self.heads)  # [R, P, K, V]
        return out.transpose(0, 2, 1, 3), residuals, held
