"""Training the pocket: the losses are what they say, they fall, and a killed run ends as an unbroken one."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musae_jax.compose.concepts import SIXTEENTHS, VOCABULARY, tempo_of
from musae_jax.errors import MusaeError
from musae_jax.models.checkpoints import load_musicgen
from musae_jax.models.musicgen import forward, random_musicgen, text_states
from musae_jax.pocket import codec, lm, planning, polish
from musae_jax.pocket.corpus import ROLL, caption, composition, open_bank, roll
from musae_jax.pocket.recurrent import recurrent_nats
from musae_jax.pocket.spectral import log_mel_distance, si_sdr, spectral_loss
from musae_jax.pocket.tokenizer import VOCABULARY_SIZE, build_tokenizer
from musae_jax.pocket.train import PocketTraining, train_pocket

TRAINING = codec.CodecTraining(steps=6, continuous_steps=3, batch_size=2, crop_frames=16, learning_rate=3e-3)


@pytest.fixture(scope="module")
def codec_config(tiny_config):
    """Of as many samples a frame in two strides instead of four: compiling the codec's steps is most of the time."""
    return dataclasses.replace(tiny_config.audio, upsampling_ratios=(20, 16))


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    return open_bank(tmp_path_factory.mktemp("bank"), 4, 1, 2.0, 16_000)


def test_the_bank_holds_the_composers_music(bank):
    assert bank.audio.shape == (4, 32_000) and bank.roll.shape == (4, 100, ROLL)
    written = composition(1, 2, 2.0)
    assert np.array_equal(bank.roll[2], roll(written)) and np.array_equal(bank.truth[2], written.truth)
    assert np.abs(bank.audio).max() > 300


def test_spectral_measures_by_known_cases():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 8000)).astype(np.float32) * 0.1
    assert np.all(np.asarray(si_sdr(x, x)) > 60)
    noisy = x + rng.normal(size=x.shape).astype(np.float32) * 0.1 / np.sqrt(10)
    assert np.allclose(si_sdr(noisy, x), 10, atol=0.5)  # noise 10 dB below
    assert np.allclose(si_sdr(3 * noisy, x), si_sdr(noisy, x), atol=0.01)  # whatever the scale
    assert np.allclose(log_mel_distance(x, x, 16_000), 0)
    assert np.allclose(log_mel_distance(20 * x, 10 * x, 16_000), 6.02, atol=0.1)  # twice as loud


def test_textures_tell_an_error_that_is_always_on_one_side():
    truth = np.random.default_rng(0).normal(size=(1, 16_000)).astype(np.float32) * 0.1
    turns = np.where(np.arange(16_000) // 4000 % 2, 1.2, 1 / 1.2)  # louder and softer in turn
    texture = {
        name: float(
            spectral_loss(truth * gain, truth, 16_000, texture=1.0) - spectral_loss(truth * gain, truth, 16_000)
        )
        for name, gain in (("same", 1.0), ("one side", 1.2), ("in turn", turns.astype(np.float32)))
    }
    assert texture["same"] == 0 and texture["one side"] == pytest.approx(np.log(1.2), abs=0.02)
    assert texture["in turn"] < 0.5 * texture["one side"]


def test_kmeans_finds_planted_centres():
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(4, 3)) * 10
    points = jnp.asarray((centres[rng.integers(4, size=400)] + rng.normal(size=(400, 3)) * 0.1), jnp.float32)
    found = codec._kmeans(points, jax.random.key(3), 16)
    distance = np.linalg.norm(centres[:, None] - np.asarray(found)[None], axis=-1).min(1)
    assert np.all(distance < 0.2)


def test_codebooks_are_running_means_and_dead_codes_move():
    training = dataclasses.replace(TRAINING, codebook_decay=0.5, dead_below=0.1)
    codebooks = jnp.array([[[0.0], [10.0]]])  # K 1, V 2, D 1
    counts = jnp.array([[4.0, 0.001]])
    codes = jnp.zeros((1, 1, 4), jnp.int32)  # all choose code 0
    seen = jnp.full((1, 4, 1), 2.0)
    books, now = codec._update_codebooks(codebooks, counts, codes, seen, jax.random.key(0), training)
    assert books[0, 0, 0] == pytest.approx(1.0)  # half old mean 0, half new mean 2
    assert books[0, 1, 0] == pytest.approx(2.0)  # the unused code moved to something seen
    assert now[0, 0] == pytest.approx(4.0)


