"""What steering does to the sound, beside every control: clips are made, heard, and compared in pairs.

The clips of a pair begin from the same noise and differ by their arm only (`arms`, `experiment`). What is heard in them
is in `measures`, the statistics in `comparisons`, what follows from them in `summary`.

Features differ in how much of them is needed. Unless a strength is given, each is steered at that one of `strengths`
which takes its concept farthest above both the unsteered clip and the random direction, and breaks at most half of the
clips, in `calibration` clips whose seeds are not used again.
"""

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from musae_jax.audio.io import write_audio
from musae_jax.errors import MusaeError
from musae_jax.files import write_json, write_json_lines
from musae_jax.labels.hearing import Hearing
from musae_jax.steering.arms import Row, Target, pair_number, plan_rows
from musae_jax.steering.experiment import Experiment, Progress, drift_of, make_codes, sound_of
from musae_jax.steering.measures import Ear, collapses, concept_measures, near, remeasure
from musae_jax.steering.summary import Readings, summarise

Dose = tuple[str, float]  # arm, strength


@dataclasses.dataclass(frozen=True)
class Listeners:
    """Who hears the clips.

    Attributes:
      ears: by source, `measures.CONCEPT_MEASURES` in that order.
      say: CLAP's embeddings of texts [N, E], for the adherence to prompts; None without CLAP.
      exemplars: CLAP's mean embedding [E] of each feature's strongest clips.
      corpus: CLAP's embeddings of music [M, E], from which Fréchet and kernel distances are taken.
    """

    ears: Mapping[str, Ear]
    say: Callable[[list[str]], np.ndarray] | None = None
    exemplars: Mapping[int, np.ndarray] = dataclasses.field(default_factory=dict)
    corpus: np.ndarray | None = None


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
    audio = sound_of(one, codes)
    table = Table(rows, targets, c.calibration, 0)
    broken = np.any(list(collapses(audio, codes).values()), axis=0)
    heard: dict[str, Hearing] = {}
    left = list(targets)
    for source, ear in listeners.ears.items():  # the most independent first, until all names are known
        heard[source] = _hear(ear, audio)
        for target in left:
            told = concept_measures(target.name, heard, listeners.exemplars.get(target.feature))
            if told:
                chosen[target.feature] = _strongest(next(iter(told.values())), broken, table.doses(target))
        left = [t for t in left if not concept_measures(t.name, heard, listeners.exemplars.get(t.feature))]
        if not left:
            break
    return chosen


def _strongest(values: np.ndarray, broken: np.ndarray, doses: Mapping[Dose, np.ndarray]) -> float:
    """The strength above 0 with the greatest gain over both unsteered and random clips, by values [R] of the concept,
    among those at which at most half of the clips break down, if there are such."""
    gains = {}
    for (arm, strength), places in doses.items():
        if arm == "sae" and strength > 0:
            beside = max(values[doses[dose]].mean() for dose in (("random", strength), ("unsteered", 0.0)))
            gains[strength] = (broken[places].mean() <= 0.5, values[places].mean() - beside)
    return max(sorted(gains), key=gains.__getitem__)


def _hear(ear: Ear, audio: np.ndarray) -> Hearing:
    return ear([str(n) for n in range(len(audio))], lambda clip: audio[int(clip)])


