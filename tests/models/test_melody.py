"""Melody checkpoints against transformers: chroma, teacher-forced outputs, greedy tokens, and what is refused."""

import dataclasses
import warnings

import jax
import numpy as np
import pytest
from torch_models import torch_generate

from musae_jax.errors import MusaeError
from musae_jax.models.chroma import HOP, WINDOW, encode_melody, filters, window_chroma
from musae_jax.models.decoder import PREFIXED
from musae_jax.models.delay import apply_delay
from musae_jax.models.edits import Edits
from musae_jax.models.generate import generate, generate_stream
from musae_jax.models.musicgen import MusicGen, MusicGenConfig, encode_text, forward, random_musicgen

torch = pytest.importorskip("torch")

SIZES = ("melody", "odd melody", "stereo melody")
IDS = np.array([[5, 9, 3, 22, 8, 41, 7, 1], [12, 30, 1, 0, 0, 0, 0, 0], [49, 1, 0, 0, 0, 0, 0, 0]])
KEY = jax.random.key(3)


def random_melody(rows, frames, seed=0):
    return np.eye(12, dtype=np.float32)[np.random.default_rng(seed).integers(0, 12, (rows, frames))]


def some_codes(config, rows=3, frames=21):
    c = config.decoder
    return np.random.default_rng(0).integers(0, c.vocab_size, (rows, c.num_codebooks, frames))


def torch_inputs(ids, melody):
    """What transformers takes for our text and melody; no text is one masked token, as its processor makes it."""
    mask = np.zeros((3, 1), int) if ids is None else (ids != 0).astype(int)
    ids = np.ones((3, 1), int) if ids is None else ids
    inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    return inputs if melody is None else inputs | {"input_features": torch.tensor(melody)}


def largest_difference(ours, theirs):
    """Relative to the largest value."""
    assert ours.shape == tuple(theirs.shape)
    return np.abs(np.asarray(ours) - theirs.numpy()).max() / theirs.abs().max().item()


CONDITIONS = {
    "text": (IDS, None),
    "text and a short melody": (IDS, random_melody(3, 5)),
    "text and a long melody": (IDS, random_melody(3, 19)),
    "melody": (None, random_melody(3, 6)),
    "nothing": (None, None),
}


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("size", SIZES)
def test_logits_and_residuals_equal_transformers(pair, size, condition):
    mg, model = pair(size).ours, pair(size).theirs
    c, (ids, melody) = mg.config.decoder, CONDITIONS[condition]
    codes = some_codes(mg.config)
    columns = torch.tensor(np.asarray(apply_delay(codes, c.pad_token_id, c.audio_channels))).reshape(-1, 22).long()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = model(**torch_inputs(ids, melody), decoder_input_ids=columns, output_hidden_states=True)
    text = None if ids is None else encode_text(mg, ids)
    layers = tuple(range(c.num_hidden_layers))
    out = forward(mg.config, mg.params, codes, text, taps=layers, melody=melody)
    prefix = mg.config.melody.chroma_length + (1 if ids is None else ids.shape[1])
    logits = theirs.logits.reshape(3, c.num_codebooks, prefix + 22, -1)
    assert largest_difference(out.logits, logits[:, :, prefix:]) < 1e-5
    # hidden_states[0] is the embedding; the last one comes after the final norm.
    for layer in layers[:-1]:
        assert largest_difference(out.residuals[layer], theirs.hidden_states[layer + 1][:, prefix:]) < 1e-5
    norm = mg.params["decoder"]["norm"]
    x = np.asarray(out.residuals[layers[-1]])
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * norm["scale"] + norm["bias"]
    assert largest_difference(x, theirs.hidden_states[-1][:, prefix:]) < 1e-5


@pytest.mark.parametrize("condition", [name for name in CONDITIONS if name != "nothing"])
@pytest.mark.parametrize("size", SIZES)
def test_greedy_with_guidance_equals_transformers_for_60_steps(pair, size, condition):
    """Also with text alone, where both halves have the null melody; rows of the batch differ in length."""
    mg, model = pair(size).ours, pair(size).theirs
    ids, melody = CONDITIONS[condition]
    frames = 60 - mg.config.decoder.delays + 1
    codes, _ = torch_generate(model, 60, **torch_inputs(ids, melody), guidance_scale=3.0)
    text = None if ids is None else encode_text(mg, ids)
    gen = generate(mg.config, mg.params, text, KEY, frames / 50, temperature=0.0, melody=melody, audio=False)
    np.testing.assert_array_equal(gen.codes, codes)
    # Not a trivial agreement: the tokens vary, over time and between the prompts.
    assert len(np.unique(codes)) > 10 and not np.array_equal(codes[0], codes[1])


