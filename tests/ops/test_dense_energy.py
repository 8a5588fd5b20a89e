"""P13 of the specification of TSCD, and the gate of P10 of that of DFR."""

import pytest
import torch
from torch import Tensor

from cam_pipeline.ops.dense_energy import dense_energy_loss, doubt, gated
from cam_pipeline.ops.pairs import Kernel, Quadratic, all_weights, dense_energy, offsets_within

THREE = torch.tensor([[0.9, 0.6, 0.2], [0.1, 0.4, 0.8]], dtype=torch.float64)[None, :, None]
"""(1, 2, 1, 3)."""
LABELS = torch.tensor([[[0, 255, 1]]])
COLOURS = torch.tensor([0, 0, 255.0], dtype=torch.float64).expand(1, 3, 1, 3)
ROW = [(0, 1), (0, 2)]


def near(value: object, tolerance: float = 1e-6) -> object:
    return pytest.approx(value, abs=tolerance)


def drawn(height: int = 5, width: int = 7, batch: int = 2) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    shape = (batch, 3, height, width)
    return {
        "probabilities": torch.randn(shape, generator=draw, dtype=torch.float64).softmax(dim=1),
        "image": torch.rand(shape, generator=draw, dtype=torch.float64),
        "labels": torch.tensor([0, 2, 255])[torch.randint(3, (batch, height, width), generator=draw)],
        "roi": (torch.rand(batch, 1, height, width, generator=draw) < 0.8).double(),
    }


def with_own(probabilities: Tensor, energy: Tensor, mass: Tensor, gate: Tensor) -> Tensor:
    """-sum g_i w_ij <p_i, p_j> with i = j, whose weight is 1, from energy and mass of the pairs i != j."""
    return energy - mass - (gate * probabilities.square().sum(dim=1)).sum()


def test_the_number_of_the_specification():
    """Three pixels, all pairs, each also with itself, in the released form."""
    gate = doubt(THREE, LABELS)
    assert gate.flatten().tolist() == near([0.1, 1, 0.2])
    kernel = Kernel(COLOURS, None, 0.0, 50.0, 15.0, torch.ones(1, 1, 1, 3).double())
    assert kernel(0, 1)[0, 0, 0].item() == near(0.9998)
    energy, mass = Quadratic.apply(THREE, gated(kernel, gate), ROW)
    released = with_own(THREE, energy, mass, gate)
    assert released.item() == near(-1.375872) and 1e-7 * released.item() == near(-1.375872e-7, 1e-13)
    loss = dense_energy_loss(THREE, COLOURS, LABELS, dilation=1, sigma_xy=50.0, sigma_rgb=15.0)
    assert loss.item() == near(energy.item() / 3)
    scaled = dense_energy_loss(THREE, COLOURS / 255, LABELS, dilation=1, sigma_xy=50.0, sigma_rgb=15 / 255)
    assert scaled.item() == near(loss.item(), 1e-12)


def test_the_gradient_of_a_constant_gate():
    """Explicit weights 0.8, 0.1 and 0.5, and 1 for each pixel with itself."""
    probabilities, gate = THREE.clone().requires_grad_(), doubt(THREE, LABELS)
    weights = {(0, 1): [[[0.8, 0.5]]], (0, 2): [[[0.1]]]}
    weigh = gated(lambda dy, dx: torch.tensor(weights[dy, dx], dtype=torch.float64), gate)
    energy, mass = Quadratic.apply(probabilities, weigh, ROW)
    value = with_own(probabilities, energy, mass, gate)
    value.backward()
    assert value.item() == near(-1.5202)
    assert probabilities.grad[0, 0, 0].tolist() == near([-0.714, -2.112, -0.467])


@pytest.mark.parametrize(("radius", "dilation"), [(1, 1), (2, 1), (9, 1), (2, 2), (1, 3), (3, 4)])
def test_windows_equal_the_sum_over_all_pairs(radius, dilation):
    given = drawn()
    probabilities = given["probabilities"].clone().requires_grad_()
    settings = {"radius": radius, "dilation": dilation, "sigma_xy": 3.0, "sigma_rgb": 0.4}
    loss = dense_energy_loss(**given | {"probabilities": probabilities}, **settings)
    (gradient,) = torch.autograd.grad(loss, probabilities)
    kernel = Kernel(given["image"], None, 0.0, 3.0, 0.4, given["roi"])
    rows, columns = torch.meshgrid(torch.arange(5), torch.arange(7), indexing="ij")
    apart = torch.stack([rows.flatten()[:, None] - rows.flatten(), columns.flatten()[:, None] - columns.flatten()])
    on_grid = (apart % dilation == 0).all(dim=0)
    weights = all_weights(kernel, radius * dilation) * on_grid
    gate = doubt(given["probabilities"], given["labels"]).flatten(1)
    expected = dense_energy(probabilities.flatten(2), weights, gate) / given["roi"].sum()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, probabilities)[0])