def measure_effects(
    one: Experiment,
    targets: Sequence[Target],
    listeners: Listeners,
    out: str | Path,
    others: Mapping[int, str] | None = None,
    name: str = "",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Generates, measures and compares; writes effects.jsonl, sounds.jsonl, summary.json and sounds/*.ogg to `out`.

    `others` are features with names, on which side effects are measured; `name` is the SAE's in the run folder. Returns
    the summary. A call that was killed goes on with the batches it had made.

    Raises:
      MusaeError: there is nothing to steer.
    """
    c, out, others = one.config, Path(out), others or {}
    if not targets:
        raise MusaeError("there is no feature to steer; name some first, with musae label")
    main = calibrate(one, targets, listeners, out, progress)
    table = Table(
        plan_rows(
            targets, {t.feature: one.arms(t.feature) for t in targets}, c.strengths, main, c.clips, c.calibration
        ),
        targets,
        c.clips,
        c.calibration,
    )
    rows = table.rows
    codes = make_codes(one, rows, out, progress)
    audio = sound_of(one, codes)
    heard = {source: _hear(ear, audio) for source, ear in listeners.ears.items()}
    features = sorted({*others, *(t.feature for t in targets)})
    active = remeasure(one.mg, one.sae, audio, features, min(c.batch_size, len(rows)))
    active = active / np.maximum(one.maximum[features], 1e-12)  # [R, F']
    adherence = _adherence(rows, heard, listeners)
    broken = collapses(audio, codes)
    doses = {t.feature: table.doses(t) for t in targets}
    drift = _drift(one, rows, codes, doses)
    embedding = heard["clap"].embedding if "clap" in heard else None

    readings, records, sounds, files = [], [], [], {}
    for target in targets:
        mine, strength = doses[target.feature], main[target.feature]
        values = concept_measures(target.name, heard, listeners.exemplars.get(target.feature))
        values["activation"] = active[:, features.index(target.feature)]
        if adherence is not None:
            values["adherence"] = adherence
        others_at = [features.index(f) for f, named in others.items() if f != target.feature and named != target.name]
        readings.append(
            Readings(
                target,
                strength,
                values={measure: {dose: of[at] for dose, at in mine.items()} for measure, of in values.items()},
                drift={dose: drift[at[: c.drift_clips]] for dose, at in mine.items() if dose[0] != "unsteered"},
                others={dose: active[at][:, others_at] for dose, at in mine.items() if dose[1] in (0.0, strength)},
                broken={kind: {dose: marks[at] for dose, at in mine.items()} for kind, marks in broken.items()},
                embedding={} if embedding is None else {dose: embedding[at] for dose, at in mine.items()},
                measures=c.measures,
            )
        )
        about = {"hook": one.sae.config.hook, "sae": name, "feature": target.feature, "name": target.name}
        for (arm, dose), places in mine.items():
            for number, place in enumerate(places):
                row = rows[place]
                where = {**about, "arm": arm, "strength": dose, "prompt": row.prompt, "seed": row.seed}
                told = {measure: round(float(of[place]), 5) for measure, of in values.items() if np.isfinite(of[place])}
                told |= {"kl": round(float(drift[place].mean()), 5)} if np.isfinite(drift[place, 0]) else {}
                records += [{**where, "measure": measure, "value": value} for measure, value in told.items()]
                if number < c.sounds and (arm == "sae" or dose in (0.0, strength)):
                    file = _file(row)
                    files[file] = place
                    sounds.append({**where, "text": row.text, "sound": file, **told})
    for file, place in files.items():
        write_audio(out / file, audio[place], one.mg.config.sampling_rate)
    write_json_lines(out / "effects.jsonl", records)
    write_json_lines(out / "sounds.jsonl", sounds)
    summary = summarise(readings, listeners.corpus, c.level, c.resamples, c.seed)
    about = {"hook": one.sae.config.hook, "sae": name}
    summary["features"] = [{**about, **row} for row in summary["features"]]
    summary["config"] = dataclasses.asdict(c)
    write_json(out / "summary.json", summary)
    shutil.rmtree(out / "codes")
    return summary


def _file(row: Row) -> str:
    who = "unsteered" if row.feature is None else f"f{row.feature}-{row.arm}-{row.strength:g}"
    return f"sounds/{who}-{pair_number(row.prompt, row.seed):08x}.ogg"


def _drift(
    one: Experiment, rows: Sequence[Row], codes: np.ndarray, doses: Mapping[int, Mapping[Dose, np.ndarray]]
) -> np.ndarray:
    """KL of the first pairs of each dose in their rows, NaN in all others: [R, K]."""
    asked: dict[int, int] = {}  # row -> its unsteered row
    for mine in doses.values():
        for (arm, _), places in mine.items():
            if arm != "unsteered":
                plain = mine["unsteered", 0.0]
                asked |= {int(at): int(of) for at, of in zip(places[: one.config.drift_clips], plain)}
    drift = np.full((len(rows), codes.shape[1]), np.nan)
    if asked:
        drift[list(asked)] = drift_of(one, rows, codes, list(asked.values()), list(asked))
    return drift


def _adherence(rows: Sequence[Row], heard: Mapping[str, Hearing], listeners: Listeners) -> np.ndarray | None:
    """Cosine of each clip and its prompt (without the words that an arm adds), NaN without one: [R]; None without
    CLAP or prompts."""
    texts = sorted({row.prompt for row in rows} - {""})
    if not texts or listeners.say is None or "clap" not in heard:
        return None
    said = dict(zip(texts, listeners.say(texts)))
    nothing = np.full(heard["clap"].embedding.shape[1], np.nan)
    return near(heard["clap"].embedding, np.stack([said.get(row.prompt, nothing) for row in rows]))
