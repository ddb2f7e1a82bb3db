"""A run in the shape of Neuronpedia's exports: a folder MODEL/SOURCE for each SAE, of flat JSON records, a line each.

As its converter of SAEDashboard writes them (hijohnnylin/neuronpedia, convert-saedashboard-to-neuronpedia-export.py),
with sound in the place of text: tokens are the times of frames in seconds, values the activations there, and the data
source is a clip. What a server gives itself (creators, dates) is left out, so the same run always gives the same bytes.
"""

import gzip
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from musae_jax.errors import MusaeError
from musae_jax.explorer.judged import judged_names, optional
from musae_jax.features.exemplars import Exemplar, load_exemplars
from musae_jax.features.statistics import load_statistics
from musae_jax.files import atomic_folder, read_json_lines, write_json_lines

FRAME_RATE = 50  # Hz, of exemplars' curves


def write_neuronpedia(
    run: str | Path, out: str | Path, progress: Callable[[int, int, str], None] | None = None
) -> list[Path]:
    """Writes OUT/MODEL/SOURCE for every SAE of a run folder that has features, and returns these folders.

    Each holds release.jsonl, model.jsonl, sourceset.jsonl, source.jsonl and, gzipped, features/batch-0.jsonl.gz (all
    features), activations/batch-0.jsonl.gz (their exemplars) and explanations/batch-0.jsonl.gz (their names: the type
    is the source, the scores are its own and that of the source that judged it). SOURCE is "<layer>-<SAE>". Older
    folders of these names are replaced. Raises `MusaeError` when the run holds no features.
    """
    run, out = Path(run), Path(out)
    found = sorted(path.parent for path in run.glob("features/*/*/features.jsonl"))
    if not found:
        raise MusaeError(f"{run} holds no features/<hook>/<sae>/features.jsonl; run `musae features` on it first")
    config = optional(run / "run.json", {}).get("config", {})
    model, music = Path(config.get("model", "model")).name, config.get("audio") or "composed music"
    names = judged_names(run)
    folders = []
    for done, folder in enumerate(found, start=1):
        hook, sae = folder.parent.name, folder.name
        source = f"{hook.split('.')[1]}-{sae}"
        about = {"modelId": model, "layer": source}
        rows = read_json_lines(folder / "features.jsonl")
        exemplars = load_exemplars(folder) if (folder / "exemplars.jsonl").exists() else []
        named = [row for feature in rows for row in names.get((hook, sae, feature["feature"]), [])]
        with atomic_folder(out / model / source) as to:
            write_json_lines(to / "release.jsonl", [_release(model)])
            write_json_lines(to / "model.jsonl", [_model(model)])
            write_json_lines(to / "sourceset.jsonl", [_source_set(model, sae)])
            clips, frames = len(load_statistics(folder).clip_ids), len(exemplars[0].curve) if exemplars else None
            write_json_lines(to / "source.jsonl", [_source(model, source, sae, Path(music).name, clips, frames)])
            _batch(to / "features", ({**about, **_feature(row, hook, sae)} for row in rows))
            _batch(to / "activations", ({**about, **_activation(one, source)} for one in exemplars))
            _batch(to / "explanations", ({**about, **_explanation(row, source)} for row in named))
        folders.append(out / model / source)
        if progress:
            progress(done, len(found), "SAEs")
    return folders


def _release(model: str) -> dict[str, Any]:
    text = f"Concepts in {model}"
    return {"name": f"musae-{model}", "description": text, "descriptionShort": text, "creatorName": "", "urls": []}


def _model(model: str) -> dict[str, Any]:
    # a record needs a number of layers and of neurons; as in the original, 0 is "not told"
    numbers = {"layers": 0, "neuronsPerLayer": 0}
    return {"id": model, "displayName": model, "displayNameShort": model, "instruct": False, "owner": "", **numbers}


def _source_set(model: str, sae: str) -> dict[str, Any]:
    return {"modelId": model, "name": sae, "releaseName": f"musae-{model}", "description": "", "creatorName": ""}


def _source(model: str, source: str, sae: str, music: str, clips: int, frames: int | None) -> dict[str, Any]:
    return {
        "id": source,
        "modelId": model,
        "setName": sae,
        "hasDashboards": True,
        "inferenceEnabled": False,
        "dataset": music,
        "num_prompts": clips,
        "num_tokens_in_prompt": frames,
    }


def _feature(row: Mapping[str, Any], hook: str, sae: str) -> dict[str, Any]:
    return {
        "index": str(row["feature"]),
        "sourceSetName": sae,
        "hookName": hook,
        "maxActApprox": row["maximum"],
        "frac_nonzero": row["density"],
    }


def _activation(exemplar: Exemplar, source: str) -> dict[str, Any]:
    values = [round(float(value), 4) for value in exemplar.curve]
    return {
        "id": f"{source}-{exemplar.feature}-{exemplar.clip}",
        "index": str(exemplar.feature),
        "tokens": [f"{frame / FRAME_RATE:.2f}" for frame in range(len(values))],
        "values": values,
        "maxValue": max(values),
        "maxValueTokenIndex": int(np.argmax(values)),
        "minValue": min(values),
        "dataSource": exemplar.clip,
    }


def _explanation(row: Mapping[str, Any], source: str) -> dict[str, Any]:
    evidence, judged, scores = row["evidence"], row["judged"], []
    if "score" in evidence:
        kept = ("null_mean", "null_p95", "p", "q", "n", "positives")
        scores.append(_score(row["source"], evidence["score"], {key: evidence[key] for key in kept}))
    if judged:
        kept = ("interval", "null", "near", "p", "q", "passed")
        scores.append(_score(judged["scorer"], judged["detection"], {key: judged[key] for key in kept}))
    return {
        "id": f"{source}-{row['feature']}-{row['source']}",
        "index": str(row["feature"]),
        "description": row["name"],
        "typeName": row["source"],
        "explanationModelName": evidence.get("model"),
        "confidence": row["confidence"],
        "scores": scores,
    }


def _score(scorer: str, auroc: float, details: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "explanationScoreTypeName": "auroc",
        "explanationScoreModelName": scorer,
        "value": auroc,
        "jsonDetails": json.dumps(details),
    }


def _batch(folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    folder.mkdir()
    # without a name and a date in its header, so that the same rows are the same bytes
    with open(folder / "batch-0.jsonl.gz", "wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
        for row in rows:
            packed.write((json.dumps(row, allow_nan=False) + "\n").encode())
