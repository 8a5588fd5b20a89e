"""The segmenter's main objective, on three pixels an image."""

import math

import pytest
import torch

from cam_pipeline.config import Config
from cam_pipeline.ops.losses import clipped_losses, pixel_losses, potts_loss
from cam_pipeline.training.objectives import segmentation as module
from cam_pipeline.training.objectives import segmenter_objectives
from cam_pipeline.training.objectives.base import ForwardPass
from cam_pipeline.training.objectives.segmentation import SegmentationObjective, soft_targets

LOGITS = torch.zeros(2, 3, 1, 3)
LOGITS[:, 1] = torch.tensor([[[0.0, 1.0, 4.0]], [[2.0, 5.0, 0.0]]])
MASK = torch.tensor([[[0, 1, 255]], [[0, 1, 2]]], dtype=torch.uint8)


def terms_of(objective, mask=MASK, logits=LOGITS, **batch):
    batch = {"mask": mask, "box": torch.tensor([[0, 0, 1, 3]] * 2), **batch}
    groups = objective.terms(ForwardPass(batch, logits, 0.0, (2,), 0))
    return {name: (value.item(), int(group.items)) for group in groups for name, value in group.values.items()}


def losses(mask=MASK, logits=LOGITS):
    return pixel_losses(logits, mask), mask != 255


def test_clipped_losses_are_averaged_over_labelled_pixels():
    clipped = clipped_losses(*losses())
    assert clipped.sum() < losses()[0].sum(), "something is clipped here"
    found = terms_of(SegmentationObjective(clip=True))
    assert found == {"segmentation": (pytest.approx(clipped[losses()[1]].sum().item() / 5), 5)}


def test_clipping_goes_with_balance():
    clipped = clipped_losses(*losses())
    background, objects = clipped[MASK == 0], clipped[(MASK > 0) & (MASK < 255)]
    assert terms_of(SegmentationObjective(clip=True, balance=True)) == {
        "segmentation.background": (pytest.approx(background.mean().item() / 2), 2),
        "segmentation.objects": (pytest.approx(objects.mean().item() / 2), 3),
    }


@pytest.mark.parametrize("balance", [False, True])
def test_what_is_not_clipped_is_as_without(balance):
    early = LOGITS * -3  # a mean loss of more than 1.2
    plain = terms_of(SegmentationObjective(balance=balance), logits=early)
    clipped = terms_of(SegmentationObjective(balance=balance, clip=True), logits=early)
    assert {name: (pytest.approx(value), items) for name, (value, items) in plain.items()} == clipped


def test_ignored_pixels_can_be_background():
    as_background = torch.where(MASK == 255, 0, MASK)
    found = terms_of(SegmentationObjective(clip=True, ignore_to_background=True))
    assert found == terms_of(SegmentationObjective(clip=True), mask=as_background)
    assert found["segmentation"][1] == 6


def test_the_mean_is_that_of_all_processes(monkeypatch):
    """The other process has losses of 3 at two pixels."""
    each, labelled = losses()
    monkeypatch.setattr(module, "world_size", lambda: 2)
    monkeypatch.setattr(module, "exchange", lambda *own: [own, (6.0, 2.0)])
    mean = module.mean_of_batch(each, labelled)
    assert mean.item() == pytest.approx((each.sum().item() + 6) / 7)
    assert mean > 1.2
    assert terms_of(SegmentationObjective(clip=True)) == {"segmentation": (pytest.approx(each.sum().item() / 5), 5)}


def test_a_batch_without_labels_gives_zero():
    nothing = torch.full_like(MASK, 255)
    assert terms_of(SegmentationObjective(clip=True), mask=nothing) == {"segmentation": (0.0, 0)}


CONFIDENCE = torch.tensor([[[255, 51, 255]], [[102, 0, 255]]], dtype=torch.uint8)  # 1, .2, 1; .4, 0, 1


def test_a_pixel_counts_as_much_as_its_label_is_sure():
    each, _ = losses()
    weights = torch.tensor([1.0, 0.2, 0.0, 0.4, 0.0, 1.0])
    expected = (each.flatten() * weights).sum().item() / 2.6
    groups = SegmentationObjective(powers={"confidence": 1.0}).terms(
        ForwardPass({"mask": MASK, "confidence": CONFIDENCE}, LOGITS, 0.0, (2,), 0)
    )
    assert groups[0].values["segmentation"].item() == pytest.approx(expected)
    assert groups[0].items.item() == pytest.approx(2.6), "what processes share by"


def test_a_power_makes_weights_steeper_and_goes_with_the_other_switches():
    each = clipped_losses(*losses()).flatten()
    found = {}
    for group in SegmentationObjective(powers={"confidence": 2.0}, clip=True, balance=True).terms(
        ForwardPass({"mask": MASK, "confidence": CONFIDENCE}, LOGITS, 0.0, (2,), 0)
    ):
        found |= {name: (value.item(), group.items.item()) for name, value in group.values.items()}
    background = (each[0] + 0.16 * each[3]).item() / 1.16
    objects = (0.04 * each[1] + each[5]).item() / 1.04
    assert found == {
        "segmentation.background": (pytest.approx(background / 2), pytest.approx(1.16)),
        "segmentation.objects": (pytest.approx(objects / 2), pytest.approx(1.04)),
    }


