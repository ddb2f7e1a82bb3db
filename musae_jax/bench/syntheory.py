"""What a linear probe reads of SynTheory's seven concept sets, layer by layer, beside published figures of MusicGen.

The clip's mean residual, a linear probe fitted on 70 % of the examples and measured on the rest, as published: accuracy
of the class, or for tempos R² where the probe was fitted on the middle 70 % of tempi and has to extrapolate. The same
architecture with random weights stands beside.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from musae_jax.activations.residuals import check_layers, hook_name
from musae_jax.bench.rows import bench_row
from musae_jax.compose.syntheory import LEAD_PROGRAMS, SETS, Example, render_example
from musae_jax.errors import MusaeError
from musae_jax.models.musicgen import MusicGen, encode_audio, forward
from musae_jax.run import untrained
from musae_jax.validation.probe import fit_probe, told_by_probe

# Of MusicGen-large, mean-pooled (MusicRFM, ICLR 2026, table 1): linear, and SynTheory's probe with a hidden layer.
PUBLISHED_LINEAR = {
    "notes": 0.761, "intervals": 0.618, "scales": 0.158, "chords": 0.834, "chord progressions": 0.725,
    "time signatures": 0.729, "tempos": 0.972,
}  # fmt: skip
PUBLISHED_HIDDEN = {
    "notes": 0.866, "intervals": 0.972, "scales": 0.905, "chords": 0.989, "chord progressions": 0.901,
    "time signatures": 0.905, "tempos": 0.965,
}  # fmt: skip
TRAIN = 0.7
FEWEST = 10  # examples of a set
BATCH = 16
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)

Progress = Callable[[int, int, str], None]


def bench_syntheory(
    model: MusicGen,
    name: str,
    sets: Sequence[str] = tuple(SETS),
    layers: Sequence[int] = (),
    programs: Sequence[int] = LEAD_PROGRAMS,
    examples: int | None = None,
    seeds: int = 3,
    peak: float = 1.0,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Rows `syntheory/SET/LAYER` (see `bench_row`): the values are of `seeds` splits, the peer is published.

    Besides, rows have `random_weights`, the mean of the same figure with random weights, `chance`, and `hidden`, of the
    published probe with a hidden layer. `layers` are all by default; `programs` are the General MIDI programs that play
    the tonal sets; at most `examples` of a set are taken, drawn at random; their samples peak at `peak`.

    Raises:
      MusaeError: a set or layer does not exist, `peak` is no level, or there are too few examples or seeds.
    """
    if seeds < 1:
        raise MusaeError(f"--seeds is {seeds}; it must be 1 or more")
    if examples is not None and examples < FEWEST:
        raise MusaeError(f"--examples is {examples}; a probe needs {FEWEST} or more")
    if not 0 < peak <= 1:
        raise MusaeError(f"--peak is {peak}; it must be above 0 and at most 1")
    if unknown := [one for one in sets if one not in SETS]:
        raise MusaeError(f"there is no concept set {unknown[0]!r}; the sets are {', '.join(SETS)}")
    layers = check_layers(model, layers or range(model.config.decoder.num_hidden_layers))
    models = (model, untrained(model, 0))
    rows = []
    for at, one in enumerate(sets):
        chosen = _chosen(SETS[one].examples(programs), examples)
        labels = np.asarray([example.labels[SETS[one].target] for example in chosen])
        chance = 0.0 if one == "tempos" else 1 / SETS[one].classes
        pooled = _pooled(models, chosen, layers, peak)  # [2, n, L, D]
        config = {"model": name, "programs": len(programs), "examples": len(chosen), "seeds": seeds, "peak": peak}
        for place, layer in enumerate(layers):
            ours, random = (
                [_measure(x[:, place], labels, one == "tempos", seed) for seed in range(seeds)] for x in pooled
            )
            row_name, unit = f"syntheory/{one}/{hook_name(layer)}", "R²" if one == "tempos" else "accuracy"
            row = bench_row(row_name, config, ours, unit, PUBLISHED_LINEAR[one], "MusicGen-large")
            row |= {"random_weights": float(np.mean(random)), "chance": chance, "hidden": PUBLISHED_HIDDEN[one]}
            rows.append(row)
        if progress:
            progress(at + 1, len(sets), "concept sets")
    return rows


