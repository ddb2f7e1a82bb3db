"""The bundled ears: small, and hearing music that they were not trained on about as well as their cards say."""

import numpy as np
import pytest

from musae_jax.compose.concepts import CONCEPT_INDEX, VOCABULARY
from musae_jax.compose.render import render
from musae_jax.features.firing import mean_of_shares
from musae_jax.labels.auroc import auroc
from musae_jax.labels.hearing import join_hearings
from musae_jax.labels.tags import hear_tags
from musae_jax.labels.vocabulary import POCKET
from musae_jax.labels.zero_shot import hear_words
from musae_jax.models.ast import load_tagger
from musae_jax.models.clap_checkpoints import load_clap
from musae_jax.pocket import CLAP, TAGGERS
from musae_jax.pocket.corpus import HELD_OUT_SEED, composition

pytestmark = pytest.mark.heavy

RATE = 16_000
CLIPS = [str(index) for index in range(12)]


@pytest.fixture(scope="module")
def music():
    """Sounds, and truth bool [n, T, C]."""
    written = [composition(HELD_OUT_SEED, int(clip), 10.0) for clip in CLIPS]
    return dict(zip(CLIPS, (render(one.score, RATE) for one in written))), np.stack([one.truth for one in written])


def mean_auroc(heard, told):
    """Over the columns of heard [N, C] and told bool [N, C] that have both."""
    return np.nanmean([auroc(heard[:, [c]], told[:, [c]])[0, 0] for c in range(heard.shape[1])])


def test_they_are_small():
    files = [path for folder in (*TAGGERS, CLAP) for path in folder.iterdir()]
    assert sum(path.stat().st_size for path in files) <= 25e6


def test_the_taggers_hear_what_holds_and_what_is_struck(music):
    sounds, truth = music
    heard = join_hearings([hear_tags(load_tagger(one), CLIPS, sounds.__getitem__, RATE) for one in TAGGERS])
    whole = [c for c in heard.concepts if c.level == "clip"]
    told = truth[:, :, [CONCEPT_INDEX[c.name] for c in whole]].mean(1) > 0.5
    assert mean_auroc(heard.clips[:, ~heard.framed], told) > 0.85  # of 12 clips; the card: 0.943
    inner = slice(2, -2)  # tenths of a second in the middle of some window: those at the edges of a clip are in none
    for name, least in (("percussion: kick", 0.95), ("percussion: snare", 0.95), ("melody: onset", 0.9)):
        there = mean_of_shares(truth[:, :, [CONCEPT_INDEX[name]]], 100)[:, inner].reshape(-1, 1) > 0.5
        told = heard.of(heard.column[name])[:, inner].reshape(-1, 1)
        assert there.any() and mean_auroc(told, there) > least, name


def test_clap_hears_its_words(music):
    sounds, truth = music
    heard = hear_words(load_clap(CLAP), POCKET, CLIPS, sounds.__getitem__, RATE)
    numbers = [CONCEPT_INDEX[concept.name] for concept in heard.concepts]
    clips = np.asarray([VOCABULARY[number].level == "clip" for number in numbers])
    told = truth[:, :, numbers].mean(1) > 0.5
    assert mean_auroc(heard.clips[:, clips], told[:, clips]) > 0.65  # of 12 clips; the card: 0.765
