"""Captions in varied wording, written from the truth; the words that the pocket's text encoder must know.

A caption mentions some of what is true and nothing that is not. Drums and the lead instrument are nearly always
mentioned, the rest about half of the time, in shuffled order.
"""

from collections.abc import Sequence

import numpy as np

from musae_jax.compose.composer import Style
from musae_jax.compose.concepts import BASS, DRUM_PATTERNS, LEADS, MODES, PITCH_CLASSES, SIXTEENTHS, TONICS, tempo_of

_TEMPO_WORDS = {
    6: ("fast", "quick", "lively"),
    8: ("moderate", "walking"),
    10: ("relaxed", "unhurried"),
    12: ("slow", "very slow"),
}
_DYNAMIC_WORDS = {
    "soft": ("soft", "quiet", "gentle"),
    "medium": ("medium loud", "even"),
    "loud": ("loud", "strong", "powerful"),
}
_ARTICULATION_WORDS = {"legato": ("legato", "smooth", "connected"), "staccato": ("staccato", "short notes", "detached")}
_REGISTER_WORDS = {
    "low": ("low register", "low melody"),
    "middle": ("middle register",),
    "high": ("high register", "high melody"),
}
_DRUM_WORDS = {
    "rock": ("rock drums", "a rock beat"),
    "dance": ("dance drums", "a dance beat"),
    "half time": ("half time drums", "a half time beat"),
}
_RHYTHM_WORDS = {"slow": ("long notes",), "steady": ("steady notes",), "busy": ("busy notes", "many notes")}
_PATTERN_WORDS = {
    "held": ("held chords",),
    "pulsed": ("pulsed chords",),
    "arpeggio": ("arpeggio chords", "broken chords"),
}


def write_caption(style: Style, rng: np.random.Generator, complete: bool = False) -> str:
    """One caption for a clip written in `style`, such as "slow flute solo in D minor, quiet, without drums".

    With `complete` it leaves out nothing that captions can say.
    """

    def pick(words):
        return words[rng.integers(len(words))]

    def often(share):
        return rng.random() < share or complete

    lead, backing = style.lead.name, style.backing.name
    head = {
        "solo melody": (f"{lead} solo", f"{lead} alone", f"a {lead} melody"),
        "chords alone": (f"{backing} chords alone", f"only {backing} chords"),
        "melody and bass": (f"{lead} and bass", f"{lead} with bass"),
        "melody and chords": (f"{lead} with {backing} chords", f"{lead} melody over {backing} chords"),
        "full band": (f"full band with {lead}, {backing} and bass", f"{lead}, {backing} chords and bass"),
    }[style.texture]
    caption = pick(head)
    if often(0.7):
        caption = f"{pick(_TEMPO_WORDS[style.sixteenth])} {caption}"
    if often(0.6):
        caption += f" in {PITCH_CLASSES[style.tonic]} {style.mode}"
    extras = []
    if often(0.4):
        extras.append(f"{tempo_of(style.sixteenth):.0f} bpm")
    if often(0.6):
        extras.append(pick(_DYNAMIC_WORDS[style.dynamics]))
    if often(0.5):
        extras.append(pick(_ARTICULATION_WORDS[style.articulation]))
    if style.metre == "three four" and often(0.7):
        extras.append(pick(("waltz", "three four time")))
    if "melody" in style.voices:
        if often(0.5):
            extras.append(pick(_REGISTER_WORDS[style.register]))
        if often(0.4):
            extras.append(pick(_RHYTHM_WORDS[style.rhythm]))
    if "chords" in style.voices and often(0.4):
        extras.append(pick(_PATTERN_WORDS[style.chord_pattern]))
    if style.drums and often(0.95):
        extras.append(pick(_DRUM_WORDS[style.drums]) if often(0.6) else pick(("drums", "with drums")))
    if not style.drums and often(0.7):
        extras.append(pick(("no drums", "without drums")))
    rng.shuffle(extras)
    return ", ".join([caption, *extras])


def _phrases() -> dict[str, tuple[str, ...]]:
    keys = {f"key: {PITCH_CLASSES[t]} {m}": (f"in {PITCH_CLASSES[t]} {m}",) for t in TONICS for m in MODES}
    return {
        **{f"instrument: {i.name}": (i.name,) for i in (*LEADS, BASS)},
        "drums: any": ("drums", "with drums"),
        **{f"drums: {name}": _DRUM_WORDS[name] for name in DRUM_PATTERNS},
        **{f"tempo: {tempo_of(s):.0f} bpm": (f"{tempo_of(s):.0f} bpm", *_TEMPO_WORDS[s]) for s in SIXTEENTHS},
        "metre: three four": ("waltz", "three four time"),
        **keys,
        **{f"mode: {mode}": (mode,) for mode in MODES},
        **{f"register: {name}": words for name, words in _REGISTER_WORDS.items()},
        **{f"dynamics: {name}": words for name, words in _DYNAMIC_WORDS.items()},
        **{f"articulation: {name}": words for name, words in _ARTICULATION_WORDS.items()},
        "texture: solo melody": ("melody solo", "a melody alone"),
        "texture: chords alone": ("only chords", "chords alone"),
        "texture: melody and bass": ("melody and bass", "melody with bass"),
        "texture: melody and chords": ("melody with chords", "melody over chords"),
        "texture: full band": ("full band",),
        **{f"rhythm: {name}": words for name, words in _RHYTHM_WORDS.items()},
        **{f"chord pattern: {name}": words for name, words in _PATTERN_WORDS.items()},
    }


PHRASES = _phrases()  # what captions say of a concept, by its name; of some they say nothing


def write_phrases(concepts: Sequence[str], rng: np.random.Generator) -> str:
    """Some of what is true of a clip, such as "flute, in D minor, slow": one phrase each for a few of the `concepts`
    that hold, in any order."""
    known = [name for name in concepts if name in PHRASES]
    chosen = rng.permutation(len(known))[: rng.integers(1, 6)]
    return ", ".join(PHRASES[known[i]][rng.integers(len(PHRASES[known[i]]))] for i in chosen)
