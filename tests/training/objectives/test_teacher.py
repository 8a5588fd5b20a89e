from unittest.mock import patch

import pytest
import torch

from cam_pipeline.config import Config
from cam_pipeline.models.segmenter import build_segmenter
from cam_pipeline.training.loss import Loss
from cam_pipeline.training.objectives import segmenter_objectives
from cam_pipeline.training.objectives import teacher as module
from cam_pipeline.training.objectives.moving_average import averaged, averages_of

SMALL = {"channels": [8, 16, 24, 32], "stem_width": 8}
LABELS = torch.tensor([[1.0, 0], [0, 1], [torch.nan, torch.nan]])
AT_ONCE = {"start": 0.0, "ramp": 0.0, "confidence": 0.0}


def built(train_seg=None, segmenter=None, **teacher):
    torch.manual_seed(0)
    sections = {"train_seg": {"teacher": True} | (train_seg or {}), "segmenter": segmenter or {}, "teacher": teacher}
    config = Config.model_validate(sections)
    network = build_segmenter("deeplabv3plus", "resnet10t", 3, arguments=SMALL)
    return network, Loss(network, segmenter_objectives(network, config, LABELS))


def batch(images=2):
    generator = torch.Generator().manual_seed(1)
    mask = torch.randint(0, 3, (images, 32, 32), generator=generator).to(torch.uint8)
    pixels = torch.randint(0, 256, (images, 3, 32, 32), generator=generator, dtype=torch.uint8)
    box = torch.tensor([[0, 0, 32, 32], [0, 8, 32, 24]]).repeat(images // 2, 1)
    return {"image": pixels, "index": torch.arange(images) % 3, "box": box, "mask": mask}


def objective(loss):
    return loss.objectives[-2]


def step(loss, given=None, progress=1.0):
    loss.network.train()
    torch.manual_seed(5)
    return loss(given or batch(), progress)


def test_before_the_start_it_costs_nothing_and_the_loss_is_as_without():
    _, loss = built(start=0.5)
    with patch.object(module, "functional_call") as called:
        terms = step(loss, progress=0.4)
    assert not called.called and list(terms) == ["loss", "segmentation"]
    _, plain = built({"teacher": False})
    assert torch.equal(step(plain, progress=0.4)["loss"], terms["loss"])
    assert len(plain.objectives) == 1 and plain.network.average is None


@pytest.mark.parametrize(("progress", "share"), [(0.2, 0.0), (0.25, 0.0), (0.3, 0.5), (0.35, 1.0), (1.0, 1.0)])
def test_its_weight_rises_after_the_start(progress, share):
    _, loss = built(weight=2.0, start=0.25, ramp=0.1)
    teaching = objective(loss)
    teaching.before_pass(progress)
    assert teaching.weight == pytest.approx(2 * share)


def test_the_average_sees_the_image_and_the_network_another_view_of_it():
    network, loss = built(**AT_ONCE)
    with torch.no_grad():  # the teacher says background everywhere, the network another class
        network.network.segmentation_head[0].bias.copy_(torch.tensor([0.0, 50.0, 0.0]))
        averages_of(network)["network.segmentation_head.0.bias"].copy_(torch.tensor([50.0, 0.0, 0.0]))
    seen, own = [], network.normalize.forward
    with patch.object(network.normalize, "forward", lambda images: (seen.append(images.clone()), own(images))[1]):
        terms = step(loss, given := batch())
    views, teachers = seen
    assert torch.equal(teachers, given["image"]) and torch.equal(views[:2], given["image"])
    assert views.shape == (4, 3, 32, 32) and views.dtype == torch.uint8
    assert not torch.equal(views[2:], given["image"])
    assert terms["teacher"] > 30 and terms["teacher.sure"] == 1


def test_views_and_targets_are_mixed_alike():
    """A teacher that tells the colour of a pixel is right about the strong view, too."""
    network, loss = built(**AT_ONCE, cutmix=1.0, color_jitter=0.0, greyscale=0.0, blur=0.0)
    given = batch() | {"index": torch.tensor([2, 2]), "box": torch.tensor([[0, 0, 32, 32]] * 2)}
    values = torch.randint(0, 3, (2, 32, 32))
    given["image"] = values[:, None].repeat(1, 3, 1, 1).to(torch.uint8)

    def answers(images):
        return 100 * torch.nn.functional.one_hot(images[:, 0].long(), 3).permute(0, 3, 1, 2).float()

    with (
        patch.object(network, "forward", lambda images: answers(images)),
        patch.object(module, "functional_call", lambda network, weights, inputs: answers(*inputs)),
    ):
        terms = step(loss, given)
    assert objective(loss).boxes.any() and terms["teacher"] == 0
    assert terms["teacher.sure"] == 1


def test_nothing_else_notices_the_teachers_pass():
    """Modes, statistics and weights stay; its answer has no gradient; exits see the network's features alone."""
    network, loss = built(segmenter={"self_regulation": True}, **AT_ONCE)
    before = [value.clone() for value in averages_of(network).values()]
    terms = step(loss)
    assert all(part.training for part in network.modules())
    assert all(torch.equal(one, other) for one, other in zip(before, averages_of(network).values(), strict=True))
    assert {"sr.segmentation_1", "teacher"} <= terms.keys()
    terms["loss"].backward()
    assert not any(value.requires_grad for value in averages_of(network).values())
    assert all(parameter.grad is not None for parameter in network.network.parameters())


def test_it_teaches_inside_the_image_and_where_it_is_sure():
    def learned(pixels, confidence=0.0):
        _, loss = built(**AT_ONCE | {"pixels": pixels, "cutmix": 0.0, "confidence": confidence})
        given = batch()
        given["mask"][:, :4] = 255
        step(loss, given)
        with patch.object(module, "teacher_loss", wraps=module.teacher_loss) as found:
            terms = step(loss, given)
        _, targets, counted = found.call_args.args
        return (targets != 255), counted, terms["teacher.sure"]

    taught, counted, _ = learned("all")
    assert torch.equal(taught, counted) and counted.sum() == 32 * 32 + 32 * 16
    assert not counted[1, :, :8].any() and not counted[1, :, 24:].any()
    taught, counted, _ = learned("unsure")
    assert torch.equal(taught, counted) and counted.sum() == 4 * 32 + 4 * 16 and counted[:, :4].any()
    taught, counted, sure = learned("all", 0.99)
    assert taught.sum() < counted.sum() and sure == taught.sum() / counted.sum()


def test_the_term_is_about_what_it_may_teach():
    _, loss = built(**AT_ONCE, cutmix=0.0)
    groups = loss._terms(batch(), 1.0)
    assert groups[-1].items == 32 * 32 + 32 * 16 and groups[-1].weight == 1.0


def test_the_teacher_is_the_average_of_the_run_if_there_is_one():
    network, loss = built({"average": 0.5}, decay=0.9, **AT_ONCE)
    average = loss.objectives[-1]
    assert average.decay == 0.5 and average.kept
    network, loss = built(decay=0.9)
    average = loss.objectives[-1]
    assert average.decay == 0.9 and not average.kept
    with torch.no_grad():
        for value in averaged(network):
            value.add_(1)
    average.after_step()
    weights = [value.clone() for value in averaged(network)]
    average.put_in_place()
    assert network.average is None
    assert all(torch.equal(one, other) for one, other in zip(weights, averaged(network), strict=True))


def test_strong_views_follow_from_the_seed():
    _, loss = built(**AT_ONCE)
    teaching = objective(loss)
    teaching.before_pass(1.0)
    views = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        views.append(teaching.added_views(batch()["image"]))
    assert torch.equal(views[0], views[1]) and not torch.equal(views[0], views[2])


def test_two_processes_make_the_views_of_one(monkeypatch):
    """Each has half of the batch, and neighbours swap their boxes."""
    _, loss = built(**AT_ONCE, cutmix=1.0)
    teaching, images = objective(loss), batch(4)["image"]
    teaching.before_pass(1.0)

    def views(mine):
        torch.manual_seed(3)
        return teaching.added_views(mine)

    whole = views(images)
    monkeypatch.setattr(module, "world_size", lambda: 2)
    for number in range(2):
        monkeypatch.setattr(module, "rank", lambda number=number: number)
        own = slice(2 * number, 2 * number + 2)
        assert torch.equal(views(images[own]), whole[own])


def test_under_bfloat16():
    _, loss = built(**AT_ONCE)
    with torch.autocast("cpu", torch.bfloat16):
        terms = step(loss)
    assert terms["loss"].dtype == torch.float32 and terms["loss"].isfinite()
    terms["loss"].backward()
