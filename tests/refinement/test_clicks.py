from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from cam_pipeline.config import RefineSettings
from cam_pipeline.data.marks import Click
from cam_pipeline.data.table import Sample
from cam_pipeline.ops.labels import complete_labels
from cam_pipeline.refinement.clicks import fixed_at_marks, marked_channels, spreads, with_marks
from cam_pipeline.refinement.scores import CPU, refined, refined_batch
from cam_pipeline.store.cams import StoredCam

SIZE = (24, 36)
MAPS = torch.tensor([[[4.0, 1.0, 0.0, 0.0]]])
SETTINGS = RefineSettings(crf_backend="torch", bilateral_sxy=20, bilateral_srgb=10)


def halves():
    """An image whose left half is red."""
    pixels = np.zeros((*SIZE, 3), np.uint8)
    pixels[:, : SIZE[1] // 2, 0] = 200
    return pixels


def clicked(tmp_path, *clicks, class_ids=(2,), cam=MAPS, prototype=None):
    """Maps of an image with clicks (x, y, label)."""
    Image.fromarray(halves()).save(tmp_path / "a.png")
    sample = Sample("a", tmp_path / "a.png", "train", clicks=tuple(Click(*click) for click in clicks))
    return with_marks(StoredCam("a", cam, class_ids, SIZE, None, prototype), sample, 5)


def test_an_image_without_marks_keeps_its_maps(tmp_path):
    assert clicked(tmp_path).marks is None
    assert marked_channels(clicked(tmp_path), SIZE, CPU) is None
    scores = torch.rand(2, 3, 4)
    assert fixed_at_marks(scores, None) is scores


def test_a_class_that_is_marked_and_has_no_map_gets_an_empty_one(tmp_path):
    cam = clicked(tmp_path, (3, 3, 5), (20, 20, 0), (30, 3, 2), (9, 9, 1), prototype=torch.ones(2, 1, 4))
    assert cam.class_ids == (2, 1, 5) and cam.cam.shape == (3, 1, 4) and not cam.cam[1:].any()
    assert cam.prototype.shape == (4, 1, 4) and not cam.prototype[2:].any()
    channels = marked_channels(cam, SIZE, CPU)
    assert [int(channels[place]) for place in ((3, 3), (20, 20), (3, 30), (9, 9), (12, 12))] == [3, 0, 1, 2, -1]


def test_what_people_say_is_certain_and_the_rest_stays():
    scores = fixed_at_marks(torch.full((3, 1, 4), 1 / 3), torch.tensor([[0, 2, -1, 1]]))
    assert scores[:, 0, [0, 1, 3]].T.tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]
    assert scores[:, 0, 2].tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize(
    "settings",
    [{}, {"crf": False}, {"crf": False, "kernel": "par"}, {"kernel": "varm", "band": 0.1}, {"max_pixels": 400}],
)
def test_marked_pixels_are_certain_after_every_refinement(tmp_path, settings):
    settings = SETTINGS.model_copy(update=settings)
    cam = clicked(tmp_path, (4, 4, 0), (30, 18, 2))
    found = refined(cam, halves, settings)
    said = cam.marks != 255
    assert said.sum() > 20
    assert (found.scores[0][cam.marks == 0] == 1).all() and (found.scores[1][cam.marks == 2] == 1).all()
    plain = refined(clicked(tmp_path), halves, settings)
    assert plain.scores[1][4, 4] > 0.5 > plain.scores[1][18, 30]


@pytest.mark.parametrize("settings", [{}, {"crf": False, "kernel": "color", "kernel_iterations": 30}])
def test_their_neighbours_of_the_same_colour_follow(tmp_path, settings):
    settings = SETTINGS.model_copy(update=settings)
    shares = [
        refined(clicked(tmp_path, *clicks), halves, settings).scores[1][:, 20:].mean()
        for clicks in ((), [(30, 6, 2), (25, 18, 2)], [(30, 6, 0), (25, 18, 0)])
    ]
    assert shares[1] > shares[0] + 0.02 and shares[1] > shares[2]


def test_marks_of_one_image_leave_the_others_of_its_batch_as_they_are(tmp_path):
    settings = SETTINGS.model_copy(update={"kernel": "par"})
    cams = [clicked(tmp_path), clicked(tmp_path, (30, 6, 1), (4, 4, 0)), clicked(tmp_path)]
    first, second, third = refined_batch(cams, [halves] * 3, settings, CPU)
    alone = [refined(cam, halves, settings) for cam in cams]
    for found, expected in zip((first, second, third), alone, strict=True):
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    assert second.class_ids == (2, 1) and second.scores[2].max() == 1


