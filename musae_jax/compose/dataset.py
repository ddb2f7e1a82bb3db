"""Composed music on disk: audio, truth and captions in a manifest that every stage reads like a user's own folder.

OUT/manifest.jsonl      a line per clip: id, audio, track, caption, seconds, sampling_rate, truth
OUT/concepts.json       the columns of the truth: name, family, level
OUT/audio/{id}.flac     OUT/truth/{id}.npz   (`active`, bool [T, C] at 50 Hz)
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from musae_jax.audio.io import write_audio
from musae_jax.compose.captions import write_caption
from musae_jax.compose.composer import compose
from musae_jax.compose.concepts import VOCABULARY
from musae_jax.compose.render import render
from musae_jax.errors import MusaeError
from musae_jax.files import atomic_path, read_json, write_json, write_json_lines

SEEDS_PER_CORPUS = 1_000_000  # clip i of corpus `seed` is composed from seed · this + i, so corpora never overlap


def write_dataset(
    out: str | Path,
    clips: int = 200,
    seed: int = 0,
    seconds: float = 10.0,
    sampling_rate: int = 16000,
    progress: Callable[[int, int, str], None] | None = None,
    numbers: Sequence[int] | None = None,
) -> Path:
    """Composes `clips` clips of `seconds` into `out` and returns it; a killed call goes on where it stopped.

    They are the first of corpus `seed`, or those with these `numbers` in it. The manifest is written last, so a folder
    with a manifest is complete.
    """
    if numbers is not None:
        clips = len(numbers)
    if clips < 1 or clips > SEEDS_PER_CORPUS:
        raise MusaeError(f"--clips is {clips}; it must be between 1 and {SEEDS_PER_CORPUS}")
    if not 1.0 <= seconds <= 120.0:
        raise MusaeError(f"--seconds is {seconds}; it must be between 1 and 120")
    out = Path(out)
    # A folder half filled by another call would keep its first clips: the request is written down before any clip.
    request = {"clips": clips, "seed": seed, "seconds": seconds, "sampling_rate": sampling_rate}
    if numbers is not None:
        request["numbers"] = list(numbers)
    if (out / "compose.json").exists():
        found = read_json(out / "compose.json")
        if {**found, "clips": clips} != request or (found["clips"] != clips and (out / "manifest.jsonl").exists()):
            raise MusaeError(f"{out} already holds music composed with {found}; choose another --out or delete it")
    write_json(out / "compose.json", request)
    rows = []
    for done, index in enumerate(range(clips) if numbers is None else numbers, start=1):
        name = clip_name(seed, index)
        composition = compose(seed * SEEDS_PER_CORPUS + index, seconds)
        # the caption has its own stream, so that a change of wording leaves the music as it is
        caption = write_caption(composition.style, np.random.default_rng([seed, index, 1]))
        audio, truth = out / "audio" / f"{name}.flac", out / "truth" / f"{name}.npz"
        if not (audio.exists() and truth.exists()):
            write_audio(audio, render(composition.score, sampling_rate), sampling_rate)
            with atomic_path(truth) as temporary:
                np.savez_compressed(temporary, active=composition.truth)
        rows.append(
            {
                "id": name,
                "audio": f"audio/{name}.flac",
                "track": name,
                "caption": caption,
                "seconds": seconds,
                "sampling_rate": sampling_rate,
                "truth": f"truth/{name}.npz",
            }
        )
        if progress:
            progress(done, clips, "clips")
    write_json(out / "concepts.json", [asdict(concept) for concept in VOCABULARY])
    write_json_lines(out / "manifest.jsonl", rows)
    return out


def clip_name(seed: int, number: int) -> str:
    """The id of clip `number` of corpus `seed`."""
    return f"{seed:03d}-{number:05d}"
