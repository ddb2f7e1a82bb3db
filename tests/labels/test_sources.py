"""The tagger and CLAP as sources of names, with random weights: what is heard is what the models say, by window."""

import jax
import numpy as np
import pytest

from musae_jax.compose.concepts import CONCEPT_INDEX
from musae_jax.labels.hearing import Hearing, join_hearings, more_clips
from musae_jax.labels.scores import Concept
from musae_jax.labels.tags import hear_tags
from musae_jax.labels.vocabulary import COUNTERPARTS, MUSIC, POCKET, TEMPLATES, counterparts, family_of, heard_of
from musae_jax.labels.zero_shot import hear_words, with_any_text
from musae_jax.models.ast import ASTConfig, random_tagger, tag_logits
from musae_jax.models.clap import embed_audio, embed_text, random_clap
from musae_jax.pocket.clap import CLAP, clap_tokenizer

LABELS = ("instrument: piano", "chord root: C", "Marimba, xylophone", "chord root: D")
RATE = 16_000


@pytest.fixture(scope="module")
def sounds():
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=RATE * 3).astype(np.float32) * 0.1 for name in "abc"}


def test_tags_of_clips_and_of_their_shares(sounds):
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = ASTConfig(**size, max_length=64, num_mel_bins=32, labels=LABELS)
    tagger = random_tagger(config, jax.random.key(0))
    heard = hear_tags(tagger, "abc", sounds.__getitem__, RATE, parts=12)
    assert heard.clips.shape == (3, 4) and heard.parts.shape == (3, 12, 2) and heard.embedding.shape == (3, 4)
    assert [c.level for c in heard.concepts] == ["clip", "frame", "clip", "frame"]
    assert heard.concepts[2].family == "tag" and heard.concepts[0].family == "instrument"
    windows, middles = tagger.front_end.cut(sounds["b"], RATE, 64, 4)
    assert windows.shape[1:] == (64, 32) and np.all(np.diff(middles) > 0) and 0 < middles[0] < middles[-1] < 1
    logits = np.asarray(tag_logits(config, tagger.params, windows))
    np.testing.assert_allclose(heard.clips[1], logits.mean(0), atol=1e-4)
    nearest = np.abs(middles - 0.5 / 12).argmin()
    np.testing.assert_allclose(heard.parts[1, 0], logits[nearest, [1, 3]], atol=1e-4)
    again = hear_tags(tagger, "cab", sounds.__getitem__, RATE, parts=12)
    np.testing.assert_allclose(again.clips, heard.clips[[2, 0, 1]], atol=1e-5)


def test_two_ears_are_one_source(sounds):
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    labels = (LABELS, ("percussion: kick", "chord root: C"))
    long, short = (
        hear_tags(
            random_tagger(ASTConfig(**size, max_length=length, num_mel_bins=32, labels=names), jax.random.key(length)),
            "abc", sounds.__getitem__, RATE, parts=12,
        )
        for length, names in zip((64, 32), labels)
    )  # fmt: skip
    both = join_hearings([long, short])
    assert [c.name for c in both.concepts] == [*LABELS, "percussion: kick"]
    for name, one in (("chord root: C", long), ("chord root: D", long), ("percussion: kick", short)):
        np.testing.assert_array_equal(both.of(both.column[name]), one.of(one.column[name]))
        np.testing.assert_array_equal(both.clips[:, both.column[name]], one.clips[:, one.column[name]])
    assert both.embedding.shape == (3, 6)
    alone = join_hearings([long])
    assert alone.concepts == long.concepts and np.array_equal(alone.parts, long.parts)


def test_one_ear_hears_two_corpora(sounds):
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    tagger = random_tagger(ASTConfig(**size, max_length=64, num_mel_bins=32, labels=LABELS), jax.random.key(0))
    ab, c = (hear_tags(tagger, ids, sounds.__getitem__, RATE, parts=12) for ids in ("ab", "c"))
    all_three, whole = more_clips(ab, c), hear_tags(tagger, "abc", sounds.__getitem__, RATE, parts=12)
    assert all_three.clip_ids == whole.clip_ids and all_three.embedding is None
    np.testing.assert_allclose(all_three.clips, whole.clips, atol=1e-5)
    np.testing.assert_allclose(all_three.subset("cb").parts, whole.parts[[2, 1]], atol=1e-5)
    with pytest.raises(ValueError, match="the same concepts"):
        more_clips(ab, Hearing("tagger", ("c",), c.concepts[:1], c.clips[:, :1], np.zeros((1, 12, 0), np.float32)))


