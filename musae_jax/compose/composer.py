"""A seeded composer: `compose(seed)` writes a clip of music together with everything that is true of it.

A `Style` holds the choices that make a clip (tempo, key, instruments, …). Writing the notes from a style is a
deterministic function of the style and the generator, so truth is read off the choices, never estimated from sound.
Every onset falls on the sixteenth grid, and every sixteenth is a whole number of 50 Hz frames.
"""

from dataclasses import dataclass

import numpy as np

from musae_jax.compose import concepts as c
from musae_jax.compose.score import FRAME_RATE, Note, Score

ONSET_FRAMES = 4  # a hit or an onset is true for this long: 80 ms


@dataclass(frozen=True)
class Style:
    """The choices behind one clip; the fields are keys of the tables in `concepts`."""

    sixteenth: int
    metre: str
    tonic: int
    mode: str
    progression: str
    texture: str
    lead: c.Instrument
    backing: c.Instrument
    register: str
    dynamics: str
    articulation: str
    rhythm: str
    chord_pattern: str
    drums: str | None

    @property
    def voices(self) -> tuple[str, ...]:
        """The pitched voices that sound."""
        return c.TEXTURES[self.texture]


@dataclass(frozen=True)
class Composition:
    """A clip as written: `score`, the `style` it was written in, and `truth` bool [T, C] (`concepts.VOCABULARY`)."""

    score: Score
    style: Style
    truth: np.ndarray


def sample_style(rng: np.random.Generator) -> Style:
    """Draws the choices of a clip; thin textures are common because a model learns a timbre best when it is alone."""

    def pick(options):
        options = list(options)
        return options[rng.integers(len(options))]

    progression = pick(c.PROGRESSIONS)
    lead = pick(c.LEADS)
    metre = "four four" if rng.random() < 0.75 else "three four"
    return Style(
        sixteenth=pick(c.SIXTEENTHS),
        metre=metre,
        tonic=pick(c.TONICS),
        mode=c.PROGRESSIONS[progression][0],
        progression=progression,
        texture=list(c.TEXTURES)[rng.choice(5, p=[0.35, 0.15, 0.15, 0.2, 0.15])],
        lead=lead,
        backing=pick(b for b in c.BACKINGS if b != lead),
        register=pick(c.REGISTERS),
        dynamics=pick(c.DYNAMICS),
        articulation=pick(c.ARTICULATIONS),
        rhythm=pick(c.MELODY_RHYTHMS),
        chord_pattern=pick(c.CHORD_PATTERNS),
        drums=pick(c.DRUM_PATTERNS) if rng.random() < 0.45 else None,
    )


def compose(seed: int, seconds: float = 10.0, style: Style | None = None) -> Composition:
    """Writes `seconds` of music from `seed`; the same arguments always give the same clip."""
    rng = np.random.default_rng(seed)
    style = style or sample_style(rng)
    frames = round(seconds * FRAME_RATE)
    chords = _chords(style, frames)
    notes = []
    if "melody" in style.voices:
        notes += _melody(style, chords, rng)
    if "chords" in style.voices:
        notes += _accompaniment(style, chords)
    if "bass" in style.voices:
        notes += _bass(style, chords)
    if style.drums:
        notes += _drums(style, frames)
    notes = [_cut(note, frames) for note in notes if note.start < frames]
    notes.sort(key=lambda note: (note.start, note.voice, note.pitch))
    score = Score(tuple(notes), frames)
    return Composition(score, style, _truth(score, style, chords))


@dataclass(frozen=True)
class _Chord:
    """A triad that holds for one bar: `start` and `frames` at 50 Hz, `degree` 0-based in the scale."""

    start: int
    frames: int
    degree: int


