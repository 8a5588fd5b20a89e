"""A few images of several sizes, and random views of them."""

import numpy as np
import pytest
from PIL import Image

from cam_pipeline.data.table import Sample
from cam_pipeline.data.views import TrainingViews

SIZES = [(12, 20), (20, 12), (12, 20), (13, 21), (40, 20)]  # (height, width)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for index, (height, width) in enumerate(SIZES):
        pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        pixels[..., 2] = 10 * index  # blue tells the images apart
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return [Sample(str(index), folder / f"{index}.png", "train", (1,)) for index in range(len(SIZES))]


@pytest.fixture
def make_views():
    """`make_views(samples)`: a mask, if asked for, is full of its index."""
    return views_of


def views_of(samples, seed=0, masks=False):
    def read_mask(index):
        return np.full(SIZES[index], index, dtype=np.uint8)

    return TrainingViews(
        samples, crop=10, scale=(0.8, 1.5), fill=(1, 2, 3), seed=seed, read_mask=read_mask if masks else None
    )
