"""The training loop: batches in, logs and checkpoints out, and at the end SAE folders with their measures."""

import dataclasses
import functools
import json
import shutil
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from musae_jax.activations.batches import Batches
from musae_jax.activations.source import Activations
from musae_jax.activations.store import names_sha256
from musae_jax.checkpoint import TrainingCheckpoints
from musae_jax.errors import MusaeError
from musae_jax.files import disk_errors, read_json, read_json_lines, write_json, write_json_lines
from musae_jax.mesh import first_process, wait_for_all
from musae_jax.sae.formats import load_sae, save_sae
from musae_jax.sae.metrics import evaluate
from musae_jax.sae.normalisation import normalisation
from musae_jax.sae.parallel import make_state, place_batches, sharded_steps, training_mesh, whole_state
from musae_jax.sae.recipe import Recipe
from musae_jax.sae.sae import SAE
from musae_jax.sae.step import (
    TrainState,
    fold,
    group_key,
    group_member,
    group_recipe,
    init_state,
    stack_states,
)

CHECKPOINTS, LOG, METRICS = "checkpoints", "train.jsonl", "metrics.json"
STEPS_PER_CALL = 10

Progress = Callable[[int, int, str], None]


def train_saes(
    store: Activations,
    recipes: Mapping[str | Path, Recipe],
    held_out: Collection[str] = (),
    metadata: dict[str, Any] | None = None,
    drop_start: bool = True,
    seed: int = 0,
    buffer_mb: int = 512,
    log_every: int = 50,
    save_every: int = 500,
    model_parallel: int = 1,
    progress: Progress | None = None,
) -> list[SAE]:
    """Trains SAEs on one stream: `recipes` says in which folder which one.

    `store` is one on disk or a live stream, see `Activations`. Each folder gets the files of `save_sae`, train.jsonl
    and metrics.json. The order of the data follows from `seed`, weights from each recipe's own. Recipes that differ in
    their seeds and traced fields only (k, learning rates, coefficients) are trained as one group, in one jitted step;
    the others take turns on each batch.

    The clips `held_out` are never trained on; metrics.json is measured on them (on all clips if there are none). Killed
    at any moment and called again with the same arguments it goes on from the last checkpoint and ends with the same
    bytes; on other devices it goes on too, and ends with the same numbers but for rounding. When all SAEs are finished,
    it returns at once. The checkpoints of all lie in the first folder. Nothing that depends on the clock enters a file.
    `progress` counts steps, then the clips of each evaluation.

    All devices take part: `model_parallel` of them hold a share of each dictionary, and that many times over they
    share the tokens of a batch. Where `jax.distributed` has joined several processes, all call this with the same
    arguments, `store` and the folders are on a disk that all of them see, and the first of them writes.

    Raises:
      MusaeError: the store and a recipe do not fit, nor a recipe and the devices, the recipes cannot share a stream, a
        folder holds another SAE or a damaged checkpoint, nothing in a training stayed finite, or the disk refuses a
        file.
    """
    outs = [Path(out) for out in recipes]
    recipes = list(recipes.values())
    _check(store, recipes)
    records = _records(store, recipes, held_out, drop_start, seed, buffer_mb)
    done = [_finished(out, record) for out, record in zip(outs, records)]
    if all(done):
        return [load_sae(out) for out in outs]
    mesh = training_mesh(recipes, model_parallel)
    held = set(held_out)
    train_clips = [id for id in store.clip_ids if id not in held] if held else None
    batches = Batches(store, recipes[0].batch_size, seed, train_clips, drop_start, buffer_mb)
    save_every = max(1, round(save_every / log_every)) * log_every  # a checkpoint never falls inside a row of the log
    steps, groups = recipes[0].steps, _groups(recipes)
    checkpoints = _open_checkpoints(outs[0])
    try:
        states, step = _start(checkpoints, batches, recipes, groups, records, outs[0], mesh)
        calls = [sharded_steps(mesh, recipe, state) for (recipe, _), state in zip(groups, states)]
        for out in outs if first_process() else ():
            rows = [row for row in read_json_lines(out / LOG) if row["step"] <= step] if (out / LOG).exists() else []
            write_json_lines(out / LOG, rows)
        pending: list[list[dict[str, jax.Array]]] = [[] for _ in groups]
        while step < steps:
            # Calls end where rows of the log do, and checkpoints too: a resumed run makes the very same calls.
            count = min(STEPS_PER_CALL, log_every - step % log_every, steps - step)
            stack = place_batches(mesh, np.stack([next(batches) for _ in range(count)]))
            for number, call in enumerate(calls):
                states[number], metrics = call(states[number], stack)
                pending[number].append(metrics)
            step += count
            if step % log_every == 0 or step == steps:
                for (_, members), metrics in zip(groups, pending):
                    _log(members, step, recipes, outs, metrics)
                pending = [[] for _ in groups]
                if progress:
                    progress(step, steps, "steps")
            if step % save_every == 0 and step < steps:
                _save(checkpoints, outs[0], step, states, {"records": records, "batches": batches.state()})
    finally:
        batches.close()
        checkpoints.close()
    for (_, members), state in zip(groups, states):
        state = state if mesh is None else whole_state(state)
        for place, number in enumerate(members) if first_process() else ():
            one = state if len(members) == 1 else group_member(state, place)
            _write(outs[number], store, recipes[number], one, held_out, metadata, drop_start, seed)
            _measure(outs[number], store, recipes[number], one, records[number], held_out, drop_start, progress)
    if first_process():
        shutil.rmtree(outs[0] / CHECKPOINTS, ignore_errors=True)
    wait_for_all("trained")
    return [load_sae(out) for out in outs]


