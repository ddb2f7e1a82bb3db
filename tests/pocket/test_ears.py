"""Training the pocket's ears: what they hear, that they learn, and that a killed run ends as an unbroken one."""

import dataclasses

import jax
import numpy as np
import pytest

from musae_jax.compose.captions import PHRASES, write_phrases
from musae_jax.compose.concepts import CONCEPT_INDEX, VOCABULARY
from musae_jax.models.ast_front_end import FrontEnd
from musae_jax.models.htsat import HTSATConfig
from musae_jax.models.musicgen import decode_codes
from musae_jax.models.roberta import RobertaConfig
from musae_jax.pocket import clap, codec, tagger
from musae_jax.pocket.corpus import composition, open_bank
from musae_jax.pocket.ears import EarBank, open_ear_bank

pytestmark = pytest.mark.heavy

SECONDS, SEED = 3.0, 1
TINY_TAGGER = dataclasses.replace(
    tagger.TAGGER, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
)
TINY_CLAP = dataclasses.replace(
    clap.CLAP,
    audio=HTSATConfig(
        spec_size=128, patch_size=16, patch_stride=16, depths=(1,), num_attention_heads=(2,),
        patch_embeds_hidden_size=32, hidden_size=32,
    ),
    text=dataclasses.replace(clap.CLAP.text, hidden_size=32, num_hidden_layers=1, num_attention_heads=2),
    projection_dim=16,
)  # fmt: skip


