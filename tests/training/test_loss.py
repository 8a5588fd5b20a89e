"""How the terms of several objectives become one loss, on a network without weights to speak of."""

import pytest
import torch
from torch import nn

from cam_pipeline.training import loss as module
from cam_pipeline.training.loss import Loss, mean_over_processes, shared_weights
from cam_pipeline.training.objectives.base import Objective, Terms


class Brightness(nn.Module):
    """The mean of each image, times a weight."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(self, images):
        return self.factor * images.mean(dim=(1, 2, 3))


class Given(Objective):
    """Adds views of a given brightness, and gives the terms that a function makes of the forward pass."""

    def __init__(self, terms, added=()):
        self.terms_of, self.added = terms, added

    def added_views(self, images):
        return torch.cat([torch.full_like(images[:1], value) for value in self.added]) if self.added else None

    def terms(self, seen):
        return self.terms_of(seen)


def batch(*brightness):
    images = torch.stack([torch.full((3, 4, 4), value) for value in brightness])
    return {"image": images, "index": torch.arange(len(images))}


def test_the_loss_is_the_weighted_sum_of_all_terms():
    seen = []

    def size(one):
        seen.append(one)
        return [Terms({"size": one.output})]  # a value for each image

    def others(one):
        return [Terms({"a": one.output.sum(), "b": 3 * one.output[1]}, 0.5), Terms({"c": -one.output[0]}, 2.0)]

    network = Brightness()
    terms = Loss(network, [Given(size), Given(others)])(batch(0.5, 1.0), 0.25)
    assert {name: value.item() for name, value in terms.items()} == {
        "loss": 1.5 + 0.5 * (3.0 + 6.0) - 2 * 1.0,
        "size": 1.5,
        "a": 1.5,
        "b": 3.0,
        "c": -2.0,
    }
    assert next(iter(terms)) == "loss" and seen[0].progress == 0.25
    assert [name for name, value in terms.items() if value.requires_grad] == ["loss"]
    terms["loss"].backward()
    assert network.factor.grad.item() == terms["loss"].item() / 2


def test_every_objective_gets_its_own_views():
    found = {}

    def note(name):
        def terms(seen):
            found[name] = [part.tolist() for part in seen.of_images_and_views(seen.output)]
            found[f"{name} images"] = seen.of_images(seen.output).tolist()
            return [Terms({name: seen.output.mean()})]

        return terms

    objectives = [Given(note("one"), (3.0, 4.0)), Given(lambda seen: []), Given(note("two"), (5.0,))]
    Loss(Brightness(), objectives)(batch(0.5, 1.0), 0.0)
    assert found == {
        "one": [[1.0, 2.0], [6.0, 8.0]],
        "one images": [1.0, 2.0],
        "two": [[1.0, 2.0], [10.0]],
        "two images": [1.0, 2.0],
    }


def test_taps_are_open_while_the_network_sees_the_views_and_then_no_longer():
    class Tap:
        opened = False

        def __enter__(self):
            self.opened = True

        def __exit__(self, *error):
            self.opened = False

    class Watched(Brightness):
        def forward(self, images):
            assert tap.opened
            return super().forward(images)

    tap, states = Tap(), []

    def look(seen):
        states.append(tap.opened)
        return [Terms({"size": seen.output})]

    objective = Given(look)
    objective.taps = (tap,)
    Loss(Watched(), [objective])(batch(0.5), 0.0)
    assert states == [False]


GROUPS = [
    Terms({"image": torch.zeros(3)}, 2.0),
    Terms({"pixel": torch.tensor(0.0)}, items=torch.tensor(30)),
    Terms({"nothing": torch.tensor(0.0)}, items=torch.tensor(0)),
]


def test_alone_every_group_has_its_own_weight(monkeypatch):
    monkeypatch.setattr(module, "exchange", None)  # nothing is asked, so nothing waits for a count of pixels
    assert shared_weights(GROUPS, 3) == [2.0, 1.0, 1.0]


def test_processes_share_by_what_each_term_is_a_mean_over(monkeypatch):
    """The other process has one image and 10 labelled pixels."""
    monkeypatch.setattr(module, "world_size", lambda: 2)
    monkeypatch.setattr(module, "rank", lambda: 0)
    monkeypatch.setattr(module, "exchange", lambda *own: [own, (1.0, 10.0, 0.0)])
    assert shared_weights(GROUPS, 3) == [2.0 * 2 * 3 / 4, 2 * 30 / 40, 0.0]


def test_all_scalars_travel_in_one_message(monkeypatch):
    messages = []

    def exchange(*own):
        messages.append(own)
        return [own, (3.0, 5.0)]

    monkeypatch.setattr(module, "world_size", lambda: 2)
    monkeypatch.setattr(module, "exchange", exchange)
    scalars = {"loss": torch.tensor(1.0, requires_grad=True), "size": torch.tensor(2.0)}
    assert mean_over_processes(scalars) == {"loss": 2.0, "size": 3.5}
    assert messages == [(1.0, 2.0)]


@pytest.mark.parametrize("value", [0.1, 1e30, float("nan")])
def test_alone_a_scalar_stays_what_it_is(value):
    scalar = torch.tensor(value)
    found = mean_over_processes({"loss": scalar})["loss"]
    assert found == float(scalar) or (scalar.isnan() and found != found)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_draw_the_same_views_but_not_the_same_dropout(monkeypatch, processes):
    """The first draws what one process alone would draw."""

    class Drawing(Given):
        def added_views(self, images):
            drawn["view"] = torch.rand(()).item()

    class Dropping(Brightness):
        def forward(self, images):
            drawn["dropout"] = torch.rand(()).item()
            return super().forward(images)

    seen = []
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    for rank in range(processes):
        drawn = {}
        monkeypatch.setenv("RANK", str(rank))
        torch.manual_seed(7)
        Loss(Dropping(), [Drawing(lambda one: [])])._terms(batch(0.5), 0.0)
        seen.append(drawn)
    torch.manual_seed(7)
    assert (seen[0]["view"], seen[0]["dropout"]) == (torch.rand(()).item(), torch.rand(()).item())
    assert len({one["view"] for one in seen}) == 1
    assert len({one["dropout"] for one in seen}) == processes
