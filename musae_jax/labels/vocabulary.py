"""The words of the sources, and which of them mean the same.

Sources do not share a vocabulary: descriptors say "loudness: loud" where the composer wrote "dynamics: loud". A name is
judged by another source through its counterparts, the names that this source has for the same thing.
"""

import numpy as np

from musae_jax.compose.captions import PHRASES
from musae_jax.compose.concepts import CONCEPT_INDEX, VOCABULARY
from musae_jax.labels.hearing import Hearing

# What names of the descriptors mean in the composer's words. Others (brightness, bandwidth, …) have no counterpart.
COUNTERPARTS: dict[str, tuple[str, ...]] = {
    "loudness: loud": ("dynamics: loud",),
    "loudness: quiet": ("dynamics: soft",),
    "tempo: fast": ("tempo: 125 bpm", "tempo: 94 bpm"),
    "tempo: slow or no beat": ("tempo: 75 bpm", "tempo: 62 bpm"),
    "attack: percussive": ("drums: any",),
    "noisiness: noisy": ("drums: any",),
    "treble: much": ("drums: any",),
    "pitch height: low": ("register: low",),
    "pitch height: high": ("register: high",),
    "stroke: low": ("percussion: kick",),
    "stroke: middle": ("percussion: snare",),
    "stroke: high": ("percussion: hat",),
    "stroke: any": ("melody: onset",),
    "level: high": ("melody: sounding",),
}
TEMPLATES = ("{}", "{} music", "This is a sound of {}.")  # CLAP's score of a word is that of its mean over these

# What is asked of CLAP about music of any kind: instruments, voices, styles, moods, playing, sound.
WORDS = """
piano; electric piano; harpsichord; church organ; hammond organ; accordion; acoustic guitar; electric guitar;
distorted guitar; slide guitar; ukulele; banjo; mandolin; harp; sitar; bass guitar; slap bass; synth bass; double bass;
violin; cello; string orchestra; pizzicato strings; trumpet; trombone; french horn; tuba; brass band; saxophone;
clarinet; oboe; bassoon; flute; recorder; pan flute; bagpipes; harmonica; marimba; xylophone; vibraphone; glockenspiel;
steel drums; bells; gong; timpani; taiko drums; hand drums; bongos; tabla; shaker; tambourine; hand claps; drum kit;
brushed drums; drum machine; 808 bass drum; hi-hat; cymbal crash; synthesizer lead; synthesizer pad; theremin;
arpeggiated synthesizer; turntable scratching; male singing; female singing; choir; rap; humming; whistling;
spoken voice; beatboxing; yodelling;
rock; hard rock; punk; heavy metal; blues; country; folk; bluegrass; jazz; swing; bebop; bossa nova; samba; salsa;
tango; flamenco; reggae; dub; ska; soul; funk; disco; gospel; rhythm and blues; hip hop; trap; house; techno; trance;
hardstyle; drum and bass; dubstep; ambient; lo-fi; synthwave; chiptune; new age; baroque; classical; romantic piano;
opera; minimalism; film score; video game music; march; waltz; polka; Indian classical; Chinese traditional; Celtic;
African percussion; Arabic; Balkan; Latin; Christmas; lullaby; circus;
happy; sad; calm; energetic; aggressive; dark; dreamy; epic; mysterious; tense; romantic; melancholic; playful; pensive;
solo instrument; full band; unaccompanied melody; held chords; fast arpeggios; walking bass; repeated riff; ostinato;
drone; tremolo; vibrato; staccato notes; legato phrases; glissando; drum fill; build-up; breakdown; silence; fade out;
slow tempo; fast tempo; steady beat; free rhythm; syncopation; triplets; half time beat; four on the floor;
shuffle beat; major key; minor key; dissonance; low register; high register; bright sound; muffled sound;
distorted sound; reverb; echo; vinyl crackle; tape hiss; noise; clean recording; live audience; applause;
electronic beeps; sound effects
"""
MUSIC = {
    word: tuple(template.format(word) for template in TEMPLATES) for word in " ".join(WORDS.split()).split("; ")
}  # names and their phrases for a CLAP of any music
POCKET = PHRASES  # for the pocket's CLAP: what captions say of the composer's concepts


def counterparts(name: str) -> tuple[str, ...]:
    """The composer's names for what a name means: its own if it is one of them, none if there is none."""
    return (name,) if name in CONCEPT_INDEX else COUNTERPARTS.get(name, ())


def family_of(name: str) -> str | None:
    """The composer's family of concepts to which a name belongs, or None."""
    meant = counterparts(name)
    return VOCABULARY[CONCEPT_INDEX[meant[0]]].family if meant else None


def columns_of(name: str, hearing: Hearing) -> list[int]:
    """Where a source hears a name, among its `concepts`: the name itself; else its counterparts; else the source's own
    name that has this one as a counterpart; none if it means nothing to the source."""
    own = [one for one in (name,) if one in hearing.column]
    own = own or [one for one in counterparts(name) if one in hearing.column]
    own = own or [one for one, meant in COUNTERPARTS.items() if name in meant and one in hearing.column][:1]
    return [hearing.column[one] for one in own]


def heard_of(name: str, hearing: Hearing) -> np.ndarray | None:
    """What a source hears of a name: [n, W] if it comes and goes, [n, 1] of whole clips, None if the name means nothing
    to the source.

    That is what it hears in the most of `columns_of`, each standardised; without any, of the name as free text.
    """
    columns = columns_of(name, hearing)
    if columns:
        return np.maximum.reduce([_standard(hearing.of(column)) for column in columns])
    heard = hearing.hears(name) if hearing.hears else None
    return None if heard is None else heard[:, None]


def _standard(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / max(float(values.std()), 1e-9)
