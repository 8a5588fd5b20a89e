"""Settings of the single stage that classifies and segments together, as TSCD."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cam_pipeline.config.conditions import If, IfNot
from cam_pipeline.config.section import Scale, Section

AFFINITY = If("tscd.affinity", True)
SCD = IfNot("tscd.scd", "off")


class TscdSettings(Section):
    """A single stage that classifies and segments together: online labels from its own class maps (TSCD)."""

    scd: Literal["off", "default", "released"] = Field(
        "default",
        description="self correspondence distillation: answers of two views should be alike as far as their class maps "
        "are. `released`: as in the released code, which a constant answer may please best; `default`: with the "
        "repairs of docs/methods/tscd.md",
    )
    scd_weight: Annotated[float, SCD] = Field(0.1, ge=0, description="its weight, beside 1 for classification")
    shift: Annotated[float, If("tscd.scd", "default")] = Field(
        0.15, ge=0, le=1, description="likeness of maps below which answers are driven apart"
    )
    points: Annotated[int, SCD] = Field(40, ge=2, le=200, description="points a side that are drawn in each view")
    view_scale: Annotated[float, SCD] = Field(
        0.3, gt=0, le=1, description="size of the second view; its sides are rounded to whole cells"
    )
    affinity: bool = Field(
        True, description="learn from the attention of a ViT which cells have the same label; other backbones have none"
    )
    affinity_weight: Annotated[float, AFFINITY] = Field(0.1, ge=0, description="its weight")
    affinity_radius: Annotated[int, AFFINITY] = Field(
        8, ge=1, le=64, description="cells at most so many rows and columns apart are compared"
    )
    segmentation_weight: float = Field(0.1, gt=0, description="weight of the segmentation loss")
    energy_weight: float = Field(
        0.0, ge=0, description="weight of the dense energy: similar pixels get the same answer. 0: off"
    )
    start: float = Field(
        0.2, ge=0, lt=1, description="share of all steps for classification alone; before, class maps say little"
    )
    map_scales: tuple[Scale, ...] = Field(
        (0.5, 1.5),
        max_length=4,
        description="further sizes at which the classifier sees the crop for its online maps, beside the training pass",
    )
    map_flip: bool = Field(False, description="look at the mirror image for them, too")
    peak_floor: float = Field(
        0.0,
        ge=0,
        description="a class whose raw map nowhere reaches this is taken to be outside of the crop. 0: off",
    )
    kernel: Literal["varm", "par", "color"] = Field(
        "varm", description="local refinement of the online labels, at half the size of the crop"
    )
    kernel_iterations: int = Field(10, ge=0, le=100, description="its iterations; 0: none")
    low: float = Field(0.35, ge=0, le=1, description="background score below which online labels are background")
    high: float = Field(
        0.55, ge=0, le=1, description="background score above which they are a class; between the two they are left out"
    )
    decoder_width: int = Field(256, ge=8, le=2048, description="channels of the decoder")

    @model_validator(mode="after")
    def ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low = {self.low} must not exceed high = {self.high}")
        return self