def test_greedy_without_guidance_and_without_conditions_equals_transformers(pair):
    mg, model = pair("melody").ours, pair("melody").theirs
    text, melody = encode_text(mg, IDS), random_melody(3, 5)
    codes, _ = torch_generate(model, 40, **torch_inputs(IDS, melody), guidance_scale=1.0)
    gen = generate(mg.config, mg.params, text, KEY, 37 / 50, 1.0, temperature=0.0, melody=melody, audio=False)
    np.testing.assert_array_equal(gen.codes, codes)
    codes, _ = torch_generate(model, 40, **torch_inputs(None, None), guidance_scale=3.0)
    gen = generate(mg.config, mg.params, None, KEY, 37 / 50, temperature=0.0, batch_size=3, audio=False)
    np.testing.assert_array_equal(gen.codes, codes)


def test_rows_with_and_without_melody_share_a_batch(pair):
    """The null melody, the first pitch class, is no melody; one row of text or melody serves all of the other."""
    mg = pair("melody").ours
    text, melody = encode_text(mg, IDS), random_melody(3, 8)
    codes = some_codes(mg.config)
    with_melody = forward(mg.config, mg.params, codes, text, melody=melody).logits
    without = forward(mg.config, mg.params, codes, text).logits
    melody[1] = np.eye(12)[0]
    mixed = forward(mg.config, mg.params, codes, text, melody=melody).logits
    np.testing.assert_allclose(mixed[1], without[1], atol=1e-5)
    np.testing.assert_allclose(mixed[::2], with_melody[::2], atol=1e-5)
    assert np.abs(with_melody[1] - without[1]).max() > 0.1
    one = jax.tree.map(lambda x: x[:1], text)
    whole = jax.tree.map(lambda x: np.repeat(x[:1], 3, axis=0), text)
    for few, many in ((melody[:1], np.repeat(melody[:1], 3, axis=0)), (melody, melody)):
        a = generate(mg.config, mg.params, one if len(few) == 3 else whole, KEY, 0.3, melody=few, audio=False)
        b = generate(mg.config, mg.params, whole, KEY, 0.3, melody=many, audio=False)
        np.testing.assert_array_equal(a.codes, b.codes)


def test_a_greedy_clip_is_a_fixed_point_of_forward_with_edits(pair):
    """The two branches of an edit go where guidance has them, and positions count from the start of the music."""
    mg = pair("melody").ours
    c, melody = mg.config.decoder, random_melody(3, 5)
    text = encode_text(mg, IDS)
    nothing = jax.tree.map(lambda x: 0 * x, text)
    edits = Edits({0: np.random.default_rng(0).normal(size=(2, 1, 9, 32)) * 2})  # [G, B, P, D]
    gen = generate(mg.config, mg.params, text, KEY, 0.4, temperature=0.0, edits=edits, audio=False, melody=melody)
    columns = apply_delay(gen.codes, c.pad_token_id, columns=24)
    conditional, unconditional = (
        forward(mg.config, mg.params, columns[..., :-1], prompt, edits=edit, delayed=True, melody=tune).logits
        for prompt, tune, edit in ((text, melody, edits), (nothing, None, Edits({0: edits.vectors[0][1]})))
    )
    tokens = np.asarray(np.argmax(unconditional + 3.0 * (conditional - unconditional), axis=-1))
    np.testing.assert_array_equal(np.where(columns[..., 1:] == c.pad_token_id, 64, tokens), columns[..., 1:])
    codes = some_codes(mg.config)
    plain = forward(mg.config, mg.params, codes, taps=(0,), logits=False)
    edited = forward(mg.config, mg.params, codes, taps=(0,), edits=edits, logits=False)
    change = np.asarray(edited.residuals[0] - plain.residuals[0])
    np.testing.assert_allclose(change[:, :9], np.repeat(edits.vectors[0][1], 3, axis=0), atol=1e-5)


def test_guidance_in_two_passes_is_the_same(pair):
    mg = pair("melody").ours
    text, melody = encode_text(mg, IDS), random_melody(3, 8)
    settings = {"temperature": 0.0, "melody": melody, "audio": False}
    one, two = (generate(mg.config, mg.params, text, KEY, 0.3, two_pass=two, **settings).codes for two in (False, True))
    np.testing.assert_array_equal(one, two)


