"""Settings of the classifier, and what it learns."""

from typing import Annotated, Any, Literal

from pydantic import Field

from cam_pipeline.config.conditions import IfNot
from cam_pipeline.config.section import Rgb, Section, Spread

HYBRID = IfNot("classifier.trunk", "")


class ClassifierSettings(Section):
    """The image classifier that CAMs are read from."""

    backbone: str = Field(
        "resnet50",
        description="any timm model that gives a feature map: ResNet, other CNN or ViT; or mit_b0 to mit_b5, "
        "SegFormer's encoders (NVIDIA's licence: not for commercial use)",
    )
    backbone_args: dict[str, Any] = Field(
        {}, description='extra arguments for `timm.create_model`, e.g. `{pad_type = "same"}`'
    )
    weights: str = Field(
        "pretrained",
        description="`pretrained` (timm's hub), `none`, or the path of a .pth or .safetensors file "
        "made for this backbone; `{data.root}` in the path stands for `data.root`",
    )
    stride: int = Field(
        0,
        ge=0,
        le=1024,
        description="input pixels per feature cell of a CNN, reached by undoing late strides; 0: the backbone's own",
    )
    pooling: Literal["patches", "class_token"] = Field(
        "patches",
        description="what the logits are computed from. `patches`: the mean of the feature map; `class_token`: the "
        'class token of a ViT, which `cam.source = "class_token_gradient"` needs',
    )
    trunk: str = Field(
        "",
        description="for a hybrid ViT, the timm CNN whose feature map, at `stride`, gives the tokens of `backbone`, "
        "a timm ViT; empty: the backbone's own patches",
    )
    trunk_args: Annotated[dict[str, Any], HYBRID] = Field({}, description="as `backbone_args`, for the trunk")
    trunk_weights: Annotated[str, HYBRID] = Field(
        "pretrained",
        description="as `weights`, for the trunk; a `classifier.safetensors` over the same CNN serves, too",
    )
    trunk_lr_factor: float = Field(
        1.0,
        ge=0,
        description="multiplies the learning rate of the trunk, also that of timm's hybrid ViTs; 0 freezes the trunk. "
        "It must be 1 without a trunk",
    )
    similar_attention: float = Field(
        0.0,
        ge=0,
        description="initial scale of attention between similar patches, for a ViT without weights: queries and keys "
        'share one random projection. 0: timm\'s initialisation. It must be 0 unless `weights = "none"`',
    )
    freeze_batch_norm: bool = Field(
        False,
        description="keep BatchNorm statistics as loaded; needed if they were folded into the weights, or for tiny "
        "batches",
    )
    mean: Rgb | None = Field(
        None, description="input mean, in 0..1; unset: from timm's data config of the trunk or backbone"
    )
    std: tuple[Spread, Spread, Spread] | None = Field(
        None, description="input standard deviation; unset: from timm's data config of the trunk or backbone"
    )


class ObjectiveSettings(Section):
    """What the classifier learns besides the classes of an image. Each objective has a section of its own."""

    acr: bool = Field(False, description="all-pairs consistency of attention between two views (ACR); a ViT only")
    sfc: bool = Field(
        False, description="shared feature calibration (SFC): class maps agree with prototype maps and across scales"
    )
