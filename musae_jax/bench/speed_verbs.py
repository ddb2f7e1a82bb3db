"""Benches of what it costs: training, generation and harvest beside their peers, steering, types, TPU slices."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from musae_jax.bench.figures import table, write_figures
from musae_jax.verb import Verb, console


@dataclass(frozen=True)
class SaeFlags:
    """How fast SAEs are trained, beside the PyTorch libraries: same weights, same batches, same run."""

    d_in: int = 512
    """Width of the activations."""
    d_sae: int = 16_384
    """Features."""
    k: int = 32
    """Features active for a token."""
    batch_size: int = 1024
    """Tokens in a step."""
    turns: int = 6
    """Of ten steps each, that every trainer takes in its turn."""
    peers: tuple[Literal["sae-lens", "dictionary-learning", "eai-sparsify"], ...] = ("sae-lens",)
    """The libraries to time as well; give none for ours alone."""
    json: Path | None = None
    """Also write the rows here."""


@dataclass(frozen=True)
class GenerateFlags:
    """How fast music is generated, beside transformers: random weights of the true size."""

    size: Literal["small", "medium", "large"] = "small"
    """Of the decoder."""
    batch_size: int = 1
    """Prompts at a time; guidance doubles the rows."""
    ours: tuple[Literal["float32", "mixed", "bfloat16", "float16"], ...] = ("float32", "mixed")
    """The dtypes that we compute in."""
    theirs: tuple[Literal["float32", "bfloat16", "float16"], ...] = ("float32", "bfloat16")
    """Those of transformers."""
    turns: int = 3
    """That each takes."""
    json: Path | None = None
    """Also write the rows here."""


@dataclass(frozen=True)
class HarvestFlags:
    """How fast residuals are harvested, beside transformers: random weights of the true size."""

    size: Literal["small", "medium", "large"] = "small"
    """Of the decoder; the block in the middle is harvested."""
    batch_size: int = 4
    """Clips at a time."""
    frames: int = 500
    """Of each clip."""
    ours: tuple[Literal["float32", "mixed", "bfloat16", "float16"], ...] = ("float32", "mixed")
    """The dtypes that we compute in."""
    theirs: tuple[Literal["float32", "bfloat16", "float16"], ...] = ("float32", "bfloat16")
    """Those of transformers."""
    turns: int = 5
    """That each takes, after one that is not timed."""
    json: Path | None = None
    """Also write the rows here."""


@dataclass(frozen=True)
class CostFlags:
    """How the engine's cost grows with batch, length and size, beside the floor that this device sets."""

    sizes: tuple[Literal["small", "medium", "large"], ...] = ("small",)
    """Of the decoder; weights are random."""
    batches: tuple[int, ...] = (1, 8)
    """Prompts of a generation, and clips of a harvest."""
    seconds: tuple[float, ...] = (8.0, 30.0)
    """Of music, up to 30."""
    dtype: Literal["float32", "mixed", "bfloat16", "float16"] = "float32"
    """What is computed in."""
    json: Path | None = None
    """Also write the rows here."""


@dataclass(frozen=True)
class SteerFlags:
    """What steering costs: generation with features added, clamped and held beside the same without, taking turns, and
    a sweep of 8 features × 5 strengths × 2 prompts × 4 s."""

    model: str = "pocket"
    """"pocket", a MusicGen folder, or a hub id; the SAE has random weights, of which only the size counts."""
    batch_size: int = 1
    """Clips at a time; guidance doubles the rows."""
    seconds: float = 4.0
    """Length of a clip."""
    d_sae: int = 2048
    """Features of the SAE."""
    touched: int = 4
    """Features that are steered at once."""
    turns: int = 15
    """That each takes, after one that is not timed; the fastest counts."""
    json: Path | None = None
    """Also write the rows here."""


@dataclass(frozen=True)
class TrainingFlags:
    """What a step of training the pocket model costs: the language model beside the machine's floor, the codec by its
    parts."""

    times: int = 5
    """How often each is timed, after once that is not; the fastest counts."""
    json: Path | None = None
    """Also write the rows here."""


@dataclass(frozen=True)
class DriftFlags:
    """How far a narrower dtype leads away from float32, layer by layer, on music that the model has made."""

    model: str = "pocket"
    """"pocket", a MusicGen folder, or a hub id."""
    dtypes: tuple[Literal["mixed", "bfloat16", "float16"], ...] = ("mixed", "bfloat16")
    """What is compared with float32."""
    clips: int = 4
    """Of music, each with its prompt."""
    seconds: float = 5.0
    """Length of a clip."""
    json: Path | None = None
    """Also write the rows here."""


@dataclass(frozen=True)
class PodFlags:
    """What a program costs on a TPU slice, by the TPU compiler, without a TPU: the SAE's training step, the codec's
    pass of a harvest, the decoder's up to the block in the middle, or a step of generation with guidance."""

    program: Literal["sae", "encode", "harvest", "decode"] = "sae"
    """What is compiled."""
    topology: str = "v5e:16x16"
    """The slice, as in v5e:16x16, v5p:4x4x4, v6e:8x8 or v4:2x2x2."""
    model_parallel: int = 8
    """Chips that hold a share of the features, or of the decoder's weights, each; all chips divided by this share the
    tokens, clips or prompts."""
    architecture: Literal["batch_topk", "topk", "jumprelu", "relu", "gated"] = "batch_topk"
    """sae: how features are chosen."""
    d_in: int = 2048
    """sae: width of the activations."""
    d_sae: int = 65_536
    """sae: features."""
    k: int = 64
    """sae: features active for a token."""
    batch_size: int = 131_072
    """sae: tokens in a step, on the whole slice."""
    size: Literal["small", "medium", "large"] = "large"
    """encode, harvest, decode: of MusicGen."""
    rows: int = 256
    """encode, harvest, decode: clips or prompts at a time, on the whole slice."""
    seconds: float | None = None
    """encode, harvest, decode: of a clip (10), or of the window that the cache holds (30)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """encode, harvest, decode: of the decoder's weights; a TPU multiplies float32 in bfloat16 unless told otherwise."""
    json: Path | None = None
    """Also write the rows here."""


