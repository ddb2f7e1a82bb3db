"""The training-curve picture: axes with round marks, and curves where the numbers are."""

import json

import numpy as np
import pytest
from PIL import Image

from musae_jax.sae.curves import BLUE, RED, draw_training, log_ticks, ticks, write_training_picture


def rows(count: int = 20) -> list[dict]:
    return [
        {"step": 10 * n, "tokens": 640 * n, "fvu": 1 / n, "l0": 8.0, "dead": 0.0, "lr": 1e-3, "skipped": 0}
        for n in range(1, count + 1)
    ]


def where(picture: Image.Image, colour) -> np.ndarray:
    """(y, x) of the pixels of a colour."""
    return np.argwhere((np.asarray(picture) == colour).all(-1))


def test_marks_are_round_and_inside():
    assert ticks(0, 1500) == [0, 500, 1000, 1500]
    assert ticks(0, 0.93) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    assert ticks(3, 3) == [3]
    assert log_ticks(0.1, 0.7) == pytest.approx([0.1, 0.2, 0.5])
    assert log_ticks(1e-4, 1.0) == pytest.approx([1e-4, 1e-3, 1e-2, 0.1, 1])
    for low, high in ((0.12, 0.65), (0.011, 0.013), (3e-7, 0.9)):
        marks = log_ticks(low, high)
        assert len(marks) >= 2 and low * 0.99 <= marks[0] and marks[-1] <= high * 1.01


def test_curves_fall_where_the_numbers_fall():
    picture = draw_training(rows(), "an SAE")
    height, width = picture.height, picture.width
    blue = where(picture, BLUE)
    fvu = blue[(blue[:, 1] < width // 2) & (blue[:, 0] < height * 0.42)]
    left, right = fvu[fvu[:, 1] == fvu[:, 1].min()], fvu[fvu[:, 1] == fvu[:, 1].max()]
    assert right[:, 0].min() > left[:, 0].max() + 100  # y grows downwards
    l0 = blue[(blue[:, 1] > width // 2) & (blue[:, 0] < height * 0.42)]
    assert np.ptp(l0[:, 0]) < 10  # a constant is a level line
    assert not len(where(picture, RED))


def test_the_held_out_value_is_drawn_only_if_it_was_held_out():
    metrics = {"fvu": 0.3, "l0": 7.0}
    assert len(where(draw_training(rows(), "", {**metrics, "held_out": True}), RED)) > 100
    assert not len(where(draw_training(rows(), "", {**metrics, "held_out": False}), RED))


@pytest.mark.parametrize("logged", [rows(1), [{**rows(1)[0], "fvu": None, "dead": None}], []])
def test_short_and_broken_logs_are_drawn_too(logged):
    assert draw_training(logged, "an SAE").size[0] > 1000


def test_the_picture_is_written_beside_the_log_and_always_the_same(tmp_path):
    assert write_training_picture(tmp_path) is None
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    path = write_training_picture(tmp_path)
    first = path.read_bytes()
    assert path.name == "train.png" and first.startswith(b"\x89PNG")
    write_training_picture(tmp_path)
    assert path.read_bytes() == first
