"""Does a dictionary find the concepts that its model's music is known to hold?

Music is composed for the purpose, run through the model and through the same architecture with random weights, and
every dictionary is judged on it alike: SAEs, raw neurons, principal components, random directions, an SAE of the random
model, and a supervised linear probe as the ceiling. What is measured and how is in docs/concepts.md.
"""

import contextlib
import dataclasses
import re
import tempfile
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import jax
import numpy as np
import scipy.sparse

from musae_jax.activations.harvest import harvest
from musae_jax.activations.residuals import hook_name, weights_sha256
from musae_jax.activations.store import Store, json_sha256
from musae_jax.audio.clips import ClipSource, load_truth, open_clips
from musae_jax.bench.concepts_report import Report, Result
from musae_jax.bench.stability import seed_saes
from musae_jax.compose.dataset import clip_name, write_dataset
from musae_jax.compose.halves import balanced_clips, half_of, style_of
from musae_jax.errors import MusaeError
from musae_jax.features.activity import Activity, neuron_activity, sae_activity
from musae_jax.labels.truth import gather_truth
from musae_jax.models.checkpoints import load_musicgen
from musae_jax.models.musicgen import MusicGen
from musae_jax.run import CONTROL, open_run, untrained
from musae_jax.sae.batch_topk import BatchTopKConfig
from musae_jax.sae.controls import pca_sae, random_sae
from musae_jax.sae.formats import load_sae
from musae_jax.sae.sae import SAE
from musae_jax.sae.train import train_saes
from musae_jax.validation.finding import Finding, Panel, find_concepts
from musae_jax.validation.probe import find_by_probe
from musae_jax.validation.splitting import Split, split_concepts

CORPUS = 950  # the composer's corpus that nothing else uses
LIMIT = 2**29  # residuals that are held in memory, 2 GiB; principal components take as much again
SAMPLE = 50_000  # positions from which components and the scale of random directions are taken

Progress = Callable[[int, int, str], None]


@dataclasses.dataclass(frozen=True)
class ConceptsBench:
    """The size of the benchmark.

    Attributes:
      clips: composed clips, a multiple of four; half of them choose features, half judge.
      seconds: of each; a progression of four bars lasts up to fifteen.
      shuffles: exchanges of truth for each concept's null.
      draws: of clips for the intervals.
      random_saes: dictionaries of random directions.
      steps, batch_size: of training the control SAE, where none is given.
      seed: of shuffles, draws, random directions and the control SAE's training.

    Raises:
      MusaeError: there are no shuffles.
    """

    clips: int = 480
    seconds: float = 10.0
    shuffles: int = 999
    draws: int = 500
    random_saes: int = 3
    steps: int = 1000
    batch_size: int = 2048
    seed: int = 0

    def __post_init__(self):
        if self.shuffles < 1:
            raise MusaeError(f"--shuffles is {self.shuffles}; a null needs 1 or more, 999 is usual")


@dataclasses.dataclass(frozen=True)
class Stage:
    """The benchmark's music and what one layer of one model makes of it, kept in `folder` for the next time.

    `control_seed` is that of the model with random weights; a run's own seed, so that the run's control SAEs fit it.
    """

    bench: ConceptsBench
    model: MusicGen
    name: str
    layer: int
    folder: Path
    progress: Progress | None = None
    control_seed: int = 0

    def check_memory(self) -> None:
        """Raises `MusaeError` where the residuals are more than `measure_concepts` may hold."""
        config, clips = self.model.config, self.bench.clips
        positions = config.frames(self.bench.seconds) + 1
        if (held := clips * positions * config.decoder.hidden_size) > LIMIT:
            raise MusaeError(
                f"the residuals of {clips} clips at {hook_name(self.layer)} of {self.name} take {held / 2**28:.1f} GiB;"
                f" {LIMIT / 2**28:g} GiB of them can be judged: give fewer --clips or --seconds"
            )

    @cached_property
    def source(self) -> ClipSource:
        b, rate = self.bench, self.model.config.sampling_rate
        music = self.folder / f"music-{b.clips}x{b.seconds:g}s-{rate}"
        numbers = balanced_clips(b.clips, CORPUS)
        write_dataset(music, b.clips, CORPUS, b.seconds, rate, self.progress, numbers)
        return open_clips(music, b.seconds)

    def store(self, control: bool = False) -> Store:
        """The layer's residuals, of the model or of the architecture with random weights."""
        model = untrained(self.model, self.control_seed) if control else self.model
        b, revision = self.bench, weights_sha256(model.params)[:12]
        out = self.folder / f"activations-{b.clips}x{b.seconds:g}s-{revision}"
        name = f"{self.name}, random weights" if control else self.name
        stores = harvest(model, self.source.clips, [self.layer], b.seconds, out, model=name, progress=self.progress)
        return stores[self.layer]

    def panel(self, store: Store) -> Panel:
        """The truth of the clips in the order of a store, keys held out across progressions, all else across keys."""
        by_id = {clip.id: clip for clip in self.source.clips}
        truth = gather_truth(
            store.clip_ids, self.source.concepts, lambda id: load_truth(by_id[id]), store.positions - 1
        )
        styles = {clip_name(CORPUS, n): style_of(CORPUS, n) for n in balanced_clips(self.bench.clips, CORPUS)}
        splits = tuple({id: half_of(style, family) for id, style in styles.items()} for family in ("tempo", "key"))
        split_of = np.asarray([int(concept.family == "key") for concept in truth.concepts])
        return Panel(truth, splits, split_of, self.bench.shuffles, self.bench.draws, self.bench.seed)


