"""RUN/report/index.html: features, evidence, sound and steering in one folder that opens from disk, offline.

Everything shown is read from the run folder. Text, styles and numbers are inside index.html (a page opened from disk
may not fetch files); pictures and sounds lie beside it under media/, named by relative paths, so that the folder can be
moved or sent as it is.
"""

import base64
import datetime
import html
import json
import shutil
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from musae_jax.audio.io import read_audio
from musae_jax.errors import MusaeError
from musae_jax.explorer.judged import Key, judged_names, key_of, optional
from musae_jax.explorer.pictures import HOP, RATE, write_picture
from musae_jax.features.exemplars import Exemplar, load_exemplars
from musae_jax.files import atomic_folder, read_json_lines

CONTROL = "random"  # SAEs with this in their name were trained on a model with random weights: shown beside, not listed
THRESHOLD = 0.3  # share of a feature's maximum above which a span is shaded
SCRIPTS = tuple(  # one scope, in this order
    f"{name}.js" for name in ("elements", "sound", "list", "evidence", "feature", "proof", "pages", "report")
)
LONG = ("captions", "prompt")  # evidence of an audio LLM that is not shown


def write_report(
    run: str | Path,
    title: str | None = None,
    about: Mapping[str, Any] | None = None,
    media_features: int = 60,
    progress: Callable[[int, int, str], None] | None = None,
) -> Path:
    """Builds RUN/report/index.html from the files of a run folder and returns its path; an older report is replaced.

    Reads features/<hook>/<sae>/{features.jsonl, exemplars.*, clips.jsonl, clips/}, and where they exist
    sae/<hook>/<sae>/{metrics.json, train.jsonl}, labels/labels.jsonl, validation/{names.jsonl, features.jsonl,
    filters.jsonl, summary.json, truth_table.jsonl, truth_summary.json, judge.jsonl}, steering/{sounds.jsonl,
    summary.json, sounds/} and run.json.

    All features are in the table; the steered ones and those with the best evidence, `media_features` in all, get
    exemplars. `about` adds lines to the page about the run, such as {"model": …, "music": …}. Raises `MusaeError` when
    the folder holds no features.
    """
    run = Path(run)
    folders = sorted(path.parent for path in run.glob("features/*/*/features.jsonl"))
    if not folders:
        raise MusaeError(f"{run} holds no features/<hook>/<sae>/features.jsonl; run `musae features` on it first")
    labels = judged_names(run)
    nature = {key_of(r): r for r in optional(run / "validation" / "features.jsonl", [])}
    steering = _steering(run)
    truth = optional(run / "validation" / "truth_table.jsonl", [])
    with atomic_folder(run / "report") as out:
        media = _Media(out, progress)
        rows, exemplars, saes = [], {}, []
        chosen = _choose(folders, labels, steering, media_features)
        for folder in folders:
            hook, sae = folder.parent.name, folder.name
            saes.append(_quality(run, hook, sae))
            found = _features(folder, hook, sae, labels, nature)
            rows += found
            captions = {r["clip"]: r for r in optional(folder / "clips.jsonl", [])}
            maximum = {r["feature"]: r["maximum"] for r in found}
            for exemplar in load_exemplars(folder) if (folder / "exemplars.jsonl").exists() else []:
                key = (hook, sae, exemplar.feature)
                note = captions.get(exemplar.clip)
                if key in chosen and note is not None:
                    shown = _exemplar(exemplar, maximum[exemplar.feature], media.clip(folder / note["file"]), note)
                    exemplars.setdefault(_name(key), []).append(shown)
        for key in [key_of(r) for r in rows]:
            for row in steering["rows"].get(key, []):
                row["media"] = media.clip(run / "steering" / row.pop("sound"))
        media.write()
        data = {
            "title": title or f"Concepts in {(about or {}).get('model', run.name)}",
            "about": _about(run, about),
            "threshold": THRESHOLD,
            "saes": saes,
            "features": rows,
            "exemplars": exemplars,
            "media": media.records,
            "truth": truth,
            "truthSummary": optional(run / "validation" / "truth_summary.json", None),
            "proof": optional(run / "validation" / "summary.json", None),
            "filters": optional(run / "validation" / "filters.jsonl", []),
            "judge": optional(run / "validation" / "judge.jsonl", []),
            "steering": {_name(k): v for k, v in steering["rows"].items()},
            "steeringSummary": steering["summary"],
        }
        (out / "index.html").write_text(_page(data), encoding="utf-8")
    return run / "report" / "index.html"


def _name(key: Key) -> str:
    return "/".join(map(str, key))


def _steering(run: Path) -> dict[str, Any]:
    rows: dict[Key, list[dict[str, Any]]] = {}
    for row in optional(run / "steering" / "sounds.jsonl", []):
        rows.setdefault(key_of(row), []).append({k: v for k, v in row.items() if k not in ("hook", "sae", "feature")})
    summary = optional(run / "steering" / "summary.json", None)
    if summary is not None and "against" not in summary:  # of a run by an older version
        rows, summary = {}, None
    return {"rows": rows, "summary": summary}


