"""Going on from a prompt, past the window, in batches of different lengths, and streamed."""

import warnings

import jax
import numpy as np
import pytest

from musae_jax.errors import MusaeError
from musae_jax.models.edits import Edits, FunctionEdit
from musae_jax.models.generate import generate, generate_stream, sample
from musae_jax.models.musicgen import decode_codes, encode_audio, encode_text
from musae_jax.models.piecewise import Pieces, decode_rows, lookahead_frames

IDS = np.array([[5, 9, 3, 22, 8, 41, 7, 1], [12, 30, 1, 0, 0, 0, 0, 0], [49, 1, 0, 0, 0, 0, 0, 0]])
KEY = jax.random.key(3)
WINDOWS = {"window_seconds": 0.6, "stride_seconds": 0.36}  # 30 frames every 18


def some_codes(mg, rows, frames, seed=0):
    c = mg.config.decoder
    return np.random.default_rng(seed).integers(0, c.vocab_size, (rows, c.num_codebooks, frames))


def made(mg, text=None, seconds=0.6, key=KEY, **settings):
    return generate(mg.config, mg.params, text, key, seconds, **{"audio": False, **settings})


@pytest.mark.parametrize("size", ["even", "odd", "stereo"])
def test_a_greedy_continuation_of_sound_equals_transformers(pair, size):
    torch = pytest.importorskip("torch")
    mg, model = pair(size).ours, pair(size).theirs
    steps, delays = 40, mg.config.decoder.delays
    sound = np.random.default_rng(0).normal(size=(3, mg.config.audio_channels, 25 * mg.config.hop_length)) * 0.3
    ids = torch.tensor(IDS)
    seen, original = [], model.audio_encoder.decode
    model.audio_encoder.decode = lambda codes, **rest: seen.append(codes[0].numpy()) or original(codes, **rest)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            audio = model.generate(
                input_ids=ids, attention_mask=(ids != 0).long(), input_values=torch.tensor(sound, dtype=torch.float32),
                guidance_scale=3.0, do_sample=False, max_new_tokens=steps,
            ).numpy()  # fmt: skip
    finally:
        del model.audio_encoder.decode
    theirs = seen[0] if len(seen) == 1 else np.stack(seen, axis=2).reshape(3, -1, seen[0].shape[-1])
    prompt = sound.astype(np.float32) if mg.config.audio_channels == 2 else sound[:, 0].astype(np.float32)
    gen = generate(
        mg.config, mg.params, encode_text(mg, IDS), KEY, (steps - delays + 1) / 50, temperature=0.0, prompt=prompt
    )
    assert gen.codes.shape[-1] == 25 + steps - delays + 1
    np.testing.assert_array_equal(gen.codes, theirs)
    np.testing.assert_array_equal(gen.codes[..., :25], encode_audio(mg.config, mg.params, prompt))
    assert len(np.unique(theirs[..., 25:])) > 10
    assert np.abs(np.asarray(gen.audio).reshape(audio.shape) - audio).max() <= 1e-4 * np.abs(audio).max()
    twice = made(mg, encode_text(mg, IDS), 0.5, temperature=0.0, prompt=prompt, two_pass=True)
    np.testing.assert_array_equal(twice.codes[..., :45], gen.codes[..., :45])


