"""EnCodec, the neural codec under MusicGen: waveform to residual-quantised codes and back.

The architecture is that of Défossez et al. 2022 ("High Fidelity Neural Audio Compression", arXiv 2210.13438) as
`transformers.EncodecModel` computes it. Channels are last, weight norm is folded into plain kernels, and the twelve or
so layers of each half are laid out as data (`encoder_layers`, `decoder_layers`), which the conversion table reads too.

    params = {"encoder": {...}, "decoder": {...}, "codebooks": [K, V, D]}
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from musae_jax.errors import MusaeError
from musae_jax.models.hf_config import GENERIC
from musae_jax.models.lstm import LSTM

# Codes are an argmin over near neighbours: TF32 or bf16 products would change them, and the codec is small anyway.
PRECISION = jax.lax.Precision.HIGHEST
PAD_MODES = {"reflect": "reflect", "constant": "constant", "replicate": "edge", "circular": "wrap"}


@dataclasses.dataclass(frozen=True)
class EncodecConfig:
    """The codec's static configuration; names, meanings and defaults are those of `transformers.EncodecConfig`."""

    target_bandwidths: tuple[float, ...] = (1.5, 3.0, 6.0, 12.0, 24.0)  # kbit/s; the last one sets the codebooks
    sampling_rate: int = 24_000  # Hz
    audio_channels: int = 1
    normalize: bool = False
    chunk_length_s: float | None = None
    overlap: float | None = None
    hidden_size: int = 128
    num_filters: int = 32
    num_residual_layers: int = 1
    upsampling_ratios: tuple[int, ...] = (8, 5, 4, 2)  # decoder order
    norm_type: str = "weight_norm"
    kernel_size: int = 7
    last_kernel_size: int = 7
    residual_kernel_size: int = 3
    dilation_growth_rate: int = 2
    use_causal_conv: bool = True
    pad_mode: str = "reflect"
    compress: int = 2
    num_lstm_layers: int = 2
    trim_right_ratio: float = 1.0
    codebook_size: int = 1024
    codebook_dim: int | None = None  # equals hidden_size: published codecs have no projection between the two
    use_conv_shortcut: bool = True

    def __post_init__(self) -> None:
        for name in ("target_bandwidths", "upsampling_ratios"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.codebook_dim is None:
            object.__setattr__(self, "codebook_dim", self.hidden_size)
        sizes = ("sampling_rate", "hidden_size", "num_filters", "kernel_size", "last_kernel_size")
        sizes += ("residual_kernel_size", "dilation_growth_rate", "compress", "num_lstm_layers")
        sizes += ("upsampling_ratios", "target_bandwidths")
        empty = [name for name in sizes if not (value := getattr(self, name)) or (np.asarray(value) <= 0).any()]
        large = [name for name in sizes if np.max(getattr(self, name), initial=0) > 2**24]
        counts = (self.num_residual_layers, self.num_lstm_layers, len(self.upsampling_ratios))
        refused = [
            *((True, name, getattr(self, name), "numbers above zero") for name in empty),
            *((True, name, getattr(self, name), "sizes of at most 2^24") for name in large),
            (self.compress > self.num_filters, "compress", self.compress, f"at most num_filters, {self.num_filters}"),
            (max(counts) > 16, "numbers of residual blocks, LSTM layers and ratios", counts, "at most 16 of each"),
            (self.normalize, "normalize", self.normalize, "False (loudness scales have no place in MusicGen's codes)"),
            (self.chunk_length_s is not None, "chunk_length_s", self.chunk_length_s, "null (whole clips, no chunks)"),
            (self.norm_type != "weight_norm", "norm_type", self.norm_type, "weight_norm"),
            (self.pad_mode not in PAD_MODES, "pad_mode", self.pad_mode, " or ".join(PAD_MODES)),
            (self.audio_channels not in (1, 2), "audio_channels", self.audio_channels, "1 or 2"),
            (self.codebook_dim != self.hidden_size, "codebook_dim", self.codebook_dim, str(self.hidden_size)),
            (
                not (self.use_causal_conv or self.trim_right_ratio == 1.0),
                "trim_right_ratio",
                self.trim_right_ratio,
                "1.0 unless use_causal_conv is true",
            ),
            (
                self.codebook_size < 2 or self.codebook_size & (self.codebook_size - 1) != 0,
                "codebook_size",
                self.codebook_size,
                "a power of two",
            ),
        ]
        for bad, name, found, expected in refused:
            if bad:
                raise MusaeError(
                    f"the codec's {name} is {found!r}, but this port expects {expected}; use another checkpoint"
                )
        if self.num_quantizers < 1:
            raise MusaeError(
                f"the codec's target_bandwidths end in {self.target_bandwidths[-1]} kbit/s, less than one codebook of "
                f"{self.codebook_nbits} bits at {self.frame_rate} Hz; raise the last bandwidth"
            )

    @property
    def hop_length(self) -> int:
        """Samples per frame."""
        return math.prod(self.upsampling_ratios)

    @property
    def frame_rate(self) -> int:
        """Frames per second, rounded up, as Hugging Face counts them."""
        return math.ceil(self.sampling_rate / self.hop_length)

    @property
    def codebook_nbits(self) -> int:
        """Bits per code."""
        return math.ceil(math.log2(self.codebook_size))

    @property
    def num_quantizers(self) -> int:
        """Codebooks K, derived from the largest bandwidth exactly as Hugging Face derives it."""
        return int(1000 * self.target_bandwidths[-1] // (self.frame_rate * self.codebook_nbits))

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> "EncodecConfig":
        """From the `audio_encoder` block of a config.json; an attribute we do not know is a `MusaeError` naming it."""
        if values.get("model_type", "encodec") != "encodec":
            raise MusaeError(
                f"the audio_encoder block of config.json has model_type {values['model_type']!r}, but MusicGen's codec "
                "is 'encodec'; use a checkpoint with an EnCodec codec"
            )
        fields = {field.name: field for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - set(fields) - GENERIC)
        if unknown:
            raise MusaeError(
                f"the audio_encoder block of config.json has attributes that musae_jax does not know: "
                f"{', '.join(unknown)}; use a checkpoint of the published EnCodec architecture"
            )
        known = {}
        for name in set(values) & set(fields):
            value, default = values[name], fields[name].default
            known[name] = value = tuple(value) if isinstance(value, list) else value
            kinds = (int, float) if isinstance(default, float) else (type(default),)
            wrong = not isinstance(value, kinds) or isinstance(value, bool) != isinstance(default, bool)
            parts = value if isinstance(value, tuple) else ()
            wrong = wrong or any(type(part) not in (int, float) or not math.isfinite(part) for part in parts)
            wrong = wrong or (name == "upsampling_ratios" and any(part != int(part) for part in parts))
            if default is not None and wrong:
                raise MusaeError(
                    f"audio_encoder.{name} in config.json is {value!r}, but a {type(default).__name__} is expected; "
                    "correct the file or use another checkpoint"
                )
        return cls(**known)

    def to_hf(self) -> dict[str, Any]:
        """The block that `transformers.EncodecConfig(**block)` reads; JSON types only."""
        block = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}
        return {"model_type": "encodec", "architectures": ["EncodecModel"], "dtype": "float32", **block}


@dataclasses.dataclass(frozen=True)
class Layer:
    """One entry of a half's layer list. Its position in the list is its number in Hugging Face key names."""

    kind: str  # "conv", "transposed", "residual", "lstm", "elu"
    name: str = ""  # our parameter name
    features: int = 0  # output channels
    kernel: int = 1
    stride: int = 1
    dilation: int = 1


def encoder_layers(config: EncodecConfig) -> list[Layer]:
    """The encoder in order: a convolution, (residual blocks, ELU, strided convolution) per ratio, LSTM, convolution."""
    width = config.num_filters
    layers = [Layer("conv", "first", width, config.kernel_size)]
    for stage, ratio in enumerate(reversed(config.upsampling_ratios)):
        for block in range(config.num_residual_layers):
            dilation = config.dilation_growth_rate**block
            layers.append(Layer("residual", f"residual_{stage}_{block}", width, dilation=dilation))
        width *= 2
        layers += [Layer("elu"), Layer("conv", f"down_{stage}", width, 2 * ratio, ratio)]
    layers += [Layer("lstm", "lstm", width), Layer("elu")]
    return [*layers, Layer("conv", "last", config.hidden_size, config.last_kernel_size)]


def decoder_layers(config: EncodecConfig) -> list[Layer]:
    """The encoder's mirror image: convolution, LSTM, (ELU, transposed convolution, residual blocks), convolution."""
    width = config.num_filters * 2 ** len(config.upsampling_ratios)
    layers = [Layer("conv", "first", width, config.kernel_size), Layer("lstm", "lstm", width)]
    for stage, ratio in enumerate(config.upsampling_ratios):
        width //= 2
        layers += [Layer("elu"), Layer("transposed", f"up_{stage}", width, 2 * ratio, ratio)]
        for block in range(config.num_residual_layers):
            dilation = config.dilation_growth_rate**block
            layers.append(Layer("residual", f"residual_{stage}_{block}", width, dilation=dilation))
    return [*layers, Layer("elu"), Layer("conv", "last", config.audio_channels, config.last_kernel_size)]


def pad_frames(x: jax.Array, left: int, right: int, mode: str) -> jax.Array:
    """Pads axis 1 of [B, T, D]. A reflection longer than the input reflects the input followed by zeros, as in HF."""
    if mode != "reflect":
        return jnp.pad(x, ((0, 0), (left, right), (0, 0)), PAD_MODES[mode])
    short = max(0, max(left, right) - x.shape[1] + 1)
    if short:
        x = jnp.pad(x, ((0, 0), (0, short), (0, 0)))
    end = x.shape[1]
    padded = jnp.concatenate([x[:, 1 : left + 1][:, ::-1], x, x[:, end - 1 - right : end - 1][:, ::-1]], axis=1)
    return padded[:, : padded.shape[1] - short]


def _convolve(x: jax.Array, kernel: jax.Array, stride: int = 1, dilation: int = 1) -> jax.Array:
    # Padding is done before, never here: XLA's CPU gradient of a padded convolution is 20 to 100 times slower. Products
    # (`x @ kernel`) for the 1-tap case are slower as well, because their gradients copy transposed activations.
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride,),
        padding="VALID",
        rhs_dilation=(dilation,),
        dimension_numbers=("NWC", "WIO", "NWC"),
        precision=PRECISION,
    )


