"""The training loop on a network of a few hundred weights: schedule, groups, and that a restart changes nothing."""

import json
import math
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cam_pipeline.config import RunSettings, TrainSettings
from cam_pipeline.data.table import Sample
from cam_pipeline.data.views import TrainingViews
from cam_pipeline.errors import Interrupted, TrainingDiverged
from cam_pipeline.machine import interrupt
from cam_pipeline.models.pretrained import PretrainedHalf
from cam_pipeline.training.objectives.base import Objective, Terms
from cam_pipeline.training.optimizer import learning_rate_factor, make_optimizer
from cam_pipeline.training.trainer import Mean, Trainer, shown

IMAGES, BATCH, EPOCHS = 5, 2, 3
STEPS = EPOCHS * (IMAGES // BATCH)


class Tiny(PretrainedHalf):
    """A backbone with BatchNorm, dropout, and a head: everything that a checkpoint must bring back."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(4, 2)

    def pretrained_half(self):
        return self.backbone

    def forward(self, images):
        return self.head(self.dropout(self.backbone(images.float() / 255).mean(dim=(2, 3))))


@pytest.fixture(scope="module")
def views(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for index in range(IMAGES):
        Image.fromarray(rng.integers(0, 255, (9, 12, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    samples = [Sample(str(index), folder / f"{index}.png", "train", (1,)) for index in range(IMAGES)]
    return TrainingViews(samples, crop=8, scale=(0.8, 1.5), fill=(1, 2, 3), seed=0)


def settings(**more):
    chosen = {"epochs": EPOCHS, "batch_size": BATCH, "lr": 0.1, "head_lr_factor": 2.0, "warmup": 0.5}
    return TrainSettings(**{**chosen, "checkpoint_seconds": 0.0, **more})


class Break(Exception):
    """Stands for a kill in the middle of a step."""


class Work(Objective):
    """Gives what a function makes of a batch, and a term that counts how often it was asked; notes each step's end."""

    def __init__(self, loss):
        self.loss, self.asked, self.ended = loss, 0, []

    def terms(self, seen):
        self.asked += 1
        return [Terms({"work": self.loss(seen.batch)}), Terms({"progress": torch.tensor(seen.progress)}, 0.25)]

    def after_step(self):
        self.ended.append(self.asked)


class Training:
    """A Trainer that can break at a given step, and what its loss and report saw."""

    def __init__(self, views, folder, network=None, break_at=-1, losses=None, loss=None, **more):
        self.network = network or Tiny()
        self.asked, self.break_at, self.losses = 0, break_at, losses or {}
        self.modes = []
        self.work = Work(loss or self.loss)
        self.trainer = Trainer(
            name="train_cls",
            network=self.network,
            objectives=[self.work],
            views=views,
            report=self.report,
            settings=settings(**more),
            run=RunSettings(workers=1, device="cpu"),
            folder=folder,
        )

    def loss(self, batch):
        step, self.asked = self.asked, self.asked + 1
        if step == self.break_at:
            raise Break
        assert self.network.training
        targets = torch.stack([batch["index"] % 2, batch["index"] // 2 % 2], dim=1).float()
        loss = nn.functional.binary_cross_entropy_with_logits(self.network(batch["image"]), targets)
        return loss + self.losses.get(step, 0.0)

    def report(self):
        self.modes.append(self.network.training)
        return {"weight": float(self.network.head.weight.detach().sum())}

    def fit(self):
        self.trainer.fit()
        return self

    def result(self):
        checkpoint = torch.load(self.trainer.folder / "checkpoint.pt", weights_only=True)
        momenta = [entry["momentum_buffer"] for entry in checkpoint["optimizer"]["state"].values()]
        return [*self.network.state_dict().values(), *momenta]


@pytest.fixture(scope="module")
def undisturbed(views, tmp_path_factory):
    return Training(views, tmp_path_factory.mktemp("undisturbed")).fit()


def assert_same(training, undisturbed):
    pairs = list(zip(training.result(), undisturbed.result(), strict=True))
    assert len(pairs) > 10 and all(torch.equal(one, other) for one, other in pairs)
    assert training.trainer.history == undisturbed.trainer.history


def test_training_changes_every_weight_and_repeats_exactly(views, undisturbed, tmp_path):
    fresh = Tiny().state_dict()
    assert not any(torch.equal(value, fresh[key]) for key, value in undisturbed.network.state_dict().items())
    torch.manual_seed(99)  # the state of the caller's generator is of no importance
    assert_same(Training(views, tmp_path).fit(), undisturbed)


@pytest.mark.parametrize("step", range(1, STEPS))
def test_a_run_that_breaks_at_any_step_ends_like_one_that_does_not(views, undisturbed, tmp_path, step):
    with pytest.raises(Break):
        Training(views, tmp_path, break_at=step).fit()
    resumed = Training(views, tmp_path, network=Tiny(seed=7))  # its own weights are replaced
    assert_same(resumed.fit(), undisturbed)
    assert resumed.asked == STEPS - step


def test_work_since_the_last_checkpoint_is_done_again(views, undisturbed, tmp_path):
    with pytest.raises(Break):
        Training(views, tmp_path, break_at=3, checkpoint_seconds=1e9).fit()
    resumed = Training(views, tmp_path, checkpoint_seconds=1e9).fit()
    assert resumed.asked == STEPS - 2, "from the end of the first epoch"
    assert_same(resumed, undisturbed)


def test_a_finished_training_is_not_repeated(views, undisturbed):
    again = Training(views, undisturbed.trainer.folder, network=Tiny(seed=7)).fit()
    assert again.asked == 0
    assert_same(again, undisturbed)


def test_an_unreadable_checkpoint_means_to_start_over(views, undisturbed, tmp_path, caplog):
    (tmp_path / "checkpoint.pt").write_bytes(b"half a checkpoint")
    again = Training(views, tmp_path).fit()
    assert again.asked == STEPS and "training starts over" in caplog.text
    assert_same(again, undisturbed)


def test_a_signal_stops_after_the_step_and_saves_it(views, undisturbed, tmp_path, monkeypatch):
    received = []
    monkeypatch.setattr(interrupt, "_received", received)
    training = Training(views, tmp_path, checkpoint_seconds=1e9)

    def loss(batch):
        if training.asked == 2:
            received.append(int(signal.SIGTERM))
        return training.loss(batch)

    training.work.loss = loss
    with pytest.raises(Interrupted, match="SIGTERM"):
        training.fit()
    assert training.asked == 3
    assert json.loads((tmp_path / "progress.json").read_text()) == {"done": 3, "total": STEPS, "unit": "steps"}
    received.clear()
    resumed = Training(views, tmp_path).fit()
    assert resumed.asked == STEPS - 3
    assert_same(resumed, undisturbed)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_says_where_and_keeps_the_checkpoint(views, tmp_path, value):
    training = Training(views, tmp_path, losses={3: value})
    with pytest.raises(
        TrainingDiverged,
        match=rf"train_cls: the loss is {value} at epoch 2, step 2 of 2; lower train_cls.lr \(now 0.1\)",
    ):
        training.fit()
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert checkpoint["step"] == 3
    assert all(torch.equal(value, checkpoint["network"][key]) for key, value in training.network.named_parameters())


def spoil(training, at, change):
    """Change the network before step `at`, as an update would that the loss of that step does not show."""

    def loss(batch):
        if training.asked == at:
            with torch.no_grad():
                change(training.network)
        return training.loss(batch)

    training.work.loss = loss


def overflow_statistics(network):
    network.backbone[1].running_var[0] = torch.inf


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (overflow_statistics, "the weights are not finite after epoch 1"),  # only evaluation shows it
        (lambda network: network.unused.fill_(torch.nan), "the weights are not finite after epoch 1"),  # no loss does
        (lambda network: network.late.fill_(torch.inf), "the network's answers are not finite after epoch 1"),
    ],
)
def test_a_network_that_is_not_finite_is_found_though_its_loss_is(views, tmp_path, change, complaint):
    class Late(Tiny):
        def __init__(self):
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(1))
            self.register_buffer("late", torch.ones(1))

        def forward(self, images):
            return super().forward(images) if self.training else super().forward(images) * self.late

    training = Training(views, tmp_path, Late(), checkpoint_seconds=1e9)
    spoil(training, 1, change)
    line = rf"^train_cls: {complaint}; lower train_cls.lr \(now 0.1\). The last checkpoint is kept$"
    with pytest.raises(TrainingDiverged, match=line):
        training.fit()
    assert not training.modes, "nothing is measured of it"
    assert not (tmp_path / "checkpoint.pt").exists()


