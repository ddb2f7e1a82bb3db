"""The training loop: batches in, logs and checkpoints out, and at the end an SAE folder with its measures."""

import dataclasses
import json
import shutil
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import jax
import numpy as np

from musae_jax.activations.batches import Batches
from musae_jax.activations.source import Activations
from musae_jax.activations.store import names_sha256
from musae_jax.checkpoint import TrainingCheckpoints
from musae_jax.disk import disk_errors
from musae_jax.errors import MusaeError
from musae_jax.files import read_json, read_json_lines, write_json, write_json_lines
from musae_jax.sae.batch_topk import BatchTopKConfig, TrainState, fold, init_state, train_steps
from musae_jax.sae.formats import load_sae, save_sae
from musae_jax.sae.metrics import evaluate
from musae_jax.sae.sae import SAE

CHECKPOINTS, LOG, METRICS = "checkpoints", "train.jsonl", "metrics.json"
STATISTICS_TOKENS = 2**20  # tokens from which centre and scale are estimated
STEPS_PER_CALL = 10

Progress = Callable[[int, int, str], None]


def train_sae(
    store: Activations,
    config: BatchTopKConfig,
    out: str | Path,
    held_out: Collection[str] = (),
    metadata: dict[str, Any] | None = None,
    drop_start: bool = True,
    buffer_mb: int = 512,
    log_every: int = 50,
    save_every: int = 500,
    progress: Progress | None = None,
) -> SAE:
    """Trains a BatchTopK SAE and writes it to `out`: the files of `save_sae`, train.jsonl, metrics.json.

    `store` is one on disk or a live stream, see `Activations`. The clips `held_out` are never trained on; metrics.json
    is measured on them (on all clips if there are none). Killed at any moment and called again with the same arguments
    it goes on from the last checkpoint and ends with the same bytes; when it is finished, it returns at once. Nothing
    that depends on the clock enters a file. `progress` counts steps, then the clips of the evaluation.

    Raises:
      MusaeError: the store and the config do not fit, `out` holds another SAE or its checkpoint is damaged, nothing in
        the training stayed finite, or the disk refuses a file.
    """
    out = Path(out)
    if store.d_in != config.d_in:
        raise MusaeError(f"d_in of the SAE is {config.d_in}, but {store.name} has width {store.d_in}; set it to that")
    record = _record(store, config, held_out, drop_start, buffer_mb)
    if (done := _finished(out, record)) is not None:
        return done
    held = set(held_out)
    train_clips = [id for id in store.clip_ids if id not in held] if held else None
    batches = Batches(store, config.batch_size, config.seed, train_clips, drop_start, buffer_mb)
    save_every = max(1, round(save_every / log_every)) * log_every  # a checkpoint never falls inside a row of the log
    checkpoints = _open_checkpoints(out)
    try:
        state, step = _start(checkpoints, batches, config, record, out)
        rows = [row for row in read_json_lines(out / LOG) if row["step"] <= step] if (out / LOG).exists() else []
        with disk_errors(out / LOG):
            write_json_lines(out / LOG, rows)
        pending: list[dict[str, jax.Array]] = []
        while step < config.steps:
            # Calls end where rows of the log do, and checkpoints too: a resumed run makes the very same calls.
            count = min(STEPS_PER_CALL, log_every - step % log_every, config.steps - step)
            state, metrics = train_steps(config, state, np.stack([next(batches) for _ in range(count)]))
            pending.append(metrics)
            step += count
            if step % log_every == 0 or step == config.steps:
                _log(out / LOG, step, config, pending)
                pending = []
                if progress:
                    progress(step, config.steps, "steps")
            if step % save_every == 0 and step < config.steps:
                _save(checkpoints, out, step, state, {"record": record, "batches": batches.state()})
    finally:
        batches.close()
        checkpoints.close()
    return _finish(out, store, config, state, record, held_out, metadata, drop_start, progress)


def activation_statistics(batches: Batches) -> tuple[np.ndarray, float]:
    """(mean [D], the root mean square of one coordinate about it) of up to 2^20 tokens of the stream, in float64."""
    begin = batches.state()  # what it reads is read, or computed, once if it fits the buffer
    goal = min(STATISTICS_TOKENS, batches.epoch_tokens)
    total, square, count = np.zeros(batches.store.d_in), np.zeros(batches.store.d_in), 0
    pivot = None
    while count < goal:
        batch = next(batches).astype(np.float64)[: goal - count]
        pivot = batch.mean(0) if pivot is None else pivot  # near the mean, so that the squares do not cancel
        total += (batch - pivot).sum(0)
        square += np.square(batch - pivot).sum(0)
        count += len(batch)
    batches.restore(begin)
    variance = square / count - np.square(total / count)
    return pivot + total / count, float(np.sqrt(max(variance.mean(), 0.0)))


