"""Folders of dictionary_learning, whose weights are a pickle that is read but never run."""

import json
import os
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest

from musae_jax.errors import MusaeError
from musae_jax.sae.formats import load_sae
from musae_jax.sae.sae import sae_decode, sae_encode
from musae_jax.torch_file import read_torch_file

torch = pytest.importorskip("torch")

D, F, K = 6, 16, 3
LINEAR = {"encoder.weight": (F, D), "encoder.bias": (F,), "decoder.weight": (D, F)}
PLAIN = {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,)}
SHAPES = {
    "AutoEncoder": {**LINEAR, "bias": (D,)},
    "AutoEncoderNew": {**LINEAR, "decoder.bias": (D,)},
    "GatedAutoEncoder": {
        "encoder.weight": (F, D),
        "decoder.weight": (D, F),
        "decoder_bias": (D,),
        "r_mag": (F,),
        "gate_bias": (F,),
        "mag_bias": (F,),
    },
    "AutoEncoderTopK": {**LINEAR, "b_dec": (D,)},
    "BatchTopKSAE": {**LINEAR, "b_dec": (D,)},
    "MatryoshkaBatchTopKSAE": PLAIN,
    "JumpReluAutoEncoder": {**PLAIN, "threshold": (F,)},
}
WITH_K = ("AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE")


def state(kind: str, seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES[kind].items()}
    if kind in WITH_K:
        tensors.update(k=torch.tensor(K, dtype=torch.int), threshold=torch.tensor(0.8))
    if kind == "MatryoshkaBatchTopKSAE":
        tensors["group_sizes"] = torch.tensor([4, 12])
    if kind == "JumpReluAutoEncoder":
        tensors["threshold"] = tensors["threshold"].abs()
    return tensors


def write(folder, kind: str, tensors: dict, **trainer) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, folder / "ae.pt")
    trainer = {"dict_class": kind, "lm_name": "m", "layer": 4, "submodule_name": "resid_post_layer_4", **trainer}
    (folder / "config.json").write_text(json.dumps({"trainer": {**({"k": K} if kind in WITH_K else {}), **trainer}}))


def tokens(n: int = 50) -> np.ndarray:
    return (2 * np.random.default_rng(1).normal(size=(n, D))).astype(np.float32)


@pytest.fixture(scope="module")
def library():
    """dictionary_learning; it imports nnsight, which wants other versions of all else, for its buffers alone."""
    if "nnsight" not in sys.modules:
        stub = types.ModuleType("nnsight")
        stub.LanguageModel = object
        sys.modules["nnsight"] = stub
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("dictionary_learning.utils", reason="pip install --no-deps dictionary-learning")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", SHAPES)
def test_we_read_what_the_library_reads(library, tmp_path, kind):
    write(tmp_path, kind, state(kind))
    theirs, _ = library.load_dictionary(str(tmp_path), "cpu")
    x = tokens()
    with torch.no_grad():
        f = theirs.encode(torch.from_numpy(x))
        x_hat = theirs.decode(f).numpy()
    sae = load_sae(tmp_path)
    got = np.asarray(sae_encode(sae.config, sae.params, x))
    assert (f > 0).any() and (f == 0).any()
    np.testing.assert_allclose(got, f.numpy(), rtol=1e-5, atol=1e-5)
    ours = np.asarray(sae_decode(sae.config, sae.params, got))
    np.testing.assert_allclose(ours, x_hat, rtol=1e-5, atol=1e-5 * np.abs(x_hat).max())
    assert sae.config.hook == "blocks.4.resid_post"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", SHAPES)
def test_the_names_of_tensors_are_the_librarys(library, kind):
    from dictionary_learning import dictionary

    more = {"AutoEncoderTopK": {"k": K}, "BatchTopKSAE": {"k": K}}
    options = more.get(kind, {"k": K, "group_sizes": [4, 12]} if kind == "MatryoshkaBatchTopKSAE" else {})
    cls = getattr(library, kind, None) or getattr(dictionary, kind)
    fresh = cls(D, F, **options).state_dict()
    assert {name: value.shape for name, value in fresh.items()} == {n: v.shape for n, v in state(kind).items()}


