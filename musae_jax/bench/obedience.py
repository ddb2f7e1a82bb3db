"""Does the model play what its prompt asks for?

Every prompt asks for a tempo, a key, drums or none, a lead instrument, and loud or soft playing, in words of the
composer's captions. Judges that were fitted on rendered music only say what they hear in what the model plays. Their
accuracy on other rendered music and on the same music through the codec is printed beside, because a judge that is
misled by the codec is misled by everything that comes out of it; others, fitted on the codes of that music, read the
model's codes, which tells its part from the decoder's. A tempo is one of the composer's four, 20 to 33 % apart.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import scipy.stats

from musae_jax.batching import in_batches
from musae_jax.compose.captions import write_caption
from musae_jax.compose.composer import Style, compose, sample_style
from musae_jax.compose.concepts import BACKINGS, LEADS, PITCH_CLASSES, tempo_of
from musae_jax.compose.render import render
from musae_jax.models.generate import generate
from musae_jax.models.musicgen import MusicGen, decode_codes, encode_audio, encode_text
from musae_jax.validation.judge import Judge, columns, fit_judge, hear_clips, judge_statistics

SECONDS = 10.0  # a progression needs several bars to tell its key
JUDGE_SEED, JUDGE_HELD_OUT_SEED, PROMPT_SEED = 902, 903, 905
PENALTIES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
PROMPTS_AT_A_TIME = 16
TIMBRE = ("shape", "shape deviation", "loud shape", "rise", "fall", "cepstra")


@dataclasses.dataclass(frozen=True)
class Question:
    """Something that every prompt asks for.

    Attributes:
      answer: what a style answers, None where it does not.
      hears: the parts of `validation.judge.PARTS` that its judge listens to; none: it reads codes instead.
      chance: of guessing.
      target: share of prompts that should be answered.
    """

    answer: Callable[[Style], str | None]
    hears: tuple[str, ...]
    chance: float
    target: float


def key_signature(style: Style) -> str:
    """The major key with the pitches of a style's key: what a key and its relative have in common."""
    return PITCH_CLASSES[(style.tonic + (3 if style.mode == "minor" else 0)) % 12]


def _drums(style: Style) -> str:
    return str(style.drums is not None)


def _solo_lead(style: Style) -> str | None:
    return style.lead.family if style.texture == "solo melody" else None  # a mixture hides its lead


QUESTIONS = {
    "tempo": Question(lambda style: f"{tempo_of(style.sixteenth):.0f} bpm", ("onsets", "rhythm"), 1 / 4, 0.7),
    "key": Question(key_signature, ("chroma",), 1 / 6, 0.6),  # three of nine signatures have a sixth each
    "drums": Question(_drums, ("quantiles", "mean", "rise"), 1 / 2, 0.95),
    "drums, read from the codes": Question(_drums, (), 1 / 2, 0.95),
    "level": Question(lambda style: style.dynamics, ("loudness", "loud shape"), 1 / 2, 0.85),
    "instrument": Question(_solo_lead, TIMBRE, 1 / len(LEADS), 0.7),
    "instrument, read from the codes": Question(_solo_lead, (), 1 / len(LEADS), 0.7),
}


