"""MusicGens as audiocraft saves them: `state_dict.bin` and `compression_state_dict.bin`, each a pickled dict.

`audiocraft.utils.export` writes {"best_state": tensors, "xp.cfg": YAML, "version", "exported"}, and for a codec that is
somebody else's only {"pretrained": its name}. The text encoder is never in them unless it was trained along: audiocraft
takes it from the hub by name. Both are looked for in the folder, then beside it, then on the hub.

audiocraft lets padding take part in cross-attention where transformers and we mask it; a lone prompt has no padding.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

from musae_jax.errors import MusaeError
from musae_jax.models import audiocraft_config
from musae_jax.models.audiocraft_config import LanguageModel, Tree
from musae_jax.models.audiocraft_table import codec_to_hf, lm_to_hf
from musae_jax.models.encodec import EncodecConfig
from musae_jax.models.folder import CONFIG, fetch_model, read_object, read_tensors, refuse
from musae_jax.models.musicgen import MusicGenConfig
from musae_jax.models.musicgen_table import AUDIO, hf_shapes, musicgen_from_hf
from musae_jax.models.t5 import T5Config
from musae_jax.torch_file import read_torch_values

LM, CODEC = "state_dict.bin", "compression_state_dict.bin"
# The names that audiocraft's T5Conditioner takes, and those of codecs on the hub. They are somebody else's text.
_T5 = re.compile(r"(google/flan-)?t5-[a-z0-9]+")
_HUB = re.compile(r"[A-Za-z0-9][\w-]*/[A-Za-z0-9][\w.-]*")


@dataclasses.dataclass(frozen=True)
class Codec:
    """A codec's configuration (None where it cannot be run), and its tensors under Hugging Face's names; `theirs` are
    audiocraft's names of them, `name` that of a codec which the checkpoint only names."""

    config: EncodecConfig | None
    tensors: dict[str, Any]
    theirs: dict[str, str]
    name: str | None = None


def is_audiocraft(folder: Path) -> bool:
    """Whether a folder is in audiocraft's layout; where it is in both, as on the hub, Hugging Face's is read."""
    return (folder / LM).is_file() and not (folder / CONFIG).is_file()


def read_audiocraft(folder: Path, dtype: str = "float32") -> tuple[MusicGenConfig, dict[str, Any], Path]:
    """The configuration, the params (of `dtype`, see `cast_params`) and the folder of the text encoder and tokenizer.

    Raises:
      MusaeError: a file is missing or damaged, or holds what we do not know (all of it named at once); the text encoder
        or the codec that the checkpoint names is neither in the folder, nor beside it, nor to be had from the hub.
    """
    lm, state, problems = read_lm(folder)
    refuse(folder, problems)
    codec, problems = read_codec(folder, lm)
    refuse(folder, problems)
    texts = find_named(folder, lm.text_encoder, _T5, "text encoder")
    text, problems = T5Config.from_hf(read_object(texts / CONFIG))
    if text.d_model == lm.decoder.hidden_size:
        problems.append(f"{lm.text_encoder} and the language model have the same width, {text.d_model}, and still")
        problems[-1] += " a projection between them, which is not supported"
    refuse(folder, problems)
    config = MusicGenConfig(text=text, audio=codec.config, decoder=lm.decoder, melody=lm.melody)
    shapes = {key: shape for key, (shape, *_) in hf_shapes(config).items() if not key.startswith("text_encoder.")}
    tensors, problems = lm_to_hf(state, shapes)
    refuse(folder, problems)
    outside, problems = read_tensors(texts)
    tensors = {f"text_encoder.{key}": value for key, value in outside.items()} | tensors
    tensors |= {AUDIO + key: value for key, value in codec.tensors.items()}
    params, found = musicgen_from_hf(tensors, config, dtype)
    named = [
        re.sub(rf"^tensor {re.escape(AUDIO)}(\S+)", lambda key: f"the codec's {codec.theirs.get(key[1], key[1])}", text)
        for text in found
    ]
    refuse(folder, problems + named)
    return config, params, texts


