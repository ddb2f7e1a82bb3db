"""audiocraft's own configuration (the YAML text under `xp.cfg`) in our words, read as strictly as a `config.json`.

The names are those of audiocraft's `config/model`, `config/conditioner` and `models/builders.py`. Everything that says
how the model was trained is passed over; what changes what it computes and is not known is refused by name.
"""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import yaml

from musae_jax.errors import MusaeError
from musae_jax.models.chroma import HOP, WINDOW
from musae_jax.models.decoder import PREFIXED, DecoderConfig
from musae_jax.models.delay import codebook_delays
from musae_jax.models.encodec import EncodecConfig
from musae_jax.models.hf_config import read_fields
from musae_jax.models.melody import MelodyConfig

LONGEST = 1_000_000  # characters; real ones have twenty thousand
LONGEST_SEGMENT = 600  # seconds of music that a melody model was trained on at a time; the published ones 30
_INTERPOLATION = re.compile(r"\$\{([\w.]+)\}")


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """What the YAML beside a language model says: the decoder, the sound it was trained on (Hz, or None where unsaid),
    the name of its text encoder ("" where there is none), and the melody it takes (None where it takes none)."""

    decoder: DecoderConfig
    sampling_rate: int | None
    text_encoder: str
    melody: MelodyConfig | None


@dataclasses.dataclass(frozen=True)
class _Transformer:
    dim: int = 0
    num_heads: int = 0
    num_layers: int = 0
    n_q: int = 0
    card: int = 0
    hidden_scale: float = 4.0
    activation: str = "gelu"


_TRANSFORMER_TRAINING = (
    *("dropout", "attention_dropout", "emb_lr", "lr", "weight_decay", "custom", "memory_efficient", "checkpointing"),
    *("attention_as_float32", "weight_init", "depthwise_init", "zero_bias_init", "cross_attention", "two_step_cfg"),
    "q_modeling",
)
_TRANSFORMER_FIXED = {
    **dict.fromkeys(("bias_proj", "bias_ff", "bias_attn", "xpos", "qk_layer_norm", "qk_layer_norm_cross"), (False,)),
    **dict.fromkeys(("norm_first", "causal"), (True,)),
    **dict.fromkeys(("layer_scale", "past_context"), (None,)),
    "positional_embedding": ("sin",),
    "positional_scale": (1,),
    "max_period": (10_000,),
    "norm": ("layer_norm",),
    "kv_repeat": (1,),
}


@dataclasses.dataclass(frozen=True)
class _Seanet:
    dimension: int = 0
    n_filters: int = 0
    n_residual_layers: int = 1
    kernel_size: int = 7
    last_kernel_size: int = 7
    residual_kernel_size: int = 3
    dilation_base: int = 2
    pad_mode: str = "reflect"
    true_skip: bool = True
    compress: int = 2
    lstm: int = 0
    causal: bool = False
    trim_right_ratio: float = 1.0


_SEANET_FIXED = {
    "channels": (1,),
    "activation": ("ELU",),
    "activation_params": ({"alpha": 1.0},),
    "norm": ("weight_norm",),
    "norm_params": ({},),
    "disable_norm_outer_blocks": (0,),
    "final_activation": (None,),
}


@dataclasses.dataclass(frozen=True)
class _Chroma:
    sample_rate: int = 0
    n_chroma: int = 0


_CHROMA_TRAINING = ("match_len_on_eval", "eval_wavs", "n_eval_wavs", "cache_path")
_CHROMA_FIXED = {"radix2_exp": (WINDOW.bit_length() - 1,), "argmax": (True,)} | dict.fromkeys(
    ("nfft", "winlen", "winhop"), (None,)
)


class Tree:
    """The parsed YAML; its `${a.b}` are looked up where they are read, as OmegaConf does."""

    def __init__(self, text: Any, where: Path) -> None:
        if not isinstance(text, str) or len(text) > LONGEST:
            raise MusaeError(f"{where} has no YAML text under xp.cfg; export the model with audiocraft.utils.export")
        try:
            # A few aliases of aliases can stand for billions of values; audiocraft writes none.
            if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
                raise MusaeError(f"the xp.cfg of {where} has YAML aliases, which audiocraft does not write")
            self.root = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise MusaeError(f"the xp.cfg of {where} is not readable YAML ({reason}); export the model again") from None
        if not isinstance(self.root, dict):
            raise MusaeError(f"the xp.cfg of {where} is no mapping; export the model with audiocraft.utils.export")

    def block(self, *path: str) -> dict[str, Any]:
        """A mapping by its path; an empty one where there is none."""
        values = self.get(*path)
        if not isinstance(values, dict):
            return {}
        return {str(name): self._resolve(value) for name, value in values.items()}

    def get(self, *path: str) -> Any:
        """A value by its path, None where there is none."""
        value: Any = self.root
        for name in path:
            value = self._resolve(value.get(name)) if isinstance(value, dict) else None
        return value

    def _resolve(self, value: Any, depth: int = 0) -> Any:
        match = _INTERPOLATION.fullmatch(value) if isinstance(value, str) else None
        if match is None or depth > 8:
            return value
        target: Any = self.root
        for name in match[1].split("."):
            target = target.get(name) if isinstance(target, dict) else None
        return self._resolve(target, depth + 1)