def test_a_melody_slides_along_with_the_windows(pair):
    """Each window is what it is alone, given the end of the one before and the melody of its own time."""
    mg = pair("melody").ours
    config, params = at_32_khz(mg), mg.params
    text, sound = encode_text(mg, IDS), np.stack([tune(40_000, seed) for seed in range(3)])
    settings = {"temperature": 0.0, "audio": False}
    sliding = {"window_seconds": 0.6, "stride_seconds": 0.36}  # 30 and 18 frames
    whole = generate(config, params, text, KEY, 1.32, melody=sound, **settings, **sliding).codes
    made = np.zeros((3, 4, 0), int)
    for start in (0, 18, 36):
        known, chroma = made[..., start:], window_chroma(config, sound, start)
        new = (30 - known.shape[-1]) / 50
        one = generate(config, params, text, KEY, new, prompt=known, melody=chroma, **settings)
        made = np.concatenate([made[..., :start], one.codes], axis=-1)
    np.testing.assert_array_equal(whole, made)
    other = np.concatenate([sound[:, :11_520], sound[:, :28_480]], axis=1)  # the same for as long as the first stride
    other = generate(config, params, text, KEY, 1.32, melody=other, **settings, **sliding).codes
    assert not np.array_equal(whole[..., 30:], other[..., 30:])
    with pytest.raises(MusaeError, match=r"one window of 0.6 s; give fewer seconds, or the melody's sound"):
        generate(config, params, text, KEY, 1.32, melody=random_melody(3, 8), **sliding)


def test_within_a_window_sound_is_its_chroma(pair):
    mg = pair("melody").ours
    text, sound = encode_text(mg, IDS), np.random.default_rng(0).normal(size=(1, 30_000)).astype(np.float32)
    settings = {"temperature": 0.0, "audio": False}
    heard = generate(mg.config, mg.params, text, KEY, 0.5, melody=sound, **settings).codes
    read = generate(mg.config, mg.params, text, KEY, 0.5, melody=encode_melody(mg.config, sound), **settings).codes
    np.testing.assert_array_equal(heard, read)


def test_jit_equals_no_jit_and_gradients_reach_the_melody(pair):
    mg = pair("melody").ours
    text, melody, codes = encode_text(mg, IDS), random_melody(3, 5), some_codes(mg.config)
    jitted = jax.jit(lambda m, scale: generate(mg.config, mg.params, text, KEY, 0.2, scale, audio=False, melody=m))
    plain = generate(mg.config, mg.params, text, KEY, 0.2, audio=False, melody=melody)
    np.testing.assert_array_equal(jitted(melody, 3.0).codes, plain.codes)
    out = forward(mg.config, mg.params, codes, text, melody=melody).logits
    with jax.disable_jit():
        eager = forward(mg.config, mg.params, codes, text, melody=melody).logits
    np.testing.assert_allclose(out, eager, atol=1e-5 * np.abs(out).max())
    gradient = jax.grad(lambda m: forward(mg.config, mg.params, codes, text, melody=m).logits[:, :, 6].sum())(melody)
    assert np.all(np.abs(gradient).max((1, 2)) > 0)


def test_the_stream_laid_end_to_end_is_the_whole(pair):
    mg = pair("odd melody").ours
    text, melody = encode_text(mg, IDS), random_melody(1, 5)
    whole = generate(mg.config, mg.params, text, KEY, 0.5, melody=melody)
    chunks = list(generate_stream(mg.config, mg.params, text, KEY, 0.5, chunk_seconds=0.2, melody=melody))
    np.testing.assert_array_equal(np.concatenate([chunk.codes for chunk in chunks], axis=-1), whole.codes)


def test_random_model_has_the_same_parameters(pair):
    mg = pair("melody").ours
    made = random_musicgen(mg.config, jax.random.key(1))
    assert jax.tree.map(np.shape, made.params) == jax.tree.map(np.shape, mg.params)
    assert mg.config.decoder.model_type == PREFIXED
    assert not any("cross" in name for name in mg.params["decoder"]["block_0"])


@pytest.mark.parametrize(
    ("melody", "words"),
    [
        (np.zeros((3, 5, 11)), r"reads \[B, M, 12\]"),
        (np.zeros((3, 0, 12)), r"reads \[B, M, 12\]"),
        (np.zeros(12), r"reads \[B, M, 12\]"),
        (np.zeros((2, 5, 12)), "2 rows and the text 3"),
    ],
)
def test_wrong_melodies_are_named(pair, melody, words):
    mg = pair("melody").ours
    for call in (
        lambda text: generate(mg.config, mg.params, text, KEY, 0.2, melody=melody),
        lambda text: forward(mg.config, mg.params, some_codes(mg.config), text, melody=melody),
    ):
        with pytest.raises(MusaeError, match=words):
            call(encode_text(mg, IDS))


def test_a_model_that_takes_no_melody_says_so(pair):
    mg = pair("even").ours
    with pytest.raises(MusaeError, match="takes no melody"):
        generate(mg.config, mg.params, None, KEY, 0.2, melody=random_melody(1, 5))
    with pytest.raises(MusaeError, match="takes no melody"):
        forward(mg.config, mg.params, some_codes(mg.config), melody=random_melody(1, 5))
    with pytest.raises(MusaeError, match="takes no melody"):
        encode_melody(mg.config, np.zeros((1, 500)))


