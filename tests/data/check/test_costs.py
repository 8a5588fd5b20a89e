"""How much of the images each epoch leaves out."""

import pytest

from cam_pipeline.data.check.costs import left_out


@pytest.mark.parametrize(
    ("count", "batch_size", "over"),
    [(28, 16, 12), (24, 8, 0), (500, 16, 0), (8, 16, 0), (3, 2, 0), (10, 8, 0), (11, 8, 3)],  # few are not worth a line
)
def test_images_that_fill_no_batch(count: int, batch_size: int, over: int) -> None:
    line = left_out("train_seg", count, batch_size)
    assert line.startswith(f"{over} of {count} training images are left out") if over else line == ""
    assert not over or line.endswith(f"lower train_seg.batch_size (now {batch_size})")
