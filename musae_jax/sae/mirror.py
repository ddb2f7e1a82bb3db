"""train.jsonl, shown where people look: TensorBoard and Weights & Biases, by option.

The trainer knows nothing of either. It appends rows to train.jsonl and calls `progress`; `mirror_logs` stands around
that call and passes the new rows on, so what a viewer shows is what the file holds, resumed runs included.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from musae_jax.errors import MusaeError
from musae_jax.files import read_json_lines

LOG = "train.jsonl"
VIEWERS = ("tensorboard", "wandb")

# Names that users of SAELens chart already; others keep their own, under train/.
_NAMES = {
    "loss": "losses/overall_loss",
    "auxk": "losses/auxiliary_reconstruction_loss",
    "fvu": "metrics/fvu",
    "l0": "metrics/l0",
    "dead": "sparsity/dead_share",
    "lr": "details/current_learning_rate",
    "tokens": "details/n_training_samples",
}

Progress = Callable[[int, int, str], None]
Writer = Callable[[int, dict[str, float]], None]


@contextlib.contextmanager
def mirror_logs(
    viewers: Sequence[str],
    folders: Sequence[Path],
    config: dict[str, Any] | None = None,
    progress: Progress | None = None,
    project: str = "musae",
) -> Iterator[Progress | None]:
    """Gives the `progress` to train with; rows of each folder's train.jsonl go to the viewers as they are written.

    TensorBoard reads FOLDER/tensorboard, written anew from the whole log by every process. Weights & Biases gets a run
    per folder in `project`, named by the folder and with the run's `config`; a resumed training goes on with that run.
    Where wandb writes to, and whether it is online, say its own settings (WANDB_MODE=offline needs no account).

    Raises:
      MusaeError: a viewer is unknown or its package is missing.
    """
    opened = {"tensorboard": _tensorboard, "wandb": _wandb}
    if unknown := [viewer for viewer in viewers if viewer not in VIEWERS]:
        raise MusaeError(f"log of train names {unknown[0]!r}, but it must be {' or '.join(VIEWERS)}")
    if not viewers:
        yield progress
        return
    sent = dict.fromkeys(folders, 0)  # steps
    with contextlib.ExitStack() as stack:
        writers = {
            folder: [stack.enter_context(opened[viewer](folder, config or {}, project)) for viewer in viewers]
            for folder in folders
        }

        def forward() -> None:
            for folder in folders:
                rows = read_json_lines(folder / LOG) if (folder / LOG).exists() else []
                for row in rows:
                    if row["step"] > sent[folder]:
                        for write in writers[folder]:
                            write(row["step"], _chart(row))
                        sent[folder] = row["step"]

        def watched(done: int, total: int, unit: str) -> None:
            if unit == "steps":
                forward()
            if progress:
                progress(done, total, unit)

        yield watched
        forward()


def _chart(row: dict[str, Any]) -> dict[str, float]:
    """A row under the names that are charted; what was not finite is left out."""
    charted = {_NAMES.get(name, f"train/{name}"): v for name, v in row.items() if name != "step" and v is not None}
    if row.get("fvu") is not None:
        charted["metrics/explained_variance"] = 1.0 - row["fvu"]
    return charted


@contextlib.contextmanager
def _tensorboard(folder: Path, config: dict[str, Any], project: str) -> Iterator[Writer]:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise MusaeError(
            "log of train names tensorboard, but tensorboardX is not installed; pip install tensorboardX"
        ) from None
    for old in sorted((folder / "tensorboard").glob("events.out.tfevents.*")):
        old.unlink()  # of a process that was killed; its rows are in the log and come again
    writer = SummaryWriter(str(folder / "tensorboard"))

    def write(step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    try:
        yield write
    finally:
        writer.close()


@contextlib.contextmanager
def _wandb(folder: Path, config: dict[str, Any], project: str) -> Iterator[Writer]:
    try:
        import wandb
    except ImportError:
        raise MusaeError("log of train names wandb, but it is not installed; pip install wandb") from None
    folder.mkdir(parents=True, exist_ok=True)  # or it would write somewhere else
    run = wandb.init(
        project=project,
        name="/".join(folder.parts[-2:]),  # HOOK/NAME
        # The same folder is the same run, so that a training that was killed goes on in its chart.
        id=hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16],
        resume="allow",
        dir=str(folder),
        config=config,
        reinit="create_new",
    )
    begun = run.step or 0  # steps before this one are there already

    def write(step: int, values: dict[str, float]) -> None:
        if step >= begun:
            run.log(values, step=step)

    try:
        yield write
    finally:
        run.finish()
