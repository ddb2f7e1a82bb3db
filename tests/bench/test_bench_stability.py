"""`musae bench stability` on a run: the same recipe from other weights, beside random directions."""

import json

import pytest

from musae_jax import cli
from musae_jax.config import ComposeConfig, HarvestConfig, RunConfig, TrainConfig
from musae_jax.run import begin_run, run_stage


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_folder):
    config = RunConfig(
        out=tmp_path_factory.mktemp("stability") / "run",
        model=str(tiny_folder),
        compose=ComposeConfig(clips=6, seconds=1.0),
        harvest=HarvestConfig(control=False),
        train=TrainConfig(d_sae=20, k=4, steps=20, batch_size=32),
    )
    run = begin_run(config)
    for stage in ("compose", "harvest"):
        run_stage(run, stage)
    return run


def test_rows_stand_beside_chance_and_a_second_call_trains_nothing(run, tmp_path, capsys):
    command = ["bench", "stability", "--run", str(run.folder), "--seeds", "2", "--json", str(tmp_path / "rows.json")]
    assert cli.main(command) == 0
    rows = {row["name"].rsplit("/", 1)[-1]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    assert rows.keys() == {
        *("cosine", "above_0.7", "above_0.9", "matched_cosine", "matched_above_0.7", "matched_above_0.9"),
    }
    assert all(row["peer_name"] == "random directions" for row in rows.values())
    assert rows["above_0.9"]["ours"] <= rows["above_0.7"]["ours"] and 0 < rows["cosine"]["peer"] < 1
    folder = run.folder / "stability" / "blocks.1.resid_post" / "matryoshka-batchtopk-20-k4"
    assert sorted(path.name for path in folder.iterdir()) == ["seed-0", "seed-1"]
    first, second = ((folder / f"seed-{n}" / "sae_weights.safetensors").read_bytes() for n in (0, 1))
    assert first != second
    written = (folder / "seed-0" / "train.jsonl").stat().st_mtime_ns
    assert cli.main(command) == 0
    assert (folder / "seed-0" / "train.jsonl").stat().st_mtime_ns == written
    assert "random directions" in capsys.readouterr().out


def test_what_is_missing_is_one_sentence(run, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["bench", "stability"])
    assert "--run" in capsys.readouterr().err
    assert cli.main(["bench", "stability", "--run", str(run.folder), "--seeds", "1"]) == 2
    assert "--seeds is 1" in capsys.readouterr().err
