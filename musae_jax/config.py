"""The configuration of every verb: one frozen dataclass is the API, the flags, the YAML file and the saved record."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import tyro
import yaml

from musae_jax.errors import MusaeError
from musae_jax.labels.llm.config import LLMConfig
from musae_jax.steering.choices import ARMS, Arm, How


@dataclass(frozen=True)
class ComposeConfig:
    """Composed music whose concepts are known."""

    clips: int = 400
    """How many clips to compose."""
    seed: int = 0
    """Clips of different seeds never repeat each other."""
    seconds: float = 10.0
    """Length of a clip."""


@dataclass(frozen=True)
class HarvestConfig:
    """From music to residuals."""

    layers: tuple[int, ...] = ()
    """Blocks whose output is kept, counted from 0 (the paper's layer L is L − 1); none named: the middle one."""
    batch_size: int = 8
    """Clips in one pass, of all devices together; rounded up to what they can share equally."""
    model_parallel: int = 1
    """How many devices hold a share of the decoder's weights each; all devices divided by this share the clips."""
    dtype: str = "float32"
    """Of the stored activations: float32, bfloat16 (half the room), or float16."""
    store: str = ""
    """Where the activations go, a folder or a URL such as gs://bucket/run or s3://bucket/run; empty: the run folder."""
    live: bool = False
    """Store nothing: whatever needs activations runs the model over the music again."""
    control: bool = True
    """Also harvest the same architecture with random weights, the control beside every figure."""


@dataclass(frozen=True)
class TrainConfig:
    """From residuals to a sparse autoencoder. Fields left at None follow the architecture's own recipe."""

    architecture: Literal["batch_topk", "topk", "jumprelu", "relu", "gated"] = "batch_topk"
    """How features are chosen; with group_fractions each of them is also Matryoshka, batch_topk by itself."""
    d_sae: int | None = None
    """Features; by default the least power of two that is at least twice the stream's width (512 for the pocket)."""
    k: int = 32
    """Features active at a position, on average; relu and gated have l1_coefficient instead."""
    steps: int = 3000
    """Optimiser steps."""
    batch_size: int = 2048
    """Positions in a step."""
    drop_start: bool = True
    """Leave out position 0, the start step, which is the same vector in every clip."""
    model_parallel: int = 1
    """How many devices hold a share of the features each; all devices divided by this share the positions of a step."""
    lr: float | None = None
    """Peak learning rate."""
    lr_warm_up_steps: int | None = None
    """Over which it rises from 0."""
    lr_decay_steps: int | None = None
    """Over which it falls to 0 at the end."""
    adam_b1: float | None = None
    """Decay of Adam's first moment."""
    adam_b2: float | None = None
    """Decay of Adam's second moment."""
    adam_eps: float | None = None
    """Adam's epsilon."""
    grad_clip: float | None = None
    """Largest norm of a gradient."""
    l1_coefficient: float | None = None
    """Weight of the sum of activations in the loss."""
    l0_coefficient: float | None = None
    """jumprelu: weight of (L0 / k - 1)^2."""
    sparsity_warm_up_steps: int | None = None
    """Over which those two rise from 0."""
    bandwidth: float | None = None
    """jumprelu: width of the pseudo-derivative's kernel, in units of the scaled activations."""
    threshold_init: float | None = None
    """jumprelu: thresholds at the start, in the same units."""
    threshold_lr: float | None = None
    """jumprelu: peak learning rate of the thresholds' logarithms."""
    threshold_decay: float | None = None
    """batch_topk: decay of the running mean of thresholds."""
    count_tolerance: float | None = None
    """batch_topk: how inexact the number of active features in a batch may be, as a share."""
    auxk_alpha: float | None = None
    """Weight of AuxK, which revives dead features."""
    k_aux: int | None = None
    """Dead features in AuxK at a position."""
    dead_after_tokens: int | None = None
    """A feature is dead after so many positions without firing."""
    group_fractions: tuple[float, ...] | None = None
    """Matryoshka: shares of the features in each nested group, [] for no nesting. By default 1/8, 1/8, 1/4 and 1/2
    with batch_topk of 8 features or more, which finds more concepts so, and no nesting else."""
    center: Literal["mean", "geometric_median", "none"] | None = None
    """What is subtracted from activations."""
    scale: bool | None = None
    """Divide activations by the root mean square of a coordinate."""
    loss: Literal["fvu", "mse"] | None = None
    """Squared error as a share of variance, or per position."""
    init: Literal["tied", "kaiming"] | None = None
    """Encoder as the decoder's transpose, or both independent."""
    sparse: bool | None = None
    """Walk a list of the active features instead of multiplying by all; by default whichever is faster here."""
    max_norm: float | None = None
    """Leave out positions whose norm exceeds this multiple of the median."""
    splice_clips: int = 32
    """Held-out clips on which the model runs with the SAE spliced in; 0: none."""
    log: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where training curves go besides train.jsonl and train.png."""


@dataclass(frozen=True)
class FeaturesConfig:
    """Which features are kept, and how many clips stand for each."""

    minimum_share: float = 0.01
    """Least share of clips in which a kept feature is active."""
    maximum_share: float = 0.25
    """Largest share of clips in which a kept feature is active."""
    active_above: float = 0.2
    """A clip is active when its mean exceeds this share of the feature's largest clip mean; the paper's filter is 0."""
    exemplars: int = 4
    """Clips shown of each half of the corpus."""


@dataclass(frozen=True)
class LabelConfig:
    """Names from several sources, kept apart, each beside its null."""

    sources: tuple[Literal["truth", "descriptors", "tagger", "clap", "llm"], ...] = (
        "truth",
        "descriptors",
        "tagger",
        "clap",
    )
    """Who names: the composer's truth where the music has one, what is measured in the sound, an audio classifier,
    CLAP, and an audio LLM (with --label.llm.model)."""
    tagger: str = ""
    """The classifier: "pocket", a folder or a hub id of an AST such as MIT/ast-finetuned-audioset-10-10-0.4593; empty:
    the pocket's for composed music and none for other."""
    clap: str = ""
    """"pocket", or a folder or a hub id such as laion/larger_clap_music; empty: as with the tagger."""
    permutations: int = 999
    """Exchanges of clips that make a name's null."""
    llm: LLMConfig = field(default_factory=LLMConfig)


@dataclass(frozen=True)
class ValidateConfig:
    """Every name judged by another source than the one that gave it."""

    permutations: int = 999
    """Exchanges of clips that make a name's null."""
    draws: int = 200
    """Draws of clips for intervals."""
    strong: float = 0.85
    """The AUROC that the source of a name and its judge must both reach on held-out clips."""
    ducked: int = 16
    """How many of the surest names are heard again with the rest of the clip made softer."""
    controls: bool = True
    """The same for neurons, components, random directions and the SAE on random weights."""
    fresh: int = 200
    """Composed clips on which no name was chosen or confirmed, to mark the names by the composer's truth; 0: those on
    which they were confirmed, which flatters."""
    judge_llm: bool = False
    """Let the audio LLM of label.llm judge others' names of its max_features surest features too; it is paid."""


@dataclass(frozen=True)
class SteerConfig:
    """The best-named features steered, beside every control."""

    features: int = 3
    """How many features to steer."""
    strengths: tuple[float, ...] = (0.5, 1.0)
    """What the SAE's and the random direction are made at, in units of each feature's own largest activation; below 0
    the feature is taken away."""
    strength: float | None = None
    """The strength at which all arms are compared; by default each feature's own, the least of strengths that does
    nearly what the best of them does, on clips apart."""
    clips: int = 10
    """Generated clips per feature, arm and strength: prompts in turn, each time with another seed."""
    calibration: int = 4
    """Clips apart per feature and strength, on which its own is chosen."""
    seconds: float = 3.0
    """Length of the generated clips."""
    prompt: str = ""
    """Text for the generated clips; empty: none, and captions."""
    captions: int = 1
    """How many of the composer's captions, which do not ask for the concept, are prompts in turn with none."""
    how: How = "contrast"
    """What is added. contrast: a vector towards the music in which the feature is strongest. add: its decoder row, as
    in the paper."""
    arms: tuple[Arm, ...] = ARMS
    """What is put beside the unsteered clips; sae and random always are."""
    branches: Literal["conditional", "both"] = "conditional"
    """In which branches of guidance: conditional, so that guidance pulls towards the steered music, or both."""


@dataclass(frozen=True)
class RunConfig:
    """The whole road: music, residuals, autoencoder, features, names, steering, report."""

    out: Path = Path("runs/pocket")
    """The run folder; a run that was killed goes on when it is started again."""
    model: str = "pocket"
    """"pocket", a Hugging Face MusicGen folder, or a hub id such as facebook/musicgen-small."""
    dtype: Literal["float32", "mixed", "bfloat16", "float16"] = "float32"
    """What the model computes in. mixed: products in bfloat16, all else in float32; on CPUs with a large model up to
    twice as fast."""
    audio: Path | None = None
    """A folder of wav, flac, ogg or mp3; without one, music is composed."""
    seed: int = 0
    """Seed of everything random."""
    until: Literal["compose", "harvest", "train", "features", "label", "validate", "steer", "report"] = "report"
    """The last stage to run; the others' own verbs, or the same command without this, go on from there."""
    compose: ComposeConfig = field(default_factory=ComposeConfig)
    harvest: HarvestConfig = field(default_factory=HarvestConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    label: LabelConfig = field(default_factory=LabelConfig)
    validate: ValidateConfig = field(default_factory=ValidateConfig)
    steer: SteerConfig = field(default_factory=SteerConfig)


@dataclass(frozen=True)
class GenerateConfig:
    """From prompts to sound: a file each, or one as a stream while it is made.

    musae generate "slow flute solo in D minor" --out flute.wav

    musae generate "drums" "piano, calm" --out sounds --format flac

    musae generate "the same, with drums" --continue-from song.mp3 --seconds 60 --out longer.wav

    musae generate "piano" --seconds 120 --out - | ffplay -nodisp -

    musae generate "piano" --sae runs/pocket --steer 23=0.5 192=-0.5 --out steered.wav

    musae generate "piano" --sae runs/pocket --steer 23=0.8 --steer-how hold --schedule sections:2-6 --out held.wav
    """

    out: Path
    """The sound file to write: wav, flac or ogg. With several prompts, or a folder that exists: the folder. "-" (or a
    named pipe): a stream of wav or raw sound."""
    prompt: tyro.conf.Positional[tuple[str, ...]] = ()
    """What to play, in quotes; several prompts are played side by side, a file each. None, or "": unconditional."""
    model: str | None = None
    """"pocket", a MusicGen folder, or a hub id such as facebook/musicgen-small; by default that of the run which --sae
    names, and else "pocket"."""
    dtype: Literal["float32", "mixed", "bfloat16", "float16"] = "float32"
    """What the model computes in. mixed: products in bfloat16, all else in float32; on CPUs with a large model up to
    twice as fast."""
    seconds: float = 8.0
    """Length of the new music. Beyond a window (30 s) it is made in windows that slide."""
    seed: int = 0
    """Same seed, same sound, whether it is streamed or not."""
    guidance_scale: float | None = None
    """How strongly the prompt is followed; 1: no guidance, in half the time. This and the next three are the model's
    own by default: what its generation_config.json says, else guidance 3, top-k 250, top-p 1 and temperature 1."""
    top_k: int | None = None
    """Sample among the k likeliest codes; 0: among all."""
    top_p: float | None = None
    """Sample among the fewest likeliest codes whose probabilities reach this; 1: no such limit."""
    temperature: float | None = None
    """Below 1 more predictable, above 1 more daring; 0 always takes the likeliest."""
    two_pass: bool = False
    """Guidance in two passes instead of one of twice the size: slower, with less memory."""
    continue_from: Path | None = None
    """A wav, flac, ogg or mp3 file to go on from, of any rate, channels and length; as much of its end is heard as fits
    in a window beside the new music, and at least what two windows share (12 s)."""
    melody: Path | None = None
    """A sound file whose melody to follow, from its beginning again where it is shorter than the music; for melody
    checkpoints."""
    keep_prompt: bool = True
    """With --continue-from: begin with what was heard of that file, as the model's codec renders it."""
    steer: tuple[str, ...] = ()
    """FEATURE=STRENGTH, one or more: features of --sae that are added at every position, in units of each feature's own
    largest activation; below 0 they are taken away. --steer-how gives the number another meaning."""
    steer_how: Literal["contrast", "add", "clamp", "scale", "ablate", "hold"] | None = None
    """What is done with the features of --steer. contrast: a vector towards the music in which the feature is
    strongest, the default where the SAE has it (those of a run do). add: the feature's decoder row, the default
    elsewhere. clamp: each is set to its number. scale: each is multiplied by it. ablate: each is taken out; give
    FEATURE alone. hold: as much is added at each step as brings the feature up to its number, and nothing where it is
    above."""
    schedule: tuple[str, ...] = ()
    """When, in seconds of the new music; always, if not given. ramp:0-4 grows from nothing at 0 s to all at 4 s.
    decay:2 halves every 2 s. sections:0-2,6-8 is on in these spans (softly with :fade=0.5 after them). onsets:0.5,1.2
    are pulses there, beats:120 on every beat at 120 a minute (both take :half-life=0.1, beats also :first=0.3). One for
    all features, FEATURE:SCHEDULE for one of them, as in 23:ramp:0-4."""
    branches: Literal["both", "conditional", "unconditional"] | None = None
    """Which branches of guidance are steered: that which hears the prompt, that which does not, or both. By default
    that which hears it, so that guidance pulls towards the steered music; without a prompt there is but one."""
    sae: str | None = None
    """Whose features those are: a run folder, an SAE's folder, or one on the hub (ORG/NAME or ORG/NAME/SUBFOLDER)."""
    window_seconds: float = 30.0
    """How much music the model sees at once; MusicGen was trained on 30 s."""
    stride_seconds: float = 18.0
    """After how much a new window begins; it keeps the rest of the one before."""
    chunk_seconds: float = 1.0
    """How much sound is written at a time; a stream begins after so much."""
    format: Literal["auto", "wav", "flac", "ogg", "raw"] = "auto"
    """By default that of the file's name, and wav in folders and streams. raw: 16-bit little-endian samples, channels
    interleaved, without a header."""
    model_parallel: int = 1
    """How many devices hold a share of the decoder's weights each; all devices divided by this share the prompts."""
    coordinator: str = ""
    """Several processes share the prompts, each started with this same command: "auto" on TPU pods, Slurm and Open MPI,
    where the numbers are found; needless where they are given."""
    processes: int | None = None
    """How many processes share the prompts."""
    process: int | None = None
    """Which of them this is, from 0."""


def to_record(config: Any) -> dict[str, Any]:
    """The config as JSON types."""

    def plain(value):
        if dataclasses.is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return plain(config)


def from_record(cls: type, record: Any, where: str) -> Any:
    """The config in `record` (from JSON or YAML); an unknown field or a value of another type is named."""
    if not isinstance(record, dict):
        raise MusaeError(f"{where} must hold fields and values, not {type(record).__name__}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    values = {}
    for name, value in record.items():
        if name not in fields:
            raise MusaeError(f"{where} has the field {name!r}, which is unknown; the fields are {', '.join(fields)}")
        values[name] = _convert(fields[name], value, f"{where}, field {name},")
    for name, f in fields.items():  # a flag may still give what has no default
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            values.setdefault(name, tyro.MISSING)
    return cls(**values)


def _convert(field_: dataclasses.Field, value: Any, where: str) -> Any:
    hint = field_.type
    if get_origin(hint) is Annotated:  # tyro's marks
        hint = get_args(hint)[0]
    if type(None) in get_args(hint):  # X | None
        if value is None:
            return None
        hint = get_args(hint)[0]
    if dataclasses.is_dataclass(hint):
        return from_record(hint, value, where)
    if hint is Path and isinstance(value, str | Path):
        return Path(value)
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise MusaeError(f"{where} must be one of {', '.join(get_args(hint))}, not {value!r}")
        return value
    if get_origin(hint) is tuple:
        item = get_args(hint)[0]
        if get_origin(item) is Literal:
            if not isinstance(value, list) or not all(one in get_args(item) for one in value):
                raise MusaeError(f"{where} must be a list of {' or '.join(get_args(item))}, not {value!r}")
            return tuple(value)
        if not isinstance(value, list) or not all(_is_a(one, item) for one in value):
            kind = {int: "whole numbers", str: "texts"}.get(item, "numbers")
            raise MusaeError(f"{where} must be a list of {kind}, not {value!r}")
        return tuple(item(one) for one in value)
    if not _is_a(value, hint):
        raise MusaeError(f"{where} must be {hint.__name__}, not {value!r}")
    return hint(value)


def _is_a(value: Any, kind: type) -> bool:
    """Whether a value of JSON or YAML can stand for one of this type: a whole number for a float, nothing else."""
    if isinstance(value, bool) != (kind is bool):
        return False
    return isinstance(value, (int, float) if kind is float else kind)


def read_yaml(cls: type, path: str | Path) -> Any:
    """A config from a YAML file; fields that the file leaves out keep their defaults."""
    try:
        record = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MusaeError(f"{path} does not exist; give --config a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise MusaeError(f"{path} is not a YAML file ({str(error).splitlines()[0]}); mend it") from None
    return from_record(cls, record or {}, str(path))
