"""The training step on a TPU slice, compiled ahead of time by the real TPU compiler on a machine without a TPU.

Prints what the compiler says of a chip, its memory, FLOPs, bytes and collectives, and the tokens/s that follow if the
slowest of compute, memory and network hides the others (the roofline). A layout that does not fit a chip's memory, or
that gathers the features, is an error.
"""

import contextlib
import dataclasses
import importlib.util
import os
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp

from musae_jax.bench.hlo import Collective, by_kind, collectives, gathers_of_features
from musae_jax.errors import MusaeError
from musae_jax.mesh import DATA, make_mesh
from musae_jax.sae.parallel import check_layout, jit_steps
from musae_jax.sae.recipe import Recipe
from musae_jax.sae.step import init_state

LIBTPU = "libtpu is missing, without which nothing is compiled for TPUs; `pip install libtpu` brings it (137 MB)"


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one chip can do, from "How to Scale Your Model" (jax-ml.github.io/scaling-book), chapter 2.

    flops: FLOP/s in bf16, in which a TPU multiplies float32 too unless told otherwise.  hbm: bytes/s.  memory: bytes.
    link: bytes/s along one axis of the torus, both ways together.
    """

    flops: float
    hbm: float
    memory: float
    link: float


CHIPS = {
    "v4": Chip(2.75e14, 1.2e12, 32 * 2**30, 9e10),
    "v5e": Chip(1.97e14, 8.1e11, 16 * 2**30, 9e10),
    "v5p": Chip(4.59e14, 2.8e12, 95 * 2**30, 1.8e11),
    "v6e": Chip(9.2e14, 1.6e12, 32 * 2**30, 1.8e11),
}


@dataclasses.dataclass(frozen=True)
class PodFigures:
    """What the compiled step costs one chip, and what follows.

    memory: bytes at most at a time.  flops, bytes: of one step; a loop's body, such as the search for BatchTopK's
    threshold, counts once.  seconds: what a step takes at least of compute, memory and network.
    tokens_per_second: of the whole slice, at the longest of these.
    """

    chips: int
    data: int
    model: int
    memory: float
    flops: float
    bytes: float
    collectives: list[Collective]
    seconds: dict[str, float]
    tokens_per_second: float


def measure_pod(recipe: Recipe, topology: str, model_parallel: int) -> PodFigures:
    """Compiles one step of `recipe` for a slice such as "v5e:16x16" and reads the figures off.

    Raises:
      MusaeError: libtpu is missing, the slice is unknown, the recipe cannot be laid out on it, does not fit a chip, or
        the compiled step gathers the features.
    """
    chip = CHIPS.get(topology.split(":")[0])
    if chip is None:
        raise MusaeError(
            f"topology is {topology!r}, but it must begin with one of {', '.join(CHIPS)}, as v5e:16x16 does"
        )
    mesh = make_mesh(model_parallel, topology_devices(topology))
    check_layout(recipe, mesh)
    state = jax.eval_shape(lambda: init_state(recipe, jax.random.key(0)))
    batches = jax.ShapeDtypeStruct((1, recipe.batch_size, recipe.d_in), jnp.float32)
    place = f"{mesh.shape[DATA]} × {model_parallel} (data × model) of {topology}"
    try:
        with jax.set_mesh(mesh):
            program = jit_steps(mesh, recipe, state).lower(state, batches).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise MusaeError(_does_not_fit(recipe, place, _asked(str(error)))) from None
    sizes, cost, found = program.memory_analysis(), program.cost_analysis(), collectives(program.as_text())
    memory = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
    memory -= sizes.alias_size_in_bytes  # the donated state
    if memory > chip.memory:
        raise MusaeError(_does_not_fit(recipe, place, f"{memory / 2**30:.1f} GiB of {chip.memory / 2**30:.0f}"))
    if gathers := gathers_of_features(found, recipe.d_in, recipe.batch_size // mesh.shape[DATA], recipe.d_sae):
        worst = max(gathers, key=lambda one: one.bytes)
        raise MusaeError(
            f"the step on {place} gathers the features: {worst.kind} of {worst.bytes / 2**20:.0f} MiB for"
            f" {worst.origin.split('/')[-1] or 'an unnamed operation'}; lower model_parallel, k or k_aux"
        )
    network = sum(one.bytes * (2 if one.kind == "all-reduce" else 1) for one in found)  # a sum goes round twice
    seconds = {
        "compute": cost["flops"] / chip.flops,
        "memory": cost["bytes accessed"] / chip.hbm,
        "network": network / chip.link,
    }
    return PodFigures(
        chips=mesh.size,
        data=mesh.shape[DATA],
        model=model_parallel,
        memory=memory,
        flops=cost["flops"],
        bytes=cost["bytes accessed"],
        collectives=found,
        seconds=seconds,
        tokens_per_second=recipe.batch_size / max(seconds.values()),
    )


def topology_devices(topology: str) -> list[Any]:
    """The chips of a slice that need not be there.

    Raises:
      MusaeError: libtpu is missing, or knows no such slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise MusaeError(LIBTPU)
    from jax.experimental import topologies

    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no metadata server to ask
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # nor a TPU that two processes could fight for
    try:
        with _quiet():
            return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except Exception as error:  # of several types, by what libtpu dislikes
        raise MusaeError(
            f"topology is {topology!r}, which libtpu does not know ({str(error).splitlines()[0][:150]}); name one such"
            " as v5e:16x16, v5p:4x4x4 or v6e:8x8"
        ) from error


