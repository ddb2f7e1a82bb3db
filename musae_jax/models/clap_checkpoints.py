"""CLAP folders in the Hugging Face layout, read and written.

A folder holds config.json, model.safetensors (or pytorch_model.bin, or shards of either and their index),
preprocessor_config.json and, if texts are to be strings, tokenizer.json.
"""

from pathlib import Path

from musae_jax.errors import MusaeError
from musae_jax.files import atomic_folder, write_json
from musae_jax.models.clap import Clap, ClapConfig
from musae_jax.models.clap_table import clap_from_hf, clap_to_hf
from musae_jax.models.folder import (
    CONFIG,
    INDEX,
    WEIGHTS,
    fetch_model,
    local_folder,
    read_object,
    read_tensors,
    refuse,
    save_tensors,
)
from musae_jax.models.tokens import read_tokenizer, write_tokenizer

PREPROCESSOR = "preprocessor_config.json"


def load_clap(source: str | Path, revision: str | None = None) -> Clap:
    """A CLAP from a folder or a hub id: "laion/clap-htsat-unfused", "laion/larger_clap_music", ….

    `revision` chooses a version on the hub.

    Raises:
      MusaeError: there is no such model, it fuses features, or anything in it is missing, misshapen or unknown; all
        problems are in one error.
    """
    folder = local_folder(source, "or a hub id such as laion/clap-htsat-unfused")
    if folder is None:
        folder = fetch_model(str(source), revision, extra=(PREPROCESSOR,))
    config = read_clap_config(folder)
    tensors, problems = read_tensors(folder)
    params, more = clap_from_hf(tensors, config)
    refuse(folder, problems + more, what="a CLAP")
    return Clap(config=config, params=params, tokenizer=read_tokenizer(folder))


def read_clap_config(folder: Path) -> ClapConfig:
    """The configuration in a folder; everything that we cannot run is named in one `MusaeError`."""
    values = read_object(folder / CONFIG)
    kind = values.get("model_type")
    if kind != "clap":
        raise MusaeError(
            f"{folder / CONFIG} describes a model of type {repr(kind)[:80]}, but a 'clap' is expected; choose a CLAP "
            "checkpoint"
        )
    audio = values.get("audio_config")
    if isinstance(audio, dict) and audio.get("enable_fusion") is True:
        raise MusaeError(
            f"{folder} is a CLAP with feature fusion, which hears random parts of a long clip and is not supported; "
            "choose one without, such as laion/clap-htsat-unfused"
        )
    given = folder / PREPROCESSOR
    config, problems = ClapConfig.from_hf(values, read_object(given) if given.is_file() else None)
    refuse(folder, problems, what="a CLAP")
    return config


def save_clap(folder: str | Path, clap: Clap) -> None:
    """Writes the folder that `load_clap` and transformers' `ClapModel` and `ClapFeatureExtractor` read; other files of
    an existing folder stay."""
    folder = Path(folder)
    if folder.exists():
        _write(folder, clap)
    else:
        with atomic_folder(folder) as temporary:
            _write(temporary, clap)


def _write(folder: Path, clap: Clap) -> None:
    save_tensors(folder / WEIGHTS, clap_to_hf(clap.params, clap.config))
    (folder / INDEX).unlink(missing_ok=True)
    write_tokenizer(folder, clap.tokenizer, clap.config.text)
    write_json(folder / PREPROCESSOR, clap.config.preprocessor())
    write_json(folder / CONFIG, clap.config.to_hf())
