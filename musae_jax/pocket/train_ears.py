"""The making of the pocket's ears, two taggers and a CLAP, from nothing to folders in the Hugging Face layout."""

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from musae_jax.activations.residuals import weights_sha256
from musae_jax.models.ast import Tagger
from musae_jax.models.clap import Clap
from musae_jax.models.musicgen import MusicGen
from musae_jax.pocket.clap import MEL, ClapTraining, train_clap
from musae_jax.pocket.codec import encode_bank
from musae_jax.pocket.corpus import HELD_OUT_SEED, TRAIN_SEED, open_bank
from musae_jax.pocket.ears import EarBank, open_ear_bank
from musae_jax.pocket.tagger import FRONT_END, STROKES, STROKES_TRAINING, TaggerTraining, train_tagger


@dataclasses.dataclass(frozen=True)
class EarTraining:
    """Everything that decides what the ears become."""

    clips: int = 6400
    held_out_clips: int = 64
    seconds: float = 10.0
    tagger: TaggerTraining = dataclasses.field(default_factory=TaggerTraining)
    strokes: TaggerTraining = STROKES_TRAINING
    clap: ClapTraining = dataclasses.field(default_factory=ClapTraining)


def train_ears(
    work: str | Path,
    mg: MusicGen,
    training: EarTraining,
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[Tagger, Tagger, Clap]:
    """Trains the tagger, that of strokes and CLAP under the folder `work`, on music as it is and through the codec of
    `mg`; killed and called again, it goes on. Figures of every 50th step and held-out ones are appended to
    `work`/ears.jsonl."""
    work = Path(work)
    work.mkdir(parents=True, exist_ok=True)

    def log(ear: str, row: dict) -> None:
        plain = {key: value if isinstance(value, dict) else np.asarray(value).tolist() for key, value in row.items()}
        with open(work / "ears.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"ear": ear, **plain}) + "\n")

    def hear(seed: int, clips: int) -> EarBank:
        bank = open_bank(work, clips, seed, training.seconds, mg.config.sampling_rate, progress)
        codec = {"params": mg.params["audio"], "codebooks": mg.params["audio"]["codebooks"]}
        codes = encode_bank(codec, mg.config.audio, bank, own / f"codes-{seed}-{clips}.npy", progress)
        return open_ear_bank(own, seed, bank, codes, mg, FRONT_END, MEL, progress)

    own = work / f"codec-{weights_sha256(mg.params['audio'])[:16]}"  # another makes other sound of the same music
    own.mkdir(exist_ok=True)
    known = hear(TRAIN_SEED, training.clips), hear(HELD_OUT_SEED, training.held_out_clips)
    tagger = train_tagger(training.tagger, *known, own / "tagger", partial(log, "tagger"), progress)
    strokes = train_tagger(training.strokes, *known, own / "strokes", partial(log, "strokes"), progress, STROKES)
    clap = train_clap(training.clap, *known, TRAIN_SEED, training.seconds, own / "clap", partial(log, "clap"), progress)
    return tagger, strokes, clap