def _chosen(every: Iterable[Example], most: int | None) -> list[Example]:
    every = list(every)
    if most is None or most >= len(every):
        return every
    return [every[i] for i in np.sort(np.random.default_rng(0).choice(len(every), most, replace=False))]


def _pooled(
    models: Sequence[MusicGen], examples: Sequence[Example], layers: tuple[int, ...], peak: float
) -> np.ndarray:
    """Mean residuals over the frames of each example, for each model: float32 [M, n, L, D]."""
    config = models[0].config

    @jax.jit
    def residuals(params, codes):
        taps = forward(config, params, codes, taps=layers, logits=False).residuals
        return jax.numpy.stack([taps[layer][:, 1:].mean(1) for layer in layers], 1)  # [B, L, D]

    parts = []
    for start in range(0, len(examples), BATCH):
        batch = examples[start : start + BATCH]
        audio = np.stack([peak * render_example(example, config.sampling_rate) for example in batch])
        audio = np.pad(audio, ((0, BATCH - len(batch)), (0, 0)))  # one shape
        codes = encode_audio(config, models[0].params, audio)  # both have the same codec
        parts.append(np.stack([residuals(model.params, codes) for model in models])[:, : len(batch)])
    return np.concatenate(parts, 1)


def _measure(x: np.ndarray, labels: np.ndarray, regression: bool, seed: int) -> float:
    """Accuracy, or R² with the tempi at both ends held out, of a linear probe of x [n, D]."""
    if regression:
        order = np.argsort(labels, kind="stable")
        edge = round(len(order) * (1 - TRAIN) / 2)
        rng = np.random.default_rng(seed)
        inside = rng.choice(order[edge:-edge], round(0.9 * (len(order) - 2 * edge)), replace=False)
        outside = np.concatenate([order[:edge], order[-edge:]])
        return _r2(labels[outside], _ridge(x[inside], labels[inside].astype(float), x[outside]))
    order = np.random.default_rng(seed).permutation(len(labels))
    train, test = np.split(order, [round(TRAIN * len(order))])
    classes = np.unique(labels)
    told = labels[:, None, None] == classes  # [n, 1, C]
    probe = fit_probe(x[train, None], told[train], ["class"] * len(classes))
    return float((told_by_probe(probe, x[test, None]).argmax(-1)[:, 0] == told[test].argmax(-1)[:, 0]).mean())


def _ridge(x: np.ndarray, y: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Least squares with the ridge that is best when each row in turn is left out; predictions for other rows."""
    mean, scale = x.mean(0), np.maximum(x.std(0), 1e-6)
    u, s, vt = np.linalg.svd((x - mean) / scale, full_matrices=False)
    centred = y - y.mean()
    along = u.T @ centred
    errors = []
    for ridge in RIDGES:
        shrink = s**2 / (s**2 + ridge * len(x))
        left_out = (centred - u @ (shrink * along)) / (1 - u**2 @ shrink - 1 / len(x))
        errors.append(np.square(left_out).mean())
    ridge = RIDGES[int(np.argmin(errors))]
    weights = vt.T @ (s / (s**2 + ridge * len(x)) * along)
    return (new - mean) / scale @ weights + y.mean()


def _r2(truth: np.ndarray, told: np.ndarray) -> float:
    return float(1 - np.square(truth - told).sum() / np.square(truth - truth.mean()).sum())


def syntheory_lines(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a table: a line for each set, its best layer first, beside its controls and the published figures."""
    lines = [
        f"{'':<20}{'best layer':>22}{'ours':>8}{'random':>8}{'chance':>8}{'published':>11}{'hidden':>8}  every layer"
    ]
    for one in dict.fromkeys(row["name"].split("/")[1] for row in rows):
        layers = [row for row in rows if row["name"].split("/")[1] == one]
        best = max(layers, key=lambda row: row["ours"])
        every = " ".join(f"{row['ours']:.2f}" for row in layers)
        lines.append(
            f"{one:<20}{best['name'].split('/')[2]:>22}{best['ours']:>8.3f}{best['random_weights']:>8.3f}"
            f"{best['chance']:>8.3f}{best['peer']:>11.3f}{best['hidden']:>8.3f}  {every}"
        )
    return "\n".join(lines)