@pytest.fixture(scope="module")
def bank():
    """Spectrograms in which the truth is plain to hear: a band of its own for each of a few concepts."""
    rng = np.random.default_rng(0)
    clips = 24
    truth = np.stack([composition(SEED, n, SECONDS).truth for n in range(clips)])
    heard = rng.normal(size=(clips, 298, 128)).astype(np.float16) - 9
    loud = truth[:, :, [CONCEPT_INDEX[name] for name in tagger.TAGS]]
    for frame in range(298):
        heard[:, frame, : loud.shape[2]] += 6 * loud[:, min(frame // 2, loud.shape[1] - 1)]
    mel = rng.normal(size=(clips, clap.MEL.frames, 64)).astype(np.float16) * 10 - 60
    return EarBank(heard, mel, truth)


def cut_and_resumed(train, folder, at):
    """What a training returns that was stopped after step `at` and called again."""

    def die(done, total, unit):
        if done == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(folder, die)
    return train(folder, None)


def test_the_tagger_learns_and_resumes(bank, tmp_path):
    training = tagger.TaggerTraining(steps=100, batch_size=8, learning_rate=1e-2, warmup=10)
    rows = []

    def train(folder, progress):
        return tagger.train_tagger(training, bank, bank, folder, rows.append, progress, TINY_TAGGER, 25)

    whole = train(tmp_path / "whole", None)
    held_out = rows[-1]["held_out"]
    assert held_out["auroc_clips"] > 0.75 and held_out["auroc_frames"] > 0.6 and rows[0]["nats"] > held_out["nats"]
    again = cut_and_resumed(train, tmp_path / "cut", 90)
    assert jax.tree.all(jax.tree.map(np.array_equal, whole.params, again.params))


def test_clap_learns_one_batch_and_resumes(bank, tmp_path):
    few = EarBank(bank.tagger[:8], bank.clap[:8], bank.truth[:8])
    training = clap.ClapTraining(steps=60, batch_size=8, learning_rate=5e-3, warmup=10, weight_decay=0.0)
    rows = []

    def train(folder, progress):
        return clap.train_clap(training, few, few, SEED, SECONDS, folder, rows.append, progress, TINY_CLAP, 25)

    whole = train(tmp_path / "whole", None)
    assert float(rows[0]["nats"]) < 0.6  # of ln 8 = 2.1 by chance
    again = cut_and_resumed(train, tmp_path / "cut", 55)
    assert jax.tree.all(jax.tree.map(np.array_equal, whole.params, again.params))
    assert float(abs(whole.params["audio"]["batch_norm"]["mean"].mean() + 60)) < 5  # the corpus' own


def test_ears_hear_every_other_clip_through_the_codec(tiny_musicgen, tmp_path):
    mg = tiny_musicgen
    rate = mg.config.sampling_rate
    music = open_bank(tmp_path, 3, SEED, SECONDS, rate)
    codes = codec.encode_bank(
        {"params": mg.params["audio"], "codebooks": mg.params["audio"]["codebooks"]}, mg.config.audio, music,
        tmp_path / "codes.npy",
    )  # fmt: skip
    front_end = FrontEnd(sampling_rate=rate, num_mel_bins=32)
    mel = dataclasses.replace(clap.MEL, sampling_rate=rate, frequency_max=rate / 2, max_length_s=round(SECONDS))
    heard = open_ear_bank(tmp_path, SEED, music, codes, mg, front_end, mel)
    assert heard.clap.shape == (3, mel.frames, 64) and heard.truth.shape == (3, 150, len(VOCABULARY))
    np.testing.assert_allclose(heard.tagger[2], front_end.mel(music.audio[2] / 32767), atol=0.05)
    through = np.asarray(decode_codes(mg.config, mg.params, codes[[1]].astype(np.int32)))[0, : music.audio.shape[1]]
    np.testing.assert_allclose(heard.tagger[1], front_end.mel(through), atol=0.05)
    np.testing.assert_array_equal(heard.truth[1], composition(SEED, 1, SECONDS).truth)


def test_windows_ask_what_holds_in_their_middle():
    truth = np.zeros((500, len(VOCABULARY)), bool)
    root, piano = (CONCEPT_INDEX[name] for name in ("chord root: C", "instrument: piano"))
    truth[:, piano] = True
    truth[200:300, root] = True  # 4 s to 6 s
    column = {name: n for n, name in enumerate(tagger.TAGS)}
    for start, there in ((372, True), (300, True), (200, False), (500, False), (0, False)):
        told = tagger.window_truth(truth, start, tagger.TAGGER, tagger.TaggerTraining())  # its middle is 1.28 s later
        assert bool(told[column["chord root: C"]]) == there and told[column["instrument: piano"]]


def test_strokes_are_asked_of_a_tenth_of_a_second():
    truth = np.zeros((500, len(VOCABULARY)), bool)
    truth[[100, 102], CONCEPT_INDEX["percussion: kick"]] = True  # 2 s
    kick = tagger.STROKES.labels.index("percussion: kick")
    # the middle of a window lies 16 frames of 10 ms on; it is asked about 2 frames of truth on either side of it
    for middle, there in ((97, False), (98, True), (104, True), (105, False)):
        told = tagger.window_truth(truth, 2 * middle - 16, tagger.STROKES, tagger.STROKES_TRAINING)
        assert bool(told[kick]) == there and told.sum() == told[kick]


def test_a_tagger_of_strokes_learns(bank, tmp_path):
    config = dataclasses.replace(
        tagger.STROKES, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    training = dataclasses.replace(tagger.STROKES_TRAINING, steps=120, batch_size=32, learning_rate=1e-2, warmup=10)
    rows = []
    loud = bank.truth[:, :, [CONCEPT_INDEX[name] for name in tagger.STRUCK]].repeat(2, axis=1)[:, :298]
    heard = np.array(bank.tagger)
    heard[:, :, : loud.shape[2]] += 6 * loud
    plain = EarBank(heard, bank.clap, bank.truth)
    tagger.train_tagger(training, plain, plain, tmp_path, rows.append, None, config, 200)
    assert rows[-1]["held_out"]["auroc_frames"] > 0.75 and "auroc_clips" not in rows[-1]["held_out"]


def test_phrases_say_what_holds():
    rng = np.random.default_rng(0)
    holds = ["instrument: flute", "key: D minor", "bar: first beat", "tempo: 62 bpm"]
    said = {write_phrases(holds, rng) for _ in range(200)}
    words = {word for text in said for word in text.split(", ")}
    assert words == {"flute", "in D minor", *PHRASES["tempo: 62 bpm"]}
    assert max(text.count(",") for text in said) == 2 and min(text.count(",") for text in said) == 0


def test_the_claps_words_are_framed_and_known():
    tokenizer = clap.clap_tokenizer()
    encoded = tokenizer.encode("Flute, in D minor")
    assert encoded.tokens == ["<s>", "flute", ",", "in", "d", "minor", "</s>"]
    assert encoded.ids[0] == clap.CLAP.text.bos_token_id and encoded.ids[-1] == clap.CLAP.text.eos_token_id
    assert max(tokenizer.get_vocab().values()) < clap.CLAP.text.vocab_size
    assert isinstance(clap.CLAP.text, RobertaConfig)
    for phrases in PHRASES.values():
        assert all("<unk>" not in tokenizer.encode(phrase).tokens for phrase in phrases), phrases
