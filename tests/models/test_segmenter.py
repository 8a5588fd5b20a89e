import pytest
import timm
import torch
from torch import nn

from cam_pipeline.errors import ConfigError, WeightsError
from cam_pipeline.models.segmenter import DeepLabV2, build_segmenter

ARCHITECTURES = ("deeplabv3plus", "deeplabv2")
SAME = {"pad_type": "same"}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("encoder", "arguments"),
    [("resnet18", {}), ("mobilenetv2_100", SAME), ("test_convnext", {}), ("regnetx_002", {})],
)
def test_logits_have_the_size_of_the_image(architecture, encoder, arguments):
    segmenter = build_segmenter(architecture, encoder, 21, arguments=arguments).eval()
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        logits = segmenter(images)
        torch.testing.assert_close(segmenter(images.float() / 255), logits)
    assert logits.shape == (2, 21, 64, 96)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("stride", [8, 16])
def test_stride_of_the_encoder(architecture, stride):
    segmenter = build_segmenter(architecture, "test_resnet", 4, stride=stride).eval()
    with torch.no_grad():
        pyramid = segmenter.pretrained_half()(torch.rand(1, 3, 64, 96))
    assert pyramid[-1].shape[2:] == (64 // stride, 96 // stride)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("encoder", ["test_resnet", "test_convnext"])
def test_encoder_weights_are_those_of_the_file(tmp_path, architecture, encoder):
    torch.manual_seed(1)
    source, path = timm.create_model(encoder, num_classes=0), tmp_path / "w.pth"
    torch.save(source.state_dict(), path)
    torch.manual_seed(2)
    segmenter = build_segmenter(architecture, encoder, 21, weights=str(path), stride=16).eval()
    given = {key.replace(".", "_"): value for key, value in source.state_dict().items()}
    loaded = segmenter.pretrained_half().state_dict()
    assert loaded and all(torch.equal(value, given[key.replace(".", "_")]) for key, value in loaded.items())
    # And they are what the network computes with: its first stages have the strides of the plain backbone.
    inputs = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected = source.eval().forward_intermediates(inputs, intermediates_only=True)
        pyramid = segmenter.pretrained_half()(inputs)
    assert any(torch.allclose(pyramid[1], one, atol=1e-5) for one in expected if one.shape == pyramid[1].shape)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_tensor_is_registered_once(architecture):
    segmenter = build_segmenter(architecture, "test_resnet", 21)
    state = segmenter.state_dict()
    assert len({value.data_ptr() for value in state.values()}) == len(state)
    assert {key.split(".")[0] for key in state} == {"normalize", "network"}
    encoder = {id(parameter) for parameter in segmenter.pretrained_half().parameters()}
    parameters = [id(parameter) for parameter in segmenter.parameters()]
    assert encoder < set(parameters) and len(parameters) == len(set(parameters))
    last = [value.shape[0] for key, value in state.items() if key.endswith("weight")][-1]
    assert last == 21


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_frozen_batch_norm_is_that_of_the_encoder_only(architecture):
    segmenter = build_segmenter(architecture, "test_resnet", 4, freeze_batch_norm=True).train()
    before = {key: value.clone() for key, value in segmenter.state_dict().items() if "running_" in key}
    segmenter(torch.rand(2, 3, 64, 64))
    inside = {key for key, module in segmenter.named_modules() if module is segmenter.pretrained_half()}.pop()
    changed = {key for key, value in before.items() if not torch.equal(value, segmenter.state_dict()[key])}
    assert changed == {key for key in before if not key.startswith(inside + ".")}
    assert bool(changed) == (architecture == "deeplabv3plus"), "the other decoder has no BatchNorm"
    segmenter.freeze_batch_norm = False
    segmenter.train()(torch.rand(2, 3, 64, 64))
    assert all(not torch.equal(value, segmenter.state_dict()[key]) for key, value in before.items())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_statistics_of_the_input(architecture):
    segmenter = build_segmenter(architecture, "resnet18", 3)
    torch.testing.assert_close(segmenter.normalize.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
    segmenter = build_segmenter(architecture, "resnet18", 3, std=(0.5, 0.25, 0.125))
    torch.testing.assert_close(segmenter.normalize.std.flatten(), torch.tensor([0.5, 0.25, 0.125]))


class Identity(nn.Module):
    def forward(self, images):
        return [images.new_zeros(1), images[:, :, ::2, ::2]]


def test_deeplabv2_sums_four_dilated_branches():
    head = DeepLabV2(Identity(), width=3, num_classes=2)
    with torch.no_grad():
        for number, branch in enumerate(head.branches):
            branch.weight.zero_()
            branch.weight[1, 0] = 10**number
            branch.bias.fill_(0.25)
    images = torch.zeros(1, 3, 102, 122)
    images[0, 0, 50, 60] = 1  # cell (25, 30) of 51 x 61
    with torch.no_grad():
        logits = head(images)
    assert logits.shape == (1, 2, 102, 122)
    torch.testing.assert_close(logits[0, 0], torch.ones(102, 122))  # the biases of four branches
    with torch.no_grad():
        cells = sum(branch(head.encoder(images)[-1]) for branch in head.branches)[0, 1] - 1
    assert float(cells[25, 30]) == pytest.approx(1111, abs=1e-3)
    for number, rate in enumerate((6, 12, 18, 24)):
        for row, column in [(-1, -1), (-1, 0), (0, 1), (1, 1)]:
            assert float(cells[25 + row * rate, 30 + column * rate]) == pytest.approx(10**number, abs=1e-3)
    assert int((cells.abs() > 1e-3).sum()) == 1 + 4 * 8


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("arguments", "error", "complaint"),
    [
        (dict(encoder="resnet81"), ConfigError, "timm has no model 'resnet81'; near: resnet"),
        (dict(encoder="resnet18", arguments={"depht": 1}), ConfigError, "does not take .*depht"),
        (dict(encoder="test_vit"), ConfigError, "'test_vit'"),
        (
            dict(encoder="hrnet_w18_small"),
            ConfigError,
            "'hrnet_w18_small' cannot be used in deeplabv.*to stride 16; take",
        ),
        (
            dict(encoder="densenet121"),
            ConfigError,
            "'densenet121' cannot be used in deeplabv.* to stride 16; take a CNN",
        ),
        (
            dict(encoder="resnet10t", arguments={"channels": []}),
            ConfigError,
            r"the arguments .*{'channels': \[\]}: Index",
        ),
        (
            dict(encoder="resnet10t", arguments={"in_chans": 1}),
            ConfigError,
            "segmenter.encoder_args: in_chans = 1 does not",
        ),
        (
            dict(encoder="resnet10t", arguments={"features_only": True}),
            ConfigError,
            "encoder_args: features_only = True ",
        ),
        (dict(encoder="test_resnet", weights="pretrained"), WeightsError, "weights of 'test_resnet' cannot be loaded"),
        (dict(encoder="test_resnet", weights="gone.pth"), WeightsError, "there is no weights file gone.pth"),
    ],
)
def test_mistakes_are_told_in_one_line(architecture, arguments, error, complaint):
    with pytest.raises(error, match=complaint) as caught:
        build_segmenter(architecture, num_labels=4, **arguments)
    assert "\n" not in str(caught.value)
