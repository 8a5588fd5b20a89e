import torch

from cam_pipeline.evaluation.boundary import BAND, band_of, near_outlines


def test_the_band_lies_on_both_sides_of_an_outline():
    target = torch.zeros(4, 40, dtype=torch.uint8)
    target[:, 20:] = 1
    assert band_of(target)[0].nonzero().flatten().tolist() == list(range(20 - BAND, 20 + BAND))


def test_pixels_far_from_outlines_are_left_out():
    target = torch.zeros(4, 40, dtype=torch.uint8)
    target[:, 20:] = 2
    found = near_outlines(target)
    assert found.dtype == torch.int64 and set(found.unique().tolist()) == {0, 2, 255}
    assert (found != 255).sum() == 4 * 2 * BAND
    assert (near_outlines(torch.zeros(4, 4, dtype=torch.uint8)) == 255).all()
