"""Settings of the classifier, and what it learns."""

from typing import Any, Literal

from pydantic import Field

from cam_pipeline.config.section import Positive, Rgb, Section


class ClassifierSettings(Section):
    """The image classifier that CAMs are read from."""

    backbone: str = Field("resnet50", description="any timm model that gives a feature map: ResNet, other CNN or ViT")
    backbone_args: dict[str, Any] = Field(
        {}, description='extra arguments for `timm.create_model`, e.g. `{pad_type = "same"}`'
    )
    weights: str = Field(
        "pretrained",
        description="`pretrained` (timm's hub), `none`, or the path of a .pth or .safetensors file "
        "made for this backbone; `{data.root}` in it stands for `data.root`",
    )
    stride: int = Field(
        0,
        ge=0,
        le=1024,
        description="input pixels per feature cell of a CNN, reached by undoing late strides; 0: the backbone's own",
    )
    pooling: Literal["patches", "class_token"] = Field(
        "patches",
        description="what the logits are read from: the mean of the feature map, or the class token of a ViT "
        '(`cam.source = "class_token_gradient"` needs the latter)',
    )
    trunk: str = Field(
        "",
        description="for a hybrid ViT: the timm CNN whose feature map, at `stride`, gives the tokens of `backbone`, "
        "a timm ViT; empty: the backbone's own patches",
    )
    trunk_args: dict[str, Any] = Field({}, description="as `backbone_args`, for the trunk")
    trunk_weights: str = Field(
        "pretrained", description="as `weights`, for the trunk; also a `classifier.safetensors` over the same CNN"
    )
    trunk_lr_factor: float = Field(
        1.0, ge=0, description="learning rate of the trunk as a multiple of what it would be; 0 freezes it"
    )
    similar_attention: float = Field(
        0.0,
        ge=0,
        description="for a ViT that starts from `none`: its queries and keys start as this multiple of one random "
        "projection, so that patches attend to those that look alike; 0: as timm starts them",
    )
    freeze_batch_norm: bool = Field(
        False, description="keep BatchNorm statistics as loaded (needed when they were folded, or for tiny batches)"
    )
    mean: Rgb | None = Field(None, description="input mean; unset: from timm's data config of the trunk or backbone")
    std: tuple[Positive, Positive, Positive] | None = Field(
        None, description="input standard deviation; unset: from timm's data config of the trunk or backbone"
    )


class ObjectiveSettings(Section):
    """What the classifier learns beside which classes an image shows. Each has a section of its own settings."""

    acr: bool = Field(False, description="all-pairs consistency of attention between two views (ACR); a ViT only")
    sfc: bool = Field(
        False, description="shared feature calibration (SFC): class maps agree with prototype maps and across scales"
    )
