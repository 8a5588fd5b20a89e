"""Settings of ACR's objective."""

from typing import Annotated, Literal

from pydantic import Field

from cam_pipeline.config.conditions import IfAbove
from cam_pipeline.config.section import Section


class AcrSettings(Section):
    """ACR: every image is seen in two views. Their attention must agree once the transform between them is undone."""

    activation_weight: float = Field(
        0.217,
        ge=0,
        description="weight of the class token's attention, per row. The L1 distance of a row is at most 2, so the "
        "strength does not depend on the number of patches (0.217: the paper's alpha 125 at 576 patches)",
    )
    affinity_weight: float = Field(0.217, ge=0, description="weight of the attention between patches, per row")
    ramp: Annotated[float, IfAbove("acr.activation_weight", 0) | IfAbove("acr.affinity_weight", 0)] = Field(
        0.0,
        ge=0,
        le=1,
        description="warm-up of both weights, as a share of all steps. A ViT without pretrained weights needs it: "
        "uniform attention is consistent without having learned anything",
    )
    transforms: tuple[Literal["hflip", "vflip", "rot90"], ...] = Field(
        ("hflip",), min_length=1, description="transforms of the second view; one is drawn for each step"
    )
    layers: tuple[int, ...] = Field((), description="blocks whose attention must agree (-1: the last); empty: all")
