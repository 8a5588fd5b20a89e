"""Settings of ACR's objective."""

from typing import Literal

from pydantic import Field

from cam_pipeline.config.section import Section


class AcrSettings(Section):
    """ACR: every image is seen in two views, whose attention must agree once the transform between them is undone."""

    activation_weight: float = Field(
        0.217,
        ge=0,
        description="weight of the class token's attention, per row: the L1 distance of a row is at most 2, so the "
        "strength does not change with the number of patches (0.217: the paper's alpha 125 at 576 patches)",
    )
    affinity_weight: float = Field(0.217, ge=0, description="weight of the attention between patches, per row")
    ramp: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of all steps in which both weights rise evenly from 0: a ViT that starts from nothing must "
        "have something to attend to first, as attention that is the same everywhere agrees, too",
    )
    transforms: tuple[Literal["hflip", "vflip", "rot90"], ...] = Field(
        ("hflip",), min_length=1, description="what the second view may be; one is drawn for each step"
    )
    layers: tuple[int, ...] = Field((), description="blocks whose attention must agree (-1: the last); empty: all")