class Conv(nn.Module):
    """A convolution padded to keep time: [B, T, D_in] -> [B, ceil(T / stride), features]."""

    config: EncodecConfig
    features: int
    kernel_size: int
    stride: int = 1
    dilation: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        total = (self.kernel_size - 1) * self.dilation + 1 - self.stride
        extra = -x.shape[1] % self.stride  # completes the last frame
        right = 0 if self.config.use_causal_conv else total // 2
        if total or extra:
            x = pad_frames(x, total - right, right + extra, self.config.pad_mode)
        return _convolve(x, kernel, self.stride, self.dilation) + bias


def _transposed_init(stride: int) -> Any:
    # Each output sample sums two of the 2·stride taps, so the fan-in is 2·D_in, not 2·stride·D_in.
    return nn.initializers.variance_scaling(float(stride), "fan_in", "truncated_normal")


class ConvTransposed(nn.Module):
    """A transposed convolution of kernel 2·stride, trimmed: [B, T, D_in] -> [B, T·stride, features].

    Each block of `stride` output samples hears two frames, through the two halves of the kernel. So it is an ordinary
    2-tap convolution from D_in to stride·features channels; XLA's gradients of the dilated form are slow on CPU.
    """

    config: EncodecConfig
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        stride, (batch, frames, width) = self.stride, x.shape
        kernel = self.param("kernel", _transposed_init(stride), (2 * stride, width, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        # Tap 0 of the 2-tap kernel is the frame before, which this block hears through the kernel's second half.
        taps = kernel.reshape(2, stride, width, self.features)[::-1].transpose(0, 2, 1, 3)
        blocks = _convolve(jnp.pad(x, ((0, 0), (1, 1), (0, 0))), taps.reshape(2, width, stride * self.features))
        samples = blocks.reshape(batch, (frames + 1) * stride, self.features)
        right = math.ceil(stride * self.config.trim_right_ratio) if self.config.use_causal_conv else stride // 2
        left = stride - right
        return samples[:, left : left + frames * stride] + bias


class Residual(nn.Module):
    """SEANet's residual block: ELU, narrowing dilated convolution, ELU, 1-tap convolution; [B, T, D] -> [B, T, D]."""

    config: EncodecConfig
    dilation: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config, width = self.config, x.shape[-1]
        kernel = config.residual_kernel_size
        h = Conv(config, width // config.compress, kernel, dilation=self.dilation, name="narrow")(nn.elu(x))
        h = Conv(config, width, 1, name="widen")(nn.elu(h))
        return h + (Conv(config, width, 1, name="shortcut")(x) if config.use_conv_shortcut else x)


def apply_layers(config: EncodecConfig, layers: list[Layer], x: jax.Array) -> jax.Array:
    """What a list of layers makes of x [B, T, D]; for use inside a module, whose parameters have the layers' names."""
    for layer in layers:
        if layer.kind == "elu":
            x = nn.elu(x)
        elif layer.kind == "conv":
            x = Conv(config, layer.features, layer.kernel, layer.stride, layer.dilation, name=layer.name)(x)
        elif layer.kind == "transposed":
            x = ConvTransposed(config, layer.features, layer.stride, name=layer.name)(x)
        elif layer.kind == "residual":
            x = Residual(config, layer.dilation, name=layer.name)(x)
        else:
            x, _ = LSTM(config.num_lstm_layers, name=layer.name)(x)
    return x


class EncodecEncoder(nn.Module):
    """Waveform to latents: [B, S, C_audio] -> [B, T, hidden_size], T = ceil(S / hop_length)."""

    config: EncodecConfig

    @nn.compact
    def __call__(self, audio: jax.Array) -> jax.Array:
        return apply_layers(self.config, encoder_layers(self.config), audio)


class EncodecDecoder(nn.Module):
    """Latents to waveform: [B, T, hidden_size] -> [B, T·hop_length, C_audio]."""

    config: EncodecConfig

    @nn.compact
    def __call__(self, latents: jax.Array) -> jax.Array:
        return apply_layers(self.config, decoder_layers(self.config), latents)


def quantize(codebooks: jax.Array, latents: jax.Array) -> jax.Array:
    """Residual vector quantisation: codebooks [K, V, D], latents [B, T, D] -> codes int32 [B, K, T].

    Codebook k takes the entry nearest (Euclid) to what the codebooks before it left over, so the first k rows are the
    codes at a lower bandwidth.
    """

    def step(residual: jax.Array, codebook: jax.Array) -> tuple[jax.Array, jax.Array]:
        products = jnp.matmul(residual, codebook.T, precision=PRECISION)  # [B, T, V]
        codes = jnp.argmax(products - 0.5 * jnp.sum(codebook**2, axis=-1), axis=-1).astype(jnp.int32)
        return residual - codebook[codes], codes

    _, codes = jax.lax.scan(step, latents, codebooks)  # [K, B, T]
    return codes.transpose(1, 0, 2)


def dequantize(codebooks: jax.Array, codes: jax.Array) -> jax.Array:
    """The sum of the chosen entries: codebooks [K, V, D], codes [B, k, T] with k <= K -> latents [B, T, D]."""
    return sum((codebooks[k][codes[:, k]] for k in range(codes.shape[1])), start=jnp.zeros((), codebooks.dtype))


def encode(config: EncodecConfig, params: Mapping[str, Any], audio: jax.Array) -> jax.Array:
    """Audio [B, S] (or [B, S, C_audio]) in -1..1 at `sampling_rate` -> codes int32 [B, K, T], T = ceil(S / hop_length).

    All K codebooks are used, where Hugging Face's default is the smallest of `target_bandwidths` (MusicGen has one).
    """
    latents = EncodecEncoder(config).apply({"params": params["encoder"]}, _channels_last(config, audio))
    return quantize(params["codebooks"], latents)


def decode(config: EncodecConfig, params: Mapping[str, Any], codes: jax.Array) -> jax.Array:
    """Codes [B, K, T] -> audio [B, T·hop_length], with a last axis of channels only where there are two."""
    audio = EncodecDecoder(config).apply({"params": params["decoder"]}, dequantize(params["codebooks"], codes))
    return audio[..., 0] if config.audio_channels == 1 else audio


def _channels_last(config: EncodecConfig, audio: jax.Array) -> jax.Array:
    if audio.ndim == 2 and config.audio_channels == 1:
        return audio[..., None]
    if audio.ndim == 3 and audio.shape[-1] == config.audio_channels:
        return audio
    expected = "[B, S]" if config.audio_channels == 1 else f"[B, S, {config.audio_channels}]"
    raise MusaeError(
        f"the codec was given audio of shape {audio.shape}, but it expects {expected}; mix or stack the channels"
    )


def encodec_shapes(config: EncodecConfig) -> dict[str, Any]:
    """The params' shapes, as a tree of `jax.ShapeDtypeStruct`; nothing is computed."""
    key, codebooks = jax.random.key(0), (config.num_quantizers, config.codebook_size, config.hidden_size)
    audio = jax.ShapeDtypeStruct((1, config.hop_length, config.audio_channels), jnp.float32)
    latents = jax.ShapeDtypeStruct((1, 1, config.hidden_size), jnp.float32)
    return {
        "encoder": jax.eval_shape(EncodecEncoder(config).init, key, audio)["params"],
        "decoder": jax.eval_shape(EncodecDecoder(config).init, key, latents)["params"],
        "codebooks": jax.ShapeDtypeStruct(codebooks, jnp.float32),
    }


def random_encodec(config: EncodecConfig, key: jax.Array) -> dict[str, Any]:
    """Random parameters: kernels by fan-in, biases zero, codebooks standard normal and halved with each level.

    The scales are those of the modules' own initialisers, but everything is one draw cut in pieces, because tracing
    some sixty draws takes XLA a hundred times longer than running them.
    """
    paths, treedef = jax.tree_util.tree_flatten_with_path(encodec_shapes(config))
    draws = np.asarray(jax.random.normal(key, (sum(math.prod(leaf.shape) for _, leaf in paths),)))
    pieces = np.split(draws, np.cumsum([math.prod(leaf.shape) for _, leaf in paths])[:-1])
    leaves = []
    for (path, leaf), piece in zip(paths, pieces, strict=True):
        names = [str(part.key) for part in path]
        leaves.append(jnp.asarray(piece.reshape(leaf.shape) * _random_scale(names, leaf.shape), jnp.float32))
    return jax.tree.unflatten(treedef, leaves)


def _random_scale(names: list[str], shape: tuple[int, ...]) -> Any:
    if names == ["codebooks"]:
        return 0.5 ** np.arange(shape[0])[:, None, None]
    if "lstm" in names:  # the deviation of PyTorch's uniform ±1/√D
        return (3 * shape[-1] // 4) ** -0.5
    if names[-1] == "bias":
        return 0.0
    taps = 2 if names[-2].startswith("up_") else shape[0]
    return (taps * shape[1]) ** -0.5
