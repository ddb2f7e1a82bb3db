"""Tiny random MusicGens made by transformers, and the same folders read by us."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from torch_models import SPECS, torch_musicgen

from musae_jax.models.checkpoints import load_musicgen
from musae_jax.models.clap_checkpoints import load_clap
from musae_jax.models.musicgen import MusicGen


@dataclass
class Pair:
    """One model twice: `theirs` in PyTorch, `ours` in JAX, and the folder between them."""

    theirs: object
    ours: MusicGen
    folder: Path


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """pair(name) -> Pair, each made once; what asks for one is skipped where torch is not installed."""
    pytest.importorskip("torch")
    made: dict[str, Pair] = {}

    def make(name: str) -> Pair:
        if name not in made:
            theirs = torch_musicgen(SPECS[name], len(name))
            folder = tmp_path_factory.mktemp(name)
            theirs.save_pretrained(folder)
            made[name] = Pair(theirs, load_musicgen(folder), folder)
        return made[name]

    return make


@pytest.fixture(scope="session")
def clap_pair(tmp_path_factory):
    """clap_pair(name) -> (transformers' CLAP, ours, the folder between them), each made once."""
    from clap_models import CONFIGS, extractor, torch_clap, word_tokenizer

    made = {}

    def make(name: str):
        if name not in made:
            config, folder = CONFIGS[name], tmp_path_factory.mktemp(name)
            theirs = torch_clap(config)
            theirs.save_pretrained(folder)
            extractor(config.mel).save_pretrained(folder)
            word_tokenizer().save(str(folder / "tokenizer.json"))
            made[name] = theirs, load_clap(folder), folder
        return made[name]

    return make