def test_a_killed_codec_training_ends_as_an_unbroken_one(codec_config, bank, tmp_path):
    config, rows, compiled = codec_config, [], codec.train_step._cache_size()
    whole = codec.train_codec(config, TRAINING, bank, bank, tmp_path / "whole", rows.append, save_every=2)
    assert {"si_sdr_quantised", "log_mel_db_continuous", "used_1"} <= set(rows[-1]["held_out"])

    def die(done, total, unit):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        codec.train_codec(config, TRAINING, bank, bank, tmp_path / "cut", rows.append, die, save_every=2)
    again = codec.train_codec(config, TRAINING, bank, bank, tmp_path / "cut", rows.append, save_every=2)
    assert codec.train_step._cache_size() == compiled + 2  # without and with quantisation, resumed or not
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(again)):
        assert np.array_equal(a, b)
    codes = codec.encode_bank(again, config, bank, tmp_path / "codes.npy")
    assert codes.shape == (4, 2, 100) and codes.max() < 16


def test_polishing_betters_the_decoder_and_leaves_the_codes(codec_config, bank, tmp_path):
    config, rows = codec_config, []
    codec_state = codec.init_state(config, TRAINING)
    codec_state = codec.start_codebooks(codec_state, config, dataclasses.replace(TRAINING, batch_size=2), bank)
    codes = codec.encode_bank(codec_state, config, bank, tmp_path / "codes.npy")
    training = polish.PolishTraining(steps=30, batch_size=2, crop_frames=16, warmup=5, learning_rate=3e-3)
    guesses = np.random.default_rng(0).integers(16, size=codes.shape).astype(np.int16)  # of a model that knows nothing
    args = (bank, codes, guesses, bank, guesses)
    done = polish.polish_decoder(config, training, codec_state, *args, tmp_path / "whole", rows.append)
    before = codec.evaluate(codec_state, config, bank)
    assert rows[-1]["held_out"]["log_mel_db_quantised"] < before["log_mel_db_quantised"]
    for kept in ("codebooks", "counts"):
        assert np.array_equal(done[kept], codec_state[kept])
    assert jax.tree.all(jax.tree.map(np.array_equal, done["params"]["encoder"], codec_state["params"]["encoder"]))

    def die(step, total, unit):
        if step == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        polish.polish_decoder(config, training, codec_state, *args, tmp_path / "cut", rows.append, die)
    again = polish.polish_decoder(config, training, codec_state, *args, tmp_path / "cut", rows.append)
    assert jax.tree.all(jax.tree.map(np.array_equal, done, again))

    # what it is polished on is what it plays best, and half of that are guesses
    distance = {"both": rows[-1]["held_out"]["log_mel_db_guessed"]}
    for name, said in {"real": codes, "guessed": guesses}.items():
        polish.polish_decoder(
            config, training, codec_state, bank, said, said, bank, guesses, tmp_path / name, rows.append
        )
        distance[name] = rows[-1]["held_out"]["log_mel_db_guessed"]
    assert distance["guessed"] < distance["both"] < distance["real"]


def test_the_asked_share_of_crops_are_guesses(tiny_config, bank, tmp_path, monkeypatch):
    state = codec.init_state(tiny_config.audio, TRAINING)
    codes, guesses = np.zeros((4, 2, 100), np.int16), np.ones((4, 2, 100), np.int16)
    training = polish.PolishTraining(steps=40, batch_size=8, crop_frames=16, guessed=0.25)
    seen = []

    def look(state, codebooks, audio, crops, config, training):
        seen.append(crops.mean((1, 2)))
        return state, {}

    monkeypatch.setattr(polish, "polish_step", look)
    args = (bank, codes, guesses, bank, guesses, tmp_path, lambda row: None)
    polish.polish_decoder(tiny_config.audio, training, state, *args)
    assert set(np.unique(seen)) == {0, 1} and np.mean(seen) == pytest.approx(0.25, abs=0.06)  # whole crops


