"""Push and pull against a hub on this machine that speaks the real wire."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from fake_hub import TOKEN, FakeHub, oid
from huggingface_hub import constants
from safetensors.numpy import save_file
from test_formats import F, random_sae
from test_sparsify import write as write_sparsify

from musae_jax import cli
from musae_jax.errors import MusaeError
from musae_jax.sae.card import model_card
from musae_jax.sae.formats import load_sae, save_sae
from musae_jax.sae.hub import pull_sae, push_sae
from musae_jax.sae.sae import sae_encode
from musae_jax.steering.requests import find_sae

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's own upload
REPO, PLACE = "org/saes", "blocks.3.resid_post/one"
METRICS = {
    "fvu": 0.25, "l0": 31.5, "dead_share": 0.125, "tokens": 1000, "clips": 10, "held_out": True, "l2_ratio": 0.9,
    "saebench": {"mse": 0.5, "cossim": 0.8, "l1": 3.0},
}  # fmt: skip


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with FakeHub().running() as fake:
        monkeypatch.setattr(constants, "ENDPOINT", fake.url)
        template = fake.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield fake


@pytest.fixture
def folder(tmp_path):
    """An SAE's folder with its measures, beside that of its control."""
    sae = random_sae()
    sae = sae.replace(maximum=np.ones(F, np.float32), contrast=2 * sae.params["W_dec"])
    metadata = {**sae.config.metadata, "trained_as": "batch_topk", "training": {"lr": 3e-4}, "context_size": 501}
    sae = sae.replace(config=type(sae.config)(sae.config.d_in, F, "jumprelu", 4, metadata=metadata))
    for name, share in (("one", 1.0), ("one-random-weights", 2.0)):
        save_sae(tmp_path / "sae" / "hook" / name, sae)
        metrics = {**METRICS, "fvu": METRICS["fvu"] * share}
        (tmp_path / "sae" / "hook" / name / "metrics.json").write_text(json.dumps(metrics))
    return tmp_path / "sae" / "hook" / "one"


def same(one, two) -> None:
    assert one.config == two.config and one.config.metadata == two.config.metadata
    assert one.params.keys() == two.params.keys()
    for name, value in one.params.items():
        np.testing.assert_array_equal(two.params[name], value)


def test_what_is_pushed_is_pulled(hub, folder):
    address = push_sae(folder, REPO, PLACE)
    assert address == f"{hub.url}/{REPO}/commit/{oid(REPO, 1)}"
    assert len(hub.repos[REPO]) == 2  # one commit
    files = hub.files(REPO)
    assert {name for name in files if not name.startswith(PLACE)} == {".gitattributes", "README.md"}
    for name in ("cfg.json", "sae_weights.safetensors", "golden.safetensors", "metrics.json"):
        assert files[f"{PLACE}/{name}"] == (folder / name).read_bytes()
    assert "org/saes" in files["README.md"].decode()
    same(load_sae(folder), load_sae(REPO, PLACE))
    np.testing.assert_array_equal(load_sae(REPO, PLACE).maximum, np.ones(F))
    np.testing.assert_array_equal(load_sae(REPO, PLACE).contrast, load_sae(folder).contrast)
    assert load_sae(folder).contrast is not None
    same(load_sae(folder), find_sae(f"{REPO}/{PLACE}"))  # as `musae generate --sae` has it
    # Weights went through LFS, text inside the commit.
    assert sum(method == "PUT" for method, _ in hub.requests) == 4
    # Downloaded once: the second load asked for no file.
    assert sum(method == "GET" and path.endswith("sae_weights.safetensors") for method, path in hub.requests) == 1


def test_an_sae_in_memory_and_no_subfolder(hub):
    sae = random_sae("gated")
    push_sae(sae, REPO)
    same(sae, load_sae(REPO))
    assert pull_sae(REPO).name == oid(REPO, 1)
    assert "load_from_disk(snapshot_download(" in hub.files(REPO)["README.md"].decode()
    with pytest.raises(MusaeError, match="org/saes/elsewhere holds no SAE"):
        pull_sae(REPO, "elsewhere")


def test_a_second_push_leaves_nothing_of_the_first(hub, folder):
    push_sae(folder, REPO, PLACE)
    hub.files(REPO)["config.json"] = b"another's"
    push_sae(random_sae("topk"), REPO, PLACE)
    assert hub.files(REPO)["config.json"] == b"another's"
    names = {name.rpartition("/")[2] for name in hub.files(REPO) if name.startswith(PLACE)}
    assert names == {"cfg.json", "sae_weights.safetensors", "golden.safetensors", "README.md"}
    again = load_sae(REPO, PLACE)
    assert again.config.architecture == "topk" and again.maximum is None and again.contrast is None
    assert load_sae(REPO, PLACE, revision=oid(REPO, 1)).config.architecture == "jumprelu"


def test_a_folder_of_another_library_is_converted(hub, tmp_path):
    write_sparsify(tmp_path / "layers.7")
    push_sae(tmp_path / "layers.7", REPO, "seven")
    assert "seven/sae_weights.safetensors" in hub.files(REPO) and "seven/sae.safetensors" not in hub.files(REPO)
    sae, again = load_sae(tmp_path / "layers.7"), load_sae(REPO, "seven")
    x = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    np.testing.assert_array_equal(sae_encode(sae.config, sae.params, x), sae_encode(again.config, again.params, x))


def test_a_sparsify_folder_is_pulled_as_it_is(hub, tmp_path):
    write_sparsify(tmp_path / "layers.7")
    names = ("cfg.json", "sae.safetensors")
    hub.repos[REPO] = [{f"layers.7/{name}": (tmp_path / "layers.7" / name).read_bytes() for name in names}]
    same(load_sae(tmp_path / "layers.7"), load_sae(REPO, "layers.7"))


