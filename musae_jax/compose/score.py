"""What is played: notes on a grid of 50 frames a second."""

from dataclasses import dataclass

FRAME_RATE = 50  # frames a second; the frame rate of the codec, so that truth and codes share one grid


@dataclass(frozen=True)
class Note:
    """One note; times in frames of 1/50 s, counted from the start of the clip."""

    start: int
    frames: int
    pitch: int  # MIDI key 0..127; for drums the General MIDI percussion key
    velocity: int  # 1..127
    program: int  # General MIDI program 0..127; ignored for drums
    voice: str  # "melody", "chords", "bass" or "drums"


@dataclass(frozen=True)
class Score:
    """The notes of one clip and its length in frames of 1/50 s."""

    notes: tuple[Note, ...]
    frames: int