def _missing(read: Any, where: str) -> list[str]:
    return [f"{where}.{name} is missing" for name, value in vars(read).items() if type(value) is int and value == 0]


def language_model(tree: Tree) -> tuple[LanguageModel, list[str]]:
    """The language model in a YAML, and what in it we cannot run."""
    known, problems = read_fields(
        _Transformer, tree.block("transformer_lm"), "transformer_lm", _TRANSFORMER_TRAINING, _TRANSFORMER_FIXED
    )
    lm = _Transformer(**known)
    problems += [] if problems else _missing(lm, "transformer_lm")
    if tree.get("lm_model") not in (None, "transformer_lm"):
        problems.append(f"lm_model is {tree.get('lm_model')!r} and only 'transformer_lm' is supported")
    stereo = tree.block("interleave_stereo_codebooks")
    channels = 2 if stereo.get("use") is True else 1
    if channels == 2 and stereo.get("per_timestep"):
        problems.append("interleave_stereo_codebooks.per_timestep is true and only false is supported")
    decoder = {
        "vocab_size": lm.card,
        "pad_token_id": lm.card,
        "bos_token_id": lm.card,
        "num_hidden_layers": lm.num_layers,
        "ffn_dim": int(lm.hidden_scale * lm.dim),
        "num_attention_heads": lm.num_heads,
        "activation_function": lm.activation,
        "hidden_size": lm.dim,
        "num_codebooks": lm.n_q,
        "audio_channels": channels,
    }
    config = DecoderConfig(**decoder)
    if not problems:
        config, problems = DecoderConfig.from_hf(decoder)
        if lm.dim % 2:
            problems.append(f"transformer_lm.dim is {lm.dim}, but audiocraft's positions want an even one")
        problems += _pattern(tree, lm.n_q, channels)
    melody, found = _melody(tree)
    if melody is not None:
        config = dataclasses.replace(config, model_type=PREFIXED)
    found += _conditioners(tree, melody is not None)
    rate = tree.get("sample_rate")
    name = tree.get("conditioners", "description", "t5", "name")
    rate = rate if isinstance(rate, int) else None
    return LanguageModel(config, rate, name if isinstance(name, str) else "", melody), problems + found


def _pattern(tree: Tree, codebooks: int, channels: int) -> list[str]:
    """What is wrong with the layout of the codebooks in time."""
    modeling = tree.get("codebooks_pattern", "modeling") or tree.get("transformer_lm", "q_modeling")
    if modeling != "delay":
        return [f"codebooks_pattern.modeling is {modeling!r} and only 'delay' is supported"]
    delay, problems = tree.block("codebooks_pattern", "delay"), []
    for name in ("flatten_first", "empty_initial"):
        if delay.get(name) not in (None, 0):
            problems.append(f"codebooks_pattern.delay.{name} is {delay[name]!r} and only 0 is supported")
    expected = codebook_delays(codebooks, channels).tolist()
    if delay.get("delays", list(range(codebooks))) != expected:
        problems.append(f"codebooks_pattern.delay.delays is {delay.get('delays')!r} and only {expected} is supported")
    return problems


