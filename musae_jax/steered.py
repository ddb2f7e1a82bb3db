"""The stage that steers features of a run and measures what that does: what `steering` does with arrays, from and to a
run folder."""

import shutil
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from musae_jax.activations.harvest import hook_name
from musae_jax.compose.captions import PHRASES
from musae_jax.config import SteerConfig
from musae_jax.errors import MusaeError
from musae_jax.features.activity import Activity
from musae_jax.features.exemplars import find_exemplars
from musae_jax.features.statistics import load_statistics
from musae_jax.files import read_json_lines, write_json, write_json_lines
from musae_jax.labels.scores import Truth
from musae_jax.labels.vocabulary import counterparts
from musae_jax.models.clap import embed_text
from musae_jax.models.clap_checkpoints import load_clap
from musae_jax.names import activity_of, contrasts_of, ear, firing_of, hear, listen, place_of_clap
from musae_jax.pocket import JUDGE
from musae_jax.sae.formats import load_sae, save_contrast
from musae_jax.sae.sae import SAE
from musae_jax.steering.arms import (
    Target,
    choose_targets,
    contrast_directions,
    inactive_direction,
    inactive_feature,
)
from musae_jax.steering.effects import measure_effects
from musae_jax.steering.experiment import EffectsConfig, Experiment, Progress
from musae_jax.steering.listening import Listeners
from musae_jax.steering.measures import Ear, judge_ear
from musae_jax.steering.paper import PROMPT, paper_table
from musae_jax.validation.judge import Judge, judge_rows, load_judge

if TYPE_CHECKING:
    from musae_jax.run import Run

EXEMPLARS = 4  # clips of the half that did not name, whose mean embedding a feature's sound is compared with
FRAMES = 12_000  # of the half that names, from which directions of what comes and goes are read


def steer_stage(run: "Run", progress: Progress | None = None) -> None:
    """RUN/steering: confirmed names of the first layer steered, beside every control; without any, the best-named."""
    c, layer = run.config.steer, run.layers[0]
    rows = [row for row in read_json_lines(run.folder / "labels" / "labels.jsonl") if row["hook"] == hook_name(layer)]
    confirmed = _confirmed(run, layer)
    chosen = [row for row in rows if (row["feature"], row["source"], row["name"]) in confirmed] or rows
    judge = load_judge(JUDGE) if run.config.audio is None else None  # it knows the composer's concepts only
    if judge is not None:
        write_json_lines(run.folder / "validation" / "judge.jsonl", judge_rows(judge))
    captions = _captions(run)
    targets = [
        replace(
            target,
            phrase=_phrase(target.name),
            sources=(*target.sources, *confirmed.get((target.feature, *target.sources, target.name), ())),
            prompts=_prompts(c.prompt, captions, target.name, c.captions),
        )
        for target in choose_targets(chosen, judge.names if judge else (), c.features)
    ]
    if not targets:  # no name rose above its null, so there is nothing to steer by
        shutil.rmtree(run.folder / "steering" / "sounds", ignore_errors=True)
        for name in ("summary.json", "effects.jsonl", "sounds.jsonl"):
            (run.folder / "steering" / name).unlink(missing_ok=True)
        return
    config = effects_config(c, run.config.seed)
    activity = activity_of(run, layer)
    listeners = _listeners(run, activity, targets, judge)
    others: dict[int, set[str]] = {}
    for row in chosen:
        others.setdefault(row["feature"], set()).add(row["name"])
    one = _experiment(run, layer, activity, targets, config)
    measure_effects(one, targets, listeners, run.folder / "steering", others, run.name, progress)


def effects_config(c: SteerConfig, seed: int) -> EffectsConfig:
    """How clips are made and compared for these settings; raises `MusaeError` for what cannot be."""
    return EffectsConfig(
        strengths=c.strengths,
        strength=c.strength,
        arms=tuple(dict.fromkeys(("sae", "random", *c.arms))),
        how=c.how,
        branches=c.branches,
        clips=c.clips,
        calibration=c.calibration,
        seconds=c.seconds,
        seed=seed,
    )


