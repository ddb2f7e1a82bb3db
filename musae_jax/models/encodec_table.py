"""EnCodec weights between Hugging Face tensor names and our parameters, one table read in both directions.

Published files carry weight norm, w = g·v/‖v‖, under one of two pairs of names; it is folded into plain kernels on the
way in. On the way out g = ‖w‖ and v = w. Keys here have no `audio_encoder.` prefix.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from musae_jax.models.encodec import EncodecConfig, Layer, decoder_layers, encoder_layers

# (g, v): the names torch writes since 2.0, and those of older files.
WEIGHT_NORMS = (("parametrizations.weight.original0", "parametrizations.weight.original1"), ("weight_g", "weight_v"))
# State of the training-time moving average: written for transformers' sake, not needed to run.
CODEBOOK_EXTRAS = ("embed_avg", "cluster_size", "inited")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One module: its Hugging Face key prefix, our parameter path, how its tensors change, and our kernel's shape."""

    prefix: str
    path: tuple[str, ...]
    kind: str  # "conv", "transposed" or "lstm"
    shape: tuple[int, ...]  # conv, transposed: [taps, D_in, D_out]; lstm: [layers, D]


def encodec_table(config: EncodecConfig) -> list[Entry]:
    """Every convolution and LSTM of both halves, in order."""
    encoder = _half_table(config, "encoder", encoder_layers(config), config.audio_channels)
    return encoder + _half_table(config, "decoder", decoder_layers(config), config.hidden_size)


def _half_table(config: EncodecConfig, half: str, layers: list[Layer], width: int) -> list[Entry]:
    entries = []
    for index, layer in enumerate(layers):
        prefix, path = f"{half}.layers.{index}", (half, layer.name)
        if layer.kind in ("conv", "transposed"):
            entries.append(Entry(f"{prefix}.conv", path, layer.kind, (layer.kernel, width, layer.features)))
            width = layer.features
        elif layer.kind == "lstm":
            entries.append(Entry(f"{prefix}.lstm", path, "lstm", (config.num_lstm_layers, width)))
        elif layer.kind == "residual":
            narrow, taps = width // config.compress, config.residual_kernel_size
            entries.append(Entry(f"{prefix}.block.1.conv", (*path, "narrow"), "conv", (taps, width, narrow)))
            entries.append(Entry(f"{prefix}.block.3.conv", (*path, "widen"), "conv", (1, narrow, width)))
            if config.use_conv_shortcut:
                entries.append(Entry(f"{prefix}.shortcut.conv", (*path, "shortcut"), "conv", (1, width, width)))
    return entries


# torch keeps Conv1d weights as [D_out, D_in, taps] and ConvTranspose1d weights as [D_in, D_out, taps].
def _torch_axes(kind: str) -> tuple[int, int, int]:
    return (2, 1, 0) if kind == "conv" else (2, 0, 1)


def _norm(v: np.ndarray) -> np.ndarray:
    # Both kinds normalise over all but dim 0, which for transposed convolutions is the input channels.
    return np.sqrt(np.sum(np.square(v, dtype=np.float64), axis=(1, 2), keepdims=True))


class _Reader:
    """Takes tensors out of a file by name, remembering which were used and what was wrong."""

    def __init__(self, tensors: Mapping[str, np.ndarray]) -> None:
        self.tensors, self.used, self.problems = tensors, set(), []

    def take(self, key: str, shape: tuple[int, ...]) -> np.ndarray:
        """The tensor as float64, or a noted problem and a zero that is not to be used (the shape may be absurd)."""
        if key not in self.tensors:
            self.problems.append(f"{key} is missing (expected shape {shape})")
            return np.zeros(())
        self.used.add(key)
        value = np.asarray(self.tensors[key])
        if value.shape != shape:
            self.problems.append(f"{key} has shape {value.shape}, expected {shape}")
            return np.zeros(())
        if not jnp.issubdtype(value.dtype, jnp.floating):
            self.problems.append(f"{key} holds {value.dtype}, expected floating point")
            return np.zeros(())
        value = value.astype(np.float64)
        if not np.isfinite(value).all():
            self.problems.append(f"{key} has values that are not finite")
        return value

    def kernel(self, prefix: str, shape: tuple[int, ...]) -> np.ndarray:
        """A convolution's weight in torch's layout, weight norm folded whichever way it is named."""
        for g_name, v_name in WEIGHT_NORMS:
            if f"{prefix}.{v_name}" in self.tensors or f"{prefix}.{g_name}" in self.tensors:
                g = self.take(f"{prefix}.{g_name}", (shape[0], 1, 1))
                v = self.take(f"{prefix}.{v_name}", shape)
                if self.problems:
                    return v
                norm = _norm(v)
                # A silent channel (g = 0, v = 0) is 0, not 0/0.
                return v * np.divide(g, norm, out=np.zeros_like(g), where=norm > 0)
        if f"{prefix}.weight" in self.tensors:  # already folded by whoever wrote the file
            return self.take(f"{prefix}.weight", shape)
        return self.take(f"{prefix}.{WEIGHT_NORMS[0][1]}", shape)


