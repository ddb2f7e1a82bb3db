"""Composed music in memory for training: audio, captions, the notes that sound and what is true, as plain arrays.

Training clips come from composer corpora that no other part of the project uses: `TRAIN_SEED` for training,
`HELD_OUT_SEED` for every measure in the model card, `JUDGE_SEED` for the judge of audio.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from musae_jax.compose.captions import write_caption
from musae_jax.compose.composer import Composition, Style, compose
from musae_jax.compose.concepts import LEADS, PERCUSSION, VOCABULARY
from musae_jax.compose.dataset import SEEDS_PER_CORPUS
from musae_jax.compose.render import render
from musae_jax.files import atomic_path

TRAIN_SEED = 900
HELD_OUT_SEED = 901
JUDGE_SEED = 904
LOWEST_NOTE, NOTES = 36, 52  # the piano roll covers MIDI 36 … 87, all that the composer writes


def composition(seed: int, index: int, seconds: float) -> Composition:
    """Clip `index` of corpus `seed`."""
    return compose(seed * SEEDS_PER_CORPUS + index, seconds)


def styles(seed: int, clips: int, seconds: float) -> list[Style]:
    """What the first clips of corpus `seed` are like."""
    return [composition(seed, index, seconds).style for index in range(clips)]


def caption(seed: int, index: int, variant: int, style) -> str:
    """Caption number `variant` of a clip: they differ in wording and in what they mention; every fourth is complete."""
    return write_caption(style, np.random.default_rng([seed, index, variant]), complete=variant % 4 == 3)


ROLL = NOTES + len(PERCUSSION) + len(LEADS)  # notes, drum pieces, lead instruments


def roll(written: Composition) -> np.ndarray:
    """What sounds in each frame, bool [T, ROLL]: pitched notes, drum pieces, and the instruments that play them."""
    out = np.zeros((written.score.frames, ROLL), bool)
    pieces = list(PERCUSSION.values())
    programs = [lead.program for lead in LEADS]
    for note in written.score.notes:
        span = slice(note.start, note.start + note.frames)
        if note.voice == "drums":
            out[note.start : note.start + 4, NOTES + pieces.index(note.pitch)] = True
            continue
        out[span, note.pitch - LOWEST_NOTE] = True
        if note.program in programs:
            out[span, NOTES + len(PERCUSSION) + programs.index(note.program)] = True
    return out


@dataclass(frozen=True)
class Bank:
    """`audio` int16 [clips, S], `roll` bool [clips, T, ROLL] and `truth` bool [clips, T, C], memory-mapped."""

    audio: np.ndarray
    roll: np.ndarray
    truth: np.ndarray


def open_bank(
    folder: str | Path,
    clips: int,
    seed: int,
    seconds: float,
    sampling_rate: int,
    progress: Callable[[int, int, str], None] | None = None,
) -> Bank:
    """Renders a corpus once into three .npy files under `folder` and maps them into memory."""
    names = [field.name for field in fields(Bank)]
    paths = [Path(f"{folder}/bank-{seed}-{clips}-{seconds:g}-{sampling_rate}.{name}.npy") for name in names]
    if not all(path.exists() for path in paths):
        frames = round(seconds * 50)
        kinds = np.int16, bool, bool
        shapes = (clips, round(seconds * sampling_rate)), (clips, frames, ROLL), (clips, frames, len(VOCABULARY))
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(atomic_path(path)) for path in paths]
            audio, rolls, truth = (np.lib.format.open_memmap(*each) for each in zip(files, ["w+"] * 3, kinds, shapes))
            for index in range(clips):
                written = composition(seed, index, seconds)
                audio[index] = np.round(np.clip(render(written.score, sampling_rate), -1, 1) * 32767)
                rolls[index] = roll(written)
                truth[index] = written.truth
                if progress:
                    progress(index + 1, clips, "clips rendered")
            for array in (audio, rolls, truth):
                array.flush()
    return Bank(*(np.load(path, mmap_mode="r") for path in paths))
