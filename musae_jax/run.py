"""The road: the stages of a run folder in order, each a function that reads what the last one wrote.

Every stage is resumable by itself; `musae run` also skips the stages that run.json calls done. The layout of a run
folder is in the README.
"""

import dataclasses
import functools
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from musae_jax.activations.harvest import harvest, hook_name
from musae_jax.activations.live import LiveActivations, live_activations
from musae_jax.activations.source import Activations
from musae_jax.activations.store import open_store
from musae_jax.audio.clips import Clip, ClipSource, load_clip, load_truth, open_clips, split_tracks
from musae_jax.compose.dataset import write_dataset
from musae_jax.config import LabelConfig, RunConfig, SteerConfig, ValidateConfig, from_record, to_record
from musae_jax.errors import MusaeError
from musae_jax.explorer.report import write_report
from musae_jax.features.exemplars import find_exemplars, save_clips, save_exemplars
from musae_jax.features.statistics import FilterConfig, feature_statistics, save_statistics
from musae_jax.files import read_json, write_json
from musae_jax.labels.scores import Truth
from musae_jax.labels.truth import gather_truth
from musae_jax.mesh import first_process, make_mesh
from musae_jax.models.checkpoints import load_musicgen
from musae_jax.models.layout import place_musicgen
from musae_jax.models.musicgen import MusicGen, encode_audio, random_musicgen
from musae_jax.names import activity_of, contrasts_of, label_stage, validate_names
from musae_jax.places import Place, inside, open_place
from musae_jax.sae.curves import write_training_picture
from musae_jax.sae.formats import save_contrast, save_maximum
from musae_jax.sae.mirror import mirror_logs
from musae_jax.sae.recipes import recipe_name, train_recipe
from musae_jax.sae.train import train_saes
from musae_jax.steered import effects_config, steer_stage
from musae_jax.validation.splice import splice_folder

Progress = Callable[[int, int, str], None]
CONTROL = "random-weights"  # ends the name of everything made from the same architecture untrained
RETOLD = {"label": LabelConfig, "validate": ValidateConfig, "steer": SteerConfig}
FRESH = 2000  # added to a run's seed of composition: music on which nothing was chosen


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder and its config; what several stages need is found here, once.

    `process` and `processes`: which this is of those that share the harvest.
    """

    folder: Path
    config: RunConfig
    process: int = 0
    processes: int = 1

    @functools.cached_property
    def model(self) -> MusicGen:
        return load_musicgen(self.config.model, self.config.dtype)

    @functools.cached_property
    def control_model(self) -> MusicGen:
        return untrained(self.model, self.config.seed)

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
        return recipe_name(self.config.train, self.model.config.decoder.hidden_size)

    def sae_folder(self, layer: int, control: bool = False) -> Path:
        return self.folder / "sae" / hook_name(layer) / (f"{self.name}-{CONTROL}" if control else self.name)

    def activations(self, control: bool = False) -> Place:
        """The folder of the stores of all layers."""
        place = open_place(self.config.harvest.store or self.folder)
        return inside(place, f"activations-{CONTROL}" if control else "activations")

    def harvest_options(self, control: bool = False) -> dict[str, Any]:
        """What a harvest and a live stream are made from; the model lies on all devices of this process."""
        mesh = make_mesh(self.config.harvest.model_parallel, jax.local_devices())
        return {
            "mg": place_musicgen(self.control_model if control else self.model, mesh),
            "clips": self.clips.clips,
            "layers": self.layers,
            "seconds": self.config.compose.seconds,
            "batch_size": self.config.harvest.batch_size,
            "model": f"{self.config.model}, random weights" if control else self.config.model,
            "seed": self.config.seed,
        }

    def store(self, layer: int, control: bool = False) -> Activations:
        if self.config.harvest.live:
            return (self._live_control if control else self._live)[layer]
        return open_store(inside(self.activations(control), hook_name(layer)))

    @functools.cached_property
    def _live(self) -> dict[int, LiveActivations]:
        return live_activations(**self.harvest_options())

    @functools.cached_property
    def _live_control(self) -> dict[int, LiveActivations]:
        return live_activations(**self.harvest_options(control=True))

    def codes(self, clips: Sequence[str]) -> np.ndarray:
        """Codes int32 [n, K, T] of some clips; the control's are the same, as is its codec."""
        size, codes = self.config.harvest.batch_size, []
        for start in range(0, len(clips), size):
            part = clips[start : start + size]
            audio = np.stack([self.audio(id) for id in (*part, *part[-1:] * (size - len(part)))])  # one shape
            codes.append(np.asarray(encode_audio(self.model.config, self.model.params, audio))[: len(part)])
        return np.concatenate(codes)

    def audio(self, clip: str) -> np.ndarray:
        """Sound [S] of a clip at the model's rate."""
        return load_clip(self._by_id[clip], self.model.config.sampling_rate, self.config.compose.seconds)

    @functools.cached_property
    def _by_id(self) -> dict[str, Clip]:
        return {clip.id: clip for clip in self.clips.clips}

    @functools.cached_property
    def tracks(self) -> dict[str, str]:
        return {clip.id: clip.track for clip in self.clips.clips}

    def truth(self, clips: Sequence[str], frames: int) -> Truth:
        """The composer's truth of these clips."""
        return gather_truth(clips, self.clips.concepts, lambda id: load_truth(self._by_id[id]), frames)

    def features_folder(self, layer: int) -> Path:
        return self.folder / "features" / hook_name(layer) / self.name


