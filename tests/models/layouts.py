"""Run by test_layout.py in a process of eight fake devices: prints as JSON how each layout differs from one device."""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import TINY

from musae_jax.bench.hlo import by_kind, collectives
from musae_jax.errors import MusaeError
from musae_jax.mesh import make_mesh
from musae_jax.models import generate as module
from musae_jax.models.decoder import PREFIXED, TextStates
from musae_jax.models.edits import Edits, FunctionEdit, PerRow
from musae_jax.models.generate import generate, generate_stream
from musae_jax.models.layout import place_musicgen, place_rows
from musae_jax.models.melody import MelodyConfig
from musae_jax.models.musicgen import encode_audio, forward, random_musicgen

ROWS, WIDTH = 8, TINY.decoder.hidden_size
LAYOUTS = {"data 8": 1, "data 4 x model 2": 2}  # devices along model
FOUR_HEADS = dataclasses.replace(TINY, decoder=dataclasses.replace(TINY.decoder, num_attention_heads=4))
MELODY = dataclasses.replace(
    FOUR_HEADS,
    decoder=dataclasses.replace(FOUR_HEADS.decoder, model_type=PREFIXED),
    melody=MelodyConfig(chroma_length=5),
)


def model(config):
    mg = random_musicgen(config, jax.random.key(0))
    # As drawn, the weights are so small that no token depends on anything.
    return mg.replace(params={**mg.params, "decoder": jax.tree.map(lambda x: 8 * x, mg.params["decoder"])})


def far(ours, right) -> float:
    """The largest difference, as a share of the largest value."""
    ours, right = np.asarray(ours, np.float64), np.asarray(right, np.float64)
    return float(np.abs(ours - right).max() / np.abs(right).max())


def scaled(arrays, h):
    return arrays["all"] * arrays["factors"] * h


def generations(mg, text, rng):
    """name -> settings; every row has its own text, edit and, in some, duration."""
    shared = {"seconds": 0.3, "temperature": 0.0}
    if mg.config.melody is not None:
        melody = rng.random((ROWS, 4, mg.config.melody.num_chroma)).astype(np.float32)
        return {
            "melody": {**shared, "melody": melody},
            "melody two-pass": {**shared, "melody": melody, "two_pass": True},
        }
    own = {"factors": PerRow(rng.normal(size=(ROWS, WIDTH)).astype(np.float32)), "all": np.float32(0.5)}
    edits = Edits({0: rng.normal(size=(ROWS, 1, WIDTH)).astype(np.float32)}, {1: FunctionEdit(scaled, own)})
    return {
        "greedy": shared,
        "sampled, edited": {"seconds": 0.3, "top_k": 9, "edits": edits},
        "windows": {**shared, "seconds": [0.5, 0.7] * 4, "window_seconds": 0.4, "stride_seconds": 0.3},
    }


def main() -> None:
    rng, key, results = np.random.default_rng(0), jax.random.key(1), {}
    codes = rng.integers(0, TINY.decoder.vocab_size, (ROWS, 2, 20))
    audio = rng.normal(size=(ROWS, 6400)).astype(np.float32) / 4
    text = TextStates(
        states=jnp.asarray(rng.normal(size=(ROWS, 6, WIDTH)), jnp.float32), mask=jnp.ones((ROWS, 6), jnp.int32)
    )
    for config in (FOUR_HEADS, MELODY):
        mg = model(config)
        settings = generations(mg, text, rng)
        right = {name: generate(config, mg.params, text, key, **kw) for name, kw in settings.items()}
        passes = {"unconditional": None, "text": text}
        exact = {name: forward(config, mg.params, codes, given, taps=(0, 1)) for name, given in passes.items()}
        for layout, model_parallel in LAYOUTS.items():
            placed = place_musicgen(mg, make_mesh(model_parallel))
            found = results.setdefault(layout, {"far": {}, "same": {}})
            for name, given in passes.items() if config is FOUR_HEADS else ():
                out = forward(config, placed.params, place_rows(placed.params, codes), given, taps=(0, 1))
                assert len(out.residuals[1].sharding.device_set) == 8
                assert not out.residuals[1].sharding.is_fully_replicated
                for tap in (0, 1):
                    found["far"][f"{name} {tap}"] = far(out.residuals[tap], exact[name].residuals[tap])
                found["far"][f"{name} logits"] = far(out.logits, exact[name].logits)
            for name, kw in settings.items():
                made = generate(config, placed.params, text, key, **kw)
                found["same"][name] = bool(np.array_equal(made.codes, right[name].codes))
                found["far"][f"{name} audio"] = far(made.audio, right[name].audio)
                assert len(np.unique(made.codes)) > 5 and len(np.unique(made.codes, axis=0)) == ROWS
            if config is MELODY:
                continue
            heard = encode_audio(config, placed.params, place_rows(placed.params, audio))
            found["same"]["codes"] = bool(np.array_equal(heard, encode_audio(config, mg.params, audio)))
            stream = list(generate_stream(config, placed.params, text, key, 0.3, temperature=0.0, chunk_seconds=0.1))
            joined = np.concatenate([chunk.codes for chunk in stream], axis=-1)
            found["same"]["stream"] = bool(np.array_equal(joined, right["greedy"].codes))
            decoder = jax.tree.leaves(placed.params["decoder"])
            found["share"] = sum(x.addressable_shards[0].data.size for x in decoder) / sum(x.size for x in decoder)
            found["said"] = said_in_a_step(config, placed.params, text, key)
            try:
                generate(config, placed.params, None, key, 0.3, batch_size=3)
            except MusaeError as error:
                found["refused"] = str(error)
    print(json.dumps(results))


def said_in_a_step(config, params, text, key) -> dict[str, tuple[int, int]]:
    """What devices say to each other in the decode loop: kind -> (how often, bytes)."""
    run = module._Run(config, params, text, key, 0.3, 3.0, 9, 1.0, None, None, 1.0, None, None, False, 30.0, 18.0)
    (window,) = run.windows
    state = run._enter(window)
    known, frames = jnp.asarray(window.known), jnp.asarray(window.frames)
    given = (run.conditions, state, jnp.int32(0), known, frames, jnp.int32(9), run.scale, run.temperature, None, None)
    program = module._advance.lower(config, run.params, *given, run.top_k, run.passes, mesh=run.mesh).compile()
    return by_kind(collectives(program.as_text()))


if __name__ == "__main__":
    main()
