"""The clips in which a feature is strongest: what a person listens to.

Exemplars are ranked by the mean activation over the clip, as in the paper. They are taken from both halves of the
corpus and marked so: names are chosen on the "label" half, and the "score" half shows whether they hold.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
from safetensors.numpy import load_file, save_file

from musae_jax.audio.io import write_audio
from musae_jax.errors import MusaeError
from musae_jax.features.activity import Activity
from musae_jax.files import atomic_path, read_json_lines, write_json_lines


@dataclass(frozen=True)
class Exemplar:
    """One clip of one feature; `curve` is its activation at 50 Hz, [T]."""

    feature: int
    clip: str
    half: str  # "label" or "score"
    rank: int  # 0 is the strongest of its half
    mean: float
    maximum: float
    curve: np.ndarray


def find_exemplars(
    activity: Activity,
    halves: Mapping[str, str],
    features: Iterable[int] | None = None,
    count: int = 6,
    held_out: int = 4,
    tracks: Mapping[str, str] | None = None,
) -> list[Exemplar]:
    """The strongest clips of each feature: `count` from the "label" half and `held_out` from the "score" half.

    Clips in which the feature is silent are never shown. `halves` gives the half of each clip; where `tracks` gives the
    track of each clip, a track is shown once a half. `features` defaults to all that are ever active.
    """
    if features is None:
        features = np.flatnonzero(activity.clip_max.max(0) > 0)
    numbers = {
        half: np.asarray([n for n, clip in enumerate(activity.clip_ids) if halves[clip] == half], int)
        for half in ("label", "score")
    }
    found = []
    for feature in features:
        for half, wanted in (("label", count), ("score", held_out)):
            mean = activity.clip_mean[numbers[half], feature]
            seen: set[str] = set()
            rank = 0
            for place in np.argsort(-mean, kind="stable"):
                if mean[place] <= 0 or rank >= wanted:
                    break
                number = int(numbers[half][place])
                clip = activity.clip_ids[number]
                track = tracks[clip] if tracks else clip
                if track in seen:
                    continue
                seen.add(track)
                curve = activity.curve(number, int(feature))
                found.append(Exemplar(int(feature), clip, half, rank, float(mean[place]), float(curve.max()), curve))
                rank += 1
    return found


def save_exemplars(folder: str | Path, exemplars: Sequence[Exemplar]) -> None:
    """Writes `exemplars.jsonl` and `exemplars.safetensors` (`curves`, float16 [rows, T]) into `folder`."""
    folder = Path(folder)
    curves = np.stack([e.curve for e in exemplars]) if exemplars else np.zeros((0, 0))
    # in shares of each curve's own maximum, so that float16 never overflows
    peaks = np.maximum(curves.max(1), 1e-12) if exemplars else np.zeros(0)
    with atomic_path(folder / "exemplars.safetensors") as temporary:
        save_file(
            {"curves": (curves / peaks[:, None]).astype(np.float16), "peaks": peaks.astype(np.float32)}, temporary
        )
    write_json_lines(
        folder / "exemplars.jsonl",
        (
            {"feature": e.feature, "clip": e.clip, "half": e.half, "rank": e.rank, "mean": e.mean, "maximum": e.maximum}
            for e in exemplars
        ),
    )


def load_exemplars(folder: str | Path) -> list[Exemplar]:
    """Reads what `save_exemplars` wrote; a pair of files that do not belong together is a `MusaeError`."""
    folder = Path(folder)
    rows = read_json_lines(folder / "exemplars.jsonl")
    arrays = load_file(folder / "exemplars.safetensors")
    if len(arrays["curves"]) != len(rows):
        raise MusaeError(
            f"{folder}/exemplars.safetensors has {len(arrays['curves'])} curves where exemplars.jsonl has {len(rows)} "
            "lines; delete both and run `musae features` again"
        )
    curves = arrays["curves"].astype(np.float32) * arrays["peaks"][:, None]
    return [Exemplar(**row, curve=curve) for row, curve in zip(rows, curves)]


def save_clips(
    folder: str | Path,
    clips: Iterable[str],
    load: Callable[[str], np.ndarray],
    sampling_rate: int,
    captions: Mapping[str, str | None] | None = None,
) -> None:
    """Writes the audio that people listen to as `folder/clips/{id}.ogg`; clips already there are left alone.

    `load(clip id)` gives audio [S]. `folder/clips.jsonl` names file and caption of every clip, in the order given.
    """
    rows = []
    for clip in dict.fromkeys(clips):
        path = Path(folder) / "clips" / clip_file(clip)
        if not path.exists():
            write_audio(path, load(clip), sampling_rate)
        rows.append({"clip": clip, "file": f"clips/{path.name}", "caption": (captions or {}).get(clip)})
    write_json_lines(Path(folder) / "clips.jsonl", rows)


def clip_file(clip: str) -> str:
    """File name of a clip's audio: the id with every sign but letters, digits, dot, dash and underscore as %XX."""
    return quote(clip, safe="-_.").replace("~", "%7E") + ".ogg"
