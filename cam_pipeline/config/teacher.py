"""Settings of the EMA teacher."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cam_pipeline.config.conditions import If, IfAbove
from cam_pipeline.config.section import Positive, Section, Share


class TeacherSettings(Section):
    """An EMA teacher: the moving average of the segmenter's weights teaches it from what it makes of the plain view."""

    decay: Annotated[float, If("train_seg.average", 0.0)] = Field(
        0.99,
        gt=0,
        lt=1,
        description="share of the teacher's weights that is that of the step before, at first less; with "
        "`train_seg.average` the teacher is that average",
    )
    weight: float = Field(1.0, ge=0, description="weight of what the teacher says, beside 1 for the labels")
    start: float = Field(0.1, ge=0, le=1, description="share of all steps before it teaches")
    ramp: float = Field(0.1, ge=0, le=1, description="share of all steps over which its weight then rises")
    pixels: Literal["all", "unsure"] = Field(
        "all",
        description="pixels that it teaches. `all`: those that have a label, too, so it may contradict wrong ones; "
        "`unsure`: only those that the labels leave undecided",
    )
    confidence: float = Field(
        0.9, ge=0, lt=1, description="least probability, among the classes of the image's labels, of what it teaches"
    )
    color_jitter: float = Field(
        0.5, ge=0, le=1, description="largest change of brightness, contrast and saturation of the strong view"
    )
    greyscale: float = Field(0.2, ge=0, le=1, description="share of the strong views that lose their colours")
    blur: float = Field(0.5, ge=0, le=1, description="share of the strong views that are blurred (0.1 to 2 px)")
    cutmix: float = Field(
        0.5, ge=0, le=1, description="share of the strong views into which a box of another one is pasted"
    )
    cutmix_area: Annotated[tuple[Share, Share], IfAbove("teacher.cutmix", 0)] = Field(
        (0.02, 0.4), description="the box's share of the view, drawn evenly from the range"
    )
    cutmix_aspect: Annotated[Positive, IfAbove("teacher.cutmix", 0)] = Field(
        3.3, ge=1, le=100, description="the box is at most so many times as high as wide, or as wide as high"
    )

    @model_validator(mode="after")
    def ordered(self) -> Self:
        if self.cutmix_area[0] > self.cutmix_area[1]:
            raise ValueError(f"cutmix_area must be two rising numbers, not {list(self.cutmix_area)}")
        return self
