"""A view depends on seed, epoch and image alone."""

import numpy as np
import torch

from cam_pipeline.data.augment import PixelMap
from cam_pipeline.data.views import BLANK, TrainingViews


def test_a_view_depends_on_seed_epoch_and_index_alone(samples, make_views):
    views = make_views(samples)
    first = views[2, 3]
    assert first["index"] == 3 and first["image"].shape == (3, 10, 10) and first["image"].dtype == torch.uint8
    assert "mask" not in first
    assert torch.equal(make_views([samples[3]] * 4)[2, 3]["image"], first["image"])
    _ = views[0, 1], np.random.default_rng().random(), torch.rand(1)
    assert torch.equal(views[2, 3]["image"], first["image"])
    twice = make_views([samples[3]] * 4)  # the same image under other indices
    for other in (views[1, 3], make_views(samples, seed=1)[2, 3], twice[2, 2]):
        assert not torch.equal(other["image"], first["image"])


def test_further_views_of_an_image_in_an_epoch_are_others(samples, make_views):
    views = make_views(samples)
    first, second, third = (views[key] for key in ((2, 3), (2, 3, 1), (2, 3, 2)))
    assert first["index"] == second["index"] == 3
    assert not torch.equal(first["image"], second["image"]) and not torch.equal(second["image"], third["image"])
    assert torch.equal(views[2, 3, 1]["image"], second["image"])


def test_mask_and_image_of_an_item_belong_together(samples, make_views):
    item = make_views(samples, masks=True)[0, 3]
    inside = item["mask"] != 255
    assert inside.any() and (item["mask"][inside] == 3).all()
    assert (item["image"][2][inside] == 30).all()


def test_a_view_has_the_labels_of_its_image_and_an_empty_one_has_none(samples, make_views):
    labels = torch.eye(5)[:, :2]
    views = TrainingViews(samples, crop=10, scale=(0.8, 1.5), fill=(1, 2, 3), seed=0, labels=labels)
    assert [views[3, index]["labels"].tolist() for index in (0, 1, 4, BLANK)] == [[1, 0], [0, 1], [0, 0], [0, 0]]
    blank = views[3, BLANK]
    assert blank["image"][:, 4, 7].tolist() == [1, 2, 3] and blank["image"].shape == (3, 10, 10)
    assert blank["index"] == BLANK and not blank["box"].any() and "mask" not in blank
    assert "labels" not in make_views(samples)[0, BLANK]


def test_maps_of_an_item_go_with_its_image(samples, make_views):
    def read_maps(index):
        return {"sure": PixelMap(torch.full((13, 21), 20 + index, dtype=torch.uint8), fill=0)}

    views = make_views(samples, masks=True)
    plain = views[0, 3]
    views.read_maps = read_maps
    item = views[0, 3]
    assert item.keys() - plain.keys() == {"sure"}
    assert all(torch.equal(torch.as_tensor(item[key]), torch.as_tensor(value)) for key, value in plain.items())
    assert torch.equal(item["sure"] == 23, item["mask"] == 3) and torch.equal(item["sure"] == 0, item["mask"] == 255)
    assert "sure" not in views[0, BLANK]
