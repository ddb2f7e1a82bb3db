"""MusicGen twice, with the same random weights: ours and transformers', for `musae bench generate` and `harvest`.

`python -m musae_jax.bench.engines ENGINE FOLDER LAYER BATCH FRAMES` says how much memory one of them takes for a
harvest in a process of its own: the peak in MiB.
"""

import importlib.util
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from musae_jax.bench.rows import bench_row
from musae_jax.bench.trainers import accelerator_peak, held_memory
from musae_jax.errors import MusaeError

DECODERS = {
    "tiny": {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "ffn_dim": 256},
    "small": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "ffn_dim": 4096},
    "medium": {"hidden_size": 1536, "num_hidden_layers": 48, "num_attention_heads": 24, "ffn_dim": 6144},
    "large": {"hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32, "ffn_dim": 8192},
}
TEXT = {"vocab_size": 32128, "d_model": 768, "d_ff": 3072, "d_kv": 64, "num_layers": 12, "num_heads": 12}
TINY_TEXT = {"vocab_size": 64, "d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 2, "num_heads": 4}
CODEC = {  # EnCodec at 32 kHz and 50 frames a second, MusicGen's
    "sampling_rate": 32000, "target_bandwidths": [2.2], "upsampling_ratios": [8, 5, 4, 4], "num_filters": 64,
    "num_lstm_layers": 2, "codebook_size": 2048, "codebook_dim": 128, "hidden_size": 128, "use_causal_conv": False,
    "norm_type": "weight_norm", "chunk_length_s": None, "audio_channels": 1,
}  # fmt: skip
TINY_CODEC = {**CODEC, "num_filters": 2, "hidden_size": 16, "codebook_dim": 16}


def true_config(size: str) -> Any:
    """The shapes of the published MusicGen of this size."""
    from musae_jax.models.decoder import DecoderConfig
    from musae_jax.models.encodec import EncodecConfig
    from musae_jax.models.musicgen import MusicGenConfig
    from musae_jax.models.t5 import T5Config

    tiny = size == "tiny"
    return MusicGenConfig(
        text=T5Config(**(TINY_TEXT if tiny else TEXT)),
        audio=EncodecConfig.from_hf(TINY_CODEC if tiny else CODEC),
        decoder=DecoderConfig(**DECODERS[size]),
    )


def read_in_a_step(decoder: Any) -> list[Any]:
    """The decoder's parameters that a step of generation reads whole: not the embeddings, of which it reads some rows,
    nor what makes the text's keys and values, which are made once."""
    from flax.traverse_util import flatten_dict

    once = r"embedding|block_\d+/cross_attention/(key|value)/kernel"
    return [leaf for path, leaf in flatten_dict(decoder, sep="/").items() if not re.fullmatch(once, path)]


def seconds_of(call: Callable[[], Any]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def write_checkpoint(folder: Any, size: str) -> None:
    """A checkpoint of the true shapes with random weights, in the Hugging Face layout.

    Raises:
      MusaeError: torch is not installed.
    """
    if importlib.util.find_spec("torch") is None:
        raise MusaeError("transformers needs torch to be measured beside; run `pip install torch`")
    import torch
    from transformers import MusicgenConfig, MusicgenForConditionalGeneration

    torch.manual_seed(0)
    decoder = {**DECODERS[size], "vocab_size": 2048, "pad_token_id": 2048, "bos_token_id": 2048, "num_codebooks": 4}
    model = MusicgenForConditionalGeneration(
        MusicgenConfig(
            text_encoder={**(TINY_TEXT if size == "tiny" else TEXT), "model_type": "t5"},
            audio_encoder={**(TINY_CODEC if size == "tiny" else CODEC), "model_type": "encodec"},
            decoder={**decoder, "model_type": "musicgen_decoder"},
        )
    )
    with torch.no_grad():
        for layer in model.audio_encoder.quantizer.layers:
            layer.codebook.embed.normal_()  # transformers leaves zeros
    model.generation_config.decoder_start_token_id = model.generation_config.pad_token_id = 2048
    model.generation_config.bos_token_id = 2048
    model.save_pretrained(folder)


class Ours:
    def __init__(self, folder: Any, dtype: str = "float32"):
        from musae_jax.models.checkpoints import load_musicgen

        self.mg = load_musicgen(folder, dtype)

    def generate(self, ids: Any, frames: int) -> Any:
        """Codes of prompts ids [B, L], sampled with guidance 3 and top-k 250; text and sound included."""
        import jax

        from musae_jax.models.generate import generate
        from musae_jax.models.musicgen import encode_text

        text = encode_text(self.mg, ids)
        out = generate(self.mg.config, self.mg.params, text, jax.random.key(0), frames / self.mg.config.frame_rate)
        return jax.block_until_ready(out).codes

    def harvest(self, codes: Any, layer: int) -> Any:
        """Residuals [B, T + 1, D] after block `layer`, unconditional."""
        import jax

        from musae_jax.models.musicgen import forward

        out = forward(self.mg.config, self.mg.params, codes, taps=(layer,), logits=False)
        return jax.block_until_ready(out.residuals[layer])

    def encode(self, audio: Any) -> Any:
        import jax

        from musae_jax.models.musicgen import encode_audio

        return jax.block_until_ready(encode_audio(self.mg.config, self.mg.params, audio))

    def decode(self, codes: Any) -> Any:
        import jax

        from musae_jax.models.musicgen import decode_codes

        return jax.block_until_ready(decode_codes(self.mg.config, self.mg.params, codes))


class Transformers:
    """transformers as its documentation runs it: eager, with its key-value cache, without gradients."""

    def __init__(self, folder: Any, dtype: str = "float32"):
        import torch
        from transformers import MusicgenForConditionalGeneration

        self.torch, self.device = torch, "cuda" if torch.cuda.is_available() else "cpu"
        model = MusicgenForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, dtype))
        self.model = model.to(self.device).eval()
        self.pad = self.model.config.decoder.pad_token_id

    def _tensor(self, array: Any) -> Any:
        import numpy as np

        return self.torch.from_numpy(np.array(array)).to(self.device)

    def generate(self, ids: Any, frames: int) -> Any:
        with self.torch.inference_mode():
            ids = self._tensor(ids).long()
            return self.model.generate(
                input_ids=ids, attention_mask=self.torch.ones_like(ids), do_sample=True, guidance_scale=3.0, top_k=250,
                max_new_tokens=frames + self.model.config.decoder.num_codebooks - 1,
            ).float().cpu()  # fmt: skip

    def harvest(self, codes: Any, layer: int) -> Any:
        with self.torch.inference_mode():
            codes = self._tensor(codes).long()
            rows, books, frames = codes.shape
            columns = self.torch.full((rows, books, frames + 1), self.pad, device=self.device)
            for k in range(books):  # the delay pattern
                columns[:, k, k + 1 :] = codes[:, k, : frames - k]
            flat = columns.reshape(rows * books, -1)
            out = self.model.decoder(input_ids=flat, output_hidden_states=True, use_cache=False)
            return out.hidden_states[layer + 1].float().cpu()

    def encode(self, audio: Any) -> Any:
        with self.torch.inference_mode():
            return self.model.audio_encoder.encode(self._tensor(audio)[:, None]).audio_codes[0].cpu()

    def decode(self, codes: Any) -> Any:
        with self.torch.inference_mode():
            return self.model.audio_encoder.decode(self._tensor(codes).long()[None], [None]).audio_values.cpu()


