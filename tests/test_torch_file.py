"""Saved files with more than one dict in them, and shapes without numbers."""

import pickle
import struct
import zipfile

import numpy as np
import pytest

from musae_jax.errors import MusaeError
from musae_jax.torch_file import read_torch_file, read_torch_values

torch = pytest.importorskip("torch")


def test_dicts_within_dicts_and_text(tmp_path):
    layer = torch.nn.Linear(3, 2)
    torch.save({"best_state": layer.state_dict(), "xp.cfg": "a: 1", "exported": True, "n": None}, tmp_path / "a.bin")
    values = read_torch_values(tmp_path / "a.bin")
    assert values["xp.cfg"] == "a: 1" and values["exported"] is True and values["n"] is None
    np.testing.assert_array_equal(values["best_state"]["weight"], layer.weight.detach().numpy())
    with pytest.raises(MusaeError, match="more than a dict of tensors"):
        read_torch_file(tmp_path / "a.bin")
    torch.save([torch.zeros(2)], tmp_path / "b.bin")
    with pytest.raises(MusaeError, match="more than a dict of tensors"):
        read_torch_values(tmp_path / "b.bin")


def test_shapes_alone(tmp_path):
    torch.save({"a": torch.zeros(3, 4).half(), "b": torch.nn.Parameter(torch.ones(2, 5).T)}, tmp_path / "a.bin")
    shapes = read_torch_file(tmp_path / "a.bin", shapes_only=True)
    assert {name: (part.shape, str(part.dtype)) for name, part in shapes.items()} == {
        "a": ((3, 4), "float16"),
        "b": ((5, 2), "float32"),
    }


def nested() -> bytes:
    """Leaves a tuple of 2^40 leaves on the stack, made of 40 that hold their predecessor twice."""
    return b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(40))


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def tensor(*storage: bytes, offset: bytes = b"K\x00", shape: bytes = b")") -> bytes:
    parts = (b"(", *storage, text("cpu"), b"K\x01tQ")
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + b"".join(parts) + offset + shape + b")tR."


FLOATS = b"ctorch\nFloatStorage\n"


@pytest.mark.parametrize(
    "program",
    [
        # Where text or hash of a value would be asked for, one that takes for ever.
        b"\x80\x02" + nested() + b")R.",
        tensor(nested(), FLOATS, text("0")),
        tensor(text("storage"), nested(), text("0")),
        tensor(text("storage"), FLOATS, nested()),
        tensor(text("storage"), FLOATS, text("0"), offset=nested()),
        tensor(text("storage"), FLOATS, text("0"), shape=nested()),
        b"\x80\x02ccollections\nOrderedDict\n" + nested() + b"R.",
        b"\x80\x02}" + nested() + b"K\x01s.",
        b"\x80\x02" + b"N" * 300_000 + b"(t" * 100_000 + b".",  # marks upon a high stack
        b"\x80\x02(000t.",  # a mark above the stack
        b"\x80\x02}(K\x01K\x02u.",  # a dict by numbers
        b"\x80\x02})" + b"\x85" * 200_000 + b"K\x01s.",  # one by a very deep tuple
        b"\x80\x02X\x05\x00\x00\x00a\nb\nc)R.",  # a call of a name with line breaks
        b"\x80\x02" + pickle.dumps({"a": print}, protocol=2)[2:],
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
        b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ\x8a\x0a" + b"\xff" * 9 + b"\x00K\x00\x85K\x01\x85tR.",
    ],
)
@pytest.mark.parametrize("shapes_only", [False, True])
def test_odd_programs_are_one_sentence(tmp_path, program, shapes_only):
    with zipfile.ZipFile(tmp_path / "a.bin", "w") as archive:
        archive.writestr("a/data.pkl", program)
        archive.writestr("a/data/0", bytes(16))
    with pytest.raises(MusaeError) as error:
        read_torch_values(tmp_path / "a.bin", shapes_only)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_tensors_may_share_their_numbers_but_not_without_end(tmp_path):
    one = torch.arange(1000.0)
    torch.save({f"{i}": one[i:] for i in range(3)}, tmp_path / "a.bin")
    np.testing.assert_array_equal(read_torch_file(tmp_path / "a.bin")["2"], np.arange(2.0, 1000.0))
    torch.save({f"{i}": one[i:] for i in range(200)}, tmp_path / "a.bin")
    with pytest.raises(MusaeError, match="share their numbers beyond all measure"):
        read_torch_file(tmp_path / "a.bin")


def test_a_length_that_the_directory_makes_up(tmp_path):
    torch.save({"a": torch.zeros(4)}, tmp_path / "a.bin")
    data = (tmp_path / "a.bin").read_bytes()
    at = data.rindex(b"a/data/0") - 46
    longer = (2**31).to_bytes(4, "little")
    for sizes in (longer * 2, data[at + 20 : at + 24] + longer):  # both; or only what is said to come of it
        (tmp_path / "a.bin").write_bytes(data[: at + 20] + sizes + data[at + 28 :])
        with pytest.raises(MusaeError, match="not a whole file"):
            read_torch_file(tmp_path / "a.bin")
