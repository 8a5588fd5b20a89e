"""The training loop: optimiser, schedule, precision, checkpoints, resume.

All randomness in step t follows from (seed, t) or (seed, epoch, image). A resumed run therefore sees exactly what an
undisturbed one sees, and a checkpoint needs no state of random generators. Several processes each take their part of
every batch; gradients, losses and decisions are those of the whole batch. So they are if a batch is seen in parts.
"""

import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cam_pipeline.config import RunSettings, TrainSettings
from cam_pipeline.data.batches import EpochBatches
from cam_pipeline.data.check.costs import left_out, uneven_parts
from cam_pipeline.data.loading import training_batches
from cam_pipeline.data.views import TrainingViews
from cam_pipeline.errors import ConfigError, Interrupted, TrainingDiverged
from cam_pipeline.machine.atomic import write_text
from cam_pipeline.machine.device import autocast, compiled, uncompiled
from cam_pipeline.machine.distributed import (
    check_shares,
    exchange,
    from_first,
    is_first,
    local_world_size,
    meet,
    rank,
    world_size,
)
from cam_pipeline.machine.interrupt import raise_if_stopped, stop_requested
from cam_pipeline.machine.parallel import worker_count
from cam_pipeline.machine.progress import track
from cam_pipeline.models.placing import image_batch
from cam_pipeline.models.pretrained import PretrainedHalf
from cam_pipeline.models.shared_batch_norm import share_batch_norm
from cam_pipeline.store.checkpoints import checkpoint_fits, load_checkpoint, save_checkpoint
from cam_pipeline.store.hdf5 import write_progress
from cam_pipeline.training.divergence import all_finite, has_hardly_fallen, is_far_above, learned, main_term
from cam_pipeline.training.loss import Loss, mean_over_processes
from cam_pipeline.training.objectives.base import Batch, Objective
from cam_pipeline.training.optimizer import learning_rate_factor, make_optimizer
from cam_pipeline.training.parts import Part, divided

logger = logging.getLogger(__name__)

EndOfEpoch = Callable[[], Mapping[str, float]]


@dataclass
class Mean:
    """Running mean of numbers."""

    sum: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        self.sum += value
        self.count += 1

    @property
    def value(self) -> float:
        return self.sum / max(self.count, 1)


