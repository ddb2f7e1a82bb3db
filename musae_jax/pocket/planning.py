"""Linear heads that ask the language model, while it is trained, where in the bar it is and what will be played.

The next code alone teaches little of tempo and key: once a clip is under way its past says what comes, so the prompt is
worth little, and a wrong beat costs hardly more than one note held too long. The heads read the stream half-way up at
every frame, and the composer has the answers: which concepts of the vocabulary hold, the place in the beat and its
tempo, what sounds within half a second, and the pitch classes, drums and instruments of the next four seconds. Early in
a clip only the prompt can tell (a clip begins with a bar, so tempo and position give the beat), and where there is no
prompt the model must listen. The heads are thrown away after training, the model stays a plain MusicGen.

The head for concepts reads each along a direction of fixed length (`LOUDNESS`): it cannot make a faint direction count
by weighing it more, so the model has to hold concepts as loudly as they matter.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from musae_jax.compose.composer import Style
from musae_jax.compose.concepts import SIXTEENTHS, VOCABULARY
from musae_jax.pocket.corpus import LOWEST_NOTE, NOTES, ROLL

NEAR, FAR = 24, 200  # frames ahead
BEAT_STARTS = np.concatenate([[0], np.cumsum([4 * s for s in SIXTEENTHS])])  # of each tempo's frames in a beat
SIZES = {"beat": int(BEAT_STARTS[-1]), "near": ROLL, "far": 12 + ROLL - NOTES, "concepts": len(VOCABULARY)}
WEIGHTS = {"beat": 1.0, "near": 10.0, "far": 10.0, "concepts": 70.0}  # the last three are means over what may hold
LOUDNESS = 2.0  # length of a concept's direction: its logit is this · √width · the stream's cosine with it, and a bias


class Scores(NamedTuple):
    """What the composer wrote for n clips: `roll` bool [n, T, ROLL] (`corpus.roll`), `truth` bool [n, T, C] (the
    vocabulary's concepts), and int [n] `tempo`, its number in `SIXTEENTHS`."""

    roll: np.ndarray
    truth: np.ndarray
    tempo: np.ndarray


class Plan(NamedTuple):
    """What the heads should answer at each frame: int32 [B, T] `beat`, the frame in the beat and the tempo as one
    number; bool [B, T, …] what sounds in the next `NEAR` frames (as in the roll), and in the next `FAR` (pitch classes
    from C, drums, instruments); and bool [B, T, C] which concepts hold."""

    beat: np.ndarray
    near: np.ndarray
    far: np.ndarray
    concepts: np.ndarray


def scores(roll: np.ndarray, truth: np.ndarray, styles: list[Style]) -> Scores:
    """The scores of clips in `styles`, in the order of `roll` and `truth`."""
    return Scores(roll, truth, np.array([SIXTEENTHS.index(style.sixteenth) for style in styles]))


def plan(known: Scores, clips: np.ndarray, frames: int) -> Plan:
    """What is to be answered in the first `frames` of `clips`, int [B]; a clip's end cuts what it looks ahead to."""
    roll, tempo = known.roll[clips], known.tempo[clips, None]
    at = np.arange(frames)
    sums = np.pad(np.cumsum(roll, 1, dtype=np.int16), ((0, 0), (1, 0), (0, 0)))  # [B, T + 1, ROLL]
    near, far = (sums[:, np.minimum(at + ahead, roll.shape[1])] > sums[:, at] for ahead in (NEAR, FAR))
    octaves = np.pad(far[..., :NOTES], ((0, 0), (0, 0), (LOWEST_NOTE % 12, -(LOWEST_NOTE + NOTES) % 12)))
    classes = octaves.reshape(*octaves.shape[:2], -1, 12).any(2)
    return Plan(
        beat=(BEAT_STARTS[tempo] + at % (4 * np.asarray(SIXTEENTHS)[tempo])).astype(np.int32),
        near=near,
        far=np.concatenate([classes, far[..., NOTES:]], -1),
        concepts=np.asarray(known.truth[clips, :frames]),
    )


def plan_heads(width: int) -> dict[str, dict[str, jax.Array]]:
    """Heads that know nothing yet: kernel [width, size] and bias [size] each."""
    heads = {name: {"kernel": jnp.zeros((width, size)), "bias": jnp.zeros(size)} for name, size in SIZES.items()}
    heads["concepts"]["kernel"] = jax.random.normal(jax.random.key(0), (width, SIZES["concepts"]))  # have directions
    return heads


def plan_losses(heads: dict, stream: jax.Array, asked: Plan, weights: jax.Array) -> dict[str, jax.Array]:
    """What the heads do not know, in nats a frame, times `WEIGHTS`. Stream [B, T + 1, D]; `weights` [T] weigh frames.

    Position p decides frame p, so what is to come is asked there, and has heard frame p - 1, so that is where that
    frame's concepts are asked; these are to be held, not only read from a prompt, so their frames weigh the same.
    """
    stream = stream * jax.lax.rsqrt(jnp.mean(stream**2, -1, keepdims=True) + 1e-6)
    kernels = {name: head["kernel"] for name, head in heads.items()}
    kernels["concepts"] *= LOUDNESS * jax.lax.rsqrt(jnp.sum(kernels["concepts"] ** 2, 0) + 1e-6)

    def answers(name: str) -> jax.Array:  # [B, T, size]
        read = stream[:, 1:] if name == "concepts" else stream[:, :-1]
        return read @ kernels[name] + heads[name]["bias"]

    nats = {
        name: optax.sigmoid_binary_cross_entropy(answers(name), getattr(asked, name)).mean((0, 2))
        for name in ("near", "far", "concepts")
    }
    nats["beat"] = optax.softmax_cross_entropy_with_integer_labels(answers("beat"), asked.beat).mean(0)
    weigh = {name: jnp.ones_like(weights) if name == "concepts" else weights for name in nats}
    return {name: WEIGHTS[name] * jnp.sum(each * weigh[name]) / jnp.sum(weigh[name]) for name, each in nats.items()}
