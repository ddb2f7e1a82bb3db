"""What was measured, as lines for a terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from musae_jax.files import read_json

WORDS = {
    "unsteered": "no steering",
    "random": "random direction",
    "decoder": "decoder row",
    "inactive": "inactive feature",
    "other_layer": "same vector, other layer",
    "diff_in_means": "difference in means",
    "probe": "probe",
    "pca": "principal component",
    "prompt": "prompt alone",
}


def effects_text(run: str | Path) -> str:
    """summary.json of a run: how many features steer, and when the SAE wins and when not."""
    path = Path(run) / "steering" / "summary.json"
    if not path.exists():
        return "no name rose above its null, so nothing was steered"
    s = read_json(path)
    lines = [
        f"{_percent(s['steered'])} of {s['tested']} features take their concept above unsteered clips and a random "
        f"direction (q < {s['level']:g}); monotone {_percent(s['monotone'])}, up to the strength compared "
        f"{_percent(s['monotone_to_strength'])}; broken clips {_percent(s['collapsed'])}",
        f"{'the SAE against':<26}{'won':>7}{'lost':>7}  gain over it, in deviations of unsteered clips",
    ]
    for arm, row in s["against"].items():
        low, high = row["ci"]
        gain = f"{row['effect']:+.2f} ({low:+.2f} to {high:+.2f})"
        lines.append(f"{WORDS[arm]:<26}{_percent(row['share_won']):>7}{_percent(row['share_lost']):>7}  {gain}")
    return "\n".join(lines)


def paper_text(table: Mapping[str, Any]) -> str:
    """The paper's protocol, beside its published figure where there is one."""
    lines = [f"{table['features']} features, “{table['prompt']}”, strength 1: nearer to their exemplars than unsteered"]
    for arm, name in (("sae", "SAE"), ("random", "random direction")):
        one = table[arm]
        shares = f"{_percent(one['first_clip']):>7} by one clip,{_percent(one['mean_of_clips']):>6} by the mean"
        lines.append(f"{name:<18}{shares} of {table['clips']}")
    if table["published"] is not None:
        lines.append(f"{'published':<18}{_percent(table['published']):>7} (arXiv 2505.18186, Table 2)")
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"