def test_guesses_are_what_the_model_says_of_each_frame(tiny_config, tmp_path):
    rng = np.random.default_rng(3)
    codes = rng.integers(16, size=(18, 2, 30)).astype(np.int16)
    ids = rng.integers(1, 20, size=(18, lm.CAPTIONS, 4)).astype(np.int32)
    params = lm.init_state(tiny_config, lm.LanguageModelTraining())["params"]
    decoder = {**params["decoder"], "heads": 1e6 * params["decoder"]["heads"]}  # so sure that it always says the same
    unsure, params = params, {**params, "decoder": decoder}
    mask = np.ones_like(ids)
    key = jax.random.key(0)
    found = lm.guess_codes(tiny_config, params, codes, ids, mask, key, tmp_path / "guesses.npy")
    assert found.shape == codes.shape and found.dtype == np.int16
    text = text_states(tiny_config, params, ids[:, -1], mask[:, -1])
    asked, free = (forward(tiny_config, params, codes, each).logits for each in (text, None))  # [B, K, P, V]
    sure = {0: free, 1: free + 3 * (asked - free)}  # every second clip has its caption
    for rest, logits in sure.items():
        for k in range(2):  # position p decides frame p - k of codebook k
            expected = np.asarray(logits)[rest::2, k, k:31].argmax(-1)
            assert (found[rest::2, k, : 31 - k] == expected[:, :30]).mean() > 0.99
    assert (np.asarray(sure[0]).argmax(-1) != np.asarray(sure[1]).argmax(-1)).mean() > 0.05  # the text counts
    again = lm.guess_codes(tiny_config, unsure, codes, ids, mask, key, tmp_path / "guesses.npy")
    assert np.array_equal(again, found)  # kept
    many = lm.guess_codes(tiny_config, unsure, codes, ids, mask, key, tmp_path / "unsure.npy")
    assert (many == found).mean() < 0.5 and len(np.unique(many)) == 16  # drawn, not the likeliest
    fewer = lm.guess_codes(tiny_config, params, codes[:4], ids[:4], mask[:4], key, tmp_path / "guesses.npy")
    assert fewer.shape == (4, 2, 30)  # of other clips, so made again


def test_the_captions_words_are_all_known():
    tokenizer = build_tokenizer(3000)
    assert tokenizer.get_vocab_size() <= VOCABULARY_SIZE
    encoded = tokenizer.encode("Slow FLUTE solo in D minor, without drums")
    assert "<unk>" not in encoded.tokens and "flute" in encoded.tokens
    assert "<unk>" in tokenizer.encode("theremin").tokens


def test_baselines_by_known_chains():
    rng = np.random.default_rng(2)
    steps = np.cumsum(rng.integers(1, 3, size=(8, 1, 4000)), -1) % 16  # each code has two equally likely followers
    found = lm.baselines(steps[:6], steps[6:], 16)
    assert found["unigram"][0] == pytest.approx(np.log(16), abs=0.02)
    assert found["bigram"][0] == pytest.approx(np.log(2), abs=0.02)
    assert found["trigram"][0] == pytest.approx(np.log(2), abs=0.03)
    sums = np.zeros((8, 1, 4000), int)  # each code is the sum of the last two, or one more
    sums[:, :, :2] = rng.integers(16, size=(8, 1, 2))
    for t in range(2, 4000):
        sums[:, :, t] = (sums[:, :, t - 1] + sums[:, :, t - 2] + rng.integers(0, 2, size=(8, 1))) % 16
    found = lm.baselines(sums[:6], sums[6:], 16)
    assert found["bigram"][0] > 2.5 and found["trigram"][0] == pytest.approx(np.log(2), abs=0.1)


@pytest.mark.heavy
def test_a_recurrent_net_learns_what_counts_cannot():
    rng = np.random.default_rng(3)
    starts, strides = rng.integers(16, size=(40, 1)), rng.choice([1, 3, 5, 7], size=(40, 1))
    codes = ((starts + strides * np.arange(60)) % 16)[:, None]  # [40, 1, 60]: a clip keeps the stride it begins with
    few = recurrent_nats(codes[:30], codes[30:], 16, steps=2)
    assert few == pytest.approx(np.log(16), abs=0.3)
    bigram = lm.baselines(codes[:30], codes[30:], 16)["bigram"][0]
    assert recurrent_nats(codes[:30], codes[30:], 16, steps=60) < bigram / 2


def known_scores(clips, frames, seed=1):
    """Scores of composed clips, cut to so many frames."""
    written = [composition(seed, index, frames / 50) for index in range(clips)]
    rolls, truths = (np.stack(each) for each in zip(*((roll(one), one.truth) for one in written)))
    return planning.scores(rolls, truths, [one.style for one in written])


