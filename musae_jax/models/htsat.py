"""HTS-AT (Chen et al., arXiv 2202.00874), the audio tower of CLAP: a Swin transformer on a folded log-mel spectrogram,
as transformers' `ClapAudioModel` computes it without feature fusion. Channels are last."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from musae_jax.errors import MusaeError
from musae_jax.models.hf_config import read_fields
from musae_jax.models.roberta import LayerNorm
from musae_jax.models.t5 import ACTIVATIONS

EPSILON = 1e-5  # of the batch norm and of the norms outside the blocks, PyTorch's default
APART = -100.0  # added to the attention between places that only the cyclic shift has brought together
LARGEST, DEEPEST, STAGES = 4096, 256, 8  # no spectrogram is wider, no tower deeper; beyond, a file is damaged


@dataclasses.dataclass(frozen=True)
class HTSATConfig:
    """The attributes of transformers' `ClapAudioConfig` that matter when nothing is dropped out or fused."""

    window_size: int = 8  # of attention, in patches
    num_mel_bins: int = 64
    spec_size: int = 256  # side of the image, in pixels (one frame of one mel band each)
    hidden_act: str = "gelu"
    patch_size: int = 4
    patch_stride: int = 4
    hidden_size: int = 768
    depths: tuple[int, ...] = (2, 2, 6, 2)  # blocks of each stage
    num_attention_heads: tuple[int, ...] = (4, 8, 16, 32)  # of each stage
    patch_embeds_hidden_size: int = 96
    qkv_bias: bool = True
    mlp_ratio: float = 4.0
    layer_norm_eps: float = 1e-5

    @property
    def chunks(self) -> int:
        """Into how many pieces of time the spectrogram is cut, to be stacked to a square."""
        return self.spec_size // self.num_mel_bins

    @property
    def frames(self) -> int:
        """The frames T that the image holds; shorter spectrograms are stretched to it."""
        return self.spec_size * self.chunks

    @property
    def sides(self) -> tuple[int, ...]:
        """The patches along each side of the image, in each stage."""
        return tuple(self.spec_size // self.patch_stride // 2**stage for stage in range(len(self.depths)))

    @property
    def widths(self) -> tuple[int, ...]:
        """The channels C of each stage."""
        return tuple(self.patch_embeds_hidden_size * 2**stage for stage in range(len(self.depths)))

    @property
    def padding(self) -> int:
        """Pixels around the image, for patches larger than their stride."""
        return (self.patch_size - self.patch_stride) // 2

    @classmethod
    def from_hf(cls, values: dict) -> tuple["HTSATConfig", list[str]]:
        """The config in a Hugging Face dictionary, and the list of problems found."""
        ignored = ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate", "initializer_factor")
        ignored += ("projection_dim", "projection_hidden_act", "num_hidden_layers")  # the whole's, and len(depths)
        ignored += ("num_classes", "aff_block_r", "fusion_type")  # of heads and fusion
        ignored += ("projection_hidden_size", "enable_patch_fusion", "fusion_num_hidden_layers")  # in the first files
        fixed = {
            "model_type": ("clap_audio_model",),
            "enable_fusion": (False,),
            "patch_embed_input_channels": (1,),
            "flatten_patch_embeds": (True,),
            "enable_patch_layer_norm": (True,),
        }
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        for name in ("patch_size", "patch_stride"):
            if isinstance(pair := values.get(name), tuple) and len(pair) == 2 and pair[0] == pair[1]:
                values[name] = pair[0]
        known, problems = read_fields(cls, values, "audio_config", ignored, fixed)
        for name in ("depths", "num_attention_heads"):
            if any(type(number) is not int or number < 1 for number in known.get(name, ())):
                problems.append(f"audio_config.{name} is {known.pop(name)!r}, which are not numbers above zero")
        config = cls(**known)
        return config, problems + config.problems()

    def problems(self) -> list[str]:
        """What cannot be computed, by us or by transformers, a sentence each."""
        stages = len(self.depths)
        found = []
        if self.hidden_act not in ACTIVATIONS:
            found.append(f"audio_config.hidden_act is {self.hidden_act!r}, which is not supported")
        if not 1 <= stages == len(self.num_attention_heads) <= STAGES or sum(self.depths) > DEEPEST:
            return [*found, f"audio_config has depths {self.depths} for heads {self.num_attention_heads}"]
        if self.hidden_size != self.widths[-1]:
            found.append(
                f"audio_config.hidden_size is {self.hidden_size}, but the last stage is {self.widths[-1]} wide"
            )
        if any(width % heads for width, heads in zip(self.widths, self.num_attention_heads)):
            found.append(f"audio_config has heads {self.num_attention_heads} for stages of widths {self.widths}")
        if self.spec_size > LARGEST or self.spec_size % self.num_mel_bins:
            found.append(f"audio_config.spec_size is {self.spec_size}, no multiple of {self.num_mel_bins} mel bands")
            return found
        grid, rest = divmod(self.spec_size, self.patch_stride)
        made = (self.spec_size + 2 * self.padding - self.patch_size) // self.patch_stride + 1
        if rest or self.patch_size < self.patch_stride or made != grid or grid % 2 ** (stages - 1):
            found.append(
                f"audio_config cuts an image of {self.spec_size} into patches of {self.patch_size} every "
                f"{self.patch_stride}, which cannot be halved {stages - 1} times"
            )
            return found
        last = self.sides[-1]
        bands = last // self.chunks  # rows of patches for each piece of time
        if last < self.window_size or not bands or last % bands:
            found.append(
                f"audio_config leaves {last} patches a side to the last stage, too few for windows of "
                f"{self.window_size} and {self.chunks} pieces of time"
            )
        return found

    def to_hf(self) -> dict:
        """The dictionary that transformers reads back."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}
        stride = [self.patch_stride] * 2
        return {
            "model_type": "clap_audio_model",
            **values,
            "patch_stride": stride,
            "num_hidden_layers": len(self.depths),
        }


@functools.cache
def bicubic(length: int, wanted: int) -> np.ndarray:
    """The matrix float32 [wanted, length] that stretches a signal as PyTorch's bicubic interpolation with aligned
    corners does (Keys' kernel with a = −0.75, edges repeated), in its single precision."""
    a, one = np.float32(-0.75), np.float32(1)
    scale = np.float32(length - 1) / np.float32(max(1, wanted - 1))
    places = scale * np.arange(wanted, dtype=np.float32)
    before = np.floor(places).astype(int)
    t = places - before.astype(np.float32)

    def near(x: np.ndarray) -> np.ndarray:
        return ((a + 2) * x - (a + 3)) * x * x + one

    def far(x: np.ndarray) -> np.ndarray:
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    matrix = np.zeros((wanted, length), np.float32)
    for offset, weights in zip((-1, 0, 1, 2), (far(t + one), near(t), near(one - t), far(2 - t))):
        np.add.at(matrix, (np.arange(wanted), np.clip(before + offset, 0, length - 1)), weights)
    return matrix


@functools.cache
def relative_places(window: int) -> np.ndarray:
    """The row of the table of relative positions for every (query, key) pair of a window, int [W², W²]."""
    y, x = np.divmod(np.arange(window * window), window)
    return (y[:, None] - y + window - 1) * (2 * window - 1) + (x[:, None] - x + window - 1)


@functools.cache
def shift_mask(side: int, window: int, shift: int) -> np.ndarray:
    """What is added to the attention in each window of an image shifted cyclically, float32 [N, W², W²]."""
    place = np.arange(side)
    region = (place >= side - window).astype(int) + (place >= side - shift)  # 0, 1 or 2 along each side
    regions = partition((region[:, None] * 3 + region)[None, :, :, None], window)[0, :, :, 0]  # [N, W²]
    return np.where(regions[:, :, None] == regions[:, None, :], np.float32(0), np.float32(APART))


def partition(x: jax.Array | np.ndarray, window: int) -> jax.Array | np.ndarray:
    """An image [B, side, side, C] cut into N windows, [B, N, W², C]."""
    batch, side, _, channels = x.shape
    x = x.reshape(batch, side // window, window, side // window, window, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, window * window, channels)


def join(x: jax.Array, side: int) -> jax.Array:
    """The image of which these are the windows; the inverse of `partition`."""
    batch, _, area, channels = x.shape
    window = round(area**0.5)
    x = x.reshape(batch, side // window, side // window, window, window, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, side, side, channels)


class SwinBlock(nn.Module):
    """Attention inside windows, shifted by `shift` patches, and feed-forward: [B, side, side, C] to the same."""

    config: HTSATConfig
    heads: int
    shift: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, side, channels = self.config, x.shape[1], x.shape[-1]
        shift = 0 if side <= c.window_size else self.shift  # a single window has nothing to be shifted into
        h = LayerNorm(epsilon=c.layer_norm_eps, name="attention_norm")(x)
        extra = (0, -side % c.window_size)  # the last windows are completed with zeros, which are attended to
        h = jnp.roll(jnp.pad(h, ((0, 0), extra, extra, (0, 0))), (-shift, -shift), (1, 2))
        mask = shift_mask(h.shape[1], c.window_size, shift)[:, None] if shift else 0.0
        windows = self.attend(partition(h, c.window_size), mask)
        h = jnp.roll(join(windows, h.shape[1]), (shift, shift), (1, 2))[:, :side, :side]
        x = x + h
        h = LayerNorm(epsilon=c.layer_norm_eps, name="ffn_norm")(x)
        h = ACTIVATIONS[c.hidden_act](nn.Dense(int(c.mlp_ratio * channels), name="up")(h))
        return x + nn.Dense(channels, name="down")(h)

    def attend(self, x: jax.Array, mask: np.ndarray | float) -> jax.Array:  # [B, N, W², C], [N, 1, W², W²] or 0
        c, channels = self.config, x.shape[-1]
        width = channels // self.heads
        query, key, value = (
            nn.Dense(channels, use_bias=c.qkv_bias, name=name)(x).reshape(*x.shape[:3], self.heads, width)
            for name in ("query", "key", "value")
        )  # [B, N, W², H, d] each
        table = self.param("relative_bias", nn.initializers.normal(0.02), ((2 * c.window_size - 1) ** 2, self.heads))
        bias = jnp.transpose(table[relative_places(c.window_size)], (2, 0, 1)) + mask  # [(N,) H, W², W²]
        scores = jnp.einsum("bnqhd,bnkhd->bnhqk", query * width**-0.5, key) + bias
        mixed = jnp.einsum("bnhqk,bnkhd->bnqhd", jax.nn.softmax(scores, axis=-1), value)
        return nn.Dense(channels, name="out")(mixed.reshape(x.shape))


class PatchMerging(nn.Module):
    """Each square of four patches made into one, with twice the channels: [B, 2n, 2n, C] to [B, n, n, 2C]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        four = jnp.concatenate([x[:, row::2, col::2] for col in (0, 1) for row in (0, 1)], axis=-1)
        four = LayerNorm(epsilon=EPSILON, name="norm")(four)
        return nn.Dense(2 * x.shape[-1], use_bias=False, name="reduction")(four)


class BatchNorm(nn.Module):
    """Every mel band of [B, T, M] by the mean and variance of a corpus: statistics kept with the parameters, which get
    no gradient. Who trains a tower sets them once, from the corpus."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = x.shape[-1:]
        mean, var = self.param("mean", nn.initializers.zeros, shape), self.param("var", nn.initializers.ones, shape)
        scale, bias = self.param("scale", nn.initializers.ones, shape), self.param("bias", nn.initializers.zeros, shape)
        mean, var = jax.lax.stop_gradient((mean, var))
        return (x - mean) * jax.lax.rsqrt(var + EPSILON) * scale + bias


class HTSAT(nn.Module):
    """Log-mel spectrograms in dB, float32 [B, T, M], to one vector a clip, [B, hidden_size].

    Raises:
      MusaeError: the spectrogram has other bands than the tower, or more frames than its image holds.
    """

    config: HTSATConfig

    @nn.compact
    def __call__(self, mel: jax.Array) -> jax.Array:
        c = self.config
        batch, frames, bands = mel.shape
        if bands != c.num_mel_bins or not 1 <= frames <= c.frames:
            raise MusaeError(
                f"the spectrogram has {frames} frames of {bands} bands, but this model reads up to {c.frames} "
                f"frames of {c.num_mel_bins}; compute it with the model's own front end"
            )
        x = BatchNorm(name="batch_norm")(mel)
        if frames < c.frames:
            x = jnp.einsum("of,bfm->bom", bicubic(frames, c.frames), x, precision=jax.lax.Precision.HIGHEST)
        # The pieces of time are stacked, low frequencies first within each.
        x = x.reshape(batch, c.chunks, -1, bands).transpose(0, 1, 3, 2).reshape(batch, c.spec_size, c.spec_size, 1)
        patch, stride, padding = (c.patch_size,) * 2, (c.patch_stride,) * 2, ((c.padding,) * 2,) * 2
        x = nn.Conv(c.patch_embeds_hidden_size, patch, stride, padding, name="patches")(x)  # [B, side, side, C]
        x = LayerNorm(epsilon=EPSILON, name="patch_norm")(x)
        for stage, (depth, heads) in enumerate(zip(c.depths, c.num_attention_heads)):
            for block in range(depth):
                x = SwinBlock(c, heads, block % 2 * (c.window_size // 2), name=f"stage_{stage}_block_{block}")(x)
            if stage < len(c.depths) - 1:
                x = PatchMerging(name=f"merging_{stage}")(x)
        return jnp.mean(LayerNorm(epsilon=EPSILON, name="norm")(x), axis=(1, 2))
