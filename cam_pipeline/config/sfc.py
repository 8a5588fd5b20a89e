"""Settings of SFC's objective."""

from typing import Annotated, Literal

from pydantic import Field

from cam_pipeline.config.conditions import If, IfAbove
from cam_pipeline.config.section import Section

COMPARES_MAPS = IfAbove("sfc.prototype_weight", 0) | IfAbove("sfc.scale_weight", 0)


class SfcSettings(Section):
    """SFC: rare classes are shown again from an image bank, and class maps are drawn to maps of class prototypes."""

    draws: int = Field(
        4, ge=0, le=1024, description="images drawn from the bank in every step, evenly over classes; 0: no bank"
    )
    blank_slots: Annotated[bool, IfAbove("sfc.draws", 0)] = Field(
        False,
        description="classes not seen yet can be drawn, too, as an empty image without labels (the released code)",
    )
    prototype_weight: float = Field(
        1.6, ge=0, description="weight of the distance between classifier and prototype maps; 0: off"
    )
    scale_weight: float = Field(
        0.8,
        ge=0,
        description="weight of the distance between classifier maps at scales 1 and 1/2; 0: scale 1/2 is not computed",
    )
    distribution_weights: Annotated[bool, COMPARES_MAPS] = Field(
        True, description="weigh classes by the distance of their image counts from the others'; false: all alike"
    )
    background_over: Annotated[Literal["present", "all"], COMPARES_MAPS] = Field(
        "present",
        description="the background map is 1 minus the maximum over these classes; `all`: as in the released code",
    )
    extra: Annotated[float | None, If("sfc.distribution_weights", True)] = Field(
        None,
        ge=0,
        description="appearances per class and epoch that the bank adds, for these weights; unset: from the data (396 "
        "reproduces the paper's weights on VOC)",
    )
    ramp: Annotated[float, COMPARES_MAPS] = Field(
        0.0, ge=0, le=1, description="warm-up of both weights, as a share of all steps (the paper: 0)"
    )

    @property
    def compares_maps(self) -> bool:
        """Whether there is more than the image bank."""
        return self.prototype_weight > 0 or self.scale_weight > 0
