import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cam_pipeline.data.check.depth import brightest_of, told_of_dark, warn_of_dark
from cam_pipeline.data.images import Picture
from cam_pipeline.data.table import Sample


def images(folder, *brightest):
    """Images of 16 bits (or of 8, for None) by their greatest numbers."""
    samples = []
    for number, highest in enumerate(brightest):
        path = folder / f"{number}.png"
        Image.fromarray(np.array([[0, highest or 9]], np.uint16 if highest else np.uint8)).save(path)
        samples.append(Sample(str(number), path, "train", (1,)))
    return samples


@pytest.mark.parametrize(
    ("highest", "white", "factor"),
    [(255, 255, 256), (3, 255, 256), (1023, 1023, 64), (4095, 4095, 16), (1500, 4095, 16)],
)
def test_numbers_of_fewer_bits_stored_in_sixteen_are_told(tmp_path, highest, white, factor, caplog):
    samples = images(tmp_path, 60_000, highest, None, 1)
    warn_of_dark(samples)
    (message,) = caplog.messages
    assert message.startswith("2 of 3 images of 16 bits use less than 1/16 of their range, so they look black; ")
    assert f"the greatest number is {highest}, in {samples[1].image}; if it should be {white} for white, " in message
    assert message.endswith(f"multiply all by {factor}")


def test_images_that_use_their_range_are_nothing_to_tell_of(tmp_path, caplog):
    samples = images(tmp_path, 4096, 65_535, None)
    with caplog.at_level(logging.WARNING):
        warn_of_dark([*samples, Sample("gone", tmp_path / "gone.png", "train")])
        warn_of_dark([])
    assert not caplog.records and not list(told_of_dark([]))


def test_of_many_images_a_few_are_looked_at(tmp_path, monkeypatch):
    import cam_pipeline.data.check.depth as module

    asked = []
    monkeypatch.setattr(module, "sample_picture", lambda sample: asked.append(sample.id))
    monkeypatch.setattr(module, "opened", lambda path, limit: asked.append(path) or Image.open(path))
    warn_of_dark(images(tmp_path, *[None] * 50))
    assert len(asked) == module.LOOKED_AT


@pytest.mark.parametrize(
    ("highest", "told"),
    [(0, ""), (1, "1 for white, multiply all by 255"), (9, "15 for white, multiply all by 17"), (16, ""), (255, "")],
)
def test_eight_bits_that_hold_shares_are_told(highest, told):
    sample, found = Sample("a", Path("a.png"), "train"), Picture(np.full((2, 2, 3), highest, np.uint8))
    lines = list(told_of_dark([(sample, brightest_of(found))]))
    assert len(lines) == bool(told) and all(line.endswith(told) for line in lines)
