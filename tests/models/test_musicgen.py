"""The text encoder and the decoder against transformers, and what a decoder must be: causal, jittable, editable."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musae_jax.errors import MusaeError
from musae_jax.models.decoder import TextStates
from musae_jax.models.delay import apply_delay, codebook_delays, delayed_targets, undo_delay
from musae_jax.models.edits import Edits, FunctionEdit
from musae_jax.models.musicgen import decode_codes, encode_audio, encode_text, forward, random_musicgen

torch = pytest.importorskip("torch")

SIZES = ("even", "odd", "stereo")
IDS = np.array([[5, 9, 3, 22, 8, 41, 7, 1], [12, 30, 1, 0, 0, 0, 0, 0], [49, 1, 0, 0, 0, 0, 0, 0]])


def assert_close(ours, theirs, tolerance=1e-4):
    theirs = theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert np.abs(np.asarray(ours) - theirs).max() <= tolerance * np.abs(theirs).max()


def random_codes(config, rows, frames, seed=0):
    c = config.decoder
    return np.random.default_rng(seed).integers(0, c.vocab_size, (rows, c.num_codebooks, frames))


def torch_residuals(model, **inputs):
    """Logits and the output of every decoder block."""
    residuals = []
    hooks = [
        layer.register_forward_hook(lambda _, __, out: residuals.append(out[0] if isinstance(out, tuple) else out))
        for layer in model.decoder.model.decoder.layers
    ]
    with torch.no_grad():
        logits = model(**inputs).logits
    for hook in hooks:
        hook.remove()
    return logits, residuals


@pytest.mark.parametrize("size", SIZES)
def test_text_residuals_and_logits_equal_transformers(pair, size):
    mg, model = pair(size).ours, pair(size).theirs
    c = mg.config.decoder
    text = encode_text(mg, IDS)
    ids, mask = torch.tensor(IDS), torch.tensor(IDS != 0)
    with torch.no_grad():
        states = model.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        if mg.config.projects_text:
            states = model.enc_to_dec_proj(states)
    assert_close(text.states, states * mask[..., None])

    codes = random_codes(mg.config, 3, 37)
    columns = np.asarray(apply_delay(codes, c.pad_token_id, c.audio_channels))
    logits, residuals = torch_residuals(
        model, input_ids=ids, attention_mask=mask, decoder_input_ids=torch.tensor(columns).reshape(-1, 38).long()
    )
    layers = tuple(range(c.num_hidden_layers))
    out = forward(mg.config, mg.params, codes, text, taps=layers)
    assert_close(out.logits, logits.reshape(3, c.num_codebooks, 38, -1))
    for layer in layers:
        assert_close(out.residuals[layer], residuals[layer])
    again = forward(mg.config, mg.params, columns, text, taps=layers, delayed=True)
    np.testing.assert_array_equal(again.logits, out.logits)


@pytest.mark.parametrize("size", SIZES)
def test_no_text_equals_transformers_unconditional(pair, size):
    mg, model = pair(size).ours, pair(size).theirs
    c = mg.config.decoder
    codes = random_codes(mg.config, 2, 20)
    columns = torch.tensor(np.asarray(apply_delay(codes, c.pad_token_id, c.audio_channels))).reshape(-1, 21).long()
    zeros = torch.zeros(2, 5, mg.config.text.d_model)
    logits, residuals = torch_residuals(
        model, encoder_outputs=(zeros,), attention_mask=torch.zeros(2, 5), decoder_input_ids=columns
    )
    out = forward(mg.config, mg.params, codes, taps=(0, 1))
    assert_close(out.logits, logits.reshape(2, c.num_codebooks, 21, -1))
    assert_close(out.residuals[1], residuals[1])
    # Dropping the text of a row, as training for guidance does, is the same and gives no NaN.
    dropped = TextStates(states=jnp.zeros((2, 5, c.hidden_size)), mask=jnp.zeros((2, 5)))
    assert_close(forward(mg.config, mg.params, codes, dropped).logits, out.logits, 1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_codec_equals_transformers(pair, size):
    mg, model = pair(size).ours, pair(size).theirs
    codes = random_codes(mg.config, 2, 30)
    torch_codes = torch.tensor(codes)[None]
    with torch.no_grad():
        if mg.config.audio_channels == 1:
            waves = model.audio_encoder.decode(torch_codes, [None]).audio_values[:, 0]
            back = model.audio_encoder.encode(waves[:, None]).audio_codes[0]
        else:
            sides = [model.audio_encoder.decode(torch_codes[:, :, s::2], [None]).audio_values for s in (0, 1)]
            waves = torch.cat(sides, dim=1)
            back = torch.stack([model.audio_encoder.encode(w).audio_codes[0] for w in sides], 2).reshape(2, -1, 30)
    audio = decode_codes(mg.config, mg.params, codes)
    assert_close(audio, waves)
    np.testing.assert_array_equal(encode_audio(mg.config, mg.params, waves.numpy()), back)
    if mg.config.audio_channels == 2:
        same = encode_audio(mg.config, mg.params, waves[:, 0].numpy())
        np.testing.assert_array_equal(same[:, ::2], same[:, 1::2])


def test_random_model_is_drawn_as_the_original(pair):
    config = pair("odd").ours.config
    mg = random_musicgen(config, jax.random.key(1))
    like = jax.tree.map(lambda x: (x.shape, x.dtype), pair("odd").ours.params)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), mg.params) == like
    heads = np.asarray(mg.params["decoder"]["heads"])
    assert abs(heads.std() - 0.02) < 0.002 and abs(heads.mean()) < 0.002
    assert np.all(mg.params["decoder"]["block_3"]["cross_norm"]["scale"] == 1)
    query = np.concatenate([mg.params["text"][f"block_{i}"]["query"]["kernel"] for i in range(3)])
    assert query.std() == pytest.approx((20 * 7) ** -0.5, rel=0.1)
    assert np.std(mg.params["text"]["embedding"]) == pytest.approx(1.0, rel=0.1)
    out = forward(config, mg.params, random_codes(config, 1, 8), encode_text(mg, IDS[:1]))
    # Small weights: the predictions start near uniform.
    entropy = -(jax.nn.softmax(out.logits) * jax.nn.log_softmax(out.logits)).sum(-1)
    assert entropy.min() > 0.95 * np.log(config.decoder.vocab_size)
    other = random_musicgen(config, jax.random.key(2)).params["decoder"]["heads"]
    assert np.abs(other - heads).max() > 0.01


def test_prompts_of_other_lengths_do_not_disturb_a_row(pair):
    mg = pair("even").ours
    together = encode_text(mg, IDS)
    for row, length in enumerate((8, 3, 2)):
        alone = encode_text(mg, IDS[row : row + 1, :length])
        assert_close(together.states[row : row + 1, :length], alone.states, 1e-5)
        assert not np.any(together.states[row, length:])


def test_the_decoder_is_causal(pair):
    """The gradient of position 6's logits reaches positions 0 … 6 and no later one."""
    mg = pair("even").ours
    codes = random_codes(mg.config, 1, 12)
    text = encode_text(mg, IDS[:1])

    def logits_at(nudge):  # [1, P, D], added to the stream of block 0
        return jnp.square(forward(mg.config, mg.params, codes, text, edits=Edits({0: nudge})).logits[0, :, 6]).sum()

    gradient = np.asarray(jax.grad(logits_at)(jnp.zeros((1, 13, mg.config.decoder.hidden_size))))
    reach = np.abs(gradient).max(axis=(0, 2))
    assert np.all(reach[:7] > 0)
    assert np.all(reach[7:] == 0)


