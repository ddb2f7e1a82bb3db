"""What follows from the measures: for each feature, and over features, against each arm."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from musae_jax.labels.evidence import corrected
from musae_jax.steering.arms import Target
from musae_jax.steering.comparisons import bootstrap, compare, is_monotone, sign_flip_p, slopes
from musae_jax.steering.drift import frechet_distance, kernel_distance
from musae_jax.steering.measures import CONCEPT_MEASURES

ADHERENCE_LOSS = 0.05  # of the cosine of prompt and sound: what may be lost at most for `gain_at_fixed_adherence`
DRIFT = 1.0  # nats a code: the same where there is no prompt
PLAIN = ("unsteered", 0.0)
PROMPT = ("prompt", 0.0)

Dose = tuple[str, float]  # arm, strength


@dataclasses.dataclass
class Readings:
    """What was measured of one target; all arrays are of its n pairs, in one order.

    Attributes:
      main: the strength at which arms are compared.
      values: {measure: {(arm, strength): [n]}}; adherence is NaN where there is no prompt.
      drift: KL in nats, {(arm, strength): [n', K]}, of some of the pairs.
      others: activations of M other features, {(arm, strength): [n, M]}.
      broken: {kind of collapse: {(arm, strength): bool [n]}}.
      embedding: CLAP's of the sound, {(arm, strength): [n, E]}; {} without CLAP.
      measures: those of the concept, the one to be preferred first.
    """

    target: Target
    main: float
    values: Mapping[str, Mapping[Dose, np.ndarray]]
    drift: Mapping[Dose, np.ndarray]
    others: Mapping[Dose, np.ndarray]
    broken: Mapping[str, Mapping[Dose, np.ndarray]]
    embedding: Mapping[Dose, np.ndarray]
    measures: Sequence[str] = CONCEPT_MEASURES

    @property
    def measure(self) -> str | None:
        """The first of `measures` that knows the name."""
        return next((measure for measure in self.measures if measure in self.values), None)

    @property
    def circular(self) -> bool:
        """Whether who measures the concept also named the feature or confirmed the name."""
        return {"exemplars": "clap"}.get(self.measure, self.measure) in self.target.sources

    def dose(self, arm: str) -> Dose:
        """Where an arm is compared."""
        return PROMPT if arm == "prompt" else PLAIN if arm == "unsteered" else (arm, self.main)

    @property
    def arms(self) -> list[str]:
        """All but the SAE's, "unsteered" first."""
        return [arm for arm in dict.fromkeys(arm for arm, _ in {PLAIN: None} | self.drift) if arm != "sae"]


def summarise(
    readings: Sequence[Readings],
    corpus: np.ndarray | None = None,
    level: float = 0.01,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """summary.json, but for its config: see docs/steer.md.

    A feature counts as `steered` when its concept, by the most independent measure that knows it, is above both the
    unsteered clips and the random direction of equal norm, by sign flips of pairs, corrected over features (Benjamini
    and Hochberg) at `level`; the p of both together is the larger. Its sign follows the strength: below 0 the concept
    should go. Gains are in standard deviations of the unsteered clips.
    """
    known = [one for one in readings if one.measure]
    rows = [_feature(one, level, resamples, seed) for one in known]
    joint = corrected(np.asarray([max(row["against"][arm]["p"] for arm in ("unsteered", "random")) for row in rows]))
    by_slope = corrected(np.asarray([max(row["slope"]["p"], row["slope_over_random"]["p"]) for row in rows]))
    for row, q, slope_q in zip(rows, joint, by_slope):
        row |= {"q": _round(q), "steered": bool(q < level), "slope_q": _round(slope_q)}
        row["steered_by_slope"] = bool(slope_q < level)
    arms = list(dict.fromkeys(arm for row in rows for arm in row["against"]))
    independent = [row for row in rows if not row["circular"]]
    return {
        **_shares(rows),
        "gain_at_fixed_adherence": _mean([row["at_fixed_adherence"]["sae"]["gain"] for row in rows]),
        "against": {arm: _against(rows, arm, level, resamples, seed) for arm in arms},
        "side_effects": _mean([row["side_effects"] for row in rows]),
        "collapsed": _mean([row["collapsed"]["sae"] for row in rows]),
        "without_circular": _shares(independent),
        "measures": dict(Counter(row["measure"] for row in rows)),
        "unmeasured": len(readings) - len(known),
        "arms": {arm: _arm(known, rows, arm, corpus) for arm in ("sae", *arms)},
        "fixed": {"adherence_loss": ADHERENCE_LOSS, "drift": DRIFT},
        "level": level,
        "features": rows,
    }


def _feature(one: Readings, level: float, resamples: int, seed: int) -> dict[str, Any]:
    values, sign = one.values[one.measure], 1 if one.main >= 0 else -1
    spread = max(float(values[PLAIN].std(ddof=1)) if len(values[PLAIN]) > 1 else 0.0, 1e-9)
    mine = values["sae", one.main]
    doses = sorted({a for arm, a in values if arm == "sae"} | {0.0})
    near = [n for n, a in enumerate(doses) if abs(a) <= abs(one.main)]  # beyond is an overdose, as calibration found
    curve = {
        arm: np.stack([values[(arm, a) if a else PLAIN] for a in doses])
        for arm in ("sae", "random")
        if (arm, one.main) in values
    }
    steep = {arm: slopes([doses[n] for n in near], of[near]) / spread for arm, of in curve.items()}
    measures = {}
    for measure, of in one.values.items():
        told = np.isfinite(of[PLAIN])
        if told.sum() > 1:
            measures[measure] = {
                "unsteered": _round(of[PLAIN][told].mean()),
                "steered": _round(of["sae", one.main][told].mean()),
                "random": _round(of["random", one.main][told].mean()),
                **{
                    f"over_{arm}": compare(of["sae", one.main][told] - of[one.dose(arm)][told], resamples, seed)
                    for arm in ("unsteered", "random")
                },
            }
    return {
        "feature": one.target.feature,
        "name": one.target.name,
        "sources": list(one.target.sources),
        "measure": one.measure,
        "circular": one.circular,
        "strength": one.main,
        "pairs": len(mine),
        "prompts": list(one.target.prompts),
        "slope": compare(steep["sae"], resamples, seed),
        "slope_over_random": compare(steep["sae"] - steep["random"], resamples, seed),
        "monotone": is_monotone(doses, curve["sae"], level, seed),
        "monotone_to_strength": is_monotone([doses[n] for n in near], curve["sae"][near], level, seed),
        "curve": {
            arm: [{"strength": a, "mean": _round(m), "ci": _rounded(bootstrap(v, resamples, seed))}
                  for a, m, v in zip(doses, of.mean(1), of)]
            for arm, of in curve.items()
        },
        "means": {arm: _round(values[one.dose(arm)].mean()) for arm in ("sae", *one.arms)},
        "against": {
            arm: compare(sign * (mine - values[one.dose(arm)]) / spread, resamples, seed) for arm in one.arms
        },
        "measures": measures,
        "at_fixed_adherence": {
            arm: _at_fixed_adherence(one, arm, values, spread) for arm in ("sae", *one.arms) if arm != "unsteered"
        },
        "side_effects": _side_effects(one, seed),
        "collapsed": {
            arm: _round(np.any([marks[one.dose(arm)] for marks in one.broken.values()], axis=0).mean())
            for arm in ("sae", *one.arms)
        },
        "kl": {arm: _rounded(one.drift[one.dose(arm)].mean(0)) for arm in ("sae", *one.arms) if arm != "unsteered"},
    }  # fmt: skip


def _at_fixed_adherence(
    one: Readings, arm: str, values: Mapping[Dose, np.ndarray], spread: float
) -> dict[str, float | None]:
    """Gain at the largest strength of the sign compared at which no more adherence is lost than may be; without
    prompts, at which the predictions drift no farther. An arm that has none such gains nothing, at strength 0."""
    kept, sign = {"strength": 0.0, "gain": 0.0}, 1 if one.main >= 0 else -1
    for strength in sorted((a for of, a in values if of == arm and (sign * a > 0 or arm == "prompt")), key=abs):
        at = (arm, strength)
        adherence = one.values.get("adherence")
        asked = np.isfinite(adherence[PLAIN]) if adherence is not None else np.zeros(0, bool)
        if asked.any():
            lost = float((adherence[PLAIN] - adherence[at])[asked].mean())
            allowed = lost <= ADHERENCE_LOSS
        else:
            allowed = float(one.drift[at].mean()) <= DRIFT
        if allowed:
            kept = {"strength": strength, "gain": _round(sign * float((values[at] - values[PLAIN]).mean() / spread))}
    return kept


def _side_effects(one: Readings, seed: int) -> float | None:
    """The share of other named features whose activation is moved farther than along the random direction."""
    plain = one.others[PLAIN]
    if not plain.shape[1]:
        return None
    moved = np.abs(one.others["sae", one.main] - plain) - np.abs(one.others["random", one.main] - plain)  # [n, M]
    return _round((corrected(sign_flip_p(moved, seed)) < 0.05).mean())


def _shares(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    keys = ("steered", "steered_by_slope", "monotone", "monotone_to_strength")
    return {"tested": len(rows), **{key: _mean([row[key] for row in rows]) for key in keys}}


def _against(rows: Sequence[Mapping[str, Any]], arm: str, level: float, resamples: int, seed: int) -> dict[str, Any]:
    """Over the features that have this arm: shares won and lost beyond luck, and the mean difference in gain."""
    found = [row["against"][arm] for row in rows if arm in row["against"]]
    q = corrected(np.asarray([one["p"] for one in found]))
    lost = corrected(np.asarray([one["p_below"] for one in found]))
    effects = [one["mean"] for one in found]
    told = compare(effects, resamples, seed)
    return {
        "features": len(found),
        "share_won": _round((q < level).mean()),
        "share_lost": _round((lost < level).mean()),
        "effect": told["mean"],
        "ci": told["ci"],
        "p": told["p"],
        "d": _mean([one["d"] for one in found]),
    }


def _arm(
    known: Sequence[Readings], rows: Sequence[Mapping[str, Any]], arm: str, corpus: np.ndarray | None
) -> dict[str, Any]:
    """What an arm does at the strength of comparison, means over features: gain, adherence, drift, collapse."""
    having = [one for one in known if one.dose(arm) in one.values[one.measure]]
    adherence, frechet, kernel, kl = [], [], [], []
    for one in having:
        if "adherence" in one.values:
            change = one.values["adherence"][one.dose(arm)] - one.values["adherence"][PLAIN]
            adherence += [change[np.isfinite(change)].mean()] if np.isfinite(change).any() else []
        if one.embedding and corpus is not None and len(one.embedding[one.dose(arm)]) > 1:
            frechet.append(frechet_distance(one.embedding[one.dose(arm)], corpus))
            kernel.append(kernel_distance(one.embedding[one.dose(arm)], corpus))
        if arm != "unsteered":
            kl.append(one.drift[one.dose(arm)].mean(0))
    own = [row["against"]["unsteered"]["mean"] for row in rows if arm == "sae" or arm in row["against"]]
    behind = [row["against"][arm]["mean"] for row in rows if arm in row["against"]] or [0.0] * len(own)
    return {
        "features": len(having),
        "gain": _mean([gain - less for gain, less in zip(own, behind)]),
        "at_fixed_adherence": _mean(
            [row["at_fixed_adherence"][arm]["gain"] for row in rows if arm in row["at_fixed_adherence"]]
        ),
        "adherence": _mean(adherence),
        "kl": _rounded(np.mean(kl, 0)) if kl else None,
        "frechet": _mean(frechet),
        "kernel": _mean(kernel),
        "collapsed": _mean([row["collapsed"][arm] for row in rows if arm in row["collapsed"]]),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    told = [float(value) for value in values if value is not None]
    return _round(np.mean(told)) if told else None


def _round(value: float) -> float:
    return round(float(value), 5)


def _rounded(values: Any) -> list[float]:
    return [_round(value) for value in values]
