"""The verbs that train the bundled models anew."""

from dataclasses import dataclass, replace
from pathlib import Path

from musae_jax.verb import Verb, console


@dataclass(frozen=True)
class TrainPocketFlags:
    """Trains the bundled pocket model anew: codec, language model, decoder. Killed and started again, it goes on.

    musae train-pocket --work work --out pocket

    musae train-pocket --start pocket --work more --out better --lm-steps 6000 --lm-rate 2e-3
    """

    work: Path
    """Folder for the corpus, checkpoints and logs."""
    out: Path
    """Folder for the finished model, in the Hugging Face layout."""
    codec_steps: int = 6000
    """Steps of the codec, the first third of them without quantisation."""
    polish_steps: int = 3000
    """Steps of the codec's decoder alone, last of all, on real codes and on the language model's guesses; 0: none."""
    lm_steps: int = 5500
    """Steps of the language model."""
    lm_rate: float = 3e-3
    """Its peak learning rate; what reads text learns a third as fast."""
    start: str | None = None
    """A model, "pocket" or a folder, whose codes are kept and whose language model and decoder are trained further."""
    clips: int = 6400
    """Composed clips of ten seconds to train on."""


@dataclass(frozen=True)
class TrainEarsFlags:
    """Trains the bundled tagger and CLAP anew, on composed music. Killed and started again, it goes on.

    musae train-ears --work work --out ears
    """

    work: Path
    """Folder for the corpus, checkpoints and logs."""
    out: Path
    """Folder for the finished models, tagger/, strokes/ and clap/, in the Hugging Face layout."""
    clips: int = 6400
    """Composed clips of ten seconds to train on."""
    tagger_steps: int = 3000
    """Steps of the tagger."""
    strokes_steps: int = 3000
    """Steps of the tagger of strokes."""
    clap_steps: int = 2000
    """Steps of CLAP."""


def train_pocket_verb(flags: TrainPocketFlags) -> str:
    from musae_jax.models.checkpoints import load_musicgen, save_musicgen
    from musae_jax.pocket.codec import CodecTraining
    from musae_jax.pocket.lm import LanguageModelTraining
    from musae_jax.pocket.polish import PolishTraining
    from musae_jax.pocket.train import PocketTraining, train_judge, train_pocket
    from musae_jax.progress import progress_bar
    from musae_jax.validation.judge import save_judge

    training = PocketTraining(
        clips=flags.clips,
        codec=CodecTraining(steps=flags.codec_steps, continuous_steps=flags.codec_steps // 3),
        polish=PolishTraining(steps=flags.polish_steps),
        language_model=LanguageModelTraining(
            steps=flags.lm_steps, learning_rate=flags.lm_rate, text_learning_rate=flags.lm_rate / 3
        ),
    )
    start = load_musicgen(flags.start) if flags.start else None
    with progress_bar("pocket", console) as progress:
        save_musicgen(flags.out, train_pocket(flags.work, training, start, progress))
        save_judge(flags.out / "judge.safetensors", train_judge(progress=progress))
    return str(flags.out)


def train_ears_verb(flags: TrainEarsFlags) -> str:
    from musae_jax.models.ast import save_tagger
    from musae_jax.models.checkpoints import load_musicgen
    from musae_jax.models.clap_checkpoints import save_clap
    from musae_jax.pocket.clap import ClapTraining
    from musae_jax.pocket.tagger import STROKES_TRAINING, TaggerTraining
    from musae_jax.pocket.train_ears import EarTraining, train_ears
    from musae_jax.progress import progress_bar

    training = EarTraining(
        clips=flags.clips,
        tagger=TaggerTraining(steps=flags.tagger_steps),
        strokes=replace(STROKES_TRAINING, steps=flags.strokes_steps),
        clap=ClapTraining(steps=flags.clap_steps),
    )
    with progress_bar("ears", console) as progress:
        tagger, strokes, clap = train_ears(flags.work, load_musicgen("pocket"), training, progress)
    save_tagger(flags.out / "tagger", tagger)
    save_tagger(flags.out / "strokes", strokes)
    save_clap(flags.out / "clap", clap)
    return str(flags.out)


TRAININGS = {
    "train-pocket": Verb(TrainPocketFlags, train_pocket_verb, "train the bundled model anew"),
    "train-ears": Verb(TrainEarsFlags, train_ears_verb, "train the bundled taggers and CLAP anew"),
}