def test_jit_equals_no_jit_and_gradients_flow(pair):
    mg = pair("even").ours
    codes, text = random_codes(mg.config, 2, 10), encode_text(mg, IDS[:2])
    out = forward(mg.config, mg.params, codes, text, taps=[1])
    with jax.disable_jit():
        plain = forward(mg.config, mg.params, codes, text, taps=[1])
    assert_close(out.logits, plain.logits, 1e-5)
    assert_close(out.residuals[1], plain.residuals[1], 1e-5)

    def loss(params):
        logits = forward(mg.config, params, codes, text).logits
        targets, mask = delayed_targets(codes)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]
        return -(picked * mask).sum() / mask.sum()

    gradient = jax.grad(loss)({"decoder": mg.params["decoder"]})
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


def test_nothing_above_the_highest_tap_is_computed(pair):
    mg = pair("odd").ours
    codes = random_codes(mg.config, 1, 10)
    full = forward(mg.config, mg.params, codes, taps=(0, 2))
    low = forward(mg.config, mg.params, codes, taps=(0, 2), logits=False)
    assert low.logits is None
    assert_close(low.residuals[2], full.residuals[2], 1e-6)

    def flops(**settings):
        # Under an outer jit, unused logits are pruned as well: layers are unrolled.
        return jax.jit(lambda p, c: forward(mg.config, p, c, **settings).residuals).lower(
            mg.params, codes
        ).compile().cost_analysis()["flops"]  # fmt: skip

    assert flops(taps=(0,)) < 0.3 * flops(taps=(4,))
    assert flops(taps=(0,), logits=False) == pytest.approx(flops(taps=(0,)), rel=0.01)