def test_buffers_that_are_no_statistics_may_be_infinite(views, undisturbed, tmp_path):
    network = Tiny()
    network.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    assert Training(views, tmp_path, network).fit().trainer.history == undisturbed.trainer.history


def test_a_loss_that_ends_far_above_its_start_is_no_result(views, tmp_path):
    training = Training(views, tmp_path, losses={4: 20.0, 5: 20.0})
    line = r"the loss of the last epoch \(20\.\d\) is far above that of the first step \(0\.\d+\); lower train_cls.lr "
    with pytest.raises(TrainingDiverged, match=line):
        training.fit()
    again = Training(views, tmp_path, network=Tiny(seed=7))
    with pytest.raises(TrainingDiverged, match=line):
        again.fit()
    assert again.asked == 0, "the finished training says so again"


@pytest.mark.parametrize(
    "losses",
    [
        {1: 1000.0, 2: 1000.0},  # recovers
        {4: 5.0, 5: 5.0},  # learns badly
        {0: 20.0, 4: 100.0, 5: 100.0},  # starts high, as random heads may
        {0: -0.9, 4: 8.0, 5: 8.0},  # whatever starts near 0 is taken for 1
    ],
)
def test_other_losses_end_as_they_are(views, tmp_path, losses):
    Training(views, tmp_path, losses=losses).fit()


