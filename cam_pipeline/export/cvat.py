"""CVAT for images, XML 1.1: for each image and class one mask."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from cam_pipeline.data.runs import run_lengths
from cam_pipeline.export.label_maps import IGNORED, LabelMap, in_box, regions_of
from cam_pipeline.ops.ignore import IGNORE_INDEX

FILE = "annotations.xml"


def write_cvat(maps: Iterable[LabelMap], classes: Sequence[str], folder: Path, final: Path) -> int:
    """`annotations.xml`, with images named by their paths below the data root. Undecided pixels are `__ignore__`."""
    names = {**dict(enumerate(classes, 1)), IGNORE_INDEX: IGNORED}
    count = 0
    with (folder / FILE).open("w", encoding="utf-8") as file:
        file.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n')
        labels = "".join(f"<label><name>{escape(name)}</name></label>" for name in names.values())
        file.write(f"  <meta><task><mode>annotation</mode><labels>{labels}</labels></task></meta>\n")
        for one in maps:
            height, width = one.labels.shape
            file.write(f'  <image id="{count}" name={quoteattr(one.name)} width="{width}" height="{height}">\n')
            file.writelines(_masks(one, names))
            file.write("  </image>\n")
            count += 1
        file.write("</annotations>\n")
    return count


def _masks(one: LabelMap, names: dict[int, str]) -> Iterator[str]:
    for label in regions_of(one.labels):
        left, top, inside = in_box(one.labels == label)
        height, width = inside.shape
        runs = ", ".join(map(str, run_lengths(inside.ravel())))
        box = f'left="{left}" top="{top}" width="{width}" height="{height}"'
        yield f'    <mask label={quoteattr(names[label])} occluded="0" rle="{runs}" {box} z_order="0"></mask>\n'
