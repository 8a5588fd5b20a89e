from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F

from cam_pipeline.config import Config
from cam_pipeline.errors import ConfigError
from cam_pipeline.models.segmenter import build_segmenter
from cam_pipeline.ops.losses import segmentation_loss
from cam_pipeline.training.loss import Loss
from cam_pipeline.training.objectives import segmenter_objectives
from cam_pipeline.training.objectives import self_regulation as module
from cam_pipeline.training.objectives.self_regulation import right, shown_labels

LABELS = torch.tensor([[1.0, 0], [0, 1], [torch.nan, torch.nan]])


def built(encoder="resnet18", **settings):
    """A segmenter with exits on strides 4, 8, 16 and its own answer, and its loss."""
    torch.manual_seed(0)
    config = Config.model_validate(
        {"segmenter": {"self_regulation": True, "encoder": encoder}, "self_regulation": settings}
    )
    segmenter = build_segmenter("deeplabv3plus", encoder, 3)
    return segmenter, Loss(segmenter, segmenter_objectives(segmenter, config, LABELS))


def batch(ignored=0.2):
    generator = torch.Generator().manual_seed(1)
    mask = torch.randint(0, 3, (2, 8, 8), generator=generator).repeat_interleave(8, 1).repeat_interleave(8, 2)
    mask[torch.rand(mask.shape, generator=generator) < ignored] = 255
    images = torch.randint(0, 256, (2, 3, 64, 64), generator=generator, dtype=torch.uint8)
    return {"image": images, "index": torch.tensor([0, 1]), "box": torch.zeros(2, 4), "mask": mask.to(torch.uint8)}


def exits_of(segmenter, given):
    """All exits, in evaluation mode: dropout would draw others in the next pass."""
    segmenter.eval()
    with module.PyramidTap(segmenter.pretrained_half(), [1, 2, 3, 4]) as tap:
        logits = segmenter(given["image"])
    return segmenter.exits(tap.take(), logits)


def names(terms):
    return [name for name in terms if name != "loss"]


def test_terms_before_and_after_the_start():
    _, loss = built(start=0.5, ramp=0.0)
    multi_exit = ["segmentation", "sr.segmentation_1", "sr.segmentation_2", "sr.segmentation_3", "sr.presence"]
    with patch.object(module, "sr_label_loss") as deep, patch.object(module, "sr_feature_loss") as shallow:
        assert names(loss(batch(), 0.4)) == multi_exit
        assert not deep.called and not shallow.called
    with (
        patch.object(module, "sr_label_loss", wraps=module.sr_label_loss) as deep,
        patch.object(module, "sr_feature_loss", wraps=module.sr_feature_loss) as shallow,
    ):
        taught = [f"sr.deep_to_shallow_{exit}{what}" for exit in (1, 2, 3) for what in ("", "_apart")]
        taught += ["sr.shallow_to_deep_2", "sr.shallow_right", "sr.shallow_to_deep_3", "sr.shallow_to_deep_4"]
        assert names(loss(batch(), 0.5)) == [*multi_exit, *taught]
        assert deep.call_count == 2 * shallow.call_count == 6  # also of each teacher with itself


def test_the_scale_of_the_release():
    """Five exits; with all cross entropies 1, all of presence .3, SR-L .2 and SR-F .8 the total is 8.3, 4.3 before."""
    _, loss = built(shallowest_stride=2, start=0.5, ramp=0.0)
    with (
        patch.object(module, "segmentation_loss", return_value=torch.tensor(1.0)),
        patch("cam_pipeline.training.objectives.segmentation.segmentation_loss", return_value=torch.tensor(1.0)),
        patch.object(module, "presence_loss", return_value=torch.tensor(0.3)),
        patch.object(module, "sr_label_loss", return_value=torch.tensor(0.2)),
        patch.object(module, "sr_feature_loss", return_value=torch.tensor(0.8)),
    ):
        assert loss(batch(), 0.0)["loss"].item() == pytest.approx(4.3)
        assert loss(batch(), 1.0)["loss"].item() == pytest.approx(8.3)


