"""Which SAE finds music best? Trains SAEs that differ from a run's in one thing each, and counts what they find.

    python scripts/sweep_concepts.py --run runs/pocket --work runs/sweep --seeds 3

Writes a line a setting and seed to WORK/sweep.jsonl and prints the table; a killed sweep goes on. The music, the recipe
and the model are the run's; the concepts are judged as in `musae bench concepts`.
"""

import argparse
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from musae_jax.activations.harvest import harvest
from musae_jax.activations.source import Activations
from musae_jax.activations.store import json_sha256
from musae_jax.bench.concepts import ConceptsBench, Stage
from musae_jax.features.activity import sae_activity
from musae_jax.files import read_json, read_json_lines
from musae_jax.run import Run, open_run
from musae_jax.sae.recipes import NESTED, train_recipe
from musae_jax.sae.train import METRICS, train_saes
from musae_jax.validation.finding import FOUND, Finding, Panel, find_concepts

FINE = (1 / 128, 1 / 128, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
# Changes to the run's recipe; what it does not have is the sweep's own.
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    **{f"layer {i}": {"layer": i} for i in range(5)},
    **{f"d_sae {d}": {"d_sae": d} for d in (192, 1024, 2048, 4096)},
    **{f"k {k}": {"k": k} for k in (8, 16, 64, 128)},
    "topk": {"architecture": "topk"},
    "topk, nested": {"architecture": "topk", "group_fractions": NESTED},
    "jumprelu": {"architecture": "jumprelu"},
    "relu": {"architecture": "relu", "l1_coefficient": 0.3},
    "gated": {"architecture": "gated", "l1_coefficient": 0.3},
    "one group": {"group_fractions": ()},
    "six groups": {"group_fractions": (1 / 32, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)},
    "eight groups": {"group_fractions": FINE},
    "uncentred": {"center": "none"},
    "geometric median": {"center": "geometric_median"},
    "unscaled": {"scale": False},
    "steps 1000": {"steps": 1000},
    "pooled by max": {"pooling": "max"},
    "pooled by share": {"pooling": "share"},
    "position means removed": {"positions": True},
    "means of 0.5 s": {"window": 25},
    "means of 2 s": {"window": 100},
}


@dataclasses.dataclass(frozen=True)
class Changed:
    """Activations [n, P, D] of which `change` makes others as many; an `Activations`."""

    inner: Activations
    change: Callable[[np.ndarray], np.ndarray]
    name_of_change: str

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __len__(self) -> int:
        return len(self.inner)

    @property
    def content_sha256(self) -> str:
        return json_sha256([self.inner.content_sha256, self.name_of_change])

    def shard(self, index: int) -> tuple[tuple[str, ...], np.ndarray]:
        ids, x = self.inner.shard(index)
        return ids, self.change(np.asarray(x, np.float32))

    def shards(self) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
        return (self.shard(index) for index in range(len(self)))


def position_means(store: Activations, clips: set[str]) -> np.ndarray:
    total = sum(x[[id in clips for id in ids]].sum(0, dtype=np.float64) for ids, x in store.shards()) / len(clips)
    total[1:] -= total[1:].mean(0)
    total[0] = 0  # the start step is no frame
    return total.astype(np.float32)


def moving_mean(x: np.ndarray, window: int) -> np.ndarray:
    """The mean of the last `window` positions at each, of fewer where there are no more: [n, P, D] -> [n, P, D]."""
    sums = np.cumsum(np.pad(x, ((0, 0), (1, 0), (0, 0))), 1, dtype=np.float64)
    ends = np.arange(1, x.shape[1] + 1)
    starts = np.maximum(ends - window, 0)
    return ((sums[:, ends] - sums[:, starts]) / (ends - starts)[:, None]).astype(np.float32)


@functools.cache
def prepared(run: Run, work: Path, layer: int) -> tuple[Activations, Activations, Panel]:
    """What trains, what is judged, and what is true of the latter."""
    options = {**run.harvest_options(), "layers": [layer]}
    store = harvest(**options, out=work / "activations")[layer]
    stage = Stage(ConceptsBench(), run.model, run.config.model, layer, work / "benchmark")
    judged = stage.store()
    return store, judged, stage.panel(judged)


