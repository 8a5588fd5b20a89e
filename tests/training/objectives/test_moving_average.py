import pytest
import torch

from cam_pipeline.models.segmenter import build_segmenter
from cam_pipeline.training.objectives.moving_average import MovingAverageObjective, averaged


@pytest.fixture
def segmenter():
    torch.manual_seed(0)
    return build_segmenter("deeplabv2", "resnet10t", 3, arguments={"channels": [8, 16, 24, 32], "stem_width": 8})


def test_averages_by_hand(segmenter):
    """The share of the step before is at most (1 + t) / (10 + t)."""
    objective = MovingAverageObjective(segmenter, decay=0.25)
    weight, start = segmenter.network.branches[0].bias, 0.0
    expected = start
    for step, value in enumerate((1.0, 2.0, 5.0), start=1):
        with torch.no_grad():
            weight.fill_(value)
        objective.after_step()
        decay = min(0.25, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    objective.put_in_place()
    assert segmenter.average is None
    torch.testing.assert_close(weight, torch.full_like(weight, expected))


def test_statistics_are_averaged_and_counts_are_not(segmenter):
    objective = MovingAverageObjective(segmenter, decay=0.9)
    bn = next(module for module in segmenter.modules() if isinstance(module, torch.nn.BatchNorm2d))
    bn.running_mean.fill_(1.0)
    bn.num_batches_tracked.fill_(7)
    objective.after_step()
    objective.put_in_place()
    torch.testing.assert_close(bn.running_mean, torch.full_like(bn.running_mean, 1 - 2 / 11))
    assert bn.num_batches_tracked == 7


def test_a_checkpoint_holds_them(segmenter):
    objective = MovingAverageObjective(segmenter, decay=0.9)
    with torch.no_grad():
        for value in averaged(segmenter):
            value.add_(1)
    objective.after_step()
    state = {name: value.clone() for name, value in segmenter.state_dict().items()}
    other = build_segmenter("deeplabv2", "resnet10t", 3, arguments={"channels": [8, 16, 24, 32], "stem_width": 8})
    resumed = MovingAverageObjective(other, decay=0.9)
    other.load_state_dict(state)
    for one in (objective, resumed):
        one.after_step()
        one.put_in_place()
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in segmenter.state_dict().items())
    assert not [name for name in segmenter.state_dict() if "average" in name]


def test_the_network_may_be_moved_in_between(segmenter):
    """Moving a module makes new buffers."""
    objective = MovingAverageObjective(segmenter, decay=0.5)
    segmenter.to(torch.float64).to(memory_format=torch.channels_last)
    objective.after_step()
    objective.put_in_place()
    assert {value.dtype for value in averaged(segmenter)} == {torch.float64}
