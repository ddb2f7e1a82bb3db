"""A judge that hears audio only, and says how likely each concept is.

It never sees activations, codes or prompts: log-mel, onset and chroma statistics pooled over a clip, standardised, and
one logistic regression per concept (one softmax per family when exactly one of its concepts always holds). It is fitted
on rendered music with known truth and used on generated music: did the prompt, or the steering, do what it says?

Convex, full batch, started from zero: the same clips give the same judge.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import librosa
import numpy as np
import scipy.optimize
from safetensors import safe_open
from safetensors.numpy import save_file

from musae_jax.errors import MusaeError
from musae_jax.files import atomic_path
from musae_jax.labels.auroc import auroc
from musae_jax.labels.descriptors import key_profiles
from musae_jax.labels.spectra import CHROMA_WINDOW, chroma_filter

RATE = 16000  # Hz; audio at other rates is resampled by the caller's `sampling_rate`
HOP = 320  # samples: 50 frames a second
WINDOW = 1024  # samples
MELS = 64
FLOOR = 1e-4  # added to mel power: what a codec leaves in the silences, 70 dB below full scale, is not to be heard
LAGS = 100  # frames: onset autocorrelation up to 2 s
BATCH = 16  # clips heard at a time
FOLDS = 5
CEPSTRA = 20
PARTS = {  # of what is heard, and how many statistics each has
    "quantiles": 3 * MELS, "mean": MELS, "deviation": MELS, "shape": MELS, "shape deviation": MELS, "loud shape": MELS,
    "rise": MELS, "fall": MELS, "greatest rise": MELS, "cepstra": 2 * CEPSTRA, "loudness": 5, "onsets": 4,
    "rhythm": LAGS - 1, "chroma": 12, "sorted chroma": 12, "keys": 24, "modes": 3,
}  # fmt: skip
PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0)  # tried by cross-validation; multiplies |w|²/2 beside the mean log-likelihood


@flax.struct.dataclass
class Judge:
    """M pooled statistics, C concepts. `accuracy` and `auroc` were measured on tracks that the fit did not see."""

    mean: jax.Array  # [M]
    scale: jax.Array  # [M]
    weights: jax.Array  # [M, C]
    bias: jax.Array  # [C]
    family: jax.Array  # int32 [C]; concepts of one softmax share a number, -1 stands alone
    accuracy: jax.Array  # [C] share of held-out clips judged rightly (a softmax: its most likely concept is taken)
    balanced: jax.Array  # [C] mean of the accuracies on clips with and without the concept; chance is ½
    auroc: jax.Array  # [C]
    base_rate: jax.Array  # [C] share of clips with the concept
    names: tuple[str, ...] = flax.struct.field(pytree_node=False)
    penalty: float = flax.struct.field(pytree_node=False)


@partial(jax.jit, static_argnames=("window", "hop"))
def _power(audio: jax.Array, window: int, hop: int) -> jax.Array:
    """Power spectrogram, frames centred. [B, S] -> [B, 1 + S // hop, bins]"""
    padded = jnp.pad(audio, ((0, 0), (window // 2, window // 2)))
    frames = 1 + audio.shape[1] // hop
    places = hop * np.arange(frames)[:, None] + np.arange(window)
    return jnp.abs(jnp.fft.rfft(padded[:, places] * np.hanning(window + 1)[:-1].astype(np.float32))) ** 2


@jax.jit
def hear(audio: jax.Array) -> jax.Array:
    """Pooled statistics of clips at 16 kHz, in the order of `PARTS`. [B, S] -> float32 [B, M]

    Per mel band: mean, standard deviation and percentiles of the level, mean rise and fall, the same for the level
    relative to the whole frame (timbre without loudness), and the shape over loud frames only. Per clip: loudness
    statistics, cepstral deviations, autocorrelation of the onset strength, sorted and plain chroma, and the fit of the
    24 keys.
    """
    audio = jnp.pad(audio.astype(jnp.float32), ((0, 0), (0, max(0, CHROMA_WINDOW - audio.shape[1]))))
    mel_filter = librosa.filters.mel(sr=RATE, n_fft=WINDOW, n_mels=MELS).T  # [bins, mels]
    mel = 10 * jnp.log10(_power(audio, WINDOW, HOP) @ mel_filter + FLOOR)  # [B, T, mels] dB
    loudness = mel.mean(2, keepdims=True)
    shape = mel - loudness  # timbre without loudness
    steps = jnp.diff(mel, axis=1)
    rise, fall = jnp.maximum(steps, 0), jnp.maximum(-steps, 0)
    onset = rise.mean(2)  # [B, T-1]
    peaks = jnp.quantile(loudness, 0.6, axis=1, keepdims=True)
    loud = (loudness >= peaks).astype(jnp.float32)
    loud_shape = (shape * loud).sum(1) / loud.sum(1)  # [B, mels]
    cosine = _cosines(MELS, CEPSTRA)
    cepstra = shape @ cosine  # [B, T, 20]

    centred = onset - onset.mean(1, keepdims=True)
    spectrum = jnp.abs(jnp.fft.rfft(centred, 2 * centred.shape[1])) ** 2
    correlation = jnp.fft.irfft(spectrum)[:, : min(LAGS, centred.shape[1])]
    correlation = jnp.pad(correlation, ((0, 0), (0, LAGS - correlation.shape[1])))
    correlation = correlation / (correlation[:, :1] + 1e-6)

    chroma = jnp.sqrt(_power(audio, CHROMA_WINDOW, 4 * HOP)) @ chroma_filter().T.astype(np.float32)  # [B, T', 12]
    tones = chroma.mean(1)
    tones = tones / (tones.sum(1, keepdims=True) + 1e-6)
    standard = (tones - tones.mean(1, keepdims=True)) / (tones.std(1, keepdims=True) + 1e-6)
    keys = standard @ key_profiles().T.astype(np.float32) / 12  # [B, 24]
    modes = jnp.stack([keys[:, :12].max(1), keys[:, 12:].max(1), keys[:, :12].max(1) - keys[:, 12:].max(1)], 1)
    level = loudness[..., 0]  # [B, T]
    pooled = [
        *(jnp.quantile(mel, q, axis=1) for q in (0.1, 0.5, 0.9)),
        mel.mean(1), mel.std(1), shape.mean(1), shape.std(1), loud_shape, rise.mean(1), fall.mean(1),
        rise.max(1), cepstra.std(1), jnp.abs(jnp.diff(cepstra, axis=1)).mean(1),
        jnp.stack([level.mean(1), level.std(1), *(jnp.quantile(level, q, axis=1) for q in (0.05, 0.5, 0.95))], 1),
        jnp.stack([onset.mean(1), onset.std(1), onset.max(1), (onset > 2 * onset.mean(1, keepdims=True)).mean(1)], 1),
        correlation[:, 1:], tones, jnp.sort(tones, axis=1), keys, modes,
    ]  # fmt: skip
    return jnp.concatenate(pooled, 1)


def columns(*parts: str) -> np.ndarray:
    """Where the statistics of some of `PARTS` are in what `hear` returns, ascending: a judge that listens to nothing
    else cannot be misled by the rest."""
    ends = dict(zip(PARTS, np.cumsum(list(PARTS.values()))))
    return np.sort(np.concatenate([np.arange(ends[part] - PARTS[part], ends[part]) for part in parts]))


def _cosines(size: int, count: int) -> np.ndarray:
    """Cosines 1..count of a DCT-II over `size` points. [size, count]"""
    points = (np.arange(size)[:, None] + 0.5) * np.arange(1, count + 1)
    return (np.cos(np.pi * points / size) * np.sqrt(2 / size)).astype(np.float32)


def hear_clips(audio: Any, sampling_rate: int = RATE) -> np.ndarray:
    """`hear` in batches of one compiled shape; `audio` is [n, S] or a sequence of equally long clips. -> [n, M]"""
    rows = []
    for start in range(0, len(audio), BATCH):
        batch = np.stack([np.asarray(a, np.float32) for a in audio[start : start + BATCH]])
        if sampling_rate != RATE:
            import soxr

            batch = np.stack([soxr.resample(a, sampling_rate, RATE) for a in batch])
        count = len(batch)
        batch = np.pad(batch, ((0, BATCH - count), (0, 0)))
        rows.append(np.asarray(hear(batch))[:count])
    return np.concatenate(rows)


def fit_judge(
    audio: Any,
    truth: np.ndarray,
    names: Sequence[str],
    families: Sequence[str] | None = None,
    tracks: Sequence[str] | None = None,
    sampling_rate: int = RATE,
    penalties: Sequence[float] = PENALTIES,
    statistics: np.ndarray | None = None,
) -> Judge:
    """A judge of C concepts from n clips of audio [n, S] with truth bool [n, C].

    The penalty is the one of `penalties` with the best held-out likelihood over five folds by track, in which the
    reported accuracies are measured too; the final weights are fitted on all clips. `families` (one per concept) lets
    concepts that exclude each other share a softmax. `statistics` [n, M] from `hear_clips` spares hearing twice.
    """
    truth = np.asarray(truth, bool)
    if truth.ndim != 2 or truth.shape != (len(audio if statistics is None else statistics), len(names)):
        raise ValueError(f"truth has shape {truth.shape}, expected {(len(audio), len(names))}")
    heard = hear_clips(audio, sampling_rate) if statistics is None else statistics
    family = exclusive_families(truth, families)
    folds = _folds(tracks if tracks is not None else [str(n) for n in range(len(truth))])
    if folds.max() < 1:
        raise MusaeError(
            f"a judge needs clips from at least 2 tracks, found {len(set(tracks or ()))}; compose more clips"
        )
    predictions = np.empty((len(penalties), *truth.shape))
    for number in range(folds.max() + 1):
        inside, outside = folds != number, folds == number
        mean, scale = _standard(heard[inside])
        start = None
        for place in np.argsort(penalties)[::-1]:  # from stiff to loose, each started where the last ended
            weights, bias = start = _fit((heard[inside] - mean) / scale, truth[inside], family, penalties[place], start)
            predictions[place, outside] = _probabilities((heard[outside] - mean) / scale @ weights + bias, family)
    clipped = np.clip(predictions, 1e-6, 1 - 1e-6)
    likelihood = np.where(truth, np.log(clipped), np.log1p(-clipped)).mean((1, 2))
    best = int(likelihood.argmax())
    mean, scale = _standard(heard)
    weights, bias = _fit((heard - mean) / scale, truth, family, penalties[best], None)
    return Judge(
        *(jnp.asarray(a, jnp.float32) for a in (mean, scale, weights, bias)),
        family=jnp.asarray(family, jnp.int32),
        **{k: jnp.asarray(v, jnp.float32) for k, v in measure_judgement(predictions[best], truth, family).items()},
        base_rate=jnp.asarray(truth.mean(0), jnp.float32),
        names=tuple(names),
        penalty=float(penalties[best]),
    )


def judge_probabilities(judge: Judge, audio: Any, sampling_rate: int = RATE) -> np.ndarray:
    """Probability of each concept in each clip. audio [n, S] -> [n, C]"""
    return judge_statistics(judge, hear_clips(audio, sampling_rate))


@jax.jit
def judge_statistics(judge: Judge, statistics: jax.Array) -> jax.Array:
    """`judge_probabilities` of what `hear` returned; pure. [n, M] -> [n, C]"""
    logits = (statistics - judge.mean) / judge.scale @ judge.weights + judge.bias
    same = (judge.family[:, None] == judge.family) & (judge.family >= 0)[:, None]  # [C, C]
    # -inf where another family: the softmax of a family, computed for all families at once
    others = jnp.where(same, logits[:, None, :], -jnp.inf)  # [n, C, C]
    softmax = jnp.exp(logits - jax.nn.logsumexp(jnp.where(same.any(1)[:, None], others, 0.0), axis=2))
    return jnp.where(judge.family >= 0, softmax, jax.nn.sigmoid(logits))


def exclusive_families(truth: np.ndarray, families: Sequence[str] | None) -> np.ndarray:
    """Number of the softmax that each concept belongs to, -1 for a concept of its own. int [C]

    A family is a softmax when exactly one of its concepts holds in every clip.
    """
    result = np.full(truth.shape[1], -1)
    for number, name in enumerate(dict.fromkeys(families or ())):
        members = np.asarray([f == name for f in families])
        if members.sum() > 1 and (truth[:, members].sum(1) == 1).all():
            result[members] = number
    return result


def measure_judgement(probabilities: np.ndarray, truth: np.ndarray, family: np.ndarray) -> dict[str, np.ndarray]:
    """`accuracy`, `balanced` accuracy and `auroc` of probabilities [n, C]; arrays [C]. NaN-free: no evidence is ½."""
    decided = probabilities > 0.5
    for number in set(family[family >= 0].tolist()):
        members = np.flatnonzero(family == number)
        decided[:, members] = np.arange(len(members)) == probabilities[:, members].argmax(1)[:, None]
    right = decided == truth
    sides = [np.where(s.any(0), (right & s).sum(0) / np.maximum(s.sum(0), 1), 0.5) for s in (truth, ~truth)]
    curve = np.asarray([auroc(probabilities[:, [c]], truth[:, [c]])[0, 0] for c in range(truth.shape[1])])
    return {"accuracy": right.mean(0), "balanced": (sides[0] + sides[1]) / 2, "auroc": np.nan_to_num(curve, nan=0.5)}


def judge_rows(judge: Judge) -> list[dict[str, Any]]:
    """One row per concept for RUN/validation/judge.jsonl: how well the judge itself does on unseen tracks."""
    return [
        {
            "concept": name,
            "accuracy": round(float(judge.accuracy[c]), 4),
            "balanced_accuracy": round(float(judge.balanced[c]), 4),
            "auroc": round(float(judge.auroc[c]), 4),
            "base_rate": round(float(judge.base_rate[c]), 4),
            "softmax": bool(judge.family[c] >= 0),
        }
        for c, name in enumerate(judge.names)
    ]


_ARRAYS = ("mean", "scale", "weights", "bias", "family", "accuracy", "balanced", "auroc", "base_rate")


def save_judge(path: str | Path, judge: Judge) -> None:
    """One safetensors file."""
    with atomic_path(path) as temporary:
        arrays = {k: np.ascontiguousarray(getattr(judge, k)) for k in _ARRAYS}
        save_file(arrays, temporary, metadata={"names": "\n".join(judge.names), "penalty": repr(judge.penalty)})


def load_judge(path: str | Path) -> Judge:
    """Reads what `save_judge` wrote."""
    if not Path(path).exists():
        raise MusaeError(f"{path} is missing; fit a judge on music with known truth first")
    with safe_open(path, "np") as file:
        note = file.metadata()
        arrays = {k: jnp.asarray(file.get_tensor(k)) for k in _ARRAYS}
    return Judge(**arrays, names=tuple(note["names"].split("\n")), penalty=float(note["penalty"]))


def _standard(heard: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return heard.mean(0), np.maximum(heard.std(0), 1e-3)


def _folds(tracks: Sequence[str]) -> np.ndarray:
    """Fold of each clip: tracks dealt in turn in the order of first appearance, shuffled by a fixed seed."""
    unique = list(dict.fromkeys(tracks))
    dealt = dict(zip(np.random.default_rng(0).permutation(len(unique)).tolist(), np.arange(len(unique)) % FOLDS))
    place: Mapping[str, int] = {t: int(dealt[n]) for n, t in enumerate(unique)}
    return np.asarray([place[t] for t in tracks])


def _probabilities(logits: np.ndarray, family: np.ndarray) -> np.ndarray:
    result = 1 / (1 + np.exp(-np.clip(logits, -50, 50)))
    for number in set(family[family >= 0].tolist()):
        members = family == number
        shifted = np.exp(logits[:, members] - logits[:, members].max(1, keepdims=True))
        result[:, members] = shifted / shifted.sum(1, keepdims=True)
    return result


def _fit(
    x: np.ndarray, truth: np.ndarray, family: np.ndarray, penalty: float, start: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Minimises mean negative log-likelihood + penalty · |w|²/2 by L-BFGS. x [n, M], truth [n, C] -> [M, C], [C]

    Softmax and sigmoid have the same gradient in the logits, p − y, so one objective serves both. With fewer clips than
    statistics the solution lies in the span of the clips, and is sought there.
    """
    basis = np.linalg.svd(x, full_matrices=False)[2].T if len(x) < x.shape[1] else None  # [M, n]
    if basis is not None:
        x = x @ basis
        start = None if start is None else (basis.T @ start[0], start[1])
    x = np.concatenate([x, np.ones((len(x), 1))], 1).astype(np.float64)
    target = truth.astype(np.float64)
    ridge = np.full((x.shape[1], 1), penalty)
    ridge[-1] = 1e-6  # the bias is free, but for concepts that never occur
    shape = (x.shape[1], truth.shape[1])

    def objective(flat):
        weights = flat.reshape(shape)
        logits = x @ weights
        probabilities = _probabilities(logits, family)
        losses = np.where(family >= 0, -target * np.log(np.maximum(probabilities, 1e-300)), 0.0)
        losses += np.where(family < 0, np.logaddexp(0, logits) - target * logits, 0.0)
        gradient = x.T @ (probabilities - target) / len(x) + ridge * weights
        return losses.sum() / len(x) + 0.5 * (ridge * weights**2).sum(), gradient.reshape(-1)

    first = np.zeros(shape) if start is None else np.concatenate([start[0], start[1][None]])
    found = scipy.optimize.minimize(objective, first.reshape(-1), jac=True, method="L-BFGS-B", options={"maxiter": 100})
    weights = found.x.reshape(shape)
    return (weights[:-1] if basis is None else basis @ weights[:-1]), weights[-1]
