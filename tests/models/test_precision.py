"""The decoder's own arithmetic: causal attention in blocks, and products in the kernels' type."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import musae_jax as musae
from musae_jax.models.decoder import BLOCK, BLOCKS, attention, causal_attention, causal_bias
from musae_jax.models.precision import cast_params


def some(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("length", [1, BLOCK, BLOCK + 1, 3 * BLOCK - 7, BLOCK * BLOCKS + 9])
@pytest.mark.parametrize("prefix", [0, 5])
def test_blocks_of_causal_attention_are_attention(length, prefix):
    query, key, value = some(2, length, 3, 4), some(2, 3, 4, length, seed=1), some(2, 3, length, 4, seed=2)
    before = (some(1, 3, 4, prefix, seed=3), some(1, 3, prefix, 4, seed=4)) if prefix else None
    bias = causal_bias(jnp.arange(length), jnp.arange(length))
    blocks = causal_attention(query, key, value, before)
    np.testing.assert_allclose(blocks, attention(query, key, value, bias, before), atol=2e-6)


def test_attention_is_the_softmax_of_its_scores():
    query, key, value = some(2, 6, 3, 4), some(2, 3, 4, 6, seed=1), some(2, 3, 6, 4, seed=2)
    scores = jnp.einsum("rphd,rhds->rhps", query, key) / 2
    scores = jnp.where(jnp.tril(jnp.ones((6, 6), bool)), scores, -jnp.inf)
    expected = jnp.einsum("rhps,rhsd->rphd", jax.nn.softmax(scores, axis=-1), value).reshape(2, 6, 12)
    np.testing.assert_allclose(causal_attention(query, key, value), expected, atol=1e-6)


@pytest.fixture(scope="module")
def pocket():
    return musae.load_musicgen("pocket")


def test_mixed_stays_near_float32(pocket):
    params = musae.load_musicgen("pocket", "mixed").params
    kernel, norm = params["decoder"]["block_0"]["up"]["kernel"], params["decoder"]["block_0"]["ffn_norm"]["scale"]
    assert kernel.dtype == jnp.bfloat16 and norm.dtype == jnp.float32
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves((params["text"], params["audio"])))
    codes = np.random.default_rng(0).integers(pocket.config.audio.codebook_size, size=(2, 4, 40))
    exact, mixed = (musae.forward(pocket.config, p, codes, taps=(4,)).residuals[4] for p in (pocket.params, params))
    assert mixed.dtype == jnp.float32
    apart = float(jnp.sqrt(jnp.mean((mixed - exact) ** 2) / jnp.mean(exact**2)))
    assert 1e-5 < apart < 0.02


def test_mixed_never_widens_a_kernel(pocket):
    """XLA on CPUs widens the kernels of products that are asked for in bfloat16, at every step of a generation."""
    c, params = pocket.config, musae.load_musicgen("pocket", "mixed").params
    codes = jnp.zeros((1, 4, 1), jnp.int32)
    text = jax.jit(lambda p: musae.forward(c, p, codes, taps=(1,)).residuals[1]).lower(params).compile().as_text()
    width, hidden = c.decoder.hidden_size, c.decoder.ffn_dim
    widened = rf"f32\[(?:{width},{width}|{width},{hidden}|{hidden},{width})\]\S* convert\("
    assert re.search(r"bf16\[", text) and not re.search(widened, text)


@pytest.mark.parametrize("dtype", ["mixed", "bfloat16"])
def test_one_row_and_two_rows_multiply_alike(pocket, dtype):
    params = musae.load_musicgen("pocket", dtype).params
    codes = np.random.default_rng(0).integers(256, size=(2, 4, 1))
    one = musae.forward(pocket.config, params, codes[:1], delayed=True, taps=(2,)).residuals[2]
    two = musae.forward(pocket.config, params, codes, delayed=True, taps=(2,)).residuals[2]
    np.testing.assert_allclose(np.asarray(one[0], np.float32), np.asarray(two[0], np.float32), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", ["mixed", "bfloat16", "float16"])
def test_what_is_loaded_is_what_is_cast_and_the_codec_stays_float32(pocket, dtype):
    low = musae.load_musicgen("pocket", dtype=dtype)
    cast = cast_params(pocket.params, dtype)
    jax.tree.map(np.testing.assert_array_equal, low.params, cast)
    assert jax.tree.map(lambda x: x.dtype, low.params) == jax.tree.map(lambda x: x.dtype, cast)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(low.params["audio"]))
    text = musae.encode_text(low, ["flute"])
    whole = musae.generate(low.config, low.params, text, jax.random.key(0), seconds=0.5)
    chunks = list(musae.generate_stream(low.config, low.params, text, jax.random.key(0), 0.5, chunk_seconds=0.3))
    np.testing.assert_array_equal(np.concatenate([chunk.codes for chunk in chunks], axis=-1), whole.codes)
    sound = np.concatenate([chunk.audio for chunk in chunks], axis=-1)
    np.testing.assert_allclose(sound, whole.audio, atol=1e-4)


def test_float16_holds_the_sums_of_attention():
    """1,500 alike scores and values of 100 sum to 150,000 before they are divided, more than float16 has."""
    length = 1500
    query, key = jnp.zeros((1, 1, 1, 4), jnp.float16), jnp.zeros((1, 1, 4, length), jnp.float16)
    value = jnp.full((1, 1, length, 4), 100, jnp.float16)
    np.testing.assert_allclose(attention(query, key, value, jnp.zeros((1, length))), 100)
