"""The adapter over timm: the same facts hold for every family, on a grid that is not square."""

import pytest
import torch
from torch import nn

from cam_pipeline.errors import ConfigError
from cam_pipeline.models.classifier import Classifier, build_classifier
from cam_pipeline.models.hybrid import Trunk
from cam_pipeline.models.pretrained import Normalize, default_statistics
from cam_pipeline.ops.cam import classifier_cam

SAME = {"pad_type": "same"}
SHALLOW = {"depth": 2}

BACKBONES = [  # name, arguments, stride asked for, stride got, prefix tokens
    ("resnet18", {}, 0, 32, 0),
    ("resnet18", {}, 16, 16, 0),
    ("resnet18", {}, 8, 8, 0),
    ("resnet18d", {}, 16, 16, 0),  # pools in its shortcuts
    ("resnetblur18", {}, 16, 16, 0),  # strides inside BlurPool
    ("seresnet18", {}, 16, 16, 0),
    ("mobilenetv2_100", SAME, 16, 16, 0),
    ("test_efficientnet", {}, 16, 16, 0),
    ("test_convnext", {}, 16, 16, 0),  # even kernels
    ("regnetx_002", {}, 16, 16, 0),
    ("densenet121", {}, 16, 16, 0),
    ("test_vit", {}, 0, 16, 1),
    ("test_vit", {}, 16, 16, 1),
    ("vit_tiny_patch16_224", SHALLOW, 0, 16, 1),
    ("deit_tiny_distilled_patch16_224", SHALLOW, 0, 16, 2),
    ("vit_small_patch14_reg4_dinov2", SHALLOW, 0, 14, 5),
    ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 2, 1)}, 0, 32, 0),  # channels last
    ("vit_tiny_r_s16_p8_224", SHALLOW, 0, 32, 1),  # hybrid
    ("vit_small_r26_s32_224", SHALLOW, 0, 32, 1),
]


def build(name, arguments, stride, **more):
    torch.manual_seed(0)
    return build_classifier(name, 3, arguments=arguments, stride=stride, **more).eval()


@pytest.fixture(scope="module", params=BACKBONES, ids=lambda backbone: f"{backbone[0]}-{backbone[3]}")
def case(request):
    name, arguments, asked, stride, prefix_tokens = request.param
    return build(name, arguments, asked), stride, prefix_tokens