def test_rows_of_different_prompts_and_lengths_are_what_they_are_alone(pair):
    """Past the window too: texts, prompts (one of them longer than a window, one none) and durations all differ."""
    mg = pair("even").ours
    keys = jax.random.split(KEY, 3)
    prompts = [some_codes(mg, 1, 41)[0], None, some_codes(mg, 1, 7, 1)[0]]
    seconds = (0.5, 1.7, 0.2)  # 25, 85 and 10 frames
    settings = {"top_p": 0.9, "audio": True, **WINDOWS}
    together = made(mg, encode_text(mg, IDS), seconds, keys, prompt=prompts, **settings)
    np.testing.assert_array_equal(together.frames, [66, 85, 17])
    for row, frames in enumerate(together.frames):
        text = encode_text(mg, IDS[row : row + 1])
        alone = made(mg, text, seconds[row], keys[row : row + 1], prompt=prompts[row : row + 1], **settings)
        np.testing.assert_array_equal(together.codes[row, :, :frames], alone.codes[0])
        assert not np.any(together.codes[row, :, frames:])
        samples = frames * mg.config.hop_length
        loudest = np.abs(alone.audio).max()
        np.testing.assert_allclose(together.audio[row, :samples], alone.audio[0], atol=1e-5 * loudest)
        assert not np.any(together.audio[row, samples:])
        if prompts[row] is not None:
            np.testing.assert_array_equal(together.codes[row, :, : prompts[row].shape[-1]], prompts[row])
    chunks = list(
        generate_stream(
            mg.config, mg.params, encode_text(mg, IDS), keys, seconds, prompt=prompts, top_p=0.9, chunk_seconds=0.22,
            **WINDOWS,
        )
    )  # fmt: skip
    np.testing.assert_array_equal(np.concatenate([c.codes for c in chunks], axis=-1), together.codes)
    np.testing.assert_array_equal(sum(c.frames for c in chunks), together.frames)
    audio = np.concatenate([c.audio for c in chunks], axis=-1)
    np.testing.assert_allclose(audio, together.audio, atol=1e-5 * np.abs(audio).max())


def test_each_window_goes_on_from_the_end_of_the_one_before(pair):
    """The second window is a continuation, by itself, of the frames it shares with the first; the sound is new."""
    mg = pair("even").ours
    text = encode_text(mg, IDS[:2])
    long = np.asarray(made(mg, text, 1.3, temperature=0.0, **WINDOWS).codes)  # 65 frames: windows at 0, 18 and 36
    np.testing.assert_array_equal(long[..., :30], made(mg, text, 0.6, temperature=0.0).codes)
    second = made(mg, text, 0.36, temperature=0.0, prompt=long[..., 18:30])
    np.testing.assert_array_equal(second.codes, long[..., 18:48])
    # The last window is shorter; sampled, the same seed gives the same clip, and a longer one begins with the shorter.
    sampled = np.asarray(made(mg, text, 1.3, **WINDOWS).codes)
    np.testing.assert_array_equal(made(mg, text, 1.3, **WINDOWS).codes, sampled)
    np.testing.assert_array_equal(made(mg, text, 2.0, **WINDOWS).codes[..., :62], sampled[..., :62])
    assert np.mean(sampled[..., 30:48] != sampled[..., 12:30]) > 0.5  # the noise of a window is its own


def test_edits_keep_their_place_in_time_past_the_window(pair):
    """A schedule over the whole clip acts where it says, in whatever window that is."""
    mg = pair("even").ours
    text = encode_text(mg, IDS[:1])
    strength = np.zeros((66, 1))
    strength[50:] = 1.0
    vector = np.random.default_rng(0).normal(size=32) * 3
    plain = np.asarray(made(mg, text, 1.3, temperature=0.0, **WINDOWS).codes)
    late = made(mg, text, 1.3, temperature=0.0, edits=Edits({0: strength * vector}), **WINDOWS)
    np.testing.assert_array_equal(late.codes[..., :46], plain[..., :46])
    assert np.mean(np.asarray(late.codes)[..., 50:] != plain[..., 50:]) > 0.3
    gate = Edits(functions={0: FunctionEdit(add, vector, gate=strength[:, 0])})
    np.testing.assert_array_equal(made(mg, text, 1.3, temperature=0.0, edits=gate, **WINDOWS).codes, late.codes)


def add(vector, h):
    return 0 * h + vector


def test_guidance_in_two_passes_is_guidance_in_one(pair):
    mg = pair("odd").ours
    text = encode_text(mg, IDS)
    edits = Edits({1: np.random.default_rng(0).normal(size=(2, 1, 1, 39))})  # another vector for each branch
    both = [made(mg, text, 0.6, prompt=some_codes(mg, 1, 5), edits=edits, two_pass=two).codes for two in (False, True)]
    np.testing.assert_array_equal(*both)
    assert not np.array_equal(both[0][0], both[0][1])  # one prompt for all, their texts and keys differ


