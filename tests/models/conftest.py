"""Tiny random MusicGens made by transformers, and the same folders read by us."""

import copy
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest

from musae_jax.models.checkpoints import load_musicgen
from musae_jax.models.musicgen import MusicGen

T5 = {"vocab_size": 50, "pad_token_id": 0, "eos_token_id": 1, "use_cache": False}
CODEC = {"num_filters": 2, "hidden_size": 8, "use_causal_conv": False, "kernel_size": 7, "dilation_growth_rate": 2}
SPECS = {
    # T5 as wide as the decoder (no projection), plain feed-forward.
    "even": {
        "text_encoder": {**T5, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
        "audio_encoder": {
            **CODEC, "sampling_rate": 400, "upsampling_ratios": [4, 2], "codebook_size": 64, "target_bandwidths": [1.2],
            "use_conv_shortcut": False,
        },
        "decoder": {
            "vocab_size": 64, "num_hidden_layers": 2, "ffn_dim": 64, "num_attention_heads": 4, "hidden_size": 32,
            "num_codebooks": 4,
        },
    },
    # 3 heads, 5 layers, 3 codebooks, odd widths, gated T5 of another width.
    "odd": {
        "text_encoder": {
            **T5, "d_model": 20, "d_kv": 7, "d_ff": 33, "num_layers": 3, "num_heads": 3,
            "feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": 12,
            "relative_attention_max_distance": 9,
        },
        "audio_encoder": {
            **CODEC, "use_conv_shortcut": True, "sampling_rate": 500,
            "upsampling_ratios": [5, 2], "codebook_size": 32, "target_bandwidths": [0.75],
        },
        "decoder": {
            "vocab_size": 32, "num_hidden_layers": 5, "ffn_dim": 70, "num_attention_heads": 3, "hidden_size": 39,
            "num_codebooks": 3, "activation_function": "relu",
        },
    },
    "stereo": {
        "text_encoder": {**T5, "d_model": 24, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2},
        "audio_encoder": {
            **CODEC, "sampling_rate": 400, "upsampling_ratios": [4, 2],
            "codebook_size": 32, "target_bandwidths": [0.75],
        },
        "decoder": {
            "vocab_size": 32, "num_hidden_layers": 2, "ffn_dim": 40, "num_attention_heads": 2, "hidden_size": 24,
            "num_codebooks": 6, "audio_channels": 2,
        },
    },
    # As audiocraft trains them: a projection of the text, an even width, four times that in the feed-forward.
    "craft": {
        "text_encoder": {**T5, "d_model": 20, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2},
        "audio_encoder": {
            **CODEC, "sampling_rate": 500, "upsampling_ratios": [5, 2], "codebook_size": 32,
            "target_bandwidths": [1.0], "use_conv_shortcut": False, "pad_mode": "constant",
        },
        "decoder": {
            "vocab_size": 32, "num_hidden_layers": 3, "ffn_dim": 120, "num_attention_heads": 3, "hidden_size": 30,
            "num_codebooks": 4,
        },
    },
    "craft-stereo": {
        "text_encoder": {
            **T5, "d_model": 20, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2,
            "feed_forward_proj": "gated-gelu",
        },
        "audio_encoder": {
            **CODEC, "sampling_rate": 400, "upsampling_ratios": [2, 2], "num_residual_layers": 2, "codebook_size": 16,
            "target_bandwidths": [1.6], "use_conv_shortcut": True,
        },
        "decoder": {
            "vocab_size": 16, "num_hidden_layers": 2, "ffn_dim": 96, "num_attention_heads": 2, "hidden_size": 24,
            "num_codebooks": 8, "audio_channels": 2,
        },
    },
    # A melody checkpoint: the decoder without cross-attention.
    "melody": {
        "num_chroma": 12,
        "chroma_length": 16,
        "text_encoder": {**T5, "d_model": 24, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2},
        "audio_encoder": {
            **CODEC, "sampling_rate": 400, "upsampling_ratios": [4, 2], "codebook_size": 64, "target_bandwidths": [1.2],
            "use_conv_shortcut": False,
        },
        "decoder": {
            "vocab_size": 64, "num_hidden_layers": 2, "ffn_dim": 64, "num_attention_heads": 4, "hidden_size": 32,
            "num_codebooks": 4,
        },
    },
    # The same with 3 heads, 3 codebooks, odd widths, an odd prefix, and T5 as wide as the decoder.
    "odd melody": {
        "num_chroma": 12,
        "chroma_length": 7,
        "text_encoder": {
            **T5, "d_model": 39, "d_kv": 7, "d_ff": 33, "num_layers": 2, "num_heads": 3,
            "feed_forward_proj": "gated-gelu",
        },
        "audio_encoder": {
            **CODEC, "use_conv_shortcut": True, "sampling_rate": 500,
            "upsampling_ratios": [5, 2], "codebook_size": 32, "target_bandwidths": [0.75],
        },
        "decoder": {
            "vocab_size": 32, "num_hidden_layers": 3, "ffn_dim": 70, "num_attention_heads": 3, "hidden_size": 39,
            "num_codebooks": 3, "activation_function": "relu",
        },
    },
}  # fmt: skip


@dataclass
class Pair:
    """One model twice: `theirs` in PyTorch, `ours` in JAX, and the folder between them."""

    theirs: object
    ours: MusicGen
    folder: Path


def torch_musicgen(name: str):
    """A transformers MusicGen whose every parameter is random, norms and biases too."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        spec = copy.deepcopy(SPECS[name])
        melody = "num_chroma" in spec
        family = "MusicgenMelody" if melody else "Musicgen"
        config, cls = (getattr(transformers, family + end) for end in ("Config", "ForConditionalGeneration"))
        v = spec["decoder"]["vocab_size"]
        spec["decoder"] |= {"pad_token_id": v, "bos_token_id": v, "model_type": f"musicgen_{'melody_' * melody}decoder"}
        spec["text_encoder"]["model_type"] = "t5"
        spec["audio_encoder"]["model_type"] = "encodec"
        torch.manual_seed(len(name))
        model = cls(config(**spec)).eval()
        with torch.no_grad():
            for key, value in model.named_parameters():
                if not key.startswith("audio_encoder"):
                    value.normal_(0.0, value.shape[-1] ** -0.5 if value.ndim > 1 else 0.3)
                    if key.endswith("norm.weight"):
                        value.add_(1.0)
            for layer in model.audio_encoder.quantizer.layers:
                layer.codebook.embed.normal_()
        model.generation_config.decoder_start_token_id = model.generation_config.pad_token_id = v
        model.generation_config.bos_token_id = v
    return model


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """pair(name) -> Pair, each made once; what asks for one is skipped where torch is not installed."""
    pytest.importorskip("torch")
    made: dict[str, Pair] = {}

    def make(name: str) -> Pair:
        if name not in made:
            theirs = torch_musicgen(name)
            folder = tmp_path_factory.mktemp(name)
            theirs.save_pretrained(folder)
            made[name] = Pair(theirs, load_musicgen(folder), folder)
        return made[name]

    return make
