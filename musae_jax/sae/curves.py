"""The training-curve picture: what the rows of train.jsonl say over optimiser steps, one panel a quantity."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from musae_jax.files import atomic_path, read_json, read_json_lines

PICTURE, LOG, METRICS = "train.png", "train.jsonl", "metrics.json"

# The paper and ink of the log-mel pictures.
PAPER, INK, GREY, GRID = (250, 248, 244), (20, 22, 46), (108, 112, 122), (226, 226, 224)
BLUE, RED = (38, 84, 150), (176, 58, 46)
WIDTH, PANEL = 640, 262  # pixels of a panel before scaling
LEFT, RIGHT, TOP, BOTTOM = 74, 26, 40, 58
SCALE = 2  # drawn twice as large, for screens with fine pixels


class Panel(NamedTuple):
    """name: of the row's field.  title, unit: what is written above.  log: a logarithmic axis.  floor: the least value
    that the axis must reach down to (None: wherever the data are).  held_out: of the metric drawn as a dashed line."""

    name: str
    title: str
    unit: str
    log: bool = False
    floor: float | None = 0.0
    held_out: str | None = None


PANELS = (
    Panel("fvu", "Fraction of variance unexplained", "log scale", log=True, floor=None, held_out="fvu"),
    Panel("l0", "Active features (L0)", "per token", held_out="l0"),
    Panel("dead", "Dead features", "% of all"),
    Panel("lr", "Learning rate", "of Adam"),
)


def draw_training(rows: Sequence[dict[str, Any]], title: str, metrics: dict[str, Any] | None = None) -> Image.Image:
    """The picture of a training, `rows` being those of train.jsonl and `metrics` what metrics.json holds, if anything.

    Four panels over steps: FVU, L0, dead share, learning rate. Dashed red lines are the held-out values.
    """
    head, foot = 58, 8
    picture = Image.new("RGB", (2 * WIDTH * SCALE, (head + 2 * PANEL + foot) * SCALE), PAPER)
    draw = ImageDraw.Draw(picture)
    pen = _Pen(draw)
    tokens = rows[-1]["tokens"] if rows else 0
    about = f"{rows[-1]['step']:,} steps, {_short(tokens)} tokens" if rows else "no steps yet"
    if rows and rows[-1].get("skipped"):
        about += f", {rows[-1]['skipped']:,} skipped"
    pen.text(LEFT, 14, title, 19)
    pen.text(2 * WIDTH - RIGHT, 17, about, 14, GREY, "ra")
    for number, panel in enumerate(PANELS):
        x, y = number % 2 * WIDTH, head + number // 2 * PANEL
        held = None if metrics is None or panel.held_out is None else metrics.get(panel.held_out)
        _draw_panel(pen, panel, rows, x, y, held if metrics and metrics.get("held_out") else None)
    return picture


def write_training_picture(folder: str | Path) -> Path | None:
    """Writes train.png beside the train.jsonl (and metrics.json) of an SAE's folder; None where there is no log."""
    folder = Path(folder)
    rows = read_json_lines(folder / LOG) if (folder / LOG).exists() else []
    if not rows:
        return None
    metrics = read_json(folder / METRICS) if (folder / METRICS).exists() else None
    picture = draw_training(rows, folder.name, metrics)
    with atomic_path(folder / PICTURE) as temporary:
        picture.save(temporary, "PNG", optimize=True)
    return folder / PICTURE


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from low to high: steps of 1, 2 or 5 times a power of ten, at most `most` of them."""
    if not high > low:
        return [low]
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(step * factor for factor in (1, 2, 5, 10, 20) if (high - low) / (step * factor) <= most - 1)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers from low to high on a logarithmic axis: powers of ten, or 1, 2, 5 or 1, 1.5, … times them."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.1, 1.2, 1.3, 1.5, 1.7, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)):
        marks = [v for n in powers for f in factors if low * 0.999 <= (v := f * 10.0**n) <= high * 1.001]
        if len(marks) >= 3:
            break
    return marks


class _Pen:
    """Lines and words in unscaled pixels."""

    def __init__(self, draw: ImageDraw.ImageDraw):
        self.draw = draw

    def text(self, x: float, y: float, words: str, size: int, colour=INK, anchor: str = "la") -> None:
        font = ImageFont.load_default(size * SCALE)
        self.draw.text((x * SCALE, y * SCALE), words, colour, font, anchor)

    def line(self, points: Sequence[tuple[float, float]], colour=INK, width: float = 1.0) -> None:
        scaled = [(x * SCALE, y * SCALE) for x, y in points]
        self.draw.line(scaled, colour, round(width * SCALE), joint="curve")

    def dashes(self, x0: float, x1: float, y: float, colour) -> None:
        x = x0
        while x < x1:
            self.line([(x, y), (min(x + 7, x1), y)], colour, 1.5)
            x += 12


def _draw_panel(pen: _Pen, panel: Panel, rows: Sequence[dict[str, Any]], x: int, y: int, held: float | None) -> None:
    percent = 100.0 if panel.unit.startswith("%") else 1.0
    points = [(row["step"], row[panel.name] * percent) for row in rows if row.get(panel.name) is not None]
    if panel.log:
        points = [(step, value) for step, value in points if value > 0]
        held = held if held is not None and held > 0 else None
    x0, x1, y0, y1 = x + LEFT, x + WIDTH - RIGHT, y + TOP, y + PANEL - BOTTOM
    pen.text(x0, y + 8, panel.title, 15)
    pen.text(x1, y + 9, panel.unit, 13, GREY, "ra")
    last = max((row["step"] for row in rows), default=1)
    values = [value for _, value in points] + ([held] if held is not None else [])
    low, high, marks = _range(panel, values)
    warp = math.log10 if panel.log else float

    def across(step: float) -> float:
        return x0 + (x1 - x0) * step / last

    def up(value: float) -> float:
        return y1 - (y1 - y0) * (warp(value) - warp(low)) / (warp(high) - warp(low))

    for mark in marks:
        pen.line([(x0, up(mark)), (x1, up(mark))], GRID)
        pen.text(x0 - 8, up(mark), _short(mark), 13, GREY, "rm")
    for mark in ticks(0, last):
        pen.line([(across(mark), y1), (across(mark), y1 + 4)], INK)
        pen.text(across(mark), y1 + 7, _short(mark), 13, GREY, "ma")
    pen.line([(x0, y1), (x1, y1)], INK)
    pen.text(x1, y1 + 24, "optimiser steps", 13, GREY, "ra")
    if not points:
        pen.text((x0 + x1) / 2, (y0 + y1) / 2, "nothing was logged", 14, GREY, "mm")
        return
    if held is not None:
        pen.dashes(x0, x1, up(held), RED)
    path = [(across(step), up(value)) for step, value in points]
    pen.line(path if len(path) > 1 else [path[0], (path[0][0] + 1, path[0][1])], BLUE, 2.0)
    said = f"last {_short(points[-1][1], 3)}"
    pen.text(x0, y1 + 24, said, 13, BLUE)
    if held is not None:
        pen.text(x0 + 12 + pen.draw.textlength(said, ImageFont.load_default(13 * SCALE)) / SCALE, y1 + 24,
                 f"held out {_short(held, 3)}", 13, RED)  # fmt: skip


def _range(panel: Panel, values: Sequence[float]) -> tuple[float, float, list[float]]:
    """(bottom, top, marks) of a panel's axis, never of no height."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if panel.log:
        low, high = (low, high) if values else (0.1, 1.0)
        low, high = low / 1.1, high * 1.1
        return low, high, log_ticks(low, high)
    low = panel.floor if panel.floor is not None else low
    high = high * 1.08 if high > low else low + 1.0
    return low, high, ticks(low, high, 6)


def _short(value: float, digits: int = 2) -> str:
    """3e-4, 0.25, 12k, 3.1M: as few characters as say it."""
    size = abs(value)
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            return f"{value / limit * (10 if letter == 'k' else 1):.3g}{letter}"
    if size >= 1000 or size == 0:
        return f"{value:,.0f}"
    if size < 0.01:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.{digits}g}" if size < 100 else f"{value:.0f}"
