"""Settings of the regularised loss in the style of DFR."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cam_pipeline.config.conditions import If, IfAbove, IfNot
from cam_pipeline.config.section import Positive, Section

DEEP = IfNot("dfr.features", "none")
HEAD = If("dfr.features", "head")
REGULATES = IfAbove("dfr.weight", 0)
LEARNS = IfAbove("dfr.consistency_weight", 0)


class DfrSettings(Section):
    """A regularised loss in the style of DFR: similar pixels should get the same answer, labelled or not."""

    weight: float = Field(0.1, ge=0, description="weight of the regularised loss, beside 1 for the labels; 0: off")
    start: Annotated[float, REGULATES] = Field(0.0, ge=0, le=1, description="share of all steps before it begins")
    ramp: Annotated[float, REGULATES] = Field(
        0.05, ge=0, le=1, description="share of all steps over which its weight then rises"
    )
    radius: Annotated[int, REGULATES] = Field(
        5, ge=1, le=64, description="pairs are at most so many rows and columns apart, on a grid of every 4th pixel"
    )
    sigma_xy: Annotated[Positive, REGULATES] = Field(
        6.0, description="distance, in points of that grid, at which pixels count less"
    )
    sigma_rgb: Annotated[Positive, REGULATES] = Field(
        0.1, description="difference of colours divided by ImageNet's standard deviations at which they count less"
    )
    normalize: Annotated[Literal["pixel", "mass"], REGULATES] = Field(
        "pixel", description="divide by the number of pixels, or by the sum of all pairs' weights, which needs no "
        "other `weight` for another `radius`"
    )  # fmt: skip
    backend: Annotated[Literal["auto", "loop", "quad"], REGULATES] = Field(
        "auto",
        description="how it is computed: `loop` by autograd, `quad` with the gradient in closed form and less memory, "
        "`auto` `quad` where that is possible",
    )
    features: Literal["none", "backbone", "head"] = Field(
        "head",
        description="deep features that say, beside colour and place, which pixels are alike. `none`: none; "
        "`backbone`: the encoder's last ones; `head`: those of a head that is trained beside it",
    )
    kernel: Annotated[Literal["affinity", "gauss"], DEEP] = Field(
        "affinity",
        description="`affinity`: exp of minus the mean absolute difference, what the head learns; `gauss`: by angles "
        "between features, for those that no head has learned",
    )
    sigma_feature: Annotated[Positive, If("dfr.kernel", "gauss")] = Field(
        0.5, description="distance between features of length 1 at which pixels count less"
    )
    beta_start: Annotated[float, DEEP] = Field(
        0.05, ge=0, le=1, description="share of all steps before deep features count"
    )
    beta_ramp: Annotated[float, DEEP] = Field(
        0.15, ge=0, le=1, description="share of all steps over which they then come to count fully"
    )
    detach_features: Annotated[bool, DEEP] = Field(
        True,
        description="the regularised loss does not train the features, which would only flee from each other; `false` "
        "shows that, and takes the backend `loop`",
    )
    consistency_weight: Annotated[float, HEAD] = Field(
        1.0, ge=0, description="weight of the consistency of features: those of one class should be alike; 0: off"
    )
    consistency_radius: Annotated[int, HEAD, LEARNS] = Field(
        4, ge=1, le=64, description="its pairs are at most so many rows and columns of the head's grid apart"
    )
    threshold: Annotated[float, HEAD, LEARNS] = Field(
        0.8,
        ge=0,
        le=1,
        description="a pixel without a label counts as the segmenter's answer if that has at least this probability, "
        "once deep features count",
    )
    dim: Annotated[int, HEAD] = Field(64, ge=1, le=4096, description="channels of the head's features")
    stride: Annotated[Literal[4, 8], HEAD] = Field(4, description="pixels per cell of the head's grid")
    shallowest_stride: Annotated[Literal[2, 4, 8], HEAD] = Field(
        4, description="the head reads the encoder's features of this stride and of greater ones"
    )
    detach_backbone: Annotated[bool, HEAD] = Field(
        False, description="the consistency of features trains the head alone, not the encoder"
    )

    @model_validator(mode="after")
    def possible(self) -> Self:
        if self.backend == "quad" and not self.detach_features and self.features != "none":
            raise ValueError("backend = 'quad' cannot train features; set backend = 'auto', or detach_features = true")
        return self
