"""Essentia's Discogs-EffNet taggers through onnxruntime: genres, moods, instruments, as their authors trained them.

An embedding model hears patches of a mel spectrogram, and any number of small heads make probabilities of what it
returns. The files are at essentia.upf.edu/models, for non-commercial use (CC BY-NC-SA 4.0): none is bundled or fetched.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from musae_jax.audio.musicnn_mel import SAMPLING_RATE, musicnn_mel
from musae_jax.errors import MusaeError

FRAMES, HOP = 128, 62  # of the mel spectrogram, in a patch and between two: a patch a second
BATCH = 64  # patches at a time


@dataclass(frozen=True)
class Part:
    """One ONNX model in use: its session, and the names of its input and of the output that is wanted."""

    session: Any
    input: str
    output: str

    def __call__(self, values: np.ndarray) -> np.ndarray:
        return self.session.run([self.output], {self.input: values})[0]


@dataclass(frozen=True)
class OnnxTagger:
    """An embedding model, its heads, and the names of their C classes together, "head: class"."""

    embedding: Part
    heads: tuple[Part, ...]
    labels: tuple[str, ...]


def load_onnx_tagger(embedding_model: str | Path, heads: Iterable[str | Path]) -> OnnxTagger:
    """A tagger of ONNX files: discogs-effnet-bsdynamic-1.onnx and heads such as mtg_jamendo_instrument-….onnx.

    Beside each head lies the .json of the same name with its "classes", as both are published.

    Raises:
      MusaeError: onnxruntime is not installed, a file is missing or no such model, or the parts do not fit.
    """
    try:
        import onnxruntime
    except ImportError:
        raise MusaeError(
            'ONNX taggers need onnxruntime, which is not installed; run `pip install "musae-jax[onnx]"`'
        ) from None

    def open_session(path: Path) -> Any:
        if not path.is_file():
            raise MusaeError(f"{path} is missing; download it from essentia.upf.edu/models")
        try:
            return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has many types of its own
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise MusaeError(f"{path} is no ONNX model that can be run ({reason}); download it again") from None

    paths = [Path(head) for head in heads]
    if not paths:
        raise MusaeError("an ONNX tagger has no head; name at least one .onnx file of a classifier")
    embedding, parts, labels, widths = open_session(Path(embedding_model)), [], [], {}
    for path in paths:
        session, classes = open_session(path), _classes(path.with_suffix(".json"))
        parts.append(Part(session, session.get_inputs()[0].name, _output(path, session, len(classes))))
        labels += [f"{path.stem.split('-')[0]}: {name}" for name in classes]
        widths[path] = session.get_inputs()[0].shape[-1]
    if len(set(widths.values())) > 1:
        found = ", ".join(f"{path.name} takes {width}" for path, width in widths.items())
        raise MusaeError(f"the heads take embeddings of different widths ({found}); choose heads of one model")
    output = _output(Path(embedding_model), embedding, widths[paths[0]])
    return OnnxTagger(Part(embedding, embedding.get_inputs()[0].name, output), tuple(parts), tuple(labels))


def load_onnx_folder(folder: str | Path) -> OnnxTagger:
    """The tagger of a folder that holds an embedding model, discogs-effnet-….onnx, and heads with their .json.

    Raises:
      MusaeError: the folder has no embedding model or several, or `load_onnx_tagger` does.
    """
    found = sorted(Path(folder).glob("*.onnx"))
    embedding = [path for path in found if path.name.startswith("discogs-effnet-")]
    if len(embedding) != 1:
        raise MusaeError(
            f"{folder} holds {len(embedding)} models discogs-effnet-….onnx, but one is needed beside its heads"
        )
    return load_onnx_tagger(embedding[0], [path for path in found if path != embedding[0]])


def tag(tagger: OnnxTagger, audio: np.ndarray, rate: int) -> np.ndarray:
    """How probable each tag is in each sound: [B, S] in -1..1 at `rate` Hz -> float32 [B, C], the mean over patches.

    Raises:
      MusaeError: the audio is not [B, S], or holds nothing.
    """
    audio = np.asarray(audio, np.float32)
    if audio.ndim != 2 or not audio.size:
        raise MusaeError(f"the tagger was given audio of shape {audio.shape}, but it expects [B, S]; stack mono clips")
    rows = []
    for clip in audio:
        clip = clip if rate == SAMPLING_RATE else soxr.resample(clip, rate, SAMPLING_RATE)
        patches = cut_patches(musicnn_mel(clip))
        embeddings = np.concatenate(
            [tagger.embedding(patches[start : start + BATCH]) for start in range(0, len(patches), BATCH)]
        )
        rows.append(np.concatenate([head(embeddings).mean(0) for head in tagger.heads]))
    return np.stack(rows).astype(np.float32)


def cut_patches(mel: np.ndarray) -> np.ndarray:
    """Mel spectrogram [T, M] -> patches [W, 128, M], one every 62 frames; frames after the last whole patch are left
    out, and a spectrogram shorter than one patch is repeated to fill it (Essentia's "discard" and "repeat")."""
    if len(mel) < FRAMES:
        mel = np.concatenate([mel] * -(-FRAMES // len(mel)))[:FRAMES]
    return np.lib.stride_tricks.sliding_window_view(mel, FRAMES, axis=0)[::HOP].transpose(0, 2, 1).copy()


def _classes(path: Path) -> list[str]:
    try:
        classes = json.loads(path.read_text(encoding="utf-8"))["classes"]
    except FileNotFoundError:
        raise MusaeError(f"{path} is missing; it is published beside the model, and names its classes") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise MusaeError(f"{path} does not name a model's classes ({error}); download it again") from None
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        raise MusaeError(f"{path} has no list of names under 'classes'; download it again")
    return classes


def _output(path: Path, session: Any, width: Any) -> str:
    """The output that is `width` wide: a model also returns what comes before its last layer, or its own classes."""
    shapes = {output.name: output.shape for output in session.get_outputs()}
    fitting = [name for name, shape in shapes.items() if shape and shape[-1] == width]
    if len(fitting) != 1 or not isinstance(width, int):
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise MusaeError(f"{path} should have one output of width {width}, but has {found}; choose parts that fit")
    return fitting[0]
