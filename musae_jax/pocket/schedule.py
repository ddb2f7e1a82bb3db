"""The learning-rate schedule of the pocket's trainings."""

import optax


def warm_stable_decay(peak: float, warmup: int, steps: int, decay: float) -> optax.Schedule:
    """Linear from 0 to `peak` over `warmup` steps, constant, then linear to 0 over the last share `decay` of `steps`.

    A longer training shares its beginning with a shorter one, so `steps` may grow while it runs.
    """
    tail = max(1, round(decay * steps))
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, peak, warmup),
            optax.constant_schedule(peak),
            optax.linear_schedule(peak, 0.0, tail),
        ],
        [warmup, steps - tail],
    )
