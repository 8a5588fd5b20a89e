"""S1 to S8, S10, S13 and S14 of the specification, with its numbers."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from cam_pipeline.ops.self_regulation import (
    entropy,
    nearest,
    presence_loss,
    sr_feature_loss,
    sr_label_loss,
)

TEACHER, STUDENT = torch.tensor([[0.9, 0.2, 0.6]]), torch.tensor([[0.7, 0.4, 0.5]])

MAPS = torch.tensor([[3.0, 0, 0], [0, 3, 0], [0, 1, 2]]).t()[None, :, None]
"""The teacher's logits (1, 3, 1, 3) of three pixels; their best channels are 0, 1, 2."""
CORRECT = 2 * torch.eye(3)[None, :, None]
ALWAYS_ONE = torch.tensor([0.0, 2, 0])[None, :, None, None].expand(1, 3, 1, 3)


def test_presence_against_a_soft_teacher():
    loss = sr_label_loss(STUDENT.logit(), TEACHER.logit())
    assert loss.item() == pytest.approx(0.575490, abs=1e-6)
    least = sr_label_loss(TEACHER.logit(), TEACHER.logit())
    assert least.item() == pytest.approx(0.499499, abs=1e-6)
    assert (loss - least).item() == pytest.approx(0.075991, abs=1e-6)


def test_presence_against_a_certain_teacher():
    certain = torch.tensor([[80.0, -80, 80]])
    assert sr_label_loss(STUDENT.logit(), certain).item() == pytest.approx(0.520216, abs=1e-6)
    assert sr_label_loss(certain, certain).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("loss", [sr_label_loss, sr_feature_loss])
def test_no_gradient_reaches_the_teacher(loss):
    shape = (2, 3) if loss is sr_label_loss else (2, 3, 4, 5)
    leaf = torch.randn(shape).requires_grad_()
    modes = ["presence"] if loss is sr_label_loss else ["released", "soft"]
    for mode in modes:
        own = torch.zeros(shape).requires_grad_()
        loss(own, leaf, mode).backward()
        assert leaf.grad is None
        assert own.grad.abs().sum() > 0


def test_an_undetached_teacher_would_get_this_gradient():
    """The negative control of the specification."""
    teacher = TEACHER.clone().requires_grad_()
    F.binary_cross_entropy(STUDENT, teacher).backward()
    expected = torch.tensor([[-0.847298, 0.405465, 0.0]]) / 3
    torch.testing.assert_close(teacher.grad, expected, atol=1e-6, rtol=0)


def test_against_the_best_channel():
    students = [CORRECT, torch.zeros(1, 3, 1, 3), ALWAYS_ONE, MAPS]
    found = [sr_feature_loss(student, MAPS).item() for student in students]
    assert found == pytest.approx([0.239545, 1.098612, 1.572878, 0.199151], abs=1e-6)
    assert sum(found) == pytest.approx(3.110186, abs=2e-6)
    many = torch.zeros(2, 21, 3, 4)
    assert sr_feature_loss(many, torch.randn(2, 21, 3, 4)).item() == pytest.approx(3.044522, abs=1e-6)


def test_only_the_soft_teacher_depends_on_its_scale():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 2, 5, 3, 4, generator=generator)
    shift = torch.randn(2, 1, 3, 4, generator=generator)
    other = 4 * teacher + shift
    torch.testing.assert_close(sr_feature_loss(student, other), sr_feature_loss(student, teacher))
    torch.testing.assert_close(
        sr_feature_loss(student, teacher + shift, "soft"), sr_feature_loss(student, teacher, "soft")
    )
    assert abs(sr_feature_loss(student, other, "soft") - sr_feature_loss(student, teacher, "soft")) > 0.01


