"""Generation against transformers token for token, and what the loop promises: cache, keys, edits, streams."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_models import torch_generate

from musae_jax.errors import MusaeError
from musae_jax.models import generate as module
from musae_jax.models.decoder import Cache, Decoder
from musae_jax.models.delay import apply_delay
from musae_jax.models.edits import Edits, FunctionEdit
from musae_jax.models.generate import generate, generate_stream, sample
from musae_jax.models.musicgen import decode_codes, encode_text, forward
from musae_jax.models.piecewise import lookahead_frames

torch = pytest.importorskip("torch")

IDS = np.array([[5, 9, 3, 22, 8, 41, 7, 1], [12, 30, 1, 0, 0, 0, 0, 0], [49, 1, 0, 0, 0, 0, 0, 0]])
KEY = jax.random.key(3)


@pytest.mark.parametrize("size", ["even", "odd", "stereo"])
def test_greedy_with_guidance_equals_transformers_for_100_steps(pair, size):
    mg, model = pair(size).ours, pair(size).theirs
    frames = 100 - mg.config.decoder.delays + 1
    ids = torch.tensor(IDS)
    codes, audio = torch_generate(model, 100, input_ids=ids, attention_mask=(ids != 0).long(), guidance_scale=3.0)
    gen = generate(mg.config, mg.params, encode_text(mg, IDS), KEY, frames / 50, temperature=0.0)
    np.testing.assert_array_equal(gen.codes, codes)
    assert gen.codes.shape == (3, mg.config.num_codebooks, frames)
    # Not a trivial agreement: the tokens vary, over time and between the prompts.
    assert len(np.unique(codes)) > 15 and not np.array_equal(codes[0], codes[1])
    ours = np.asarray(gen.audio).reshape(audio.shape)
    assert np.abs(ours - audio).max() <= 1e-4 * np.abs(audio).max()


def test_greedy_without_guidance_and_without_text_equals_transformers(pair):
    mg, model = pair("even").ours, pair("even").theirs
    ids = torch.tensor(IDS)
    codes, _ = torch_generate(model, 40, input_ids=ids, attention_mask=(ids != 0).long(), guidance_scale=1.0)
    gen = generate(mg.config, mg.params, encode_text(mg, IDS), KEY, 37 / 50, guidance_scale=1.0, temperature=0.0)
    np.testing.assert_array_equal(gen.codes, codes)
    zeros = torch.zeros(2, 4, mg.config.text.d_model)
    from transformers.modeling_outputs import BaseModelOutput

    codes, _ = torch_generate(
        model, 40, encoder_outputs=BaseModelOutput(zeros), attention_mask=torch.zeros(2, 4).long(), guidance_scale=1.0
    )
    gen = generate(mg.config, mg.params, None, KEY, 37 / 50, temperature=0.0, batch_size=2)
    np.testing.assert_array_equal(gen.codes, codes)


def test_the_cache_gives_the_teacher_forced_logits(pair):
    """Step by step, and in two pieces, the logits are those of one forward pass."""
    mg = pair("even").ours
    c = mg.config.decoder
    codes = np.random.default_rng(1).integers(0, c.vocab_size, (2, 4, 11))
    text = encode_text(mg, IDS[:2])
    whole = forward(mg.config, mg.params, codes, text)
    decoder, variables = Decoder(c), {"params": mg.params["decoder"]}
    columns = apply_delay(codes, c.pad_token_id)
    cross = decoder.apply(variables, text, method="cross")
    cache = Cache(keys=(jnp.zeros((2, 4, 8, 16)),) * 2, values=(jnp.zeros((2, 4, 16, 8)),) * 2)
    step = jax.jit(lambda piece, cache, start: decoder.apply(variables, piece, cross, cache, start))
    pieces, start = [], 0
    for length in (7, 1, 1, 1, 1, 1):
        logits, _, cache = step(columns[..., start : start + length], cache, start)
        pieces.append(logits)
        start += length
    np.testing.assert_allclose(jnp.concatenate(pieces, axis=2), whole.logits, atol=1e-4)


def test_a_greedy_clip_is_a_fixed_point_of_forward(pair):
    """With guidance and an edit: each token is the argmax of the guided, edited, teacher-forced logits."""
    mg = pair("even").ours
    c = mg.config.decoder
    text = encode_text(mg, IDS)
    edits = Edits({0: np.random.default_rng(0).normal(size=(2, 1, 9, 32)) * 2})  # [G, B, P, D]
    gen = generate(mg.config, mg.params, text, KEY, 0.4, temperature=0.0, edits=edits, audio=False)
    columns = apply_delay(gen.codes, c.pad_token_id, columns=24)
    branches = [
        forward(mg.config, mg.params, columns[..., :-1], condition, edits=edits, delayed=True).logits
        for condition in (text, None)
    ]
    logits = branches[1] + 3.0 * (branches[0] - branches[1])
    tokens = np.asarray(jnp.argmax(logits, axis=-1))
    np.testing.assert_array_equal(np.where(columns[..., 1:] == c.pad_token_id, 64, tokens), columns[..., 1:])
    plain = generate(mg.config, mg.params, text, KEY, 0.4, temperature=0.0, audio=False)
    assert np.mean(np.asarray(plain.codes) != gen.codes) > 0.2


def test_keys(pair):
    """Same key, same clip; a row's clip depends on its own key and prompt, not on its company or its length."""
    mg = pair("even").ours

    def codes(text, key, seconds=0.6):
        return np.asarray(generate(mg.config, mg.params, text, key, seconds, audio=False).codes)

    text = encode_text(mg, IDS)
    three = codes(text, KEY)
    np.testing.assert_array_equal(codes(text, KEY), three)
    assert np.mean(codes(text, jax.random.key(4)) != three) > 0.3
    # The last frames of the shorter clip differ: their later codebooks are written beside padding.
    np.testing.assert_array_equal(codes(text, KEY, 0.8)[..., :27], three[..., :27])
    np.testing.assert_array_equal(codes(encode_text(mg, IDS[:1]), KEY)[0], three[0])
    same = encode_text(mg, np.repeat(IDS[:1], 3, axis=0))
    rows = codes(same, jnp.stack([KEY, KEY, jax.random.key(9)]))
    np.testing.assert_array_equal(rows[0], rows[1])
    assert np.mean(rows[0] != rows[2]) > 0.3