def with_features(cam):
    """The halves of the image differ; the grid is finer than that of the maps."""
    features = torch.zeros(2, 6, 8)
    features[0, :, :4] = features[1, :, 4:] = 1
    return replace(cam, features=features)


@pytest.mark.parametrize(
    "settings", [{"crf": False}, {}, {"kernel": "par"}, {"crf": False, "band": 0.2}, {"prototype_share": 0.2}]
)
def test_marks_spread_by_features_and_hold_classes_back(tmp_path, settings):
    settings = SETTINGS.model_copy(update=settings)
    calibrated = {"prototype": torch.ones(2, 1, 4)} if settings.prototype_share == 0.2 else {}
    cam = with_features(clicked(tmp_path, (4, 12, 0), (30, 12, 2), **calibrated))
    if calibrated:
        cam = replace(cam, background=torch.ones(1, 4))
    found = refined(cam, halves, settings)
    best = found.scores.argmax(axis=0)
    assert (best[:, :14] == 0).mean() > 0.95 and (best[:, 22:] == 1).mean() > 0.95
    np.testing.assert_allclose(found.scores.sum(axis=0), 1, atol=1e-4)
    assert all(
        found.labels[end][12, 30] == 2 and found.labels[end][12, 4] == 0 for end in found.labels.keys() - {"unrefined"}
    )
    np.testing.assert_array_equal(
        refined(with_features(clicked(tmp_path)), halves, settings).scores,
        refined(clicked(tmp_path), halves, settings).scores,
    )


def test_a_band_moves_the_background_of_spread_marks_too(tmp_path):
    cam = with_features(clicked(tmp_path, (4, 12, 2), (30, 12, 0)))
    found = refined(cam, halves, SETTINGS.model_copy(update={"crf": False, "band": 0.3}))
    sizes = [(labels > 0).sum() for labels in (found.labels["high"], found.scores.argmax(axis=0), found.labels["low"])]
    assert sizes[0] <= sizes[1] <= sizes[2] and sizes[0] < sizes[2]


def test_backgrounds_alone_need_no_features(tmp_path):
    cam = with_features(clicked(tmp_path, (4, 12, 0), class_ids=(), cam=torch.zeros(0, 1, 4)))
    assert not spreads(cam)
    assert (refined(cam, halves, SETTINGS).scores == 1).all()


def test_labels_before_refinement_are_those_after_marks_have_spread(tmp_path):
    """So that `labels.undecided = "agreement"` asks what kernel and CRF changed, not what people did."""
    cam = with_features(clicked(tmp_path, (4, 12, 0), (30, 12, 2)))
    found = refined(cam, halves, SETTINGS.model_copy(update={"crf": False}))
    free = cam.marks == 255
    assert np.array_equal(found.labels["unrefined"][free], complete_labels(found.scores, cam.class_ids)[free])
    assert (found.labels["unrefined"][:, :14] == 0).mean() > 0.95
    plain = refined(replace(cam, features=None), halves, SETTINGS)
    assert (plain.labels["unrefined"] == refined(clicked(tmp_path), halves, SETTINGS).labels["unrefined"]).all()


def test_marks_are_prototypes_of_calibrated_maps(tmp_path):
    features = torch.tensor([[[1.0, 1.0, 0.0, 0.0]], [[0.0, 0.0, 1.0, 1.0]]])
    stored = torch.tensor([[[0.0, 0.0, 0.0, 2.0]], [[4.0, 0.0, 0.0, 0.0]]])
    Image.fromarray(halves()).save(tmp_path / "a.png")
    cam = StoredCam("a", MAPS, (2,), SIZE, torch.ones(1, 4), stored, features=features)
    sample = Sample("a", tmp_path / "a.png", "train", clicks=(Click(12, 3, 2), Click(30, 3, 1)))  # cells 1 and 3
    found = with_marks(cam, sample, 5).prototype
    assert found.tolist() == [
        [[0, 0, 0, 2]],  # nobody named the background
        [[1, 0.5, 0, 0]],
        [[0, 0, 0.5, 0.5]],  # no prototype but that of the click
    ]
    assert with_marks(replace(cam, features=None), sample, 5).prototype[1].tolist() == stored[1].tolist()
