import pytest
import torch
from torch import nn

from cam_pipeline.config import TrainSettings
from cam_pipeline.errors import ConfigError, WeightsError
from cam_pipeline.models.classifier import build_classifier
from cam_pipeline.models.hybrid import Trunk, trunk_of
from cam_pipeline.store.checkpoints import save_model
from cam_pipeline.training.optimizer import make_optimizer

SMALL = {"depth": 2, "embed_dim": 24, "num_heads": 3}
TRUNKS = [  # name, arguments, stride asked for, stride got
    ("mobilenetv2_100", {"pad_type": "same"}, 16, 16),
    ("test_resnet", {}, 16, 16),
    ("test_resnet", {}, 0, 32),
    ("test_convnext", {}, 16, 16),
    ("regnetx_002", {}, 8, 8),
]


def build(trunk="test_resnet", stride=16, *, name="vit_tiny_patch16_224", arguments=None, lr_factor=1.0, **more):
    torch.manual_seed(0)
    spec = trunk if isinstance(trunk, Trunk) else Trunk(trunk, arguments or {}, "none")
    return build_classifier(name, 3, arguments=SMALL, stride=stride, trunk=spec, trunk_lr_factor=lr_factor, **more)


@pytest.mark.parametrize(("name", "arguments", "asked", "stride"), TRUNKS)
def test_a_cell_of_the_trunk_is_a_token(name, arguments, asked, stride):
    classifier = build(name, asked, arguments=arguments, pooling="class_token").eval()
    assert (classifier.stride, classifier.prefix_tokens, classifier.width) == (stride, 1, 24)
    seen = []
    handle = classifier.backbone.blocks[0].register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].shape)
    )
    images = torch.rand(2, 3, 2 * stride, 3 * stride)
    with torch.no_grad():
        features, logits = classifier(images)
        trunk = trunk_of(classifier.backbone)(classifier.normalize(images))
    handle.remove()
    assert features.shape == (2, 24, 2, 3) and logits.shape == (2, 3) and seen == [(2, 7, 24)]
    assert trunk.shape[0] == 2 and trunk.shape[2:] == (2, 3)


def test_tokens_lie_where_the_trunk_puts_them():
    """Row by row, on a grid that is not square, also where the position embedding was made for another grid."""
    classifier = build(pooling="patches").eval()
    images = torch.rand(1, 3, 32, 48)
    expected = []

    def watch(module, inputs):
        expected.append(inputs[0])

    handle = classifier.backbone.patch_embed.proj.register_forward_pre_hook(watch)
    seen = []
    other = classifier.backbone.patch_embed.register_forward_hook(lambda m, i, output: seen.append(output))
    with torch.no_grad():
        classifier(images)
    handle.remove()
    other.remove()
    projected = classifier.backbone.patch_embed.proj(expected[0])
    tokens = seen[0].flatten(1, -2) if seen[0].dim() == 4 else seen[0]
    torch.testing.assert_close(tokens, projected.flatten(2).transpose(1, 2))


def test_weights_of_the_trunk_fit_or_it_is_not_built(tmp_path):
    source = build_classifier("test_resnet", 3).backbone
    torch.save(source.state_dict(), tmp_path / "trunk.pth")
    torch.manual_seed(5)
    classifier = build(Trunk("test_resnet", {}, str(tmp_path / "trunk.pth")))
    for key, value in trunk_of(classifier.backbone).network.state_dict().items():
        assert torch.equal(value, source.state_dict()[key])
    with pytest.raises(WeightsError, match="does not fit the backbone"):
        build(Trunk("resnet10t", {}, str(tmp_path / "trunk.pth")))


def test_a_trained_classifier_lends_its_backbone(tmp_path):
    cnn = build_classifier("test_resnet", 3, stride=16)
    save_model(tmp_path / "classifier.safetensors", cnn, {"classes": ("a", "b", "c"), "fingerprint": "f"})
    torch.manual_seed(5)
    trunk = trunk_of(build(Trunk("test_resnet", {}, str(tmp_path / "classifier.safetensors"))).backbone).network
    for key, value in trunk.state_dict().items():
        assert torch.equal(value, cnn.backbone.state_dict()[key])