def test_the_gradient_where_nothing_is_labelled():
    given = drawn(3, 4)
    given["labels"] = torch.full((2, 3, 4), 255)
    logits = given.pop("probabilities").log().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: dense_energy_loss(x.softmax(dim=1), **given, radius=2, dilation=1, sigma_rgb=0.4), logits
    )


def test_sure_pixels_with_a_label_count_only_as_partners():
    probabilities = torch.zeros(1, 2, 2, 3).double()
    probabilities[:, 0] = 1
    probabilities[..., 1, 2] = 0.5
    grey, labels = torch.zeros(1, 3, 2, 3).double(), torch.zeros(1, 2, 3, dtype=torch.uint8)
    unsure = dense_energy_loss(probabilities, grey, labels, radius=1, dilation=1, sigma_xy=1e6)
    assert unsure.item() == near(0.5 * 3 * 0.5 / 6)  # its three neighbours, from its side alone
    labels[:, 1, 2] = 255
    assert dense_energy_loss(probabilities, grey, labels, radius=1, dilation=1, sigma_xy=1e6).item() == near(1.5 / 6)


def test_the_gate_and_the_image_get_no_gradient():
    given = drawn()
    given["probabilities"].requires_grad_()
    given["image"].requires_grad_()
    gate = doubt(given["probabilities"], given["labels"])
    assert not gate.requires_grad
    dense_energy_loss(**given).backward()
    assert given["image"].grad is None and given["probabilities"].grad.abs().sum() > 0


def test_padding_outside_the_region_changes_nothing():
    given = drawn()
    other = {name: value.clone() for name, value in given.items()}
    outside = given["roi"][:, 0] == 0
    other["labels"][outside] = 255
    other["image"].permute(0, 2, 3, 1)[outside] = 0
    other["probabilities"].permute(0, 2, 3, 1)[outside] = 1 / 3
    assert dense_energy_loss(**other, dilation=1).item() == dense_energy_loss(**given, dilation=1).item()


@pytest.mark.parametrize("roi", [None, torch.zeros(2, 1, 1, 1)])
def test_without_pairs_the_loss_is_zero_with_a_graph(roi):
    given = drawn(1, 1) | {"roi": roi}
    given["probabilities"].requires_grad_()
    loss = dense_energy_loss(**given)
    loss.backward()
    assert loss.item() == 0 and not given["probabilities"].grad.any()


def test_autocast_changes_nothing():
    given = {name: value.float() if value.is_floating_point() else value for name, value in drawn().items()}
    expected = dense_energy_loss(**given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(dense_energy_loss(**given), expected)
    half = given | {"probabilities": given["probabilities"].bfloat16()}
    assert dense_energy_loss(**half).dtype == torch.float32


def test_a_window_with_gaps_holds_multiples_of_the_dilation():
    offsets = offsets_within(2, 9, 5, 3)
    assert offsets == [(0, 3), (3, -3), (3, 0), (3, 3), (6, -3), (6, 0), (6, 3)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"probabilities": torch.rand(2, 5, 7)}, "probabilities must be"),
        ({"probabilities": torch.full((2, 3, 5, 7), 2.0)}, "0..1"),
        ({"image": torch.rand(2, 3, 5, 6)}, "image must be"),
        ({"labels": torch.zeros(2, 5, 6).long()}, "labels must be"),
        ({"labels": torch.zeros(2, 5, 7)}, "labels must be"),
        ({"roi": torch.full((2, 1, 5, 7), 0.5)}, "roi must be"),
        ({"radius": 0}, "radius and dilation"),
        ({"dilation": 0}, "radius and dilation"),
        ({"sigma_xy": 0}, "sigma_xy"),
        ({"sigma_rgb": -1.0}, "sigma_rgb"),
    ],
)
def test_what_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        dense_energy_loss(**drawn() | change)


@pytest.mark.gpu
def test_the_gpu_says_the_same():
    given = drawn()
    torch.testing.assert_close(
        dense_energy_loss(**{name: value.cuda() for name, value in given.items()}).cpu(), dense_energy_loss(**given)
    )