def _melody(tree: Tree) -> tuple[MelodyConfig | None, list[str]]:
    """The melody that the model takes (None where it takes none), and what is wrong with it."""
    where = "conditioners.self_wav"
    if "self_wav" not in tree.block("conditioners"):
        return None, []
    if tree.get("conditioners", "self_wav", "model") != "chroma_stem":
        return MelodyConfig(), [f"{where} is not a chroma_stem"]
    block, where = tree.block("conditioners", "self_wav", "chroma_stem"), f"{where}.chroma_stem"
    known, problems = read_fields(_Chroma, block, where, _CHROMA_TRAINING, _CHROMA_FIXED)
    chroma = _Chroma(**known)
    problems += [] if problems else _missing(chroma, where)
    problems += [f"{where}.{name} is missing" for name in ("radix2_exp", "argmax") if name not in block]
    if not problems and chroma.sample_rate != tree.get("sample_rate"):
        problems.append(f"{where}.sample_rate is {chroma.sample_rate} and not the model's, {tree.get('sample_rate')!r}")
    seconds = tree.get("dataset", "segment_duration")
    if not isinstance(seconds, int | float) or not 0 < seconds <= LONGEST_SEGMENT:
        problems.append(f"dataset.segment_duration is {seconds!r}, not a number of seconds")
    if problems:
        return MelodyConfig(), problems
    return MelodyConfig(chroma.n_chroma, 1 + int(chroma.sample_rate * seconds) // HOP), []


def _conditioners(tree: Tree, melody: bool) -> list[str]:
    """What is wrong with how the text, and the melody if there is one, reach the model."""
    others = sorted(set(tree.block("conditioners")) - {"args", "description", "self_wav"})
    problems = [f"conditioners.{name} is a kind of conditioning that is not read from this layout" for name in others]
    if tree.get("conditioners", "description", "model") != "t5":
        problems.append("conditioners.description is not a t5")
    elif tree.get("conditioners", "description", "t5", "normalize_text"):
        problems.append("conditioners.description.t5.normalize_text is true and only false is supported")
    fuser = tree.block("fuser")
    cross, prepend = (fuser.get(name) or [] for name in ("cross", "prepend"))
    alone = not any(fuser.get(name) for name in ("sum", "input_interpolate"))
    both = (["self_wav", "description"], ["description", "self_wav"])  # the melody comes first in either order
    if melody and not (alone and prepend in both and not cross):
        problems.append("fuser does not prepend the melody and the description, and these alone")
    if not melody and not others and not (alone and cross == ["description"] and not prepend):
        problems.append("fuser does not bring the description, and it alone, to cross-attention")
    if fuser.get("cross_attention_pos_emb"):
        problems.append("fuser.cross_attention_pos_emb is true and only false is supported")
    return problems


def codec(tree: Tree, codebooks: int) -> tuple[EncodecConfig | None, int, list[str]]:
    """(the codec in a YAML with its first `codebooks` codebooks, how many it has, what in it we cannot run)."""
    sides = tree.block("seanet")
    decoder, encoder = tree.block("seanet", "decoder"), tree.block("seanet", "encoder")
    ratios = sides.pop("ratios", None)
    values = {name: value for name, value in sides.items() if name not in ("decoder", "encoder")}
    ignored = ("final_activation_params",)
    known, problems = read_fields(_Seanet, values | decoder, "seanet", ignored, _SEANET_FIXED)
    net = _Seanet(**known)
    problems += [] if problems else _missing(net, "seanet")
    for side, own in (("encoder", encoder), ("decoder", decoder)):
        odd = [name for name in own if values.get(name, own[name]) != own[name]]
        problems += [f"seanet.{side}.{name} is {own[name]!r} there and {values[name]!r} in seanet" for name in odd]
    whole = {"compression_model": "encodec", "encodec.autoencoder": "seanet", "encodec.quantizer": "rvq"}
    for name, expected in {**whole, "encodec.renormalize": False}.items():
        found = tree.get(*name.split("."))
        if found not in (None, expected):
            problems.append(f"{name} is {found!r} and only {expected!r} is supported")
    rate, bins, held = tree.get("encodec", "sample_rate"), tree.get("rvq", "bins"), tree.get("rvq", "n_q")
    for name, value in {"encodec.sample_rate": rate, "rvq.bins": bins, "rvq.n_q": held}.items():
        if type(value) is not int or value < 1:
            problems.append(f"{name} is {value!r}, not a number above zero")
    if not isinstance(ratios, list) or not all(type(ratio) is int and 0 < ratio < 4096 for ratio in ratios):
        problems.append(f"seanet.ratios is {ratios!r}, not a list of strides")
    if not problems and held < codebooks:
        problems.append(f"rvq.n_q is {held}, but the language model writes {codebooks} codebooks a channel")
    if problems:
        return None, 0, problems
    fields = {
        "sampling_rate": rate,
        "hidden_size": net.dimension,
        "num_filters": net.n_filters,
        "num_residual_layers": net.n_residual_layers,
        "upsampling_ratios": tuple(ratios),
        "kernel_size": net.kernel_size,
        "last_kernel_size": net.last_kernel_size,
        "residual_kernel_size": net.residual_kernel_size,
        "dilation_growth_rate": net.dilation_base,
        "use_causal_conv": net.causal,
        "pad_mode": net.pad_mode,
        "compress": net.compress,
        "num_lstm_layers": net.lstm,
        "trim_right_ratio": net.trim_right_ratio,
        "codebook_size": bins,
        "use_conv_shortcut": not net.true_skip,
    }
    try:
        return with_codebooks(EncodecConfig(**fields), codebooks), held, []
    except MusaeError as error:
        return None, held, [str(error)]


def with_codebooks(config: EncodecConfig, codebooks: int) -> EncodecConfig:
    """The codec with its first `codebooks` codebooks alone: their codes do not depend on those after them."""
    bandwidth = codebooks * config.frame_rate * config.codebook_nbits / 1000
    smaller = dataclasses.replace(config, target_bandwidths=(bandwidth,))
    if smaller.num_quantizers < codebooks:  # a division that rounded down
        smaller = dataclasses.replace(config, target_bandwidths=(math.nextafter(bandwidth, math.inf),))
    return smaller
