"""Making the clips of a steering experiment: every clip is one row of a batch, with a vector of its own and the random
key of its prompt and seed, so that one compiled program generates all arms."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from musae_jax.batching import in_batches
from musae_jax.errors import MusaeError
from musae_jax.files import atomic_path
from musae_jax.models.decoder import TextStates
from musae_jax.models.edits import Edits
from musae_jax.models.generate import generate
from musae_jax.models.musicgen import MusicGen, decode_codes, encode_prompts
from musae_jax.sae.sae import SAE
from musae_jax.steering.arms import Row, pair_number, row_vectors
from musae_jax.steering.choices import ARMS, How
from musae_jax.steering.drift import prediction_drift
from musae_jax.steering.measures import CONCEPT_MEASURES

Progress = Callable[[int, int, str], None]


@dataclasses.dataclass(frozen=True)
class EffectsConfig:
    """How steered clips are made and compared."""

    strengths: tuple[float, ...] = (0.5, 1.0, 2.0)  # in units of each feature's maximum activation
    strength: float | None = None  # at which arms are compared; None: each feature's own, see `effects`
    how: How = "contrast"  # what a feature's vector is: its contrast, or ("add") its decoder row
    arms: tuple[str, ...] = ARMS
    branches: Literal["both", "conditional"] = "conditional"  # of guidance, that vectors are added in
    clips: int = 8  # a feature, arm and strength
    calibration: int = 4  # clips a feature, arm and strength, where `strength` is None
    drift_clips: int = 4  # of those, on which the drift of predictions is measured
    sounds: int = 2  # of those, that are kept to be heard
    seconds: float = 4.0
    batch_size: int = 32  # rows generated together
    measures: tuple[str, ...] = CONCEPT_MEASURES  # the first of these that knows a name judges it
    level: float = 0.01  # of corrected p-values
    resamples: int = 2000  # of the bootstrap
    seed: int = 0

    def __post_init__(self):
        given = (*self.strengths, *(() if self.strength is None else (self.strength,)))
        if not given or not all(np.isfinite(a) and a for a in given):
            found = ", ".join(f"{a:g}" for a in given) or "none"
            raise MusaeError(f"the strengths to steer at are {found}; give finite ones, none of them 0")
        if self.strength is None and max(given) < 0:
            raise MusaeError("all strengths are below 0; name the --strength to compare arms at, or one above 0")
        least = 0 if self.strength is not None else 1
        if self.clips < 2 or self.calibration < least:
            raise MusaeError(
                f"steering was to make {self.clips} clips, and {self.calibration} to choose strengths on; make 2 at "
                f"least, and {least}"
            )


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What all clips have in common: the model, the SAE, the directions of each feature's arms, the other layer."""

    mg: MusicGen
    sae: SAE
    directions: Mapping[int, Mapping[str, np.ndarray]]
    other_layer: int | None
    maximum: np.ndarray
    config: EffectsConfig

    def arms(self, feature: int) -> list[str]:
        """Those of the arms asked for that a feature has."""
        lacking = {"other_layer"} if self.other_layer is None else set()
        having = {"sae", "random", "prompt", "other_layer", *self.directions[feature]} - lacking
        return [arm for arm in self.config.arms if arm in having]

    def vectors(self, rows: Sequence[Row]) -> dict[int, np.ndarray]:
        """What is added in each row, see `row_vectors`."""
        key = jax.random.key(self.config.seed + 1)
        return row_vectors(self.sae, rows, self.directions, self.other_layer, key, self.config.how, self.maximum)

    def edits(self, vectors: Mapping[int, np.ndarray], places: Sequence[int]) -> Edits:
        """The vectors of some rows, [G, B, 1, D], in the branches that are steered."""
        branches = jnp.asarray([1.0, 0.0] if self.config.branches == "conditional" else [1.0])[:, None, None, None]
        chosen = np.asarray(places)
        return Edits(vectors={layer: branches * values[chosen][None, :, None] for layer, values in vectors.items()})