def _choose(folders: list[Path], labels: dict[Key, list[dict]], steering: dict[str, Any], count: int) -> set[Key]:
    """The features that get sound: those that were steered, then the best-evidenced, then the filter's."""
    candidates = []
    for folder in folders:
        for row in read_json_lines(folder / "features.jsonl"):
            if row["density"] > 0:
                key = (folder.parent.name, folder.name, row["feature"])
                best = max((n["confidence"] for n in labels.get(key, []) if n["holds"]), default=0.0)
                candidates.append((key not in steering["rows"], -best, row["verdict"] != "kept", key))
    return {key for *_, key in sorted(candidates)[:count]}


def _features(
    folder: Path, hook: str, sae: str, labels: dict[Key, list[dict]], nature: dict[Key, dict]
) -> list[dict[str, Any]]:
    rows = []
    for row in read_json_lines(folder / "features.jsonl"):
        key = (hook, sae, row["feature"])
        names = [
            {
                **{name: n[name] for name in ("source", "name", "confidence", "holds", "judged")},
                **{name: value for name, value in n["evidence"].items() if name not in LONG},
            }
            for n in labels.get(key, [])
        ]
        found = {name: nature[key][name] for name in ("bucket", "family", "intruder")} if key in nature else {}
        rows.append({"hook": hook, "sae": sae, **row, **found, "names": names})
    return rows


def _quality(run: Path, hook: str, sae: str) -> dict[str, Any]:
    folder = run / "sae" / hook
    control = next((p for p in sorted(folder.glob(f"*{CONTROL}*/metrics.json")) if p.parent.name != sae), None)
    kept = ("fvu", "fvu_within_positions", "l0", "dead_share", "l2_ratio", "relative_reconstruction_bias", "density")

    def measures(path: Path | None) -> dict[str, Any] | None:
        found = optional(path, None) if path else None
        return {k: found[k] for k in (*kept, "tokens", "held_out") if k in found} if found else None

    curve = [
        [r["step"], round(r["fvu"], 5)]
        for r in optional(folder / sae / "train.jsonl", [])
        if isinstance(r.get("fvu"), int | float)
    ]
    step = max(1, len(curve) // 300)
    return {
        "hook": hook,
        "sae": sae,
        "metrics": measures(folder / sae / "metrics.json"),
        "control": measures(control),
        "training": curve[::step],
    }


def _exemplar(exemplar: Exemplar, maximum: float, media: int, note: Mapping[str, Any]) -> dict[str, Any]:
    levels = np.clip(exemplar.curve / max(maximum, 1e-12) * 255, 0, 255).round().astype(np.uint8)
    return {
        "clip": exemplar.clip,
        "caption": note.get("caption"),
        "half": exemplar.half,
        "rank": exemplar.rank,
        "mean": round(exemplar.mean / max(maximum, 1e-12), 4),
        "peak": round(exemplar.maximum / max(maximum, 1e-12), 4),
        "curve": base64.b64encode(levels.tobytes()).decode(),
        "media": media,
    }


class _Media:
    """Sounds and their pictures, each written once however many features show it."""

    def __init__(self, out: Path, progress: Callable[[int, int, str], None] | None):
        self.out, self.progress = out, progress
        self.places: dict[Path, int] = {}
        self.records: list[dict[str, Any]] = []

    def clip(self, source: Path) -> int:
        if source not in self.places:
            if not source.exists():
                raise MusaeError(f"{source} is missing, but the features or effects name it; run that stage again")
            self.places[source] = len(self.records)
            name = f"media/{len(self.records):04d}"
            seconds = round(soundfile.info(source).duration, 3)
            self.records.append({"sound": name + source.suffix, "mel": name + ".png", "seconds": seconds})
        return self.places[source]

    def write(self) -> None:
        (self.out / "media").mkdir(exist_ok=True)
        for done, (source, record) in enumerate(zip(self.places, self.records), start=1):
            shutil.copyfile(source, self.out / record["sound"])
            audio = read_audio(source, RATE)
            write_picture(self.out / record["mel"], audio, max(1, round(record["seconds"] * RATE / HOP)))
            if self.progress:
                self.progress(done, len(self.records), "sounds")


def _about(run: Path, about: Mapping[str, Any] | None) -> list[list[str]]:
    """Lines for the page about the run: what the caller says, then run.json, nested keys joined by dots."""
    lines = [[str(k), str(v)] for k, v in (about or {}).items()]

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            lines.append([prefix, value if isinstance(value, str) else json.dumps(value)])

    walk("", optional(run / "run.json", {}))
    return [*lines, ["report written", datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")]]


def _page(data: Mapping[str, Any]) -> str:
    static = files("musae_jax.explorer") / "static"
    page, style, *scripts = (
        (static / name).read_text(encoding="utf-8") for name in ("template.html", "report.css", *SCRIPTS)
    )
    script = "\n".join(scripts)
    # an escaped "<" cannot end the script element early
    payload = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    for slot, text in (
        ("title", html.escape(str(data["title"]))),
        ("style", style),
        ("script", script),
        ("data", payload),
    ):
        if page.count("{{" + slot + "}}") < 1:
            raise ValueError(f"template.html has no slot {slot}")
        page = page.replace("{{" + slot + "}}", text)
    return page
