"""Label maps that go out in one format, come back, go out in another and come back again are the same."""

import itertools

import numpy as np
import pytest
from PIL import Image

from cam_pipeline.config import DataSettings
from cam_pipeline.data.marks import sample_marks
from cam_pipeline.data.readers import load_table
from cam_pipeline.export.formats import WRITERS
from cam_pipeline.export.label_maps import label_map, write_label_maps

CLASSES = ("cat", "Größe 2", "fire truck & co", "犬")
COUNT = 200
PARTS = 6
"""A pair of formats takes one map in so many: all of them would take minutes on a slow machine."""


def drawn(random, height, width):
    """A map of a kind that is chosen at random: empty, full, blobs with holes, or noise of single pixels."""
    labels = np.zeros((height, width), np.uint8)
    kind = random.integers(10)
    if kind == 0:
        return labels
    if kind == 1:
        return np.full_like(labels, random.integers(1, 5))
    rows, columns = np.mgrid[:height, :width]
    for _ in range(random.integers(1, 7)):
        y, x, radius = random.integers(height), random.integers(width), random.integers(1, 9)
        distance = np.hypot(rows - y, columns - x)
        labels[(distance < radius) & (distance >= radius / 3)] = random.choice([1, 2, 3, 4, 255])
    if kind > 5:
        places = random.random((height, width)) < 0.05
        labels[places] = random.choice([0, 1, 2, 3, 4, 255], places.sum())
    return labels


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The folder of a data set, and the label map of each image by its id. Every third image is turned by EXIF."""
    root = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    exif = Image.Exif()
    maps, lines = {}, ["image,labels"]
    for number in range(COUNT):
        height, width = (int(side) for side in random.integers(1, 30, 2))
        name = f"Foto {number}/ä b.{number}"
        (root / name).parent.mkdir()
        turned = number % 3 == 0
        exif[0x0112] = 6 if turned else 1
        size = (height, width) if turned else (width, height)
        Image.new("L", size).save(root / f"{name}.jpg", exif=exif)
        maps[name] = drawn(random, height, width)
        lines.append(f"{name}.jpg,?")
    (root / "data.csv").write_text("\n".join(lines), encoding="utf-8")
    (root / "classes.txt").write_text("\n".join(CLASSES), encoding="utf-8")
    return root, maps


def through(target, root, maps, folder):
    """What comes back of label maps that are written in a format."""
    samples = {sample.id: sample for sample in table_of(root).samples}
    write_label_maps(
        WRITERS[target], (label_map(samples[name], labels, root) for name, labels in maps.items()), CLASSES, folder
    )
    found = {sample.id: sample for sample in table_of(root, str(folder)).samples if sample.corrected is not None}
    assert list(found) == list(maps)
    return {name: sample_marks(sample, len(CLASSES)).labels for name, sample in found.items()}


def table_of(root, corrected=""):
    return load_table(DataSettings(root=root, corrected=corrected))


def as_kept(target, labels):
    """YOLO has no undecided pixels."""
    return np.where(labels == 255, 0, labels) if target == "yolo" else labels


def equal(first, second):
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def returned(data, tmp_path_factory):
    """All label maps after one way out and back, by format."""
    root, maps = data
    folder = tmp_path_factory.mktemp("out")
    return {target: through(target, root, maps, folder / target) for target in WRITERS}


@pytest.mark.parametrize("target", list(WRITERS))
def test_all_maps_come_back_pixel_by_pixel(data, returned, target):
    _, maps = data
    assert len(maps) == COUNT
    assert equal(returned[target], {name: as_kept(target, labels) for name, labels in maps.items()})


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(WRITERS, 2)))
def test_what_came_back_from_one_format_goes_through_another(data, returned, tmp_path, first, second):
    """Each pair takes a sixth of the maps, those of one `first` others each."""
    root, _ = data
    names = list(returned[first])[list(WRITERS).index(second) :: PARTS]
    maps = {name: returned[first][name] for name in names}
    again = through(second, root, maps, tmp_path / "out")
    assert equal(again, {name: as_kept(second, labels) for name, labels in maps.items()})
