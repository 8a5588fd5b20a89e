"""Mix transformers, the encoders of SegFormer, as backbones beside those of timm.

Source: Xie et al., NeurIPS 2021 (arXiv 2105.15203). Layers and weights are those of segmentation-models-pytorch, which
names a licence for them that allows research and evaluation only.
"""

from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

MIX_TRANSFORMERS = tuple(f"mit_b{number}" for number in range(6))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Statistics of ImageNet, on which the weights were learned."""


class MixTransformer(nn.Module):
    """Images (B, 3, H, W) -> features (B, D, h, w), with what timm's models say about themselves.

    `blocks`: those of the last stage, the only ones with attention between all cells.
    """

    num_prefix_tokens = 0

    def __init__(self, name: str, encoder: nn.Module, widths: list[int]) -> None:
        super().__init__()
        for part, module in encoder.named_children():
            self.add_module(part, module)
        self.num_features = widths[-1]
        self.feature_info = [
            {"module": f"norm{stage}", "num_chs": width, "reduction": 2 ** (stage + 1)}
            for stage, width in enumerate(widths, start=1)
        ]
        self.pretrained_cfg = {"architecture": name, "tag": "imagenet", "mean": MEAN, "std": STD}
        for block in self.blocks:
            block.attn.fused_attn = False  # type: ignore[union-attr]  # as `AttentionTap` asks: the softmax can be read

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.get_submodule("block4").children())

    def forward_features(self, images: Tensor) -> Tensor:
        features = images
        for stage in range(1, len(self.feature_info) + 1):
            for part in ("patch_embed", "block", "norm"):
                features = self.get_submodule(f"{part}{stage}")(features)
            features = features.contiguous()
        return features

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_features(images)


def create_mix_transformer(name: str, pretrained: bool = False, **arguments: Any) -> MixTransformer:
    """A model of MIX_TRANSFORMERS, called as `timm.create_model` is; `arguments` replace its own.

    Raises TypeError for arguments that it does not take, and whatever loading weights raises.
    """
    from segmentation_models_pytorch.encoders import encoders, get_encoder  # late: it takes seconds

    settings = encoders[name]["params"] | arguments
    encoder = encoders[name]["encoder"](**settings)
    if pretrained:
        encoder.load_state_dict(get_encoder(name, weights="imagenet").state_dict())
    return MixTransformer(name, encoder, list(settings["embed_dims"]))


def mix_transformer_weights(name: str) -> SimpleNamespace:
    """Where the weights are, as timm describes its own."""
    from segmentation_models_pytorch.encoders import encoders

    place = encoders[name]["pretrained_settings"]["imagenet"]
    hub = f"{place['repo_id']}@{place['revision']}"
    return SimpleNamespace(url="", hf_hub_id=hub, hf_hub_filename="model.safetensors")
