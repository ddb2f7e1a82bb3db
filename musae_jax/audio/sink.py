"""Sound written as it comes: to a file that appears when it is whole, or to a pipe as it is made."""

import contextlib
import os
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile

from musae_jax.audio.io import BLOCK
from musae_jax.audio.ogg import with_serial
from musae_jax.errors import MusaeError
from musae_jax.files import atomic_path

FORMATS = {"wav": ("WAV", "PCM_16"), "flac": ("FLAC", "PCM_16"), "ogg": ("OGG", "VORBIS")}
STDOUT = "-"

Write = Callable[[np.ndarray], None]


def is_stream(out: str | Path) -> bool:
    """Whether sound for `out` is read while it is made: "-" (standard output), a named pipe, a device."""
    path = Path(out)
    return str(out) == STDOUT or (path.exists() and not path.is_file() and not path.is_dir())


@contextlib.contextmanager
def sound_sink(out: str | Path, format: str, sampling_rate: int, channels: int, samples: int) -> Iterator[Write]:
    """Yields `write(block)`, which takes float [S] or [channels, S] within −1 and 1; what lies beyond is clipped.

    `format` is wav (16 bit), flac, ogg (Vorbis), or raw: 16-bit little-endian samples, channels interleaved, without a
    header. Streams take wav, whose header promises `samples` per channel, and raw; files take wav, flac and ogg. A file
    has its name only once it is whole.

    Raises:
      MusaeError: a format that does not go there, a terminal as standard output, a reader that left, a full disk.
    """
    if is_stream(out):
        if format not in ("wav", "raw"):
            raise MusaeError(f"{format} cannot be written to a stream; write wav or raw there, or a file")
        yield from _stream(out, format, sampling_rate, channels, samples)
    elif format not in FORMATS:
        raise MusaeError(f"{out} cannot be written as {format}; sound files are {', '.join(FORMATS)}")
    else:
        yield from _file(Path(out), format, sampling_rate, channels)


def _file(path: Path, format: str, sampling_rate: int, channels: int) -> Iterator[Write]:
    container, subtype = FORMATS[format]
    with atomic_path(path) as temporary:
        try:
            with soundfile.SoundFile(temporary, "w", sampling_rate, channels, subtype, format=container) as file:

                def write(block: np.ndarray) -> None:
                    frames = _frames(block)
                    for first in range(0, len(frames), BLOCK):  # long writes overflow the Vorbis encoder's stack
                        file.write(frames[first : first + BLOCK])

                yield write
        except soundfile.SoundFileError as error:
            with open(temporary, "ab") as again:  # libsndfile hides why; a write of our own is told
                again.write(bytes(1 << 20))
            raise MusaeError(f"{path} could not be written ({error}); choose another folder or format") from None
        if format == "ogg":
            temporary.write_bytes(with_serial(temporary.read_bytes()))  # the same sound, the same file


def _stream(out: str | Path, format: str, sampling_rate: int, channels: int, samples: int) -> Iterator[Write]:
    if str(out) == STDOUT and sys.stdout.isatty():
        raise MusaeError("sound for standard output would go to this terminal; pipe it, or give a file with --out")
    with contextlib.ExitStack() as stack:
        file: BinaryIO = sys.stdout.buffer if str(out) == STDOUT else stack.enter_context(open(out, "wb"))

        def send(data: bytes) -> None:
            try:
                file.write(data)
                file.flush()
            except BrokenPipeError:
                if str(out) == STDOUT:  # or Python would try again when it ends
                    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise MusaeError(f"whatever read the sound from {out} has closed it; nothing more was made") from None

        if format == "wav":
            send(_wav_header(sampling_rate, channels, samples))
        yield lambda block: send(_frames(block).tobytes())


def _frames(block: np.ndarray) -> np.ndarray:
    """Float [S] or [channels, S] to int16 [S, channels]."""
    block = np.atleast_2d(np.asarray(block, np.float32)).T
    if not np.isfinite(block).all():
        raise MusaeError("the model made samples that are not numbers (NaN or infinite); check its weights")
    return np.ascontiguousarray(np.rint(np.clip(block, -1.0, 1.0) * 32767), "<i2")


def _wav_header(sampling_rate: int, channels: int, samples: int) -> bytes:
    """RIFF header of 16-bit PCM; the sizes of what is too long for the format are left open, as streams do."""
    size = 2 * channels * samples
    sizes = (size + 36, size) if size + 36 < 0xFFFFFFFF else (0xFFFFFFFF, 0xFFFFFFFF)
    fields = (16, 1, channels, sampling_rate, 2 * channels * sampling_rate, 2 * channels, 16)
    return (
        b"RIFF"
        + struct.pack("<I", sizes[0])
        + b"WAVEfmt "
        + struct.pack("<IHHIIHH", *fields)
        + b"data"
        + (struct.pack("<I", sizes[1]))
    )
