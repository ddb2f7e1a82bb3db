"""What the pocket model has learned, measured on held-out composed music, every figure beside its control.

codec       SI-SDR and log-mel distance with and without quantisation; how much of each codebook is used
prediction  cross-entropy per codebook beside a unigram's and a smoothed bigram's
samples     diatonic mass of unconditional samples between that of random codes and that of real music
obedience   are the drums and the lead instrument there that the prompt asks for, by a judge that hears audio and one
            that reads codes, both fitted on rendered music only; their accuracy on real music through the codec is
            printed beside
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musae_jax.compose.composer import compose, sample_style
from musae_jax.compose.concepts import LEADS
from musae_jax.compose.render import render
from musae_jax.labels.descriptors import CHROMA_WINDOW, chroma_filter
from musae_jax.models.encodec import EncodecDecoder, EncodecEncoder
from musae_jax.models.generate import generate
from musae_jax.models.musicgen import MusicGen, decode_codes, encode_audio, encode_text
from musae_jax.pocket.corpus import HELD_OUT_SEED, TRAIN_SEED, composition
from musae_jax.pocket.lm import baselines, corpus_tokens, evaluate
from musae_jax.pocket.spectral import log_mel_distance, magnitudes, si_sdr
from musae_jax.validation.judge import fit_judge, judge_probabilities, judge_statistics

SECONDS = 10.0
SAMPLE_SECONDS = 5.0
DIATONIC = (0, 2, 4, 5, 7, 9, 11)
JUDGE_SEED, JUDGE_HELD_OUT_SEED = 902, 903
CODE_PENALTIES = (0.003, 0.01, 0.03)
Progress = Callable[[int, int, str], None]


def measure_pocket(
    mg: MusicGen,
    held_out_clips: int = 96,
    bigram_clips: int = 1000,
    samples: int = 224,
    judge_clips: int = 640,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Every figure of the model card, as one JSON-able dictionary."""
    config = mg.config
    steps = ["held-out clips", "baselines", "samples", "judge", "obedience"]

    def at(step: str) -> None:
        if progress:
            progress(steps.index(step) + 1, len(steps), "measures")

    audio = _corpus(HELD_OUT_SEED, held_out_clips, config.sampling_rate)
    codes = _encode(mg, audio)
    figures: dict[str, Any] = {"codec": measure_codec(mg, audio, codes)}
    at("held-out clips")
    train_codes = _encode(mg, _corpus(TRAIN_SEED, bigram_clips, config.sampling_rate))
    ids, mask = corpus_tokens(mg.tokenizer, HELD_OUT_SEED, held_out_clips, SECONDS, config.text.pad_token_id)
    figures["prediction"] = {
        **baselines(train_codes, codes, config.decoder.vocab_size),
        **evaluate(config, mg.params, codes, ids, mask),
    }
    at("baselines")
    figures["samples"] = measure_samples(mg, codes, jax.random.key(seed))
    at("samples")
    figures["obedience"] = measure_obedience(mg, samples, judge_clips, seed, at)
    at("obedience")
    return figures


def measure_codec(mg: MusicGen, audio: np.ndarray, codes: np.ndarray) -> dict[str, Any]:
    """SI-SDR and log-mel distance in dB of audio [n, S] through the codec, and the use of its codes [n, K, T]."""
    config, params = mg.config, mg.params["audio"]

    @jax.jit
    def continuous(sound):
        latents = EncodecEncoder(config.audio).apply({"params": params["encoder"]}, sound[..., None])
        return EncodecDecoder(config.audio).apply({"params": params["decoder"]}, latents)[..., 0]

    out: dict[str, Any] = {}
    plain = _in_batches(continuous, audio)
    quantised = _in_batches(lambda c: decode_codes(config, mg.params, c), codes)
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


def diatonic_mass(audio: np.ndarray) -> np.ndarray:
    """Share of the chroma energy of clips [n, S] at 16 kHz that lies in the best of the 12 diatonic scales, [n]."""
    scales = np.zeros((12, 12))
    for tonic in range(12):
        scales[tonic, [(tonic + step) % 12 for step in DIATONIC]] = 1
    masses = []
    for start in range(0, len(audio), 8):
        power = np.asarray(magnitudes(jnp.asarray(audio[start : start + 8]), CHROMA_WINDOW)) ** 2
        chroma = power.mean(1) @ chroma_filter().T  # [n, 12]
        masses.append((chroma @ scales.T).max(1) / np.maximum(chroma.sum(1), 1e-12))
    return np.concatenate(masses)


def measure_samples(mg: MusicGen, codes: np.ndarray, key: jax.Array, count: int = 32) -> dict[str, float]:
    """Diatonic mass of unconditional samples, of real music through the codec, and of random codes."""
    frames = round(SAMPLE_SECONDS * mg.config.frame_rate)
    keys = jax.random.split(key)
    made = generate(mg.config, mg.params, None, keys[0], seconds=SAMPLE_SECONDS, batch_size=count)
    random = jax.random.randint(keys[1], (count, codes.shape[1], frames), 0, mg.config.decoder.vocab_size)
    masses = {
        "diatonic_mass_samples": diatonic_mass(np.asarray(made.audio)),
        "diatonic_mass_real": diatonic_mass(
            _in_batches(lambda c: decode_codes(mg.config, mg.params, c), codes[:count, :, :frames])
        ),
        "diatonic_mass_random_codes": diatonic_mass(np.asarray(decode_codes(mg.config, mg.params, random))),
    }
    out = {name: float(mass.mean()) for name, mass in masses.items()}
    span = out["diatonic_mass_real"] - out["diatonic_mass_random_codes"]
    out["from_random_to_real"] = (out["diatonic_mass_samples"] - out["diatonic_mass_random_codes"]) / span
    return out


