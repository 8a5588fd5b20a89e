"""A batch that is seen in parts teaches what the whole teaches."""

import numpy as np
import pytest
import torch
from PIL import Image

from cam_pipeline.config import Config, RunSettings, TrainSettings
from cam_pipeline.data.table import Sample
from cam_pipeline.data.views import TrainingViews
from cam_pipeline.errors import ConfigError
from cam_pipeline.models.segmenter import build_segmenter
from cam_pipeline.training import parts as module
from cam_pipeline.training.objectives import segmenter_objectives
from cam_pipeline.training.objectives.base import Objective, Terms
from cam_pipeline.training.parts import divided
from cam_pipeline.training.trainer import Trainer

IMAGES = 8
LABELS = torch.eye(2).repeat(IMAGES // 2, 1)


@pytest.fixture(scope="module")
def views(tmp_path_factory):
    """Images with labels of which few to nearly all are ignored."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    samples, masks = [], []
    for index in range(IMAGES):
        Image.fromarray(rng.integers(0, 255, (40, 44, 3), dtype=np.uint8)).save(folder / f"{index}.png")
        samples.append(Sample(str(index), folder / f"{index}.png", "train", (1,)))
        mask = rng.integers(0, 3, (40, 44)).astype(np.uint8)
        mask[: 5 * index] = 255
        masks.append(mask)
    return TrainingViews(
        samples, crop=32, scale=(0.9, 1.5), fill=(1, 2, 3), seed=0, read_mask=lambda index: masks[index]
    )


class Probe(Objective):
    """Notes what it sees; a term over images, and a figure."""

    def __init__(self):
        self.seen, self.steps, self.drawn = [], 0, []

    def added_views(self, images):
        self.drawn.append(float(torch.rand(())))

    def terms(self, seen):
        self.seen.append(seen.batch["index"].tolist())
        value = seen.of_images(seen.output).mean(dim=(1, 2, 3))
        return [Terms({"probe": value}, 0.1, figures={"first": seen.batch["index"][0].float()})]

    def after_step(self):
        self.steps += 1


def trained(views, folder, accumulate, frozen=True, **sections):
    torch.manual_seed(0)
    arguments = {"channels": [8, 16, 24, 32], "stem_width": 8}
    network = build_segmenter("deeplabv2", "resnet10t", 3, arguments=arguments, freeze_batch_norm=frozen)
    with torch.no_grad():
        for branch in network.network.branches:
            branch.weight.mul_(30)  # so that images have different losses
    probe = Probe()
    objectives = [*segmenter_objectives(network, Config.model_validate(sections), LABELS), probe]
    settings = TrainSettings(
        epochs=2, batch_size=4, lr=0.05, accumulate=accumulate, clip_norm=1.0, checkpoint_seconds=0.0
    )
    trainer = Trainer(
        name="train_seg",
        network=network,
        objectives=objectives,
        views=views,
        report=dict,
        settings=settings,
        run=RunSettings(workers=1, device="cpu"),
        folder=folder,
    )
    trainer.fit()
    return trainer, probe


def flat(lists):
    return [item for one in lists for item in one]


REGULARIZED = {
    "segmenter": {"regularizer": "dfr"},
    "dfr": {"features": "none", "ramp": 0.0, "sigma_rgb": 0.5},
    "train_seg": {"potts": 0.1},
}


@pytest.mark.parametrize(
    ("accumulate", "sections", "tolerance"), [(2, {}, 1e-5), (4, {}, 1e-5), (2, REGULARIZED, 1e-2)]
)
def test_parts_of_a_batch_teach_what_the_whole_teaches(views, tmp_path, accumulate, sections, tolerance):
    """What is about all pixels of a grid is shared by the pixels of boxes, which is nearly the same."""
    whole, seen_whole = trained(views, tmp_path / "whole", 1, **sections)
    divided, seen = trained(views, tmp_path / "divided", accumulate, **sections)
    weights = divided.network.state_dict()
    for name, value in whole.network.state_dict().items():
        torch.testing.assert_close(weights[name], value, atol=tolerance, rtol=tolerance)
    for one, other in zip(whole.history, divided.history, strict=True):
        assert {**other, "first": 0} == pytest.approx({**one, "first": 0}, rel=tolerance)
    assert seen.steps == seen_whole.steps == 4
    steps = [seen.seen[start : start + accumulate] for start in range(0, 4 * accumulate, accumulate)]
    assert [flat(parts) for parts in steps] == seen_whole.seen
    firsts = [np.mean([part[0] for part in parts]) for parts in steps]
    assert [epoch["first"] for epoch in divided.history] == [np.mean(firsts[:2]), np.mean(firsts[2:])]
    assert len(set(seen.drawn)) == len(seen.drawn), "each part has views of its own"


def test_the_figures_above_tell_wrong_shares(views, tmp_path, monkeypatch):
    """Were each part's mean over its own labelled pixels to count as much, the result would be another."""
    whole, _ = trained(views, tmp_path / "whole", 1)
    monkeypatch.setattr(module, "exchange", lambda *own: [tuple(1.0 for _ in own)])
    other, _ = trained(views, tmp_path / "other", 2)
    assert abs(whole.history[0]["segmentation"] / other.history[0]["segmentation"] - 1) > 1e-4
    weight, own = (one.network.network.branches[0].weight for one in (whole, other))
    assert (weight - own).abs().max() > 1e-4


def test_batch_norm_learns_from_each_part(views, tmp_path):
    trainer, _ = trained(views, tmp_path, 2, frozen=False)
    counts = [value for name, value in trainer.network.state_dict().items() if name.endswith("num_batches_tracked")]
    assert counts and all(count == 2 * 4 for count in counts)


def test_a_teacher_sees_parts_too(views, tmp_path):
    sections = {"train_seg": {"teacher": True}, "teacher": {"start": 0.0, "ramp": 0.0, "confidence": 0.3}}
    trainer, probe = trained(views, tmp_path, 2, **sections)
    assert probe.steps == 4 and trainer.history[-1]["teacher"] > 0
    assert int(trainer.network.average.steps) == 4, "the average moves once a step"


def test_a_training_in_parts_is_resumed(views, tmp_path, monkeypatch):
    whole, _ = trained(views, tmp_path / "whole", 2, frozen=False)

    class Break(Exception):
        pass

    own, calls = Probe.terms, []

    def breaks(self, seen):
        calls.append(seen)
        if len(calls) == 6:  # in the second part of the third step
            raise Break
        return own(self, seen)

    monkeypatch.setattr(Probe, "terms", breaks)
    with pytest.raises(Break):
        trained(views, tmp_path / "broken", 2, frozen=False)
    again, probe = trained(views, tmp_path / "broken", 2, frozen=False)
    assert probe.steps == 2 and again.history == whole.history
    pairs = zip(whole.network.state_dict().values(), again.network.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def batch_of(*labelled):
    """Images of 2 x 3 pixels, of which so many have a label."""
    mask = torch.full((len(labelled), 6), 255, dtype=torch.uint8)
    for row, count in enumerate(labelled):
        mask[row, :count] = 1
    return {"index": torch.arange(len(labelled)), "mask": mask.view(-1, 2, 3), "image": torch.zeros(len(labelled), 3)}


def test_shares_by_hand():
    batch = batch_of(6, 2, 0, 1)
    (whole,) = divided(batch, 1)
    assert whole.batch is batch and whole[1:] == (1.0, 1.0, 1.0)
    first, second = divided(batch, 2)
    assert (first.images, first.pixels, second.images, second.pixels) == (0.5, 8 / 9, 0.5, 1 / 9)
    assert [part.batch["index"].tolist() for part in (first, second)] == [[0, 1], [2, 3]]
    assert first.batch["mask"].shape == (2, 2, 3) and first.batch["image"].shape == (2, 3)
    assert [part.pixels for part in divided(batch_of(0, 0), 2)] == [0.5, 0.5]
    batch.pop("mask")
    assert [part[1:] for part in divided(batch, 4)] == [(0.25, 0.25, 0.25)] * 4
    batch["box"] = torch.tensor([[0, 0, 2, 3], [1, 1, 2, 2], [0, 0, 0, 0], [0, 1, 2, 2]])
    assert [part.shown for part in divided(batch, 2)] == pytest.approx([7 / 9, 2 / 9])


def test_shares_are_those_of_all_processes(monkeypatch):
    monkeypatch.setattr(module, "exchange", lambda *own: [own, (1.0, 3.0)])
    assert [part.pixels for part in divided(batch_of(6, 2), 2)] == pytest.approx([7 / 12, 5 / 12])


def test_a_batch_that_cannot_be_divided_is_refused(views, tmp_path):
    few = TrainingViews(views.samples[:3], crop=32, scale=(0.9, 1.5), fill=(1, 2, 3), seed=0, read_mask=views.read_mask)
    line = (
        r"^train_seg.accumulate = 2, but the 3 images of a batch cannot be divided into so many equal parts; "
        r"change it, or train_seg.batch_size$"
    )
    with pytest.raises(ConfigError, match=line):
        trained(few, tmp_path, 2)


def test_views_that_join_whole_batches_are_refused(views, tmp_path, monkeypatch):
    monkeypatch.setattr(Probe, "more_views", lambda steps, start: steps)
    with pytest.raises(ConfigError, match=r"train_seg.accumulate = 2, but an objective adds views to whole batches"):
        trained(views, tmp_path, 2)
    chosen = {"objectives": {"sfc": True}, "train_cls": {"accumulate": 2}}
    with pytest.raises(ValueError, match=r"train_cls.accumulate: SFC's image bank adds views to whole batches; set"):
        Config.model_validate(chosen)
    Config.model_validate(chosen | {"sfc": {"draws": 0}})
