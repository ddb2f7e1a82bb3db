"""The rows that benches write: one figure each, beside a peer's where there is one."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import scipy.stats


def bench_row(
    name: str,
    config: dict[str, Any],
    ours: float | Sequence[float],
    unit: str,
    peer: float | None = None,
    peer_name: str | None = None,
    more_is_better: bool = True,
    dtype: str = "float32",
) -> dict[str, Any]:
    """{name, config, device, dtype, ours, peer, peer_name, unit, ratio}; ratio > 1 means we are better.

    Of several values `ours` is the mean, and two fields more, `values` and `interval`, hold them and the 95 % interval
    of their mean (Student's t).
    """
    values = np.atleast_1d(np.asarray(ours, np.float64))
    mean, device = float(values.mean()), jax.devices()[0]
    ratio = None
    if peer and mean:
        ratio = mean / peer if more_is_better else peer / mean
    row = {
        "name": name,
        "config": config,
        "device": f"{device.platform} ({device.device_kind})",
        "dtype": dtype,
        "ours": mean,
        "peer": peer,
        "peer_name": peer_name,
        "unit": unit,
        "ratio": ratio,
    }
    if len(values) > 1:
        half = float(scipy.stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
        row |= {"values": values.tolist(), "interval": [mean - half, mean + half]}
    return row


def bench_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as lines that fit a terminal."""
    names = [row["name"] if row["dtype"] == "float32" else f"{row['name']} ({row['dtype']})" for row in rows]
    lines, width = [], max(map(len, names), default=0)
    for row, name in zip(rows, names):
        spread = f" ± {_number((row['interval'][1] - row['interval'][0]) / 2)}" if "interval" in row else ""
        ours = f"{_number(row['ours'])}{spread}"
        line = f"{name:<{width}}  {ours:<15}  {row['unit']}"
        lines.append(
            line if row["peer"] is None else f"{line:<{width + 37}}  {row['peer_name']}: {_number(row['peer'])}"
        )
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.1 else f"{value:.3g}"