def test_the_total_is_linear_in_the_weights():
    def total(segmentation, presence, deep, shallow, reduction="sum"):
        _, loss = built(
            segmentation_weight=segmentation,
            class_weight=presence,
            label_weight=deep,
            feature_weight=shallow,
            reduction=reduction,
            start=0.0,
            ramp=0.0,
        )
        return loss(batch(), 0.3)["loss"].item()

    ones = [total(*(float(i == j) for i in range(4))) for j in range(4)]
    assert all(value > 0 for value in ones)
    weights = (0.8, 0.2, 1.5, 0.7)
    assert total(*weights) == pytest.approx(sum(w * one for w, one in zip(weights, ones, strict=True)), rel=1e-5)
    # four exits; the extreme one teaches three
    mean = sum(w * one / n for w, one, n in zip(weights, ones, (4, 4, 3, 3), strict=True))
    assert total(*weights, reduction="mean") == pytest.approx(mean, rel=1e-5)


def test_with_the_weights_of_teaching_at_zero_it_is_plain_deep_supervision():
    segmenter, loss = built(segmentation_weight=1.0, class_weight=0.0, label_weight=0.0, feature_weight=0.0)
    given = batch()
    exits = exits_of(segmenter, given)
    expected = segmentation_loss(exits[-1].logits, given["mask"])
    for one in exits[:-1]:
        side = one.logits.shape[-1]
        at = ((torch.arange(side) + 0.5) * 64 / side).long()
        expected = expected + segmentation_loss(one.logits, given["mask"][:, at][:, :, at])
    torch.testing.assert_close(loss(given, 1.0)["loss"], expected)


@pytest.mark.parametrize(
    ("only", "teacher", "students"),
    [
        ({"label_weight": 1.0, "label_mode": "presence"}, "presence", "heads"),
        ({"label_weight": 1.0, "label_mode": "pixel"}, "network.segmentation_head", "heads"),
        ({"feature_weight": 1.0}, "exits.heads.0", "exits.heads.1"),
        ({"feature_weight": 1.0, "feature_mode": "soft"}, "exits.heads.0", "exits.deepest"),
    ],
)
def test_teachers_learn_nothing(only, teacher, students):
    weights = dict.fromkeys(("segmentation_weight", "class_weight", "label_weight", "feature_weight"), 0.0)
    segmenter, loss = built(**(weights | only), start=0.0, ramp=0.0)
    loss(batch(), 1.0)["loss"].backward()
    moved = {
        name for name, parameter in segmenter.named_parameters() if parameter.grad is not None and parameter.grad.any()
    }
    if teacher == "presence":
        assert not any(name.startswith("exits.presence") for name in moved)
        assert any(name.startswith("exits.heads.0.presence") for name in moved)
    else:
        assert not any(name.startswith(teacher) for name in moved)
        assert any(students in name for name in moved)


@pytest.mark.parametrize("modes", [("presence", "released"), ("pixel", "soft")])
def test_ignored_pixels_teach_nothing(modes):
    settings = dict(label_mode=modes[0], feature_mode=modes[1], start=0.0, ramp=0.0, class_weight=0.0)
    _, loss = built(**settings)
    given = batch(ignored=1.0)
    terms = loss(given, 1.0)
    assert terms["segmentation"] == 0 and terms["sr.segmentation_1"] == 0 and terms["sr.shallow_to_deep_4"] == 0
    assert terms["loss"].isfinite()
    as_released = built(**settings, ignore_to_background=True)[1](given, 1.0)
    assert all(as_released[name] > 0 for name in ("segmentation", "sr.segmentation_1", "sr.shallow_to_deep_4"))