def test_batches_alternate_between_whole_clips_and_beginnings():
    codes = np.arange(6 * 2 * 40).reshape(6, 2, 40)
    ids = np.broadcast_to(np.arange(6)[:, None, None], (6, lm.CAPTIONS, 3))
    tokens = (ids, np.ones_like(ids))
    known = known_scores(6, 40)
    training = lm.LanguageModelTraining(batch_size=3, text_dropout=0.5)
    whole = lm.draw_batch(codes, tokens, known, training, 10)
    assert whole.codes.shape == (3, 2, 40)
    assert np.array_equal(whole.codes, codes[whole.ids[:, 0]])  # each with its own caption
    kept = []
    for step in range(1, 41, 2):
        short = lm.draw_batch(codes, tokens, known, training, step)
        clips = short.ids[:, 0]
        assert np.array_equal(short.codes, codes[clips, :, :10]) and len(clips) == 12
        for found, asked in zip(short.plan, planning.plan(known, clips, 10)):  # and its own plan
            assert np.array_equal(found, asked)
        kept.append(short.mask.any(1).mean())
    assert 0.35 < np.mean(kept) < 0.65  # half of the clips without text
    again = lm.draw_batch(codes, tokens, known, training, 39)
    assert np.array_equal(again.codes, short.codes)  # a function of the step


def test_the_plan_is_what_the_composer_wrote():
    written = [composition(7, index, 6.0) for index in range(24)]
    known = known_scores(24, 300, seed=7)
    asked = planning.plan(known, np.arange(24), 300)
    assert {one.style.sixteenth for one in written} == set(SIXTEENTHS)
    for i, one in enumerate(written):
        beat = 4 * one.style.sixteenth
        tempo = SIXTEENTHS.index(one.style.sixteenth)
        assert np.array_equal(asked.beat[i], planning.BEAT_STARTS[tempo] + np.arange(300) % beat)
        assert np.array_equal(asked.concepts[i], one.truth)
        for frame in (0, 57, 290):
            assert np.array_equal(asked.near[i, frame], known.roll[i, frame : frame + 24].any(0))
            soon = known.roll[i, frame : frame + 200].any(0)
            classes = {(36 + note) % 12 for note in np.flatnonzero(soon[:52])}
            assert set(np.flatnonzero(asked.far[i, frame, :12])) == classes
            assert np.array_equal(asked.far[i, frame, 12:], soon[52:])
    assert asked.beat.max() < planning.SIZES["beat"]
    assert all(getattr(asked, name).shape[2] == planning.SIZES[name] for name in ("near", "far", "concepts"))
    assert planning.plan(known, np.arange(2), 70).concepts.shape == (2, 70, len(VOCABULARY))


def test_planning_heads_learn_what_the_stream_holds_and_nothing_else():
    rng = np.random.default_rng(0)
    asked = planning.plan(known_scores(4, 100), np.arange(4), 100)
    weights = np.ones(100)
    heads = planning.plan_heads(planning.SIZES["beat"])
    blank = planning.plan_losses(heads, jnp.zeros((4, 101, planning.SIZES["beat"])), asked, weights)
    assert float(blank["beat"]) == pytest.approx(np.log(144))
    assert float(blank["near"]) == pytest.approx(10 * np.log(2)) == float(blank["far"])
    assert float(blank["concepts"]) == pytest.approx(70 * np.log(2))
    told = jax.nn.one_hot(asked.beat, planning.SIZES["beat"])  # a stream in which the beat is a direction each
    told = jnp.concatenate([told, told[:, :1]], 1)  # position p decides frame p; the last one decides none
    grads = jax.grad(lambda heads: planning.plan_losses(heads, told, asked, weights)["beat"])(heads)
    heads["beat"] = jax.tree.map(lambda leaf, grad: leaf - 100 * grad, heads["beat"], grads["beat"])
    known = planning.plan_losses(heads, told, asked, weights)
    other = planning.plan_losses(heads, rng.permutation(told, axis=1), asked, weights)
    assert float(known["beat"]) < 0.5 * float(blank["beat"]) < float(other["beat"])


