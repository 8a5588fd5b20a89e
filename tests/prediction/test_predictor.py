import numpy as np
import pytest
import torch

from cam_pipeline.config import Config
from cam_pipeline.models.segmenter import build_segmenter
from cam_pipeline.ops.image_classes import with_image_classes
from cam_pipeline.prediction.label_maps import predict_image
from cam_pipeline.prediction.predictor import Predictor

SIZE = (70, 45)


@pytest.fixture(scope="module")
def segmenter():
    torch.manual_seed(0)
    return build_segmenter("deeplabv3plus", "resnet18", 4).eval()


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)


def predictor(segmenter, **more):
    return Predictor(segmenter, Config.model_validate({"run": {"device": "cpu"}}), **more)


def test_probabilities_and_labels_at_the_size_of_the_image(segmenter, pixels):
    one = predictor(segmenter)
    probabilities = one.probabilities(pixels)
    labels, confidence = one.labels(pixels)
    assert probabilities.shape == (4, *SIZE) and labels.shape == SIZE and labels.dtype == torch.uint8
    torch.testing.assert_close(probabilities.sum(0), torch.ones(SIZE))
    assert torch.equal(labels.long(), probabilities.argmax(0))
    assert confidence == pytest.approx(float(probabilities.amax(0).mean()))
    assert torch.equal(predict_image(segmenter, pixels, one.config), labels)


def test_views_are_averaged(segmenter, pixels):
    wide = predictor(segmenter, scales=(0.5, 1.0)).probabilities(pixels)
    each = [predictor(segmenter, scales=(scale,)).probabilities(pixels) for scale in (0.5, 1.0)]
    torch.testing.assert_close(wide, sum(each) / 2)
    assert (each[0] - each[1]).abs().max() > 1e-3


def test_a_mirrored_image_has_a_mirrored_answer(segmenter, pixels):
    """Exactly so with `flip`, which makes of both the same views."""
    both = predictor(segmenter, flip=True)
    mirrored = both.probabilities(pixels[:, ::-1])
    torch.testing.assert_close(mirrored.flip(-1), both.probabilities(pixels), atol=1e-5, rtol=1e-4)
    plain = predictor(segmenter)
    assert (plain.probabilities(pixels[:, ::-1]).flip(-1) - plain.probabilities(pixels)).abs().max() > 1e-4


def test_refinement_has_the_last_word(segmenter, pixels):
    seen = []

    def refine(image, probabilities):
        seen.append((image.shape, tuple(probabilities.shape)))
        return torch.nn.functional.one_hot(torch.full(SIZE, 2), 4).movedim(-1, 0).float()

    labels, confidence = predictor(segmenter, refine=refine).labels(pixels)
    assert seen == [((*SIZE, 3), (4, *SIZE))]
    assert (labels == 2).all() and confidence == 1


def test_classes_that_the_image_does_not_show_are_taken_out(segmenter, pixels):
    plain, seen = predictor(segmenter, flip=True), []

    def presence(image):
        seen.append(image.shape)
        return torch.tensor([1.0, 0.5, 0.0])

    given = predictor(segmenter, flip=True, presence=presence)
    expected = with_image_classes(plain.probabilities(pixels), presence(pixels))
    torch.testing.assert_close(given.probabilities(pixels), expected)
    labels, confidence = given.labels(pixels)
    assert torch.equal(labels.long(), expected.argmax(0)) and not (labels == 3).any()
    assert confidence == pytest.approx(float(expected.amax(0).mean()))
    assert set(seen) == {(*SIZE, 3)}


def test_refinement_sees_the_classes_of_the_image(segmenter, pixels):
    taken = []
    given = predictor(
        segmenter, refine=lambda _, found: taken.append(found) or found, presence=lambda _: torch.zeros(3)
    )
    labels, confidence = given.labels(pixels)
    assert not labels.any() and confidence == 1 and not taken[0][1:].any()