def read_lm(folder: Path, shapes_only: bool = False) -> tuple[LanguageModel, dict[str, Any], list[str]]:
    """The language model's configuration, its tensors under audiocraft's names, and what in them we cannot run."""
    tree, state = _parts(read_torch_values(folder / LM, shapes_only), folder / LM)
    lm, problems = audiocraft_config.language_model(tree)
    return lm, state, problems


def read_codec(folder: Path, lm: LanguageModel, shapes_only: bool = False) -> tuple[Codec, list[str]]:
    """The codec that goes with a language model, and what in it we cannot run: that of the folder's own file, or the
    one which the file names. With `shapes_only` nothing is fetched from the hub, and what is not here has no config."""
    codebooks = lm.decoder.num_codebooks // lm.decoder.audio_channels
    package = read_torch_values(folder / CODEC, shapes_only)
    if "pretrained" in package:
        name = package["pretrained"] if isinstance(package["pretrained"], str) else ""
        if shapes_only and beside(folder, name) is None:
            return Codec(None, {}, {}, name), []
        place = find_named(folder, name, _HUB, "codec")
        config = EncodecConfig.from_hf(read_object(place / CONFIG))
        tensors, problems = read_tensors(place, shapes_only)
        held = config.num_quantizers
        if held < codebooks:
            problems.append(f"{name} has {held} codebooks, but the language model writes {codebooks} a channel")
        config = audiocraft_config.with_codebooks(config, codebooks)
        spare = tuple(f"quantizer.layers.{k}.codebook." for k in range(codebooks, held))
        tensors = {key: value for key, value in tensors.items() if not key.startswith(spare)}
        codec = Codec(config, tensors, {}, name)
    else:
        tree, state = _parts(package, folder / CODEC)
        config, held, problems = audiocraft_config.codec(tree, codebooks)
        tensors, theirs = ({}, {}) if config is None else codec_to_hf(state, config, held)
        codec = Codec(config, tensors, theirs)
    if config is not None:
        if config.codebook_size != lm.decoder.vocab_size:
            problems.append(
                f"transformer_lm.card is {lm.decoder.vocab_size} while the codec has {config.codebook_size} entries"
            )
        if lm.sampling_rate not in (None, config.sampling_rate):
            problems.append(
                f"the language model's sample_rate is {lm.sampling_rate}, the codec's {config.sampling_rate}"
            )
        if config.audio_channels != 1:
            problems.append(f"the codec has {config.audio_channels} audio channels, but MusicGen's is mono")
    return codec, problems


def beside(folder: Path, name: str) -> Path | None:
    """The folder of a model that a checkpoint only names, in the checkpoint's or beside it; None where it is not."""
    last = re.sub(r".*/", "", name)
    if last in ("", ".", ".."):
        return None
    places = (folder / last, folder.absolute().parent / last)
    return next((place for place in places if (place / CONFIG).is_file()), None)


def find_named(folder: Path, name: str, allowed: re.Pattern, what: str) -> Path:
    """As `beside`, and else from the hub; a name that is not `allowed`, or cannot be had, is a `MusaeError`."""
    if not allowed.fullmatch(name):
        raise MusaeError(f"{folder} names {name[:80]!r} as its {what}, which is not one that musae_jax can read")
    place = beside(folder, name)
    if place is not None:
        return place
    try:
        return fetch_model(name if "/" in name else f"google-t5/{name}")
    except MusaeError as error:
        raise MusaeError(
            f"{folder} holds only the name of its {what}, {name}: put that model's folder at"
            f" {folder / name.rpartition('/')[2]} ({error})"
        ) from None


def _parts(package: dict[str, Any], path: Path) -> tuple[Tree, dict[str, Any]]:
    state = package.get("best_state")
    tensors = state.values() if isinstance(state, dict) else [None]
    if not all(hasattr(value, "shape") for value in tensors):
        raise MusaeError(
            f"{path} has no tensors under best_state, as audiocraft.utils.export writes them; export the model again"
        )
    return Tree(package.get("xp.cfg"), path), state
