"""The whole making of the pocket model, from nothing to a folder in the Hugging Face layout."""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from musae_jax.activations.residuals import weights_sha256
from musae_jax.compose.concepts import VOCABULARY
from musae_jax.compose.render import render
from musae_jax.errors import MusaeError
from musae_jax.files import read_json, write_json
from musae_jax.models.decoder import DecoderConfig
from musae_jax.models.encodec import EncodecConfig
from musae_jax.models.musicgen import MusicGen, MusicGenConfig, Sampling
from musae_jax.models.t5 import T5Config
from musae_jax.pocket.codec import CodecTraining, encode_bank, train_codec
from musae_jax.pocket.corpus import HELD_OUT_SEED, JUDGE_SEED, TRAIN_SEED, composition, open_bank, styles
from musae_jax.pocket.lm import LanguageModelTraining, corpus_tokens, guess_codes, train_language_model
from musae_jax.pocket.planning import scores
from musae_jax.pocket.polish import PolishTraining, polish_decoder
from musae_jax.pocket.tokenizer import VOCABULARY_SIZE, build_tokenizer
from musae_jax.validation.judge import Judge, fit_judge

POCKET = MusicGenConfig(
    text=T5Config(vocab_size=VOCABULARY_SIZE, d_model=128, d_kv=32, d_ff=256, num_layers=2, num_heads=4),
    audio=EncodecConfig(
        target_bandwidths=(1.6,),  # 50 frames/s of four 8-bit codes
        sampling_rate=16_000,
        hidden_size=64,
        num_filters=16,
        upsampling_ratios=(8, 5, 4, 2),
        use_causal_conv=False,
        num_lstm_layers=1,
        use_conv_shortcut=False,
        codebook_size=256,
    ),
    decoder=DecoderConfig(
        vocab_size=256,
        hidden_size=192,
        num_hidden_layers=5,
        num_attention_heads=6,
        ffn_dim=768,
        num_codebooks=4,
        pad_token_id=256,
        bos_token_id=256,
        max_position_embeddings=2048,
    ),
    sampling=Sampling(guidance_scale=2.0),  # at 3 more drums are heard where none are asked: see the card
)


@dataclasses.dataclass(frozen=True)
class PocketTraining:
    """Everything that decides what the pocket model becomes."""

    clips: int = 6400
    held_out_clips: int = 64
    seconds: float = 10.0
    codec: CodecTraining = dataclasses.field(default_factory=CodecTraining)
    polish: PolishTraining = dataclasses.field(default_factory=PolishTraining)
    language_model: LanguageModelTraining = dataclasses.field(default_factory=LanguageModelTraining)


def train_judge(clips: int = 900, progress: Callable[[int, int, str], None] | None = None) -> Judge:
    """The judge that ships with the pocket: fitted on rendered music that no other part of the project uses."""
    concepts = [(i, concept) for i, concept in enumerate(VOCABULARY) if concept.level == "clip"]
    audio, truth = [], []
    for index in range(clips):
        written = composition(JUDGE_SEED, index, 8.0)
        audio.append(render(written.score))
        truth.append(written.truth[0, [i for i, _ in concepts]])
        if progress:
            progress(index + 1, clips, "clips for the judge")
    names, families = [concept.name for _, concept in concepts], [concept.family for _, concept in concepts]
    return fit_judge(np.stack(audio), np.stack(truth), names, families)


def train_pocket(
    work: str | Path,
    training: PocketTraining,
    start: MusicGen | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> MusicGen:
    """Trains codec, language model and the codec's decoder once more, under the folder `work`; killed and called again,
    it goes on.

    With `start` its codes are kept, which the language model knows, and language model and decoder are trained further.
    A line of figures per 50 steps is appended to `work`/train.jsonl. Called with more steps of the language model, or
    other ones of the decoder, it goes on from where these stand.

    Raises:
      MusaeError: `work` was begun with other music, another codec or another `start`, or by an older version.
    """
    work = Path(work)
    work.mkdir(parents=True, exist_ok=True)
    _begin(work / "begun.json", training, start)
    started = time.time()

    def plain(value):
        return np.asarray(value).tolist() if isinstance(value, jax.Array) else value

    def log(row: dict) -> None:
        with open(work / "train.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"seconds": round(time.time() - started, 1), **jax.tree.map(plain, row)}) + "\n")

    config = POCKET if start is None else start.config
    audio = config.audio
    banks = {
        seed: open_bank(work, clips, seed, training.seconds, audio.sampling_rate, progress)
        for seed, clips in ((TRAIN_SEED, training.clips), (HELD_OUT_SEED, training.held_out_clips))
    }
    if start is None:
        known = banks[TRAIN_SEED], banks[HELD_OUT_SEED]
        codec = train_codec(audio, training.codec, *known, work / "codec", log, progress)
    else:
        codec = {"params": start.params["audio"], "codebooks": start.params["audio"]["codebooks"]}
    codes = encode_bank(codec, audio, banks[TRAIN_SEED], work / "codes.npy", progress)
    held_codes = encode_bank(codec, audio, banks[HELD_OUT_SEED], work / "codes-held.npy", progress)
    tokenizer = build_tokenizer() if start is None else start.tokenizer
    padding = config.text.pad_token_id
    taught, asked = (styles(seed, len(bank.roll), training.seconds) for seed, bank in banks.items())
    tokens = corpus_tokens(tokenizer, TRAIN_SEED, taught, padding)
    held_out = held_codes, *corpus_tokens(tokenizer, HELD_OUT_SEED, asked, padding)
    written = scores(banks[TRAIN_SEED].roll, banks[TRAIN_SEED].truth, taught)
    params = train_language_model(
        config, training.language_model, codes, tokens, written, held_out, work / "lm", log, progress,
        start=start and start.params,
    )  # fmt: skip
    if training.polish.steps:
        folder = work / f"polish-{training.language_model.steps}"  # on what this language model guesses
        folder.mkdir(exist_ok=True)
        known, key = [part[: training.polish.clips] for part in (codes, *tokens)], jax.random.key(training.polish.seed)
        guesses = guess_codes(config, params, *known, key, folder / "guesses.npy", progress)
        held_guesses = guess_codes(config, params, *held_out, key, folder / "guesses-held.npy")
        codec = polish_decoder(
            audio, training.polish, codec, banks[TRAIN_SEED], known[0], guesses, banks[HELD_OUT_SEED], held_guesses,
            folder, log, progress,
        )  # fmt: skip
    kept = {name: codec["params"][name] for name in ("encoder", "decoder")}
    params = {**params, "audio": {**kept, "codebooks": codec["codebooks"]}}
    return MusicGen(config=config, params=params, tokenizer=tokenizer)


def _begin(path: Path, training: PocketTraining, start: MusicGen | None) -> None:
    """Writes down what the codes in a work folder follow from, or refuses to go on with codes of something else."""
    asked = {
        "clips": training.clips,
        "held_out_clips": training.held_out_clips,
        "seconds": training.seconds,
        "start": start and weights_sha256(start.params),
        "codec": None if start else dataclasses.asdict(training.codec),
    }
    if not path.exists():
        if (path.parent / "codes.npy").exists():
            raise MusaeError(f"{path.parent} was begun by an older version; give another folder with --work")
        write_json(path, asked)
    begun = read_json(path)
    if other := [name for name, value in asked.items() if begun.get(name) != value]:
        raise MusaeError(
            f"{path.parent} was begun with another choice of {', '.join(other)} (see {path.name} there); ask for the"
            " same as then, or give another folder with --work"
        )
