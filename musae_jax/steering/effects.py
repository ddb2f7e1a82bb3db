"""What steering does to the sound, against the same prompt and noise left alone and against a random direction.

Every clip of the experiment is one row of a batch: (feature, condition, strength, prompt), with a vector of its own and
the random key of its prompt, so that one compiled program generates them all and the clips of a prompt differ by their
vector only. Three measures, none of which is the SAE looking at its own edit:

  judge       probability of the feature's concept, by a judge that hears audio only (`validation.judge`)
  descriptor  the signal descriptor of the feature's name, in its own unit
  activation  the feature's mean activation when the finished audio is encoded and harvested anew, unsteered, in shares
              of its maximum
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from musae_jax.audio.io import write_audio
from musae_jax.batching import in_batches
from musae_jax.errors import MusaeError
from musae_jax.files import atomic_path, write_json, write_json_lines
from musae_jax.labels.descriptors import COLUMNS, describe
from musae_jax.models.edits import Edits
from musae_jax.models.generate import generate
from musae_jax.models.musicgen import MusicGen, decode_codes, encode_audio, encode_text, forward
from musae_jax.sae.sae import SAE, sae_encode
from musae_jax.steering.directions import feature_vectors, layer_of, random_direction
from musae_jax.validation.judge import Judge, judge_probabilities

MEASURES = ("judge", "descriptor", "activation")


@dataclasses.dataclass(frozen=True)
class EffectsConfig:
    """How steered clips are made and compared."""

    strengths: tuple[float, ...] = (1.0,)  # in units of each feature's maximum activation
    seconds: float = 8.0
    guidance_scale: float = 3.0
    top_k: int = 250
    temperature: float = 1.0
    batch_size: int = 16  # rows generated together
    resamples: int = 2000  # of the bootstrap
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Target:
    """A feature to steer. `name` is what it is called; `concept` what the judge is asked, `descriptor` what is measured
    and `sign` whether more (1) or less (-1) of it is expected."""

    feature: int
    name: str
    concept: str | None = None
    descriptor: str | None = None
    sign: int = 1


@dataclasses.dataclass(frozen=True)
class Row:
    """One clip to generate; `target` is None for the unsteered clip that all features of a prompt share."""

    target: int | None
    condition: str  # "unsteered", "steered" or "random"
    strength: float
    prompt: int

    @property
    def sound(self) -> str:
        if self.target is None:
            return f"sounds/unsteered-p{self.prompt}.ogg"
        return f"sounds/f{self.target}-{self.condition}-{self.strength:g}-p{self.prompt}.ogg"


def choose_targets(
    rows: Iterable[Mapping[str, Any]],
    judged: Iterable[str] = (),
    count: int = 6,
    per_family: int = 2,
    described: Iterable[Mapping[str, Any]] = (),
) -> list[Target]:
    """The best-named features: one a name, at most `per_family` a family ("family: value"), by confidence.

    `rows` are those of labels.jsonl of one SAE. Names that the judge knows (`judged`) come first, because their effect
    can be told from the sound alone. Names at or below their null (confidence 0) are not steered. `described` are rows
    of descriptors whose measure is told of a target even if they do not name it.
    """
    rows, judged = list(rows), set(judged)
    descriptors = {
        r["feature"]: r["evidence"]
        for r in (*described, *rows)
        if r["source"] == "descriptors" and "descriptor" in r["evidence"]
    }
    rank = sorted(rows, key=lambda r: (r["name"] not in judged, -r["confidence"], r["feature"]))
    targets: list[Target] = []
    families: dict[str, int] = {}
    for row in rank:
        family = row["name"].split(":")[0]
        known = any(t.name == row["name"] or t.feature == row["feature"] for t in targets)
        if row["confidence"] <= 0 or known or families.get(family, 0) >= per_family or len(targets) >= count:
            continue
        families[family] = families.get(family, 0) + 1
        evidence = descriptors.get(row["feature"], {})
        targets.append(
            Target(
                row["feature"],
                row["name"],
                concept=row["name"] if row["name"] in judged else None,
                descriptor=evidence.get("descriptor"),
                sign=-1 if evidence.get("direction") == "low" else 1,
            )
        )
    return targets


def plan_rows(targets: Sequence[Target], prompts: int, strengths: Sequence[float]) -> list[Row]:
    """Every clip of the experiment: the unsteered ones first, then steered and random for each feature and strength."""
    rows = [Row(None, "unsteered", 0.0, p) for p in range(prompts)]
    for target in targets:
        for strength in strengths:
            for condition in ("steered", "random"):
                rows += [Row(target.feature, condition, float(strength), p) for p in range(prompts)]
    return rows


def row_vectors(sae: SAE, rows: Sequence[Row], key: jax.Array, maximum: Any = None) -> jax.Array:
    """The vector added in each row. -> [R, D]

    A feature's random direction is the same for every prompt and strength, and has the norm of the steered vector.
    """
    layer, width = layer_of(sae), sae.config.d_in
    vectors = []
    for row in rows:
        if row.target is None:
            vectors.append(jnp.zeros(width))
            continue
        vector = feature_vectors(sae, {row.target: row.strength}, maximum)
        if row.condition == "random":
            edits = random_direction(jax.random.fold_in(key, row.target), Edits(vectors={layer: vector}))
            vector = edits.vectors[layer] * (1.0 if row.strength >= 0 else -1.0)
        vectors.append(vector)
    return jnp.stack(vectors)


def generate_rows(
    mg: MusicGen,
    sae: SAE,
    rows: Sequence[Row],
    prompts: Sequence[str],
    cache: Path,
    config: EffectsConfig,
    maximum: Any = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> np.ndarray:
    """Codes int32 [R, K, T] of every row, in batches of one shape; batches already in `cache` are not made again."""
    key = jax.random.key(config.seed)
    prompt_keys = jax.random.split(jax.random.fold_in(key, 0), len(prompts))
    vectors = row_vectors(sae, rows, jax.random.fold_in(key, 1), maximum)
    layer = layer_of(sae)
    done = []
    for number, start in enumerate(range(0, len(rows), config.batch_size)):
        path = cache / f"{number:04d}.safetensors"
        batch = list(range(start, min(start + config.batch_size, len(rows))))
        if not path.exists():
            full = batch + [batch[-1]] * (config.batch_size - len(batch))  # one shape, one compilation
            which = [rows[i].prompt for i in full]
            text = encode_text(mg, list(prompts))
            text = text.replace(states=text.states[jnp.asarray(which)], mask=text.mask[jnp.asarray(which)])
            made = generate(
                mg.config,
                mg.params,
                text,
                prompt_keys[jnp.asarray(which)],
                seconds=config.seconds,
                guidance_scale=config.guidance_scale,
                top_k=config.top_k,
                temperature=config.temperature,
                edits=Edits(vectors={layer: vectors[jnp.asarray(full)][:, None]}),  # [B, 1, D]
                audio=False,
            )
            with atomic_path(path) as temporary:
                save_file({"codes": np.ascontiguousarray(np.asarray(made.codes)[: len(batch)])}, temporary)
        done.append(load_file(path)["codes"])
        if progress:
            progress(batch[-1] + 1, len(rows), "clips")
    return np.concatenate(done)


def remeasure(mg: MusicGen, sae: SAE, audio: np.ndarray, features: Sequence[int], batch_size: int) -> np.ndarray:
    """Mean and maximum activation of features when audio [R, S] is encoded and harvested anew. -> [R, 2, F']"""
    layer, places = layer_of(sae), jnp.asarray(list(features), int)

    def measure(batch: np.ndarray) -> jax.Array:
        codes = encode_audio(mg.config, mg.params, batch)
        residuals = forward(mg.config, mg.params, codes, taps=(layer,), logits=False).residuals[layer]
        f = sae_encode(sae.config, sae.params, residuals[:, 1:])[..., places]  # [B, T, F'], without the start step
        return jnp.stack([f.mean(1), f.max(1)], 1)

    return in_batches(measure, audio, batch_size)


def measure_effects(
    mg: MusicGen,
    sae: SAE,
    targets: Sequence[Target],
    prompts: Sequence[str],
    out: str | Path,
    config: EffectsConfig | None = None,
    judge: Judge | None = None,
    name: str = "",
    maximum: Any = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Generates, measures and compares; writes effects.jsonl, summary.json and sounds/*.ogg to `out`.

    Returns the summary. `name` is the SAE's name in the run folder. A call that was killed goes on with the batches it
    had made. Raises `MusaeError` when there is nothing to steer.
    """
    config, out = config or EffectsConfig(), Path(out)
    if not targets or not prompts:
        raise MusaeError(
            f"steering needs features and prompts, found {len(targets)} features and {len(prompts)} prompts"
        )
    maximum = np.asarray(sae.maximum if maximum is None else maximum)
    rows = plan_rows(targets, len(prompts), config.strengths)
    # What decides the clips: their codes are kept under its hash while the call runs.
    request = json.dumps(
        [
            dataclasses.asdict(config),
            [t.feature for t in targets],
            list(prompts),
            sae.config.hook,
            _fingerprint(mg, sae),
        ]
    )
    cache = out / "codes" / hashlib.sha256(request.encode()).hexdigest()[:16]
    codes = generate_rows(mg, sae, rows, prompts, cache, config, maximum, progress)
    audio = in_batches(lambda batch: decode_codes(mg.config, mg.params, batch), codes, config.batch_size)
    mono = audio.mean(1) if audio.ndim == 3 else audio  # [R, S]
    rate = mg.config.sampling_rate
    judged = judge_probabilities(judge, mono, rate) if judge is not None else None
    described = np.stack([describe(clip, rate) for clip in mono])
    active = remeasure(mg, sae, mono, [t.feature for t in targets], config.batch_size)  # [R, 2, F']

    records = []
    for number, target in enumerate(targets):
        beta = float(maximum[target.feature])
        for place, row in enumerate(rows):
            if row.target not in (None, target.feature):
                continue
            asked = judged is not None and target.concept in judge.names
            records.append(
                {
                    "hook": sae.config.hook,
                    "sae": name,
                    "feature": target.feature,
                    "name": target.name,
                    "condition": row.condition,
                    "strength": row.strength,
                    "prompt": row.prompt,
                    "text": prompts[row.prompt],
                    "sound": row.sound,
                    "judge": round(float(judged[place, judge.names.index(target.concept)]), 5) if asked else None,
                    "descriptor": round(float(described[place, COLUMNS.index(target.descriptor)]), 5)
                    if target.descriptor
                    else None,
                    "activation": round(float(active[place, 0, number]) / beta, 6),
                    "activation_maximum": round(float(active[place, 1, number]) / beta, 5),
                    "descriptors": {k: round(float(v), 4) for k, v in zip(COLUMNS, described[place])},
                }
            )
    for place, row in enumerate(rows):
        write_audio(out / row.sound, mono[place], rate)
    write_json_lines(out / "effects.jsonl", records)
    summary = summarise(records, targets, config.resamples, config.seed)
    if judge is not None:
        places = {t.concept: judge.names.index(t.concept) for t in targets if t.concept in judge.names}
        summary["judge_balanced_accuracy"] = {c: round(float(judge.balanced[i]), 4) for c, i in places.items()}
    write_json(out / "summary.json", {**summary, "config": dataclasses.asdict(config), "prompts": list(prompts)})
    shutil.rmtree(out / "codes")
    return summary


def _fingerprint(mg: MusicGen, sae: SAE) -> list[float]:
    """A number a tensor: enough to notice other weights."""
    leaves = jax.tree.leaves((mg.params, sae.params))
    return [float(jnp.sum(jnp.abs(jnp.asarray(leaf, jnp.float32)))) for leaf in leaves]


def bootstrap(differences: Sequence[float], resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Mean of paired differences with a 95 % percentile-bootstrap interval: {mean, low, high, n}."""
    differences = np.asarray(differences, float)
    draws = np.random.default_rng(seed).integers(0, len(differences), (resamples, len(differences)))
    low, high = np.quantile(differences[draws].mean(1), [0.025, 0.975])
    return {
        "mean": round(float(differences.mean()), 6),
        "low": round(float(low), 6),
        "high": round(float(high), 6),
        "n": len(differences),
    }


def summarise(
    records: Sequence[Mapping[str, Any]], targets: Sequence[Target], resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Paired by prompt: steered less unsteered and steered less random, per feature and strength, and over features.

    For each measure: the mean of each condition and both differences with their interval. A descriptor's difference is
    counted in the direction its name expects. `overall` gives, per strength and measure, the mean over features and
    the share of features for which steering did more than nothing and more than the random direction.
    """
    features = []
    for target in targets:
        mine = [r for r in records if r["feature"] == target.feature]
        strengths = sorted({r["strength"] for r in mine if r["condition"] == "steered"})
        features.append(
            {
                **{k: mine[0][k] for k in ("hook", "sae", "feature", "name")},
                "concept": target.concept,
                "descriptor": target.descriptor,
                "descriptor_sign": target.sign,
                "strengths": [
                    {"strength": s, **{m: _compare(mine, s, m, target.sign, resamples, seed) for m in MEASURES}}
                    for s in strengths
                ],
            }
        )
    overall = []
    for strength in sorted({s["strength"] for f in features for s in f["strengths"]}):
        row: dict[str, Any] = {"strength": strength}
        for measure in MEASURES:
            found = [s[measure] for f in features for s in f["strengths"] if s["strength"] == strength and s[measure]]
            if not found:
                row[measure] = None
                continue
            row[measure] = {
                "features": len(found),
                "above_unsteered": sum(c["steered_minus_unsteered"]["mean"] > 0 for c in found),
                "above_random": sum(c["steered_minus_random"]["mean"] > 0 for c in found),
            }
            if measure != "descriptor":  # descriptors have different units
                for difference in ("steered_minus_unsteered", "steered_minus_random"):
                    row[measure][difference] = bootstrap([c[difference]["mean"] for c in found], resamples, seed)
        overall.append(row)
    return {"features": features, "overall": overall}


def _compare(
    records: Sequence[Mapping[str, Any]], strength: float, measure: str, sign: int, resamples: int, seed: int
) -> dict[str, Any] | None:
    values: dict[str, dict[int, float]] = {"unsteered": {}, "steered": {}, "random": {}}
    for record in records:
        if record["condition"] == "unsteered" or record["strength"] == strength:
            values[record["condition"]][record["prompt"]] = record[measure]
    prompts = sorted(values["steered"])
    if any(values[condition].get(p) is None for condition in values for p in prompts):
        return None
    # against the direction of the strength: turning a feature down should lower what it stands for
    sign = (sign if measure == "descriptor" else 1) * (1 if strength >= 0 else -1)
    arrays = {c: np.asarray([values[c][p] for p in prompts]) for c in values}
    return {
        **{c: round(float(a.mean()), 6) for c, a in arrays.items()},
        "steered_minus_unsteered": bootstrap(sign * (arrays["steered"] - arrays["unsteered"]), resamples, seed),
        "steered_minus_random": bootstrap(sign * (arrays["steered"] - arrays["random"]), resamples, seed),
    }
