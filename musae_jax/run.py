"""The road: the stages of a run folder in order, each a function that reads what the last one wrote.

Every stage is resumable by itself; `run_road` also skips the stages that run.json calls done. The layout of a run
folder is in the README.
"""

import dataclasses
import functools
import platform
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from musae_jax.activations.harvest import harvest, hook_name
from musae_jax.activations.store import Store, open_store
from musae_jax.audio.clips import ClipSource, load_clip, load_truth, open_clips, split_tracks
from musae_jax.compose.dataset import write_dataset
from musae_jax.config import RunConfig, from_record, to_record
from musae_jax.errors import MusaeError
from musae_jax.features.activity import Activity, neuron_activity, sae_activity
from musae_jax.features.exemplars import find_exemplars, save_clips, save_exemplars
from musae_jax.features.statistics import FilterConfig, feature_statistics, load_statistics, save_statistics
from musae_jax.files import read_json, write_json, write_json_lines
from musae_jax.labels.descriptors import describe_clips, name_by_descriptors
from musae_jax.labels.truth import gather_truth, measure_truth, name_by_truth, summarise_table, truth_table
from musae_jax.models.checkpoints import load_musicgen
from musae_jax.models.musicgen import MusicGen, random_musicgen
from musae_jax.sae.batch_topk import BatchTopKConfig
from musae_jax.sae.formats import load_sae, save_maximum
from musae_jax.sae.train import train_sae

Progress = Callable[[int, int, str], None]
CONTROL = "control"  # folder of everything made from the random-weights model


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder and its config; what several stages need is found here, once."""

    folder: Path
    config: RunConfig

    @functools.cached_property
    def model(self) -> MusicGen:
        return load_musicgen(self.config.model)

    @functools.cached_property
    def clips(self) -> ClipSource:
        return open_clips(self.config.audio or self.folder / "music", self.config.compose.seconds)

    @functools.cached_property
    def halves(self) -> dict[str, str]:
        """Clip id -> "label" or "score"."""
        return split_tracks(self.clips.clips, self.config.seed)

    @property
    def layers(self) -> tuple[int, ...]:
        return self.config.harvest.layers or (self.model.config.decoder.num_hidden_layers // 2,)

    @property
    def name(self) -> str:
        """The SAE's folder name."""
        return f"batchtopk-{self.config.train.d_sae}-k{self.config.train.k}"

    def sae_folder(self, layer: int, control: bool = False) -> Path:
        return self.base(control) / "sae" / hook_name(layer) / self.name

    def store(self, layer: int, control: bool = False) -> Store:
        return open_store(self.base(control) / "activations" / hook_name(layer))

    def features_folder(self, layer: int) -> Path:
        return self.folder / "features" / hook_name(layer) / self.name

    def base(self, control: bool) -> Path:
        return self.folder / CONTROL if control else self.folder


def compose_stage(run: Run, progress: Progress | None = None) -> None:
    """Composes the corpus, unless the user brought one."""
    if run.config.audio is None:
        c = run.config.compose
        write_dataset(run.folder / "music", c.clips, c.seed, c.seconds, run.model.config.sampling_rate, progress)


def harvest_stage(run: Run, progress: Progress | None = None) -> None:
    """Residuals of the model, and of the same architecture with random decoder weights (its codec is the trained one)."""
    c, mg = run.config, run.model
    write_json(
        run.folder / "clips.json",
        {
            "clips": len(run.clips.clips),
            "skipped": [{"path": path, "reason": reason} for path, reason in run.clips.skipped],
            "silent": list(run.clips.silent),
        },
    )
    options = {"seconds": c.compose.seconds, "batch_size": c.harvest.batch_size, "progress": progress}
    harvest(mg, run.clips.clips, run.layers, out=run.folder / "activations", model=c.model, **options)
    if c.harvest.control:
        drawn = random_musicgen(mg.config, jax.random.key(c.seed + 1))
        mixed = mg.replace(params={**drawn.params, "audio": mg.params["audio"]})
        out = run.folder / CONTROL / "activations"
        harvest(mixed, run.clips.clips, run.layers, out=out, model=f"{c.model}, random weights", **options)


def train_stage(run: Run, progress: Progress | None = None) -> None:
    """One SAE a layer, trained on the label half and measured on the other; the control likewise."""
    held_out = [id for id, half in run.halves.items() if half == "score"]
    c = run.config.train
    for control in (False, True)[: 1 + run.config.harvest.control]:
        for layer in run.layers:
            store = run.store(layer, control)
            recipe = BatchTopKConfig(store.d_in, c.d_sae, c.k, c.steps, c.batch_size, seed=run.config.seed)
            train_sae(store, recipe, run.sae_folder(layer, control), held_out, progress=progress)