@pytest.mark.parametrize(
    ("temperature", "cross", "own"), [(1, 0.583460, 0.521861), (2, 0.921659, 0.894613), (4, 1.053102, 1.045678)]
)
@pytest.mark.parametrize("loss", [sr_feature_loss, sr_label_loss])
def test_the_soft_teacher_at_three_temperatures(loss, temperature, cross, own):
    mode = "soft" if loss is sr_feature_loss else "pixel"
    found = loss(CORRECT, MAPS, mode, temperature)
    assert found.item() / temperature**2 == pytest.approx(cross, abs=1e-6)
    assert entropy(MAPS, temperature).item() == pytest.approx(own, abs=1e-6)
    perfect = loss(MAPS + 7, MAPS, mode, temperature)
    assert perfect.item() == pytest.approx(temperature**2 * own, abs=1e-5)


def test_the_example_of_four_channels():
    teacher = torch.tensor([1.0, 2, 0, 0]).view(1, 4, 1, 1)
    student = torch.tensor([2.0, 1, 0, 0]).view(1, 4, 1, 1).requires_grad_()
    loss = sr_feature_loss(student, teacher, "soft")
    assert loss.item() == pytest.approx(1.434486, abs=1e-6)
    assert entropy(teacher).item() == pytest.approx(1.048705, abs=1e-6)
    loss.backward()
    torch.testing.assert_close(student.grad.flatten(), torch.tensor([0.385780, -0.385780, 0, 0]), atol=1e-6, rtol=0)
    flat = sr_feature_loss(torch.zeros(1, 4, 1, 1), teacher, "soft")
    assert flat.item() == pytest.approx(math.log(4), abs=1e-6)


def test_scaling_both_maps_and_the_temperature_changes_only_the_factor():
    generator = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(2, 2, 6, 4, 3, generator=generator)
    plain = sr_feature_loss(student, teacher, "soft")
    torch.testing.assert_close(sr_feature_loss(3 * student, 3 * teacher, "soft", 3) / 9, plain)


def test_a_finer_teacher_is_pooled_and_a_coarser_one_spread():
    constant = torch.tensor([2.0, 0, 1]).view(1, 3, 1, 1)
    student = torch.randn(1, 3, 3, 5, generator=torch.Generator().manual_seed(0))
    same = sr_feature_loss(student, constant.expand(1, 3, 3, 5), "soft")
    for size in [(12, 20), (7, 11), (2, 2)]:
        torch.testing.assert_close(sr_feature_loss(student, constant.expand(1, 3, *size), "soft"), same)
        torch.testing.assert_close(
            sr_label_loss(student, constant.expand(1, 3, *size), "pixel"),
            sr_label_loss(student, constant.expand(1, 3, 3, 5), "pixel"),
        )
    halves = torch.tensor([[9.0, 0], [0, 9]]).view(1, 2, 1, 2)  # its two pixels pooled to one: 1/2 each
    assert sr_feature_loss(torch.zeros(1, 2, 1, 1), halves, "soft").item() == pytest.approx(math.log(2))
    assert sr_feature_loss(torch.tensor([1.0, 0]).view(1, 2, 1, 1), halves, "soft").item() == pytest.approx(
        math.log(1 + math.e) - 0.5, abs=1e-4
    )


def test_ignored_pixels_change_nothing():
    logits, teacher = torch.tensor([[2.0, 0, 0], [0, 5, 0]]).t()[None, :, None], torch.zeros(1, 3, 1, 2)
    ignore = torch.tensor([[[False, True]]])
    assert sr_feature_loss(logits, teacher, ignore=ignore).item() == pytest.approx(0.239545, abs=1e-6)
    assert sr_feature_loss(logits, teacher).item() == pytest.approx(2.626465, abs=1e-6)
    other = logits.clone()
    other[..., 1] = 40
    for mode in ("released", "soft"):
        assert torch.equal(
            sr_feature_loss(other, teacher, mode, ignore=ignore), sr_feature_loss(logits, teacher, mode, ignore=ignore)
        )


