import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from cam_pipeline.config import RefineSettings
from cam_pipeline.data.table import Sample
from cam_pipeline.errors import DataError
from cam_pipeline.refinement import in_batches as module
from cam_pipeline.refinement.in_batches import batches, refined_records_on
from cam_pipeline.refinement.in_workers import refine_image
from cam_pipeline.refinement.scores import CPU
from cam_pipeline.store.cams import StoredCam
from cam_pipeline.store.scores import score_record

SIZES = [(24, 36), (30, 20), (24, 36), (24, 36), (30, 20), (8, 8)]


def cams():
    return [StoredCam(f"{place}", torch.tensor([[[3.0, 1.0 + place]]]), (1,), size) for place, size in enumerate(SIZES)]


def test_a_batch_has_images_of_one_size_and_not_too_many_pixels(monkeypatch):
    monkeypatch.setattr(module, "BATCH_PIXELS", 2 * 24 * 36)
    assert [[cam.name for cam in batch] for batch in batches(cams())] == [["0", "2"], ["3"], ["1", "4"], ["5"]]
    monkeypatch.setattr(module, "BATCH_PIXELS", 1)
    assert [len(batch) for batch in batches(cams())] == [1] * 6
    assert batches([]) == []


def test_batches_give_what_workers_give(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BATCH_PIXELS", 2 * 24 * 36)
    samples = {}
    for cam in cams():
        pixels = np.random.default_rng(int(cam.name)).integers(0, 50, (*cam.size, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{cam.name}.png")
        samples[cam.name] = Sample(cam.name, tmp_path / f"{cam.name}.png", "train", (1,))
    settings = RefineSettings(crf_backend="torch", band=0.1)
    found = {record.name: record for record in refined_records_on(CPU, cams(), samples, settings, threads=2)}
    assert set(found) == set(samples)
    for cam in cams():
        expected = score_record(refine_image(cam, samples[cam.name], settings))
        assert found[cam.name].arrays.keys() == expected.arrays.keys()
        for name, values in expected.arrays.items():
            assert np.abs(found[cam.name].arrays[name].astype(int) - values.astype(int)).max() <= 1


def test_images_that_are_not_wanted_any_more_are_not_read(monkeypatch):
    """An error or a stop does not wait for the rest of a batch."""
    reads = []

    def read(sample):
        reads.append(sample)
        if len(reads) > 1:
            time.sleep(0.05)
        raise DataError("it cannot be read")

    monkeypatch.setattr(module, "sample_image", read)
    many = [replace(cams()[0], name=str(place)) for place in range(9)]
    with pytest.raises(DataError):
        next(refined_records_on(CPU, many, {cam.name: cam.name for cam in many}, RefineSettings(), threads=1))
    assert len(reads) < 9