def features_stage(run: Run, progress: Progress | None = None) -> None:
    """Statistics, exemplars, and the sound of the clips they name."""
    c = run.config.features
    criteria = FilterConfig(c.minimum_share, c.maximum_share)
    tracks = {clip.id: clip.track for clip in run.clips.clips}
    by_id = {clip.id: clip for clip in run.clips.clips}
    rate = run.model.config.sampling_rate
    for layer in run.layers:
        folder = run.features_folder(layer)
        activity = _activity(run, layer)
        statistics = feature_statistics(activity, criteria)
        save_statistics(folder, statistics, criteria)
        save_maximum(run.sae_folder(layer), statistics.maximum)
        kept = np.flatnonzero(statistics.kept)
        exemplars = find_exemplars(activity, run.halves, kept, c.exemplars, c.exemplars, tracks)
        save_exemplars(folder, exemplars)
        heard = sorted({exemplar.clip for exemplar in exemplars})
        for done, clip in enumerate(heard, start=1):
            save_clips(folder, {clip: load_clip(by_id[clip], rate, run.config.compose.seconds)}, rate)
            if progress:
                progress(done, len(heard), "exemplar clips")


def label_stage(run: Run, progress: Progress | None = None) -> None:
    """Names from truth (where the corpus carries it) and from descriptors; the table of truth."""
    by_id = {clip.id: clip for clip in run.clips.clips}
    tracks = {clip.id: clip.track for clip in run.clips.clips}
    rate, seconds = run.model.config.sampling_rate, run.config.compose.seconds
    permutations, seed = run.config.label.permutations, run.config.seed
    rows, tables = [], {}
    ids = run.store(run.layers[0]).clip_ids
    values = describe_clips(ids, lambda id: load_clip(by_id[id], rate, seconds), rate, progress)
    for layer in run.layers:
        activity = _activity(run, layer)
        kept = np.flatnonzero(load_statistics(run.features_folder(layer)).kept)
        hook = hook_name(layer)
        if run.clips.concepts:
            truth = gather_truth(ids, run.clips.concepts, lambda id: load_truth(by_id[id]), activity.frames)
            activities = {"sae": activity, "neuron": neuron_activity(run.store(layer))}
            if run.config.harvest.control:
                activities["random_weights"] = _activity(run, layer, control=True)
            scores = measure_truth(activities, truth, run.halves, tracks, permutations, seed)
            rows += name_by_truth(scores["sae"], truth, hook, run.name, kept)
            table = truth_table(scores, truth)
            tables[hook] = {"rows": table, "summary": summarise_table(table, list(activities))}
        rows += name_by_descriptors(activity, values, run.halves, hook, run.name, tracks, kept, permutations, seed)
    write_json_lines(run.folder / "labels" / "labels.jsonl", rows)
    if tables:
        write_json(run.folder / "labels" / "truth_table.json", tables)


def _activity(run: Run, layer: int, control: bool = False) -> Activity:
    return sae_activity(run.store(layer, control), load_sae(run.sae_folder(layer, control)))


STAGES: dict[str, Callable[[Run, Progress | None], None]] = {
    "compose": compose_stage,
    "harvest": harvest_stage,
    "train": train_stage,
    "features": features_stage,
    "label": label_stage,
}


def open_run(folder: str | Path) -> Run:
    """The run in a folder that `run_road` or a stage verb has begun."""
    record = read_json(Path(folder) / "run.json")
    return Run(Path(folder), from_record(RunConfig, record["config"], f"{folder}/run.json"))


def begin_run(config: RunConfig) -> Run:
    """Writes run.json, or checks that the one there asks for the same; nothing else is touched."""
    folder = Path(config.out)
    record = {**to_record(config), "out": "."}  # a run folder can be moved
    path = folder / "run.json"
    if path.exists():
        found = read_json(path)["config"]
        changed = sorted(name for name in record if found.get(name) != record[name])
        if changed:
            raise MusaeError(
                f"{folder} holds a run with another {' and '.join(changed)}; choose another --out or delete that folder"
            )
    else:
        versions = {"python": platform.python_version(), "jax": jax.__version__, "numpy": np.__version__}
        device = jax.devices()[0]
        versions["device"] = f"{device.platform} ({device.device_kind})"
        write_json(path, {"config": record, "versions": versions, "stages": {}, "state": "begun"})
    return Run(folder, config)


def run_stage(run: Run, stage: str, progress: Progress | None = None) -> float:
    """Runs one stage, notes its time in run.json, and returns its seconds."""
    started = time.perf_counter()
    STAGES[stage](run, progress)
    seconds = round(time.perf_counter() - started, 2)
    record = read_json(run.folder / "run.json")
    record["stages"][stage] = {"seconds": seconds}
    record["state"] = "finished" if set(record["stages"]) >= set(STAGES) else "begun"
    write_json(run.folder / "run.json", record)
    return seconds


def is_done(run: Run, stage: str) -> bool:
    """Whether run.json calls a stage done."""
    return stage in read_json(run.folder / "run.json")["stages"]