def bench_run(
    folder: Path,
    bench: ConceptsBench | None = None,
    layer: int | None = None,
    seeds: int = 1,
    work: Path | None = None,
    progress: Progress | None = None,
) -> Report:
    """The benchmark on one layer (by default the first) of a run, with the SAEs of the run and of its control.

    With `seeds` above 1 both are trained again from so many seeds, in RUN/stability. Music, residuals and a control
    that the run does not have are kept in `work`, by default RUN/concepts.

    Raises:
      MusaeError: the run has no such layer, or has not been trained.
    """
    run = open_run(folder)
    layer = run.layers[0] if layer is None else layer
    if layer not in run.layers:
        raise MusaeError(f"{folder} has layers {', '.join(map(str, run.layers))}, not {layer}; choose one of these")
    if seeds < 1:
        raise MusaeError(f"--seeds is {seeds}; it must be 1 or more")

    def saes(control: bool) -> list[SAE]:
        if seeds == 1:
            return [load_sae(run.sae_folder(layer, control))]
        return seed_saes(run, layer, seeds, control, progress)

    place = work or run.folder / "concepts"
    stage = Stage(bench or ConceptsBench(), run.model, run.config.model, layer, place, progress, run.config.seed)
    stage.check_memory()  # before SAEs are trained
    return measure_concepts(stage, saes(False), saes(True) if run.config.harvest.control else [])


def bench_saes(
    folders: Sequence[Path],
    bench: ConceptsBench | None = None,
    model: str | None = None,
    layer: int | None = None,
    work: Path | None = None,
    progress: Progress | None = None,
) -> Report:
    """The benchmark on SAEs of one kind (seeds), from folders in any layout that can be read.

    `model` and `layer` are those that the first SAE names, where it names them. The control, an SAE of the same width
    and L0 of the model with random weights, is trained here. Music, residuals and it are kept in `work`, if given.

    Raises:
      MusaeError: the SAEs differ in width, or, where none is given, in model or layer, or name none.
    """
    saes = [load_sae(folder) for folder in folders]
    first = saes[0].config
    kinds = [("widths", {f"{sae.config.d_in} x {sae.config.d_sae}" for sae in saes}, "")]
    if model is None:
        named = {str(sae.config.metadata.get("model_name") or "unnamed") for sae in saes}
        kinds.append(("models", named, ", or say which with --model"))
    if layer is None:
        kinds.append(("hooks", {sae.config.hook or "unnamed" for sae in saes}, ", or say which with --layer"))
    for what, found, remedy in kinds:
        if len(found) > 1:
            differ = ", ".join(sorted(found))
            raise MusaeError(f"the SAEs to average have different {what}, {differ}; give seeds of one kind{remedy}")
    model = model or first.metadata.get("model_name")
    if not model:
        raise MusaeError(f"{folders[0]} does not name the model it reads; say which with --model")
    if layer is None:
        block = re.fullmatch(r"blocks\.(\d+)\.resid_post", first.hook)
        if not block:
            raise MusaeError(f"{folders[0]} does not name the output of a block (hook {first.hook!r}); give --layer")
        layer = int(block.group(1))
    with contextlib.ExitStack() as stack:
        place = work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stage = Stage(bench or ConceptsBench(), load_musicgen(model), model, layer, place, progress)
        return measure_concepts(stage, saes)


