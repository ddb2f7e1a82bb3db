"""What several rooms' tests share: a tiny MusicGen with the pocket's shape of things and random weights."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

# What takes long to compile is compiled once for all processes of a session: this one, which starts the others, makes
# the folder.
if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="musae-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import jax
import pytest

from musae_jax.models.checkpoints import save_musicgen
from musae_jax.models.decoder import DecoderConfig
from musae_jax.models.encodec import EncodecConfig
from musae_jax.models.musicgen import MusicGenConfig, random_musicgen
from musae_jax.models.t5 import T5Config
from musae_jax.pocket.tokenizer import VOCABULARY_SIZE, build_tokenizer

TINY = MusicGenConfig(
    text=T5Config(vocab_size=VOCABULARY_SIZE, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2),
    audio=EncodecConfig(
        target_bandwidths=(0.4,),  # two codebooks of 4 bits
        sampling_rate=16_000,
        hidden_size=8,
        num_filters=2,
        upsampling_ratios=(8, 5, 4, 2),
        use_causal_conv=False,
        num_lstm_layers=1,
        use_conv_shortcut=False,
        codebook_size=16,
    ),
    decoder=DecoderConfig(
        vocab_size=16, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, ffn_dim=32, num_codebooks=2,
        pad_token_id=16, bos_token_id=16,
    ),
)  # fmt: skip


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Little optimisation by the compiler: of small programs compiling is most of the cost, but in tests marked so.

    The processes that a test starts are told the same: their results are compared with this one's bit for bit.
    """
    light = not any(item.get_closest_marker(name) for name in ("heavy", "slow"))
    jax.config.update("jax_disable_most_optimizations", light)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(light)


@pytest.fixture(scope="module", autouse=True)
def _few_mappings():
    """Forgets compiled programs when they hold half of the mappings that Linux grants; at all of them XLA crashes."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > 30_000:
        jax.clear_caches()


@pytest.fixture(scope="session")
def tiny_config() -> MusicGenConfig:
    return TINY


@pytest.fixture(scope="session")
def tiny_musicgen():
    return random_musicgen(TINY, jax.random.key(0), build_tokenizer(500))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory, tiny_musicgen):
    folder = tmp_path_factory.mktemp("tiny")
    save_musicgen(folder, tiny_musicgen)
    return folder