def test_sampling_follows_the_logits():
    """Frequencies over many rows against the softmax over the top k, at a temperature."""
    logits = jnp.array([2.0, 1.0, 0.0, -1.0, 1.5])
    rows = jnp.broadcast_to(logits, (20_000, 1, 5))
    keys = jax.random.split(jax.random.key(0), 20_000)
    tokens = np.asarray(sample(rows, keys, jnp.int32(0), jnp.float32(0.8), 3))[:, 0]
    kept = np.array([2.0, 1.0, -np.inf, -np.inf, 1.5]) / 0.8
    expected = np.exp(kept) / np.exp(kept).sum()
    found = np.bincount(tokens, minlength=5) / len(tokens)
    np.testing.assert_allclose(found, expected, atol=0.015)
    assert np.all(np.asarray(sample(rows[:9], keys[:9], jnp.int32(0), jnp.float32(0.0), 0)) == 0)


def double_first(arrays, h):
    features = jax.nn.relu(h @ arrays["encode"])
    return (features.at[..., 0].multiply(3.0) - features) @ arrays["decode"]


def test_strength_never_compiles_again(pair):
    mg = pair("even").ours
    text = encode_text(mg, IDS)
    rng = np.random.default_rng(0)
    arrays = {"encode": rng.normal(size=(32, 40)), "decode": rng.normal(size=(40, 32))}
    vector, found = rng.normal(size=32), []

    def run(strength, key, scale, temperature, seconds):
        edits = Edits({0: strength * vector}, {1: FunctionEdit(double_first, arrays, gate=strength)})
        found.append(np.asarray(generate(
            mg.config, mg.params, text, key, seconds, scale, temperature=temperature, edits=edits, audio=False
        ).codes))  # fmt: skip

    run(0.0, KEY, 3.0, 0.0, 0.5)
    compiled = module._advance._cache_size()
    run(1.0, KEY, 3, 0.0, 0.5)
    run(np.float32(0.5), jax.random.key(8), 2.5, 1, 0.62)
    assert module._advance._cache_size() == compiled
    plain = generate(mg.config, mg.params, text, KEY, 0.5, temperature=0.0, audio=False)
    np.testing.assert_array_equal(found[0], plain.codes)
    assert np.mean(found[0] != found[1]) > 0.2
    assert plain.audio is None


def test_the_stream_laid_end_to_end_is_the_whole(pair):
    mg = pair("stereo").ours
    text = encode_text(mg, IDS[:2])
    whole = generate(mg.config, mg.params, text, KEY, 0.66)
    chunks = list(generate_stream(mg.config, mg.params, text, KEY, 0.66, chunk_seconds=0.2))
    assert [chunk.codes.shape[-1] for chunk in chunks] == [10, 10, 10, 3]
    np.testing.assert_array_equal(jnp.concatenate([chunk.codes for chunk in chunks], axis=-1), whole.codes)
    audio = np.concatenate([chunk.audio for chunk in chunks], axis=-1)
    np.testing.assert_allclose(audio, whole.audio, atol=1e-5 * np.abs(whole.audio).max())


def test_lookahead_is_enough_and_not_wasteful(pair):
    """Changing the frame after the look-ahead leaves a sound alone; changing one a frame or two nearer does not."""
    config, params = pair("even").ours.config, pair("even").ours.params
    ahead, hop = lookahead_frames(config.audio), config.hop_length
    codes = np.random.default_rng(0).integers(0, 64, (1, 4, 20))
    base = np.asarray(decode_codes(config, params, codes))

    def first_change(frame):
        other = codes.copy()
        other[:, :, frame] = (other[:, :, frame] + 7) % 64
        return np.nonzero(np.abs(np.asarray(decode_codes(config, params, other)) - base) > 1e-7)[1][0]

    assert first_change(12) >= (12 - ahead) * hop
    assert first_change(12) < (12 - ahead + 3) * hop


def test_generate_under_jit(pair):
    mg = pair("even").ours
    text = encode_text(mg, IDS)
    jitted = jax.jit(lambda p, t, k, s: generate(mg.config, p, t, k, 0.3, s, audio=False))
    gen = jitted(mg.params, text, KEY, 3.0)
    np.testing.assert_array_equal(gen.codes, generate(mg.config, mg.params, text, KEY, 0.3, audio=False).codes)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seconds": 0}, "seconds is 0"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"temperature": -1.0}, "temperature"),
        ({"batch_size": 5}, "batch_size is 5"),
        ({"key": jax.random.split(KEY, 4)}, "one key, or one a row"),
    ],
)
def test_wrong_settings_are_named(pair, settings, words):
    mg = pair("even").ours
    with pytest.raises(MusaeError, match=words):
        generate(mg.config, mg.params, encode_text(mg, IDS), **({"key": KEY} | settings))
