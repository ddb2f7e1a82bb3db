"""Programs compiled ahead of time by the real TPU compiler for a slice, on a machine without a TPU.

What the compiler says of a chip, its memory, FLOPs, bytes and collectives, and the rate that follows if the slowest of
compute, memory and network hides the others (the roofline). A program that does not fit a chip's memory is an error.
"""

import contextlib
import dataclasses
import importlib.util
import os
import re
import sys
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from musae_jax.bench.hlo import Collective, by_kind, collectives
from musae_jax.errors import MusaeError
from musae_jax.mesh import DATA, MODEL, make_mesh

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
class Slice:
    """A slice that need not be there, such as "v5e:16x16", as a mesh."""

    name: str
    chip: Chip
    mesh: Mesh

    def __str__(self) -> str:
        return f"{self.mesh.shape[DATA]} × {self.mesh.shape[MODEL]} (data × model) of {self.name}"


def open_slice(topology: str, model_parallel: int) -> Slice:
    """The slice's chips as a mesh.

    Raises:
      MusaeError: libtpu is missing, the slice is unknown, or its chips cannot be so divided.
    """
    chip = CHIPS.get(topology.split(":")[0])
    if chip is None:
        raise MusaeError(
            f"topology is {topology!r}, but it must begin with one of {', '.join(CHIPS)}, as v5e:16x16 does"
        )
    return Slice(topology, chip, make_mesh(model_parallel, topology_devices(topology)))


@dataclasses.dataclass(frozen=True)
class Work:
    """What one call of a program does, and what it takes that the compiler does not say.

    Attributes:
      call, calls: the name of a call, "step", and of several, "steps".
      amount, unit: what a call does on the whole slice, as in 131,072 tokens.
      sizes: what makes it large, for the message that it does not fit; `remedy`: what helps.
      arguments: bytes that a chip holds of all there is, where the program does not take all of it.
      traffic: bytes of a chip's memory that a call reads at least, where the compiler's figure is of something else.
    """

    call: str
    calls: str
    amount: float
    unit: str
    sizes: str
    remedy: str
    arguments: int | None = None
    traffic: int | None = None


@dataclasses.dataclass(frozen=True)
class PodFigures:
    """What a compiled program costs one chip, and what follows.

    memory: bytes at most at a time.  flops, bytes: of one call; a loop's body counts once.  seconds: what a call takes
    at least of compute, memory and network.
    """

    slice: Slice
    work: Work
    memory: float
    flops: float
    bytes: float
    collectives: list[Collective]
    seconds: dict[str, float]

    @property
    def calls_per_second(self) -> float:
        """At the longest of the three times."""
        return 1 / max(self.seconds.values())

    @property
    def rate(self) -> float:
        """Of the whole slice, in the work's unit a second."""
        return self.work.amount * self.calls_per_second


def measure(slice: Slice, lower: Callable[[], Any], work: Work) -> PodFigures:
    """Compiles what `lower` lowers (under the slice's mesh) and reads the figures off.

    Raises:
      MusaeError: the program does not fit a chip.
    """
    try:
        with jax.set_mesh(slice.mesh):
            program = lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise _does_not_fit(slice, work, _asked(str(error))) from None
    sizes, cost, found = program.memory_analysis(), program.cost_analysis(), collectives(program.as_text())
    memory = sizes.argument_size_in_bytes if work.arguments is None else work.arguments
    memory += sizes.output_size_in_bytes + sizes.temp_size_in_bytes - sizes.alias_size_in_bytes  # what is donated
    if memory > slice.chip.memory:
        raise _does_not_fit(slice, work, f"{memory / 2**30:.1f} GiB of {slice.chip.memory / 2**30:.0f}")
    network = sum(one.bytes * (2 if one.kind == "all-reduce" else 1) for one in found)  # a sum goes round twice
    traffic = cost["bytes accessed"] if work.traffic is None else work.traffic
    seconds = {
        "compute": cost["flops"] / slice.chip.flops,
        "memory": traffic / slice.chip.hbm,
        "network": network / slice.chip.link,
    }
    return PodFigures(slice, work, memory, cost["flops"], traffic, found, seconds)


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


def _does_not_fit(slice: Slice, work: Work, what: str) -> MusaeError:
    return MusaeError(f"{work.sizes} does not fit a chip on {slice}, which needs {what}; {work.remedy}")


def pod_rows(config: dict[str, Any], dtype: str, figures: PodFigures) -> list[dict[str, Any]]:
    """The rows of `musae bench pod --json`; there is no peer to compare with."""
    work, mesh = figures.work, figures.slice.mesh
    values = {
        "memory per chip": (figures.memory, "bytes"),
        f"FLOPs per chip and {work.call}": (figures.flops, "FLOP"),
        f"bytes per chip and {work.call}": (figures.bytes, "bytes"),
        **{
            f"{kind} per chip and {work.call} ({count})": (size, "bytes")
            for kind, (count, size) in by_kind(figures.collectives).items()
        },
        **{f"least {name} time of a {work.call}": (value, "s") for name, value in figures.seconds.items()},
        "roofline": (figures.calls_per_second, f"{work.calls}/s"),
        "roofline of the slice": (figures.rate, f"{work.unit}/s"),
        "roofline of a chip": (figures.rate / mesh.size, f"{work.unit}/s"),
    }
    config = {**config, "data": mesh.shape[DATA], "model": mesh.shape[MODEL]}
    common = {"config": config, "device": figures.slice.name, "dtype": dtype}
    peer = {"peer": None, "peer_name": None, "ratio": None}
    return [{"name": name, **common, "ours": ours, "unit": unit, **peer} for name, (ours, unit) in values.items()]


def pod_text(figures: PodFigures) -> str:
    """The figures as a person reads them."""
    work, mesh = figures.work, figures.slice.mesh
    bound = max(figures.seconds, key=figures.seconds.__getitem__)
    times = ", ".join(f"{name} {1e3 * value:.2f}" for name, value in figures.seconds.items())
    kinds = by_kind(figures.collectives)
    moved = [f"{count} {kind} {size / 2**20:.1f} MiB" for kind, (count, size) in kinds.items()]
    return "\n".join(
        [
            f"{figures.slice.name}: {mesh.size} chips as {mesh.shape[DATA]} × {mesh.shape[MODEL]} (data × model)",
            f"  memory per chip   {figures.memory / 2**30:.2f} GiB",
            f"  per chip and {work.call} {figures.flops / 1e12:.3g} TFLOP, {figures.bytes / 1e9:.3g} GB of memory"
            " traffic",
            f"  collectives       {', '.join(moved) or 'none'}",
            f"  least times       {times} ms, bound by {bound}",
            f"  roofline          {figures.calls_per_second:,.1f} {work.calls}/s, {figures.rate:,.0f} {work.unit}/s,"
            f" {figures.rate / mesh.size:,.1f} a chip",
        ]
    )
