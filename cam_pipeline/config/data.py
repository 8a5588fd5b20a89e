"""Settings of the data set."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from cam_pipeline.config.section import Section


class DataSettings(Section):
    """Where the images and their labels are. Relative paths start at the current folder."""

    root: Path = Field(Path("data"), description="folder that holds the data set")
    format: Literal["csv", "voc", "coco", "folders"] = Field(
        "csv",
        description="`csv`: a table `image,labels[,mask,split]`; `voc`: JPEGImages/, ImageSets/, SegmentationClass/; "
        "`coco`: a JSON file of annotations for each split; `folders`: a folder of images for each class; docs/data.md",
    )
    table: str = Field("data.csv", description="`csv` only: the table's file name under `root`")
    labels: str = Field(
        "image_labels.txt",
        description="`voc` only, under `root`: a file of lines `id class class ...`, "
        "or the folder of XML files (`Annotations`)",
    )
    masks: str = Field("SegmentationClass", description="`voc` only: the folder of masks under `root`")
    annotations: str = Field(
        "annotations/instances_{split}.json",
        description="`coco` only: the JSON file of a split under `root`; `{split}` stands for `train` or `val` below",
    )
    images: str = Field("{split}", description="`coco` only: the folder of a split's images under `root`")
    negatives: str = Field(
        "none", description="`folders` only: name of the folder whose images show none of the classes"
    )
    classes: tuple[str, ...] = Field(
        (),
        description="class names without background, in label order; empty: from `classes.txt`, else from the data",
    )
    train: str = Field("train", description="name of the split to train on")
    val: str = Field("val", description="name of the split to report on; may be empty")
    max_pixels: int = Field(
        100_000_000, ge=1, description="image and mask files of more pixels are refused before they are decoded"
    )
