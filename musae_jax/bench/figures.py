"""What the benches' verbs share: how figures are written and printed."""

from pathlib import Path
from typing import Any

from musae_jax.files import write_json


def table(rows: list[dict[str, Any]], json: Path | None) -> str:
    """The rows of a comparison as a table; also written to `json` where that is given."""
    from musae_jax.bench.rows import bench_table

    write_figures(json, rows)
    return bench_table(rows)


def write_figures(path: Path | None, figures: Any) -> None:
    if path is not None:
        write_json(path, figures)
