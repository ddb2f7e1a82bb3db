"""What steering does to the sound, beside every control: clips are made, heard, and compared in pairs.

The clips of a pair begin from the same noise and differ by their arm only (`arms`, `experiment`). What is heard in them
is in `measures`, the statistics in `comparisons`, what follows from them in `summary`.

Features differ in how much of them is needed. Unless a strength is given, each has its own, chosen on `calibration`
clips whose seeds are not used again. The gain of a strength is how far it takes the concept above both the unsteered
clips and the random direction. Of the strengths that break at most `BREAKING` of the clips (of all, where each breaks
more), the least with `NEARLY` the greatest gain is taken: more only drifts farther from music.
"""

import dataclasses
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from musae_jax.audio.io import write_audio
from musae_jax.errors import MusaeError
from musae_jax.files import write_json, write_json_lines
from musae_jax.labels.vocabulary import counterparts
from musae_jax.steering.arms import Row, Target, pair_number, plan_rows
from musae_jax.steering.experiment import EffectsConfig, Experiment, Progress, drift_of, make_codes, sound_of
from musae_jax.steering.listening import Heard, Listeners, hear_concept, hear_target
from musae_jax.steering.measures import collapses
from musae_jax.steering.summary import Dose, Readings, summarise

BREAKING = 0.25  # share of clips that a feature's own strength may break
NEARLY = 0.9  # of the greatest gain


@dataclasses.dataclass(frozen=True)
class Table:
    """Where the rows of an experiment are: each dose of a feature, in the order of its pairs."""

    rows: Sequence[Row]
    targets: Sequence[Target]
    clips: int
    first: int

    def doses(self, target: Target) -> dict[Dose, np.ndarray]:
        """{(arm, strength): places [n]}, the unsteered clips of its pairs among them."""
        order = {pair: n for n, pair in enumerate(target.pairs(self.clips, self.first))}
        found: dict[Dose, np.ndarray] = {}
        for place, row in enumerate(self.rows):
            if row.feature in (None, target.feature) and (row.prompt, row.seed) in order:
                places = found.setdefault((row.arm, row.strength), np.zeros(len(order), int))
                places[order[row.prompt, row.seed]] = place
        return found

    def of(self, target: Target) -> tuple[np.ndarray, dict[Dose, np.ndarray]]:
        """The places of all its rows, ascending, and where in them each dose is."""
        doses = self.doses(target)
        places = np.unique(np.concatenate(list(doses.values())))
        return places, {dose: np.searchsorted(places, at) for dose, at in doses.items()}


