"""One sound file: checked, read as mono float32 at any rate, written atomically."""

import dataclasses
import io
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

from musae_jax.audio.ogg import with_serial
from musae_jax.errors import MusaeError
from musae_jax.files import atomic_path

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
SAMPLING_RATES = (100, 768_000)  # Hz; outside these a header is garbage, not a recording of music
QUIETEST = 1e-4  # a peak of −80 dB; below it is the noise of the silence after a recording
OFFSET = 0.05  # a constant part (DC) of more than this share of full scale is a fault
BLOCK = 1 << 18  # values read or written at a time
_SUBTYPES = {".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16"), ".ogg": ("OGG", "VORBIS")}
_UNKNOWN_LENGTH = (0, 0xFFFFFFFF)  # streaming writers leave the RIFF data length open


@dataclasses.dataclass(frozen=True)
class AudioInfo:
    """What a checked file holds: `samples` per channel at `sampling_rate` (Hz); the lowest, the highest and the mean
    value of the channels' average, which is what models hear."""

    samples: int
    sampling_rate: int
    channels: int
    lowest: float
    highest: float
    mean: float

    @property
    def seconds(self) -> float:
        return self.samples / self.sampling_rate

    @property
    def silent(self) -> bool:
        return self.lowest == self.highest

    @property
    def offset(self) -> float:
        """What is to be taken away: the mean, where it is so large that a recorder must have been wrong."""
        return self.mean if abs(self.mean) > OFFSET else 0.0

    @property
    def peak(self) -> float:
        """The largest absolute value that then remains."""
        return max(self.highest - self.offset, self.offset - self.lowest)


def check_audio(path: str | Path) -> AudioInfo:
    """Decodes the whole file once, in blocks, and returns what it holds.

    Raises:
      MusaeError: the file is missing, empty, not audio, truncated, or holds NaN or infinite samples.
    """
    path = Path(path)
    with _opened(path) as file:
        lowest, highest, total, samples = np.inf, -np.inf, 0.0, 0
        for block in _blocks(path, file, 0, file.frames):
            _check_finite(path, block)
            mono = block.mean(axis=1)
            lowest, highest = min(lowest, float(mono.min())), max(highest, float(mono.max()))
            total += float(mono.sum(dtype=np.float64))
            samples += len(block)
        _check_length(path, file, samples)
        return AudioInfo(samples, file.samplerate, file.channels, lowest, highest, total / max(samples, 1))


def read_audio(path: str | Path, sampling_rate: int, start: float = 0.0, seconds: float | None = None) -> np.ndarray:
    """Reads a file (or the window `start`, `seconds` of it) as float32 [S]: channels averaged, resampled with soxr.

    Silence is allowed. A window that reaches past the end of the file is cut there.

    Raises:
      MusaeError: the file is missing, empty, not audio, truncated, or holds NaN or infinite samples.
    """
    path = Path(path)
    with _opened(path) as file:
        first = round(start * file.samplerate)
        if not 0 <= first < file.frames:
            raise MusaeError(
                f"{path} lasts {file.frames / file.samplerate:.2f} s, so nothing can be read from second {start:.2f};"
                " correct the start time"
            )
        wanted = file.frames if seconds is None else max(1, round(seconds * file.samplerate))
        audio = _decode(path, file, first, wanted)  # [S, channels]
        if first + wanted >= file.frames:
            _check_length(path, file, first + len(audio))
        if not len(audio):
            raise MusaeError(f"{path} holds no sound from second {start:.2f} on; the file is truncated, replace it")
        _check_finite(path, audio)
        mono = audio.mean(axis=1, dtype=np.float32)
        if file.samplerate != sampling_rate:
            mono = soxr.resample(mono, file.samplerate, sampling_rate)
        if not len(mono):
            raise MusaeError(f"{path} lasts {len(audio) / file.samplerate:.5f} s, less than a sample; replace it")
        return np.ascontiguousarray(mono, dtype=np.float32)


def read_end(path: str | Path, sampling_rate: int, channels: int, seconds: float) -> np.ndarray:
    """The last `seconds` of a file (all of a shorter one) as float32 [channels, S]; no more of it is read.

    Channels are averaged where the file has others than are asked for. What a codec would stumble over is mended: a
    constant offset (DC) is taken away, and sound beyond ±1 is scaled down to a peak of 1.

    Raises:
      MusaeError: as `read_audio`, or nothing but silence there.
    """
    path = Path(path)
    with _opened(path) as file:
        wanted = max(1, round(seconds * file.samplerate))
        first = max(0, file.frames - wanted)
        audio = _decode(path, file, first, wanted)  # [S, channels of the file]
        _check_length(path, file, first + len(audio))
        _check_finite(path, audio)
        if audio.shape[1] != channels:
            audio = np.repeat(audio.mean(axis=1, keepdims=True), channels, axis=1)
        audio = audio - audio.mean(axis=0)
        peak = float(np.abs(audio).max(initial=0.0))
        if peak < QUIETEST:
            raise MusaeError(
                f"{path} is silent in its last {len(audio) / file.samplerate:.2f} s, so there is nothing to go on from;"
                " cut the silence off or choose another file"
            )
        audio = audio / max(1.0, peak)
        if file.samplerate != sampling_rate:
            audio = soxr.resample(audio, file.samplerate, sampling_rate)
        return np.ascontiguousarray(audio.T, dtype=np.float32)