def _solo_clips(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Rendered solos with and without drums: audio [n, S] and truth bool [n, 1 + leads] (drums, then the lead)."""
    audio, truth = [], []
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        style = sample_style(rng)
        style = dataclasses.replace(
            style,
            texture="solo melody",
            lead=LEADS[index % len(LEADS)],
            drums=(style.drums or "rock") if index // len(LEADS) % 2 else None,
        )
        audio.append(render(compose(int(rng.integers(2**31)), SAMPLE_SECONDS, style).score))
        truth.append([style.drums is not None, *(lead == style.lead for lead in LEADS)])
    return np.stack(audio), np.array(truth)


def code_shares(codes: np.ndarray, size: int) -> np.ndarray:
    """Square roots of the share of frames that each code takes; codes [n, K, T] below `size` = V -> [n, K·V]."""
    counts = [[np.bincount(row, minlength=size) for row in clip] for clip in codes]  # [n, K, V]
    return np.sqrt(np.reshape(counts, (len(codes), -1)) / codes.shape[2])


def measure_obedience(
    mg: MusicGen, samples: int, judge_clips: int, seed: int, at: Callable[[str], None]
) -> dict[str, Any]:
    """Share of prompts whose drums (asked or not) and lead instrument two judges find; solos, guidance 3.

    One judge hears audio; the other reads the codes, so that what the language model says and what the codec's decoder
    makes of it are told apart. Both were fitted on rendered music only.
    """
    names = ["drums: any", *(f"instrument: {lead.name}" for lead in LEADS)]
    families = ["drums"] + ["instrument"] * len(LEADS)
    size = mg.config.audio.codebook_size
    rendered, told = _solo_clips(JUDGE_SEED, judge_clips)
    hearing = fit_judge(rendered, told, names, families)
    shares = code_shares(_encode(mg, rendered), size)
    reading = fit_judge(rendered, told, names, families, statistics=shares, penalties=CODE_PENALTIES)
    real, truth = _solo_clips(JUDGE_HELD_OUT_SEED, 128)
    real_codes = _encode(mg, real)
    through = _in_batches(lambda c: decode_codes(mg.config, mg.params, c), real_codes)
    at("judge")
    prompts, asked = [], []
    for index in range(samples):
        lead, drums = index % len(LEADS), index // len(LEADS) % 2
        prompts.append(f"{LEADS[lead].name} solo, {'with drums' if drums else 'no drums'}")
        asked.append([bool(drums), *(i == lead for i in range(len(LEADS)))])
    sounds, codes = [], []
    for start in range(0, samples, 16):
        batch = prompts[start : start + 16]
        text = encode_text(mg, batch + [""] * (16 - len(batch)))
        key = jax.random.fold_in(jax.random.key(seed), start)
        made = generate(mg.config, mg.params, text, key, seconds=SAMPLE_SECONDS, guidance_scale=3.0)
        sounds.append(np.asarray(made.audio)[: len(batch)])
        codes.append(np.asarray(made.codes)[: len(batch)])
    out: dict[str, Any] = {"samples": samples, "chance_instrument": 1 / len(LEADS), "chance_drums": 0.5}
    asked = np.array(asked)
    for where, found, right in (
        ("rendered", judge_probabilities(hearing, real), truth),
        ("codec", judge_probabilities(hearing, through), truth),
        ("generated", judge_probabilities(hearing, np.concatenate(sounds)), asked),
        ("codec_codes", judge_statistics(reading, code_shares(real_codes, size)), truth),
        ("generated_codes", judge_statistics(reading, code_shares(np.concatenate(codes), size)), asked),
    ):
        found = np.asarray(found)
        out[f"drums_{where}"] = float(np.mean((found[:, 0] > 0.5) == right[:, 0]))
        out[f"instrument_{where}"] = float(np.mean(found[:, 1:].argmax(1) == right[:, 1:].argmax(1)))
    return out


def _corpus(seed: int, clips: int, sampling_rate: int) -> np.ndarray:
    return np.stack([render(composition(seed, index, SECONDS).score, sampling_rate) for index in range(clips)])


def _in_batches(function: Callable, rows: np.ndarray, size: int = 8) -> np.ndarray:
    """`function` over rows in batches of one shape."""
    out = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        padded = np.concatenate([part, np.repeat(part[-1:], size - len(part), 0)])
        out.append(np.asarray(function(padded))[: len(part)])
    return np.concatenate(out)


def _encode(mg: MusicGen, audio: np.ndarray) -> np.ndarray:
    return _in_batches(lambda x: encode_audio(mg.config, mg.params, x), audio)