def test_the_card_tells_where_how_and_how_well(hub, folder):
    push_sae(folder, REPO, PLACE)
    card = hub.files(REPO)[f"{PLACE}/README.md"].decode()
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["library_name"] == "saelens" and "musicgen" in head["tags"]
    published = random_sae()
    published.config.metadata.update(model_name="facebook/musicgen-small")
    head = yaml.safe_load(model_card(published, REPO).split("---\n")[1])
    assert head["license"] == "cc-by-nc-4.0" and head["base_model"] == "facebook/musicgen-small"
    assert "Not measured." in model_card(published, REPO) and "Not recorded." in model_card(published, REPO)
    assert "output of block 3 counted from 0; layer 4 in the paper" in card
    row = next(line for line in card.splitlines() if line.startswith("| fvu:"))
    assert row.endswith("| 0.25 | 0.5 |")  # beside its control
    assert "1000 tokens of clips that it was not trained on" in card and "501 positions" in card
    assert '"lr": 0.0003' in card and "Trained as batch_topk" in card
    assert f'musae.load_sae("{REPO}", "{PLACE}")' in card
    assert f'SAE.from_pretrained("{REPO}", "{PLACE}")' in card
    assert "license" not in card.partition("\n---\n")[0]


def test_saebench_goes_along(hub, folder):
    push_sae(folder, REPO, PLACE)
    core = json.loads(hub.files(REPO)[f"{PLACE}/saebench_core.json"])
    assert core["eval_result_metrics"]["reconstruction_quality"]["explained_variance"] == 0.75


def test_what_cannot_be_loaded_is_not_pushed(hub, folder):
    (folder / "sae_weights.safetensors").write_bytes(b"no")
    with pytest.raises(MusaeError, match="not a whole safetensors file"):
        push_sae(folder, REPO, PLACE)
    assert not hub.requests


def test_refusals_are_one_sentence_and_commit_nothing(hub, folder, monkeypatch):
    def says(words, call):
        with pytest.raises(MusaeError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)

    says("not a hub id", lambda: push_sae(folder, "saes"))
    says("not a plain path", lambda: push_sae(folder, REPO, "../up"))
    says("org/none could not be fetched", lambda: load_sae("org/none"))
    push_sae(folder, REPO, PLACE)
    says(f"org/saes holds no SAE; the subfolders that do are '{PLACE}'", lambda: load_sae(REPO))
    says("could not be fetched", lambda: load_sae(REPO, PLACE, revision="v2"))
    hub.fail_commits = True
    says("org/other could not be pushed to", lambda: push_sae(folder, "org/other"))
    assert len(hub.repos["org/other"]) == 1  # the empty repository
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    says("could not be pushed to", lambda: push_sae(folder, REPO, PLACE))


def test_a_tampered_download_is_refused(hub, folder):
    push_sae(folder, REPO, PLACE)
    params = {name: np.asarray(value) for name, value in load_sae(folder).params.items()}
    save_file({**params, "W_dec": params["W_dec"] + 1}, folder / "sae_weights.safetensors")
    hub.files(REPO)[f"{PLACE}/sae_weights.safetensors"] = (folder / "sae_weights.safetensors").read_bytes()
    with pytest.raises(MusaeError, match="does not compute what it did"):
        load_sae(REPO, PLACE)


def test_a_run_is_pushed_without_its_controls(hub, folder, tmp_path, capsys):
    assert cli.main(["push", "--run", str(tmp_path), "--repo", REPO]) == 0
    assert capsys.readouterr().out.strip() == f"{hub.url}/{REPO}/commit/{oid(REPO, 1)}"
    assert {name.rpartition("/")[0] for name in hub.files(REPO)} == {"", PLACE}
    assert cli.main(["push", "--sae", str(folder), "--repo", REPO, "--subfolder", "x"]) == 0
    capsys.readouterr()
    for flags in ([], ["--run", "a", "--sae", "b"], ["--run", "a", "--subfolder", "b"], ["--run", str(folder)]):
        assert cli.main(["push", "--repo", REPO, *flags]) == 2


def test_the_command_finds_the_hub_by_its_environment(tmp_path, folder):
    """A fresh process, with the variables that people set."""
    with FakeHub().running() as fake:
        environment = {
            **os.environ,
            "HF_ENDPOINT": fake.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "PYTHONPATH": str(Path(cli.__file__).resolve().parents[1]),
        }
        program = (
            "import sys; from musae_jax.cli import main; from musae_jax import load_sae; code = main(sys.argv[1:]);"
        )
        program += f"print(load_sae({REPO!r}, {PLACE!r}).config.d_sae); sys.exit(code)"
        command = [sys.executable, "-c", program, "push", "--sae", str(folder), "--repo", REPO]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [f"{fake.url}/{REPO}/commit/{oid(REPO, 1)}", str(F)]


@pytest.mark.filterwarnings("ignore")  # torch and its friends warn about themselves
def test_saelens_pulls_what_we_push(hub, folder):
    torch = pytest.importorskip("torch")
    lens = pytest.importorskip("sae_lens")
    push_sae(folder, REPO, PLACE)
    theirs = lens.SAE.from_pretrained(REPO, PLACE, device="cpu")
    x = np.random.default_rng(0).normal(size=(20, 7)).astype(np.float32)
    sae = load_sae(folder)
    with torch.no_grad():
        f = theirs.encode(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(sae_encode(sae.config, sae.params, x), f, rtol=1e-5, atol=1e-5)