def steer_like_the_paper(run: "Run", c: SteerConfig, progress: Progress | None = None) -> dict[str, Any]:
    """The protocol of arXiv 2505.18186, Table 2: kept features, one prompt, strength 1 in both branches; a feature
    counts when CLAP hears its sound nearer to its own exemplars than the unsteered one. Writes RUN/steering/paper and
    returns its table."""
    if not ear(run, "clap"):
        raise MusaeError("the paper's protocol needs a CLAP; name one with musae label --run RUN --clap ID")
    layer, activity = run.layers[0], activity_of(run, run.layers[0])
    kept = np.flatnonzero(load_statistics(run.features_folder(layer)).kept)
    heard = sorted({one.feature for one in find_exemplars(activity, run.halves, kept, 0, EXEMPLARS, run.tracks)})
    if not heard or c.features < 1:
        raise MusaeError(
            f"{len(heard)} kept features have exemplars in held-out tracks and {c.features} are asked for; it takes one"
        )
    drawn = np.random.default_rng(run.config.seed).permutation(heard)[: c.features]
    targets = [Target(int(f), f"feature {f}", prompts=(PROMPT,)) for f in sorted(drawn)]
    config = EffectsConfig(
        strengths=(1.0,),
        strength=1.0,
        how="add",
        arms=("sae", "random"),
        branches="both",
        clips=c.clips,
        calibration=0,
        seconds=c.seconds,
        measures=("exemplars",),
        drift_clips=1,
        seed=run.config.seed,
    )
    one = _experiment(run, layer, activity, targets, config)
    out, listeners = run.folder / "steering" / "paper", _listeners(run, activity, targets, None)
    summary = measure_effects(
        one, targets, replace(listeners, ears={"clap": listeners.ears["clap"]}), out, name=run.name, progress=progress
    )
    table = paper_table(summary, out, one.sae)
    write_json(out / "table.json", table)
    return table


def _confirmed(run: "Run", layer: int) -> dict[tuple[int, str, str], tuple[str, ...]]:
    """Who confirmed a name that passed, by feature, source and name; what the composer's truth says is told, not found,
    and left out."""
    path = run.folder / "validation" / "names.jsonl"
    rows = read_json_lines(path) if path.exists() else []
    return {
        (row["feature"], row["source"], row["name"]): (row["scorer"],)
        for row in rows
        if row["passed"] and row["hook"] == hook_name(layer) and row["source"] != "truth"
    }


def _captions(run: "Run") -> list[str]:
    """What the composer wrote of its clips, in a fixed random order; nothing of other music."""
    if run.config.audio is not None:
        return []
    captions = sorted({clip.caption for clip in run.clips.clips if clip.caption})
    return [captions[n] for n in np.random.default_rng(run.config.seed).permutation(len(captions))]


def _phrase(name: str) -> str:
    meant = [one for one in counterparts(name) if one in PHRASES]
    return PHRASES[meant[0]][0] if meant else name.replace(": ", " ")


def _prompts(prompt: str, captions: Iterable[str], name: str, count: int) -> tuple[str, ...]:
    """The prompt asked for; or none, and captions that do not speak of the name."""
    if prompt:
        return (prompt,)
    words = [word for one in counterparts(name) for word in PHRASES.get(one, ())]
    fitting = [caption for caption in captions if not any(word in caption for word in words)]
    return ("", *fitting[:count])


def _listeners(run: "Run", activity: Activity, targets: Iterable[Target], judge: Judge | None) -> Listeners:
    """The run's ears; with CLAP also what it heard in the corpus, whose other half gives exemplars."""
    sources = [source for source in ("tagger", "clap") if ear(run, source)]
    ears: dict[str, Ear] = {source: partial(listen, run, source) for source in (*sources, "descriptors")}
    if judge is not None:
        ears = {"judge": judge_ear(judge, run.model.config.sampling_rate), **ears}
    if "clap" not in ears:
        return Listeners(ears)
    known = hear(run, ("clap",))["clap"]
    place = {clip: n for n, clip in enumerate(known.clip_ids)}
    features = [target.feature for target in targets]
    exemplars: dict[int, list[np.ndarray]] = {}
    for one in find_exemplars(activity, run.halves, features, 0, EXEMPLARS, run.tracks):
        exemplars.setdefault(one.feature, []).append(known.embedding[place[one.clip]])
    held_out = [place[clip] for clip in known.clip_ids if run.halves[clip] == "score"]
    clap = load_clap(place_of_clap(run))
    return Listeners(
        ears,
        say=lambda texts: embed_text(clap, texts),
        exemplars={feature: np.mean(found, 0) for feature, found in exemplars.items()},
        corpus=known.embedding[held_out],
    )


