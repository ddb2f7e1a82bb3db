"""MusicGen folders in the Hugging Face layout, read and written; audiocraft's own are read too (`audiocraft`).

A folder holds config.json, model.safetensors (or pytorch_model.bin, or shards of either and their index) and, if
prompts are to be strings, tokenizer files. The tensors are matched by the table in `musicgen_table`.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from musae_jax.errors import MusaeError
from musae_jax.files import atomic_folder, write_json
from musae_jax.models.audiocraft import CODEC, LM, is_audiocraft, read_audiocraft
from musae_jax.models.chroma import HOP, LONGEST, WINDOW
from musae_jax.models.decoder import CROSS_ATTENDING, PREFIXED, DecoderConfig
from musae_jax.models.encodec import EncodecConfig
from musae_jax.models.folder import (
    CONFIG,
    INDEX,
    WEIGHTS,
    fetch,
    fetch_model,
    local_folder,
    read_object,
    read_tensors,
    refuse,
    save_tensors,
)
from musae_jax.models.hf_config import GENERIC, LARGE
from musae_jax.models.melody import MelodyConfig
from musae_jax.models.musicgen import MusicGen, MusicGenConfig, Sampling
from musae_jax.models.musicgen_table import musicgen_from_hf, musicgen_to_hf
from musae_jax.models.precision import DTYPES
from musae_jax.models.t5 import T5Config
from musae_jax.models.tokens import read_tokenizer, write_tokenizer

POCKET = Path(__file__).resolve().parent.parent / "pocket" / "weights"
GENERATION = "generation_config.json"
SHARD_BYTES = 5_000_000_000
DECODERS = {"musicgen": CROSS_ATTENDING, "musicgen_melody": PREFIXED}  # the decoder of each kind of checkpoint


def load_musicgen(source: str | Path = "pocket", dtype: str = "float32", revision: str | None = None) -> MusicGen:
    """A MusicGen from "pocket" (the bundled one), a folder, or a hub id: "facebook/musicgen-small", "…-melody", ….

    A folder is in the Hugging Face layout, or in audiocraft's (state_dict.bin and compression_state_dict.bin). All
    problems (missing, misshapen or unknown tensors, unknown config attributes) are in one `MusaeError`. `dtype` is
    "float32", "mixed", "bfloat16" or "float16" (see `cast_params`); `revision` chooses a version on the hub.
    """
    if dtype not in DTYPES:
        raise MusaeError(f"the model's dtype cannot be {dtype!r}; choose {', '.join(DTYPES)}")
    folder = find_folder(source, revision)
    if is_audiocraft(folder):
        config, params, texts = read_audiocraft(folder, dtype)
    else:
        config, texts = read_config(folder), folder
        tensors, problems = read_tensors(folder)
        params, more = musicgen_from_hf(tensors, config, dtype)
        refuse(folder, problems + more)
    return MusicGen(config=config, params=params, tokenizer=read_tokenizer(texts))


def save_musicgen(folder: str | Path, mg: MusicGen, dtype: str = "float32", shard_bytes: int = SHARD_BYTES) -> None:
    """Writes the folder that `load_musicgen` and transformers' `MusicgenForConditionalGeneration` read, or for a melody
    checkpoint `MusicgenMelodyForConditionalGeneration`.

    `dtype` is "float32" or, for a file of half the size, "float16". Other files of an existing folder stay.
    """
    if dtype not in ("float32", "float16"):
        raise MusaeError(f"a checkpoint cannot be written as {dtype!r}; choose float32 or float16")
    folder = Path(folder)
    if folder.exists():
        _write(folder, mg, dtype, shard_bytes)
    else:
        with atomic_folder(folder) as temporary:
            _write(temporary, mg, dtype, shard_bytes)


def find_folder(source: str | Path, revision: str | None = None) -> Path:
    """The local folder of a model: the bundled one, the given one, or the hub's, downloaded once."""
    if str(source) == "pocket":
        if not (POCKET / CONFIG).is_file():
            raise MusaeError(
                f"the bundled pocket model is missing from {POCKET}; reinstall musae_jax or name another model"
            )
        return POCKET
    folder = local_folder(source, "a hub id such as facebook/musicgen-small, or 'pocket'")
    if folder is not None:
        return folder
    folder = fetch_model(source, revision, [GENERATION])
    return folder if (folder / CONFIG).is_file() else fetch(source, (LM, CODEC), revision)


