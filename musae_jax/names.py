"""The stages that name the features of a run and judge the names: what `labels` and `validation` do with arrays, from
and to a run folder."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from musae_jax.activations.harvest import hook_name
from musae_jax.errors import MusaeError
from musae_jax.features.activity import Activity, neuron_activity, sae_activity
from musae_jax.features.contrasts import feature_contrasts
from musae_jax.features.families import families
from musae_jax.features.firing import MOST, Firing, find_firing
from musae_jax.files import read_json_lines, write_json, write_json_lines
from musae_jax.labels.descriptors import hear_descriptors, name_ends
from musae_jax.labels.detection import best_names
from musae_jax.labels.hearing import Hearing, hear_truth, join_hearings, load_hearing, more_clips, save_hearing
from musae_jax.labels.naming import name_features
from musae_jax.labels.onnx_tagger import load_onnx_folder
from musae_jax.labels.scores import shuffles
from musae_jax.labels.tags import hear_tags
from musae_jax.labels.truth import measure_truth, summarise_table, truth_table
from musae_jax.labels.vocabulary import MUSIC, POCKET
from musae_jax.labels.zero_shot import hear_words, with_any_text
from musae_jax.llm_stage import check_llm, judge_by_llm, name_by_llm
from musae_jax.models.ast import load_tagger
from musae_jax.models.clap_checkpoints import load_clap
from musae_jax.pocket import CLAP, TAGGERS
from musae_jax.sae.controls import neuron_sae, pca_sae, random_sae
from musae_jax.sae.formats import load_sae
from musae_jax.sae.sae import SAE
from musae_jax.validation.agreement import agreement
from musae_jax.validation.detections import Exam, examine, set_exam, summarise_llm, summarise_source
from musae_jax.validation.ducking import ducked_difference, ducked_sounds
from musae_jax.validation.filters import sweep_filters
from musae_jax.validation.intruder import intruder_scores
from musae_jax.validation.known_truth import Named, mark_names, name_table

if TYPE_CHECKING:
    from musae_jax.run import Run

Progress = Callable[[int, int, str], None]
CONTROL_PERMUTATIONS = 199
TABLE_PERMUTATIONS = 20  # of the table of truth, whose null needs its means only
DUCKED_CLIPS = 2  # of a feature
# Neurons and components are never silent, and do not say how often they fire: each is tried at all these rates, so that
# no concept is too rare for them.
DENSE, RATES = ("neurons", "pca"), (0.05, 0.1, MOST)
SAMPLE = 20_000  # positions that components and random directions are made from


EARS = ("descriptors", "tagger", "clap")
WEIGHTS = (".safetensors", ".onnx", ".bin")  # suffixes


def ear(run: "Run", source: str) -> str:
    """The tagger or the CLAP of a run, "" if it has none: the pocket's know composed music only."""
    if source == "descriptors":
        return source
    asked = getattr(run.config.label, source)
    return asked or ("pocket" if run.config.audio is None else "")


def hear(run: "Run", sources: Sequence[str] = EARS, progress: Progress | None = None) -> dict[str, Hearing]:
    """What those of `sources` that have an ear hear in the clips of a run; heard once, and kept in RUN/labels."""
    store = run.store(run.layers[0])
    clips, heard = store.clip_ids, {}
    for source in (one for one in EARS if one in sources):
        name = ear(run, source)
        if not name:
            continue
        path = run.folder / "labels" / f"heard-{source}.safetensors"
        known = _kept(path)
        about = f"{name} {_weights_sha256(source, name)} on {store.content_sha256[:16]}"
        if known is None or (known.clip_ids, known.ear) != (tuple(clips), about):
            known = replace(listen(run, source, clips, run.audio, progress), ear=about)
            save_hearing(path, known)
        heard[source] = _with_words(run, known)
    return heard


def listen(
    run: "Run",
    source: str,
    clips: Sequence[str],
    load: Callable[[str], np.ndarray],
    progress: Progress | None = None,
) -> Hearing:
    """What one of the run's ears hears in sounds of any kind, at the model's rate: `load(id)` gives audio [S]."""
    rate = run.model.config.sampling_rate
    if source == "descriptors":
        return hear_descriptors(clips, load, rate, progress)
    if source == "tagger":
        return _tags(ear(run, source), clips, load, rate, progress)
    words = POCKET if ear(run, source) == "pocket" else MUSIC
    return _with_words(run, hear_words(load_clap(place_of_clap(run)), words, clips, load, rate, progress))


