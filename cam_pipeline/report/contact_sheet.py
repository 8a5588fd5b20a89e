"""Contact sheet: one PNG with a row per image and a column per step, from CAM to pseudo-label to prediction.

Maps are drawn over a faded grey copy of the image, so that a colour means a class and nothing else. Tiles
have their final size before anything is coloured: hatching and outlines are as fine on a small image as on a
large one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from cam_pipeline.machine.atomic import written_aside
from cam_pipeline.ops.ignore import IGNORE_INDEX
from cam_pipeline.report.colors import IGNORE_COLOR, LABEL_OPACITY, class_color

COLUMNS = ("image", "CAM", "pseudo-label", "segmenter", "truth")

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

TILE_WIDTH, TILE_HEIGHT = 210, 180
"""An image is scaled into this box, its proportions kept: about eight rows fill a tall screen."""

MIN_ROW_HEIGHT = 36
"""Room for a name and a class beside a panorama."""

GAP, MARGIN = 10, 18
"""Pixels between tiles, and around the sheet."""

NAME_WIDTH = 118
"""Width of the column with the names of the images."""

TITLE_SIZE, TEXT_SIZE, SMALL_SIZE = 17, 13, 11
"""Font sizes in pixels."""

PAPER, INK, PALE_INK = (255, 255, 255), (30, 30, 30), (110, 110, 110)
HATCH_COLOR = (150, 150, 150)

CAM_OPACITY = 0.9
"""Share of the class colour at a CAM of 1."""

DOT = 2.5
"""Radius in pixels of a click or a stroke on a tile."""

FADING = 0.4
"""How much contrast the grey copy of the image keeps; the rest is white."""


@dataclass(frozen=True, eq=False)
class SheetRow:
    """One row of the sheet: an image and its steps; the place of a step that is None stays empty.

    image (H, W, 3) uint8; label maps (H, W) of integers, 0 background, 1..C classes, 255 ignore; cam
    (n, h, w) float on any grid, with the n class ids of its channels, clipped to 0..1 for drawing; `note` says why the
    image is shown. `marks` (H, W) like a label map is what people said, 255 where nothing: drawn on the image. Raises
    ValueError for another shape, dtype or label.
    """

    name: str
    image: Bytes
    cam: NDArray[Any] | None = None
    class_ids: Sequence[int] = ()
    pseudo_label: NDArray[Any] | None = None
    prediction: NDArray[Any] | None = None
    truth: NDArray[Any] | None = None
    note: str = ""
    marks: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        size = self.image.shape[:2]
        if self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.dtype != np.uint8 or 0 in size:
            shape = f"{self.image.shape} {self.image.dtype}"
            raise ValueError(f"{self.name}: image must be (H, W, 3) uint8, not {shape}")
        if not all(0 < index < IGNORE_INDEX for index in self.class_ids):
            raise ValueError(f"{self.name}: class ids must lie in 1..254, not {list(self.class_ids)}")
        if self.cam is not None and (self.cam.ndim != 3 or len(self.cam) != len(self.class_ids)):
            count = len(self.class_ids)
            raise ValueError(f"{self.name}: cam must be ({count}, h, w) as its class ids, not {self.cam.shape}")
        marks = {} if self.marks is None else {"marks": self.marks}
        for step, labels in [*self.label_maps().items(), *marks.items()]:
            if labels.shape != size or not np.issubdtype(labels.dtype, np.integer):
                found = f"{labels.shape} {labels.dtype}"
                raise ValueError(f"{self.name}: {step} must be {size} of integers, not {found}")
            if labels.min() < 0 or labels.max() > IGNORE_INDEX:
                raise ValueError(f"{self.name}: {step} must lie in 0..255")

    def label_maps(self) -> dict[str, NDArray[Any]]:
        """The label maps that exist, under their column titles."""
        maps = {"pseudo-label": self.pseudo_label, "segmenter": self.prediction, "truth": self.truth}
        return {title: labels for title, labels in maps.items() if labels is not None}


def contact_sheet(rows: Sequence[SheetRow], class_names: Sequence[str], path: Path, title: str = "") -> None:
    """Write the sheet of `rows` as a PNG, in one step: to the side, then renamed.

    Columns, each only if some row has it: image, CAM, pseudo-label, segmenter, truth. Below, a legend of the
    classes that appear. `class_names` begins with the background; an id beyond them is called "class <id>".
    Raises ValueError without rows.
    """
    sheet = draw_sheet(rows, class_names, title)
    with written_aside(path) as aside:
        sheet.save(aside, format="PNG")  # optimize=True takes five times as long and saves 4 %


def draw_sheet(rows: Sequence[SheetRow], class_names: Sequence[str], title: str = "") -> Image.Image:
    """The picture that `contact_sheet` writes."""
    if not rows:
        raise ValueError("a contact sheet needs at least one row")
    drawn = [tiles(row) for row in rows]
    columns = _column_places(drawn)
    heights = [max(MIN_ROW_HEIGHT, row_tiles["image"].shape[0]) for row_tiles in drawn]
    title_width = round(text_font(TITLE_SIZE, bold=True).getlength(title)) + MARGIN
    width = MARGIN + max(title_width, *(right for _, right in columns.values()))
    legend = _legend_places(rows, class_names, width)
    titles_top = MARGIN + (TITLE_SIZE + 14 if title else 0)
    y = titles_top + TEXT_SIZE + 10
    legend_top = y + sum(heights) + len(rows) * GAP + 6
    sheet = Image.new("RGB", (width, legend_top + legend[-1][0][1] + TEXT_SIZE + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN - 4), title, INK, text_font(TITLE_SIZE, bold=True))
    for column, (x, _) in columns.items():
        draw.text((x, titles_top), column, INK, text_font(TEXT_SIZE, bold=True))
    for row, row_tiles, height in zip(rows, drawn, heights, strict=True):
        _draw_name(draw, row, class_names, y, height)
        for column, (x, _) in columns.items():
            if column in row_tiles:
                sheet.paste(Image.fromarray(row_tiles[column]), (x, y))
            else:
                draw.text((x, y), "none", PALE_INK, text_font(SMALL_SIZE))
        y += height + GAP
    for (x, y), index, text in legend:
        sheet.paste(Image.fromarray(_swatch(index)), (x, legend_top + y))
        draw.text((x + 28, legend_top + y - 1), text, INK, text_font(TEXT_SIZE))
    return sheet


def _column_places(drawn: Sequence[dict[str, Bytes]]) -> dict[str, tuple[int, int]]:
    """Left and right edge of every column that some row has; all as wide as the widest tile or title."""
    columns = [column for column in COLUMNS if any(column in row_tiles for row_tiles in drawn)]
    titles = [round(text_font(TEXT_SIZE, bold=True).getlength(column)) for column in columns]
    width = max(*titles, *(row_tiles["image"].shape[1] for row_tiles in drawn))
    lefts = [MARGIN + NAME_WIDTH + number * (width + GAP) for number in range(len(columns))]
    return {column: (left, left + width) for column, left in zip(columns, lefts, strict=True)}


def tiles(row: SheetRow) -> dict[str, Bytes]:
    """The row's pictures under their column titles, all of one size within TILE_WIDTH x TILE_HEIGHT."""
    height, width = row.image.shape[:2]
    scale = min(TILE_WIDTH / width, TILE_HEIGHT / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image = Image.fromarray(row.image).resize(size, Image.Resampling.BICUBIC)
    faded = _faded(image)
    found = {"image": np.asarray(image if row.marks is None else _with_marks(image, row.marks))}
    if row.cam is not None:
        found["CAM"] = _cam_tile(faded, row.cam, row.class_ids)
    for title, labels in row.label_maps().items():
        small = Image.fromarray(labels.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
        found[title] = _label_tile(faded, np.asarray(small))
    return found


def _with_marks(image: Image.Image, marks: NDArray[Any]) -> Image.Image:
    """An image with a dot at every pixel that people spoke about: of its class's colour, background dark, in a ring."""
    rows, columns = np.nonzero(marks != IGNORE_INDEX)
    labels = marks[rows, columns].tolist()
    scale = image.width / marks.shape[1], image.height / marks.shape[0]
    places = list(zip(((columns + 0.5) * scale[0]).tolist(), ((rows + 0.5) * scale[1]).tolist(), strict=True))
    shown = image.copy()
    draw = ImageDraw.Draw(shown)
    for radius, ring in ((DOT + 1, True), (DOT, False)):  # all rings first: those of a stroke are its outline
        for (x, y), label in zip(places, labels, strict=True):
            color = PAPER if ring else class_color(label)
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
    return shown


def overlay(image: Bytes, labels: Bytes) -> Bytes:
    """Labels (H, W) in their colours over a faded copy of an image (H, W, 3), as on the contact sheet: (H, W, 3)."""
    return _label_tile(_faded(Image.fromarray(image)), labels)


def _faded(image: Image.Image) -> Floats:
    """A pale grey copy of an image (H, W, 3)."""
    grey = np.asarray(image.convert("L"), dtype=np.float32)
    return np.repeat((255 - FADING * (255 - grey))[..., None], 3, axis=2)


def _cam_tile(faded: Floats, cam: NDArray[Any], class_ids: Sequence[int]) -> Bytes:
    """Tint every pixel with the colour of its strongest class, as opaque as that class is strong."""
    if len(class_ids) == 0:
        return faded.astype(np.uint8)
    height, width = faded.shape[:2]
    channels = [Image.fromarray(channel.astype(np.float32)) for channel in cam]
    strengths = np.stack([np.asarray(c.resize((width, height), Image.Resampling.BILINEAR)) for c in channels])
    colors = np.array([class_color(index) for index in class_ids], dtype=np.float32)[strengths.argmax(axis=0)]
    opacity = CAM_OPACITY * np.nan_to_num(strengths.max(axis=0)).clip(0, 1)[..., None]
    return np.asarray((1 - opacity) * faded + opacity * colors).astype(np.uint8)


def _label_tile(faded: Floats, labels: Bytes) -> Bytes:
    """Tint and outline classes in their colour; the background stays faded, the ignore band is hatched."""
    present, places = np.unique(labels, return_inverse=True)
    colors = np.array([class_color(int(index)) for index in present], dtype=np.float32)[places.reshape(labels.shape)]
    opacity = np.where(labels == 0, 0, LABEL_OPACITY)[..., None]
    tile = (1 - opacity) * faded + opacity * colors
    tile = np.where((labels == IGNORE_INDEX)[..., None], _hatching(*labels.shape), tile)
    padded = np.pad(labels, 1, mode="edge")
    neighbors = padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]
    edge = np.any([neighbor != labels for neighbor in neighbors], axis=0)
    outline = edge & (labels != 0) & (labels != IGNORE_INDEX)
    return np.where(outline[..., None], colors, tile).astype(np.uint8)


def _hatching(height: int, width: int) -> Floats:
    """Diagonal lines on light grey: (height, width, 3)."""
    y, x = np.mgrid[:height, :width]
    return np.where(((x + y) % 7 == 0)[..., None], HATCH_COLOR, IGNORE_COLOR).astype(np.float32)


def _swatch(index: int) -> Bytes:
    """A framed sample (14, 22, 3) of a label's colour, as it looks on a tile of medium grey."""
    swatch = _label_tile(np.full((14, 22, 3), 220, dtype=np.float32), np.full((14, 22), index, dtype=np.uint8))
    frame = np.pad(np.zeros((12, 20), dtype=bool), 1, constant_values=True)[..., None]
    color = HATCH_COLOR if index in (0, IGNORE_INDEX) else class_color(index)
    return np.where(frame, color, swatch).astype(np.uint8)


def _legend_places(
    rows: Sequence[SheetRow], class_names: Sequence[str], width: int
) -> list[tuple[tuple[int, int], int, str]]:
    """Place (x, y), label and text of each legend entry, in lines no wider than the sheet; at least one."""
    shown = {0}.union(*(row.class_ids for row in rows))
    for row in rows:
        shown.update(*(np.unique(labels).tolist() for labels in row.label_maps().values()))
        if row.marks is not None:
            shown.update(set(np.unique(row.marks).tolist()) - {IGNORE_INDEX})
    entries = []
    x, y = MARGIN, 0
    for index in sorted(shown):
        text = _class_name(index, class_names)
        advance = 28 + round(text_font(TEXT_SIZE).getlength(text)) + 22
        if x > MARGIN and x + advance > width:
            x, y = MARGIN, y + TEXT_SIZE + 10
        entries.append(((x, y), index, text))
        x += advance
    return entries


def _class_name(index: int, class_names: Sequence[str]) -> str:
    if index == IGNORE_INDEX:
        return "ignored"
    return class_names[index] if index < len(class_names) else f"class {index}"


def _draw_name(draw: ImageDraw.ImageDraw, row: SheetRow, class_names: Sequence[str], y: int, height: int) -> None:
    """The image's name and, smaller, its note and its classes, beside its tiles; what does not fit is cut."""
    room = NAME_WIDTH - GAP
    lines = [(line, TEXT_SIZE, INK) for line in _wrapped(row.name, text_font(TEXT_SIZE), room)]
    lines += [(line, SMALL_SIZE, INK) for line in _wrapped(row.note, text_font(SMALL_SIZE), room) if line]
    for index in row.class_ids:
        text = _class_name(index, class_names)
        lines += [(line, SMALL_SIZE, PALE_INK) for line in _wrapped(text, text_font(SMALL_SIZE), room)]
    bottom = y + max(height, TEXT_SIZE + 4)
    for text, size, color in lines:
        if y + size > bottom:
            return
        draw.text((MARGIN, y), text, color, text_font(size))
        y += size + 5


def _wrapped(text: str, font: ImageFont.FreeTypeFont, room: int) -> list[str]:
    """Break `text` into lines of at most `room` pixels: at spaces, or anywhere, as names of images rarely have any."""
    lines = [""]
    for character in " ".join(text.split()):
        if lines[-1] and font.getlength(lines[-1] + character) > room:
            whole, _, begun = lines[-1].rpartition(" ")
            lines[-1:] = [whole, begun] if whole and character != " " else [lines[-1], ""]
        lines[-1] += character
    return [line.strip() for line in lines]


@cache
def text_font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib ships: the same everywhere, with the letters of many languages."""
    import matplotlib  # late: it takes a while, and only its folder is needed

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)
