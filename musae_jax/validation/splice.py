"""What an SAE's error costs the model: predictions with the reconstruction in the place of the residual stream.

Teacher-forced and unconditional, as the activations were harvested. Beside the SAE stand two controls that know
nothing of the music: the residual replaced by zero, and by its mean.
"""

import functools
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musae_jax.errors import MusaeError
from musae_jax.files import read_json, write_json
from musae_jax.models.delay import delayed_targets
from musae_jax.models.edits import Edits, FunctionEdit
from musae_jax.models.musicgen import MusicGen, MusicGenConfig, forward
from musae_jax.sae.formats import load_sae
from musae_jax.sae.sae import SAE, SAEConfig, sae_decode, sae_encode
from musae_jax.sae.saebench import SPLICE
from musae_jax.sae.saelens import WEIGHTS

# What stands at the hook: is anything put there, and the shares of reconstruction and mean in it.
_PUT = {"clean": (0.0, 0.0, 0.0), "sae": (1.0, 1.0, 0.0), "zero": (1.0, 0.0, 0.0), "mean": (1.0, 0.0, 1.0)}
CONTROLS = ("zero", "mean")

Progress = Callable[[int, int, str], None]


def splice(
    mg: MusicGen,
    sae: SAE,
    layer: int,
    codes: np.ndarray,
    batch_size: int = 8,
    drop_start: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Cross-entropy and KL, in nats, over codes int [n, K, T] of clips the SAE was not trained on.

    With `drop_start` position 0 keeps its own residual, as the SAE was not trained on it. Only real frames count.
    Returns a JSON-able dict; "clean" is the model as it is, "sae" with the reconstruction at the hook, "zero" and
    "mean" with zero and the mean residual of these clips there:
      codebooks       for each of K: {"ce": {clean, sae, zero, mean}, "kl": {sae, zero, mean}, "delta_ce": likewise,
                      "loss_recovered": {zero, mean}}
      all             the same over all predicted codes
      clips, tokens   how many clips, and codes predicted in each of the four
      saebench        what SAEBench's core evaluation calls these numbers, its ablation being that to zero
    KL is from the clean model's predictions to the others'. delta_ce is CE − CE clean. loss_recovered is
    (CE control − CE sae) / (CE control − CE clean): 1 is the clean model, 0 no better than the control; null where the
    control costs nothing.

    Raises:
      MusaeError: the SAE is of another width than the model, or the layer or the codes do not fit the model.
    """
    width = mg.config.decoder.hidden_size
    if sae.config.d_in != width:
        raise MusaeError(
            f"d_in of the SAE is {sae.config.d_in}, but the residual stream of the model is {width} wide; use the model"
            " that the SAE was trained on"
        )
    codes = np.asarray(codes)
    if not len(codes):
        raise MusaeError("there are no clips to splice the SAE into; give codes [n, K, T] of at least one")
    first = int(drop_start)
    total, count = np.zeros(width), 0
    for part, real in _batches(codes, batch_size):
        tap = forward(mg.config, mg.params, part, taps=(layer,), logits=False).residuals[layer]
        total += np.asarray(tap, np.float64)[:real, first:].sum((0, 1))
        count += real * (tap.shape[1] - first)
    mean = (total / count).astype(np.float32)

    sums = {name: np.zeros((2, codes.shape[1])) for name in _PUT}  # CE, KL [K]
    predicted = np.zeros(codes.shape[1])
    for done, (part, real) in enumerate(_batches(codes, batch_size), start=1):
        clean = None
        for name, put in _PUT.items():
            logits = _spliced(mg.config, mg.params, sae.config, sae.params, layer, part, mean, np.float32(put), first)
            clean = logits if clean is None else clean
            nats, frames = _compare(logits, clean, part, np.arange(len(part)) < real, mg.config.audio_channels)
            sums[name] += np.asarray(nats, np.float64)
        predicted += np.asarray(frames, np.float64)
        if progress:
            progress(min(done * batch_size, len(codes)), len(codes), "spliced clips")
    per_codebook = [_figures({name: s[:, k] / predicted[k] for name, s in sums.items()}) for k in range(len(predicted))]
    everything = _figures({name: s.sum(1) / predicted.sum() for name, s in sums.items()})
    return {
        "codebooks": per_codebook,
        "all": everything,
        "clips": len(codes),
        "tokens": int(predicted.sum()),
        "saebench": _saebench(everything),
    }


def splice_folder(
    mg: MusicGen,
    folder: str | Path,
    layer: int,
    codes: np.ndarray,
    batch_size: int = 8,
    drop_start: bool = True,
    progress: Progress | None = None,
) -> None:
    """Writes splice.json into an SAE's folder, unless it holds the same measurement already."""
    path = Path(folder) / SPLICE
    weights = (Path(folder) / WEIGHTS).read_bytes()
    record = {
        "layer": layer,
        "sae_sha256": hashlib.sha256(weights).hexdigest(),
        "codes_sha256": hashlib.sha256(np.ascontiguousarray(codes, np.int32).tobytes()).hexdigest(),
        "drop_start": drop_start,
    }
    if path.exists() and read_json(path).get("record") == record:
        return
    measured = splice(mg, load_sae(folder), layer, codes, batch_size, drop_start, progress)
    write_json(path, {**measured, "record": record})


def _batches(codes: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """(codes of `size` clips, how many are real): the last part is filled up with copies, to keep one shape."""
    size = min(size, len(codes))
    for start in range(0, len(codes), size):
        part = codes[start : start + size]
        missing = size - len(part)
        yield np.concatenate([part, np.repeat(part[-1:], missing, 0)]), len(part)


def _put(config: SAEConfig, arrays: dict[str, Any], h: jax.Array) -> jax.Array:
    """The change [..., D] that leaves at the hook the chosen shares of reconstruction and mean."""
    x_hat = sae_decode(config, arrays["sae"], sae_encode(config, arrays["sae"], h))
    return arrays["shares"][0] * x_hat + arrays["shares"][1] * arrays["mean"] - h


@functools.partial(jax.jit, static_argnames=("config", "sae_config", "layer", "first"))
def _spliced(
    config: MusicGenConfig, params, sae_config: SAEConfig, sae_params, layer, codes, mean, put, first
) -> jax.Array:
    """Logits [B, K, P, V]. What is put there is data, so that the four variants are one compiled program."""
    gate = jnp.where(jnp.arange(codes.shape[-1] + 1) >= first, put[0], 0.0)  # [P]
    arrays = {"sae": sae_params, "mean": mean, "shares": put[1:]}
    edit = FunctionEdit(functools.partial(_put, sae_config), arrays, gate)
    return forward(config, params, codes, edits=Edits(functions={layer: edit})).logits


@functools.partial(jax.jit, static_argnames=("channels",))
def _compare(logits: jax.Array, clean: jax.Array, codes: jax.Array, real: jax.Array, channels: int) -> Any:
    """(sums of CE and of KL from `clean` [2, K], codes that count [K]) over the clips where `real` [B]."""
    targets, mask = delayed_targets(codes, channels)  # [B, K, P], [K, P]
    log_p, log_clean = jax.nn.log_softmax(logits), jax.nn.log_softmax(clean)
    ce = -jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0]  # [B, K, P]
    kl = jnp.sum(jnp.exp(log_clean) * (log_clean - log_p), -1)
    counts = mask & real[:, None, None]
    return jnp.stack([jnp.sum(jnp.where(counts, nats, 0.0), (0, 2)) for nats in (ce, kl)]), jnp.sum(counts, (0, 2))


def _figures(means: dict[str, np.ndarray]) -> dict[str, Any]:
    ce = {name: float(nats[0]) for name, nats in means.items()}
    changed = [name for name in means if name != "clean"]
    return {
        "ce": ce,
        "kl": {name: float(means[name][1]) for name in changed},
        "delta_ce": {name: ce[name] - ce["clean"] for name in changed},
        "loss_recovered": {name: _share(ce[name] - ce["sae"], ce[name] - ce["clean"]) for name in CONTROLS},
    }


def _saebench(figures: dict[str, Any]) -> dict[str, float | None]:
    ce, kl = figures["ce"], figures["kl"]
    return {
        "kl_div_score": _share(kl["zero"] - kl["sae"], kl["zero"]),
        "kl_div_with_ablation": kl["zero"],
        "kl_div_with_sae": kl["sae"],
        "ce_loss_score": figures["loss_recovered"]["zero"],
        "ce_loss_with_ablation": ce["zero"],
        "ce_loss_with_sae": ce["sae"],
        "ce_loss_without_sae": ce["clean"],
    }


def _share(above: float, below: float) -> float | None:
    return above / below if below > 0 else None
