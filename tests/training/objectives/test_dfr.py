import logging
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F

from cam_pipeline.config import Config
from cam_pipeline.errors import ConfigError
from cam_pipeline.models.segmenter import build_segmenter
from cam_pipeline.ops.dfr import regularized_loss
from cam_pipeline.training.loss import Loss
from cam_pipeline.training.objectives import dfr as module
from cam_pipeline.training.objectives import segmenter_objectives
from cam_pipeline.training.objectives.dfr import IMAGENET_STD, colours, warn_of_kernel

ARGUMENTS = {"channels": [8, 16, 24, 32], "stem_width": 8}
CONSISTENCY = [f"dfr.consistency_{kind}" for kind in ("background", "objects", "others")]
NOW = {"ramp": 0.0, "beta_start": 0.0, "beta_ramp": 0.0, "sigma_rgb": 0.5}


def built(architecture="deeplabv3plus", **settings):
    """A segmenter in evaluation mode, without dropout, and its loss."""
    torch.manual_seed(0)
    chosen = {"segmenter": {"regularizer": "dfr"}, "dfr": NOW | settings}
    segmenter = build_segmenter(architecture, "resnet10t", 3, arguments=ARGUMENTS)
    objectives = segmenter_objectives(segmenter, Config.model_validate(chosen), torch.zeros(2, 2))
    return segmenter.eval(), Loss(segmenter, objectives)