def place_of_clap(run: "Run") -> Path:
    """The folder or hub id of the run's CLAP."""
    return _folders("clap", ear(run, "clap"))[0]


def _with_words(run: "Run", hearing: Hearing) -> Hearing:
    """CLAP's hearing with the power to judge any name; the pocket's knows its own words only."""
    if hearing.source != "clap" or ear(run, "clap") == "pocket":
        return hearing
    return with_any_text(hearing, load_clap(place_of_clap(run)))


def _folders(source: str, name: str) -> tuple[Path, ...]:
    """Where a source's models are; a hub id looks like a folder that is not there."""
    bundled = {"tagger": TAGGERS, "clap": (CLAP,)}
    return bundled[source] if name == "pocket" else (Path(name).expanduser(),)


def _weights_sha256(source: str, name: str) -> str:
    """Of the weights of a source's models, where they lie in folders; a hub id is taken at its word."""
    folders = _folders(source, name) if source in ("tagger", "clap") else ()
    digest = hashlib.sha256()
    for path in (path for folder in folders for path in sorted(folder.glob("*")) if path.suffix in WEIGHTS):
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _kept(path: Path) -> Hearing | None:
    """What was heard before, or None: what is missing or damaged is heard again."""
    try:
        return load_hearing(path)
    except MusaeError:
        return None


def _tags(name: str, clips: Sequence[str], load: Callable, rate: int, progress: Progress | None) -> Hearing:
    folders = _folders("tagger", name)
    taggers = [load_onnx_folder(one) if any(one.glob("*.onnx")) else load_tagger(one) for one in folders]
    return join_hearings([hear_tags(tagger, clips, load, rate, progress) for tagger in taggers])


def label_stage(run: "Run", progress: Progress | None = None) -> None:
    """Names from every source, and the table of truth where the music has one."""
    c, seed = run.config.label, run.config.seed
    check_llm(run, "label")
    heard = hear(run, c.sources, progress)
    names, table, summaries = [], [], []
    for layer in run.layers:
        hook, activity = hook_name(layer), activity_of(run, layer)
        if run.clips.concepts:
            truth = run.truth(activity.clip_ids, activity.frames)
            whole = truth.clip_ids == activity.clip_ids  # truth of some clips alone fills the table, and names nothing
            if whole and "truth" in c.sources:
                heard["truth"] = hear_truth(truth)
            activities = {"sae": activity, "neuron": neuron_activity(run.store(layer))}
            if run.config.harvest.control:
                activities["random_weights"] = activity_of(run, layer, control=True)
            scores = measure_truth(activities, truth, run.halves, run.tracks, TABLE_PERMUTATIONS, seed)
            rows = truth_table(scores, truth)
            table += [{"hook": hook, **row} for row in rows]
            summaries.append({"hook": hook, **summarise_table(rows, list(activities))})
        label, score = (firing_of(run, activity, half) for half in ("label", "score"))
        for source, hearing in sorted(heard.items(), key=lambda item: c.sources.index(item[0])):
            found = name_features(hearing, label, score, hook, run.name, run.tracks, c.permutations, seed, progress)
            names += [_with_ends(row) for row in found] if source == "descriptors" else found
    write_json_lines(run.folder / "labels" / "labels.jsonl", names)
    if table:
        write_json_lines(run.folder / "validation" / "truth_table.jsonl", table)
        # the page shows one line: the layer where features tell most
        write_json(run.folder / "validation" / "truth_summary.json", max(summaries, key=_told))
    if "llm" in c.sources:  # last and layer by layer: whatever becomes of it, the other names are there
        for layer in run.layers:
            names += name_by_llm(run, layer, activity_of(run, layer), progress)
            write_json_lines(run.folder / "labels" / "labels.jsonl", names)


def _told(summary: dict) -> float:
    return (summary.get("sae") or {}).get("mean_auroc") or 0.0


