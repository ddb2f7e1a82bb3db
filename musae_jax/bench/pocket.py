"""What the pocket model has learned, measured on held-out composed music, every figure beside its control.

codec       SI-SDR and log-mel distance with and without quantisation; how much of each codebook is used
prediction  cross-entropy per codebook beside a unigram's, a smoothed bigram's, a trigram's and a small recurrent net's
samples     diatonic mass, onset rate and chroma entropy of unconditional samples beside those of real music through the
            codec and of random codes
obedience   is what the prompt asks for there (`bench.obedience`)
use         how large the model is, and how fast it plays
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from musae_jax.batching import in_batches
from musae_jax.bench.obedience import measure_obedience
from musae_jax.bench.samples import measure_samples
from musae_jax.compose.render import render
from musae_jax.errors import MusaeError
from musae_jax.models.encodec import EncodecDecoder, EncodecEncoder
from musae_jax.models.generate import generate
from musae_jax.models.musicgen import MusicGen, decode_codes, encode_audio, encode_text
from musae_jax.pocket.corpus import HELD_OUT_SEED, TRAIN_SEED, composition, styles
from musae_jax.pocket.lm import baselines, corpus_tokens, evaluate
from musae_jax.pocket.recurrent import recurrent_nats
from musae_jax.pocket.spectral import log_mel_distance, si_sdr

SECONDS = 10.0
STEPS = ("held-out clips", "baselines", "recurrent net", "samples", "judges", "obedience")
Progress = Callable[[int, int, str], None]


@dataclasses.dataclass(frozen=True)
class PocketBench:
    """The size of the benchmark.

    Attributes:
      held_out_clips: that prediction and codec are measured on, and samples compared with as many.
      training_clips: that the counts and the recurrent net learn from.
      recurrent_steps: of the recurrent net.
      prompts: that obedience is measured on.
      judge_clips, judge_held_out_clips: rendered clips that judges are fitted on, and that they are tried on.
      seed: of what is generated.
    """

    held_out_clips: int = 256
    training_clips: int = 1000
    recurrent_steps: int = 600
    prompts: int = 640
    judge_clips: int = 1200
    judge_held_out_clips: int = 256
    seed: int = 0


def measure_pocket(mg: MusicGen, bench: PocketBench | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """Every figure of the model card, as one JSON-able dictionary.

    Raises:
      MusaeError: there are too few prompts to ask for everything, or the model is of another kind.
    """
    bench, config = bench or PocketBench(), mg.config
    if (config.sampling_rate, config.frame_rate, config.audio_channels) != (16_000, 50, 1):
        raise MusaeError(
            "this bench is of pocket models, which have 1 channel, 16000 Hz and 50 frames a second; this one has"
            f" {config.audio_channels}, {config.sampling_rate} and {config.frame_rate:g}"
        )
    if bench.prompts < 32:
        raise MusaeError(f"--prompts is {bench.prompts}; it must be 32 or more, for all instruments to be asked for")

    def at(step: str) -> None:
        if progress:
            progress(STEPS.index(step) + 1, len(STEPS), "measures")

    audio = _corpus(HELD_OUT_SEED, bench.held_out_clips, config.sampling_rate)
    codes = _encode(mg, audio)
    figures: dict[str, Any] = {"codec": measure_codec(mg, audio, codes)}
    at("held-out clips")
    trained = _encode(mg, _corpus(TRAIN_SEED, bench.training_clips, config.sampling_rate))
    held_out = styles(HELD_OUT_SEED, len(codes), SECONDS)
    ids, mask = corpus_tokens(mg.tokenizer, HELD_OUT_SEED, held_out, config.text.pad_token_id)
    size = config.decoder.vocab_size
    figures["prediction"] = {**baselines(trained, codes, size), **evaluate(config, mg.params, codes, ids, mask)}
    at("baselines")
    figures["prediction"]["recurrent"] = recurrent_nats(trained, codes, size, bench.recurrent_steps)
    at("recurrent net")
    figures["samples"] = measure_samples(mg, codes, jax.random.key(bench.seed))
    at("samples")
    figures["obedience"] = measure_obedience(
        mg, bench.prompts, bench.judge_clips, bench.judge_held_out_clips, bench.seed, at
    )
    figures["use"] = measure_use(mg)
    return figures


def measure_codec(mg: MusicGen, audio: np.ndarray, codes: np.ndarray) -> dict[str, Any]:
    """SI-SDR and log-mel distance in dB of audio [n, S] through the codec, and the use of its codes [n, K, T]."""
    config, params = mg.config, mg.params["audio"]

    @jax.jit
    def continuous(sound):
        latents = EncodecEncoder(config.audio).apply({"params": params["encoder"]}, sound[..., None])
        return EncodecDecoder(config.audio).apply({"params": params["decoder"]}, latents)[..., 0]

    out: dict[str, Any] = {}
    plain = in_batches(continuous, audio)
    quantised = in_batches(lambda c: decode_codes(config, mg.params, c), codes)
    for name, heard in (("unquantised", plain), ("quantised", quantised)):
        out[f"si_sdr_db_{name}"] = float(np.mean(si_sdr(heard, audio)))
        distances = [
            np.asarray(log_mel_distance(heard[i : i + 8], audio[i : i + 8], config.sampling_rate))
            for i in range(0, len(audio), 8)
        ]
        out[f"log_mel_db_{name}"] = float(np.mean(np.concatenate(distances)))
    size = config.audio.codebook_size
    out["used"] = [len(np.unique(codes[:, k])) / size for k in range(codes.shape[1])]
    out["repeats"] = [float(np.mean(codes[:, k, 1:] == codes[:, k, :-1])) for k in range(codes.shape[1])]
    return out


def measure_use(mg: MusicGen) -> dict[str, float]:
    """Megabytes of float32 weights, and seconds of sound made in a second for one prompt, sampled as the model does."""
    text = encode_text(mg, ["piano solo"])
    taken = []
    for number in range(2):  # the first call compiles
        started = time.perf_counter()
        jax.block_until_ready(generate(mg.config, mg.params, text, jax.random.key(number), seconds=SECONDS).audio)
        taken.append(time.perf_counter() - started)
    return {
        "megabytes": sum(leaf.size * 4 for leaf in jax.tree.leaves(mg.params)) / 1e6,
        "times_real_time": SECONDS / taken[-1],
        "guidance": mg.config.sampling.guidance_scale,
        "top_p": mg.config.sampling.top_p,
    }


def _corpus(seed: int, clips: int, sampling_rate: int) -> np.ndarray:
    return np.stack([render(composition(seed, index, SECONDS).score, sampling_rate) for index in range(clips)])


def _encode(mg: MusicGen, audio: np.ndarray) -> np.ndarray:
    return in_batches(lambda x: encode_audio(mg.config, mg.params, x), audio)