@contextlib.contextmanager
def _quiet():
    """libtpu looks for a TPU first and says at length that there is none, past Python's stderr."""
    sys.stderr.flush()
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def _asked(text: str) -> str:
    """What the compiler says of memory, as in "133.00G of 15.75G"; it names what it needs, then what there is."""
    sizes = re.findall(r"\b[\d.]+[KMGT]\b", text)
    return " of ".join(sizes[:2]) if len(sizes) >= 2 else "more than it has"


def _does_not_fit(recipe: Recipe, place: str, what: str) -> str:
    return (
        f"d_sae = {recipe.d_sae} with batch_size = {recipe.batch_size} does not fit a chip on {place}, which needs"
        f" {what}; raise model_parallel, or lower batch_size or d_sae"
    )


def pod_rows(recipe: Recipe, topology: str, figures: PodFigures) -> list[dict[str, Any]]:
    """The rows of `musae bench pod --json`; there is no peer to compare with."""
    config = {
        "architecture": recipe.architecture,
        "d_in": recipe.d_in,
        "d_sae": recipe.d_sae,
        "k": getattr(recipe, "k", None),
        "batch_size": recipe.batch_size,
        "data": figures.data,
        "model": figures.model,
    }
    values = {
        "memory per chip": (figures.memory, "bytes"),
        "FLOPs per chip and step": (figures.flops, "FLOP"),
        "bytes per chip and step": (figures.bytes, "bytes"),
        **{
            f"{kind} per chip and step ({count})": (size, "bytes")
            for kind, (count, size) in by_kind(figures.collectives).items()
        },
        **{f"least {name} time of a step": (value, "s") for name, value in figures.seconds.items()},
        "roofline of the slice": (figures.tokens_per_second, "tokens/s"),
        "roofline of a chip": (figures.tokens_per_second / figures.chips, "tokens/s"),
    }
    common = {"config": config, "device": topology, "dtype": "float32, multiplied in bfloat16"}
    peer = {"peer": None, "peer_name": None, "ratio": None}
    return [{"name": name, **common, "ours": ours, "unit": unit, **peer} for name, (ours, unit) in values.items()]


def pod_text(topology: str, figures: PodFigures) -> str:
    """The figures as a person reads them."""
    kinds = by_kind(figures.collectives)
    bound = max(figures.seconds, key=figures.seconds.__getitem__)
    times = ", ".join(f"{name} {1e3 * value:.2f}" for name, value in figures.seconds.items())
    moved = [f"{count} {kind} {size / 2**20:.1f} MiB" for kind, (count, size) in kinds.items()]
    return "\n".join(
        [
            f"{topology}: {figures.chips} chips as {figures.data} × {figures.model} (data × model)",
            f"  memory per chip   {figures.memory / 2**30:.2f} GiB",
            f"  per chip and step {figures.flops / 1e12:.2f} TFLOP, {figures.bytes / 1e9:.2f} GB of memory traffic",
            f"  collectives       {', '.join(moved) or 'none'}",
            f"  least times       {times} ms, bound by {bound}",
            f"  roofline          {figures.tokens_per_second:,.0f} tokens/s,"
            f" {figures.tokens_per_second / figures.chips:,.0f} a chip",
        ]
    )
