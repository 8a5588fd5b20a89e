import re

import pytest

from cam_pipeline.config import Config
from cam_pipeline.data.check.problems import AllProblems
from cam_pipeline.errors import ConfigError, WeightsError
from cam_pipeline.stages.train_seg import check as check_stage
from cam_pipeline.training.dry_run import check_networks

CNN = {"backbone": "test_resnet"}
VIT = {"backbone": "test_vit", "pooling": "class_token"}
SEGMENTER = {"encoder": "test_resnet"}


@pytest.fixture(autouse=True)
def pretrained(monkeypatch):
    """The names of the models whose weights of timm were asked for; all are there."""
    asked = []
    monkeypatch.setattr("cam_pipeline.training.dry_run.check_pretrained", lambda key, name, more: asked.append(name))
    return asked


def found(**settings):
    """Kind and message of every problem with the networks of small settings."""
    sections = {"classifier": CNN, "segmenter": SEGMENTER, "train_cls": {"crop": 64}, "train_seg": {"crop": 64}}
    problems = AllProblems()
    check_networks(Config.model_validate(sections | settings), problems)
    assert not problems.warnings
    return [(problem.kind, problem.message) for problem in problems.errors]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"classifier": CNN | {"stride": 16}, "objectives": {"sfc": True}, "cam": {"calibration": "sfc"}},
        {"classifier": VIT | {"stride": 16}, "objectives": {"acr": True}, "cam": {"source": "class_token_gradient"}},
        {"segmenter": SEGMENTER | {"architecture": "deeplabv2", "stride": 8}},
    ],
)
def test_networks_that_can_be_had(settings):
    assert found(**settings) == []


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"segmenter": {"encoder": "test_vit"}}, "segmenter.encoder 'test_vit' cannot be used in deeplabv3plus: .*"),
        ({"train_seg": {"crop": 70}}, "train_seg.crop = 70 does not suit the network 'test_resnet': .*"),
        ({"classifier": CNN | {"stride": 12}}, "classifier.stride: backbone 'test_resnet' cannot be brought to .*"),
        (
            {"classifier": VIT, "train_cls": {"crop": 70}},
            "train_cls.crop = 70 does not suit the network 'test_vit': .*",
        ),
        ({"cam": {"source": "class_token_gradient"}}, "cam.source = 'class_token_gradient', .* does not allow it: .*"),
        ({"objectives": {"acr": True}}, "objectives.acr compares attention between patches, but .*"),
        (
            {"classifier": VIT | {"similar_attention": 1}},
            "classifier.similar_attention is a start for a ViT without .*",
        ),
        (
            {"classifier": VIT | {"trunk": "test_resnet", "trunk_weights": "none"}},
            "classifier.weights: timm has no weights for a ViT with a trunk; write 'none', or a file",
        ),
    ],
)
def test_networks_that_can_not_be_had(settings, complaint):
    [(kind, message)] = found(**settings)
    assert kind == "network that cannot serve" and re.fullmatch(complaint, message) and "\n" not in message


SMALL = {"batch_size": 1, "crop": 32}
LONE = r"{}.batch_size = 1 and {}.crop = 32 leave one value per channel where BatchNorm needs two; raise one of them"


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"train_cls": SMALL}, LONE.format("train_cls", "train_cls") + ", or set classifier.freeze_batch_norm"),
        ({"train_cls": SMALL, "classifier": CNN | {"freeze_batch_norm": True}}, ""),
        ({"train_cls": SMALL, "classifier": CNN | {"stride": 16}}, ""),
        ({"train_cls": SMALL | {"batch_size": 2}}, ""),
        ({"train_cls": SMALL | {"crop": 64}}, ""),
        ({"train_cls": SMALL, "classifier": {"backbone": "test_convnext"}}, ""),  # normalises over channels
        ({"train_cls": SMALL, "objectives": {"sfc": True}, "sfc": {"draws": 2}}, ""),  # three images in a step
        (  # whose view of half the size has one cell
            {"train_cls": SMALL, "classifier": CNN | {"stride": 16}, "objectives": {"sfc": True}, "sfc": {"draws": 0}},
            LONE.format("train_cls", "train_cls") + ", or set classifier.freeze_batch_norm",
        ),
        (
            {
                "train_cls": SMALL,
                "classifier": VIT | {"trunk": "test_resnet", "trunk_weights": "none", "weights": "none"},
                "objectives": {"acr": True},
            },
            "",  # each image and its transformed view
        ),
        (
            {"train_seg": SMALL | {"crop": 16}, "segmenter": SEGMENTER | {"architecture": "deeplabv2"}},
            LONE.format("train_seg", "train_seg").replace("32", "16") + ", or set segmenter.freeze_batch_norm",
        ),
        ({"train_seg": SMALL, "segmenter": SEGMENTER}, ""),  # check-data says so of DeepLabV3+ beside it
    ],
)
def test_batch_norm_needs_two_values_per_channel(settings, complaint):
    messages = [message for _, message in found(**settings)]
    assert [bool(re.fullmatch(complaint, message)) for message in messages] == [True] * bool(complaint), messages


