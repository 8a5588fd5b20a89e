import pytest
import torch

from cam_pipeline.ops.dtypes import at_least_float32


@pytest.mark.parametrize(
    ("given", "computed"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_half_precision_is_raised_and_the_rest_kept(given, computed):
    assert at_least_float32(torch.ones(2, dtype=given), "x").dtype == computed


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.complex64])
def test_other_dtypes_are_refused_by_the_name_of_the_argument(dtype):
    with pytest.raises(ValueError, match="weights must be a floating point"):
        at_least_float32(torch.ones(2, dtype=dtype), "weights")