def test_only_the_main_term_tells_a_loss_that_diverged(views, tmp_path):
    """Terms of methods rise with their weights."""
    training = Training(views, tmp_path)
    own = training.work.terms
    training.work.terms = lambda seen: [*own(seen), Terms({"method.term": torch.tensor(1000.0)}, seen.progress)]
    assert training.fit().trainer.history[-1]["loss"] > 500


def test_history_has_the_mean_of_every_term_and_the_figures_of_every_epoch(views, tmp_path):
    seen = []
    training = Training(views, tmp_path)
    wrapped = training.loss

    def loss(batch):
        value = wrapped(batch)
        seen.append(float(value.detach()))
        return value

    training.work.loss = loss
    history = training.fit().trainer.history
    assert [list(figures) for figures in history] == [["epoch", "loss", "work", "progress", "weight"]] * EPOCHS
    assert [figures["epoch"] for figures in history] == [1, 2, 3]
    assert [figures["work"] for figures in history] == pytest.approx([sum(seen[i : i + 2]) / 2 for i in (0, 2, 4)])
    done = [0.25 * (step + 0.5) / STEPS for step in (0, 2, 4)]
    assert [figures["progress"] for figures in history] == pytest.approx(done)
    assert [figures["loss"] - figures["work"] for figures in history] == pytest.approx(done)
    assert history[-1]["weight"] == float(training.network.head.weight.detach().sum())
    assert training.modes == [False] * EPOCHS, "reports see the network in evaluation mode"
    training.trainer.write_history(tmp_path / "logs" / "h.jsonl")
    assert [json.loads(line) for line in (tmp_path / "logs" / "h.jsonl").read_text().splitlines()] == history


def test_objectives_hear_of_the_end_of_every_step(undisturbed):
    assert undisturbed.work.ended == [1, 2, 3, 4, 5, 6]


def test_a_checkpoint_from_before_terms_had_names_is_taken_up(views, undisturbed, tmp_path):
    """It knows the mean of the loss alone; the terms of that epoch are means over the steps that follow."""
    with pytest.raises(Break):
        Training(views, tmp_path, break_at=3).fit()
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert {name: count for name, (_, count) in state["losses"].items()} == {"loss": 1, "work": 1, "progress": 1}
    state["losses"] = state["losses"]["loss"]
    torch.save(state, tmp_path / "checkpoint.pt")
    resumed = Training(views, tmp_path).fit()
    assert resumed.work.asked == STEPS - 3
    history = [figures | {"work": 0, "progress": 0} for figures in resumed.trainer.history]
    assert history == [figures | {"work": 0, "progress": 0} for figures in undisturbed.trainer.history]
    first, second, third = (figures["progress"] for figures in resumed.trainer.history)
    assert (first, second, third) == pytest.approx((0.25 * 0.5 / 6, 0.25 * 3 / 6, 0.25 * 4.5 / 6))


