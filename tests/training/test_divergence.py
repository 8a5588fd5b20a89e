"""Losses that grew or stayed, and numbers that are not finite."""

import math

import pytest
import torch
from torch import nn

from cam_pipeline.training.divergence import all_finite, has_hardly_fallen, is_far_above, learned, main_term


@pytest.mark.parametrize(
    ("last", "first", "expected"), [(9.9, 0.7, False), (10.1, 0.7, True), (39, 4, False), (41, 4, True)]
)
def test_far_above_is_ten_times_the_first_step_or_ten(last: float, first: float, expected: bool) -> None:
    assert is_far_above(last, first) == expected


@pytest.mark.parametrize(
    ("last", "first", "expected"), [(0.693, 0.693, True), (0.67, 0.693, True), (0.6, 0.693, False)]
)
def test_hardly_fallen_is_by_less_than_a_twentieth(last: float, first: float, expected: bool) -> None:
    assert has_hardly_fallen(last, first) == expected


def test_the_main_term_comes_behind_the_loss() -> None:
    assert main_term({"epoch": 1, "loss": 3, "classification": 2, "acr.affinity": 1}) == "classification"


def test_statistics_of_batch_norm_are_learned_and_masks_are_not() -> None:
    network = nn.Sequential(nn.BatchNorm2d(2))
    network.register_buffer("mask", torch.tensor([-math.inf]))
    assert len(learned(network)) == 4 and all_finite(learned(network))
    network[0].running_var[1] = math.inf
    assert not all_finite(learned(network))
    assert all_finite([])
