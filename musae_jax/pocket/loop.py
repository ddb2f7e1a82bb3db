"""The training loop that the pocket's codec and language model share: steps, log, checkpoints, resume."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from musae_jax.checkpoint import TrainingCheckpoints

LOG_EVERY = 50


def train_loop(
    folder: str | Path,
    state: Any,
    steps: int,
    step: Callable[[Any, int], tuple[Any, dict[str, Any]]],
    evaluate: Callable[[Any], dict[str, Any]],
    log: Callable[[dict], None],
    progress: Callable[[int, int, str], None] | None = None,
    save_every: int = 250,
    evaluate_every: int = 1000,
) -> Any:
    """Takes `state` through `steps` steps and returns it; a killed run goes on from its last checkpoint in `folder`.

    `step(state, number)` gives (state, figures), a function of nothing else: what a batch holds follows from the step's
    number, so a resumed run sees what an unbroken one would have seen. Figures of every 50th step and the held-out
    figures of `evaluate` go to `log`.
    """
    checkpoints = TrainingCheckpoints(Path(folder) / "checkpoints")
    done = 0
    if checkpoints.note() is not None:
        done, state = checkpoints.restore(state)
    while done < steps:
        state, figures = step(state, done)
        done += 1
        if progress:
            progress(done, steps, "steps")
        if done % LOG_EVERY == 0:
            log({"step": done, **figures})
        if done % save_every == 0 or done == steps:
            checkpoints.save(done, state, {"steps": steps})
        if done % evaluate_every == 0 or done == steps:
            log({"step": done, "held_out": evaluate(state)})
    checkpoints.close()
    return state