def _record(store: Activations, config: BatchTopKConfig, held_out, drop_start: bool, buffer_mb: int) -> dict[str, Any]:
    """Everything the result depends on; two runs with equal records end with equal files."""
    value = {
        "recipe": dataclasses.asdict(config),
        "activations": {name: store.description.get(name) for name in ("model", "revision", "hook", "clips_sha256")},
        "content_sha256": store.content_sha256,
        "held_out_sha256": names_sha256(sorted(held_out)),
        "drop_start": drop_start,
        "buffer_mb": buffer_mb,
    }
    return json.loads(json.dumps(value))


def _finished(out: Path, record: dict[str, Any]) -> SAE | None:
    if not (out / METRICS).exists():
        return None
    if read_json(out / METRICS).get("record") != record:
        raise MusaeError(f"{out} already holds an SAE trained in another way; choose another folder or delete that one")
    return load_sae(out)


def _open_checkpoints(out: Path) -> TrainingCheckpoints:
    with disk_errors(out):
        (out / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        return TrainingCheckpoints(out / CHECKPOINTS)


def _start(
    checkpoints: TrainingCheckpoints, batches: Batches, config: BatchTopKConfig, record: dict[str, Any], out: Path
) -> tuple[TrainState, int]:
    key = jax.random.key(config.seed)
    try:
        note = checkpoints.note()
        if note is not None and note["record"] == record:
            step, state = checkpoints.restore(init_state(config, key))
            batches.restore(note["batches"])
            # Orbax's arrays are copied: the training step gives its state's buffers away.
            return jax.tree.map(lambda leaf: jax.numpy.array(leaf, copy=True), state), step
    except MusaeError:
        raise
    except Exception as error:  # orbax has no exceptions of its own
        raise MusaeError(
            f"the checkpoint in {out / CHECKPOINTS} cannot be read ({str(error).splitlines()[0][:200]}); delete that"
            " folder, training then starts again"
        ) from error
    if note is not None:
        raise MusaeError(f"{out} holds the training of another SAE; choose another folder or delete that one")
    center, scale = activation_statistics(batches)
    if not scale > 0 or not np.isfinite(scale):
        raise MusaeError(
            f"the activations in {batches.store.name} are all the same or not finite (spread {scale}); harvest again"
        )
    return init_state(config, key, center, scale), 0


def _save(checkpoints: TrainingCheckpoints, out: Path, step: int, state: TrainState, note: dict[str, Any]) -> None:
    try:
        with disk_errors(out / CHECKPOINTS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # orbax warns of its own future
            checkpoints.save(step, state, note)
    except MusaeError:
        raise
    except Exception as error:  # a full disk comes out of orbax as a ValueError of its storage library
        text = str(error)
        if any(words in text for words in ("No space left", "RESOURCE_EXHAUSTED", "File too large", "quota")):
            raise MusaeError(
                f"{out / CHECKPOINTS} could not be written (no space left); free some space and run it again"
            ) from error
        raise


def _log(path: Path, step: int, config: BatchTopKConfig, pending: list[dict[str, jax.Array]]) -> None:
    """One row for the steps since the last: means, except for what counts (skipped) or is set (lr, threshold)."""
    host = jax.device_get(pending)
    row: dict[str, Any] = {"step": step, "tokens": step * config.batch_size}
    for name in host[0]:
        values = np.concatenate([metrics[name] for metrics in host]).astype(np.float64)
        values = values[np.isfinite(values)]
        last = name in ("lr", "threshold", "dead", "skipped")
        row[name] = None if not len(values) else float(values[-1] if last else values.mean())
    row["skipped"] = int(row["skipped"])
    if row["skipped"] >= step:
        raise MusaeError(
            f"none of the {step} training steps so far gave finite numbers; the activations or the learning rate"
            f" ({config.lr_used:g}) are wrong, look at {path}"
        )
    with disk_errors(path), open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row, allow_nan=False) + "\n")


def _finish(out, store, config, state, record, held_out, metadata, drop_start, progress) -> SAE:
    """The SAE's files, then its measures (whose file says that training is over), then the checkpoints' removal."""
    origin = {
        "model_name": store.description.get("model", ""),
        "model_revision": store.description.get("revision", ""),
        "hook_name": store.hook,
        "hook_layer": store.description.get("layer"),
        "context_size": store.positions,
        "frame_rate": store.description.get("frame_rate"),
        "prepend_bos": True,
        "trained_as": "batch_topk",
        "training": record["recipe"],
    }
    clips = sorted(held_out) or None
    sae = fold(config, state, {**origin, **(metadata or {})})
    golden = next(Batches(store, 256, config.seed, clips, drop_start, buffer_mb=1, read_ahead=False))
    save_sae(out, sae, golden)
    measures = evaluate(sae, store, clips, drop_start, progress)
    training = {
        "steps": config.steps,
        "tokens": config.tokens,
        "skipped_steps": int(state.skipped),
        "dead_share": float(np.mean(np.asarray(state.idle) >= config.dead_after_used)),
        "center_norm": float(np.linalg.norm(np.asarray(state.center, np.float64))),
        "scale": float(state.scale),
    }
    with disk_errors(out / METRICS):
        write_json(out / METRICS, {**measures, "held_out": clips is not None, "training": training, "record": record})
    shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
    return load_sae(out)