def _experiment(
    run: "Run", layer: int, activity: Activity, targets: Iterable[Target], config: EffectsConfig
) -> Experiment:
    """The directions of all arms; the other layer is that half of the depth away."""
    sae, depth = load_sae(run.sae_folder(layer)), run.model.config.decoder.num_hidden_layers
    if config.how == "contrast" and sae.contrast is None:  # in a run begun before there were any
        sae = sae.replace(contrast=contrasts_of(run, activity))
        save_contrast(run.sae_folder(layer), sae.contrast)
    other = (layer + depth // 2) % depth
    directions = _directions(run, layer, sae, activity, list(targets), config)
    return Experiment(
        run.model, sae, directions, other if other != layer else None, np.asarray(sae.maximum, np.float32), config
    )


def _directions(
    run: "Run", layer: int, sae: SAE, activity: Activity, targets: list[Target], config: EffectsConfig
) -> dict[int, dict[str, np.ndarray]]:
    """Directions of each feature's arms, from the half that names: where the composer wrote the concept, or, where
    nobody knows, where the feature fires. There the difference in means would be the contrast over again, and is left
    out where that is what is added."""
    directions: dict[int, dict[str, np.ndarray]] = {target.feature: {} for target in targets}
    if "decoder" in config.arms and config.how != "add":
        directions = {feature: {"decoder": np.asarray(sae.params["W_dec"][feature])} for feature in directions}
    asked = {"inactive", "diff_in_means", "probe", "pca"} & set(config.arms)
    if not asked:
        return directions
    firing = firing_of(run, activity, "label")
    ids, means, frames, step = _residuals(run, layer)
    truth = _truth(run, ids, activity.frames)
    fired = {feature: firing.clips[:, n] for n, feature in enumerate(firing.features)}
    order = [firing.clip_ids.index(clip) for clip in ids]
    numbers = {clip: n for n, clip in enumerate(activity.clip_ids)}
    clip_mean = activity.clip_mean[[numbers[clip] for clip in firing.clip_ids]]
    by_clip, by_frame, by_firing = {}, {}, {}
    for target in targets:
        fires = fired[target.feature]
        if "inactive" in asked and fires.any() and not fires.all():
            other = inactive_feature(clip_mean, fires, target.feature)
            directions[target.feature]["inactive"] = inactive_direction(sae, target.feature, other, config.how)
        known = [n for n, one in enumerate(truth.concepts) if one.name in counterparts(target.name)] if truth else []
        if known and truth.concepts[known[0]].level == "frame":
            by_frame[target.feature] = truth.active[:, ::step, known].any(2)
        elif known:
            by_clip[target.feature] = (truth.active[:, :, known].mean(1) > 0.5).any(1, keepdims=True)
        else:
            by_firing[target.feature] = fires[order][:, None]
    blind = asked - {"diff_in_means"} if config.how == "contrast" else asked
    for x, holds, arms in ((means, by_clip, asked), (frames, by_frame, asked), (means, by_firing, blind)):
        for feature, found in contrast_directions(x, holds, arms).items():
            directions[feature] |= found
    return directions


def _residuals(run: "Run", layer: int) -> tuple[tuple[str, ...], np.ndarray, np.ndarray, int]:
    """Of the clips of the half that names: their ids, mean residuals [n, 1, D], every so many-th of their frames
    [n, T', D], and how many that is."""
    ids: list[str] = []
    means, frames, step = [], [], 1
    wanted = sum(half == "label" for half in run.halves.values())
    for names, residuals in run.store(layer).shards():
        chosen = [n for n, clip in enumerate(names) if run.halves[clip] == "label"]
        if chosen:
            block = np.asarray(residuals[chosen, 1:], np.float32)  # without the start step
            step = max(1, wanted * block.shape[1] // FRAMES)
            ids += [names[n] for n in chosen]
            means.append(block.mean(1, keepdims=True))
            frames.append(block[:, ::step])
    return tuple(ids), np.concatenate(means), np.concatenate(frames), step


def _truth(run: "Run", clips: tuple[str, ...], frames: int) -> Truth | None:
    """What the composer wrote of these clips, or None where it is not known of all."""
    if not run.clips.concepts:
        return None
    truth = run.truth(clips, frames)
    return truth if truth.clip_ids == clips else None