@pytest.mark.parametrize("mode", ["released", "soft"])
def test_if_all_is_ignored_the_loss_is_zero_with_a_graph(mode):
    student = torch.full((1, 3, 2, 2), torch.inf).requires_grad_()
    loss = sr_feature_loss(student, torch.zeros(1, 3, 4, 4), mode, ignore=torch.ones(1, 4, 4, dtype=torch.bool))
    assert loss.item() == 0
    student = torch.zeros(1, 3, 2, 2).requires_grad_()
    sr_feature_loss(student, torch.zeros(1, 3, 4, 4), mode, ignore=torch.ones(1, 4, 4, dtype=torch.bool)).backward()
    assert not student.grad.any()


def test_classes_and_batch_have_no_order():
    generator = torch.Generator().manual_seed(2)
    student, teacher = torch.randn(2, 3, 5, 4, 6, generator=generator)
    classes, images = torch.randperm(5, generator=generator), torch.randperm(3, generator=generator)
    for loss, modes in ((sr_feature_loss, ("released", "soft")), (sr_label_loss, ("pixel",))):
        for mode in modes:
            whole = loss(student, teacher, mode)
            torch.testing.assert_close(loss(student[images][:, classes], teacher[images][:, classes], mode), whole)
            torch.testing.assert_close(loss(student.tile(2, 1, 1, 1), teacher.tile(2, 1, 1, 1), mode), whole)


def test_a_student_converges_to_a_fixed_teacher():
    generator = torch.Generator().manual_seed(0)
    points, weights = torch.randn(64, 5, generator=generator), torch.randn(5, 3, generator=generator)
    teacher = (points @ weights).t()[None, :, None]
    before = teacher.clone()
    student = torch.zeros(5, 3, requires_grad=True)
    divergences = []
    for _ in range(200):
        loss = sr_label_loss((points @ student).t()[None, :, None], teacher, "pixel")
        divergences.append((loss - entropy(teacher)).item())
        (gradient,) = torch.autograd.grad(loss, student)
        student = (student - 2 * gradient).detach().requires_grad_()
    assert all(after <= earlier + 1e-6 for earlier, after in pairwise(divergences))
    assert divergences[0] > 0.1
    assert divergences[-1] < 1e-4
    assert torch.equal(teacher, before)


def test_presence_of_classes():
    logits = torch.tensor([[2.0, -1, 0], [0, 0, 5]])
    labels = torch.tensor([[1.0, 0, torch.nan], [torch.nan, torch.nan, 0]])
    each = F.binary_cross_entropy_with_logits(torch.tensor([2.0, -1, 5]), torch.tensor([1.0, 0, 0]))
    torch.testing.assert_close(presence_loss(logits, labels), each)
    unknown = torch.full((2, 3), torch.nan)
    leaf = logits.clone().requires_grad_()
    loss = presence_loss(leaf, unknown)
    loss.backward()
    assert loss.item() == 0 and not leaf.grad.any()


def test_the_nearest_pixel_of_labels():
    labels = torch.arange(12).view(1, 2, 6)
    assert nearest(labels, (1, 3)).tolist() == [[[7, 9, 11]]]
    assert nearest(labels, (2, 6)) is labels
    assert nearest(labels, (4, 6))[0, :, 0].tolist() == [0, 0, 6, 6]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sr_label_loss(torch.zeros(2, 3), torch.zeros(2, 4)), "presence takes"),
        (lambda: sr_label_loss(torch.zeros(2, 3), torch.zeros(2, 3), temperature=2), "presence takes"),
        (lambda: sr_label_loss(torch.zeros(2, 3), torch.zeros(2, 3), "pixel"), "maps of student"),
        (lambda: sr_label_loss(torch.zeros(2, 3), torch.zeros(2, 3), "x"), "mode must be"),
        (lambda: sr_feature_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, 4)), "maps of student"),
        (lambda: sr_feature_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), "x"), "mode must be"),
        (lambda: sr_feature_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), "soft", 0), "temperature"),
        (lambda: sr_feature_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), ignore=torch.ones(2, 4, 4)), "bool"),
        (lambda: sr_feature_loss(torch.zeros(2, 3, 4, 4).long(), torch.zeros(2, 3, 4, 4)), "floating"),
        (lambda: presence_loss(torch.zeros(2, 3), torch.zeros(2, 4)), "logits and labels"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
