"""A small run folder with everything a report shows, made of rendered notes; no model is involved."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import scipy.sparse

from musae_jax.audio.io import write_audio
from musae_jax.features.activity import Activity
from musae_jax.features.exemplars import find_exemplars, save_clips, save_exemplars
from musae_jax.features.firing import find_firing
from musae_jax.features.statistics import feature_statistics, save_statistics
from musae_jax.files import write_json, write_json_lines
from musae_jax.labels.descriptors import hear_descriptors
from musae_jax.labels.detection import best_names
from musae_jax.labels.hearing import Hearing, hear_truth
from musae_jax.labels.naming import name_features
from musae_jax.labels.scores import Concept, Truth
from musae_jax.labels.truth import measure_truth, summarise_table, truth_table
from musae_jax.names import _features, _summary
from musae_jax.steering.arms import Target
from musae_jax.steering.summary import Readings, summarise
from musae_jax.validation.detections import examine, set_exam
from musae_jax.validation.filters import sweep_filters
from musae_jax.validation.known_truth import Named

RATE, HOOK, SAE = 16000, "blocks.2.resid_post", "main"
VOICES = {
    "flute": (1, 0.1, 0.02),
    "organ": (1, 0.8, 0.6, 0.5),
    "piano": (1, 0.5, 0.3, 0.2, 0.1),
    "synth": (1, 0, 0.33, 0, 0.2),
}
CONCEPTS = (
    *(Concept(f"instrument: {v}", "instrument") for v in VOICES),
    Concept("drums: any", "drums"),
    Concept("tempo: 125 bpm", "tempo"),
    Concept("register: high", "register"),
    Concept("mode: minor", "mode"),
    Concept("percussion: snare", "percussion", "frame"),
    Concept("melody: onset", "melody", "frame"),
    Concept("metre: five four", "metre"),
)


def play(rng, seconds):
    """One clip: audio [S], truth bool [T, C] and a caption."""
    frames = round(seconds * 50)
    voice = rng.choice(list(VOICES))
    drums, fast, high, minor = rng.random(4) < (0.5, 0.4, 0.35, 0.5)
    truth = np.zeros((frames, len(CONCEPTS)), bool)
    truth[:, list(VOICES).index(voice)] = True
    truth[:, 4:8] = [drums, fast, high, minor]
    audio = np.zeros(round(seconds * RATE))
    length = 16 if fast else 28  # frames a note
    scale = (0, 2, 3, 5, 7, 8, 10) if minor else (0, 2, 4, 5, 7, 9, 11)
    for start in range(0, frames, length):
        time = np.arange(length * 320) / RATE
        pitch = 440 * 2 ** ((rng.choice(scale) + (12 if high else -9)) / 12)
        note = sum(a * np.sin(2 * np.pi * pitch * (h + 1) * time) for h, a in enumerate(VOICES[voice]))
        envelope = np.exp(-time * (4 if voice == "piano" else 0.4)) * np.minimum(1, time * 40)
        part = audio[start * 320 : start * 320 + len(time)]
        part += (0.16 * note * envelope)[: len(part)]
        truth[start : start + 2, 9] = True
        if drums and (start // length) % 2:
            hit = audio[start * 320 : start * 320 + 2400]
            hit += (0.3 * rng.normal(size=2400) * np.exp(-np.arange(2400) / 500))[: len(hit)]
            truth[start : start + 5, 8] = True
    words = (
        "fast" if fast else "slow",
        voice,
        "with drums" if drums else "without drums",
        "minor" if minor else "major",
    )
    return audio.astype(np.float32), truth, " ".join(words)


def activities(rng, truth, features, noise):
    """Features that tell of the concepts, each as well as `noise` lets it, then features of nothing. [n, T, F]"""
    clips, frames, concepts = truth.shape
    values = np.zeros((clips, frames, features), np.float32)
    shape = np.exp(-np.arange(12) / 4)  # a burst dies away
    for f in range(features):
        burst = rng.random((clips, frames)) < rng.choice([0.002, 0.01, 0.05])
        if f % 5 == 4:
            burst &= (rng.random(clips) < 0.15)[:, None]  # rare enough for the filter
        values[:, :, f] = np.apply_along_axis(
            lambda r: np.convolve(r, shape)[:frames], 1, burst * rng.random((clips, frames))
        )
        if f < 3 * concepts:
            knows = rng.random(clips) < 0.95 - noise * (f // concepts) - noise
            drift = 0.55 + 0.45 * np.sin(np.linspace(0, rng.uniform(4, 20), frames) + rng.uniform(0, 6, (clips, 1)))
            values[:, :, f] *= 0.3
            values[:, :, f] += truth[:, :, f % concepts] * knows[:, None] * drift * rng.uniform(0.6, 3)
    values[:, :, -features // 12 :] = 0  # dead
    values[values < 0.12] = 0
    return values[:, :, rng.permutation(features)]


def ear(source, rng, known, noise):
    """A source that hears the truth, as well as `noise` lets it; what sounds alike to it is alike in truth."""
    truth = hear_truth(known)
    clips = (truth.clips + noise * rng.normal(size=truth.clips.shape)).astype(np.float32)
    parts = (truth.parts + noise * rng.normal(size=truth.parts.shape)).astype(np.float32)
    return Hearing(source, truth.clip_ids, truth.concepts, clips, parts, clips)


def ask(label, rng, count=6):
    """What an audio LLM says of the first features: names that need not be right, without a score."""
    return [
        {
            "hook": HOOK, "sae": SAE, "feature": feature, "source": "llm", "name": rng.choice(CONCEPTS[:8]).name,
            "confidence": 0.8, "evidence": {
                "model": "an-audio-llm", "presentation": "captions", "clips": list(label.clip_ids[:3]),
                "captions": ["a flute", None, "drums"], "prompt": "merge-1", "description": "A steady <b>pulse</b>.",
                "concepts": [{"name": "pulse", "confidence": 0.7}],
            },
        }
        for feature in label.features[:count]
    ]  # fmt: skip


def prove(out, activity, halves, labels, heard, known, controls):
    """The files of the validation stage, for the names in `labels` and for what else could have been named."""
    tracks = {clip: clip for clip in activity.clip_ids}
    config = SimpleNamespace(seed=0, validate=SimpleNamespace(permutations=99))

    def firing(of, half):
        clips = [n for n, clip in enumerate(of.clip_ids) if halves[clip] == half]
        return find_firing(of, clips, np.flatnonzero(of.clip_max.max(0) > 0), 0.2)

    def exam(of):
        return set_exam(firing(of, "score"), heard, tracks, 99, 50)

    def named(of, rows):
        return Named(
            firing(of, "label"), firing(of, "score"), [r for r in rows if r["passed"] and r["source"] != "truth"]
        )

    def name(of):
        label = firing(of, "label")
        for source, hearing in heard.items():
            best, _ = best_names(hearing.subset(label.clip_ids), label)
            about = {"hook": "", "sae": "", "source": source}
            for n in np.flatnonzero(best >= 0):
                yield {**about, "feature": label.features[n], "name": hearing.concepts[best[n]].name}

    judged = examine(exam(activity), labels)
    features = _features(exam(activity), judged)
    sae = named(activity, judged)
    write_json_lines(out / "names.jsonl", judged)
    write_json_lines(out / "features.jsonl", [{"hook": HOOK, "sae": SAE, **row} for row in features])
    write_json_lines(out / "filters.jsonl", [{"hook": HOOK, **row} for row in sweep_filters(activity, sae.names)])
    beside = {which: [named(of, examine(exam(of), list(name(of))))] for which, of in controls.items()}
    summary = _summary(
        SimpleNamespace(tracks=tracks, config=config),
        labels,
        judged,
        features,
        hear_truth(known) if known else None,
        [sae],
        beside if known else {},
    )
    summary["marked_on"] = {"clips": len(sae.score.clip_ids), "fresh": False}
    write_json(out / "summary.json", summary)


def make_run(run, clips=60, features=120, seconds=8.0, seed=0, truth=True):
    """Writes the files of a finished run to `run` and returns it."""
    run, rng = Path(run), np.random.default_rng(seed)
    ids = tuple(f"000-{n:05d}" for n in range(clips))
    played = [play(rng, seconds) for _ in ids]
    audio = {i: p[0] for i, p in zip(ids, played)}
    known = Truth(ids, CONCEPTS, np.stack([p[1] for p in played]))
    halves = {c: "label" if n % 2 else "score" for n, c in enumerate(ids)}
    frames = known.active.shape[1]

    def dictionary(noise, count):
        return Activity(
            ids, frames, scipy.sparse.csr_array(activities(rng, known.active, count, noise).reshape(-1, count))
        )

    activity = dictionary(0.08, features)
    folder = run / "features" / HOOK / SAE
    statistics = feature_statistics(activity)
    save_statistics(folder, statistics)
    found = find_exemplars(activity, halves, count=4, held_out=2)
    save_exemplars(folder, found)
    captions = {i: p[2] for i, p in zip(ids, played)} if truth else None
    save_clips(folder, (e.clip for e in found), audio.__getitem__, RATE, captions)

    label, score = (
        find_firing(
            activity,
            [n for n, clip in enumerate(ids) if halves[clip] == half],
            np.flatnonzero(activity.clip_max.max(0) > 0),
            0.2,
        )
        for half in ("label", "score")
    )
    heard = {"descriptors": hear_descriptors(ids, audio.__getitem__, RATE)}
    sources = dict(heard)
    if truth:
        heard |= {"tagger": ear("tagger", rng, known, 0.3), "clap": ear("clap", rng, known, 0.5)}
        sources = {"truth": hear_truth(known), **heard}
    labels = [
        row for hearing in sources.values() for row in name_features(hearing, label, score, HOOK, SAE, permutations=99)
    ]
    controls = {}
    if truth:
        labels += ask(label, rng)
        neuron = dictionary(0.16, 24)
        neuron = Activity(ids, frames, neuron.values.todense() + rng.normal(size=neuron.values.shape) * 0.2)
        controls = {"neurons": neuron, "random_weights": dictionary(0.4, 60)}
        scores = measure_truth(
            {"sae": activity, "neuron": neuron, "random_weights": controls["random_weights"]}, known, halves
        )
        table = truth_table(scores, known)
        write_json_lines(run / "validation" / "truth_table.jsonl", table)
        write_json(run / "validation" / "truth_summary.json", summarise_table(table, list(scores)))
        row = {"accuracy": 0.93, "balanced_accuracy": 0.9, "auroc": 0.96, "base_rate": 0.25, "softmax": True}
        write_json_lines(
            run / "validation" / "judge.jsonl", [{"concept": c.name, **row} for c in CONCEPTS if c.level == "clip"]
        )
        steer(run / "steering", rng, labels)
    write_json_lines(run / "labels" / "labels.jsonl", labels)
    prove(run / "validation", activity, halves, labels, heard, known if truth else None, controls)

    quality = {"fvu": 0.214, "fvu_within_positions": 0.262, "l0": 31.8, "dead_share": 0.083, "l2_ratio": 0.94}
    control = {"fvu": 0.378, "fvu_within_positions": 0.41, "l0": 32.1, "dead_share": 0.31, "l2_ratio": 0.9}
    write_json(run / "sae" / HOOK / SAE / "metrics.json", quality)
    write_json(run / "sae" / HOOK / "random-weights" / "metrics.json", control)
    steps = range(20, 2001, 20)
    write_json_lines(
        run / "sae" / HOOK / SAE / "train.jsonl", [{"step": s, "fvu": 0.2 + 0.8 * np.exp(-s / 250)} for s in steps]
    )
    write_json(
        run / "run.json", {"config": {"layers": [2], "seed": seed, "seconds": seconds}, "versions": {"jax": "0.10.2"}}
    )
    return run


def steer(out, rng, labels):
    """Effects of two features: sounds that differ, with measures that go with them."""
    best = sorted((r for r in labels if r["source"] == "truth"), key=lambda r: -r["confidence"])
    best = [best[0], next(r for r in best if r["name"] != best[0]["name"])]
    pairs = [
        ("", 0),
        ("a slow melody", 0),
        ("", 1),
        ("a slow melody", 1),
        ("", 2),
        ("a slow melody", 2),
        ("", 3),
        ("", 4),
    ]
    doses = {("unsteered", 0.0): -2, ("sae", 0.5): -0.8, ("random", 0.5): -1.9, ("sae", 1.0): 1, ("random", 1.0): -1.7}
    doses |= {("inactive", 1.0): -2, ("diff_in_means", 1.0): 0.4, ("prompt", 0.0): 0.8}
    sounds, readings = [], []
    for row in best:
        target = Target(row["feature"], row["name"], sources=("tagger", "clap"), prompts=("", "a slow melody"))
        about = {"hook": HOOK, "sae": SAE, "feature": target.feature, "name": target.name}
        values = {measure: {} for measure in ("judge", "activation", "adherence")}
        for (arm, strength), level in doses.items():
            odds = level + 0.5 * rng.normal(size=len(pairs))
            asked = np.asarray([bool(prompt) for prompt, _ in pairs])
            values["judge"][arm, strength] = odds
            values["activation"][arm, strength] = 0.2 / (1 + np.exp(-odds))
            values["adherence"][arm, strength] = np.where(asked, 0.5 - 0.02 * strength, np.nan)
            for (prompt, seed), judged in list(zip(pairs, odds))[:2]:
                who = "unsteered" if arm == "unsteered" else f"f{target.feature}-{arm}-{strength:g}"
                sound = f"sounds/{who}-{bool(prompt):d}{seed}.ogg"
                if not (out / sound).exists():
                    write_audio(out / sound, play(rng, 4.0)[0], RATE)
                sounds.append({
                    **about, "arm": arm, "strength": strength, "prompt": prompt, "seed": seed, "text": prompt,
                    "sound": sound, "judge": float(judged), "activation": 0.05,
                })  # fmt: skip
        readings.append(
            Readings(
                target,
                1.0,
                values,
                {dose: np.full((4, 4), 1 + dose[1]) for dose in doses if dose[0] != "unsteered"},
                {dose: rng.normal(size=(len(pairs), 5)) for dose in doses},
                {"silent": {dose: np.zeros(len(pairs), bool) for dose in doses}},
                {dose: rng.normal(size=(len(pairs), 6)) for dose in doses},
            )
        )
    write_json_lines(out / "sounds.jsonl", sounds)
    summary = summarise(readings, rng.normal(size=(30, 6)))
    summary["features"] = [{"hook": HOOK, "sae": SAE, **row} for row in summary["features"]]
    write_json(out / "summary.json", summary)


if __name__ == "__main__":
    from musae_jax.explorer.report import write_report

    folder = make_run(sys.argv[1], *map(int, sys.argv[2:]))
    print(
        write_report(folder, "Concepts in the pocket model", {"model": "pocket", "music": "60 composed clips of 8 s"})
    )