def measure(run: Run, work: Path, name: str, setting: dict[str, Any], seed: int) -> dict[str, Any]:
    """Trains one SAE and counts what it finds."""
    changes = dict(setting)
    layer = changes.pop("layer", run.layers[0])
    pooling, positions = changes.pop("pooling", "mean"), changes.pop("positions", False)
    window = changes.pop("window", 1)
    config = dataclasses.replace(run.config.train, **changes)
    store, judged, panel = prepared(run, work, layer)
    panel = dataclasses.replace(panel, pooling=pooling)
    held_out = [id for id, half in run.halves.items() if half == "score"]
    if positions:
        means = position_means(store, set(store.clip_ids) - set(held_out))
        store, judged = (Changed(one, lambda x: x - means, "without positions") for one in (store, judged))
    if window > 1:
        change = functools.partial(moving_mean, window=window)
        store, judged = (Changed(one, change, f"means of {window}") for one in (store, judged))
    recipe = train_recipe(config, store.d_in, seed)
    # settings that train alike share an SAE
    key = json_sha256([dataclasses.asdict(recipe), recipe.architecture, layer, positions, window])
    folder = work / "saes" / key[:16]
    sae = train_saes(store, {folder: recipe}, held_out, drop_start=config.drop_start, seed=run.config.seed)[0]
    finding = find_concepts(panel, sae_activity(judged, sae))
    metrics = read_json(folder / METRICS)
    return {
        "setting": name,
        "seed": seed,
        **{key: float(metrics[key]) for key in ("fvu", "fvu_within_positions", "l0", "dead_share")},
        **_figures(finding, panel.judged),
        "aurocs": dict(zip((c.name for c in panel.truth.concepts), np.round(finding.auroc, 4).tolist())),
    }


def _figures(finding: Finding, judged: np.ndarray) -> dict[str, float | None]:
    scores = finding.auroc[judged]
    return {
        "coverage": float((scores >= FOUND).mean()),
        "auroc": float(scores.mean()),
        "over_0.8": float((scores >= 0.8).mean()),
        "f1": float(np.mean([v.f1 for v in finding.verdicts if v])),
        "mcc": finding.mcc,
        "concepts_per_feature": finding.concepts_per_feature,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """A line a setting: means over seeds, and the least and largest coverage."""
    heads = (("found", 8), ("from", 7), ("to", 7), ("AUROC", 8), (">= 0.8", 8), ("F1", 7), ("MCC", 7), ("FVU", 7))
    lines = [f"{'setting':<24}{'seeds':>6}" + "".join(f"{head:>{width}}" for head, width in heads) + f"{'L0':>7}"]
    for name in dict.fromkeys(row["setting"] for row in rows):
        ones = [row for row in rows if row["setting"] == name]
        mean = {key: float(np.mean([row[key] for row in ones])) for key in ones[0] if isinstance(ones[0][key], float)}
        least, most = (100 * of(row["coverage"] for row in ones) for of in (min, max))
        lines.append(
            f"{name:<24}{len(ones):>6}{100 * mean['coverage']:>7.1f}%{least:>7.1f}{most:>7.1f}{mean['auroc']:>8.3f}"
            f"{100 * mean['over_0.8']:>7.1f}%{mean['f1']:>7.3f}{mean['mcc']:>7.3f}{mean['fvu']:>7.3f}{mean['l0']:>7.1f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="a run folder, composed; its recipe is the default")
    parser.add_argument("--work", type=Path, required=True, help="where activations, SAEs and the results go")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=list(SETTINGS), choices=SETTINGS, metavar="SETTING")
    flags = parser.parse_args()
    run, path = open_run(flags.run), flags.work / "sweep.jsonl"
    flags.work.mkdir(parents=True, exist_ok=True)
    rows = read_json_lines(path) if path.exists() else []
    for seed in range(flags.seeds):
        for name in flags.only:
            if any(row["setting"] == name and row["seed"] == seed for row in rows):
                continue
            rows.append(measure(run, flags.work, name, SETTINGS[name], seed))
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    print(table([row for row in rows if row["setting"] in flags.only]))


if __name__ == "__main__":
    main()