def make_codes(one: Experiment, rows: Sequence[Row], out: Path, progress: Progress | None = None) -> np.ndarray:
    """Codes int32 [R, K, T] of every row, in batches of one shape.

    They are kept in `out` as they come: what a killed call left there is not made again.
    """
    mg, c = one.mg, one.config
    vectors = one.vectors(rows)
    told = [c.seconds, *dataclasses.astuple(mg.config.sampling), c.branches, c.batch_size, c.seed, _fingerprint(one)]
    digest = hashlib.sha256(json.dumps([told, [dataclasses.astuple(row) for row in rows]]).encode())
    for layer in sorted(vectors):
        digest.update(np.ascontiguousarray(vectors[layer]).tobytes())
    cache = out / "codes" / digest.hexdigest()[:16]
    texts = sorted({row.text for row in rows})
    states = encode_prompts(mg, texts)
    pairs = sorted({(row.prompt, row.seed) for row in rows})
    numbers = jnp.asarray([pair_number(prompt, seed) for prompt, seed in pairs], jnp.uint32)
    keys = jax.vmap(lambda number: jax.random.fold_in(jax.random.key(c.seed), number))(numbers)
    done = []
    for start in range(0, len(rows), c.batch_size):
        path = cache / f"{start // c.batch_size:04d}.safetensors"
        batch = list(range(start, min(start + c.batch_size, len(rows))))
        if not path.exists():
            full = batch + [batch[-1]] * (c.batch_size - len(batch))  # one shape, one compilation
            which = jnp.asarray([texts.index(rows[i].text) for i in full])
            made = generate(
                mg.config,
                mg.params,
                states.replace(states=states.states[which], mask=states.mask[which]),
                keys[jnp.asarray([pairs.index((rows[i].prompt, rows[i].seed)) for i in full])],
                seconds=c.seconds,
                edits=one.edits(vectors, full),
                audio=False,
            )
            with atomic_path(path) as temporary:
                save_file({"codes": np.ascontiguousarray(np.asarray(made.codes)[: len(batch)])}, temporary)
        done.append(load_file(path)["codes"])
        if progress:
            progress(batch[-1] + 1, len(rows), "clips")
    return np.concatenate(done)


def _fingerprint(one: Experiment) -> list[float]:
    """A number a tensor: enough to notice other weights."""
    leaves = jax.tree.leaves((one.mg.params, one.sae.params))
    return [float(jnp.sum(jnp.abs(jnp.asarray(leaf, jnp.float32)))) for leaf in leaves]


def sound_of(one: Experiment, codes: np.ndarray) -> np.ndarray:
    """Mono sound [R, S] of codes [R, K, T]."""
    size = min(one.config.batch_size, len(codes))
    audio = in_batches(lambda batch: decode_codes(one.mg.config, one.mg.params, batch), codes, size)
    return audio.mean(1) if audio.ndim == 3 else audio


def drift_of(
    one: Experiment, rows: Sequence[Row], codes: np.ndarray, plain: Sequence[int], places: Sequence[int]
) -> np.ndarray:
    """KL of the predictions of steered rows on the codes of the unsteered ones, in nats: [len(places), K].

    `places` are rows, `plain` the unsteered row of each.
    """
    mg, c = one.mg, one.config
    vectors = one.vectors(rows)
    texts = sorted({row.text for row in rows})
    states = encode_prompts(mg, texts)

    def asked(at: np.ndarray) -> TextStates:
        which = jnp.asarray([texts.index(rows[n].text) for n in at])
        return states.replace(states=states.states[which], mask=states.mask[which])

    def measure(both: np.ndarray) -> jax.Array:
        before, after = both.T
        edits = one.edits(vectors, after)
        scale = mg.config.sampling.guidance_scale
        return prediction_drift(mg.config, mg.params, codes[before], asked(before), asked(after), edits, scale)

    both = np.stack([plain, places], 1)
    return in_batches(measure, both, min(c.batch_size, len(both)))