def asked_style(seed: int, number: int) -> tuple[Style, int]:
    """What prompt or clip `number` is about, and a seed to write its notes from: solos and melodies over chords in
    turn, all leads, drums or none, loud or soft alike often, all else as the composer draws it."""
    rng = np.random.default_rng([seed, number])
    lead = LEADS[number // 2 % len(LEADS)]
    others = [backing for backing in BACKINGS if backing != lead]
    style = sample_style(rng)
    drums, loud = number // (2 * len(LEADS)) % 2, number // (4 * len(LEADS)) % 2
    style = dataclasses.replace(
        style,
        texture=("solo melody", "melody and chords")[number % 2],
        lead=lead,
        backing=others[rng.integers(len(others))],
        drums=(style.drums or "rock") if drums else None,
        dynamics="loud" if loud else "soft",
    )
    return style, int(rng.integers(2**31))


def code_shares(codes: np.ndarray, size: int) -> np.ndarray:
    """Square roots of the share of frames that each code takes; codes [n, K, T] below `size` = V -> [n, K·V]."""
    counts = [[np.bincount(row, minlength=size) for row in clip] for clip in codes]  # [n, K, V]
    return np.sqrt(np.reshape(counts, (len(codes), -1)) / codes.shape[2])


def measure_obedience(
    mg: MusicGen, prompts: int, judge_clips: int, held_out_clips: int, seed: int, at: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """For each of `QUESTIONS`: {"generated", "ci" (95 %), "asked" (prompts), "rendered", "codec" (what its judge makes
    of music with known answers), "chance", "target"}. Sampled as the model is by itself."""
    rate, size = mg.config.sampling_rate, mg.config.audio.codebook_size
    taught, taught_audio = _rendered(JUDGE_SEED, judge_clips, rate)
    known, known_audio = _rendered(JUDGE_HELD_OUT_SEED, held_out_clips, rate)
    taught_codes, known_codes = (
        in_batches(lambda x: encode_audio(mg.config, mg.params, x), audio) for audio in (taught_audio, known_audio)
    )
    through = in_batches(lambda c: decode_codes(mg.config, mg.params, c), known_codes)
    heard = {where: hear_clips(audio, rate) for where, audio in (("taught", taught_audio), ("rendered", known_audio))}
    heard["codec"] = hear_clips(through, rate)
    read = {"taught": code_shares(taught_codes, size), "codec": code_shares(known_codes, size)}
    at("judges")
    asked, audio, codes = _play(mg, prompts, seed)
    heard["generated"], read["generated"] = hear_clips(audio, rate), code_shares(codes, size)
    at("obedience")
    styles = {"rendered": known, "codec": known, "generated": asked}
    out = {}
    for name, question in QUESTIONS.items():
        statistics = {k: v[:, columns(*question.hears)] for k, v in heard.items()} if question.hears else read
        judge = _fit(question, taught, statistics["taught"])
        rights = {
            where: _right(question, judge, styles[where], statistics[where])
            for where in ("rendered", "codec", "generated")
            if where in statistics
        }
        right = rights["generated"]
        bounds = scipy.stats.binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
        out[name] = {
            **{where: float(of.mean()) for where, of in rights.items()},
            "ci": [float(bounds.low), float(bounds.high)],
            "asked": len(right),
            "chance": question.chance,
            "target": question.target,
        }
    return out


def _rendered(seed: int, count: int, sampling_rate: int) -> tuple[list[Style], np.ndarray]:
    styles, seeds = zip(*(asked_style(seed, number) for number in range(count)))
    audio = [render(compose(s, SECONDS, style).score, sampling_rate) for style, s in zip(styles, seeds)]
    return list(styles), np.stack(audio)


def _play(mg: MusicGen, prompts: int, seed: int) -> tuple[list[Style], np.ndarray, np.ndarray]:
    """What is asked, and what the model makes of it: audio [n, S] and codes [n, K, T]."""
    styles = [asked_style(PROMPT_SEED, number)[0] for number in range(prompts)]
    texts = [write_caption(s, np.random.default_rng([PROMPT_SEED, n]), complete=True) for n, s in enumerate(styles)]
    audio, codes = [], []
    for start in range(0, prompts, PROMPTS_AT_A_TIME):
        batch = texts[start : start + PROMPTS_AT_A_TIME]
        text = encode_text(mg, batch + [""] * (PROMPTS_AT_A_TIME - len(batch)))
        key = jax.random.fold_in(jax.random.key(seed), start)
        made = generate(mg.config, mg.params, text, key, seconds=SECONDS)
        audio.append(np.asarray(made.audio)[: len(batch)])
        codes.append(np.asarray(made.codes)[: len(batch)])
    return styles, np.concatenate(audio), np.concatenate(codes)


def _answers(question: Question, styles: Sequence[Style]) -> tuple[np.ndarray, np.ndarray]:
    """The rows that answer and what: int [m], str [m]."""
    answers = [question.answer(style) for style in styles]
    rows = np.flatnonzero([answer is not None for answer in answers])
    return rows, np.asarray([answers[row] for row in rows])


def _fit(question: Question, styles: Sequence[Style], statistics: np.ndarray) -> Judge:
    rows, answers = _answers(question, styles)
    values = sorted(set(answers.tolist()))
    truth = answers[:, None] == np.asarray(values)
    return fit_judge(None, truth, values, ["one"] * len(values), statistics=statistics[rows], penalties=PENALTIES)


def _right(question: Question, judge: Judge, styles: Sequence[Style], statistics: np.ndarray) -> np.ndarray:
    """Whether the judge finds what was asked, bool [m]."""
    rows, answers = _answers(question, styles)
    found = np.asarray(judge_statistics(judge, statistics[rows])).argmax(1)
    return np.asarray(judge.names)[found] == answers
