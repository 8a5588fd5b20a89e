"""Settings of the data set."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from cam_pipeline.config.conditions import If
from cam_pipeline.config.section import Section

VOC = If("data.format", "voc")
COCO = If("data.format", "coco")


class DataSettings(Section):
    """Where the images and their labels are. Relative paths start at the current folder."""

    root: Path = Field(Path("data"), description="folder that holds the data set")
    format: Literal["csv", "voc", "coco", "folders"] = Field(
        "csv",
        description="`csv`: a table `image,labels[,mask,split]`; `voc`: JPEGImages/, ImageSets/, SegmentationClass/; "
        "`coco`: a JSON file of annotations for each split; `folders`: a folder of images for each class; docs/data.md",
    )
    table: Annotated[str, If("data.format", "csv")] = Field(
        "data.csv", description="the table's file name under `root`"
    )
    labels: Annotated[str, VOC] = Field(
        "image_labels.txt",
        description="file of lines `id class class ...` under `root`, or the folder of XML files (`Annotations`)",
    )
    masks: Annotated[str, VOC] = Field("SegmentationClass", description="the folder of masks under `root`")
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
    train: str = Field("train", description="name of the split to train on")
    val: str = Field("val", description="name of the split to report on; may be empty")
    max_pixels: int = Field(
        100_000_000, ge=1, description="largest image or mask that is decoded, in pixels; a larger one is refused"
    )
