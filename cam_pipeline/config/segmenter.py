"""Settings of the segmenter."""

from typing import Any, Literal

from pydantic import Field

from cam_pipeline.config.section import Rgb, Section, Spread


class SegmenterSettings(Section):
    """The DeepLab network that learns from the pseudo-labels."""

    architecture: Literal["deeplabv3plus", "deeplabv2"] = Field(
        "deeplabv3plus",
        description="`deeplabv3plus` (segmentation-models-pytorch), or `deeplabv2`, an ASPP head in the style of "
        "DeepLabV2",
    )
    encoder: str = Field("resnet101", description="any timm CNN")
    encoder_args: dict[str, Any] = Field({}, description="extra arguments for `timm.create_model`")
    weights: str = Field("pretrained", description="as `classifier.weights`, for the encoder")
    stride: Literal[8, 16] = Field(
        16, description="input pixels per cell of the encoder's last feature map, reached by dilation"
    )
    freeze_batch_norm: bool = Field(False, description="keep the encoder's BatchNorm statistics as loaded")
    mean: Rgb | None = Field(None, description="input mean, in 0..1; unset: from timm's data config of the encoder")
    std: tuple[Spread, Spread, Spread] | None = Field(
        None, description="input standard deviation; unset: from timm's data config of the encoder"
    )
    self_regulation: bool = Field(
        False,
        description="train exits at several depths beside it, which teach each other; `[self_regulation]` says how",
    )
    regularizer: Literal["none", "dfr"] = Field(
        "none",
        description="a further loss about all pixels, labelled or not. `dfr`: similar pixels should get the same "
        "answer; `[dfr]` says how",
    )
    max_side: int = Field(
        1024, ge=32, le=65_536, description="for prediction, larger images are first reduced to this longer side"
    )