def test_prompts_without_text(pair):
    mg = pair("even").ours
    prompts = [some_codes(mg, 1, 9)[0], some_codes(mg, 1, 4, 1)[0]]
    rows = made(mg, prompt=prompts)
    assert rows.codes.shape == (2, 4, 39) and list(rows.frames) == [39, 34]
    single = made(mg, prompt=prompts[0][None])
    np.testing.assert_array_equal(single.codes[0], rows.codes[0])
    jitted = jax.jit(lambda codes: made(mg, prompt=codes).codes)
    np.testing.assert_array_equal(jitted(prompts[0][None]), single.codes)


def test_top_p_keeps_the_fewest_tokens_that_reach_it():
    logits = np.log(np.array([0.4, 0.3, 0.15, 0.1, 0.05], np.float32))
    rows = np.broadcast_to(logits, (4000, 1, 5))
    keys = jax.random.split(jax.random.key(0), 4000)

    def kept(top_k, top_p, temperature=1.0):
        tokens = np.asarray(sample(rows, keys, np.int32(0), np.float32(temperature), top_k, np.float32(top_p)))
        return np.bincount(tokens[:, 0], minlength=5) / len(tokens)

    np.testing.assert_allclose(kept(0, 0.69), [4 / 7, 3 / 7, 0, 0, 0], atol=0.03)
    np.testing.assert_allclose(kept(0, 0.71), [0.4 / 0.85, 0.3 / 0.85, 0.15 / 0.85, 0, 0], atol=0.03)
    assert np.count_nonzero(kept(3, 0.9)) == 3  # of the three, 0.4 and 0.3 are 0.82
    assert np.count_nonzero(kept(0, 0.71, 0.25)) == 1  # the chances are those at the temperature
    assert kept(0, 1e-6)[0] == 1.0 and kept(0, 0.9, 0.0)[0] == 1.0


@pytest.mark.parametrize("size", ["even", "odd", "stereo"])
def test_pieces_of_sound_are_the_whole(pair, size):
    """Whatever the pieces; only the codes that must be known are read."""
    mg = pair(size).ours
    codes = some_codes(mg, 2, 61).astype(np.int32)
    whole = np.asarray(decode_codes(mg.config, mg.params, codes))
    ahead, hop = lookahead_frames(mg.config.audio), mg.config.hop_length
    for ends in ([61], [1, 3, 20, 60, 61], [20, 40, 60, 61]):
        piece = max(np.diff([0, *ends]))
        pieces = Pieces(mg.config, mg.params, 2, 61, piece)
        found = []
        for end in ends:
            known = codes.copy()
            known[..., end + ahead :] = 0
            found.append(np.asarray(pieces.until(known, end)))
        np.testing.assert_allclose(np.concatenate(found, axis=-1), whole, atol=1e-5 * np.abs(whole).max())
    short = np.asarray(decode_rows(mg.config, mg.params, codes, [61, 2]))
    alone = np.asarray(decode_codes(mg.config, mg.params, codes[1:, :, :2]))
    np.testing.assert_allclose(short[1, ..., : 2 * hop], alone[0], atol=1e-5 * np.abs(whole).max())
    assert not short[1, ..., 2 * hop :].any()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prompt": np.zeros((1, 3, 5), np.int32)}, r"shape \(1, 3, 5\)"),
        ({"prompt": np.full((1, 4, 5), 64)}, "reach from 64 to 64"),
        ({"prompt": np.full((1, 90), np.nan, np.float32)}, "not numbers"),
        ({"prompt": np.zeros((1, 2, 90), np.float32)}, "hears"),
        ({"prompt": np.zeros((1, 0), np.float32)}, "hears"),
        ({"prompt": np.zeros((2, 4, 5), np.int32), "batch_size": 3}, "2 prompts"),
        ({"seconds": [1.0, 2.0], "batch_size": 3}, "2 durations"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"window_seconds": 1.0, "stride_seconds": 1.0}, "must overlap"),
    ],
)
def test_what_does_not_fit_is_named(pair, settings, words):
    with pytest.raises(MusaeError, match=words):
        made(pair("even").ours, **settings)