def _chords(style: Style, frames: int) -> list[_Chord]:
    bar = c.METRES[style.metre] * style.sixteenth
    degrees = c.PROGRESSIONS[style.progression][1]
    count = -(-frames // bar)
    return [_Chord(i * bar, bar, degrees[i % len(degrees)]) for i in range(count)]


def _pitch(style: Style, step: int) -> int:
    """MIDI pitch of a scale step counted from the tonic near middle C."""
    scale = c.MODES[style.mode]
    return 60 + style.tonic + 12 * (step // 7) + scale[step % 7]


def _triad(style: Style, degree: int) -> list[int]:
    return [_pitch(style, degree + third) for third in (0, 2, 4)]


def _near(pitch: int, lowest: int) -> int:
    """The same pitch class, within the octave that starts at `lowest`."""
    return lowest + (pitch - lowest) % 12


def _velocity(style: Style, instrument: c.Instrument) -> int:
    return int(np.clip(round(c.DYNAMICS[style.dynamics] * instrument.gain), 1, 127))


_RHYTHMS = {  # lengths of a bar's notes in sixteenths, by metre
    "slow": {"four four": [(8, 8), (16,), (8, 4, 4), (12, 4)], "three four": [(12,), (8, 4)]},
    "steady": {"four four": [(4, 4, 4, 4), (4, 4, 8), (8, 4, 4)], "three four": [(4, 4, 4), (4, 8)]},
    "busy": {
        "four four": [(2, 2, 2, 2, 2, 2, 4), (2, 2, 4, 2, 2, 4), (4, 2, 2, 2, 2, 2, 2)],
        "three four": [(2, 2, 2, 2, 4), (4, 2, 2, 2, 2)],
    },
}


def _melody(style: Style, chords: list[_Chord], rng: np.random.Generator) -> list[Note]:
    """A walk over the scale that lands on chord tones on strong notes; two bars of rhythm and contour, repeated."""
    lowest = c.REGISTERS[style.register]
    ladder = [p for p in range(lowest, lowest + 15) if (p - style.tonic) % 12 in c.MODES[style.mode]]
    patterns = _RHYTHMS[style.rhythm][style.metre]
    motif = []  # two bars of (length in sixteenths, move in scale steps)
    for _ in range(2):
        lengths = patterns[rng.integers(len(patterns))]
        motif.append([(length, int(rng.choice([-2, -1, -1, 0, 1, 1, 2]))) for length in lengths])
    notes, place = [], len(ladder) // 2
    velocity = _velocity(style, style.lead)
    for bar, chord in enumerate(chords):
        tones = {p % 12 for p in _triad(style, chord.degree)}
        at = chord.start
        for index, (length, move) in enumerate(motif[bar % 2]):
            place += move
            if not 0 <= place < len(ladder):  # turn round at the edge of the register
                place -= 2 * move
            if index == 0:  # the first note of a bar belongs to its chord
                place = min((i for i, p in enumerate(ladder) if p % 12 in tones), key=lambda i: abs(i - place))
            written = length * style.sixteenth
            held = max(2, round(written * c.ARTICULATIONS[style.articulation]))
            notes.append(Note(at, held, ladder[place], velocity, style.lead.program, "melody"))
            at += written
    return notes


def _accompaniment(style: Style, chords: list[_Chord]) -> list[Note]:
    notes = []
    velocity = max(1, round(0.8 * _velocity(style, style.backing)))
    share = c.ARTICULATIONS[style.articulation]
    beat = 4 * style.sixteenth
    for chord in chords:
        pitches = sorted(_near(p, 55) for p in _triad(style, chord.degree))
        if style.chord_pattern == "held":
            events = [(0, chord.frames, pitches)]
        elif style.chord_pattern == "pulsed":
            events = [(at, beat, pitches) for at in range(0, chord.frames, beat)]
        else:
            half = beat // 2
            order = [pitches[0], pitches[1], pitches[2], pitches[1]]
            events = [(i * half, half, [order[i % 4]]) for i in range(chord.frames // half)]
        for at, written, sounding in events:
            held = max(2, round(written * share))
            notes += [Note(chord.start + at, held, p, velocity, style.backing.program, "chords") for p in sounding]
    return notes


def _bass(style: Style, chords: list[_Chord]) -> list[Note]:
    """The chord's root on the first beat and half way through the bar."""
    velocity = _velocity(style, c.BASS)
    notes = []
    for chord in chords:
        root = _near(_triad(style, chord.degree)[0], 36)
        half = chord.frames // 2 if style.metre == "four four" else chord.frames
        for at in range(0, chord.frames, half):
            notes.append(Note(chord.start + at, half, root, velocity, c.BASS.program, "bass"))
    return notes


def _drums(style: Style, frames: int) -> list[Note]:
    pattern = c.DRUM_PATTERNS[style.drums][style.metre]
    bar = c.METRES[style.metre] * style.sixteenth
    velocity = c.DYNAMICS[style.dynamics]
    return [
        Note(start + step * style.sixteenth, 2, c.PERCUSSION[piece], velocity, 0, "drums")
        for start in range(0, frames, bar)
        for piece, steps in pattern.items()
        for step in steps
    ]


def _cut(note: Note, frames: int) -> Note:
    if note.start + note.frames <= frames:
        return note
    return Note(note.start, frames - note.start, note.pitch, note.velocity, note.program, note.voice)


def _truth(score: Score, style: Style, chords: list[_Chord]) -> np.ndarray:
    truth = np.zeros((score.frames, len(c.VOCABULARY)), bool)  # [T, C]

    def say(concept: str, start: int = 0, frames: int | None = None):
        truth[start : None if frames is None else start + frames, c.CONCEPT_INDEX[concept]] = True

    if "melody" in style.voices:
        say(f"instrument: {style.lead.name}")
        say(f"register: {style.register}")
        say(f"rhythm: {style.rhythm}")
    if "chords" in style.voices:
        say(f"instrument: {style.backing.name}")
        say(f"chord pattern: {style.chord_pattern}")
    if "bass" in style.voices:
        say("instrument: bass")
    if style.drums:
        say("drums: any")
        say(f"drums: {style.drums}")
    say(f"tempo: {c.tempo_of(style.sixteenth):.0f} bpm")
    say(f"metre: {style.metre}")
    say(f"key: {c.PITCH_CLASSES[style.tonic]} {style.mode}")
    say(f"mode: {style.mode}")
    say(f"progression: {style.progression}")
    say(f"dynamics: {style.dynamics}")
    say(f"articulation: {style.articulation}")
    say(f"texture: {style.texture}")
    for chord in chords:
        root, third, _ = _triad(style, chord.degree)
        say(f"chord root: {c.PITCH_CLASSES[root % 12]}", chord.start, chord.frames)
        say(f"chord quality: {'major' if third - root == 4 else 'minor'}", chord.start, chord.frames)
        beat = 4 * style.sixteenth
        for number in range(chord.frames // beat):
            say(f"bar: {c.BEATS[number]}", chord.start + number * beat, beat)
    pieces = {key: piece for piece, key in c.PERCUSSION.items()}
    for note in score.notes:
        if note.voice == "drums":
            say(f"percussion: {pieces[note.pitch]}", note.start, ONSET_FRAMES)
        elif note.voice == "melody":
            say("melody: sounding", note.start, note.frames)
            say("melody: onset", note.start, ONSET_FRAMES)
    return truth
