"""The tables of README.md and docs/ from the files of a run, so that none is copied by hand.

    python scripts/figures.py runs/pocket --concepts concepts.json --rows runs/pocket-rows

Prints Markdown: what `musae run` measured, its names, and what `musae steer --run runs/pocket` did. With `--concepts`
the file of `musae bench concepts --json` besides; with `--rows` the copy of the run that was steered along decoder rows
(`--how add`).
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from musae_jax.bench.concepts_report import KINDS
from musae_jax.errors import MusaeError
from musae_jax.files import read_json, read_json_lines
from musae_jax.labels.evidence import interval
from musae_jax.run import CONTROL, STAGES, open_run
from musae_jax.steering.tables import WORDS

DICTIONARIES = {
    "sae": "SAE",
    "random_sae": "random directions",
    "neurons": "neurons",
    "pca": "principal components",
    "random_weights": "SAE on random weights",
    "probe": "linear probe, the ceiling",
}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines) + "\n"


def number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def percent(share: float | None, digits: int = 0) -> str:
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def between(bounds: Sequence[float] | None, digits: int = 0) -> str:
    return "" if not bounds else f" ({100 * bounds[0]:.{digits}f} to {100 * bounds[1]:.{digits}f})"


def run_tables(folder: Path) -> Iterable[str]:
    """What the stages took; the SAE beside its control; families and concepts that single features tell of."""
    run = open_run(folder)
    took = {stage: row["seconds"] for stage, row in read_json(folder / "run.json")["stages"].items()}
    stages = ", ".join(f"{stage} {took[stage]:.0f}" for stage in STAGES if stage in took)
    yield f"{sum(took.values()) / 60:.0f} min, in seconds: {stages}\n"
    truth = read_json(folder / "validation" / "truth_summary.json")
    layer = run.layers[0]
    ours, control = (read_json(run.sae_folder(layer, which) / "metrics.json") for which in (False, True))
    spliced, bare = (
        read_json(run.sae_folder(layer, which) / "splice.json")["codebooks"][0]["ce"] for which in (False, True)
    )
    told = [truth[name] for name in ("sae", "random_weights")]
    rows = [
        ["SAE's unexplained variance (FVU), held out", *(f"{m['fvu']:.3f}" for m in (ours, control))],
        [
            "the same with each position's mean removed",
            *(f"{m['fvu_within_positions']:.3f}" for m in (ours, control)),
        ],
        ["features active at a position (L0)", *(f"{m['l0']:.1f}" for m in (ours, control))],
        ["dead features", *(percent(m["dead_share"], 1) for m in (ours, control))],
        [
            "cross-entropy of codebook 0 with the SAE spliced in, nats",
            f"{spliced['sae']:.2f} ({spliced['clean']:.2f} without SAE, {spliced['zero']:.2f} with zeros instead)",
            f"{bare['sae']:.2f} ({bare['clean']:.2f}, {bare['zero']:.2f})",
        ],
        ["best single feature's held-out AUROC, mean over concepts", *(f"{one['mean_auroc']:.3f}" for one in told)],
        ["concepts above their null", *(f"{one['above_null']}" for one in told)],
    ]
    yield table(["", "trained model", CONTROL.replace("-", " ")], rows)
    names = ("sae", "neuron", "random_weights")
    table_of_truth = read_json_lines(folder / "validation" / "truth_table.jsonl")
    concepts = [row for row in table_of_truth if all(row[f"{name}_auroc"] is not None for name in names)]
    lead = np.asarray([row["sae_auroc"] - row["neuron_auroc"] for row in concepts])
    draws = np.random.default_rng(0).choice(lead, (2000, len(lead))).mean(1)
    low, high = interval(draws)
    yield (
        f"The best raw neuron reaches {truth['neuron']['mean_auroc']:.3f} ({truth['neuron']['above_null']} above their"
        f" null); the SAE's lead is {lead.mean():.3f} ({low:.3f} to {high:.3f}).\n"
    )
    families = dict.fromkeys(row["family"] for row in concepts)
    means = [
        [family, *(f"{np.mean([r[f'{n}_auroc'] for r in concepts if r['family'] == family]):.2f}" for n in names)]
        for family in families
    ]
    yield table(["AUROC by family", "SAE", "neuron", "random weights"], means)
    best = sorted(concepts, key=lambda row: -row["sae_auroc"])[:10]
    yield table(
        ["highest", "SAE", "neuron", "random weights"],
        [[row["concept"], *(f"{row[f'{name}_auroc']:.2f}" for name in names)] for row in best],
    )


def name_tables(folder: Path) -> Iterable[str]:
    """Names: beside controls, by source, by family."""
    summary = read_json(folder / "validation" / "summary.json")
    confirmed = [row for row in read_json_lines(folder / "validation" / "names.jsonl") if row["passed"]]
    bearers = len({(row["hook"], row["feature"]) for row in confirmed if row["source"] != "truth"})
    every = {"sae": summary["overall"], **summary["controls"]}
    rows = [
        [
            DICTIONARIES[kind],
            f"{one['names']}" + (f", of {bearers} features" if kind == "sae" else ""),
            percent(one["precision"]) + between(one["ci"]),
            percent(one["recall"]),
        ]
        for kind, one in every.items()
    ]
    known = summary["overall"]["concepts"]
    yield table(["", "confirmed names", "right", f"concepts named right, of {known}"], rows)
    yield f"A feature is right for {percent(summary['overall']['found'])} of the concepts; {summary['buckets']}\n"
    rows = []
    for source, one in summary["sources"].items():
        judges = ", ".join(f"{judge} {count:,}" for judge, count in one.get("scored", {}).items())
        bounds = f" ({number(one['ci'][0])} to {number(one['ci'][1])})" if one["ci"] else ""
        mark = one.get("by_truth")
        right = "marks itself"
        if mark is not None:
            right = f"{percent(mark['precision'])}{between(mark['ci'])}, {percent(mark['recall'])}"
        figures = (number(one["detection"]) + bounds, number(one["null"]), number(one.get("near")), f"{one['passed']}")
        rows.append([source, f"{one['named']:,}", judges, *figures, right])
    heads = ["source", "named", "judged by", "detection (95 %)", "other names", "near misses", "confirmed"]
    yield table([*heads, "right by truth; concepts named right"], rows)
    rows = [
        [
            family,
            *(f"{one[name]}" for name in ("named_right", "misnamed", "not_found", "names")),
            percent(one["precision"]) + between(one["ci"]),
        ]
        for family, one in summary["families"].items()
    ]
    yield table(["family", "named right", "misnamed", "not found", "confirmed names", "right"], rows)


def concept_tables(path: Path) -> Iterable[str]:
    """The benchmark of known concepts, by dictionary and by family, and why the rest is not found."""
    record = read_json(path)
    rows = []
    for kind in KINDS:
        one = record["summary"][kind]
        found = percent(one["coverage"], 1) + between(one["interval"], 1)
        figures = (number(one["auroc"], 3), number(one["f1"]), percent(one["beyond_luck"]), number(one["mcc"]))
        parts = (number(one["concepts_per_feature"]), percent(one["split"]), percent(one["absorbed"], 1))
        rows.append([DICTIONARIES[kind], found, *figures, *parts])
    heads = ["found (95 %)", "mean AUROC", "F1", "q < 0.05", "MCC", "concepts a feature", "split", "absorbed"]
    yield table(["", *heads], rows)
    families = record["summary"]["sae"]["families"]
    yield table(
        ["found, by family", *(DICTIONARIES[kind] for kind in KINDS)],
        [[family, *(percent(record["summary"][kind]["families"][family]) for kind in KINDS)] for family in families],
    )
    for reason, names in record["not_found"].items():
        yield f"{reason}: {len(names)} ({', '.join(names)})"
    yield ""


def steering_tables(columns: Mapping[str, Path]) -> Iterable[str]:
    """What steering does, a column for each run folder, and the first one's arms at its own strengths."""
    paths = {name: folder / "steering" / "summary.json" for name, folder in columns.items()}
    summaries = {name: read_json(path) for name, path in paths.items() if path.exists()}
    if not summaries:
        yield "no name was confirmed, so nothing was steered"
        return

    def row(what: str, tell: Any) -> list[str]:
        return [what, *(tell(summary) for summary in summaries.values())]

    def arm(summary: Mapping[str, Any], name: str, key: str) -> str:
        value = summary["arms"].get(name, {}).get(key)
        return number(None if value is None else float(np.mean(value)), 1)

    yield table(
        ["", *summaries],
        [
            row("features that steer, q < 0.01", lambda s: percent(s["steered"])),
            row(
                "gain over unsteered, over random",
                lambda s: ", ".join(f"{s['against'][one]['effect']:.2f}" for one in ("unsteered", "random")),
            ),
            row(
                "monotone up to its own strength; over all",
                lambda s: f"{percent(s['monotone_to_strength'])}; {percent(s['monotone'])}",
            ),
            row("gain that costs at most 0.05 of adherence, or 1 nat", lambda s: number(s["gain_at_fixed_adherence"])),
            row(
                "KL, nats (random direction as long)",
                lambda s: f"{arm(s, 'sae', 'kl')} ({arm(s, 'random', 'kl')})",
            ),
            row(
                "KAD",
                lambda s: f"{arm(s, 'sae', 'kernel')} (unsteered {arm(s, 'unsteered', 'kernel')})",
            ),
            row(
                "other named features moved farther than along random directions",
                lambda s: percent(s["side_effects"], 1),
            ),
            row(
                "clips that break (random direction)",
                lambda s: f"{percent(s['collapsed'])} ({percent(s['arms']['random']['collapsed'])})",
            ),
        ],
    )
    first = next(iter(summaries.values()))
    rows = []
    for name, one in first["against"].items():
        mine = first["arms"][name]
        low, high = one["ci"]
        moved = ["", "", ""]
        if name != "unsteered":
            moved = [f"{mine['gain']:+.2f}", arm(first, name, "kl"), number(mine["adherence"] and -mine["adherence"])]
        won, lost = percent(one["share_won"]), percent(one["share_lost"])
        gain = f"{one['effect']:+.2f} ({low:+.2f} to {high:+.2f})"
        rows.append([WORDS[name], won, lost, gain, *moved, percent(mine["collapsed"])])
    heads = ["against", "won", "lost", "gain over it (95 % over features)", "its own gain", "KL, nats"]
    yield table([*heads, "adherence lost", "broken"], rows)
    for which in (True, False):
        names = [one["name"] for one in first["features"] if one["steered"] is which]
        yield f"{'steer' if which else 'do not'}: {len(names)} ({', '.join(names)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--concepts", type=Path, help="the file of `musae bench concepts --json`")
    parser.add_argument("--rows", type=Path, help="a copy of the run, steered with `--how add`")
    flags = parser.parse_args()
    parts = {
        "The run": run_tables(flags.run),
        "Names": name_tables(flags.run),
        "Concepts": concept_tables(flags.concepts) if flags.concepts else (),
        "Steering": steering_tables({"contrasts": flags.run, **({"decoder rows": flags.rows} if flags.rows else {})}),
    }
    try:
        for title, lines in parts.items():
            print(f"## {title}\n")
            print("\n".join(lines))
    except MusaeError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