def fresh_run(run: Run, progress: Progress | None = None) -> Run | None:
    """Other music by the same composer and its residuals, on which no name was chosen or confirmed; None for music
    that was not composed here."""
    c = run.config
    if c.audio is not None or not c.validate.fresh:
        return None
    config = dataclasses.replace(
        c,
        compose=dataclasses.replace(c.compose, clips=c.validate.fresh, seed=c.compose.seed + FRESH),
        harvest=dataclasses.replace(
            c.harvest,
            store="",
            live=c.harvest.live or bool(c.harvest.store),  # who stores elsewhere has no room here
            control=c.harvest.control and c.validate.controls,
        ),
    )
    folder = run.folder / "validation" / f"fresh-{c.validate.fresh}"
    fresh = Run(folder, config)
    vars(fresh).update(model=run.model)  # no second copies
    if fresh.config.harvest.control:
        vars(fresh).update(control_model=run.control_model)
    compose_stage(fresh, progress)
    harvest_stage(fresh, progress)
    return fresh


def untrained(model: MusicGen, seed: int) -> MusicGen:
    """The same architecture with random weights of the same types; its codec is the trained one."""
    params = {**random_musicgen(model.config, jax.random.key(seed + 1)).params, "audio": model.params["audio"]}
    return model.replace(params=jax.tree.map(lambda drawn, trained: drawn.astype(trained.dtype), params, model.params))


def compose_stage(run: Run, progress: Progress | None = None) -> None:
    """Composes the corpus, unless the user brought one."""
    if run.config.audio is None:
        c = run.config.compose
        write_dataset(run.folder / "music", c.clips, c.seed, c.seconds, run.model.config.sampling_rate, progress)


def harvest_stage(run: Run, progress: Progress | None = None) -> None:
    """Residuals of the model and of the control; a live run only finds its clips here."""
    write_json(
        run.folder / "clips.json",
        {
            "clips": len(run.clips.clips),
            "skipped": [{"path": path, "reason": reason} for path, reason in run.clips.skipped],
            "silent": list(run.clips.silent),
            "mended": [{"path": path, "what": what} for path, what in run.clips.mended],
        },
    )
    c = run.config.harvest
    for control in (False, True)[: 1 + c.control] if not c.live else ():
        options = {**run.harvest_options(control), "process": run.process, "processes": run.processes}
        harvest(**options, out=run.activations(control), dtype=c.dtype, progress=progress)


def train_stage(run: Run, progress: Progress | None = None) -> None:
    """One SAE a layer, trained on the label half and measured on the other; the control likewise."""
    held_out = [id for id, half in run.halves.items() if half == "score"]
    c, record = run.config.train, to_record(run.config)
    codes = run.codes(sorted(held_out)[: c.splice_clips]) if c.splice_clips and held_out else None
    for control in (False, True)[: 1 + run.config.harvest.control]:
        for layer in run.layers:
            store = run.store(layer, control)
            recipe = train_recipe(c, store.d_in, run.config.seed)
            folder = run.sae_folder(layer, control)
            options = {"drop_start": c.drop_start, "seed": run.config.seed, "model_parallel": c.model_parallel}
            with mirror_logs(c.log if first_process() else (), [folder], record, progress) as watched:
                train_saes(store, {folder: recipe}, held_out, **options, progress=watched)
            if not first_process():
                continue
            write_training_picture(folder)
            if codes is not None:
                model = run.control_model if control else run.model
                splice_folder(model, folder, layer, codes, run.config.harvest.batch_size, c.drop_start, progress)


