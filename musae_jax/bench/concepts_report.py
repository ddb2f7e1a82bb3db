"""What the benchmark of known concepts says: rows, a summary of each kind of dictionary, lines for a terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from musae_jax.bench.heat_map import draw_heat_map, write_heat_map
from musae_jax.labels.evidence import corrected, interval
from musae_jax.validation.finding import FOUND, Finding, Panel
from musae_jax.validation.splitting import Split

KINDS = ("sae", "neurons", "pca", "random_sae", "random_weights", "probe")
LUCK = 0.05  # q below which a concept is told better than by luck


@dataclass(frozen=True)
class Result:
    """What one dictionary finds, and how its concepts are split where it has a decoder."""

    kind: str  # of `KINDS`, or "truth"
    number: int  # among those of its kind
    finding: Finding
    splits: list[Split | None] | None = None


@dataclass(frozen=True)
class Report:
    """The results of all dictionaries on one panel, and what was asked."""

    config: dict[str, Any]
    panel: Panel
    results: tuple[Result, ...]

    @cached_property
    def summary(self) -> dict[str, dict[str, Any]]:
        """See `summarise`."""
        return summarise(self.panel, self.results)

    def record(self) -> dict[str, Any]:
        """As JSON types: coverage of each kind, the summary, what was asked, why the rest is not found, the rows."""
        return {
            "coverage": {kind: self.summary[kind]["coverage"] for kind in KINDS},
            "summary": self.summary,
            "not_found": why_not_found(self.panel, self.results),
            "config": self.config,
            "rows": concept_rows(self.panel, self.results),
        }

    def lines(self) -> str:
        """For a terminal."""
        c = self.config
        judged = self.panel.judged
        about = (
            f"{judged.sum()} of {len(judged)} concepts judged at {c['hook']} of {c['model']}, {c['clips']} clips; found"
            f" is a held-out AUROC of {FOUND} or more"
        )
        return concept_lines(about, self.panel, self.results, self.summary)

    def draw(self, path: Path) -> None:
        """Writes the heat map of concepts and dictionaries (PNG)."""
        concepts = self.panel.truth.concepts
        columns = {kind: np.mean([r.finding.auroc for r in self.results if r.kind == kind], axis=0) for kind in KINDS}
        title = f"Held-out AUROC of each concept's best feature at {self.config['hook']} of {self.config['model']}"
        write_heat_map(path, draw_heat_map(title, [(c.family, c.name) for c in concepts], columns, FOUND))


def concept_rows(panel: Panel, results: Sequence[Result]) -> list[dict[str, Any]]:
    """One row per dictionary and concept; null where a concept cannot be judged, or the dictionary has no decoder.

    concept, family, level          of the vocabulary
    base_rate, positives, n         share of the score half's frames (or clips) with it; clips with it; clips
    dictionary, number              one of `KINDS` (or "truth", the truth itself), and which of its kind
    feature, sign                   the best feature on the label half; -1 if it tells by being low
    label_auroc, auroc, interval    on the label half; on the score half, with the middle 95 % over drawn clips
    f1, f1_guess                    on the score half, by the label half's best threshold; of always saying yes
    null_mean, null_p95, p, q       AUROC with truth exchanged between clips; its share that is as good; corrected
    parts, parts_f1                 the features that share the concept, and the F1 of their union
    absorbed, absorber              share of positives on the concept's side that another has absorbed, and which
    """
    rows = []
    for result in results:
        verdicts = result.finding.verdicts
        q = corrected(np.asarray([np.nan if v is None else v.p for v in verdicts]))
        for c, concept in enumerate(panel.truth.concepts):
            told, verdict = panel.told(c, "score"), verdicts[c]
            split = result.splits[c] if result.splits else None
            rate = float(told.mean())
            row = {
                "concept": concept.name,
                "family": concept.family,
                "level": concept.level,
                "base_rate": _round(rate),
                "positives": int(told.any(1).sum()),
                "n": len(told),
                "dictionary": result.kind,
                "number": result.number,
                "feature": int(result.finding.feature[c]) if verdict else None,
                "sign": int(result.finding.sign[c]) if verdict else None,
                "label_auroc": verdict and _round(verdict.label),
                "auroc": verdict and _round(verdict.auroc),
                "interval": verdict and _rounded(interval(verdict.draws)),
                "f1": verdict and _round(verdict.f1),
                "f1_guess": _round(2 * rate / (1 + rate)),
                "null_mean": verdict and _round(verdict.null_mean),
                "null_p95": verdict and _round(verdict.null_p95),
                "p": verdict and verdict.p,
                "q": verdict and float(q[c]),
                "parts": split and list(split.parts),
                "parts_f1": split and _round(split.f1),
                "absorbed": split and _round(split.absorbed),
                "absorber": split and split.absorber,
            }
            rows.append(row)
    return rows


def summarise(panel: Panel, results: Sequence[Result]) -> dict[str, dict[str, Any]]:
    """For each kind of dictionary, means over those of the kind, and intervals over drawn clips and dictionaries.

    coverage, interval, values       share of judged concepts found; its interval; each dictionary's
    lead, lead_interval              coverage of the SAEs less that of this kind, draw by draw
    auroc, auroc_interval            mean over concepts
    f1                               mean over concepts
    beyond_luck                      share of concepts with q below 0.05
    mcc                              see `find_concepts`
    concepts_per_feature             of features that find any
    split                            share of concepts beyond luck that several features share
    absorbed                         the mean over concepts beyond luck of what `concept_rows` calls so
    families                         {family: coverage}
    """
    summary: dict[str, dict[str, Any]] = {}
    drawn: dict[str, np.ndarray] = {}
    judged = panel.judged
    families = np.asarray([concept.family for concept in panel.truth.concepts])
    for kind in (*KINDS, "truth"):
        members = [r for r in results if r.kind == kind]
        scores = np.stack([m.finding.auroc for m in members])[:, judged]  # [S, C']
        draws = np.stack([m.finding.draws for m in members])[:, :, judged]  # [S, B, C']
        found = np.where(np.isnan(draws), np.nan, draws >= FOUND)
        drawn[kind] = _over_seeds(np.nanmean(found, 2))  # [B]
        q = [corrected(np.asarray([np.nan if v is None else v.p for v in m.finding.verdicts])) for m in members]
        summary[kind] = {
            "coverage": float((scores >= FOUND).mean()),
            "interval": interval(drawn[kind]),
            "values": [float(v) for v in (scores >= FOUND).mean(1)],
            "auroc": float(scores.mean()),
            "auroc_interval": interval(_over_seeds(np.nanmean(draws, 2))),
            "f1": float(np.mean([v.f1 for m in members for v in m.finding.verdicts if v])),
            "beyond_luck": float(np.mean([one[judged] < LUCK for one in q])),
            "mcc": _mean([m.finding.mcc for m in members]),
            "concepts_per_feature": _mean([m.finding.concepts_per_feature for m in members]),
            **_splitting(members, q),
            "families": {
                family: float((scores[:, families[judged] == family] >= FOUND).mean())
                for family in dict.fromkeys(families[judged].tolist())
            },
        }
        if kind != "sae":
            summary[kind]["lead"] = summary["sae"]["coverage"] - summary[kind]["coverage"]
            summary[kind]["lead_interval"] = interval(drawn["sae"] - drawn[kind])
    return summary


def _over_seeds(draws: np.ndarray) -> np.ndarray:
    """Means over as many of S dictionaries, drawn anew for each draw of clips: [S, B] -> [B]."""
    chosen = np.random.default_rng(0).integers(len(draws), size=draws.shape)
    return np.take_along_axis(draws, chosen, 0).mean(0)


def _splitting(members: Sequence[Result], q: Sequence[np.ndarray]) -> dict[str, float | None]:
    told = [s for m, one in zip(members, q) for s, luck in zip(m.splits or (), one) if s and luck < LUCK]
    return {
        "split": _mean([float(len(s.parts) > 1) for s in told]),
        "absorbed": _mean([s.absorbed for s in told]),
    }


def why_not_found(panel: Panel, results: Sequence[Result]) -> dict[str, list[str]]:
    """The concepts that the first SAE does not find, by reason."""
    by_kind = {r.kind: r for r in reversed(results)}
    sae, probe = by_kind["sae"], by_kind["probe"]
    reasons: dict[str, list[str]] = {
        "cannot be judged": [],
        "not told linearly at this layer": [],
        "split between features": [],
        "told by the probe alone": [],
    }
    for c, concept in enumerate(panel.truth.concepts):
        verdict, split = sae.finding.verdicts[c], sae.splits[c]
        if verdict is None:
            reasons["cannot be judged"].append(concept.name)
        elif verdict.auroc >= FOUND:
            continue
        elif probe.finding.verdicts[c].auroc < FOUND:
            reasons["not told linearly at this layer"].append(concept.name)
        elif len(split.parts) > 1:
            reasons["split between features"].append(concept.name)
        else:
            reasons["told by the probe alone"].append(concept.name)
    return reasons


def concept_lines(about: str, panel: Panel, results: Sequence[Result], summary: dict[str, dict[str, Any]]) -> str:
    """The summary, coverage by family, and why the rest is not found, as lines that fit a terminal."""
    heads = ("found", "95 %", "AUROC", "F1", "q < .05", "MCC", "per feature", "split", "absorbed")
    widths = (7, 14, 6, 6, 8, 6, 12, 6, 8)
    lines = [about, "", " " * 16 + " ".join(f"{head:>{w}}" for head, w in zip(heads, widths))]
    for kind, s in summary.items():
        cells = (
            _percent(s["coverage"]),
            "to".join(f" {100 * bound:.1f} " for bound in s["interval"]).strip() if s["interval"] else "",
            f"{s['auroc']:.3f}",
            f"{s['f1']:.2f}",
            _percent(s["beyond_luck"]),
            *("" if s[name] is None else f"{s[name]:.2f}" for name in ("mcc", "concepts_per_feature")),
            *("" if s[name] is None else _percent(s[name]) for name in ("split", "absorbed")),
        )
        lines.append(f"{kind:<16}" + " ".join(f"{cell:>{w}}" for cell, w in zip(cells, widths)))
    families = list(summary["sae"]["families"])
    lines += ["", f"{'found, by family':<18}" + "".join(f"{kind:>16}" for kind in summary)]
    for family in families:
        lines.append(f"{family:<18}" + "".join(f"{_percent(s['families'][family]):>16}" for s in summary.values()))
    several = sum(result.kind == "sae" for result in results) > 1
    lines += ["", f"not found by the {'first ' if several else ''}SAE:"]
    for reason, names in why_not_found(panel, results).items():
        if names:
            lines.append(f"  {reason}: {len(names)} ({', '.join(names)})")
    return "\n".join(lines)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _round(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else round(float(value), 4)


def _rounded(bounds: list[float] | None) -> list[float | None] | None:
    return bounds and [_round(bound) for bound in bounds]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