def _with_ends(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "evidence": {**row["evidence"], **(name_ends(row["name"]) or {})}}


def activity_of(run: "Run", layer: int, control: bool = False) -> Activity:
    """What the features of a layer's SAE, or of its control's, do over the run's clips."""
    return sae_activity(run.store(layer, control), load_sae(run.sae_folder(layer, control)))


def contrasts_of(run: "Run", activity: Activity) -> np.ndarray:
    """Each feature's contrast, by the clips of the half that names: [F, D]."""
    clips = [n for n, clip in enumerate(activity.clip_ids) if run.halves[clip] == "label"]
    return feature_contrasts(activity, clips, run.config.features.active_above)


def firing_of(run: "Run", activity: Activity, half: str, most: float = MOST) -> Firing:
    """Where all features that are ever active fire in the clips of one half, at most in a share `most` of them."""
    clips = [n for n, clip in enumerate(activity.clip_ids) if run.halves[clip] == half]
    if len(clips) < 2:
        raise MusaeError(f'the "{half}" half of the corpus has {len(clips)} clips, but 2 are needed; use more tracks')
    alive = np.flatnonzero(activity.clip_max.max(0) > 0)
    return find_firing(activity, clips, alive, run.config.features.active_above, most=most)


def firing_anew(run: "Run", fresh: Activity | None, confirmed: Firing, most: float = MOST) -> Firing:
    """Where features fire in the clips that mark their names: in fresh ones, else where the names were confirmed."""
    if fresh is None:
        return confirmed
    clips = range(len(fresh.clip_ids))
    return find_firing(fresh, clips, confirmed.features, run.config.features.active_above, most=most)


def validate_names(run: "Run", fresh: "Run | None" = None, progress: Progress | None = None) -> None:
    """RUN/validation: names.jsonl (each name judged by another source), features.jsonl (each feature's coherence,
    family and bucket), filters.jsonl, summary.json. `fresh` is music on which the composer's truth marks the names."""
    check_llm(run, "validate")
    heard = hear(run, progress=progress)  # who did not name may still judge
    names = read_json_lines(run.folder / "labels" / "labels.jsonl")
    truth, out = None, run.folder / "validation"
    judged, features, filters, sae_named, exams = [], [], [], [], {}
    controls: dict[str, list[Named]] = {}
    for layer in run.layers:
        hook, activity = hook_name(layer), activity_of(run, layer)
        if layer == run.layers[0]:
            truth = _truth(run, fresh, activity)
        mine = [row for row in names if row["hook"] == hook]
        exam = _exam(run, activity, heard)
        rows = examine(exam, mine, progress)
        _duck(run, activity, exam, rows, progress)
        judged += rows
        if run.config.validate.judge_llm:
            exams[hook] = exam, rows
        features += [{"hook": hook, "sae": run.name, **row} for row in _features(exam, rows)]
        passed = [row for row in rows if row["passed"] and row["source"] != "truth"]
        filters += [{"hook": hook, **row} for row in sweep_filters(activity, passed)]
        if truth is None:
            continue
        anew = activity_in(fresh, layer, load_sae(run.sae_folder(layer)))
        sae_named.append(Named(firing_of(run, activity, "label"), firing_anew(run, anew, exam.firing), passed))
        for name, sae, untrained in _controls(run, layer) if run.config.validate.controls else ():
            rates = RATES if name in DENSE else (MOST,)
            controls.setdefault(name, []).extend(_name_control(run, fresh, layer, sae, untrained, heard, rates))
    summary = _summary(run, names, judged, features, truth, sae_named, controls)  # marks the names as well
    if truth is not None:
        summary["marked_on"] = {"clips": len(sae_named[0].score.clip_ids), "fresh": fresh is not None}
    write_json_lines(out / "names.jsonl", judged)
    write_json_lines(out / "features.jsonl", features)
    write_json_lines(out / "filters.jsonl", filters)
    write_json(out / "summary.json", summary)
    if run.config.validate.judge_llm:  # last: whatever becomes of it, the other judgements are there
        for hook, (exam, rows) in exams.items():
            judge_by_llm(run, hook, exam, rows, progress)
        for source, one in summary["sources"].items():
            one["llm"] = summarise_llm([row for row in judged if row["source"] == source])
        write_json_lines(out / "names.jsonl", judged)
        write_json(out / "summary.json", summary)


