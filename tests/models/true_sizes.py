"""The public checkpoints at their true sizes, and what transformers makes of one with random weights.

`python true_sizes.py NAME FOLDER LAYERS` writes the checkpoint NAME to FOLDER, and `reference.npz` beside it, in a
process of its own, so that a test never holds a large model twice. LAYERS 0 are all of its blocks.
"""

import copy
import sys
import warnings
from pathlib import Path

import numpy as np

from musae_jax.bench.engines import CODEC, DECODERS, TEXT

_STEREO = {"num_codebooks": 8, "audio_channels": 2}
_MELODY = {"num_chroma": 12, "chroma_length": 235}
SIZES = {
    "musicgen-small": ("small", {}, {}),
    "musicgen-medium": ("medium", {}, {}),
    "musicgen-large": ("large", {}, {}),
    "musicgen-stereo-small": ("small", _STEREO, {}),
    "musicgen-stereo-medium": ("medium", _STEREO, {}),
    "musicgen-stereo-large": ("large", _STEREO, {}),
    "musicgen-melody": ("medium", {}, _MELODY),
    "musicgen-melody-large": ("large", {}, _MELODY),
    "musicgen-stereo-melody": ("medium", _STEREO, _MELODY),
    "musicgen-stereo-melody-large": ("large", _STEREO, _MELODY),
}
IDS = np.array([[5, 900, 31000, 22, 8, 41, 7, 1], [12, 30, 1, 0, 0, 0, 0, 0]])
FRAMES, STEPS = 25, 12


def spec(name: str, layers: int | None = None) -> dict:
    """What a checkpoint is made from; with `layers` only so many blocks of the decoder and of the text encoder."""
    size, decoder, melody = SIZES[name]
    depth = {} if layers is None else {"num_hidden_layers": layers}
    return copy.deepcopy(
        {
            **melody,
            "text_encoder": TEXT | ({} if layers is None else {"num_layers": layers}),
            "audio_encoder": CODEC | {"use_conv_shortcut": False},
            "decoder": {"vocab_size": 2048, "num_codebooks": 4} | DECODERS[size] | decoder | depth,
        }
    )


def some_codes(codebooks: int) -> np.ndarray:
    return np.random.default_rng(0).integers(2048, size=(2, codebooks, FRAMES))


def some_melody() -> np.ndarray:
    return np.eye(12, dtype=np.float32)[np.random.default_rng(1).integers(12, size=(2, 30))]


def some_sound() -> np.ndarray:
    return 0.3 * np.random.default_rng(2).standard_normal((1, 640 * FRAMES)).astype(np.float32)


def _write(name: str, folder: Path, layers: int | None) -> None:
    import torch
    from torch_models import torch_generate, torch_musicgen

    from musae_jax.models.delay import apply_delay

    model = torch_musicgen(spec(name, layers), 0)
    model.save_pretrained(folder)
    c = model.config.decoder
    columns = np.asarray(apply_delay(some_codes(c.num_codebooks), 2048, c.audio_channels))
    inputs = {"input_ids": torch.tensor(IDS), "attention_mask": torch.tensor(IDS != 0)}
    if hasattr(model.config, "num_chroma"):
        inputs["input_features"] = torch.tensor(some_melody())
    residuals = []
    for layer in model.decoder.model.decoder.layers:
        layer.register_forward_hook(lambda _, __, out: residuals.append(out[0] if isinstance(out, tuple) else out))
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logits = model(**inputs, decoder_input_ids=torch.tensor(columns).flatten(0, 1).long()).logits
        here = slice(-columns.shape[-1], None)  # a melody's prefix stands before the music
        kept = {
            "logits": logits.unflatten(0, columns.shape[:2])[:, :, here],
            "residuals": torch.stack(residuals)[:, :, here],
            "codes": torch_generate(model, STEPS, **inputs, guidance_scale=3.0)[0],
            "encoded": model.audio_encoder.encode(torch.tensor(some_sound())[:, None]).audio_codes[0],
        }
        kept["decoded"] = model.audio_encoder.decode(kept["encoded"][None], [None]).audio_values[:, 0]
    np.savez(folder / "reference.npz", **{key: np.asarray(value) for key, value in kept.items()})


if __name__ == "__main__":
    _write(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]) or None)
