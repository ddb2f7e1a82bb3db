"""A picture of a table of scores: a row for each concept, a column for each dictionary, the darker the better."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from musae_jax.explorer.pictures import palette
from musae_jax.files import atomic_path

SCALE = 2  # drawn twice as large, for screens with fine pixels
ROW, COLUMN, NAMES, HEAD, GAP, EDGE = 17, 70, 176, 58, 20, 14  # pixels before scaling
PAPER, INK, GREY = (250, 248, 244), (20, 22, 46), (108, 112, 122)
LOW, HIGH = 0.5, 1.0  # scores that are paper and ink


def draw_heat_map(
    title: str,
    rows: Sequence[tuple[str, str]],
    columns: Mapping[str, np.ndarray],
    mark: float,
    blocks: int = 2,
) -> Image.Image:
    """The picture of scores `columns[name]` [R] for `rows` of (group, name), laid out in `blocks` side by side.

    Scores from 0.5 to 1 go from paper to ink; those of at least `mark` have a dot; NaN leaves its cell empty. A group's
    rows stay together.
    """
    parts = _parts([group for group, _ in rows], blocks)
    width = NAMES + COLUMN * len(columns)
    height = HEAD + max(_height([rows[i][0] for i in part]) for part in parts) + EDGE
    size = (len(parts) * (width + GAP) - GAP + 2 * EDGE, height + EDGE)
    picture = Image.new("RGB", tuple(SCALE * s for s in size), PAPER)
    draw = ImageDraw.Draw(picture)
    colours = np.frombuffer(palette(), np.uint8).reshape(-1, 3)

    def write(x: float, y: float, words: str, points: int, colour=INK, anchor: str = "la") -> None:
        draw.text((x * SCALE, y * SCALE), words, colour, ImageFont.load_default(points * SCALE), anchor)

    write(EDGE, EDGE - 2, title, 14)
    for block, part in enumerate(parts):
        left, y, group = EDGE + block * (width + GAP), HEAD, None
        for number, name in enumerate(columns):
            write(left + NAMES + (number + 0.5) * COLUMN, HEAD - 4, name.replace("_", " "), 9, GREY, "ms")
        for i in part:
            if group not in (None, rows[i][0]):
                y += ROW // 2
            group = rows[i][0]
            write(left + NAMES - 8, y + ROW / 2, rows[i][1], 11, INK, "rm")
            for number, scores in enumerate(columns.values()):
                _cell(draw, write, colours, left + NAMES + number * COLUMN, y, float(scores[i]), mark)
            y += ROW
    return picture


def _cell(draw: ImageDraw.ImageDraw, write, colours: np.ndarray, x: int, y: int, score: float, mark: float) -> None:
    if np.isnan(score):
        return
    shade = float(np.clip((score - LOW) / (HIGH - LOW), 0, 1))
    box = (x * SCALE, y * SCALE, (x + COLUMN - 2) * SCALE, (y + ROW - 2) * SCALE)
    draw.rectangle(box, tuple(int(c) for c in colours[round(255 * shade)]))
    ink = PAPER if shade > 0.55 else INK
    write(x + COLUMN / 2 - 1, y + ROW / 2 - 1, f"{score:.2f}", 9, ink, "mm")
    if score >= mark:
        middle, radius = ((x + COLUMN - 12) * SCALE, (y + ROW / 2 - 1) * SCALE), 2 * SCALE
        draw.circle(middle, radius, ink)


def _parts(groups: Sequence[str], blocks: int) -> list[list[int]]:
    """Row numbers of each block: whole groups in their order, blocks about equally high."""
    order = list(dict.fromkeys(groups))
    members = {group: [i for i, g in enumerate(groups) if g == group] for group in order}
    wanted = _height(groups) / blocks
    parts: list[list[int]] = [[]]
    for group in order:
        so_far = _height([groups[i] for i in parts[-1]])
        if parts[-1] and len(parts) < blocks and so_far + _height([group] * len(members[group])) / 2 > wanted:
            parts.append([])
        parts[-1] += members[group]
    return parts


def _height(groups: Sequence[str]) -> int:
    return ROW * len(groups) + ROW // 2 * max(0, len(set(groups)) - 1)


def write_heat_map(path: str | Path, picture: Image.Image) -> None:
    """Writes the picture as a PNG."""
    with atomic_path(path) as temporary:
        picture.save(temporary, "PNG", optimize=True)