def batch(marked=0.1, side=64, box=None):
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randint(0, 3, (2, side // 8, side // 8), generator=generator)
    mask = coarse.repeat_interleave(8, 1).repeat_interleave(8, 2)
    mask[torch.rand(mask.shape, generator=generator) >= marked] = 255
    images = torch.rand(2, 3, 8, 8, generator=generator).repeat_interleave(side // 8, 2).repeat_interleave(side // 8, 3)
    box = torch.tensor([[0, 0, side, side]] * 2) if box is None else box
    return {"image": (255 * images).to(torch.uint8), "index": torch.arange(2), "box": box, "mask": mask.to(torch.uint8)}


def test_terms_and_figures():
    _, loss = built()
    found = loss(batch(), 0.5)
    assert list(found) == [
        "loss", "segmentation", "dfr", "dfr.kernel",
        "dfr.consistency_background", "dfr.same_class", "dfr.other_class", "dfr.known",
        "dfr.consistency_objects", "dfr.consistency_others",
    ]  # fmt: skip
    total = sum(found[name].item() for name in ("segmentation", "dfr", *CONSISTENCY))
    assert found["loss"].item() == pytest.approx(total, rel=1e-5)
    assert all(found[name] > 0 for name in CONSISTENCY)
    assert 0 < found["dfr.kernel"] < 1 and 0.05 < found["dfr.known"] < 0.2


def test_the_regularised_loss_is_that_of_the_answers_own_grid():
    segmenter, loss = built(features="none", weight=0.3)
    box = torch.tensor([[0, 0, 64, 64], [8, 0, 40, 64]])
    given = batch(box=box)
    answer = segmenter(given["image"])[..., 2::4, 2::4].softmax(dim=1)
    image = F.avg_pool2d(given["image"].float() / 255, 4) / torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)
    roi = torch.zeros(2, 1, 16, 16)
    roi[0], roi[1, :, 2:10] = 1, 1
    expected = regularized_loss(answer, image, roi=roi, sigma_rgb=0.5, backend="dense")
    assert loss(given, 0.5)["dfr"].item() == pytest.approx(0.3 * expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "progress", "weight", "beta"),
    [
        ({"start": 0.2, "ramp": 0.2}, 0.1, None, None),
        ({"start": 0.2, "ramp": 0.2}, 0.3, 0.05, 1.0),
        ({"beta_start": 0.2, "beta_ramp": 0.4}, 0.1, 0.1, 0.0),
        ({"beta_start": 0.2, "beta_ramp": 0.4}, 0.3, 0.1, 0.25),
        ({"beta_start": 0.2, "beta_ramp": 0.4}, 0.9, 0.1, 1.0),
        ({"weight": 0.0}, 0.9, None, None),
        ({"features": "none"}, 0.9, 0.1, 0.0),
    ],
)
def test_what_rises_over_the_steps(settings, progress, weight, beta):
    _, loss = built(**settings)
    with patch.object(module, "regularized", wraps=module.regularized) as called:
        found = loss(batch(), progress)
    assert called.called == (weight is not None)
    if weight is not None:
        plain = called.call_args
        with torch.no_grad():
            value = module.regularized(*plain.args, **plain.kwargs).loss
        assert found["dfr"].item() == pytest.approx(weight * value.item(), rel=1e-5)
        assert plain.kwargs["beta"] == pytest.approx(beta)


def gradients(segmenter, value):
    segmenter.zero_grad()
    value.backward()
    return {name for name, one in segmenter.named_parameters() if one.grad is not None and one.grad.any()}


def only(loss, names, given, progress=0.5):
    """The sum of the terms of these names, with its gradients."""
    found = [value for group in loss._terms(given, progress) for name, value in group.values.items() if name in names]
    assert len(found) == len(names)
    return torch.stack(found).sum()


@pytest.mark.parametrize("detached", [True, False])
def test_the_regularised_loss_trains_the_features_only_if_asked(detached):
    segmenter, loss = built(detach_features=detached)
    reached = gradients(segmenter, only(loss, ["dfr"], batch()))
    assert any(name.startswith("network.segmentation_head") for name in reached)
    assert any(name.startswith("consistency") for name in reached) != detached


@pytest.mark.parametrize("detached", [True, False])
def test_the_consistency_trains_the_head_and_the_encoder_but_no_answer(detached):
    segmenter, loss = built(detach_backbone=detached)
    reached = gradients(segmenter, only(loss, CONSISTENCY, batch()))
    parts = {
        name.split(".")[0] if name.startswith("consistency") else ".".join(name.split(".")[:2]) for name in reached
    }
    assert parts == ({"consistency"} if detached else {"consistency", "network.encoder"})


def test_features_of_the_backbone_need_no_head():
    segmenter, loss = built(features="backbone", kernel="gauss")
    assert segmenter.consistency is None
    found = loss(batch(), 0.5)
    assert not set(CONSISTENCY) & set(found) and found["dfr"] > 0
    other = built(features="none")[1](batch(), 0.5)
    assert found["dfr"] != other["dfr"]


def test_an_unmarked_pixel_counts_as_a_sure_answer():
    """After `beta_start`, and if the answer is sure enough."""
    _, loss = built(beta_start=0.3, threshold=0.0)
    given = batch(marked=0.0)
    before, after = loss(given, 0.2), loss(given, 0.4)
    assert before["dfr.known"] == 0 and sum(before[name] for name in CONSISTENCY) == 0
    assert after["dfr.known"] == 1 and sum(after[name] for name in CONSISTENCY) > 0
    _, loss = built(beta_start=0.3, threshold=1.0)
    assert loss(given, 0.4)["dfr.known"] == 0


@pytest.mark.parametrize(("stride", "side"), [(4, 16), (8, 8)])
def test_the_grid_of_the_head(stride, side):
    _, loss = built(stride=stride)
    with patch.object(module, "consistency", wraps=module.consistency) as called:
        loss(batch(), 0.5)
    features, labels = called.call_args.args[:2]
    assert features.shape == (2, 64, side, side) and labels.shape == (2, side, side)


@pytest.mark.parametrize("architecture", ["deeplabv3plus", "deeplabv2"])
def test_it_is_computed_in_float32(architecture):
    segmenter, loss = built(architecture)
    with (
        patch.object(module, "regularized", wraps=module.regularized) as pairs,
        patch.object(module, "consistency", wraps=module.consistency) as features,
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        found = loss(batch(), 0.5)
    found["loss"].backward()
    assert {one.dtype for one in pairs.call_args.args if one is not None} == {torch.float32}
    assert features.call_args.args[0].dtype == torch.float32
    assert found["dfr"].isfinite() and all(one.grad.isfinite().all() for one in segmenter.consistency.parameters())


def test_images_without_marks_still_teach():
    segmenter, loss = built()
    found = loss(batch(marked=0.0), 0.0)
    assert found["segmentation"] == 0 and found["dfr"] > 0
    assert gradients(segmenter, found["loss"])


def test_colours_of_a_size_that_does_not_divide():
    images = torch.rand(1, 3, 19, 18)
    size = images[..., 2::4, 2::4].shape[-2:]
    assert colours(images, size).shape[-2:] == size == (5, 4)


def test_an_encoder_without_shallow_levels_is_refused():
    with (
        patch.object(module, "exit_levels", side_effect=ValueError("no level but the last")),
        pytest.raises(ConfigError, match=r"^dfr.shallowest_stride: no level but the last$"),
    ):
        built()


@pytest.mark.parametrize(
    ("alike", "words"),
    [(0.001, "hardly any pixels that are alike"), (0.99, "all pixels look alike"), (0.5, "")],
)
def test_a_kernel_that_tells_nothing_is_told_of(caplog, alike, words):
    with caplog.at_level(logging.WARNING, "cam_pipeline"):
        warn_of_kernel(alike, 0.1)
    assert words in caplog.text and bool(caplog.text) == bool(words)


def test_it_warns_once(caplog):
    _, loss = built(sigma_rgb=1e6, features="none")
    with caplog.at_level(logging.WARNING, "cam_pipeline"):
        loss(batch(), 0.5)
        loss(batch(), 0.6)
    assert caplog.text.count("lower dfr.sigma_rgb") == 1