def write_audio(path: str | Path, audio: np.ndarray, sampling_rate: int) -> None:
    """Writes float samples [S] as mono wav, flac (16 bit) or ogg (Vorbis), by suffix, atomically.

    Samples beyond ±1 would be clipped by the integer formats; such a signal is scaled down to a peak of 1 instead.

    Raises:
      MusaeError: unknown suffix, wrong shape, NaN or infinite samples, or the disk refuses the file.
    """
    path = Path(path)
    if path.suffix.lower() not in _SUBTYPES:
        raise MusaeError(f"{path} ends in {path.suffix!r}, but sound is written as {', '.join(_SUBTYPES)}; rename it")
    audio = np.asarray(audio, np.float32)
    if audio.ndim != 1 or not audio.size:
        raise MusaeError(f"{path} would hold samples of shape {audio.shape}, but mono sound [S] is needed")
    _check_finite(path, audio)
    audio = audio / max(1.0, float(np.abs(audio).max()))
    format, subtype = _SUBTYPES[path.suffix.lower()]
    # Encoded in memory first: libsndfile hides the reason of a failed write, the operating system names it.
    encoded = io.BytesIO()
    with soundfile.SoundFile(encoded, "w", sampling_rate, 1, subtype, format=format) as file:
        for first in range(0, len(audio), BLOCK):  # long single writes overflow the stack of the Vorbis encoder
            file.write(audio[first : first + BLOCK])
    data = encoded.getvalue()
    if format == "OGG":
        data = with_serial(data)  # the same sound, the same file
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def _opened(path: Path) -> soundfile.SoundFile:
    """The open file, once everything that its first bytes can tell is right."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise MusaeError(f"{path} cannot be read ({(error.strerror or str(error)).lower()}); check the path") from None
    if path.is_dir():
        raise MusaeError(f"{path} is a folder, but a sound file is needed; name one in it")
    if size == 0:
        raise MusaeError(f"{path} is empty (0 bytes); replace or remove it")
    try:
        file = soundfile.SoundFile(path)
    except (soundfile.SoundFileError, OSError, RuntimeError) as error:
        if path.suffix.lower() == ".wav" and _starts_with(path, b"RIFF"):
            raise MusaeError(f"{path} is truncated or damaged ({_reason(error)}); replace or remove it") from None
        raise MusaeError(f"{path} is not audio that can be read ({_reason(error)}); replace or remove it") from None
    try:
        least, most = SAMPLING_RATES
        if not least <= file.samplerate <= most:
            raise MusaeError(
                f"{path} states a sampling rate of {file.samplerate} Hz, but {least} to {most} Hz are read; if the file"
                " is not damaged, resample it"
            )
        _check_riff(path, size)
        _check_ogg(path, size)
        if file.frames <= 0:
            raise MusaeError(f"{path} holds no sound (0 samples, {size} bytes); replace or remove it")
    except MusaeError:
        file.close()
        raise
    return file


def _blocks(path: Path, file: soundfile.SoundFile, first: int, samples: int) -> Iterator[np.ndarray]:
    """At most so many samples from `first` on, [S, channels] each; the header may promise more than there are."""
    size = max(1, BLOCK // file.channels)
    try:
        if first:
            file.seek(first)
        while samples > 0 and len(block := file.read(min(samples, size), dtype="float32", always_2d=True)):
            yield block
            samples -= len(block)
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise MusaeError(f"{path} is truncated or damaged ({_reason(error)}); replace or remove it") from None


def _decode(path: Path, file: soundfile.SoundFile, first: int, samples: int) -> np.ndarray:
    return np.concatenate([np.zeros((0, file.channels), np.float32), *_blocks(path, file, first, samples)])


def _check_finite(path: Path, audio: np.ndarray) -> None:
    bad = audio.size - int(np.isfinite(audio).sum())
    if bad:
        raise MusaeError(f"{path} holds {bad} samples that are not numbers (NaN or infinite); export it again")


def _check_length(path: Path, file: soundfile.SoundFile, samples: int) -> None:
    # The length of an mp3 without an index is an estimate, so a small difference means nothing there.
    least = 0.98 * file.frames if file.format == "MP3" else file.frames
    if samples < least:
        raise MusaeError(
            f"{path} is truncated: its header promises {file.frames / file.samplerate:.2f} s,"
            f" {samples / file.samplerate:.2f} s can be read; replace or remove it"
        )


def _check_riff(path: Path, size: int) -> None:
    """libsndfile silently shortens a truncated wav; its header still says how long it was."""
    with open(path, "rb") as file:
        if file.read(4) != b"RIFF":
            return
        file.seek(12)
        while len(header := file.read(8)) == 8:
            name, length = struct.unpack("<4sI", header)
            if name == b"data":
                present = size - file.tell()
                if length not in _UNKNOWN_LENGTH and present < length:
                    raise MusaeError(
                        f"{path} is truncated: its header promises {length} bytes of sound, {present} are there;"
                        " replace or remove it"
                    )
                return
            file.seek(length + length % 2, os.SEEK_CUR)


def _check_ogg(path: Path, size: int) -> None:
    """The last Ogg page of a whole file carries the end-of-stream flag."""
    if not _starts_with(path, b"OggS"):
        return
    with open(path, "rb") as file:
        file.seek(max(0, size - (1 << 16) - 512))  # a page is at most 65,307 bytes
        tail = file.read()
    page = tail.rfind(b"OggS")
    if page < 0 or page + 27 > len(tail) or not tail[page + 5] & 4:
        raise MusaeError(f"{path} is truncated: its last page does not end the stream; replace or remove it")


def _starts_with(path: Path, magic: bytes) -> bool:
    with open(path, "rb") as file:
        return file.read(len(magic)) == magic


def _reason(error: Exception) -> str:
    return str(getattr(error, "error_string", error)).strip().rstrip(".").removeprefix("Error : ").lower()