def activity_in(run: "Run | None", layer: int, sae: SAE, control: bool = False) -> Activity | None:
    """What the features of any dictionary do over a run's clips, read by its model or by its control's."""
    return None if run is None else sae_activity(run.store(layer, control), sae)


def _truth(run: "Run", fresh: "Run | None", activity: Activity) -> Hearing | None:
    """The composer's truth of all the clips of the run, and of the fresh ones; None where it is not whole."""
    if not run.clips.concepts:
        return None
    known = hear_truth(run.truth(activity.clip_ids, activity.frames))
    if known.clip_ids != activity.clip_ids:
        return None
    if fresh is None:
        return known
    clips = fresh.store(fresh.layers[0]).clip_ids
    return more_clips(known, hear_truth(fresh.truth(clips, activity.frames)))


def _exam(run: "Run", activity: Activity, heard: dict[str, Hearing]) -> Exam:
    c = run.config.validate
    firing = firing_of(run, activity, "score")
    return set_exam(firing, heard, run.tracks, c.permutations, c.draws, run.config.seed, c.strong)


def _duck(run: "Run", activity: Activity, exam: Exam, rows: list[dict[str, Any]], progress: Progress | None) -> None:
    """Adds to the surest names that the tagger has confirmed what it hears when all but the spans in which the feature
    is active is made softer (`ducked`, see `validation.ducking`)."""
    name = ear(run, "tagger") if "tagger" in exam.hearings else ""
    if not name or not run.config.validate.ducked:
        return
    sure = sorted(
        (row for row in rows if row["passed"] and row["scorer"] == "tagger" and row["source"] != "truth"),
        key=lambda row: (-row["detection"], row["feature"]),
    )[: run.config.validate.ducked]
    rate, numbers = run.model.config.sampling_rate, {clip: n for n, clip in enumerate(activity.clip_ids)}
    place = {feature: n for n, feature in enumerate(exam.firing.features)}
    sounds: dict[str, np.ndarray] = {}
    for row in sure:
        fires = exam.firing.clips[:, place[row["feature"]]]
        strongest = sorted(
            (exam.firing.clip_ids[n] for n in np.flatnonzero(fires)),
            key=lambda clip: -activity.clip_mean[numbers[clip], row["feature"]],
        )[:DUCKED_CLIPS]
        for clip in strongest:
            curve = activity.curve(numbers[clip], row["feature"])
            sounds |= ducked_sounds(f"{row['feature']}/{clip}", run.audio(clip), rate, curve)
    if sounds:
        heard = listen(run, "tagger", list(sounds), sounds.__getitem__, progress)
        for row in sure:
            row["ducked"] = ducked_difference(heard, f"{row['feature']}/", row["name"])


