"""The parts of training at a tiny size; what they cost at the true one is in the model card."""

import dataclasses

import numpy as np
import pytest

from musae_jax.bench.training import TrainingBench, bench_training
from musae_jax.models.encodec import EncodecConfig
from musae_jax.pocket.train import POCKET


@pytest.mark.slow  # compiles a program a part
def test_every_part_of_training_is_timed():
    tiny = dataclasses.replace(
        POCKET,
        text=dataclasses.replace(POCKET.text, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2),
        audio=EncodecConfig(
            sampling_rate=16_000, hidden_size=8, num_filters=2, upsampling_ratios=(8, 8, 5), codebook_size=16,
            target_bandwidths=(0.4,), num_lstm_layers=1,
        ),
        decoder=dataclasses.replace(
            POCKET.decoder, vocab_size=16, hidden_size=12, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16,
            num_codebooks=2, pad_token_id=16, bos_token_id=16,
        ),
    )  # fmt: skip
    seen = []
    rows = bench_training(tiny, TrainingBench(frames=20, times=1), lambda *step: seen.append(step[:2]))
    assert [row["name"] for row in rows] == [
        "training/product",
        "training/language model, whole clips",
        "training/language model, beginnings",
        "training/codec",
        *(f"training/codec, {p}" for p in ("spectral loss", "LSTMs", "transposed convolutions", "other convolutions")),
    ]
    assert all(np.isfinite(row["ours"]) and row["ours"] > 0 for row in rows) and seen[-1] == (7, 7)
    assert all(0 < row["ratio"] < 1 for row in rows[1:3])  # of the floor