def test_every_backbone_gives_features_and_their_mean_as_logits(case):
    classifier, stride, prefix_tokens = case
    assert (classifier.stride, classifier.prefix_tokens) == (stride, prefix_tokens)
    nn.init.normal_(classifier.head.weight)
    images = torch.rand(2, 3, 2 * stride, 3 * stride, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features, logits = classifier(images)
    assert features.shape == (2, classifier.width, 2, 3) and logits.shape == (2, 3)
    assert classifier.head.weight.shape == (3, classifier.width) and classifier.head.bias is None
    means = classifier_cam(features, classifier.head.weight).mean(dim=(2, 3))
    torch.testing.assert_close(means, logits, rtol=1e-4, atol=float(logits.abs().max()) * 1e-5)
    assert not torch.equal(features[0], features[1])


def test_features_lie_where_the_image_shows_them(case):
    """A patch changes its own token most; in a CNN, of wide receptive fields, the change moves as the patch moves."""
    classifier, side, _ = case
    rows, columns = 5, 11
    images = torch.full((4, 3, rows * side, columns * side), 0.4)
    patches = torch.tensor([(0, 9), (4, 1), (2, 6)])
    for image, (row, column) in zip(images[1:], patches, strict=True):
        image[:, row * side : (row + 1) * side, column * side : (column + 1) * side] = torch.rand(
            3, side, side, generator=torch.Generator().manual_seed(2)
        )
    with torch.no_grad():
        features = classifier(images).features
    change = (features[1:] - features[0]).square().sum(dim=1)
    strongest = [divmod(int(one.argmax()), columns) for one in change]
    if classifier.prefix_tokens and not hasattr(classifier.backbone.patch_embed, "backbone"):
        assert strongest == [tuple(patch) for patch in patches.tolist()]
    share = change / change.sum(dim=(1, 2), keepdim=True)
    centre_row = (share.sum(dim=2) * torch.arange(rows)).sum(dim=1)
    centre_column = (share.sum(dim=1) * torch.arange(columns)).sum(dim=1)
    assert centre_row.argsort().tolist() == patches[:, 0].argsort().tolist()
    assert centre_column.argsort().tolist() == patches[:, 1].argsort().tolist()


def test_bytes_and_floats_are_the_same_image():
    classifier = build("test_resnet", {}, 0)
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(classifier(images).logits, classifier(images.float() / 255).logits)


def test_normalize_by_hand():
    normalize = Normalize((0.2, 0.4, 0.6), (0.1, 0.2, 0.5))
    images = torch.tensor([255, 51, 153], dtype=torch.uint8).view(1, 3, 1, 1)
    torch.testing.assert_close(normalize(images).flatten(), torch.tensor([8.0, -1.0, 0.0]))
    assert normalize.fill == (51, 102, 153)
    assert normalize(torch.tensor(normalize.fill, dtype=torch.uint8).view(1, 3, 1, 1)).abs().max() < 1e-6
    assert set(normalize.state_dict()) == {"mean", "std"}, "the statistics travel with the weights"


def test_statistics_come_from_timm_unless_given():
    classifier = build("resnet18", {}, 0)
    assert default_statistics(classifier.backbone)[0] == (0.485, 0.456, 0.406)
    torch.testing.assert_close(classifier.normalize.std.flatten(), torch.tensor([0.229, 0.224, 0.225]))
    classifier = build("resnet18", {}, 0, mean=(0.1, 0.2, 0.3))
    torch.testing.assert_close(classifier.normalize.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    torch.testing.assert_close(classifier.normalize.std.flatten(), torch.tensor([0.229, 0.224, 0.225]))


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_batch_norm_keeps_its_statistics_and_still_learns(frozen):
    classifier = build("test_resnet", {}, 0, freeze_batch_norm=frozen).train()
    norms = [module for module in classifier.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms]
    scale = norms[0].weight.detach().clone()
    classifier(torch.rand(2, 3, 64, 96)).logits.square().sum().backward()
    torch.optim.SGD(classifier.parameters(), lr=1.0).step()
    kept = [
        torch.equal(norm.running_mean, mean) and torch.equal(norm.running_var, variance)
        for norm, (mean, variance) in zip(norms, before, strict=True)
    ]
    assert all(kept) if frozen else not any(kept)
    assert not torch.equal(norms[0].weight, scale)
    assert classifier.training and classifier.head.training
    assert classifier.eval().training is False and not any(module.training for module in classifier.modules())


def test_building_leaves_the_backbone_in_training_mode_and_untouched():
    classifier = build_classifier("test_resnet", 3, stride=8)
    assert all(module.training for module in classifier.modules())
    norm = next(module for module in classifier.modules() if isinstance(module, nn.BatchNorm2d))
    assert norm.num_batches_tracked == 0 and (norm.running_mean == 0).all()
    assert all(parameter.grad is None and parameter.requires_grad for parameter in classifier.parameters())


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (dict(backbone="resnet81"), r"timm has no model 'resnet81'; near: resnet\d+"),
        (dict(backbone="zzz"), "timm has no model 'zzz'; near: none"),
        (dict(backbone="resnet18.no_such_tag"), "'resnet18.no_such_tag' cannot be built"),
        (dict(backbone="resnet18", arguments={"depht": 3}), "'resnet18' does not take .*depht"),
        (
            dict(backbone="test_vit", stride=8),
            r"classifier.stride: .* brought to stride 8: that of a ViT is .* its patches; its own is 16 \(write 0\)",
        ),
        (dict(backbone="resnet18", stride=64), r"classifier.stride: .* its own is 32 \(write 0\)"),
        (dict(backbone="resnet18", stride=12), "classifier.stride: .* brought to stride 12"),
        (dict(backbone="hrnet_w18_small", stride=16), "classifier.stride: .* brought to stride 16"),
        (dict(backbone="levit_128s"), "'levit_128s' does not take images of any size"),
        (dict(backbone="mvitv2_tiny"), "'mvitv2_tiny' does not take images of any size"),
        (dict(backbone="maxvit_pico_rw_256"), "'maxvit_pico_rw_256' does not take images of any size"),
        (dict(backbone="inception_v3"), "'inception_v3' does not cut images into whole cells"),
        (dict(backbone="coat_tiny"), "'coat_tiny' does not take images of any size, only of 224 x 224 pixels$"),
        (dict(backbone="halonet_h1"), "'halonet_h1' does not take images of any size, only of 256 x 256 pixels$"),
        (
            dict(backbone="xcit_nano_12_p16_224"),
            "'xcit_nano_12_p16_224' gives tokens that cannot be placed: timm does not say where",
        ),
        (
            dict(backbone="twins_svt_small", arguments={"depths": (1, 1, 1, 1)}),
            "cannot be placed: .*; take a CNN, or a ViT",
        ),
        (dict(backbone="crossvit_tiny_240"), "'crossvit_tiny_240' gives a list of several results, where one feature"),
        (
            dict(backbone="resnet10t", arguments={"channels": []}),
            r"with the arguments {'channels': \[\]}: IndexError: ",
        ),
        (
            dict(backbone="resnet10t", arguments={"channels": 5}),
            r"does not take these arguments {'channels': 5}: .*int",
        ),
        (
            dict(backbone="resnet10t", arguments={"channels": [8, 16, 24, 0]}),
            r"'resnet10t' with the arguments {'channels': \[8, 16, 24, 0\]} fails on images: .*at least 1",
        ),
        (
            dict(backbone="test_vit", arguments={"embed_dim": 7}),
            "{'embed_dim': 7}: AssertionError: dim should be divis",
        ),
        (dict(backbone="test_vit", arguments={"patch_size": 0}), "{'patch_size': 0}: ZeroDivisionError: "),
        (dict(backbone="test_vit", arguments={"num_heads": 0}), "{'num_heads': 0}: ZeroDivisionError: "),
        (dict(backbone="resnet18", arguments={"act_layer": "relo"}), "{'act_layer': 'relo'}: KeyError: 'relo'"),
        (dict(backbone="resnet18", arguments={"output_stride": 5}), "{'output_stride': 5}: AssertionError"),
        (dict(backbone="test_vit", arguments={"drop_path_rate": 2.0}), r"drop_path_rate must be a number in 0\.\.1"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, complaint):
    with pytest.raises(ConfigError, match=complaint) as caught:
        build_classifier(num_classes=3, **arguments)
    assert "\n" not in str(caught.value)


class Rounding(nn.Module):
    """Gives a row of cells too many, or tokens of another number, for images that are not square."""

    num_features = 4
    tokens = False

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 8, 8)

    def forward_features(self, images):
        seen = self.layer(images)
        if images.shape[-1] != images.shape[-2]:
            seen = torch.cat([seen, seen[:, :, -1:]], dim=2)
        return seen.flatten(2).transpose(1, 2) if self.tokens else seen


@pytest.mark.parametrize("tokens", [False, True])
def test_the_grid_of_every_map_is_compared_with_the_images(tokens):
    backbone = Rounding()
    classifier = Classifier(backbone, 2, 8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert classifier(torch.zeros(1, 3, 32, 32)).features.shape == (1, 4, 4, 4)
    backbone.tokens = tokens
    line = r"classifier.backbone: Rounding gives features \(1, .*\) for images of 32 x 40 .*, where stride 8 has 4 x 5 "
    with pytest.raises(ConfigError, match=line):
        classifier(torch.zeros(1, 3, 32, 40))


def test_crops_that_are_no_multiple_of_the_stride_are_rounded():
    assert build("resnet18", {}, 0)(torch.zeros(1, 3, 70, 64)).features.shape[2:] == (3, 2)


def test_cells_that_cannot_be_placed_are_warned_of(caplog, monkeypatch):
    class Other(Rounding):
        def forward_features(self, images):
            return torch.zeros(1, 4, images.shape[-2] // 8, images.shape[-1] // 8)

    half = (0.5, 0.5, 0.5)
    assert Classifier(Other(), 2, 8, half, half).offset == 0
    assert "where the cells of this Other lie cannot be measured (" in caplog.text
    caplog.clear()
    monkeypatch.setattr("cam_pipeline.models.classifier.cell_offset", lambda backbone, stride: (-94.0, 409.0))
    assert Classifier(Rounding(), 2, 8, half, half).offset == 0  # as of a Sequencer, which has LSTMs
    assert "cannot be measured (-94.0 pixels down, but 409.0 right)" in caplog.text


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ({"features_only": True}, "features of several depths"),
        ({"out_indices": [1, 2]}, "features of several depths"),
        ({"feature_cls": "hook"}, "features of several depths"),
        ({"num_classes": 5}, "follows from data.classes"),
        ({"in_chans": 1}, "images have 3 channels"),
        ({"in_chans": 4}, "images have 3 channels"),
        ({"patch_drop_rate": 0.5}, "every cell of a map is needed"),
        ({"pretrained": True}, "write the file, or 'pretrained', as classifier.weights"),
        ({"checkpoint_path": "a.pth"}, "write the file, or 'pretrained', as classifier.weights"),
        ({"pretrained_cfg": {"file": "a.pth"}}, "write the file, or 'pretrained', as classifier.weights"),
        ({"pretrained_cfg_overlay": {"file": "a.pth"}}, "write the file, or 'pretrained', as classifier.weights"),
        ({"device": "meta"}, "run.device says where"),
        ({"dtype": "float16"}, "run.precision says in which"),
    ],
)
def test_arguments_that_change_what_a_model_is_are_refused(argument, reason):
    (name,) = argument
    line = rf"classifier.backbone_args: {name} = .* does not suit; take it out: .*{reason}"
    with pytest.raises(ConfigError, match=line):
        build_classifier("test_resnet", 2, arguments=argument)
    trunk = Trunk("test_resnet", argument, "none")
    with pytest.raises(ConfigError, match=line.replace("backbone", "trunk")):
        build_classifier("test_vit", 2, trunk=trunk)


@pytest.mark.parametrize(
    "argument",
    [
        {"num_classes": 0, "in_chans": 3, "features_only": False},
        {"drop_path_rate": 0.1, "drop_rate": 0.5},
        {"pretrained_cfg": "r160_in1k"},
        {"global_pool": "max"},
        {"scriptable": True},
        {"exportable": True},
        {"cache_dir": "weights"},
        {"output_stride": 16},
    ],
)
def test_other_arguments_are_free(argument):
    build_classifier("test_resnet", 2, arguments=argument)