ENGINES = {"musae_jax": Ours, "transformers": Transformers}


def load_engines(folder: Any, ours: Sequence[str], theirs: Sequence[str]) -> dict[tuple[str, str], Any]:
    """(engine, dtype) -> the checkpoint in `folder`, loaded in each of the dtypes."""
    asked = [("musae_jax", dtype) for dtype in ours] + [("transformers", dtype) for dtype in theirs]
    return {(name, dtype): ENGINES[name](folder, dtype) for name, dtype in asked}


def rows_of_pairs(name: str, config: dict[str, Any], rate: dict[tuple[str, str], float], unit: str) -> list[dict]:
    """A row for each dtype of ours beside each of transformers'; `rate` is keyed as `load_engines` is."""
    return [
        bench_row(name, config, mine, unit, peer, " ".join(whose), dtype=dtype)
        for (engine, dtype), mine in rate.items()
        if engine == "musae_jax"
        for whose, peer in rate.items()
        if whose[0] != "musae_jax"
    ]


def some_codes(rows: int, frames: int, seed: int = 0) -> Any:
    """Codes int [B, 4, T]."""
    import numpy as np

    return np.random.default_rng(seed).integers(2048, size=(rows, 4, frames))


def harvest_memory(engine: str, folder: str, layer: int, rows: int, frames: int) -> float:
    """What this process has held at most, in MiB, beyond the model, after two batches; on CUDA what the device has."""
    model = ENGINES[engine](folder)
    with open("/proc/self/clear_refs", "w", encoding="ascii") as refs:
        refs.write("5")  # the peak so far, that of loading, is forgotten
    before = held_memory("VmRSS")
    for seed in range(2):
        model.harvest(some_codes(rows, frames, seed), layer)
    on_device = accelerator_peak(getattr(model, "torch", None))
    return held_memory("VmHWM") - before if on_device is None else on_device


if __name__ == "__main__":
    print(harvest_memory(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])))