def test_input_statistics_are_those_of_the_trunk():
    classifier = build("mobilenetv2_100")
    torch.testing.assert_close(classifier.normalize.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
    vit = build_classifier("vit_tiny_patch16_224", 3, arguments=SMALL)
    torch.testing.assert_close(vit.normalize.mean.flatten(), torch.tensor([0.5, 0.5, 0.5]))


def rates(classifier):
    """Learning rate of the trunk, of the transformer and of the head."""
    settings = TrainSettings(lr=1e-3, head_lr_factor=10.0)
    found = {id(p): group["lr"] for group in make_optimizer(classifier, settings).param_groups for p in group["params"]}
    trunk = trunk_of(classifier.backbone)
    of_trunk = {found.get(id(p)) for p in trunk.parameters()}
    inside = {id(p) for p in trunk.parameters()}
    transformer = {found.get(id(p)) for p in classifier.backbone.parameters() if id(p) not in inside}
    return of_trunk, transformer, {found.get(id(p)) for p in classifier.head.parameters()}


def test_a_new_transformer_learns_as_fast_as_the_head():
    assert rates(build()) == ({1e-3}, {1e-2}, {1e-2})
    assert rates(build(lr_factor=0.5)) == ({5e-4}, {1e-2}, {1e-2})
    assert rates(build(lr_factor=0.0)) == ({None}, {1e-2}, {1e-2})


def test_a_transformer_with_weights_learns_as_the_trunk(tmp_path):
    torch.save(build().backbone.state_dict(), tmp_path / "hybrid.pth")
    classifier = build(lr_factor=0.5, weights=str(tmp_path / "hybrid.pth"))
    assert rates(classifier) == ({5e-4}, {1e-3}, {1e-2})


def test_a_frozen_trunk_stays_as_it_is():
    classifier = build(lr_factor=0.0).train()
    trunk = trunk_of(classifier.backbone)
    before = {key: value.clone() for key, value in trunk.state_dict().items()}
    optimizer = make_optimizer(classifier, TrainSettings(lr=0.1))
    classifier(torch.rand(4, 3, 32, 48)).logits.square().sum().backward()
    optimizer.step()
    assert all(torch.equal(value, before[key]) for key, value in trunk.state_dict().items())
    assert classifier.backbone.blocks[0].training and not any(module.training for module in trunk.modules())


@pytest.mark.parametrize("frozen", [False, True])
def test_batch_norm_of_the_trunk(frozen):
    classifier = build(freeze_batch_norm=frozen).train()
    norms = [module for module in classifier.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and all(module.training != frozen for module in norms)


def test_refusals():
    with pytest.raises(
        ConfigError, match=r"classifier\.trunk: 'test_vit' (gives no feature map|does not take images of any size)"
    ):
        build("test_vit")
    with pytest.raises(ConfigError, match=r"classifier\.stride: trunk 'test_resnet' cannot be brought to stride 5"):
        build(stride=5)
    with pytest.raises(ConfigError, match="timm has no weights for a ViT with a trunk"):
        build(weights="pretrained")
    with pytest.raises(ConfigError, match=r"classifier\.backbone: 'test_resnet' does not take the features of a trunk"):
        build(name="test_resnet")
    with pytest.raises(ConfigError, match=r"classifier\.pooling: 'test_resnet' has no class token"):
        build_classifier("test_resnet", 3, pooling="class_token")
    with pytest.raises(ConfigError, match="has no class token"):
        build_classifier("vit_little_patch16_reg4_gap_256", 3, arguments={"depth": 1}, pooling="class_token")
    with pytest.raises(ConfigError, match="timm has no model 'mobilenet_v2'"):
        build("mobilenet_v2")
    with pytest.raises(ConfigError, match=r"classifier\.trunk: 'swin_tiny_patch4_window7_224' does not take images"):
        build("swin_tiny_patch4_window7_224")
    for wrong in ({"embed_dim": 25}, {"class_token": False}):
        with pytest.raises(ConfigError, match="timm model 'vit_tiny_patch16_224' cannot be built"):
            build_classifier("vit_tiny_patch16_224", 3, arguments=SMALL | wrong, trunk=Trunk("test_resnet", {}, "none"))
    with pytest.raises(ConfigError, match=r"classifier\.trunk_lr_factor: 'test_vit' has no trunk; write 1"):
        build_classifier("test_vit", 3, trunk_lr_factor=0.5)


@pytest.mark.parametrize("side", [50, 224, 518])
def test_the_stride_is_the_trunks_whatever_the_size_of_the_position_embedding(side):
    arguments = SMALL | {"img_size": side}
    classifier = build_classifier(
        "vit_tiny_patch16_224", 3, arguments=arguments, stride=16, trunk=Trunk("test_resnet", {}, "none")
    )
    assert classifier.stride == 16
    with torch.no_grad():
        assert classifier.eval()(torch.rand(1, 3, 80, 176)).features.shape == (1, 24, 5, 11)


def test_the_trunk_of_timms_own_hybrids_can_be_frozen():
    classifier = build_classifier("vit_tiny_r_s16_p8_224", 3, arguments={"depth": 1}, trunk_lr_factor=0.0)
    assert not any(parameter.requires_grad for parameter in trunk_of(classifier.backbone).parameters())
    assert all(parameter.requires_grad for parameter in classifier.backbone.blocks.parameters())


@pytest.mark.parametrize(
    ("name", "stride", "pixels"), [("test_convnext", 16, 8), ("test_convnext", 0, 0), ("resnet18", 16, -7.5)]
)
def test_tokens_lie_where_the_cells_of_the_trunk_do(name, stride, pixels):
    classifier = build(name, stride)
    assert classifier.offset * classifier.stride == pytest.approx(pixels)
