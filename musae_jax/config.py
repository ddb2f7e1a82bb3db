"""The configuration of every verb: one frozen dataclass is the API, the flags, the YAML file and the saved record."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from musae_jax.errors import MusaeError


@dataclass(frozen=True)
class ComposeConfig:
    """Composed music whose concepts are known."""

    clips: int = 200
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
    """Clips in one pass."""
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
    """From residuals to a BatchTopK sparse autoencoder."""

    d_sae: int = 2048
    """Features."""
    k: int = 32
    """Features active at a position, on average."""
    steps: int = 1500
    """Optimiser steps."""
    batch_size: int = 2048
    """Positions in a step."""


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
    """Names from the composer's truth and from signal descriptors, each beside its null."""

    permutations: int = 20
    """Shuffles of the clips that make the null."""


@dataclass(frozen=True)
class SteerConfig:
    """Steered against unsteered sound for the best-named features."""

    features: int = 3
    """How many features to steer."""
    strength: float = 1.0
    """In units of each feature's own largest activation."""
    seconds: float = 6.0
    """Length of the generated clips."""
    clips: int = 8
    """Generated clips per feature and condition, each with its own seed."""
    prompt: str = ""
    """Text for the generated clips; empty: unconditional."""


@dataclass(frozen=True)
class RunConfig:
    """The whole road: music, residuals, autoencoder, features, names, steering, report."""

    out: Path = Path("runs/pocket")
    """The run folder; a run that was killed goes on when it is started again."""
    model: str = "pocket"
    """"pocket", a Hugging Face MusicGen folder, or a hub id such as facebook/musicgen-small."""
    audio: Path | None = None
    """A folder of wav, flac, ogg or mp3; without one, music is composed."""
    seed: int = 0
    """Seed of everything random."""
    compose: ComposeConfig = field(default_factory=ComposeConfig)
    harvest: HarvestConfig = field(default_factory=HarvestConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    label: LabelConfig = field(default_factory=LabelConfig)
    steer: SteerConfig = field(default_factory=SteerConfig)


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
    return cls(**values)


def _convert(field_: dataclasses.Field, value: Any, where: str) -> Any:
    default = field_.default if field_.default is not dataclasses.MISSING else field_.default_factory()
    if dataclasses.is_dataclass(default):
        return from_record(type(default), value, where)
    if isinstance(default, Path) or field_.name == "audio":
        return None if value is None else Path(value)
    if isinstance(default, tuple):
        if not isinstance(value, list) or not all(isinstance(item, int) for item in value):
            raise MusaeError(f"{where} must be a list of whole numbers, not {value!r}")
        return tuple(value)
    accepted = (int, float) if isinstance(default, float) else type(default)
    if not isinstance(value, accepted) or (isinstance(value, bool) and not isinstance(default, bool)):
        raise MusaeError(f"{where} must be {type(default).__name__}, not {value!r}")
    return float(value) if isinstance(default, float) else value


def read_yaml(cls: type, path: str | Path) -> Any:
    """A config from a YAML file; fields that the file leaves out keep their defaults."""
    try:
        record = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MusaeError(f"{path} does not exist; give --config a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise MusaeError(f"{path} is not a YAML file ({str(error).splitlines()[0]}); mend it") from None
    return from_record(cls, record or {}, str(path))