def read_config(folder: Path) -> MusicGenConfig:
    """The configuration in a folder's config.json; everything that we cannot run is named in one `MusaeError`."""
    path = folder / CONFIG
    values = read_object(path)
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in DECODERS:
        raise MusaeError(
            f"{path} describes a model of type {repr(kind)[:80]}, but a {' or '.join(map(repr, DECODERS))} is expected;"
            " choose a MusicGen checkpoint"
        )
    parts = {name: values.get(name) for name in ("text_encoder", "audio_encoder", "decoder")}
    absent = [name for name, part in parts.items() if not isinstance(part, dict)]
    if absent:
        raise MusaeError(f"{path} lacks the block {' and the block '.join(absent)}; fetch the checkpoint again")
    melody, problems = MelodyConfig.from_hf(values) if DECODERS[kind] == PREFIXED else (None, [])
    ours = {"initializer_factor", "sampling_rate", *(() if melody is None else dataclasses.asdict(melody))}
    unknown = sorted(set(values) - set(parts) - GENERIC - ours)
    problems += [f"{name} is an attribute that musae_jax does not know" for name in unknown]
    text, found = T5Config.from_hf(parts["text_encoder"])
    problems += found
    decoder, found = DecoderConfig.from_hf({"model_type": DECODERS[kind], **parts["decoder"]})
    problems += found
    if decoder.model_type != DECODERS[kind]:
        problems.append(f"decoder.model_type is {decoder.model_type!r} in a {kind!r}, which has a {DECODERS[kind]!r}")
    try:
        audio = EncodecConfig.from_hf(parts["audio_encoder"])
    except MusaeError as error:
        refuse(folder, [*problems, str(error)])
    codebooks = audio.num_quantizers * decoder.audio_channels
    if decoder.num_codebooks != codebooks:
        problems.append(f"decoder.num_codebooks is {decoder.num_codebooks} while the codec gives {codebooks}")
    if decoder.vocab_size != audio.codebook_size:
        problems.append(f"decoder.vocab_size is {decoder.vocab_size} while the codec has {audio.codebook_size} entries")
    if audio.audio_channels != 1:
        problems.append(f"audio_encoder.audio_channels is {audio.audio_channels}, but MusicGen's codec is mono")
    sampling, found = read_sampling(folder)
    refuse(folder, [*problems, *found])
    return MusicGenConfig(text=text, audio=audio, decoder=decoder, melody=melody, sampling=sampling)


def read_sampling(folder: Path) -> tuple[Sampling, list[str]]:
    """What a folder's generation_config.json, if there is one, says of sampling, and the problems found in it."""
    values = read_object(folder / GENERATION) if (folder / GENERATION).is_file() else {}
    known, problems = {}, []
    for name, default in vars(Sampling()).items():
        value = values.get(name)
        if value is None:
            continue
        if type(value) in (int, float) and 0 <= value <= LARGE and type(default)(value) == value:
            known[name] = type(default)(value)
        else:
            number = "a whole number" if isinstance(default, int) else "a number"
            problems.append(f"{name} in {GENERATION} is {value!r}, but it must be {number} from 0 up")
    return Sampling(**known), problems


def _write(folder: Path, mg: MusicGen, dtype: str, shard_bytes: int) -> None:
    tensors = {key: value.astype(dtype) for key, value in musicgen_to_hf(mg.params, mg.config).items()}
    shards = _shards(tensors, shard_bytes)
    if len(shards) == 1:
        save_tensors(folder / WEIGHTS, tensors)
        (folder / INDEX).unlink(missing_ok=True)
    else:
        names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
        for name, shard in zip(names, shards, strict=True):
            save_tensors(folder / name, {key: tensors[key] for key in shard})
        weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        size = sum(value.nbytes for value in tensors.values())
        write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})
        (folder / WEIGHTS).unlink(missing_ok=True)
    write_tokenizer(folder, mg.tokenizer, mg.config.text)
    c = mg.config.decoder
    write_json(
        folder / GENERATION,
        {
            "bos_token_id": c.bos_token_id,
            "decoder_start_token_id": c.bos_token_id,
            "pad_token_id": c.pad_token_id,
            "do_sample": True,
            **dataclasses.asdict(mg.config.sampling),
            "max_length": mg.config.frames(10.0) + c.delays,
        },
    )
    melody = mg.config.melody
    write_json(folder / "preprocessor_config.json", _preprocessor(mg.config))
    write_json(
        folder / CONFIG,
        {
            "architectures": [f"Musicgen{'' if melody is None else 'Melody'}ForConditionalGeneration"],
            "model_type": "musicgen" if melody is None else "musicgen_melody",
            **({} if melody is None else dataclasses.asdict(melody)),
            "dtype": dtype,
            "is_encoder_decoder": True,
            "text_encoder": {**mg.config.text.to_hf(), "dtype": dtype},
            "audio_encoder": {**mg.config.audio.to_hf(), "dtype": dtype},
            "decoder": {**c.to_hf(), "dtype": dtype},
        },
    )


def _preprocessor(config: MusicGenConfig) -> dict[str, Any]:
    """How transformers' `AutoProcessor` prepares sound for the model: a prompt for the codec, or a melody's chroma."""
    common = {"sampling_rate": config.sampling_rate, "padding_value": 0.0}
    if config.melody is None:
        return {
            "feature_extractor_type": "EncodecFeatureExtractor",
            "processor_class": "MusicgenProcessor",
            "feature_size": config.audio_channels,
            **common,
            "padding_side": "left",
            "return_attention_mask": True,
            "chunk_length_s": None,
            "overlap": None,
        }
    return {
        "feature_extractor_type": "MusicgenMelodyFeatureExtractor",
        "processor_class": "MusicgenMelodyProcessor",
        "feature_size": config.melody.num_chroma,
        **common,
        "padding_side": "right",
        "return_attention_mask": False,
        "num_chroma": config.melody.num_chroma,
        "n_fft": WINDOW,
        "hop_length": HOP,
        "chunk_length": LONGEST,
        "stem_indices": [3, 2],  # voices and the rest, of what demucs separates
    }


def _shards(tensors: Mapping[str, np.ndarray], limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for key in sorted(tensors):
        if shards[-1] and size + tensors[key].nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(key)
        size += tensors[key].nbytes
    return shards