def features_stage(run: Run, progress: Progress | None = None) -> None:
    """Statistics, exemplars and the sound of the clips they name, and what steering adds."""
    c = run.config.features
    criteria = FilterConfig(c.minimum_share, c.maximum_share, c.active_above)
    captions = {clip.id: clip.caption for clip in run.clips.clips}
    for layer in run.layers:
        folder = run.features_folder(layer)
        activity = activity_of(run, layer)
        statistics = feature_statistics(activity, criteria)
        save_statistics(folder, statistics, criteria)
        save_maximum(run.sae_folder(layer), statistics.maximum)
        save_contrast(run.sae_folder(layer), contrasts_of(run, activity))
        kept = np.flatnonzero(statistics.kept)
        exemplars = find_exemplars(activity, run.halves, kept, c.exemplars, c.exemplars, run.tracks)
        save_exemplars(folder, exemplars)
        heard = sorted({exemplar.clip for exemplar in exemplars})
        save_clips(folder, heard, run.audio, run.model.config.sampling_rate, captions)


def validate_stage(run: Run, progress: Progress | None = None) -> None:
    """Names judged by other sources, and marked by truth on fresh music where there is some."""
    validate_names(run, fresh_run(run, progress), progress)


def report_stage(run: Run, progress: Progress | None = None) -> None:
    """RUN/report/index.html."""
    music = "composed music" if run.config.audio is None else f"{len(run.clips.clips)} clips of a user's folder"
    write_report(run.folder, about={"model": run.config.model, "music": music}, progress=progress)


STAGES: dict[str, Callable[[Run, Progress | None], None]] = {
    "compose": compose_stage,
    "harvest": harvest_stage,
    "train": train_stage,
    "features": features_stage,
    "label": label_stage,
    "validate": validate_stage,
    "steer": steer_stage,
    "report": report_stage,
}


def open_run(folder: str | Path, process: int = 0, processes: int = 1) -> Run:
    """The run in a folder that `musae run` has begun."""
    record = read_json(Path(folder) / "run.json")
    return Run(Path(folder), from_record(RunConfig, record["config"], f"{folder}/run.json"), process, processes)


def begin_run(config: RunConfig) -> Run:
    """Writes run.json, or checks that the one there asks for the same; nothing else is touched."""
    effects_config(config.steer, config.seed)  # what would end it after hours
    folder = Path(config.out)
    record = {**to_record(config), "out": "."}  # a run folder can be moved
    del record["until"]  # and gone on with
    path = folder / "run.json"
    if path.exists():
        known = from_record(RunConfig, read_json(path)["config"], f"{path}, config")  # what it lacks has its default
        # their verbs may have been told otherwise since; what is left at its default is as the run has it
        retold = {name: getattr(known, name) for name, of in RETOLD.items() if record[name] == to_record(of())}
        config = dataclasses.replace(config, **retold)
        record, found = to_record(config), to_record(known)
        changed = sorted(name for name in record if name not in ("out", "until") and found[name] != record[name])
        if changed:
            steer = f"change that with `musae steer --run {folder}` and the flags you want"
            way = steer if changed == ["steer"] else "choose another --out"
            raise MusaeError(f"{folder} holds a run with another {' and '.join(changed)}; {way} or delete that folder")
    else:
        versions = {"python": platform.python_version(), "jax": jax.__version__, "numpy": np.__version__}
        device = jax.devices()[0]
        versions["device"] = f"{device.platform} ({device.device_kind})"
        write_json(path, {"config": record, "versions": versions, "stages": {}, "state": "begun"})
    return Run(folder, config)


def reconfigure(run: Run, **parts: Any) -> Run:
    """The run with other parts of its config, such as `label`; run.json remembers them."""
    config = dataclasses.replace(run.config, **parts)
    record = read_json(run.folder / "run.json")
    kept = {name: value for name, value in to_record(config).items() if name in record["config"] or name in parts}
    write_json(run.folder / "run.json", {**record, "config": {**kept, "out": "."}})
    return dataclasses.replace(run, config=config)


def run_stage(run: Run, stage: str, progress: Progress | None = None) -> float:
    """Runs one stage, notes its time in run.json, and returns its seconds."""
    started = time.perf_counter()
    if first_process():  # what follows was made from what is made anew now
        record = read_json(run.folder / "run.json")
        later = list(STAGES)[list(STAGES).index(stage) :]
        kept = {name: row for name, row in record["stages"].items() if name not in later}
        write_json(run.folder / "run.json", {**record, "stages": kept, "state": "begun"})
    STAGES[stage](run, progress)
    seconds = round(time.perf_counter() - started, 2)
    if first_process():
        record = read_json(run.folder / "run.json")
        record["stages"][stage] = {"seconds": seconds}
        record["state"] = "finished" if set(record["stages"]) >= set(STAGES) else "begun"
        write_json(run.folder / "run.json", record)
    return seconds


def is_done(run: Run, stage: str) -> bool:
    """Whether run.json calls a stage done."""
    return stage in read_json(run.folder / "run.json")["stages"]