def _features(exam: Exam, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a feature: coherence by the tagger's ear (or another's), its family by co-activation, and its bucket."""
    ears = [exam.hearings[name] for name in ("tagger", "clap", "descriptors") if name in exam.hearings]
    firing = exam.firing
    coherent = intruder_scores(ears[0].embedding, firing.clips, exam.tracks) if ears else None
    family = families(firing.clips)
    named = {row["feature"] for row in rows if row["passed"] and row["source"] != "truth"}
    result = []
    for n, feature in enumerate(firing.features):
        told = coherent is not None and np.isfinite(coherent["score"][n])
        is_coherent = bool(told and coherent["q"][n] <= 0.05)
        bucket = "named" if feature in named else "coherent but unnamed" if is_coherent else "neither"
        numbers = {key: round(float(coherent[key][n]), 4) for key in coherent} if told else None
        result.append({"feature": feature, "bucket": bucket, "family": int(family[n]), "intruder": numbers})
    return result


def _controls(run: "Run", layer: int) -> Iterator[tuple[str, SAE, bool]]:
    """The dictionaries that a figure must be printed beside, each with whether it reads the model of random weights."""
    store, sae = run.store(layer), load_sae(run.sae_folder(layer))
    chunks, room = [], SAMPLE
    for _, residuals in store.shards():
        flat = np.asarray(residuals[:, 1:], np.float32).reshape(-1, residuals.shape[-1])[::7][:room]
        chunks.append(flat)
        room -= len(flat)
        if room <= 0:
            break
    sample = np.concatenate(chunks)
    active = min(run.config.train.k, sae.config.d_sae)
    yield "random_sae", random_sae(jax.random.key(run.config.seed), sample, sae.config.d_sae, active), False
    yield "neurons", neuron_sae(sample), False
    yield "pca", pca_sae(sample), False
    if run.config.harvest.control:
        yield "random_weights", load_sae(run.sae_folder(layer, control=True)), True


def _name_control(
    run: "Run",
    fresh: "Run | None",
    layer: int,
    sae: SAE,
    untrained: bool,
    heard: dict[str, Hearing],
    rates: Sequence[float],
) -> list[Named]:
    """A control at each rate of firing, with those of its names that another source has confirmed."""
    activity, anew = (activity_in(where, layer, sae, untrained) for where in (run, fresh))
    return [_named_at(run, activity, anew, heard, most) for most in rates]


def _named_at(run: "Run", activity: Activity, fresh: Activity | None, heard: dict[str, Hearing], most: float) -> Named:
    label, score = (firing_of(run, activity, half, most) for half in ("label", "score"))
    c = run.config.validate  # of a control only which names pass is asked: fewer exchanges, no intervals
    exam = set_exam(score, heard, run.tracks, min(c.permutations, CONTROL_PERMUTATIONS), 0, run.config.seed, c.strong)
    rows = []
    for source, hearing in heard.items():
        best, _ = best_names(hearing.subset(label.clip_ids), label)
        about = {"hook": "", "sae": "", "source": source}
        rows += [
            {**about, "feature": label.features[n], "name": hearing.concepts[best[n]].name}
            for n in np.flatnonzero(best >= 0)
        ]
    passed = [row for row in examine(exam, rows) if row["passed"]]
    return Named(label, firing_anew(run, fresh, exam.firing, most), passed)


def _summary(
    run: "Run",
    names: Sequence[dict[str, Any]],
    judged: Sequence[dict[str, Any]],
    features: Sequence[dict[str, Any]],
    truth: Hearing | None,
    sae_named: Sequence[Named],
    controls: dict[str, list[Named]],
) -> dict[str, Any]:
    """What summary.json holds; the rows of names that passed get what truth says of them (`truth`)."""
    sources = list(dict.fromkeys(row["source"] for row in names))
    buckets = [row["bucket"] for row in features]
    summary: dict[str, Any] = {
        "features": len(features),
        "sources": {
            source: summarise_source(
                [row for row in judged if row["source"] == source], sum(row["source"] == source for row in names)
            )
            for source in sources
        },
        "agreement": agreement(names),
        "buckets": {name: buckets.count(name) for name in ("named", "coherent but unnamed", "neither")},
        "families": None,
        "overall": None,
        "controls": {},
    }
    if truth is not None:
        clips = sae_named[0].score.clip_ids
        tracks = [run.tracks.get(clip, clip) for clip in clips]  # fresh clips are tracks of their own
        orders = shuffles(tracks, run.config.validate.permutations, run.config.seed)
        marks = mark_names(truth, sae_named, orders)
        for one, mine in zip(sae_named, marks):
            for row, mark in zip(one.names, mine):
                row["truth"] = mark and {"lift": round(mark.lift, 4), "right": mark.right}

        def table(of: Sequence[str]) -> dict[str, Any]:
            rows = [[row["source"] in of for row in one.names] for one in sae_named]
            names = [replace(one, names=list(compress(one.names, use))) for one, use in zip(sae_named, rows)]
            return name_table(truth, names, orders, [list(compress(mine, use)) for mine, use in zip(marks, rows)])

        # controls are not put before an audio LLM: what stands beside them does without its names
        summary.update(table([source for source in sources if source != "llm"]))
        summary["controls"] = {name: name_table(truth, named, orders)["overall"] for name, named in controls.items()}
        for source in sources:
            if source != "truth":
                summary["sources"][source]["by_truth"] = table([source])["overall"]
    return summary
