"""Composed music as the pocket's tagger and its CLAP hear it while they learn: every other clip through the codec.

They are to hear what the composer renders and what the model plays alike, and a codec blurs timbre: a judge that had
only heard rendered music told one instrument in three.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from musae_jax.audio.clap_mel import ClapMelConfig, clap_mel
from musae_jax.files import atomic_path
from musae_jax.models.ast_front_end import FrontEnd
from musae_jax.models.musicgen import MusicGen, decode_codes
from musae_jax.pocket.corpus import Bank

BATCH = 8


@dataclass(frozen=True)
class EarBank:
    """What is heard of n clips, memory-mapped, and what is true of them.

    Attributes:
      tagger: float16 [n, T, M], the tagger's spectrogram, not yet normalised.
      clap: float16 [n, T', M'], CLAP's, in dB.
      truth: bool [n, frames, C] at 50 Hz.
    """

    tagger: np.ndarray
    clap: np.ndarray
    truth: np.ndarray


def open_ear_bank(
    folder: str | Path,
    seed: int,
    bank: Bank,
    codes: np.ndarray,
    mg: MusicGen,
    front_end: FrontEnd,
    mel: ClapMelConfig,
    progress: Callable[[int, int, str], None] | None = None,
) -> EarBank:
    """Hears a corpus once, into two .npy files under `folder`, and maps them into memory.

    `bank` is the music of corpus `seed` at the rate of both front ends, `codes` [n, K, T] what the codec of `mg` makes
    of it; clips of odd number are decoded from them.
    """
    count = len(bank.audio)
    stem = f"{folder}/ears-{seed}-{count}"
    paths = [Path(f"{stem}.{name}.npy") for name in ("tagger", "clap")]
    if not all(path.exists() for path in paths):
        shapes = front_end.mel(_sound(bank, 0)).shape, (mel.frames, mel.feature_size)
        with atomic_path(paths[0]) as a, atomic_path(paths[1]) as b:
            out = [
                np.lib.format.open_memmap(file, "w+", np.float16, (count, *shape))
                for file, shape in zip((a, b), shapes)
            ]
            for start in range(0, count, BATCH):
                rows = range(start, min(start + BATCH, count))
                for row, sound in zip(rows, _heard(bank, codes, mg, rows)):
                    out[0][row] = front_end.mel(sound)
                    out[1][row] = clap_mel(mel, sound[None])[0]
                if progress:
                    progress(rows[-1] + 1, count, "clips heard")
            for array in out:
                array.flush()
    return EarBank(*(np.load(path, mmap_mode="r") for path in paths), bank.truth)


def _sound(bank: Bank, row: int) -> np.ndarray:
    return bank.audio[row].astype(np.float32) / 32767


def _heard(bank: Bank, codes: np.ndarray, mg: MusicGen, rows: Sequence[int]) -> list[np.ndarray]:
    odd = [row for row in rows if row % 2]
    filled = np.zeros((BATCH // 2, *codes.shape[1:]), np.int32)  # one shape, one compilation
    filled[: len(odd)] = codes[odd]
    decoded = np.asarray(decode_codes(mg.config, mg.params, filled))
    samples = bank.audio.shape[1]
    return [decoded[odd.index(row), :samples] if row % 2 else _sound(bank, row) for row in rows]
