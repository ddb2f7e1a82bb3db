"""The learning-rate schedule and the optimiser of the pocket's trainings."""

import jax
import optax
import optax.contrib


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


def kernels_by_muon(
    peak: float, warmup: int, steps: int, decay: float, weight_decay: float
) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) on the kernels of dense layers, Adam on tables, norms, biases and convolutions; its
    updates are scaled to Adam's size (`consistent_rms`), so that one rate serves both."""

    def kind(path, leaf) -> str:
        return "matrix" if str(path[-1].key) == "kernel" and leaf.ndim == 2 else "other"

    rate = warm_stable_decay(peak, warmup, steps, decay)
    rates = {
        "matrix": optax.contrib.muon(rate, weight_decay=weight_decay, consistent_rms=0.2),
        "other": optax.adam(rate, b2=0.98),
    }
    kinds = lambda params: jax.tree_util.tree_map_with_path(kind, params)  # noqa: E731
    return optax.chain(optax.clip_by_global_norm(1.0), optax.multi_transform(rates, kinds))