def _check(store: Activations, recipes: Sequence[Recipe]) -> None:
    if not recipes:
        raise MusaeError("no SAE was named to train; give at least one folder with its recipe")
    for recipe in recipes:
        if store.d_in != recipe.d_in:
            raise MusaeError(
                f"d_in of the SAE is {recipe.d_in}, but {store.name} has width {store.d_in}; set it to that"
            )
    for name in ("steps", "batch_size"):
        if len(values := sorted({getattr(recipe, name) for recipe in recipes})) > 1:
            raise MusaeError(
                f"SAEs of one stream must agree on {name}, but it is {' and '.join(map(str, values))}; train them apart"
            )


def _records(
    store: Activations, recipes: Sequence[Recipe], held_out, drop_start, seed, buffer_mb
) -> list[dict[str, Any]]:
    """Everything each result depends on; two runs with equal records end with equal files."""
    plain = [{"architecture": recipe.architecture, **dataclasses.asdict(recipe)} for recipe in recipes]
    shared = {
        "activations": {name: store.description.get(name) for name in ("model", "revision", "hook", "clips_sha256")},
        "content_sha256": store.content_sha256,
        "held_out_sha256": names_sha256(sorted(held_out)),
        "drop_start": drop_start,
        "seed": seed,
        "buffer_mb": buffer_mb,
        # Groups are matrix products of another shape, whose last bits differ.
        "trained_together_sha256": names_sha256([json.dumps(recipe) for recipe in plain]),
    }
    return [json.loads(json.dumps({"recipe": recipe, **shared})) for recipe in plain]


def _finished(out: Path, record: dict[str, Any]) -> bool:
    if not (out / METRICS).exists():
        return False
    if read_json(out / METRICS).get("record") != record:
        raise MusaeError(f"{out} already holds an SAE trained in another way; choose another folder or delete that one")
    return True


def _groups(recipes: Sequence[Recipe]) -> list[tuple[Recipe, list[int]]]:
    """(static recipe, numbers of the members) of SAEs that one step can train; one alone keeps its own recipe."""
    members: dict[Recipe, list[int]] = {}
    for number, recipe in enumerate(recipes):
        members.setdefault(group_key(recipe), []).append(number)
    return [
        (recipes[group[0]] if len(group) == 1 else group_recipe([recipes[i] for i in group]), group)
        for group in members.values()
    ]


def _init(recipes: Sequence[Recipe], groups: Any, normalise: Any, mesh: Any) -> list[TrainState]:
    """The states of the groups at step 0; `normalise(recipe)` gives (center, scale)."""

    def make(members: Sequence[int]) -> TrainState:
        ones = [init_state(recipes[i], jax.random.key(recipes[i].seed), *normalise(recipes[i])) for i in members]
        return ones[0] if len(ones) == 1 else stack_states(ones)

    return [make_state(mesh, functools.partial(make, members)) for _, members in groups]