def sae_verb(flags: SaeFlags) -> str:
    from musae_jax.bench.sae import SaeBench, bench_sae
    from musae_jax.bench.trainers import Size
    from musae_jax.progress import progress_bar

    size = Size(flags.d_in, flags.d_sae, flags.k, flags.batch_size)
    with progress_bar("sae", console) as progress:
        return table(bench_sae(SaeBench(size, flags.turns, flags.peers), progress), flags.json)


def generate_verb(flags: GenerateFlags) -> str:
    from musae_jax.bench.generate import GenerateBench, bench_generate
    from musae_jax.progress import progress_bar

    bench = GenerateBench(flags.size, flags.batch_size, ours=flags.ours, theirs=flags.theirs, turns=flags.turns)
    with progress_bar("generate", console) as progress:
        return table(bench_generate(bench, progress), flags.json)


def harvest_verb(flags: HarvestFlags) -> str:
    from musae_jax.bench.harvest import HarvestBench, bench_harvest
    from musae_jax.progress import progress_bar

    bench = HarvestBench(flags.size, flags.batch_size, flags.frames, flags.ours, flags.theirs, flags.turns)
    with progress_bar("harvest", console) as progress:
        return table(bench_harvest(bench, progress), flags.json)


def cost_verb(flags: CostFlags) -> str:
    from musae_jax.bench.cost import CostBench, bench_cost
    from musae_jax.progress import progress_bar

    bench = CostBench(flags.sizes, flags.batches, flags.seconds, flags.dtype)
    with progress_bar("cost", console) as progress:
        return table(bench_cost(bench, progress), flags.json)


def steer_verb(flags: SteerFlags) -> str:
    from musae_jax.bench.steer import SteerBench, bench_steer
    from musae_jax.models.checkpoints import load_musicgen
    from musae_jax.progress import progress_bar

    bench = SteerBench(flags.batch_size, flags.seconds, flags.d_sae, flags.touched, flags.turns)
    with progress_bar("steer", console) as progress:
        return table(bench_steer(load_musicgen(flags.model), flags.model, bench, progress), flags.json)


def training_verb(flags: TrainingFlags) -> str:
    from musae_jax.bench.training import TrainingBench, bench_training
    from musae_jax.pocket.train import POCKET
    from musae_jax.progress import progress_bar

    with progress_bar("training", console) as progress:
        return table(bench_training(POCKET, TrainingBench(times=flags.times), progress), flags.json)


def drift_verb(flags: DriftFlags) -> str:
    from musae_jax.bench.drift import DriftBench, bench_drift
    from musae_jax.models.checkpoints import load_musicgen
    from musae_jax.progress import progress_bar

    bench = DriftBench(flags.dtypes, flags.clips, flags.seconds)
    with progress_bar("drift", console) as progress:
        return table(bench_drift(load_musicgen(flags.model), flags.model, bench, progress), flags.json)


def pod_verb(flags: PodFlags) -> str:
    from musae_jax.bench.pod import measure_pod
    from musae_jax.bench.pod_engine import measure_decode, measure_encode, measure_harvest
    from musae_jax.bench.slices import pod_rows, pod_text
    from musae_jax.sae.recipes import RECIPES

    where = (flags.topology, flags.model_parallel)
    if flags.program == "sae":
        sparsity = {} if flags.architecture in ("relu", "gated") else {"k": flags.k}
        sizes = {"d_sae": flags.d_sae, "batch_size": flags.batch_size, **sparsity}
        figures = measure_pod(RECIPES[flags.architecture](flags.d_in, **sizes), *where)
        config = {"architecture": flags.architecture, "d_in": flags.d_in, **sizes}
        dtype = "float32, multiplied in bfloat16"
    else:
        call = {"encode": measure_encode, "harvest": measure_harvest, "decode": measure_decode}[flags.program]
        seconds = flags.seconds or (30.0 if flags.program == "decode" else 10.0)
        figures = call(flags.size, *where, flags.rows, seconds, flags.dtype)
        config = {"program": flags.program, "size": flags.size, "rows": flags.rows, "seconds": seconds}
        dtype = "bfloat16" if flags.dtype == "bfloat16" else "float32, multiplied in bfloat16"
    write_figures(flags.json, pod_rows(config, dtype, figures))
    return pod_text(figures)


SPEED = {
    "sae": Verb(SaeFlags, sae_verb, "how fast SAEs are trained, beside the PyTorch libraries"),
    "generate": Verb(GenerateFlags, generate_verb, "how fast music is generated, beside transformers"),
    "harvest": Verb(HarvestFlags, harvest_verb, "how fast residuals are harvested, beside transformers"),
    "cost": Verb(CostFlags, cost_verb, "how the engine's cost grows with batch, length and size"),
    "steer": Verb(SteerFlags, steer_verb, "what steering costs, beside generation left alone"),
    "training": Verb(TrainingFlags, training_verb, "what a step of training the pocket model costs, part by part"),
    "drift": Verb(DriftFlags, drift_verb, "how far a narrower dtype leads away from float32"),
    "pod": Verb(PodFlags, pod_verb, "what training, harvest and generation cost on a TPU slice, without one"),
}