@dataclass
class Trainer:
    """Trains one network for its objectives. Checkpoints are in `folder`; training goes on from the last one.

    `name` is the stage, for progress and messages. `report` gives figures at the end of each epoch, in the first
    process. `repeats` as in EpochBatches. `history` has the figures of each epoch: the means of the loss and of its
    terms, and those of `report`. `means` are the means of the epoch so far, and `step` is the number of steps done.
    Raises ConfigError if the batches cannot be divided evenly over the processes.
    """

    name: str
    network: PretrainedHalf
    objectives: Sequence[Objective]
    views: TrainingViews
    report: EndOfEpoch
    settings: TrainSettings
    run: RunSettings
    folder: Path
    repeats: Sequence[float] = ()
    history: list[dict[str, float]] = field(default_factory=list, init=False)
    means: dict[str, Mean] = field(default_factory=dict, init=False)
    step: int = field(default=0, init=False)
    first: float | None = field(default=None, init=False)  # the main term of the loss in the first step

    def __post_init__(self) -> None:
        self.batches = self._batches()
        self.optimizer = make_optimizer(self.network, self.settings)

    def fit(self) -> None:
        """Train to the last step.

        Raises TrainingDiverged for a loss, weights or answers that are not finite, and for a loss that has grown far
        above that of the first step; Interrupted after a signal.
        """
        self._resume()
        batches = self.batches
        if message := left_out(self.name, len(self.views), self.settings.batch_size):
            logger.warning("%s: %s", self.name, message)
        batches.start = self.step
        if is_first():
            write_progress(self.folder, self.step, batches.steps, "steps")
        device = next(self.network.parameters()).device
        workers = worker_count(self.run, local_world_size())
        loader = training_batches(self.views, batches, workers, device) if len(batches) else ()
        loss: nn.Module | None = None
        saved = time.monotonic()
        with compiled(self.network, self.run), track(self.name, batches.steps, "steps", done=self.step) as progress:
            for loaded in loader:
                parts = divided(on_device(loaded, device), self.settings.accumulate)
                loss = loss or self._loss(parts[0].batch)
                values = self._step(loss, parts)
                if self.step == 0:
                    self.first = values[main_term(values)]
                for name, value in values.items():
                    self.means.setdefault(name, Mean()).add(value)
                self.step += 1
                progress.advance(note=f"loss {self.means['loss'].value:.3f}")
                epoch_ends = self.step % batches.steps_per_epoch == 0
                if epoch_ends:
                    self._check_answers(parts[0].batch)
                    self._end_epoch()
                stop = any(asked for (asked,) in exchange(stop_requested()))
                due = time.monotonic() - saved > self.settings.checkpoint_seconds
                if is_first() and (due or epoch_ends or stop):
                    self._save()
                    saved = time.monotonic()
                    # Several processes do not know of a signal to one of them while it saves.
                    stop = stop or (world_size() == 1 and stop_requested())
                if stop:
                    self._stop()
        self._check_loss()

    @property
    def progress(self) -> float:
        """Share of all steps that are done."""
        return self.step / self.batches.steps

    def _batches(self) -> EpochBatches:
        """The batches of this process."""
        size, images = self.settings.batch_size, len(self.views)
        more = [objective.more_views for objective in self.objectives if objective.more_views is not None]
        batches = EpochBatches(
            images,
            size,
            self.settings.epochs,
            self.run.seed,
            rank=rank(),
            processes=world_size(),
            more=more,
            repeats=self.repeats,
            parts=self.settings.accumulate,
        )
        if more and self.settings.accumulate > 1:
            raise ConfigError(
                f"{self.name}.accumulate = {self.settings.accumulate}, but an objective adds views to whole batches "
                f"(objectives.sfc: set sfc.draws = 0); set {self.name}.accumulate = 1"
            )
        check_shares(f"{self.name}.batch_size", size, self.settings.accumulate)
        if batches.batch_size % world_size():
            raise ConfigError(
                f"{self.name}.batch_size = {size}, but there are only {images} images, which cannot be divided over "
                f"{world_size()} processes; make it a multiple of {world_size()} below {images}"
            )
        if message := uneven_parts(self.name, images, self.settings, world_size()):
            raise ConfigError(message)
        return batches

    def _loss(self, batch: Batch) -> nn.Module:
        """The loss as a module. With several processes it averages their gradients in the backward pass."""
        loss = Loss(self.network, self.objectives)
        if world_size() == 1:
            return loss
        share_batch_norm(self.network)
        with warnings.catch_warnings():  # newer torch has another name for `broadcast_buffers`
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(
                loss, broadcast_buffers=False, find_unused_parameters=self._leaves_parameters_out(loss, batch)
            )

    def _leaves_parameters_out(self, loss: Loss, batch: Batch) -> bool:
        """True if some parameters get no gradient (ConvNeXt has such); DDP must then look for unused ones."""
        self.network.eval()  # statistics stay as they are
        parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        with autocast(self.run, parameters[0].device):
            total = loss(batch, self.progress)["loss"]
        return any(gradient is None for gradient in torch.autograd.grad(total, parameters, allow_unused=True))

    def _step(self, loss: nn.Module, parts: Sequence[Part]) -> dict[str, float]:
        """One optimiser step; the loss and its terms over the whole batch, whose parts are seen one after the other.

        Raises TrainingDiverged in all processes if the loss is not finite.
        """
        self.network.train()
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * learning_rate_factor(self.step, self.batches.steps, self.settings)
        self.optimizer.zero_grad(set_to_none=True)
        terms: dict[str, Tensor] = {}
        for number, part in enumerate(parts):
            # for views, and for dropout (`draw_apart`)
            torch.manual_seed(self.run.seed * 1_000_003 + self.step + number * 700_000_001)
            with nullcontext() if number == len(parts) - 1 else unshared(loss):
                for name, value in self._learn(loss, part).items():
                    terms[name] = terms[name] + value if name in terms else value
        values = mean_over_processes(terms)
        if not math.isfinite(values["loss"]):
            per_epoch = self.batches.steps_per_epoch
            where = f"epoch {self.step // per_epoch + 1}, step {self.step % per_epoch + 1} of {per_epoch}"
            raise self._diverged(f"the loss is {values['loss']} at {where}")
        if self.settings.clip_norm:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        for objective in self.objectives:
            objective.after_step()
        return values

    def _learn(self, loss: nn.Module, part: Part) -> dict[str, Tensor]:
        """Add the gradients of a part of a batch to those that are there; its part of the loss and of its terms."""
        with autocast(self.run, part.batch["image"].device):
            terms: dict[str, Tensor] = loss(part.batch, self.progress, part.images, part.pixels, part.shown)
        terms["loss"].backward()
        return {name: value.detach() for name, value in terms.items()}

    def _diverged(self, what: str) -> TrainingDiverged:
        return TrainingDiverged(
            f"{self.name}: {what}; lower {self.name}.lr (now {self.settings.lr}). The last checkpoint is kept"
        )

    @torch.no_grad()
    def _check_answers(self, batch: Batch) -> None:
        """Raise TrainingDiverged in all processes if weights or answers are not finite.

        The loss may be finite all the same: answers to other images, or those of evaluation mode, whose BatchNorm
        statistics have overflown, need not be.
        """
        self.network.eval()
        with uncompiled(self.run), autocast(self.run, batch["image"].device):
            output = self.network(image_batch(batch["image"], batch["image"].device))
        answers = output if isinstance(output, Tensor) else output.logits
        sound = all_finite([answers]), all_finite(learned(self.network))
        answered, weighed = (all(column) for column in zip(*exchange(*map(float, sound)), strict=True))
        epoch = self.step // self.batches.steps_per_epoch
        if not weighed:
            raise self._diverged(f"the weights are not finite after epoch {epoch}")
        if not answered:
            raise self._diverged(f"the network's answers are not finite after epoch {epoch}")

    def _check_loss(self) -> None:
        """Raise TrainingDiverged if the main term of the loss ended far above the first step's; warn if it stayed."""
        if self.first is None or not self.history:  # a checkpoint of a version that did not note it
            return
        last = self.history[-1][main_term(self.history[-1])]
        if is_far_above(last, self.first):
            raise self._diverged(
                f"the loss of the last epoch ({last:.3g}) is far above that of the first step ({self.first:.3g})"
            )
        if len(self.history) > 1 and has_hardly_fallen(last, self.first):
            fallen = f"the loss has hardly fallen ({self.first:.3f} to {last:.3f}), so little was learned"
            logger.warning("%s: %s; train longer (%s.epochs), or try another lr", self.name, fallen, self.name)

    def _end_epoch(self) -> None:
        """Add the figures of the epoch that ends to the history."""
        epoch = self.step // self.batches.steps_per_epoch
        self.network.eval()
        means = {name: mean.value for name, mean in self.means.items()}
        with uncompiled(self.run):
            figures = {"epoch": float(epoch), **means, **from_first(self.report)}
        self.means.clear()
        self.history.append(figures)
        logger.info("%s: epoch %d of %d: %s", self.name, epoch, self.settings.epochs, shown(figures))

    def _stop(self) -> NoReturn:
        """End after a stop on which all processes agreed; everything is saved."""
        meet()
        raise_if_stopped()
        raise Interrupted("stopped with another process of this run; finished work is saved")

    @property
    def _checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def _save(self) -> None:
        """Write a checkpoint. Raises TrainingDiverged if the weights are not finite."""
        if not all_finite(learned(self.network)):
            raise self._diverged(f"the weights are not finite at step {self.step}")
        state = {
            "step": self.step,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": json.dumps(self.history),
            "losses": {name: [mean.sum, mean.count] for name, mean in self.means.items()},
            "first": self.first,
        }
        save_checkpoint(self._checkpoint, state)
        write_progress(self.folder, self.step, self.batches.steps, "steps")

    def _resume(self) -> None:
        """Take up the last checkpoint, if there is one."""
        state = load_checkpoint(self._checkpoint)
        with checkpoint_fits(self._checkpoint):
            step = 0 if state is None else int(state["step"])
        if len(set(exchange(step))) > 1:
            raise ConfigError(
                "output.dir: the processes of this run find different checkpoints there; all machines must share it"
            )
        if state is None:
            return
        with checkpoint_fits(self._checkpoint):
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.history = json.loads(state["history"])
            losses = state.get("losses", {})
            if isinstance(losses, list):  # of a version that had no named terms
                losses = {"loss": losses}
            self.means = {name: Mean(*mean) for name, mean in losses.items()}
            self.first = state.get("first")
        self.step = step
        logger.info("%s: goes on from step %d", self.name, step)

    def write_history(self, path: Path) -> None:
        """The figures of every epoch as JSON lines."""
        write_text(path, "".join(json.dumps(figures) + "\n" for figures in self.history))


def shown(figures: Mapping[str, float]) -> str:
    """The figures of an epoch as text; a figure's 95 % interval, `<key>_low` to `<key>_high`, goes into brackets."""
    parts = []
    for key, value in figures.items():
        if f"{key}_low" in figures:
            low, high = (f"{figures[f'{key}_{side}']:.2f}" for side in ("low", "high"))
            parts.append(f"{key} {value:.3f} (95 %: {low} to {high}; {figures['images']:.0f} images)")
        elif key not in ("epoch", "images") and not key.endswith(("_low", "_high")):
            parts.append(f"{key} {value:.3f}")
    return ", ".join(parts)


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on the device."""
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value for key, value in batch.items()
    }


def unshared(loss: nn.Module) -> AbstractContextManager[object]:
    """Inside, processes keep their gradients for themselves; they share the sum when the last part is seen outside."""
    return loss.no_sync() if isinstance(loss, DistributedDataParallel) else nullcontext()
