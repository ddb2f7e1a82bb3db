"""The bundled model: small enough, the same in transformers, and still as good as its card says."""

import json

import jax
import numpy as np
import pytest

from musae_jax import encode_audio, encode_text, forward, generate, load_musicgen
from musae_jax.bench.pocket_report import pocket_markdown
from musae_jax.compose.render import render
from musae_jax.pocket import JUDGE, WEIGHTS
from musae_jax.pocket.corpus import HELD_OUT_SEED, composition, styles
from musae_jax.pocket.lm import corpus_tokens, evaluate
from musae_jax.validation.judge import judge_probabilities, load_judge

pytestmark = pytest.mark.heavy

HELD_OUT = range(0, 96, 4)  # some of the clips that the card was measured on


@pytest.fixture(scope="module")
def pocket():
    return load_musicgen("pocket")


@pytest.fixture(scope="module")
def codes(pocket):
    audio = np.stack([render(composition(HELD_OUT_SEED, index, 10.0).score) for index in HELD_OUT])
    return np.asarray(encode_audio(pocket.config, pocket.params, audio))


def test_it_is_small():
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) <= 40e6


def test_transformers_gives_the_same_logits(pocket, codes):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    peer = transformers.MusicgenForConditionalGeneration.from_pretrained(WEIGHTS).eval()
    text = encode_text(pocket, ["slow flute solo in D minor, without drums", "drums"])
    ours = forward(pocket.config, pocket.params, codes[:2], text)
    columns = np.full((2, 4, 501), 256)
    for k in range(4):
        columns[:, k, 1 + k :] = codes[:2, k, : 500 - k]
    tokenizer = transformers.AutoTokenizer.from_pretrained(WEIGHTS)
    tokens = tokenizer(["slow flute solo in D minor, without drums", "drums"], padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = peer(
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            decoder_input_ids=torch.tensor(columns).reshape(8, 501),
        ).logits.numpy()
    found = np.asarray(ours.logits).reshape(theirs.shape)
    assert np.abs(found - theirs).max() <= 1e-4 * np.abs(theirs).max()


def test_it_predicts_held_out_music_as_its_card_says(pocket, codes):
    card = json.loads((WEIGHTS / "figures.json").read_text())
    ids, mask = corpus_tokens(pocket.tokenizer, HELD_OUT_SEED, styles(HELD_OUT_SEED, 96, 10.0), 0)
    found = evaluate(pocket.config, pocket.params, codes, ids[::4], mask[::4])["with_text"]
    assert found[0] == pytest.approx(card["prediction"]["with_text"][0], rel=0.25)  # 24 clips stand for 256
    assert found[0] < card["prediction"]["bigram"][0]


def test_its_card_and_the_readme_show_what_was_measured(request):
    table = pocket_markdown(json.loads((WEIGHTS / "figures.json").read_text()))
    for page in (WEIGHTS / "README.md", request.config.rootpath / "README.md"):
        assert table in page.read_text(encoding="utf-8"), page


def test_it_plays_drums_when_asked(pocket):
    leads = ("piano", "organ", "violins", "flute")
    prompts = [f"{lead} solo, {drums}" for drums in ("with drums", "no drums") for lead in leads]
    made = generate(pocket.config, pocket.params, encode_text(pocket, prompts), jax.random.key(0), seconds=5.0)
    judge = load_judge(JUDGE)
    heard = judge_probabilities(judge, np.asarray(made.audio))[:, judge.names.index("drums: any")]
    assert heard[:4].mean() > 0.75 and heard[4:].mean() < 0.25


def test_it_makes_music_and_not_noise(pocket, codes):
    made = generate(pocket.config, pocket.params, None, jax.random.key(0), seconds=5.0, batch_size=8)
    audio = np.asarray(made.audio)
    assert audio.shape == (8, 80_000) and np.all(np.sqrt((audio**2).mean(1)) > 1e-3)
    repeats = np.mean(np.asarray(made.codes)[:, 0, 1:] == np.asarray(made.codes)[:, 0, :-1])
    real = np.mean(codes[:, 0, 1:] == codes[:, 0, :-1])
    assert repeats > 0.5 * real  # random codes repeat once in 256
