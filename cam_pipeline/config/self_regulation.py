"""Settings of Self-Regulation."""

from typing import Annotated, Literal

from pydantic import Field

from cam_pipeline.config.conditions import If, IfAbove
from cam_pipeline.config.section import Section

REGULATES = IfAbove("self_regulation.label_weight", 0) | IfAbove("self_regulation.feature_weight", 0)
BY_PIXEL = If("self_regulation.label_mode", "pixel")
SOFT = If("self_regulation.feature_mode", "soft")


class SelfRegulationSettings(Section):
    """Self-Regulation: exits at several depths of the segmenter's encoder learn the labels, and teach each other."""

    heads: Literal["light", "released"] = Field(
        "light",
        description="layers of an exit. `light`: 1 x 1 to 64 channels, 3 x 3 depthwise, two 1 x 1; `released`: two "
        "3 x 3 of 256 channels, as in the released code, which cost more than the encoder",
    )
    shallowest_stride: Literal[2, 4, 8] = Field(
        4, description="exits hang on features of this stride and of greater ones; 2: the released code, and slower"
    )
    segmentation_weight: float = Field(
        0.8, ge=0, description="weight of the cross entropy of every exit, the segmenter's answer included"
    )
    class_weight: float = Field(
        0.2, ge=0, description="weight of the class branch: which classes an exit says that the image shows; 0: off"
    )
    class_labels: Annotated[Literal["image", "pixels"], IfAbove("self_regulation.class_weight", 0)] = Field(
        "image",
        description="what the class branch learns. `image`: the image's labels, without background; `pixels`: the "
        "labels in the crop, background included (the released code)",
    )
    label_weight: float = Field(1.0, ge=0, description="weight of SR-L: the deepest exit teaches the others; 0: off")
    label_mode: Annotated[Literal["presence", "pixel"], IfAbove("self_regulation.label_weight", 0)] = Field(
        "presence",
        description="what it teaches: which classes the image shows (the released code), or the class of every pixel "
        "(our reading)",
    )
    feature_weight: float = Field(
        1.0, ge=0, description="weight of SR-F: the shallowest exit teaches the others; 0: off"
    )
    feature_mode: Annotated[Literal["released", "soft"], IfAbove("self_regulation.feature_weight", 0)] = Field(
        "released", description="what it teaches: its best class of every pixel, or its features (`soft`, our reading)"
    )
    temperature: Annotated[float, BY_PIXEL | SOFT] = Field(
        1.0, gt=0, le=100, description="softens what is taught in the modes `pixel` and `soft`"
    )
    reduction: Literal["sum", "mean"] = Field(
        "sum", description="over exits; `mean` keeps the weights' meaning if their number changes"
    )
    start: Annotated[float, REGULATES] = Field(
        0.25, ge=0, le=1, description="share of all steps before exits teach each other (the paper: a quarter)"
    )
    ramp: Annotated[float, REGULATES] = Field(
        0.05, ge=0, le=1, description="share of all steps over which both weights then rise"
    )
    gate: Annotated[Literal["none", "confidence", "agreement", "ignored"], REGULATES] = Field(
        "none",
        description="pixels at which exits teach. `none`: all that have a label; `confidence`: where the teacher is "
        "sure; `agreement`: where the teacher agrees with the label; `ignored`: only those without a label",
    )
    confidence: Annotated[float, If("self_regulation.gate", "confidence")] = Field(
        0.9, ge=0, lt=1, description="least probability of a teacher's best class"
    )
    ignore_to_background: bool = Field(
        False, description="learn ignored pixels as background, as the released code does by mistake"
    )
