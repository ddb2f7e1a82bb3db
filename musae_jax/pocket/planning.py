"""Linear heads that ask the language model, while it is trained, where in the bar it is and what will be played.

The next code alone teaches little of tempo and key: once a clip is under way its past says what comes, so the prompt is
worth little, and a wrong beat costs hardly more than one note held too long. The heads read the stream half-way up at
every frame, and the score has the answers: the place in the beat and its tempo, the place in the bar, the key, the
chord, the progression and the place in it, what sounds within half a second, and the pitch classes, drums and
instruments of the next four seconds. Early in a clip only the prompt can tell (a clip begins with a bar, so tempo and
position give the beat), and where there is no prompt the model must listen. The heads are thrown away after training,
the model stays a plain MusicGen.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from musae_jax.compose.composer import Style
from musae_jax.compose.concepts import METRES, MODES, PROGRESSIONS, SIXTEENTHS
from musae_jax.pocket.corpus import LOWEST_NOTE, NOTES, ROLL

NEAR, FAR = 24, 200  # frames ahead
ANY_OF = 10.0  # weighs the mean over what may sound, most of which never does
BEAT_STARTS = np.concatenate([[0], np.cumsum([4 * s for s in SIXTEENTHS])])  # of each tempo's frames in a beat
BAR_STARTS = np.concatenate([[0], np.cumsum([m // 4 for m in METRES.values()])])  # of each metre's quarters in a bar
MINOR = np.array([mode == "minor" for mode, _ in PROGRESSIONS.values()], int)
DEGREES = np.array([degrees for _, degrees in PROGRESSIONS.values()])  # [progressions, 4], one a bar
SCALES = np.array([MODES[mode] for mode, _ in PROGRESSIONS.values()])  # [progressions, 7]
ONE_OF = ("beat", "bar", "key", "chord", "form")  # the heads with one answer a frame; the others have many
SIZES = {
    "beat": int(BEAT_STARTS[-1]), "bar": int(BAR_STARTS[-1]), "key": 24, "chord": 24, "form": DEGREES.size,
    "near": ROLL, "far": 12 + ROLL - NOTES,
}  # fmt: skip


class Scores(NamedTuple):
    """What the composer wrote for n clips: `roll` bool [n, T, ROLL] (`corpus.roll`), and int [n] the numbers of their
    tempo in `SIXTEENTHS`, of their metre in `METRES` and of their progression in `PROGRESSIONS`, and their tonic."""

    roll: np.ndarray
    tempo: np.ndarray
    metre: np.ndarray
    progression: np.ndarray
    tonic: np.ndarray


class Plan(NamedTuple):
    """What the heads should answer at each frame: int32 [B, T] `beat`, the frame in the beat and the tempo as one
    number, `bar`, the quarter in the bar and the metre, `key` and `chord`, twice the tonic or root and one more if they
    are minor, and `form`, the bar in the progression and which it is; bool [B, T, …] what sounds in the next `NEAR`
    frames (as in the roll), and in the next `FAR` (pitch classes from C, drums, instruments)."""

    beat: np.ndarray
    bar: np.ndarray
    key: np.ndarray
    chord: np.ndarray
    form: np.ndarray
    near: np.ndarray
    far: np.ndarray


def scores(roll: np.ndarray, styles: list[Style]) -> Scores:
    """The scores of clips in `styles`, in the order of `roll`."""
    tempo = np.array([SIXTEENTHS.index(style.sixteenth) for style in styles])
    metre = np.array([list(METRES).index(style.metre) for style in styles])
    progression = np.array([list(PROGRESSIONS).index(style.progression) for style in styles])
    return Scores(roll, tempo, metre, progression, np.array([style.tonic for style in styles]))


def plan(known: Scores, clips: np.ndarray, frames: int) -> Plan:
    """What is to be answered in the first `frames` of `clips`, int [B]; a clip's end cuts what it looks ahead to."""
    roll = known.roll[clips]
    numbers = known.tempo, known.metre, known.progression, known.tonic
    tempo, metre, progression, tonic = (each[clips, None] for each in numbers)  # [B, 1]
    at = np.arange(frames)
    beat = 4 * np.asarray(SIXTEENTHS)[tempo]  # frames [B, 1]
    quarters = np.asarray(list(METRES.values()))[metre] // 4
    place = at // (beat * quarters) % DEGREES.shape[1]  # a chord a bar
    degree, key = DEGREES[progression, place], 2 * tonic + MINOR[progression]
    root, third = (SCALES[progression, (degree + above) % 7] for above in (0, 2))  # [B, T] above the tonic
    minor = (third - root) % 12 == 3
    sums = np.pad(np.cumsum(roll, 1, dtype=np.int16), ((0, 0), (1, 0), (0, 0)))  # [B, T + 1, ROLL]
    near, far = (sums[:, np.minimum(at + ahead, roll.shape[1])] > sums[:, at] for ahead in (NEAR, FAR))
    octaves = np.pad(far[..., :NOTES], ((0, 0), (0, 0), (LOWEST_NOTE % 12, -(LOWEST_NOTE + NOTES) % 12)))
    classes = octaves.reshape(*octaves.shape[:2], -1, 12).any(2)
    return Plan(
        beat=(BEAT_STARTS[tempo] + at % beat).astype(np.int32),
        bar=(BAR_STARTS[metre] + at // beat % quarters).astype(np.int32),
        key=np.broadcast_to(key, place.shape).astype(np.int32),
        chord=(2 * ((tonic + root) % 12) + minor).astype(np.int32),
        form=(DEGREES.shape[1] * progression + place).astype(np.int32),
        near=near,
        far=np.concatenate([classes, far[..., NOTES:]], -1),
    )


def plan_heads(width: int) -> dict[str, dict[str, jax.Array]]:
    """Heads that know nothing yet: kernel [width, size] and bias [size] each."""
    return {name: {"kernel": jnp.zeros((width, size)), "bias": jnp.zeros(size)} for name, size in SIZES.items()}


def plan_losses(heads: dict, stream: jax.Array, asked: Plan, weights: jax.Array) -> dict[str, jax.Array]:
    """What the heads do not know, in nats a frame: a cross-entropy each, of `near` and `far` `ANY_OF` times the mean
    over what may sound. Stream [B, T, D]; `weights` [T] weigh the frames."""
    stream = stream * jax.lax.rsqrt(jnp.mean(stream**2, -1, keepdims=True) + 1e-6)
    answers = {name: stream @ head["kernel"] + head["bias"] for name, head in heads.items()}
    one_of = optax.softmax_cross_entropy_with_integer_labels
    any_of = lambda logits, truth: ANY_OF * optax.sigmoid_binary_cross_entropy(logits, truth).mean(-1)  # noqa: E731
    nats = {
        name: (one_of if name in ONE_OF else any_of)(answers[name], getattr(asked, name)) for name in heads
    }  # [B, T] each
    return {name: jnp.sum(each.mean(0) * weights) / jnp.sum(weights) for name, each in nats.items()}
