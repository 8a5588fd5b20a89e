"""Indexed PNG: pixels are label numbers, the palette is that of PASCAL VOC, `classes.txt` names the numbers."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from cam_pipeline.export.label_maps import LabelMap


def voc_palette() -> list[int]:
    """Red, green, blue of the numbers 0..255: the bits of a number, spread over the three channels' high bits."""
    levels = []
    for number in range(256):
        for channel in range(3):
            bits = [(number >> (3 * place + channel)) & 1 for place in range(3)]
            levels.append(sum(bit << (7 - place) for place, bit in enumerate(bits)))
    return levels


def write_png(maps: Iterable[LabelMap], classes: Sequence[str], folder: Path, final: Path) -> int:
    """`<id>.png` for each image, and `classes.txt`, whose first line is the background, label 0. 255 stays 255."""
    (folder / "classes.txt").write_text("\n".join(("background", *classes, "")), encoding="utf-8")
    palette, count = voc_palette(), 0
    for one in maps:
        path = folder / f"{one.id}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(one.labels)
        image.putpalette(palette)  # makes it an indexed image
        image.save(path)
        count += 1
    return count
