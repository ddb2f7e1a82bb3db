"""The names of features as a person is shown them: what its source says of a name, and beside it what another does."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from musae_jax.files import read_json, read_json_lines

Key = tuple[str, str, int]  # hook, SAE, feature
JUDGEMENT = ("scorer", "detection", "interval", "near", "null", "p", "q", "passed", "firing", "n", "span")


def key_of(row: Mapping[str, Any]) -> Key:
    """The feature that a row is about."""
    return row["hook"], row["sae"], int(row["feature"])


def optional(path: Path, default: Any) -> Any:
    """What is in a JSON or JSON-lines file, or `default` where there is none."""
    if not path.exists():
        return default
    return read_json_lines(path) if path.suffix == ".jsonl" else read_json(path)


def judged_names(run: Path) -> dict[Key, list[dict[str, Any]]]:
    """The names of each feature: rows of labels/labels.jsonl with two fields more, those that hold first.

    `judged` is what validation/names.jsonl says of the name, None where no other source knows it. `holds` is whether
    the name may stand for the feature: it passed that judgement or, without one, rose above its own null. A name that
    comes without a score (an audio LLM's) holds on its word alone where nothing was judged yet.
    """
    path = run / "validation" / "names.jsonl"
    judged = {
        (key_of(row), row["source"], row["name"]): {name: row[name] for name in JUDGEMENT} for row in optional(path, [])
    }
    names: dict[Key, list[dict[str, Any]]] = {}
    for row in optional(run / "labels" / "labels.jsonl", []):
        key = key_of(row)
        judgement = judged.get((key, row["source"], row["name"]))
        told = "score" in row["evidence"] or not path.exists()
        holds = judgement["passed"] if judgement else row["confidence"] > 0 and told
        names.setdefault(key, []).append({**row, "judged": judgement, "holds": holds})
    for rows in names.values():
        # the composer's truth before what is estimated, and what is proven before what nobody could judge
        rows.sort(key=lambda r: (not r["holds"], r["source"] != "truth", r["judged"] is None, -r["confidence"]))
    return names