def encodec_from_hf(
    tensors: Mapping[str, np.ndarray], config: EncodecConfig
) -> tuple[dict[str, Any], set[str], list[str]]:
    """Hugging Face tensors -> (our params as float32 numpy arrays, the keys used, the problems as sentences).

    Missing, misshapen and non-finite tensors are problems, not exceptions, so that a caller can report all at once;
    with any problem the params are not to be used. Keys that are neither used nor expected are the caller's to refuse.
    """
    reader = _Reader(tensors)
    params: dict[str, Any] = {}
    for entry in encodec_table(config):
        leaf = params
        for name in entry.path:
            leaf = leaf.setdefault(name, {})
        if entry.kind == "lstm":
            layers, width = entry.shape
            for layer in range(layers):
                weights = [reader.take(f"{entry.prefix}.weight_{s}_l{layer}", (4 * width, width)) for s in ("ih", "hh")]
                biases = [reader.take(f"{entry.prefix}.bias_{s}_l{layer}", (4 * width,)) for s in ("ih", "hh")]
                if not reader.problems:  # with one only the list of them is wanted
                    leaf[f"input_{layer}"], leaf[f"recurrent_{layer}"] = (_float32(weight.T) for weight in weights)
                    leaf[f"bias_{layer}"] = _float32(biases[0] + biases[1])
            continue
        axes = _torch_axes(entry.kind)
        torch_shape = tuple(entry.shape[axis] for axis in np.argsort(axes))
        weight, bias = reader.kernel(entry.prefix, torch_shape), reader.take(f"{entry.prefix}.bias", (entry.shape[2],))
        if not reader.problems:
            leaf["kernel"], leaf["bias"] = _float32(weight.transpose(axes)), _float32(bias)
    codebooks = []
    for k in range(config.num_quantizers):
        prefix = f"quantizer.layers.{k}.codebook"
        codebooks.append(reader.take(f"{prefix}.embed", (config.codebook_size, config.hidden_size)))
        reader.used.update(key for name in CODEBOOK_EXTRAS if (key := f"{prefix}.{name}") in tensors)
    if not reader.problems:
        params["codebooks"] = _float32(np.stack(codebooks))
    return params, reader.used, reader.problems


def encodec_to_hf(params: Mapping[str, Any], config: EncodecConfig) -> dict[str, np.ndarray]:
    """Our params -> every tensor that `transformers.EncodecModel` has, float32, current weight-norm names.

    PyTorch's two LSTM biases come back as (our bias, zeros): the same function, not the same bytes as were read.
    """
    tensors: dict[str, np.ndarray] = {}
    for entry in encodec_table(config):
        leaf: Any = params
        for name in entry.path:
            leaf = leaf[name]
        if entry.kind == "lstm":
            for layer in range(entry.shape[0]):
                tensors[f"{entry.prefix}.weight_ih_l{layer}"] = _float32(np.asarray(leaf[f"input_{layer}"]).T)
                tensors[f"{entry.prefix}.weight_hh_l{layer}"] = _float32(np.asarray(leaf[f"recurrent_{layer}"]).T)
                bias = _float32(leaf[f"bias_{layer}"])
                tensors[f"{entry.prefix}.bias_ih_l{layer}"] = bias
                tensors[f"{entry.prefix}.bias_hh_l{layer}"] = np.zeros_like(bias)
            continue
        weight = _float32(np.asarray(leaf["kernel"]).transpose(np.argsort(_torch_axes(entry.kind))))
        tensors[f"{entry.prefix}.bias"] = _float32(leaf["bias"])
        tensors[f"{entry.prefix}.{WEIGHT_NORMS[0][0]}"] = _float32(_norm(weight))
        tensors[f"{entry.prefix}.{WEIGHT_NORMS[0][1]}"] = weight
    for k, codebook in enumerate(np.asarray(params["codebooks"])):
        prefix = f"quantizer.layers.{k}.codebook"
        tensors[f"{prefix}.embed"] = _float32(codebook)
        tensors[f"{prefix}.embed_avg"] = _float32(codebook.copy())
        tensors[f"{prefix}.cluster_size"] = np.ones(len(codebook), np.float32)
        tensors[f"{prefix}.inited"] = np.ones(1, np.float32)
    return tensors


def _float32(value: Any) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(value), dtype=np.float32)
