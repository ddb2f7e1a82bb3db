"""How often and how strongly each feature is active, and which features are worth a name.

The filter is the paper's (arXiv 2505.18186, section on feature filtering): a clip counts as active when the feature's
mean over the clip exceeds a threshold, and a feature is kept when 1 to 25 % of the clips are active.
"""

from dataclasses import dataclass
from pathlib import Path

import flax.struct
import numpy as np
import scipy.sparse
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from musae_jax.features.activity import Activity
from musae_jax.files import atomic_path, read_json_lines, write_json_lines


@dataclass(frozen=True)
class FilterConfig:
    """Which features are kept, by the share of clips in which they are active."""

    minimum_share: float = 0.01  # of clips; rarer features have too few examples
    maximum_share: float = 0.25  # of clips; commoner ones say little about a clip
    active_above: float = 0.0  # a clip is active when its mean is greater than this share of the feature's largest mean


@flax.struct.dataclass
class Statistics:
    """Arrays over n clips and F features; activations are in the SAE's own units."""

    clip_mean: np.ndarray  # [n, F]
    clip_max: np.ndarray  # [n, F]
    density: np.ndarray  # [F] share of frames on which the feature is not zero
    maximum: np.ndarray  # [F] greatest activation anywhere; β of steering
    mean_active: np.ndarray  # [F] mean of the activations that are not zero
    share: np.ndarray  # [F] share of clips that are active
    kept: np.ndarray  # [F] bool, passes the filter
    clip_ids: tuple[str, ...] = flax.struct.field(pytree_node=False)


def feature_statistics(activity: Activity, config: FilterConfig | None = None) -> Statistics:
    """Statistics of every feature of `activity`; pure arrays."""
    config = config or FilterConfig()
    rows = activity.values.shape[0]
    if scipy.sparse.issparse(activity.values):
        columns = scipy.sparse.csr_array(activity.values)
        counts = np.bincount(columns.indices, minlength=activity.features)
        sums = np.bincount(columns.indices, columns.data.astype(np.float64), minlength=activity.features)
    else:
        counts = np.count_nonzero(activity.values, axis=0)
        sums = activity.values.sum(0, dtype=np.float64)
    share = active_clips(activity.clip_mean, config).mean(0)
    return Statistics(
        clip_mean=activity.clip_mean,
        clip_max=activity.clip_max,
        density=(counts / rows).astype(np.float32),
        maximum=activity.clip_max.max(0).astype(np.float32),
        mean_active=(sums / np.maximum(counts, 1)).astype(np.float32),
        share=share.astype(np.float32),
        kept=(share > 0) & (share >= config.minimum_share) & (share <= config.maximum_share),
        clip_ids=activity.clip_ids,
    )


def active_clips(clip_mean: np.ndarray, config: FilterConfig) -> np.ndarray:
    """Which clips count as active, bool [n, F], from mean activations [n, F]."""
    return clip_mean > config.active_above * clip_mean.max(0)


def filter_verdict(density: float, share: float, config: FilterConfig) -> str:
    """Why a feature is kept or not: "kept", "dead", "rare" or "common"."""
    if density == 0:
        return "dead"
    if share == 0 or share < config.minimum_share:
        return "rare"
    return "common" if share > config.maximum_share else "kept"


def save_statistics(folder: str | Path, statistics: Statistics, config: FilterConfig | None = None) -> None:
    """Writes `statistics.safetensors` and `features.jsonl` (a line per feature) into `folder`, atomically."""
    folder, config = Path(folder), config or FilterConfig()
    arrays = {
        name: np.ascontiguousarray(getattr(statistics, name))
        for name in ("clip_mean", "clip_max", "density", "maximum", "mean_active", "share")
    }
    arrays["kept"] = statistics.kept.astype(np.uint8)
    active = active_clips(statistics.clip_mean, config)
    with atomic_path(folder / "statistics.safetensors") as temporary:
        save_file(arrays, temporary, metadata={"clips": "\n".join(statistics.clip_ids)})
    write_json_lines(
        folder / "features.jsonl",
        (
            {
                "feature": feature,
                "density": round(float(statistics.density[feature]), 6),
                "share": round(float(statistics.share[feature]), 4),
                "clips_active": int(active[:, feature].sum()),
                "maximum": round(float(statistics.maximum[feature]), 5),
                "mean_active": round(float(statistics.mean_active[feature]), 5),
                "verdict": filter_verdict(statistics.density[feature], statistics.share[feature], config),
            }
            for feature in range(len(statistics.density))
        ),
    )


def load_statistics(folder: str | Path) -> Statistics:
    """Reads what `save_statistics` wrote."""
    path = Path(folder) / "statistics.safetensors"
    read_json_lines(Path(folder) / "features.jsonl")  # says which stage to run when it is missing
    arrays = load_file(path)
    with safe_open(path, "np") as file:
        clips = tuple(file.metadata()["clips"].split("\n"))
    return Statistics(clip_ids=clips, **{**arrays, "kept": arrays["kept"].astype(bool)})
