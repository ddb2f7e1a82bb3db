"""Tiny MusicGens made by transformers, of every kind that we read, with random weights."""

import copy
import warnings

import numpy as np

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
    # A melody checkpoint in stereo.
    "stereo melody": {
        "num_chroma": 12,
        "chroma_length": 9,
        "text_encoder": {**T5, "d_model": 20, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2},
        "audio_encoder": {
            **CODEC, "sampling_rate": 400, "upsampling_ratios": [4, 2], "codebook_size": 32,
            "target_bandwidths": [0.75], "use_conv_shortcut": False,
        },
        "decoder": {
            "vocab_size": 32, "num_hidden_layers": 3, "ffn_dim": 96, "num_attention_heads": 2, "hidden_size": 24,
            "num_codebooks": 6, "audio_channels": 2,
        },
    },
    # Both as audiocraft trains them: chroma_length follows from 30 s and the sampling rate.
    "craft-melody": {
        "num_chroma": 12,
        "chroma_length": 1 + 500 * 30 // 4096,
        "text_encoder": {**T5, "d_model": 20, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2},
        "audio_encoder": {
            **CODEC, "sampling_rate": 500, "upsampling_ratios": [5, 2], "codebook_size": 32,
            "target_bandwidths": [1.0], "use_conv_shortcut": False,
        },
        "decoder": {
            "vocab_size": 32, "num_hidden_layers": 2, "ffn_dim": 120, "num_attention_heads": 3, "hidden_size": 30,
            "num_codebooks": 4,
        },
    },
    "craft-stereo-melody": {
        "num_chroma": 12,
        "chroma_length": 1 + 400 * 30 // 4096,
        "text_encoder": {**T5, "d_model": 20, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2},
        "audio_encoder": {
            **CODEC, "sampling_rate": 400, "upsampling_ratios": [2, 2], "codebook_size": 16,
            "target_bandwidths": [1.6], "use_conv_shortcut": True,
        },
        "decoder": {
            "vocab_size": 16, "num_hidden_layers": 2, "ffn_dim": 96, "num_attention_heads": 2, "hidden_size": 24,
            "num_codebooks": 8, "audio_channels": 2,
        },
    },
}  # fmt: skip


def torch_config(spec: dict):
    """The config that transformers makes of a spec, and the class of the model that goes with it."""
    import transformers

    spec = copy.deepcopy(spec)
    melody = "num_chroma" in spec
    family = "MusicgenMelody" if melody else "Musicgen"
    config, cls = (getattr(transformers, family + end) for end in ("Config", "ForConditionalGeneration"))
    v = spec["decoder"]["vocab_size"]
    spec["decoder"] |= {"pad_token_id": v, "bos_token_id": v, "model_type": f"musicgen_{'melody_' * melody}decoder"}
    spec["text_encoder"]["model_type"] = "t5"
    spec["audio_encoder"]["model_type"] = "encodec"
    return config(**spec), cls


def torch_musicgen(spec: dict, seed: int):
    """A transformers MusicGen whose every parameter is random, norms and biases too."""
    import torch

    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config, cls = torch_config(spec)
        model = cls(config).eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            if not key.startswith("audio_encoder"):
                value.normal_(0.0, value.shape[-1] ** -0.5 if value.ndim > 1 else 0.3)
                if key.endswith("norm.weight"):
                    value.add_(1.0)
        for layer in model.audio_encoder.quantizer.layers:
            layer.codebook.embed.normal_()
    made = model.generation_config
    made.decoder_start_token_id = made.pad_token_id = made.bos_token_id = spec["decoder"]["vocab_size"]
    return model


def torch_generate(model, steps, **inputs):
    """transformers' greedy codes [B, K, T] and audio, after `steps` decode steps."""
    seen = []
    original = model.audio_encoder.decode
    model.audio_encoder.decode = lambda codes, **rest: seen.append(codes[0].numpy()) or original(codes, **rest)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            audio = model.generate(**inputs, do_sample=False, max_new_tokens=steps)
    finally:
        del model.audio_encoder.decode
    codes = seen[0] if len(seen) == 1 else np.stack(seen, axis=2).reshape(len(seen[0]), -1, seen[0].shape[-1])
    return codes, audio.numpy()