def calibrate(
    one: Experiment, targets: Sequence[Target], listeners: Listeners, out: Path, progress: Progress | None = None
) -> dict[int, float]:
    """The strength of each feature: see above. Negative strengths are not considered."""
    c = one.config
    strengths = sorted(a for a in c.strengths if a > 0)
    if c.strength is not None or len(strengths) < 2:
        return dict.fromkeys((t.feature for t in targets), c.strength or max(strengths, default=1.0))
    arms = {t.feature: ("sae", "random") for t in targets}
    chosen = dict.fromkeys((t.feature for t in targets), strengths[len(strengths) // 2])
    rows = plan_rows(targets, arms, strengths, chosen, c.calibration)
    codes = make_codes(one, rows, out, progress)
    table = Table(rows, targets, c.calibration, 0)
    for number, target in enumerate(targets, start=1):
        places, doses = table.of(target)
        audio = sound_of(one, codes[places])
        values, _ = hear_concept(target, listeners, audio, first=True)
        if values:
            broken = np.any(list(collapses(audio, codes[places]).values()), axis=0)
            chosen[target.feature] = _sufficient(next(iter(values.values())), broken, doses)
        if progress:
            progress(number, len(targets), "features calibrated")
    return chosen


def _sufficient(values: np.ndarray, broken: np.ndarray, doses: Mapping[Dose, np.ndarray]) -> float:
    """The least strength above 0 with nearly the greatest gain over both unsteered and random clips, by values [R] of
    the concept, among those at which few clips break, if there are such."""
    gains, whole = {}, {}
    for (arm, strength), places in sorted(doses.items()):
        if arm == "sae" and strength > 0:
            beside = max(values[doses[dose]].mean() for dose in (("random", strength), ("unsteered", 0.0)))
            gains[strength] = np.nan_to_num(values[places].mean() - beside, nan=-np.inf)
            whole[strength] = broken[places].mean() <= BREAKING
    usable = [strength for strength in gains if whole[strength]] or list(gains)
    greatest = max(gains[strength] for strength in usable)
    least = greatest * NEARLY if greatest > 0 else greatest
    return min(strength for strength in usable if gains[strength] >= least)


def measure_effects(
    one: Experiment,
    targets: Sequence[Target],
    listeners: Listeners,
    out: str | Path,
    others: Mapping[int, Iterable[str]] | None = None,
    name: str = "",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Generates, measures and compares; writes effects.jsonl, sounds.jsonl, summary.json and sounds/*.ogg to `out`.

    `others` are features with the names they bear: side effects are measured on those of other meaning. `name` is the
    SAE's in the run folder. Returns
    the summary. A call that was killed goes on with the batches it had made.

    Raises:
      MusaeError: there is nothing to steer.
    """
    c, out = one.config, Path(out)
    if not targets:
        raise MusaeError("there is no feature to steer; name some first, with musae label")
    meanings = {feature: _meant(names) for feature, names in (others or {}).items()}
    main = calibrate(one, targets, listeners, out, progress)
    arms = {target.feature: one.arms(target.feature) for target in targets}
    rows = plan_rows(targets, arms, c.strengths, main, c.clips, c.calibration)
    table = Table(rows, targets, c.clips, c.calibration)
    codes = make_codes(one, rows, out, progress)
    drift = _drift(one, table, codes)
    features = sorted({*meanings, *main})
    readings, records, sounds = [], [], []
    for number, target in enumerate(targets, start=1):
        places, doses = table.of(target)
        own = _meant([target.name])
        mine = [rows[place] for place in places]
        heard = hear_target(one, target, listeners, mine, codes[places], features)
        values = {**heard.values, "kl": drift[places].mean(1)}
        others_at = [features.index(f) for f, other in meanings.items() if f != target.feature and not own & other]
        readings.append(_reading(target, main[target.feature], heard, doses, drift[places], others_at, c))
        about = {"hook": one.sae.config.hook, "sae": name, "feature": target.feature, "name": target.name}
        for (arm, strength), at in doses.items():
            for order, n in enumerate(at):
                where = {**about, "arm": arm, "strength": strength, "prompt": mine[n].prompt, "seed": mine[n].seed}
                told = {measure: round(float(of[n]), 5) for measure, of in values.items() if np.isfinite(of[n])}
                records += [{**where, "measure": measure, "value": value} for measure, value in told.items()]
                if order < c.sounds and (arm == "sae" or strength in (0.0, main[target.feature])):
                    file = _file(mine[n])
                    sounds.append({**where, "text": mine[n].text, "sound": file, **told})
                    write_audio(out / file, heard.audio[n], one.mg.config.sampling_rate)
        if progress:
            progress(number, len(targets), "features heard")
    write_json_lines(out / "effects.jsonl", records)
    write_json_lines(out / "sounds.jsonl", sounds)
    summary = summarise(readings, listeners.corpus, c.level, c.resamples, c.seed)
    about = {"hook": one.sae.config.hook, "sae": name}
    summary["features"] = [{**about, **row} for row in summary["features"]]
    summary["config"] = dataclasses.asdict(c)
    write_json(out / "summary.json", summary)
    shutil.rmtree(out / "codes")
    for path in (out / "sounds").glob("*.ogg"):  # of what was steered before
        if path.relative_to(out).as_posix() not in {row["sound"] for row in sounds}:
            path.unlink()
    return summary


def _reading(
    target: Target,
    main: float,
    heard: Heard,
    doses: Mapping[Dose, np.ndarray],
    drift: np.ndarray,
    others_at: Sequence[int],
    config: EffectsConfig,
) -> Readings:
    """What was heard, dose by dose; `drift` [n, K] is of the target's rows."""
    return Readings(
        target,
        main,
        values={measure: {dose: of[at] for dose, at in doses.items()} for measure, of in heard.values.items()},
        drift={dose: drift[at[: config.drift_clips]] for dose, at in doses.items() if dose[0] != "unsteered"},
        others={dose: heard.active[at][:, others_at] for dose, at in doses.items() if dose[1] in (0.0, main)},
        broken={kind: {dose: marks[at] for dose, at in doses.items()} for kind, marks in heard.broken.items()},
        embedding={} if heard.embedding is None else {dose: heard.embedding[at] for dose, at in doses.items()},
        measures=config.measures,
    )


def _meant(names: Iterable[str]) -> set[str]:
    return {meaning for name in names for meaning in counterparts(name) or (name,)}


def _file(row: Row) -> str:
    who = "unsteered" if row.feature is None else f"f{row.feature}-{row.arm}-{row.strength:g}"
    return f"sounds/{who}-{pair_number(row.prompt, row.seed):08x}.ogg"


def _drift(one: Experiment, table: Table, codes: np.ndarray) -> np.ndarray:
    """KL of the first pairs of each dose in their rows, NaN in all others: [R, K]."""
    asked: dict[int, int] = {}  # row -> its unsteered row
    for target in table.targets:
        doses = table.doses(target)
        for (arm, _), places in doses.items():
            if arm != "unsteered":
                plain = doses["unsteered", 0.0]
                asked |= {int(at): int(of) for at, of in zip(places[: one.config.drift_clips], plain)}
    drift = np.full((len(table.rows), codes.shape[1]), np.nan)
    if asked:
        drift[list(asked)] = drift_of(one, table.rows, codes, list(asked.values()), list(asked))
    return drift
