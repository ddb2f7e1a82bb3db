"""The vocabulary of concepts that the composer writes with, and that truth is told in.

A concept is a yes-or-no statement about a moment of music. Clip-level concepts hold for a whole clip (its tempo, its
key); frame-level ones come and go (the chord root, a snare hit). Truth is always a boolean array [T, C] at 50 Hz, with
the columns in the order of `VOCABULARY`; clip-level columns are constant over T.

The vocabulary is sized to what the pocket model can learn well: few timbres, clearly different, and tempi at which a
sixteenth note is a whole number of frames, so that the same note always falls on the same frame grid.
"""

from dataclasses import dataclass

from musae_jax.compose.score import FRAME_RATE

PITCH_CLASSES = ("C", "C sharp", "D", "E flat", "E", "F", "F sharp", "G", "A flat", "A", "B flat", "B")


@dataclass(frozen=True)
class Instrument:
    """A General MIDI program (0-based) with the name used in concepts and captions, and a loudness trim."""

    name: str
    program: int
    family: str
    gain: float = 1.0  # multiplies velocities, so that no timbre buries another


LEADS = (
    Instrument("piano", 0, "keyboard", 1.35),
    Instrument("marimba", 12, "mallet", 1.15),
    Instrument("organ", 19, "organ"),
    Instrument("guitar", 24, "plucked"),
    Instrument("violins", 48, "strings"),
    Instrument("trumpet", 56, "brass"),
    Instrument("flute", 73, "pipe", 0.9),
    Instrument("synth", 80, "synth", 0.75),
)
BACKINGS = tuple(i for i in LEADS if i.name in ("piano", "organ", "guitar", "violins"))
BASS = Instrument("bass", 33, "bass", 0.9)

SIXTEENTHS = (6, 8, 10, 12)  # frames a sixteenth note lasts
TONICS = (0, 2, 4, 5, 7, 9)  # pitch classes of the keys used: C, D, E, F, G, A
MODES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
PROGRESSIONS = {  # scale degrees, 0-based, one a bar
    "I V vi IV": ("major", (0, 4, 5, 3)),
    "I IV V I": ("major", (0, 3, 4, 0)),
    "I vi ii V": ("major", (0, 5, 1, 4)),
    "i VI III VII": ("minor", (0, 5, 2, 6)),
    "i iv v i": ("minor", (0, 3, 4, 0)),
    "i VII VI VII": ("minor", (0, 6, 5, 6)),
}
METRES = {"four four": 16, "three four": 12}  # sixteenths a bar
BEATS = ("first beat", "second beat", "third beat", "fourth beat")  # of four sixteenths each
REGISTERS = {"low": 48, "middle": 60, "high": 72}  # lowest MIDI pitch of the melody's octave and a half
DYNAMICS = {"soft": 56, "medium": 84, "loud": 118}  # MIDI velocity
ARTICULATIONS = {"legato": 1.0, "staccato": 0.5}  # share of its written length that a note sounds
TEXTURES = {  # voices that sound, drums apart
    "solo melody": ("melody",),
    "chords alone": ("chords",),
    "melody and bass": ("melody", "bass"),
    "melody and chords": ("melody", "chords"),
    "full band": ("melody", "chords", "bass"),
}
CHORD_PATTERNS = ("held", "pulsed", "arpeggio")
MELODY_RHYTHMS = ("slow", "steady", "busy")
DRUM_PATTERNS = {  # sixteenth steps of a bar on which each piece is hit, by metre
    "rock": {
        "four four": {"kick": (0, 8, 10), "snare": (4, 12), "hat": (0, 2, 4, 6, 8, 10, 12, 14)},
        "three four": {"kick": (0, 6), "snare": (4, 8), "hat": (0, 2, 4, 6, 8, 10)},
    },
    "dance": {
        "four four": {"kick": (0, 4, 8, 12), "snare": (4, 12), "hat": (2, 6, 10, 14)},
        "three four": {"kick": (0, 4, 8), "snare": (), "hat": (2, 6, 10)},
    },
    "half time": {
        "four four": {"kick": (0,), "snare": (8,), "hat": (0, 4, 8, 12)},
        "three four": {"kick": (0,), "snare": (8,), "hat": (0, 4, 8)},
    },
}
PERCUSSION = {"kick": 36, "snare": 38, "hat": 46}  # General MIDI keys; the open hat, the closed one is hardly heard


def tempo_of(sixteenth: int) -> float:
    """Beats (quarter notes) a minute when a sixteenth note lasts `sixteenth` frames."""
    return 60.0 * FRAME_RATE / (4 * sixteenth)


@dataclass(frozen=True)
class Concept:
    """`name` is "family: value"; `level` is "clip" or "frame"."""

    name: str
    family: str
    level: str


def _vocabulary() -> tuple[Concept, ...]:
    values = {
        ("instrument", "clip"): [i.name for i in LEADS] + [BASS.name],
        ("drums", "clip"): ["any", *DRUM_PATTERNS],
        ("tempo", "clip"): [f"{tempo_of(s):.0f} bpm" for s in SIXTEENTHS],
        ("metre", "clip"): list(METRES),
        ("key", "clip"): [f"{PITCH_CLASSES[t]} {m}" for t in TONICS for m in MODES],
        ("mode", "clip"): list(MODES),
        ("progression", "clip"): list(PROGRESSIONS),
        ("register", "clip"): list(REGISTERS),
        ("dynamics", "clip"): list(DYNAMICS),
        ("articulation", "clip"): list(ARTICULATIONS),
        ("texture", "clip"): list(TEXTURES),
        ("rhythm", "clip"): list(MELODY_RHYTHMS),
        ("chord pattern", "clip"): list(CHORD_PATTERNS),
        ("chord root", "frame"): list(PITCH_CLASSES),
        ("chord quality", "frame"): ["major", "minor"],
        ("percussion", "frame"): list(PERCUSSION),
        ("melody", "frame"): ["sounding", "onset"],
        ("bar", "frame"): list(BEATS),
    }
    return tuple(
        Concept(f"{family}: {value}", family, level) for (family, level), names in values.items() for value in names
    )


VOCABULARY = _vocabulary()
CONCEPT_INDEX = {concept.name: column for column, concept in enumerate(VOCABULARY)}
