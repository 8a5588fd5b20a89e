import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cam_pipeline.config import Config
from cam_pipeline.data.images import sample_image
from cam_pipeline.data.table import Sample
from cam_pipeline.models.segmenter import Segmenter, build_segmenter
from cam_pipeline.prediction.label_maps import predict_labels, predict_variants
from cam_pipeline.prediction.predictor import Predictor

SIZES = [(40, 100), (33, 31), (40, 100), (20, 200)]  # (height, width): none is a multiple of 32


class Channels(nn.Module):
    """Logits 0.5, red, green: a label map that can be read off the image. Notes what it was given."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, images):
        self.seen.append(tuple(images.shape))
        return torch.stack([torch.full_like(images[:, 0], 0.5), images[:, 0], images[:, 1]], dim=1)


@pytest.fixture
def samples(tmp_path):
    for index, (height, width) in enumerate(SIZES):
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[:, : width // 4, 0] = 255  # left quarter: label 1
        pixels[height // 2 :, width // 2 :, 1] = 255  # lower right quarter: label 2
        exif = Image.Exif()
        if index == 2:  # stored lying on its side
            pixels, exif[0x0112] = np.rot90(pixels), 6
        Image.fromarray(pixels).save(tmp_path / f"{index}.png", exif=exif)
    return [Sample(str(index), tmp_path / f"{index}.png", "val") for index in range(len(SIZES))]


def test_label_maps_have_the_size_of_the_upright_image(samples):
    network = Channels()
    segmenter = Segmenter(network, network, (0, 0, 0), (1, 1, 1))
    config = Config.model_validate({"run": {"workers": 1}, "segmenter": {"max_side": 128}, "cam": {"batch_size": 2}})
    predicted = {sample.id: labels for sample, labels in predict_labels(segmenter, samples, config)}
    assert set(predicted) == {"0", "1", "2", "3"}
    for index, (height, width) in enumerate(SIZES):
        labels = predicted[str(index)]
        assert labels.dtype == torch.uint8 and labels.shape == (height, width)
        expected = torch.zeros(height, width, dtype=torch.uint8)
        expected[:, : width // 4] = 1
        expected[height // 2 :, width // 2 :] = 2
        assert (labels == expected).float().mean() > 0.95
    # Two of 40 x 100 pixels share a batch; 20 x 200 is first reduced to 13 x 128.
    assert sorted(network.seen) == [(1, 3, 32, 32), (1, 3, 32, 128), (2, 3, 32, 96)]


def test_no_graph_is_kept(samples):
    network = Channels()
    segmenter = Segmenter(network, nn.Conv2d(3, 3, 1), (0, 0, 0), (1, 1, 1))
    config = Config.model_validate({"run": {"workers": 1}})
    assert not any(labels.requires_grad for _, labels in predict_labels(segmenter, samples[:1], config))


def test_variants_share_the_forward_pass(samples):
    network = Channels()
    segmenter = Segmenter(network, network, (0, 0, 0), (1, 1, 1))
    config = Config.model_validate({"run": {"workers": 1}})
    none_of_1 = {sample.id: torch.tensor([0.0, 1.0]) for sample in samples}
    for _, (plain, without) in predict_variants(segmenter, samples, config, [None, none_of_1]):
        assert set(plain.unique().tolist()) == {0, 1, 2}
        assert torch.equal(without, torch.where(plain == 1, 0, plain)), "0.5 and 0 are left where 1 was strong"
        assert without.dtype == torch.uint8 and without.shape == plain.shape
    forward_passes = len(network.seen)
    [(_, alone), *_] = predict_labels(segmenter, samples, config, none_of_1)
    assert not (alone == 1).any() and len(network.seen) == 2 * forward_passes


def test_a_file_and_its_pixels_have_the_same_labels(samples):
    torch.manual_seed(0)
    segmenter = build_segmenter("deeplabv3plus", "resnet18", 3).eval()
    config = Config.model_validate({"run": {"workers": 1, "device": "cpu"}, "cam": {"batch_size": 1}})
    presence = torch.tensor([0.6, 1.0])
    presences = {sample.id: presence for sample in samples}
    predictor = Predictor(segmenter, config, presence=lambda _: presence)
    for sample, labels in predict_labels(segmenter, samples, config, presences):
        assert torch.equal(labels, predictor.labels(sample_image(sample))[0])
