"""A folder of music as clips of equal length: what was found, what was skipped and why."""

import concurrent.futures
import dataclasses
import hashlib
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from musae_jax.audio.io import SUFFIXES, AudioInfo, check_audio, read_audio
from musae_jax.errors import MusaeError
from musae_jax.files import read_json, read_json_lines

MANIFEST = "manifest.jsonl"
SHORTEST = 0.5  # seconds; a shorter file holds no music a 10 s clip could be made of
SHORTEST_TAIL = 1.0  # seconds; a shorter remainder after the last whole window is dropped
FRAME_RATE = 50  # Hz, of the truth
OVERSHOOT = 1.1  # a peak up to which scaling down is not worth telling: lossy decoders overshoot

Progress = Callable[[int, int, str], None]


@dataclasses.dataclass(frozen=True)
class Clip:
    """A window of one sound file.

    Attributes:
      id: unique, and safe as a file name.
      track: what the clip was cut from; clips of one track never fall on both sides of a split.
      path: the sound file.
      start, seconds: the window in the file, in seconds.
      caption: the words of the manifest, if it has them.
      truth: the file of true concepts (npz with `active` bool [frames, C] at 50 Hz), if there is one.
      offset, gain: how the whole file is mended, (sound − offset) · gain.
    """

    id: str
    track: str
    path: Path
    start: float
    seconds: float
    caption: str | None = None
    truth: Path | None = None
    offset: float = 0.0
    gain: float = 1.0


@dataclasses.dataclass(frozen=True)
class ClipSource:
    """The clips of a folder.

    Attributes:
      clips: in a fixed order (manifest order, else sorted by path).
      skipped: (file, reason) for every file that could not be used.
      concepts: rows {"name", "family", "level"} of concepts.json, the columns of every clip's truth; empty without.
      silent: files whose samples are all the same. They are kept: silence is something a model also hears.
      mended: (file, what) for every file with a constant offset or with sound beyond full scale.
    """

    clips: tuple[Clip, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    concepts: tuple[dict, ...] = ()
    silent: tuple[str, ...] = ()
    mended: tuple[tuple[str, str], ...] = ()

    def summary(self) -> str:
        """One or more lines for people: counts, then every skipped file with its reason."""
        tracks = len({clip.track for clip in self.clips})
        lines = [f"{len(self.clips)} clips from {tracks} tracks, {len(self.skipped)} files skipped"]
        lines += [f"skipped: {reason}" for _, reason in self.skipped]
        lines += [f"silent, kept: {name}" for name in self.silent]
        lines += [f"mended: {name} ({what})" for name, what in self.mended]
        return "\n".join(lines)


def open_clips(folder: str | Path, seconds: float = 10.0, progress: Progress | None = None) -> ClipSource:
    """Finds the music of a folder and cuts it into windows of `seconds`.

    With a manifest.jsonl its rows are the files (keys: audio, and optionally id, track, caption, truth; paths are
    relative to the folder); without, every wav, flac, ogg and mp3 below. Every file is decoded once, in parallel, so
    that a bad one is named here and not in the middle of a long run. A last window shorter than 1 s is dropped unless
    the file is only that; a file shorter than 0.5 s is skipped; a shorter clip is padded with zeros when it is loaded.
    A large constant offset is taken from a whole file and sound beyond full scale scaled down, so that its clips keep
    their loudness to each other.

    Raises:
      MusaeError: no such folder, no sound file in it, none that can be read, only silence, or a malformed manifest.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MusaeError(f"{folder} is not a folder; give a folder of wav, flac, ogg or mp3 files")
    if not seconds > 0:
        raise MusaeError(f"the clip length is {seconds} s, but it must be positive")
    sources = _from_manifest(folder) if (folder / MANIFEST).exists() else _from_files(folder)
    checked = _check_all([source.path for source in sources], progress)
    clips, skipped, silent, mended = [], [], [], []
    for source, info in zip(sources, checked):
        name = _name(folder, source.path)
        if isinstance(info, str):
            skipped.append((name, info))
        elif info.seconds < SHORTEST:
            skipped.append((name, f"{source.path} lasts {info.seconds:.2f} s, but at least {SHORTEST} s are needed"))
        else:
            clips += _windows(source, info, seconds)
            if info.silent:
                silent.append(name)
            faults = [f"a constant offset of {info.offset:.2f} taken away"] if info.offset else []
            if info.peak > OVERSHOOT:
                faults.append(f"a peak of {info.peak:.2f} scaled down to 1")
            if faults:
                mended.append((name, ", ".join(faults)))
    if not clips:
        more = f" (and {len(skipped) - 1} more)" if len(skipped) > 1 else ""
        raise MusaeError(f"no file in {folder} can be used: {skipped[0][1]}{more}")
    if len(silent) == len(sources) - len(skipped):
        raise MusaeError(f"every file in {folder} that can be read is silent; give a folder of music")
    twice = [id for id, count in Counter(clip.id for clip in clips).items() if count > 1]
    if twice:
        raise MusaeError(f"{folder / MANIFEST} uses the id {twice[0]!r} more than once; ids must be unique")
    concepts = tuple(read_json(folder / "concepts.json")) if (folder / "concepts.json").exists() else ()
    return ClipSource(tuple(clips), tuple(skipped), concepts, tuple(silent), tuple(mended))


def load_clip(clip: Clip, sampling_rate: int, seconds: float) -> np.ndarray:
    """The clip's sound as mono float32 [round(seconds * sampling_rate)]: mended, cut, or padded with zeros."""
    samples = round(seconds * sampling_rate)
    audio = read_audio(clip.path, sampling_rate, clip.start, min(seconds, clip.seconds))[:samples]
    if (clip.offset, clip.gain) != (0.0, 1.0):
        audio = (audio - np.float32(clip.offset)) * np.float32(clip.gain)
    return np.pad(audio, (0, samples - len(audio)))


def load_truth(clip: Clip) -> np.ndarray | None:
    """Which concepts are present: bool [frames at 50 Hz, C] of the clip's window, or None where nothing is known."""
    if clip.truth is None:
        return None
    try:
        with np.load(clip.truth) as file:
            active = file["active"]
    except (OSError, KeyError, ValueError) as error:
        raise MusaeError(
            f"{clip.truth} is not a truth file with an array `active` ({error}); compose the dataset again"
        ) from None
    first = round(clip.start * FRAME_RATE)
    return np.asarray(active[first : first + round(clip.seconds * FRAME_RATE)], dtype=bool)


def split_tracks(clips: Iterable[Clip], seed: int = 0) -> dict[str, str]:
    """Clip id -> "label" or "score": names are found on one half of the tracks and scored on the other.

    Tracks are ranked by a hash of (seed, track), so the split does not depend on the order of the clips; the first
    half labels. A single track is all "label": nothing is held out, and callers say so.
    """
    clips = list(clips)
    tracks = sorted({clip.track for clip in clips}, key=lambda t: hashlib.sha256(f"{seed}:{t}".encode()).digest())
    label = set(tracks[: math.ceil(len(tracks) / 2)])
    return {clip.id: "label" if clip.track in label else "score" for clip in clips}


@dataclasses.dataclass(frozen=True)
class _Source:
    id: str
    track: str
    path: Path
    caption: str | None = None
    truth: Path | None = None


def _from_files(folder: Path) -> list[_Source]:
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")
    )
    if not paths:
        raise MusaeError(f"{folder} holds no wav, flac, ogg or mp3 file; give a folder of music")
    names = [path.relative_to(folder).as_posix() for path in paths]
    slugs = [_slug(name.rsplit(".", 1)[0]) for name in names]
    counts = Counter(slug.lower() for slug in slugs)  # some file systems ignore case
    sources = []
    for path, name, slug in zip(paths, names, slugs):
        if counts[slug.lower()] > 1 or not slug.strip("._-"):
            slug = f"{slug}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        sources.append(_Source(slug, name, path))
    return sources


