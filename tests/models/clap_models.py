"""Small CLAPs of transformers with every weight random, and what they are given; skips where torch is missing."""

import dataclasses

import numpy as np
import pytest
import tokenizers

from musae_jax.audio.clap_mel import ClapMelConfig
from musae_jax.models.clap import ClapConfig
from musae_jax.models.htsat import HTSATConfig
from musae_jax.models.roberta import RobertaConfig

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

MEL = ClapMelConfig(
    sampling_rate=8000, feature_size=16, fft_window_size=256, hop_length=80, frequency_max=3500.0, max_length_s=2
)
TEXT = RobertaConfig(
    vocab_size=40, hidden_size=24, num_hidden_layers=1, num_attention_heads=4, intermediate_size=40,
    max_position_embeddings=24,
)  # fmt: skip
CONFIGS = {
    # LAION's in small: four pieces of time, the last stage a single window.
    "even": ClapConfig(
        audio=HTSATConfig(
            window_size=8, num_mel_bins=16, spec_size=64, hidden_size=24, depths=(2, 1), num_attention_heads=(2, 4),
            patch_embeds_hidden_size=12,
        ),
        text=TEXT,
        mel=MEL,
        projection_dim=20,
    ),
    # Patches that overlap, windows that do not fit, three pieces, odd widths, other activations, no biases.
    "odd": ClapConfig(
        audio=HTSATConfig(
            window_size=5, num_mel_bins=24, spec_size=72, patch_size=5, patch_stride=3, hidden_size=30, depths=(2, 1),
            num_attention_heads=(3, 5), patch_embeds_hidden_size=15, qkv_bias=False, mlp_ratio=2.5, hidden_act="relu",
            layer_norm_eps=1e-3,
        ),
        text=dataclasses.replace(
            TEXT, hidden_size=21, num_hidden_layers=2, num_attention_heads=3, intermediate_size=33, type_vocab_size=2,
            pad_token_id=3, layer_norm_eps=1e-5, hidden_act="gelu_new",
        ),
        mel=dataclasses.replace(MEL, feature_size=24, fft_window_size=512, hop_length=83),
        projection_dim=7,
        projection_hidden_act="gelu",
    ),
}  # fmt: skip
# One block of a single window, for what says nothing of the architecture.
LEAST = ClapConfig(
    audio=HTSATConfig(
        window_size=4, num_mel_bins=16, spec_size=16, hidden_size=8, depths=(1,), num_attention_heads=(2,),
        patch_embeds_hidden_size=8,
    ),
    text=TEXT,
    mel=dataclasses.replace(MEL, hop_length=2000),
    projection_dim=20,
)  # fmt: skip
LAION = ClapMelConfig()
IDS = np.array([[0, 9, 3, 22, 8, 35, 7, 2, 11], [0, 12, 30, 2, 1, 1, 1, 1, 1], [0, 2, 1, 1, 1, 1, 1, 1, 1]])


def torch_clap(config: ClapConfig, seed: int = 0):
    """transformers' model with every weight random, statistics and tables of positions too."""
    torch.manual_seed(seed)
    model = transformers.ClapModel(transformers.ClapConfig(**config.to_hf())).eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            value.normal_(0.0, value[0].numel() ** -0.5 if value.ndim > 1 else 0.3)
            if "orm" in key and key.endswith("weight"):
                value.add_(1.0)
            if key.endswith("bias_table"):
                value.normal_(0.0, 1.0)
        norm = model.audio_model.audio_encoder.batch_norm
        norm.running_mean.normal_(-30.0, 10.0)
        norm.running_var.uniform_(50.0, 400.0)
    return model


def extractor(mel: ClapMelConfig):
    return transformers.ClapFeatureExtractor(
        **dataclasses.asdict(mel), truncation="rand_trunc", padding="repeatpad", top_db=None
    )


def word_tokenizer():
    words = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "slow": 4, "piano": 5, "drums": 6}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    ends = [("<s>", 0), ("</s>", 2)]
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return tokenizer


def noise(*shape, seed=0):
    return (0.3 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def some_mel(config, frames, batch=3):
    """Clips with bands and rhythms of their own, so that their means differ too."""
    bands = config.audio.num_mel_bins
    return -30 + 40 * (noise(batch, frames, bands) + noise(batch, 1, bands, seed=1) + noise(batch, frames, 1, seed=2))


def texts(config):
    ids = np.where(IDS == 1, config.text.pad_token_id, IDS)
    ids = np.where((IDS == 3) & (config.text.pad_token_id == 3), 5, ids)
    return ids, (IDS != 1).astype(np.int32)