def test_any_error_inside_a_network_is_one_line(monkeypatch):
    """That names the network, the crop and the kind of error."""

    def forward(self, images):
        if images.shape[-1] == 80:
            raise IndexError("tuple index\nout of range")
        return images.new_zeros(1, self.num_features, images.shape[-2] // 32, images.shape[-1] // 32)

    monkeypatch.setattr("timm.models.resnet.ResNet.forward_features", forward)
    line = "train_cls.crop = 80 does not suit the network 'test_resnet': IndexError: tuple index"
    assert found(train_cls={"crop": 80})[0] == ("network that cannot serve", line)


@pytest.mark.parametrize("error", [MemoryError("no"), RuntimeError("DefaultCPUAllocator: can't allocate memory: 1")])
def test_too_little_memory_is_not_blamed_on_the_crop(monkeypatch, error):
    def forward(self, images):
        raise error

    monkeypatch.setattr("cam_pipeline.models.classifier.Classifier.forward", forward)
    line = "train_cls.crop = 64: this machine has too little memory to try the network 'test_resnet'; lower it"
    assert found() == [("network that cannot serve", line)]


def test_names_and_weights_files_are_looked_up(tmp_path):
    weights = tmp_path / "w.pth"
    problems = found(
        classifier={"backbone": "resnt18", "weights": str(weights), "trunk": "rsnet18", "trunk_weights": "gone.pth"},
        segmenter={"encoder": "nothing_like_it", "weights": str(weights)},
    )
    remedy = "put it there, or set 'pretrained', 'none' or a path"
    assert [message.split("near: ")[0] for _, message in problems] == [
        "classifier.backbone: timm has no model 'resnt18'; ",
        "classifier.trunk: timm has no model 'rsnet18'; ",
        "segmenter.encoder: timm has no model 'nothing_like_it'; ",
        f"classifier.weights: there is no weights file {weights}; {remedy}",
        f"segmenter.weights: there is no weights file {weights}; {remedy}",
        f"classifier.trunk_weights: there is no weights file gone.pth; {remedy}",
    ]
    weights.touch()
    known = {"weights": str(weights)}
    unread = f"{weights} cannot be read as weights: EOFError"
    assert (
        found(classifier={"backbone": "resnet18.a1_in1k"} | known, segmenter=SEGMENTER | known)
        == [("network that cannot serve", unread)] * 2
    )


def test_pretrained_weights_are_asked_for_where_a_network_starts_from_them(pretrained):
    assert found() == [] and pretrained == ["test_resnet", "test_resnet"]
    pretrained.clear()
    assert found(classifier=CNN | {"weights": "none"}, segmenter=SEGMENTER | {"weights": "none"}) == []
    assert (
        found(classifier=VIT | {"weights": "none", "trunk": "test_resnet"}) == [] and pretrained == ["test_resnet"] * 2
    )


def test_weights_that_cannot_be_loaded_are_said_at_once(monkeypatch):
    def check(key, name, arguments):
        raise WeightsError(f"{key}: {name} is far away")

    monkeypatch.setattr("cam_pipeline.training.dry_run.check_pretrained", check)
    kind = "weights that cannot be loaded"
    assert found(classifier=VIT | {"weights": "none", "trunk": "test_resnet"}, segmenter={"encoder": "resnet10t"}) == [
        (kind, "segmenter.weights: resnet10t is far away"),
        (kind, "classifier.trunk_weights: test_resnet is far away"),
    ]
    with pytest.raises(WeightsError, match=r"segmenter.weights: resnet10t is far away"):
        check_stage(Config.model_validate({"segmenter": {"encoder": "resnet10t"}}))


def test_the_stage_of_the_segmenter_has_it_tried():
    with pytest.raises(ConfigError, match="cannot be used"):
        check_stage(Config.model_validate({"segmenter": {"encoder": "test_vit"}}))


def test_training_split_without_maps_is_said_before_hours_of_work():
    line = r"^cam.splits = \['extra'\] lacks 'train', .*; set cam.splits = \['train', 'extra'\]$"
    with pytest.raises(ConfigError, match=line):
        check_stage(Config.model_validate({"cam": {"splits": ["extra"]}, "segmenter": SEGMENTER | {"weights": "none"}}))
    masks = {"cam": {"splits": ["extra"]}, "train_seg": {"supervision": "masks"}}
    check_stage(Config.model_validate(masks | {"segmenter": SEGMENTER | {"weights": "none"}}))