def test_concepts_must_be_loud_to_be_read():
    asked = planning.plan(known_scores(4, 100), np.arange(4), 100)
    rng = np.random.default_rng(1)
    directions = np.linalg.qr(rng.normal(size=(100, 100)))[0][: len(VOCABULARY)]  # [C, D]
    held = (2.0 * asked.concepts - 1) @ directions  # a stream that holds all concepts, and nothing else
    held = np.concatenate([np.zeros_like(held[:, :1]), held], 1)  # position p has heard frame p - 1
    noise = rng.normal(size=held.shape)
    heads, even = planning.plan_heads(100), np.ones(100)

    def unknown(kernel, stream, weights=even):
        told = heads | {"concepts": {**heads["concepts"], "kernel": kernel}}
        return float(planning.plan_losses(told, stream, asked, weights)["concepts"])

    loud, faint = unknown(directions.T, held), unknown(directions.T, held + 10 * noise)
    assert loud < 0.3 * 70 * np.log(2) < 0.7 * faint
    assert unknown(1000 * directions.T, held + 10 * noise) == pytest.approx(faint, rel=1e-3)  # weighing does not help
    assert loud < 0.5 * unknown(heads["concepts"]["kernel"], held)
    assert loud < 0.95 * unknown(directions.T, np.roll(held, -1, 1))
    assert unknown(directions.T, held, np.linspace(0, 1, 100)) == pytest.approx(loud)  # frames weigh the same


def test_a_step_asks_the_heads_about_the_stream_half_way_up(tiny_config):
    codes = np.random.default_rng(5).integers(16, size=(2, 2, 32)).astype(np.int32)
    ids = np.full((2, 4), 3, np.int32)
    batch = lm.Batch(codes, ids, np.ones_like(ids), planning.plan(known_scores(2, 32), np.arange(2), 32))
    said, moved = {}, {}
    for weight in (0.0, 0.3):
        training = lm.LanguageModelTraining(warmup=1, plan_weight=weight)
        state = lm.init_state(tiny_config, training)
        kernel = state["params"]["plan"]["beat"]["kernel"]
        state["params"]["plan"]["beat"]["kernel"] = jax.random.normal(jax.random.key(2), kernel.shape)
        params = jax.tree.map(jnp.copy, state["params"])
        for number in range(2):  # the rate of the first step is 0
            state, figures = lm.train_step(state, batch, tiny_config, training)
            said = figures if number == 0 else said
        first = (tree["decoder"]["block_0"] for tree in (params, state["params"]))
        change = jax.tree.leaves(jax.tree.map(lambda before, after: np.ravel(after - before), *first))
        moved[weight] = np.concatenate(change)
    middle = tiny_config.decoder.num_hidden_layers // 2
    text = text_states(tiny_config, params, ids, batch.mask)
    stream = forward(tiny_config, params, codes, text, taps=(middle,)).residuals[middle]
    early = 1 + 3 * np.exp(-np.arange(32) / 75)
    for name, nats in planning.plan_losses(params["plan"], stream, batch.plan, early).items():
        assert float(said[name]) == pytest.approx(float(nats), rel=1e-4), name
    # the first block learns from the heads
    assert np.abs(moved[0.3] - moved[0.0]).max() > 1e-3 * np.abs(moved[0.0]).max()
    even = planning.plan_losses(params["plan"], stream, batch.plan, np.ones(32))
    assert abs(float(even["beat"]) - float(said["beat"])) > 1e-4  # first frames weigh more


def test_every_fourth_caption_is_complete():
    style = composition(3, 0, 2.0).style
    things = [caption(3, 0, variant, style).count(",") for variant in range(8)]
    assert things[3] == things[7] == max(things) > min(things)
    assert f"{tempo_of(style.sixteenth):.0f} bpm" in caption(3, 0, 3, style)


def test_the_text_starts_as_loud_as_the_codes(tiny_config):
    state = lm.init_state(tiny_config, lm.LanguageModelTraining())
    text = text_states(tiny_config, state["params"], np.full((1, 8), 3), np.ones((1, 8), np.int32))
    assert 0.5 < float(jnp.std(text.states)) < 2
    keys = text.states @ state["params"]["decoder"]["block_0"]["cross_attention"]["key"]["kernel"]
    assert 0.3 < float(jnp.std(keys)) < 3


def test_the_language_model_learns_one_batch_by_heart(tiny_config):
    codes = (
        np.random.default_rng(5).integers(16, size=(2, 2, 32)).astype(np.int32)
    )  # noise: nothing else can be learned
    ids = np.full((2, 4), 3, np.int32)
    training = lm.LanguageModelTraining(
        steps=150, learning_rate=1e-2, text_learning_rate=3e-3, weight_decay=0.0, plan_weight=0.0
    )
    state = lm.init_state(tiny_config, training)
    batch = lm.Batch(codes, ids, np.ones_like(ids), planning.plan(known_scores(2, 32), np.arange(2), 32))
    compiled = lm.train_step._cache_size()
    for _ in range(150):
        state, figures = lm.train_step(state, batch, tiny_config, training)
    assert lm.train_step._cache_size() == compiled + 1  # a step leaves the kind of state that it takes
    nats = figures["nats"]
    # what is left: which of the two clips begins, ln 2 at the first of 33 positions, which weighs four times as much
    assert 0.01 < float(nats[0]) < 0.05 and float(nats[1]) < 0.02