def _from_manifest(folder: Path) -> list[_Source]:
    manifest = folder / MANIFEST
    sources = []
    for number, row in enumerate(read_json_lines(manifest), start=1):
        audio = row.get("audio") if isinstance(row, dict) else None
        if not isinstance(audio, str):
            raise MusaeError(f"row {number} of {manifest} names no sound file; every row needs a path under 'audio'")
        id = str(row.get("id") or audio.rsplit(".", 1)[0])
        truth = folder / row["truth"] if row.get("truth") else None
        if truth is not None and not truth.exists():
            raise MusaeError(f"{truth}, named in row {number} of {manifest}, is missing; compose the dataset again")
        sources.append(_Source(_slug(id), str(row.get("track") or id), folder / audio, row.get("caption"), truth))
    if not sources:
        raise MusaeError(f"{manifest} has no rows; add one JSON object a line, or remove it to use the files alone")
    return sources


def _check_all(paths: list[Path], progress: Progress | None) -> list[AudioInfo | str]:
    """What each file holds, or the sentence that says why it cannot be used."""

    def check(path: Path) -> AudioInfo | str:
        try:
            return check_audio(path)
        except MusaeError as error:
            return str(error)

    results = []
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for result in pool.map(check, paths):
            results.append(result)
            if progress:
                progress(len(results), len(paths), "files")
    return results


def _windows(source: _Source, info: AudioInfo, seconds: float) -> list[Clip]:
    length = info.seconds
    count = max(1, math.floor(length / seconds + 1e-6))
    if length - count * seconds >= SHORTEST_TAIL:
        count += 1
    return [
        Clip(
            id=source.id if count == 1 else f"{source.id}-{index:04d}",
            track=source.track,
            path=source.path,
            start=index * seconds,
            seconds=min(seconds, length - index * seconds),
            caption=source.caption,
            truth=source.truth,
            offset=info.offset,
            gain=1.0 / max(1.0, info.peak),
        )
        for index in range(count)
    ]


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)


def _name(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