def add_scaled(arrays, h):
    """A stand-in for an SAE edit: f = relu(h W), f' = f with feature 0 doubled; the change is (f' − f) V."""
    features = jax.nn.relu(h @ arrays["encode"])
    changed = features.at[..., 0].multiply(2.0)
    return changed @ arrays["decode"] - features @ arrays["decode"]


def test_edits(pair):
    mg = pair("even").ours
    c = mg.config.decoder
    codes, text = random_codes(mg.config, 2, 9), encode_text(mg, IDS[:2])
    plain = forward(mg.config, mg.params, codes, text, taps=(0, 1))
    zero = forward(mg.config, mg.params, codes, text, taps=(0, 1), edits=Edits({1: np.zeros(c.hidden_size)}))
    np.testing.assert_array_equal(zero.logits, plain.logits)

    rng = np.random.default_rng(0)
    vector = rng.normal(size=c.hidden_size).astype(np.float32)
    out = forward(mg.config, mg.params, codes, text, taps=(0, 1), edits=Edits({1: vector}))
    np.testing.assert_array_equal(out.residuals[0], plain.residuals[0])
    assert_close(out.residuals[1], plain.residuals[1] + vector, 1e-6)
    assert np.abs(out.logits - plain.logits).max() > 0.1

    schedule = rng.normal(size=(2, 2, 4, c.hidden_size)).astype(np.float32)  # [G, B, P, D], shorter than the clip
    held = np.concatenate([schedule, np.repeat(schedule[:, :, -1:], 6, axis=2)], axis=2)
    for branch, condition in enumerate((text, None)):
        base = forward(mg.config, mg.params, codes, condition, taps=(1,), logits=False)
        out = forward(mg.config, mg.params, codes, condition, taps=(1,), edits=Edits({1: schedule}), logits=False)
        assert_close(out.residuals[1], base.residuals[1] + held[branch], 1e-6)

    arrays = {"encode": rng.normal(size=(32, 60)), "decode": rng.normal(size=(60, 32)).astype(np.float32)}
    gate = np.array([0.0, 0.5, 1.0], np.float32)
    edits = Edits({}, {1: FunctionEdit(add_scaled, arrays, gate)})
    out = forward(mg.config, mg.params, codes, text, taps=(1,), edits=edits, logits=False)
    arrays = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), arrays)
    by_hand = add_scaled(arrays, plain.residuals[1]) * np.minimum(np.arange(10), 2)[:, None] / 2
    assert_close(out.residuals[1], plain.residuals[1] + by_hand, 1e-5)
    assert np.abs(by_hand).max() > 0.1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"taps": (5,)}, "tap 5"),
        ({"codes": np.zeros((1, 4, 8), int)}, r"\[B, 3, T\]"),
        ({"edits": Edits({7: np.zeros(39)})}, "layer 7"),
        ({"edits": Edits({0: np.zeros(38)})}, "39 wide"),
        ({"edits": Edits({0: np.zeros((3, 1, 39))})}, "does not fit a batch"),
    ],
)
def test_wrong_arguments_are_named(pair, change, words):
    mg = pair("odd").ours
    with pytest.raises(MusaeError, match=words):
        forward(mg.config, mg.params, **({"codes": np.zeros((1, 3, 8), int)} | change))


def test_text_arguments(pair):
    mg = pair("odd").ours
    with pytest.raises(MusaeError, match="no tokenizer files"):
        encode_text(mg, ["a flute"])
    with pytest.raises(MusaeError, match="mask has shape"):
        encode_text(mg, IDS, np.ones((3, 7)))
    with pytest.raises(MusaeError, match="integer token ids"):
        encode_text(mg, np.zeros((2, 3)))
    masked = encode_text(mg, IDS, IDS != 0)
    np.testing.assert_array_equal(masked.states, encode_text(mg, IDS).states)


@pytest.mark.parametrize("channels", [1, 2])
def test_delay_and_back(channels):
    codes = np.random.default_rng(0).integers(0, 9, (2, 6, 11))
    delays = codebook_delays(6, channels)
    columns = np.asarray(apply_delay(codes, 9, channels, columns=11 + 6 // channels))
    for k, delay in enumerate(delays):
        np.testing.assert_array_equal(columns[:, k, : delay + 1], 9)
        np.testing.assert_array_equal(columns[:, k, delay + 1 : delay + 12], codes[:, k])
        np.testing.assert_array_equal(columns[:, k, delay + 12 :], 9)
    np.testing.assert_array_equal(undo_delay(columns, 11, channels), codes)
    np.testing.assert_array_equal(apply_delay(codes, 9, channels), columns[..., :12])
    targets, mask = delayed_targets(codes, channels, positions=11 + 6 // channels - 1)
    np.testing.assert_array_equal(np.where(mask, targets, 9), columns[..., 1:])
    assert mask.sum() == 6 * 11