def test_labels_that_are_all_sure_are_as_without_weights():
    sure = torch.full_like(CONFIDENCE, 255)
    assert terms_of(SegmentationObjective(powers={"confidence": 3.0}), confidence=sure)["segmentation"] == (
        pytest.approx(terms_of(SegmentationObjective())["segmentation"][0]),
        5,
    )


@pytest.mark.parametrize("chosen", [{}, {"clip": True}, {"balance": True}])
def test_neighbours_are_a_term_of_their_own(chosen):
    """Every pixel of LOGITS and MASK stands for 4 x 4. The second image shows two columns and a quarter of the third,
    whose middle lies outside. The first has a column that is ignored, which has neighbours all the same."""
    logits, mask = (one.repeat_interleave(4, -1).repeat_interleave(4, -2) for one in (LOGITS, MASK))
    box = torch.tensor([[0, 0, 4, 12], [0, 3, 4, 12]])
    found = terms_of(SegmentationObjective(potts=0.5, **chosen), mask, logits, box=box)
    apart = [potts_loss(LOGITS[:1]).item() * 2, potts_loss(LOGITS[1:, ..., 1:]).item()]
    assert list(found)[-1] == "segmentation.potts"
    assert found.pop("segmentation.potts") == (pytest.approx(0.5 * sum(apart) / 3), 3)
    assert found == terms_of(SegmentationObjective(**chosen), mask, logits)


# Soft labels: one pixel is outside the second image; the others have scores of 1 and 0, 1/5 and 4/5, 1/2 and 1/2
SCORES = torch.zeros(2, 3, 1, 3, dtype=torch.uint8)
SCORES[0, :2, 0] = torch.tensor([[255, 20, 127], [0, 80, 127]])
SCORES[1, :2, 0, 1:] = torch.tensor([[0, 40], [200, 160]])


def test_scores_become_targets():
    targets, outside = soft_targets(SCORES)
    assert outside.tolist() == [[[False] * 3], [[True, False, False]]]
    expected = [[1, 0.2, 0.5], [0, 0.8, 0.5], [0, 0, 0]]
    assert torch.allclose(targets[0, :, 0], torch.tensor(expected))
    assert not targets[1, :, 0, 0].any() and targets[1, :, 0, 2].tolist() == pytest.approx([0.2, 0.8, 0])


def test_scores_are_learned_at_all_pixels_of_the_image():
    """The chance that a draw from the answer is that from the score, by hand; what the labels say does not matter."""
    e = [[1.0, 1.0, 1.0], [1.0, math.exp(1), 1.0], [1.0, math.exp(4), 1.0], [1.0, math.exp(5), 1.0], [1.0, 1.0, 1.0]]
    y = [(1, 0), (0.2, 0.8), (0.5, 0.5), (0, 1), (0.2, 0.8)]
    each = [-math.log((y0 * e0 + y1 * e1) / sum((e0, e1, e2))) for (e0, e1, e2), (y0, y1) in zip(e, y, strict=True)]
    for mask in (MASK, torch.full_like(MASK, 255)):
        found = terms_of(SegmentationObjective(soft=True), mask=mask, scores=SCORES)
        assert found == {"segmentation": (pytest.approx(sum(each) / 5), 5)}


def test_scores_go_with_neighbours_and_a_weight():
    box = torch.tensor([[0, 0, 1, 3], [0, 1, 1, 3]])
    (main, beside) = SegmentationObjective(soft=True, potts=2.0, weight=0.2).terms(
        ForwardPass({"mask": MASK, "scores": SCORES, "box": box}, LOGITS, 0.0, (2,), 0)
    )
    assert list(main.values) + list(beside.values) == ["segmentation", "segmentation.potts"]
    assert (main.weight, beside.weight, int(beside.items)) == (0.2, 0.2, 0)  # a view of three pixels has no grid


def test_a_batch_without_scores_gives_zero():
    assert terms_of(SegmentationObjective(soft=True), scores=torch.zeros_like(SCORES)) == {"segmentation": (0.0, 0)}


def test_what_is_about_pseudo_labels_is_off_with_masks():
    settings = {"soft_labels": True, "confidence_power": 1.0, "supervision": "masks", "potts": 0.5}
    config = Config.model_validate({"train_seg": settings})
    (main,) = segmenter_objectives(torch.nn.Module(), config, torch.zeros(0, 3))
    assert (main.potts, main.soft, main.powers) == (0.5, False, {})
    main.potts = 0.0
    assert terms_of(main) == terms_of(SegmentationObjective())  # neither scores nor confidence are asked for