def test_the_language_model_learns_a_rule_and_resumes(tiny_config, tmp_path):
    steps = np.arange(100)[None, None, :] * np.array([1, 3])[None, :, None]
    codes = (steps + np.arange(8)[:, None, None]) % 16  # codebooks count up by 1 and 3
    ids = np.full((8, lm.CAPTIONS, 4), 3, np.int32)
    mask = np.ones_like(ids)
    training = lm.LanguageModelTraining(steps=60, batch_size=4, learning_rate=1e-2, warmup=10)
    rows = []
    args = (tiny_config, training, codes, (ids, mask), known_scores(8, 100), (codes, ids, mask))
    compiled = lm.train_step._cache_size()
    whole = lm.train_language_model(*args, tmp_path / "whole", rows.append, save_every=25)
    assert "plan" not in whole  # the heads are thrown away
    last = rows[-1]["held_out"]
    assert max(last["with_text"]) < 0.7 * np.log(16)
    assert last["without_text"][0] < 0.7 * np.log(16)

    def die(done, total, unit):
        if done == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lm.train_language_model(*args, tmp_path / "cut", rows.append, die, save_every=25)
    again = lm.train_language_model(*args, tmp_path / "cut", rows.append, save_every=25)
    assert lm.train_step._cache_size() == compiled + 2  # whole clips and beginnings, resumed or not
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(again)):
        assert np.array_equal(a, b)


def test_a_work_folder_goes_on_only_with_what_it_was_begun_with(tiny_musicgen, tmp_path):
    few = PocketTraining(clips=2, held_out_clips=2, seconds=1.0)

    def begun(work, training, start):
        with pytest.raises(KeyboardInterrupt):  # at the first clip
            train_pocket(work, training, start, die)

    def die(done, total, unit):
        raise KeyboardInterrupt

    begun(tmp_path / "new", few, None)
    begun(tmp_path / "new", dataclasses.replace(few, language_model=lm.LanguageModelTraining(steps=7)), None)
    for change in ({"clips": 3}, {"codec": codec.CodecTraining(steps=9)}):
        with pytest.raises(MusaeError, match=f"another choice of {next(iter(change))} .*begun.json.* --work"):
            train_pocket(tmp_path / "new", dataclasses.replace(few, **change))
    begun(tmp_path / "further", few, tiny_musicgen)
    for other in (None, random_musicgen(tiny_musicgen.config, jax.random.key(1), tiny_musicgen.tokenizer)):
        with pytest.raises(MusaeError, match="another choice of start"):
            train_pocket(tmp_path / "further", few, other)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "codes.npy").touch()
    with pytest.raises(MusaeError, match="older version"):
        train_pocket(tmp_path / "old", few)


@pytest.mark.slow
def test_a_model_is_trained_further_on_the_codes_that_it_knows(tmp_path):
    pocket = load_musicgen("pocket")
    training = PocketTraining(
        clips=8,
        held_out_clips=8,
        polish=polish.PolishTraining(steps=2, warmup=1),
        language_model=lm.LanguageModelTraining(steps=4, learning_rate=1e-4, warmup=1),
    )
    further = train_pocket(tmp_path, training, pocket)
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert "baselines" in rows[0]
    lost = [row["held_out"]["with_text"][0] for row in rows if "with_text" in row.get("held_out", ())]
    assert lost[-1] < 1.2  # it went on from the pocket, for which random weights are at 5.5
    for name in ("encoder", "codebooks"):
        same = jax.tree.map(np.array_equal, further.params["audio"][name], pocket.params["audio"][name])
        assert jax.tree.all(same)
    assert np.load(tmp_path / "polish-4" / "guesses.npy").shape == (8, 4, 500)
    assert rows[-1]["held_out"]["log_mel_db_guessed"] < 5
    for after, before in (
        (further.params["decoder"], pocket.params["decoder"]),
        (further.params["audio"]["decoder"], pocket.params["audio"]["decoder"]),
    ):
        moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), after, before)
        assert 0 < max(jax.tree.leaves(moved)) < 0.1
    again = train_pocket(tmp_path, training, pocket)  # finished: the same, at once
    assert jax.tree.all(jax.tree.map(np.array_equal, again.params, further.params))