def test_rows_that_do_not_fit_the_codes_are_named(pair):
    mg = pair("melody").ours
    with pytest.raises(MusaeError, match=r"reads \[B, M, 12\]$"):  # forward has no time to cut sound by
        forward(mg.config, mg.params, some_codes(mg.config), melody=np.zeros((3, 4_000)))
    with pytest.raises(MusaeError, match="3 rows of text and melody for 2 rows of codes"):
        forward(mg.config, mg.params, some_codes(mg.config, rows=2), encode_text(mg, IDS))


def at_32_khz(mg: MusicGen) -> MusicGenConfig:
    """The same decoder with MusicGen's own rates; its codec then fits no longer."""
    rates = {"sampling_rate": 32_000, "upsampling_ratios": (8, 5, 4, 4), "target_bandwidths": (1.2,)}
    return dataclasses.replace(mg.config, audio=dataclasses.replace(mg.config.audio, **rates))


def tune(samples, seed=0):
    """Notes of a quarter second with overtones and some noise, float32 [samples] at 32 kHz."""
    rng = np.random.default_rng(seed)
    time = np.arange(samples) / 32_000
    note = np.repeat(rng.integers(40, 80, samples // 8_000 + 1), 8_000)[:samples]
    phase = 2 * np.pi * np.cumsum(440 * 2 ** ((note - 69) / 12)) / 32_000
    sound = sum(np.sin(n * phase) / n for n in (1, 2, 3)) + 0.01 * rng.normal(size=samples)
    return (0.2 * sound * (1 + np.sin(time))).astype(np.float32)


LENGTHS = [5_000, 16_383, 16_384, 50_001, 320_000, 960_000, 1_000_000]


@pytest.mark.parametrize("samples", LENGTHS)
def test_chroma_equals_the_feature_extractor(pair, samples):
    pytest.importorskip("torchaudio")
    from transformers import MusicgenMelodyFeatureExtractor

    audio = np.stack([tune(samples), np.pad(tune(samples // 2, 1), (0, samples - samples // 2))])
    theirs = MusicgenMelodyFeatureExtractor()(
        [audio[0], audio[1, : samples // 2]], sampling_rate=32_000, return_tensors="np"
    )["input_features"]
    np.testing.assert_array_equal(encode_melody(at_32_khz(pair("melody").ours), audio), theirs)


@pytest.mark.parametrize("samples", LENGTHS)
def test_chroma_equals_its_definition(pair, samples):
    """The same steps in PyTorch with transformers' filters: what the feature extractor does, without torchaudio."""
    from transformers.audio_utils import chroma_filter_bank

    bank = chroma_filter_bank(sampling_rate=32_000, num_frequency_bins=WINDOW, tuning=0, num_chroma=12)
    np.testing.assert_allclose(filters(32_000, 12), bank, atol=1e-7)
    audio = np.stack([tune(samples), np.pad(tune(samples // 2, 1), (0, samples - samples // 2))])
    wave = torch.tensor(audio[:, :960_000])
    short = max(0, WINDOW - wave.shape[1])
    wave = torch.nn.functional.pad(wave, (short // 2, short - short // 2))
    spectrum = torch.stft(wave, WINDOW, HOP, window=torch.hann_window(WINDOW), return_complex=True).abs() ** 2
    loudest = (torch.tensor(bank).float() @ spectrum).argmax(1)  # [B, M]
    ours = np.asarray(encode_melody(at_32_khz(pair("melody").ours), audio))
    assert ours.shape == (2, 1 + wave.shape[1] // HOP, 12) and len(np.unique(ours.argmax(-1))) > (samples > 320_000)
    np.testing.assert_array_equal(ours, np.eye(12)[loudest])


@pytest.mark.parametrize("frame", [0, 900, 5000])
@pytest.mark.parametrize("samples", [7, 70_000, 1_200_000])
def test_a_windows_chroma_is_that_of_the_30_s_from_its_beginning(pair, samples, frame):
    """The sound begins again where it ends."""
    config = at_32_khz(pair("melody").ours)
    audio = tune(samples)
    start = frame * 640
    played = np.tile(audio, 1 + (start + 960_000) // samples)[start : start + 960_000]
    expected = encode_melody(config, played[None])
    np.testing.assert_array_equal(window_chroma(config, audio[None], frame), expected)
    assert expected.shape == (1, 235, 12)


def test_silence_is_no_melody_and_sound_must_be_a_batch_of_clips(pair):
    config = at_32_khz(pair("melody").ours)
    np.testing.assert_array_equal(np.asarray(encode_melody(config, np.zeros((1, 40_000)))).argmax(-1), 0)
    for wrong in (np.zeros(40_000), np.zeros((1, 0))):
        with pytest.raises(MusaeError, match=r"give mono clips \[B, S\]"):
            encode_melody(config, wrong)