def measure_concepts(stage: Stage, saes: Sequence[SAE], control_saes: Sequence[SAE] = ()) -> Report:
    """What all kinds of dictionaries find; several SAEs are seeds of one kind, and so are several of the control.

    Without an SAE of the random model one is trained, as wide as the first SAE and with as many active features.

    Raises:
      MusaeError: an SAE does not fit the layer, or there is too little music to judge any concept.
    """
    stage.check_memory()
    width = stage.model.config.decoder.hidden_size
    for sae in saes:
        if sae.config.d_in != width:
            raise MusaeError(
                f"the SAE reads activations of width {sae.config.d_in}, but {stage.name} has width {width} at"
                f" {hook_name(stage.layer)}; give the SAE's own model and layer"
            )
    store = stage.store()
    panel = stage.panel(store)
    if not panel.judged.any():
        raise MusaeError(
            f"in {len(store.clip_ids)} clips no concept occurs often enough to be judged; give more with --clips"
        )
    neurons = neuron_activity(store, limit=LIMIT)
    residuals = _residuals(neurons)
    results: list[Result] = []
    total = len(saes) + max(1, len(control_saes)) + stage.bench.random_saes + 4

    def add(kind: str, finding: Finding, splits: list[Split | None] | None = None) -> None:
        results.append(Result(kind, sum(r.kind == kind for r in results), finding, splits))
        if stage.progress:
            stage.progress(len(results), total, "dictionaries")

    def add_sae(kind: str, sae: SAE, activity: Activity) -> None:
        finding = find_concepts(panel, activity)
        add(kind, finding, split_concepts(panel, activity, finding, sae.params["W_dec"], residuals))

    active = 1
    for number, sae in enumerate(saes):
        activity = sae_activity(store, sae)
        if number == 0:
            active = max(1, round(activity.values.nnz / activity.values.shape[0]))
        add_sae("sae", sae, activity)
    add("neurons", find_concepts(panel, neurons, signed=True))
    sample = _sample(panel, neurons)
    add("pca", find_concepts(panel, _components(neurons, sample), signed=True))
    d_sae = saes[0].config.d_sae
    for seed in range(stage.bench.seed, stage.bench.seed + stage.bench.random_saes):
        drawn = random_sae(jax.random.key(seed), sample, d_sae, min(active, d_sae))
        add_sae("random_sae", drawn, sae_activity(store, drawn))
    add("probe", find_by_probe(panel, residuals))
    add("truth", find_concepts(panel, _truth_activity(panel)))
    store = stage.store(control=True)
    residuals = _residuals(neuron_activity(store, limit=LIMIT))
    for sae in control_saes or [_train_control(stage, store, panel, d_sae, active)]:
        add_sae("random_weights", sae, sae_activity(store, sae))
    config = {
        **dataclasses.asdict(stage.bench),
        "model": stage.name,
        "hook": hook_name(stage.layer),
        "d_sae": d_sae,
        "l0": active,
        "saes": len(saes),
    }
    return Report(config, panel, tuple(results))


def _truth_activity(panel: Panel) -> Activity:
    """The truth itself as a dictionary: what a perfect one scores, and how many concepts imply one another."""
    clips, frames, concepts = panel.truth.active.shape
    values = scipy.sparse.csr_array(panel.truth.active.reshape(clips * frames, concepts).astype(np.float32))
    return Activity(panel.truth.clip_ids, frames, values)


def _residuals(neurons: Activity) -> np.ndarray:
    return neurons.values.reshape(len(neurons.clip_ids), neurons.frames, -1)  # [n, T, D]


def _sample(panel: Panel, neurons: Activity) -> np.ndarray:
    """Residuals [N, D] of clips that judge no concept but keys."""
    x = neurons.values[neurons.rows(panel.rows(0, "label"))]
    return x[:: max(1, len(x) // SAMPLE)]


def _components(neurons: Activity, sample: np.ndarray) -> Activity:
    """The residuals' principal components as features of either sign."""
    pca = pca_sae(sample)
    basis = np.asarray(pca.params["W_enc"][:, : pca.config.d_in])
    return Activity(neurons.clip_ids, neurons.frames, (neurons.values - np.asarray(pca.params["b_dec"])) @ basis)


def _train_control(stage: Stage, store: Store, panel: Panel, d_sae: int, active: int) -> SAE:
    b = stage.bench
    recipe = BatchTopKConfig(store.d_in, d_sae, min(active, d_sae), steps=b.steps, batch_size=b.batch_size, seed=b.seed)
    folder = stage.folder / f"{CONTROL}-{d_sae}-k{recipe.k}-{json_sha256([store.content_sha256, b.steps])[:8]}"
    held_out = [id for id, half in panel.splits[0].items() if half == "score"]
    return train_saes(store, {folder: recipe}, held_out, seed=b.seed, progress=stage.progress)[0]
