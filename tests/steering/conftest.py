"""A tiny model and an SAE of its stream."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from musae_jax.models.decoder import DecoderConfig
from musae_jax.models.encodec import EncodecConfig
from musae_jax.models.musicgen import MusicGenConfig, random_musicgen
from musae_jax.models.t5 import T5Config
from musae_jax.sae.sae import SAE, SAEConfig


@pytest.fixture(scope="session")
def mg():
    words = {"<pad>": 0, "slow": 2, "piano": 3, "fast": 4, "flute": 5, ",": 6}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    config = MusicGenConfig(
        text=T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2),
        audio=EncodecConfig(
            sampling_rate=16000, hidden_size=8, num_filters=2, upsampling_ratios=(8, 8, 5), codebook_size=16,
            target_bandwidths=(0.4,), num_lstm_layers=1,
        ),
        decoder=DecoderConfig(
            vocab_size=16, num_hidden_layers=2, ffn_dim=16, num_attention_heads=2, hidden_size=12, num_codebooks=2,
            pad_token_id=16, bos_token_id=16,
        ),
    )  # fmt: skip
    return random_musicgen(config, jax.random.key(0), tokenizer)


@pytest.fixture(scope="session")
def stream_sae():
    """An SAE of that model's block 0."""
    rng = np.random.default_rng(1)
    shapes = {"W_enc": (12, 7), "b_enc": (7,), "W_dec": (7, 12), "b_dec": (12,), "threshold": (7,)}
    params = {k: jnp.asarray(rng.normal(size=s) * 3, jnp.float32) for k, s in shapes.items()}
    params["threshold"] = jnp.zeros(7)
    contrast = jnp.asarray(rng.normal(size=(7, 12)), jnp.float32)
    return SAE(SAEConfig(12, 7, metadata={"hook_name": "blocks.0.resid_post"}), params, jnp.full(7, 6.0), contrast)