def _open_checkpoints(out: Path) -> TrainingCheckpoints:
    with disk_errors(out):
        (out / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        return TrainingCheckpoints(out / CHECKPOINTS)


def _start(
    checkpoints: TrainingCheckpoints,
    batches: Batches,
    recipes: Sequence[Recipe],
    groups: Any,
    records: Any,
    out: Path,
    mesh: Any,
) -> tuple[list[TrainState], int]:
    try:
        note = checkpoints.note()
        if note is not None and note["records"] == records:
            step, states = checkpoints.restore(_init(recipes, groups, lambda recipe: (None, 1.0), mesh))
            batches.restore(note["batches"])
            return states, step
    except MusaeError:
        raise
    except Exception as error:  # orbax has no exceptions of its own
        raise MusaeError(
            f"the checkpoint in {out / CHECKPOINTS} cannot be read ({str(error).splitlines()[0][:200]}); delete that"
            " folder, training then starts again"
        ) from error
    if note is not None:
        raise MusaeError(f"{out} holds the training of another SAE; choose another folder or delete that one")
    estimates: dict[Any, Any] = {}

    def normalise(recipe: Recipe) -> tuple[np.ndarray, float]:
        wanted = (recipe.center, recipe.scale, recipe.max_norm)
        if wanted not in estimates:
            estimates[wanted] = normalisation(recipe, batches)
        return estimates[wanted]

    return _init(recipes, groups, normalise, mesh), 0


def _save(
    checkpoints: TrainingCheckpoints, out: Path, step: int, states: list[TrainState], note: dict[str, Any]
) -> None:
    try:
        with disk_errors(out / CHECKPOINTS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # orbax warns of its own future
            checkpoints.save(step, states, note)
    except MusaeError:
        raise
    except Exception as error:  # a full disk comes out of orbax as a ValueError of its storage library
        text = str(error)
        if any(words in text for words in ("No space left", "RESOURCE_EXHAUSTED", "File too large", "quota")):
            raise MusaeError(
                f"{out / CHECKPOINTS} could not be written (no space left); free some space and run it again"
            ) from error
        raise


def _log(members: Sequence[int], step: int, recipes: Any, outs: Any, pending: list[dict[str, jax.Array]]) -> None:
    """One row per SAE of a group for the steps since the last: means, or the last of what counts or is set."""
    host = jax.device_get(pending)
    for place, number in enumerate(members):
        path, recipe = outs[number] / LOG, recipes[number]
        row: dict[str, Any] = {"step": step, "tokens": step * recipe.batch_size}
        for name in host[0]:
            values = np.concatenate([metrics[name] for metrics in host]).astype(np.float64)  # [S] or [S, G]
            values = values if values.ndim == 1 else values[:, place]
            values = values[np.isfinite(values)]
            last = name in ("lr", "dead", "skipped", "filtered") or name.startswith("threshold")
            row[name] = None if not len(values) else float(values[-1] if last else values.mean())
        row["skipped"] = int(row["skipped"])
        if row["skipped"] >= step:
            raise MusaeError(
                f"none of the {step} training steps so far gave finite numbers; the activations or the learning rate"
                f" ({recipe.lr_used:g}) are wrong, look at {path}"
            )
        if first_process():
            with disk_errors(path), open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")


def _write(
    out: Path, store: Activations, recipe: Recipe, state: TrainState, held_out, metadata, drop_start, seed
) -> None:
    """The SAE's own files."""
    origin = {
        "model_name": store.description.get("model", ""),
        "model_revision": store.description.get("revision", ""),
        "hook_name": store.hook,
        "hook_layer": store.description.get("layer"),
        "context_size": store.positions,
        "frame_rate": store.description.get("frame_rate"),
        "prepend_bos": True,
        "trained_as": f"matryoshka {recipe.architecture}" if recipe.group_fractions else recipe.architecture,
        "training": json.loads(json.dumps(dataclasses.asdict(recipe))),
    }
    sae = fold(recipe, state, {**origin, **(metadata or {})})
    golden = next(Batches(store, 256, seed, sorted(held_out) or None, drop_start, buffer_mb=1, read_ahead=False))
    save_sae(out, sae, golden)


def _measure(out: Path, store: Activations, recipe: Recipe, state: TrainState, record, held_out, drop_start, progress):
    """metrics.json, which says that training is over."""
    clips = sorted(held_out) or None
    measures = evaluate(load_sae(out), store, clips, drop_start, progress)
    training = {
        "steps": recipe.steps,
        "tokens": recipe.tokens,
        "skipped_steps": int(state.skipped),
        "filtered_tokens": int(state.filtered),
        "dead_share": float(np.mean(np.asarray(state.idle) >= recipe.dead_after_used)),
        "center_norm": float(np.linalg.norm(np.asarray(state.center, np.float64))),
        "scale": float(state.scale),
    }
    write_json(out / METRICS, {**measures, "held_out": clips is not None, "training": training, "record": record})
