import numpy as np
import pytest
import torch

from cam_pipeline.data.grid import grid_size, resize_to_grid, to_tensor

PIXELS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10  # 2 rows, 3 columns, RGB: no two values are equal


def test_to_tensor_puts_channels_first_and_copies():
    tensor = to_tensor(PIXELS)
    assert tensor.shape == (3, 2, 3) and tensor.dtype == torch.uint8
    assert tensor[1].tolist() == PIXELS[..., 1].tolist()
    tensor.zero_()
    assert PIXELS.any()


@pytest.mark.parametrize(
    ("height", "width", "stride", "max_side", "scale", "grid"),
    [
        (100, 260, 16, 1024, 1.0, (6, 16)),  # 6.25 and 16.25 cells
        (100, 260, 16, 130, 1.0, (3, 8)),  # halved first: 3.125 and 8.125
        (260, 100, 16, 130, 1.0, (8, 3)),
        (100, 260, 16, 1024, 0.5, (3, 8)),
        (100, 260, 16, 520, 1.0, (6, 16)),  # never enlarged
        (1, 1, 32, 1024, 1.0, (1, 1)),
        (1, 4000, 32, 1000, 1.0, (1, 31)),
    ],
)
def test_grid_size(height, width, stride, max_side, scale, grid):
    assert grid_size(height, width, stride, max_side, scale) == grid


def test_resize_to_grid_covers_the_image_and_keeps_its_sides():
    image = torch.zeros(3, 20, 50, dtype=torch.uint8)
    image[0, :, 25:], image[1, 10:], image[2] = 255, 255, 51
    small = resize_to_grid(image, (2, 3), 4)
    assert small.shape == (3, 8, 12) and small.dtype == torch.float32
    torch.testing.assert_close(small[2], torch.full((8, 12), 0.2))
    assert (small[0, :, :4] < 0.01).all() and (small[0, :, 8:] > 0.99).all()  # red is the right half
    assert (small[1, :2] < 0.01).all() and (small[1, 6:] > 0.99).all()  # green is the lower half
    assert torch.equal(resize_to_grid(image, (5, 10), 5)[0, 0, :26], torch.arange(26).ge(25).float())
