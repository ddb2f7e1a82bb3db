"""What TensorBoard and Weights & Biases are given: every row of train.jsonl, once, whatever was killed."""

import contextlib
import json
import sys
import types
from pathlib import Path

import pytest

from musae_jax.errors import MusaeError
from musae_jax.sae.mirror import mirror_logs

ROWS = [
    {"step": 10, "tokens": 640, "fvu": 0.5, "l0": 8.0, "lr": 1e-3, "loss": 0.6, "dead": 0.0, "skipped": 0},
    {"step": 20, "tokens": 1280, "fvu": 0.25, "l0": 8.1, "lr": 1e-3, "loss": None, "dead": 0.5, "skipped": 1},
]


def append(folder: Path, row: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "train.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")


class FakeWandb(types.ModuleType):
    """As much of wandb 0.31 as is used; `step` is where a resumed run stands."""

    def __init__(self, step: int = 0):
        super().__init__("wandb")
        self.step, self.asked, self.logged, self.finished = step, [], [], 0

    def init(self, **asked):
        assert Path(asked["dir"]).is_dir()
        self.asked.append(asked)
        return self

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.finished += 1


def test_rows_are_passed_on_as_they_are_written(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    folder, calls = tmp_path / "hook" / "sae", []
    with mirror_logs(["wandb"], [folder], {"k": 8}, lambda *call: calls.append(call)) as progress:
        append(folder, ROWS[0])
        assert fake.logged == []
        progress(10, 20, "steps")
        assert [step for step, _ in fake.logged] == [10]
        append(folder, ROWS[1])
        progress(1, 5, "clips")
        assert len(fake.logged) == 1
    assert [step for step, _ in fake.logged] == [10, 20]  # the last rows too, and none twice
    assert calls == [(10, 20, "steps"), (1, 5, "clips")]
    assert fake.logged[0][1]["metrics/explained_variance"] == 0.5
    assert fake.logged[0][1]["metrics/l0"] == 8.0 and fake.logged[0][1]["train/skipped"] == 0
    assert fake.logged[1][1].keys() == fake.logged[0][1].keys() - {"losses/overall_loss"}
    assert fake.asked[0]["name"] == "hook/sae" and fake.asked[0]["config"] == {"k": 8}
    assert fake.finished == 1


def test_a_resumed_run_is_not_told_what_it_knows(tmp_path, monkeypatch):
    for row in ROWS:
        append(tmp_path / "sae", row)
    fake = FakeWandb(step=11)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with mirror_logs(["wandb"], [tmp_path / "sae"]):
        pass
    assert [step for step, _ in fake.logged] == [20]
    again = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", again)
    with mirror_logs(["wandb"], [tmp_path / "sae"]):
        pass
    assert again.asked[0]["id"] == fake.asked[0]["id"] and again.asked[0]["resume"] == "allow"


def test_an_error_in_training_still_closes_the_run(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with contextlib.suppress(KeyError), mirror_logs(["wandb"], [tmp_path / "sae"]):
        raise KeyError
    assert fake.finished == 1


def test_a_missing_or_unknown_viewer_is_one_sentence(tmp_path, monkeypatch):
    for viewer, package in (("tensorboard", "tensorboardX"), ("wandb", "wandb")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MusaeError, match=f"pip install {package}"), mirror_logs([viewer], [tmp_path]):
            pass
    with pytest.raises(MusaeError, match="'mlflow', but it must be tensorboard or wandb"), mirror_logs(["mlflow"], []):
        pass


def test_nothing_asked_nothing_imported(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with mirror_logs([], [tmp_path], progress=print) as progress:
        assert progress is print


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_holds_the_log_even_after_a_kill(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto import event_pb2

    folder = tmp_path / "sae"
    append(folder, ROWS[0])
    for _ in range(2):  # the second process finds the events of the first
        with mirror_logs(["tensorboard"], [folder]):
            pass
    append(folder, ROWS[1])
    with mirror_logs(["tensorboard"], [folder]):
        pass
    (file,) = (folder / "tensorboard").glob("events.out.tfevents.*")
    data, points = file.read_bytes(), []
    while data:  # a record: its length in 8 bytes, their checksum in 4, the event, its checksum in 4
        length = int.from_bytes(data[:8], "little")
        event = event_pb2.Event.FromString(data[12 : 12 + length])
        points += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        data = data[16 + length :]
    fvu = [(step, value) for step, tag, value in points if tag == "metrics/fvu"]
    assert fvu == [(10, 0.5), (20, 0.25)]
    assert (10, "losses/overall_loss", pytest.approx(0.6)) in points


@pytest.mark.filterwarnings("ignore")
def test_wandb_itself_takes_it_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for row in ROWS:
        append(tmp_path / "sae", row)
    with mirror_logs(["wandb"], [tmp_path / "sae"], {"k": 8}):
        pass
    assert wandb.run is None
    wandb.teardown()  # its service writes the file when it likes
    (file,) = (tmp_path / "sae").rglob("run-*.wandb")
    data = file.read_bytes()
    assert b"metrics/explained_variance" in data and b"train/skipped" in data