def test_rules_by_a_naive_reading(tmp_path):
    x = tokens()
    t = {name: value.numpy() for name, value in state("AutoEncoderTopK").items()}
    write(tmp_path / "top", "AutoEncoderTopK", state("AutoEncoderTopK"))
    f = np.maximum((x - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"], 0)
    f[f < np.sort(f, axis=1)[:, -K, None]] = 0
    sae = load_sae(tmp_path / "top")
    np.testing.assert_allclose(sae_encode(sae.config, sae.params, x), f, atol=1e-4)

    t = {name: value.numpy() for name, value in state("JumpReluAutoEncoder").items()}
    write(tmp_path / "jump", "JumpReluAutoEncoder", state("JumpReluAutoEncoder"))
    pre = x @ t["W_enc"] + t["b_enc"]  # its input keeps b_dec
    sae = load_sae(tmp_path / "jump")
    f = np.where(pre > t["threshold"], np.maximum(pre, 0), 0)
    np.testing.assert_allclose(sae_encode(sae.config, sae.params, x), f, atol=1e-4)

    write(tmp_path / "batch", "MatryoshkaBatchTopKSAE", state("MatryoshkaBatchTopKSAE"))
    sae = load_sae(tmp_path / "batch")
    assert sae.config.metadata["group_sizes"] == [4, 12] and sae.config.k == K
    np.testing.assert_allclose(sae.params["threshold"], 0.8)


def test_an_autoencoder_gets_unit_decoder_rows(tmp_path):
    t = {name: value.numpy() for name, value in state("AutoEncoder").items()}
    write(tmp_path, "AutoEncoder", state("AutoEncoder"))
    sae = load_sae(tmp_path)
    np.testing.assert_allclose(np.linalg.norm(sae.params["W_dec"], axis=1), 1, atol=1e-6)
    x = tokens()
    f = np.maximum((x - t["bias"]) @ t["encoder.weight"].T + t["encoder.bias"], 0)
    got = sae_encode(sae.config, sae.params, x)
    np.testing.assert_allclose(got, f * np.linalg.norm(t["decoder.weight"], axis=0), rtol=1e-4, atol=1e-4)
    x_hat = f @ t["decoder.weight"].T + t["bias"]
    np.testing.assert_allclose(sae_decode(sae.config, sae.params, got), x_hat, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "tensors", "trainer", "words"),
    [
        ("AutoEncoderTopK", {}, {"dict_class": "IdentityDict"}, "dict_class 'IdentityDict', known are AutoEncoder,"),
        ("AutoEncoderTopK", {}, {"k": 5}, r"ae\.pt has k = 3.*config\.json says 5"),
        ("AutoEncoderTopK", {}, {"k": "3"}, "k = '3'"),
        ("AutoEncoderTopK", {"k": torch.tensor(99)}, {"k": 99}, "k = 99, but 1 to 16"),
        ("AutoEncoderTopK", {"extra": torch.zeros(2)}, {}, "extra is unknown"),
        ("AutoEncoder", {"threshold": torch.zeros(F)}, {}, "threshold is unknown"),
        ("BatchTopKSAE", {"threshold": torch.zeros(F)}, {}, "no single threshold"),
        ("BatchTopKSAE", {"b_dec": torch.full((D,), torch.nan)}, {}, "b_dec holds values that are not finite"),
        ("AutoEncoder", {"encoder.weight": torch.zeros(3)}, {}, "no encoder matrix"),
        ("AutoEncoder", {"decoder.weight": torch.zeros(D, F)}, {}, "norm 0"),
    ],
)
def test_what_is_not_known_is_refused(tmp_path, kind, tensors, trainer, words):
    write(tmp_path, kind, {**state(kind), **tensors}, **trainer)
    with pytest.raises(MusaeError, match=words) as caught:
        load_sae(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_config_without_a_trainer_is_refused(tmp_path):
    write(tmp_path, "AutoEncoder", state("AutoEncoder"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(MusaeError, match="no block `trainer`"):
        load_sae(tmp_path)


# The reader of torch's files.


def test_every_kind_of_tensor_is_read(tmp_path):
    base = torch.arange(24, dtype=torch.float32)
    tensors = {
        **{
            str(d): torch.arange(6).reshape(2, 3).to(d) for d in (torch.float64, torch.float16, torch.int64, torch.bool)
        },
        "bfloat16": torch.linspace(-3, 3, 7).bfloat16(),
        "transposed": base.reshape(4, 6).T,
        "view": base[5:17].reshape(3, 4)[:, 1:3],
        "scalar": torch.tensor(7, dtype=torch.int32),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    torch.save(tensors, tmp_path / "a.pt")
    read = read_torch_file(tmp_path / "a.pt")
    assert read.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(read[name].astype(np.float64), value.detach().double().numpy())
    module = torch.nn.Linear(3, 2)
    torch.save(module.state_dict(), tmp_path / "b.pt")  # an OrderedDict with an attribute
    np.testing.assert_array_equal(read_torch_file(tmp_path / "b.pt")["weight"], module.weight.detach().numpy())


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def repack(path, **entries: bytes) -> None:
    """Replaces entries (named by their last part) of the zip."""
    with zipfile.ZipFile(path) as archive:
        old = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in old.items():
            archive.writestr(name, entries.get(name.rpartition("/")[2].replace(".", "_"), data))


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_code_in_a_pickle_does_not_run(tmp_path, protocol):
    write(tmp_path, "AutoEncoder", state("AutoEncoder"))
    repack(tmp_path / "ae.pt", data_pkl=pickle.dumps({"a": Evil(tmp_path / "run")}, protocol=protocol))
    with pytest.raises(MusaeError, match="a pickle can run code") as caught:
        load_sae(tmp_path)
    assert not (tmp_path / "run").exists()
    assert "\n" not in str(caught.value)
    pickle.loads(pickle.dumps(Evil(tmp_path / "run"), protocol=protocol))
    assert (tmp_path / "run").exists()  # it would have, had it been unpickled


@pytest.mark.parametrize(
    "program",
    [
        b"",
        b"\x80\x02.",
        b"\x80\x02}q\x00",  # no end
        b"\x80\x02X\x05\x00\x00\x00hello.",
        b"\x80\x02}(X\x01\x00\x00\x00aK\x01u.",  # a number for a tensor
        b"\x80\x02u.",
        b"\x80\x02ccollections\nOrderedDict\n(K\x01tR.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x02K\x03K\x04tR.",
        b"\x80\x02h\x05.",
        b"\x80\x02\x95garbage",
    ],
)
def test_odd_pickles_are_refused(tmp_path, program):
    torch.save(state("AutoEncoder"), tmp_path / "a.pt")
    repack(tmp_path / "a.pt", data_pkl=program)
    with pytest.raises(MusaeError):
        read_torch_file(tmp_path / "a.pt")


def test_a_tensor_larger_than_its_data_is_refused(tmp_path):
    torch.save({"a": torch.zeros(4)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        program = archive.read("a/data.pkl")
    for part in (b"K\x04\x85", b"K\x00K\x04\x85"):  # its shape; its offset and shape
        assert part in program
        changed = program.replace(part, part[:-2] + b"\x40\x85" if len(part) == 3 else b"K\x03K\x04\x85")
        repack(tmp_path / "a.pt", data_pkl=changed)
        with pytest.raises(MusaeError, match="larger than its data"):
            read_torch_file(tmp_path / "a.pt")


def test_damaged_and_old_files_are_one_sentence(tmp_path):
    path = tmp_path / "a.pt"
    with pytest.raises(MusaeError, match="is missing"):
        read_torch_file(path)
    torch.save(state("AutoEncoder"), path, _use_new_zipfile_serialization=False)
    with pytest.raises(MusaeError, match=r"not a whole file of torch 1\.6 or later"):
        read_torch_file(path)
    torch.save(state("AutoEncoder"), path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(MusaeError, match="not a whole file"):
        read_torch_file(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/other", b"")
    with pytest.raises(MusaeError, match=r"no data\.pkl"):
        read_torch_file(path)