def test_every_step_moves_by_its_learning_rate(views, tmp_path):
    """With the sum of all weights as loss, each gradient is 1, and weights fall by what the rates add up to."""
    network = Tiny()
    before = {name: value.detach().clone() for name, value in network.named_parameters()}

    def loss(batch):
        return sum(parameter.sum() for parameter in network.parameters())

    chosen = dict(momentum=0.0, weight_decay=0.0, head_lr_factor=3.0, warmup=0.5, poly_power=1.0)
    Training(views, tmp_path, network, loss=loss, **chosen).fit()
    factors = [1 / 3 * 1, 2 / 3 * 5 / 6, 1 * 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    for name, value in network.named_parameters():
        rate = 0.1 if name.startswith("backbone") else 0.3
        torch.testing.assert_close(before[name] - value, torch.full_like(value, rate * sum(factors)))


def test_gradients_are_clipped_to_their_norm(views, tmp_path):
    network = Tiny()
    before = nn.utils.parameters_to_vector(network.parameters()).detach().clone()

    def loss(batch):
        return 100 * sum(parameter.sum() for parameter in network.parameters())

    chosen = dict(momentum=0.0, weight_decay=0.0, head_lr_factor=1.0, warmup=0.0, poly_power=0.0, clip_norm=0.5)
    Training(views, tmp_path, network, loss=loss, **chosen).fit()
    moved = before - nn.utils.parameters_to_vector(network.parameters()).detach()
    assert float(moved.norm()) == pytest.approx(STEPS * 0.1 * 0.5, rel=1e-4)


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 0.5), (1, 0.9), (2, 0.8), (5, 0.5), (9, 0.1)]
)  # of 10, the first two rise
def test_learning_rate_rises_then_falls(step, factor):
    assert learning_rate_factor(step, 10, settings(warmup=0.2, poly_power=1.0)) == pytest.approx(factor)


def test_learning_rate_without_warmup_follows_the_power():
    assert learning_rate_factor(0, 10, settings(warmup=0.0)) == 1
    assert learning_rate_factor(5, 10, settings(warmup=0.0)) == pytest.approx(0.5**0.9)
    assert learning_rate_factor(0, 10, settings(warmup=0.05)) == 1, "less than a step: none"
    assert learning_rate_factor(9, 10, settings(warmup=0.0, poly_power=0.0)) == 1
    cosine = [learning_rate_factor(step, 10, settings(warmup=0.0, schedule="cosine")) for step in (0, 5, 9)]
    assert cosine == pytest.approx([1, 0.5, 0.0244717], rel=1e-4)


def described(optimizer, network):
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def test_optimizer_groups():
    network = Tiny()
    network.head.bias.requires_grad = False
    optimizer = make_optimizer(network, settings(lr=0.01, head_lr_factor=10, weight_decay=0.5, momentum=0.7))
    assert isinstance(optimizer, torch.optim.SGD)
    assert described(optimizer, network) == {
        "backbone.0.weight": (0.01, 0.5),
        "backbone.0.bias": (0.01, 0.0),
        "backbone.1.weight": (0.01, 0.0),
        "backbone.1.bias": (0.01, 0.0),
        "head.weight": (0.1, 0.5),
    }
    assert all(group["momentum"] == 0.7 and group["base_lr"] == group["lr"] for group in optimizer.param_groups)


def test_adamw():
    network = Tiny()
    optimizer = make_optimizer(network, settings(optimizer="adamw", lr=0.01, momentum=0.8, weight_decay=0.5))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert all(group["betas"] == (0.8, 0.999) for group in optimizer.param_groups)
    rates = described(optimizer, network)
    assert rates["head.weight"] == (0.02, 0.5) and rates["head.bias"] == (0.02, 0.0)


def test_mean():
    mean = Mean()
    assert mean.value == 0
    for value in (1.0, 2.0, 6.0):
        mean.add(value)
    assert mean.value == 3


def test_figures_are_shown_with_their_interval():
    figures = {"epoch": 3.0, "loss": 0.5, "mAP": 1.0, "mAP_low": 0.7575, "mAP_high": 1.0, "F1": 0.25, "images": 12.0}
    expected = "loss 0.500, mAP 1.000 (95 %: 0.76 to 1.00; 12 images), F1 0.250"
    assert shown(figures) == expected
    assert shown({"epoch": 1.0, "loss": 2.0, "sfc.scale": 0.1}) == "loss 2.000, sfc.scale 0.100"


@pytest.mark.parametrize(("loss", "warns"), [(7.0, True), (4.0, False)])
def test_a_loss_that_stays_is_told_of(views, tmp_path, caplog, loss, warns):
    Training(views, tmp_path, losses={0: 7.0, **dict.fromkeys(range(1, STEPS), loss)}).fit()
    assert ("train_cls: the loss has hardly fallen (" in caplog.text) == warns


def test_images_that_fill_no_batch_are_told_of(views, tmp_path, caplog):
    many = TrainingViews(views.samples * 5, crop=8, scale=(0.8, 1.5), fill=(1, 2, 3), seed=0)
    batch = len(many) * 2 // 3
    Training(many, tmp_path, batch_size=batch, epochs=1).fit()
    line = (
        f"{len(many) - batch} of {len(many)} training images are left out of each epoch, as they fill no batch; lower"
    )
    assert f"train_cls: {line} train_cls.batch_size (now {batch})" in caplog.text