@pytest.mark.parametrize("gate", ["none", "confidence", "agreement", "ignored"])
def test_gates(gate):
    objective = built(gate=gate, confidence=0.6)[1].objectives[1]
    teacher = torch.tensor([[4.0, 0, 0], [0, 0.1, 0], [0, 3, 0], [0, 0, 2]]).t()[None, :, None]  # (1, 3, 1, 4)
    mask = torch.tensor([[[0, 1, 2, 255]]])
    left_out = objective._left_out(teacher, mask, mask.shape[-2:])
    expected = {
        "none": [False, False, False, True],
        "confidence": [False, True, False, True],
        "agreement": [False, False, True, True],
        "ignored": [True, True, True, False],
    }
    assert left_out.tolist() == [[expected[gate]]]


def test_presence_is_learned_from_image_labels_where_they_are_known():
    segmenter, loss = built(segmentation_weight=0.0, class_weight=1.0, label_weight=0.0, feature_weight=0.0)
    given = batch() | {"index": torch.tensor([1, 2])}  # nobody labelled the second
    exits = exits_of(segmenter, given)
    expected = sum(F.binary_cross_entropy_with_logits(one.presence[0, 1:], torch.tensor([0.0, 1])) for one in exits)
    torch.testing.assert_close(loss(given, 0.0)["sr.presence"], expected.detach())


def test_labels_in_a_mask():
    mask = torch.tensor([[[0, 5], [20, 255]], [[255, 255], [255, 255]]])
    found = shown_labels(mask, 21)
    assert found[0].nonzero().flatten().tolist() == [0, 5, 20]
    assert not found[1].any()


def test_weights_rise_after_the_start():
    objective = built(start=0.25, ramp=0.05)[1].objectives[1]
    assert [round(objective._taught(at), 6) for at in (0, 0.2, 0.25, 0.26, 0.3, 1)] == [0, 0, 0, 0.2, 1, 1]
    assert built(start=0.0, ramp=0.0)[1].objectives[1]._taught(0.0) == 1


def test_the_answer_is_the_same_with_exits_and_without():
    segmenter, _ = built()
    segmenter.eval()
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        before = segmenter(images)
        segmenter.exits = None
        assert torch.equal(segmenter(images), before)
    plain = build_segmenter("deeplabv3plus", "resnet18", 3)
    assert plain.state_dict().keys() == segmenter.state_dict().keys()


def test_an_encoder_without_such_levels_is_one_line(monkeypatch):
    segmenter = build_segmenter("deeplabv3plus", "resnet18", 3)
    monkeypatch.setattr(segmenter.pretrained_half().feature_info, "reduction", lambda: [2, 2, 16])
    config = Config.model_validate({"segmenter": {"self_regulation": True}})
    with pytest.raises(ConfigError, match=r"^self_regulation.shallowest_stride: no level but the last"):
        segmenter_objectives(segmenter, config, LABELS)


def test_how_often_a_teacher_is_right():
    best = torch.tensor([[[0, 1, 2], [1, 1, 0]], [[2, 2, 2], [0, 0, 0]]])
    logits = F.one_hot(best, 3).movedim(-1, 1).float()
    mask = torch.tensor([[[0, 1, 1], [255, 1, 0]], [[255, 255, 2], [1, 0, 255]]], dtype=torch.uint8)
    assert right(logits, mask, torch.Size((2, 3))).item() == pytest.approx(6 / 8)
    assert right(logits, torch.full_like(mask, 255), torch.Size((2, 3))).item() == 0
    fine = logits.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert right(fine, mask, torch.Size((2, 3))).item() == pytest.approx(6 / 8)


def test_what_a_student_learns_is_told_apart_from_its_teachers_doubt():
    _, loss = built(start=0.0, ramp=0.0, label_weight=1.0, feature_weight=1.0)
    terms = loss(batch(), 1.0)
    for exit in (1, 2, 3):
        assert 0 <= terms[f"sr.deep_to_shallow_{exit}_apart"] < terms[f"sr.deep_to_shallow_{exit}"]
    assert 0 < terms["sr.shallow_right"] < 1 and "sr.deep_right" not in terms
    assert 0 < built(start=0.0, ramp=0.0, label_mode="pixel")[1](batch(), 1.0)["sr.deep_right"] < 1
