"""Settings of SFC's objective."""

from typing import Literal

from pydantic import Field

from cam_pipeline.config.section import Section


class SfcSettings(Section):
    """SFC: rare classes are shown again from an image bank, and class maps are drawn to maps of class prototypes."""

    draws: int = Field(
        4, ge=0, le=1024, description="images drawn from the bank in every step, evenly over classes; 0: no bank"
    )
    blank_slots: bool = Field(
        False, description="classes not seen yet can be drawn, as an empty image without labels (the released code)"
    )
    prototype_weight: float = Field(
        1.6, ge=0, description="weight of the distance between classifier and prototype maps; 0: off"
    )
    scale_weight: float = Field(
        0.8,
        ge=0,
        description="weight of the distance between classifier maps at scales 1 and 1/2; 0: scale 1/2 is not seen",
    )
    distribution_weights: bool = Field(
        True, description="weigh classes by how their image counts lie among the others'; off: all alike"
    )
    background_over: Literal["present", "all"] = Field(
        "present", description="the background map is what these classes leave; `all`: the released code"
    )
    extra: float | None = Field(
        None,
        ge=0,
        description="appearances per class and epoch that the bank adds, for those weights; unset: from the data "
        "(396 reproduces the paper's on VOC)",
    )
    ramp: float = Field(
        0.0, ge=0, le=1, description="share of all steps in which both weights rise evenly from 0 (the paper: 0)"
    )

    @property
    def compares_maps(self) -> bool:
        """Whether there is more than the image bank."""
        return self.prototype_weight > 0 or self.scale_weight > 0