def test_windows_reach_to_the_end_of_any_sound():
    front_end = random_tagger(
        ASTConfig(num_hidden_layers=0, max_length=64, num_mel_bins=32), jax.random.key(0)
    ).front_end
    for seconds in (0.1, 0.66, 1.0, 2.345):
        windows, middles = front_end.cut(np.ones(int(RATE * seconds)), RATE, 64, 4)
        assert windows.shape[1:] == (64, 32) and np.isfinite(windows).all()
        assert len(windows) == len(middles) and (len(windows) == 1) == (seconds < 0.67)
    slow, _ = front_end.cut(np.random.default_rng(0).normal(size=2 * RATE), 2 * RATE, 64, 4)
    assert len(slow) == len(front_end.cut(np.zeros(RATE), RATE, 64, 4)[0])  # resampled


def test_words_of_clap(sounds):
    clap = random_clap(CLAP, jax.random.key(1), clap_tokenizer())
    words = {"instrument: flute": ("flute", "flute solo"), "dynamics: loud": ("loud",), "an old flute": ("flute",)}
    heard = hear_words(clap, words, "abc", sounds.__getitem__, RATE)
    sound, said = embed_audio(clap, np.stack(list(sounds.values())), RATE), embed_text(clap, ["flute", "flute solo"])
    np.testing.assert_allclose(heard.clips[:, 0], sound @ said.mean(0), atol=1e-5)
    assert [c.family for c in heard.concepts] == ["instrument", "dynamics", "words"]
    assert heard.hears is None and heard_of("slow flute", heard) is None
    knowing = with_any_text(heard, clap)
    phrases = embed_text(clap, [template.format("slow flute") for template in TEMPLATES])
    np.testing.assert_allclose(knowing.hears("slow: flute"), sound @ phrases.mean(0), atol=1e-5)
    few = knowing.subset("cb")
    np.testing.assert_allclose(few.hears("flute"), knowing.hears("flute")[[2, 1]])
    assert heard_of("slow flute", knowing).shape == (3, 1) and heard_of("flute " * 200, knowing) is None


def test_counterparts():
    assert all(name in CONCEPT_INDEX for meant in COUNTERPARTS.values() for name in meant)
    assert set(POCKET) <= set(CONCEPT_INDEX) and len(POCKET) > 50
    assert len(MUSIC) > 150 and all(len(phrases) == 3 and name in phrases for name, phrases in MUSIC.items())
    assert all(name == name.strip() and "\n" not in name for name in MUSIC)
    assert counterparts("key: C major") == ("key: C major",) and counterparts("brightness: bright") == ()
    assert family_of("loudness: loud") == "dynamics" and family_of("brightness: bright") is None
    concepts = (
        Concept("dynamics: loud", "dynamics"),
        Concept("tempo: 125 bpm", "tempo"),
        Concept("tempo: 94 bpm", "tempo"),
    )
    heard = Hearing("tagger", ("a", "b"), tuple(concepts), np.asarray([[1.0, 0, 3], [0, 1, 0]]), np.zeros((2, 4, 0)))
    assert heard_of("loudness: loud", heard)[:, 0].argmax() == 0
    assert heard_of("tempo: fast", heard)[:, 0].tolist() == [1, 1]  # the more of the two, in their own spread
    assert heard_of("brightness: bright", heard) is None
    descriptors = Hearing(
        "descriptors", ("a", "b"), (Concept("loudness: loud", "loudness"),), np.eye(2)[:, :1], np.zeros((2, 4, 0))
    )
    assert heard_of("dynamics: loud", descriptors)[:, 0].argmax() == 0  # the other way round
