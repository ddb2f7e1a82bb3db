"""How much of a run's SAE would be there with another seed: the same recipe trained again from other weights."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from musae_jax.activations.residuals import hook_name
from musae_jax.bench.rows import bench_row
from musae_jax.config import to_record
from musae_jax.errors import MusaeError
from musae_jax.run import Run
from musae_jax.sae.recipes import train_recipe
from musae_jax.sae.sae import SAE
from musae_jax.sae.stability import stability
from musae_jax.sae.train import train_saes

Progress = Callable[[int, int, str], None]


def bench_stability(run: Run, seeds: int = 3, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Rows `stability/HOOK/NAME/MEASURE`, each beside random directions as its peer; see `sae.stability`.

    The SAEs share the run's recipe, clips and order of the data and differ in their weights at the start. They are
    trained in one group, on RUN's activations, into RUN/stability/HOOK/NAME/seed-N, where a killed bench goes on.
    """
    if seeds < 2:
        raise MusaeError(f"--seeds is {seeds}, but stability compares SAEs; give 2 or more")
    rows = []
    config = {"seeds": seeds, "train": to_record(run.config.train), "model": run.config.model}
    for layer in run.layers:
        saes = seed_saes(run, layer, seeds, progress=progress)
        found = stability([np.asarray(sae.params["W_dec"]) for sae in saes])
        figures = {
            "cosine": ("mean largest cosine", found["cosine"], found["control"]["cosine"]),
            **{
                f"above_{level}": ("share of features", share, found["control"]["above"][level])
                for level, share in found["above"].items()
            },
        }
        if found["matched_above"] is not None:
            figures["matched_cosine"] = ("mean cosine", found["matched_cosine"], found["control"]["matched_cosine"])
            for level, share in found["matched_above"].items():
                chance = found["control"]["matched_above"][level]
                figures[f"matched_above_{level}"] = ("share of features", share, chance)
        for measure, (unit, ours, chance) in figures.items():
            name = f"stability/{hook_name(layer)}/{run.name}/{measure}"
            rows.append(bench_row(name, config, ours, unit, chance, "random directions"))
    return rows


def seed_saes(run: Run, layer: int, seeds: int, control: bool = False, progress: Progress | None = None) -> list[SAE]:
    """A run's SAE of one layer trained again from `seeds` weights, in RUN/stability; with `control` the control's."""
    c, seed = run.config.train, run.config.seed
    store = run.store(layer, control)
    folder = run.folder / "stability" / hook_name(layer) / run.sae_folder(layer, control).name
    recipe = train_recipe(c, store.d_in, seed)
    folders = {folder / f"seed-{n}": dataclasses.replace(recipe, seed=n) for n in range(seed, seed + seeds)}
    held_out = [id for id, half in run.halves.items() if half == "score"]
    return train_saes(store, folders, held_out, drop_start=c.drop_start, seed=seed, progress=progress)
