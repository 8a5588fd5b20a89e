"""Settings of the data set."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from cam_pipeline.config.conditions import If
from cam_pipeline.config.section import Section

VOC = If("data.format", "voc")
COCO = If("data.format", "coco")


def _checked_colour(value: Any) -> tuple[int, int, int]:
    """`[r, g, b]` or `#rrggbb` as three numbers."""
    if isinstance(value, str) and re.fullmatch("#[0-9a-fA-F]{6}", value):
        value = bytes.fromhex(value[1:])
    numbers = tuple(value) if isinstance(value, list | tuple | bytes) else ()
    if len(numbers) != 3 or not all(type(number) is int and 0 <= number <= 255 for number in numbers):
        raise ValueError(f"must be three whole numbers in 0..255, or text such as '#ff0080', given {str(value)[:40]!r}")
    return numbers


Colour = Annotated[tuple[int, int, int], BeforeValidator(_checked_colour)]
"""Red, green, blue."""


def shown_colour(colour: Colour) -> str:
    """A colour as `#rrggbb`."""
    return f"#{bytes(colour).hex()}"


class DataSettings(Section):
    """Where the images and their labels are. Relative paths start at the current folder."""

    root: Path = Field(Path("data"), description="folder that holds the data set")
    format: Literal["csv", "voc", "coco", "folders"] = Field(
        "csv",
        description="`csv`: a table `image,labels[,mask,split,scribble,clicks]`; `voc`: JPEGImages/, ImageSets/, "
        "SegmentationClass/; `coco`: a JSON file of annotations for each split; `folders`: a folder of images for each "
        "class; docs/data.md",
    )
    table: Annotated[str, If("data.format", "csv")] = Field(
        "data.csv", description="the table's file name under `root`"
    )
    labels: Annotated[str, VOC] = Field(
        "image_labels.txt",
        description="file of lines `id class class ...` under `root`, or the folder of XML files (`Annotations`)",
    )
    masks: Annotated[str, VOC] = Field("SegmentationClass", description="the folder of masks under `root`")
    clicks: str = Field(
        "", description="file of clicks under `root`: a table `image,x,y,class`, or JSON; empty: none; docs/data.md"
    )
    scribbles: str = Field(
        "",
        description="folder under `root` with scribbles (PNG, ScribbleSup's XML, Labelme's JSON) named by ids of "
        "images, or a zip file of XML; empty: none, in the VOC layout `Scribbles` if there is this folder",
    )
    corrected: str = Field(
        "",
        description="labels that were corrected elsewhere, which win over pseudo-labels: a folder or file under `root` "
        "or elsewhere, of PNG, COCO, Labelme, CVAT, Label Studio or YOLO; empty: none; docs/formats.md",
    )
    annotations: Annotated[str, COCO] = Field(
        "annotations/instances_{split}.json",
        description="the JSON file of a split under `root`; `{split}` stands for the name of the split",
    )
    images: Annotated[str, COCO] = Field(
        "{split}", description="the folder of a split's images under `root`; `{split}` as in `annotations`"
    )
    negatives: Annotated[str, If("data.format", "folders")] = Field(
        "none", description="name of the folder whose images show none of the classes"
    )
    classes: tuple[str, ...] = Field(
        (),
        description="class names without background, in label order; empty: from `classes.txt`, else from the data",
    )
    colors: tuple[Colour, ...] = Field(
        (),
        description="colours in masks, `[r, g, b]` or `#rrggbb`: background first, then the classes in label order; "
        "any further ones mean ignore. Empty: masks hold class numbers",
    )
    train: str = Field("train", description="name of the split to train on")
    val: str = Field("val", description="name of the split to report on; may be empty")
    max_pixels: int = Field(
        100_000_000, ge=1, description="largest image or mask that is decoded, in pixels; a larger one is refused"
    )

    @field_validator("colors")
    @classmethod
    def each_once(cls, colors: tuple[Colour, ...]) -> tuple[Colour, ...]:
        """A colour cannot mean two labels."""
        for place, colour in enumerate(colors):
            if colour in colors[:place]:
                raise ValueError(f"must name each colour once, but {shown_colour(colour)} is there twice")
        return colors
