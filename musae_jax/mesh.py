"""The mesh of devices that trainer, harvest and generation share, and the processes that work together.

The mesh has two axes: the rows of a batch are cut along `data`, one computation's weights along `model`.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from musae_jax.errors import MusaeError

DATA, MODEL = "data", "model"


def make_mesh(model_parallel: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh [data, model] of all devices of all processes (or of `devices`), `model_parallel` of them along model.

    Raises:
      MusaeError: the devices cannot be so divided.
    """
    devices = jax.devices() if devices is None else devices
    if model_parallel < 1 or len(devices) % model_parallel:
        raise MusaeError(
            f"model_parallel is {model_parallel}, but it must divide the number of devices, which is {len(devices)}"
        )
    # Explicit axes, the default, would ask for a sharding at every operation.
    axes = (AxisType.Auto, AxisType.Auto)
    shape = (len(devices) // model_parallel, model_parallel)
    return jax.make_mesh(shape, (DATA, MODEL), axis_types=axes, devices=devices)


# --- many processes ---------------------------------------------------------------------------------------------------


def join_processes(coordinator: str, processes: int | None = None, process: int | None = None) -> None:
    """Makes this process one of several that compute together, before anything else asks jax for devices.

    `coordinator` is HOST:PORT of process 0, or "auto" where jax finds all three by itself (TPU pods, Slurm, Open MPI);
    empty: nothing is done.

    Raises:
      MusaeError: the numbers are missing or impossible, or the others were not found.
    """
    if not coordinator:
        if processes is not None or process is not None:
            raise MusaeError('--processes and --process need --coordinator; give HOST:PORT of process 0, or "auto"')
        return
    if coordinator == "auto":
        arguments = ()
    elif processes is None or process is None or not 0 <= process < processes:
        raise MusaeError(
            f"--coordinator {coordinator} needs --processes and --process from 0 to one less, but they are {processes}"
            f" and {process}"
        )
    else:
        arguments = (coordinator, processes, process)
    try:
        jax.distributed.initialize(*arguments)
    except (RuntimeError, ValueError) as error:
        raise MusaeError(
            f"the processes of --coordinator {coordinator} could not be joined ({str(error).splitlines()[0][:150]});"
            " give HOST:PORT of process 0, --processes and --process"
        ) from error


def share_of_work(coordinator: str, processes: int | None = None, process: int | None = None) -> tuple[int, int]:
    """(which process this is, of how many), for work that is divided and needs no word between them.

    The numbers are enough: then nothing joins the processes, and whatever becomes of one leaves the others alone. With
    a coordinator they are joined, for jax to find the numbers, and jax ends all of them soon after one is lost.

    Raises:
      MusaeError: the numbers are missing or impossible, or the others were not found.
    """
    if coordinator:
        join_processes(coordinator, processes, process)
        return jax.process_index(), jax.process_count()
    if processes is None and process is None:
        return 0, 1
    if processes is None or process is None or not 0 <= process < processes:
        raise MusaeError(
            f"--processes is {processes} and --process {process}; give how many there are, and which of them this is,"
            " from 0 to one less"
        )
    return process, processes


def first_process() -> bool:
    """Whether this process writes the files that all share."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)
