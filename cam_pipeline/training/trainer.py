"""The one training loop: optimiser, schedule, precision, checkpoints, resume.

Everything random in step t follows from (seed, t) or (seed, epoch, image); a resumed run therefore sees exactly what an
undisturbed one sees, and a checkpoint needs no state of random generators. Of several processes each takes its part of
every batch; gradients, losses and decisions are those of the whole batch.
"""

import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cam_pipeline.config import RunSettings, TrainSettings
from cam_pipeline.data.batches import EpochBatches
from cam_pipeline.data.loading import training_batches
from cam_pipeline.data.sfc import ImageBank
from cam_pipeline.data.views import TrainingViews
from cam_pipeline.errors import ConfigError, Interrupted, TrainingDiverged
from cam_pipeline.machine.atomic import write_text
from cam_pipeline.machine.device import autocast, compiled, uncompiled, worker_count
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
from cam_pipeline.machine.progress import track
from cam_pipeline.models.pretrained import PretrainedHalf
from cam_pipeline.models.shared_batch_norm import share_batch_norm
from cam_pipeline.store.checkpoints import checkpoint_fits, load_checkpoint, save_checkpoint
from cam_pipeline.store.hdf5 import write_progress
from cam_pipeline.training.optimizer import learning_rate_factor, make_optimizer

logger = logging.getLogger(__name__)

Batch = dict[str, Any]
LossFunction = Callable[[Batch], Tensor]
EndOfEpoch = Callable[[], Mapping[str, float]]


@dataclass
class Mean:
    """Running mean of numbers."""

    sum: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        self.sum, self.count = self.sum + value, self.count + 1

    @property
    def value(self) -> float:
        return self.sum / max(self.count, 1)


class LossModule(nn.Module):
    """The loss as a module around its network, as DistributedDataParallel wants it to find parameters and gradients."""

    def __init__(self, network: nn.Module, loss: LossFunction) -> None:
        super().__init__()
        self.network, self.loss = network, loss

    def forward(self, batch: Batch) -> Tensor:
        return self.loss(batch)


def counts_images(batch: Batch) -> float:
    """Number of images of a batch: what most losses are a mean over."""
    return float(len(batch["index"]))


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on the device."""
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value for key, value in batch.items()
    }


@dataclass
class Trainer:
    """Trains one network with checkpoints in `folder`, from the last of them if there is one.

    `loss` maps a batch (tensors on the device, and `progress`, the share of all steps done) to a scalar, the mean over
    as many things as `counts` says, so that several processes can form the mean over their parts; `report` is asked
    for figures at the end of each epoch (in the first process), which are logged and kept in `history`; `losses` holds
    the epoch's mean so far. `name` is the stage, for progress and messages. What a `bank` draws is seen again.
    """

    name: str
    network: PretrainedHalf
    views: TrainingViews
    loss: LossFunction
    report: EndOfEpoch
    settings: TrainSettings
    run: RunSettings
    folder: Path
    counts: Callable[[Batch], float] = counts_images
    bank: ImageBank | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    losses: Mean = field(default_factory=Mean)

    def fit(self) -> None:
        """Train to the last step. Raises TrainingDiverged for a loss that is not finite, Interrupted after a signal."""
        device = next(self.network.parameters()).device
        plan = self._plan()
        optimizer = make_optimizer(self.network, self.settings)
        total, per_epoch = len(plan), plan.steps_per_epoch
        plan.start = step = self._resume(optimizer)
        if is_first():
            write_progress(self.folder, step, total, "steps")
        loss: LossFunction | None = None
        saved = time.monotonic()
        workers = worker_count(self.run, local_world_size())
        loader = training_batches(self.views, plan, workers, device) if step < total else ()
        with compiled(self.network, self.run), track(self.name, total, "steps", done=step) as progress:
            for loaded in loader:
                batch = on_device(loaded, device) | {"progress": step / total}
                loss = loss or self._shared_loss(batch)
                self.losses.add(self._step(loss, batch, step, per_epoch, total, optimizer, device))
                step += 1
                progress.advance(note=f"loss {self.losses.value:.3f}")
                if step % per_epoch == 0:
                    self._end_epoch(step // per_epoch)
                stop = any(asked for (asked,) in exchange(stop_requested()))
                due = time.monotonic() - saved > self.settings.checkpoint_seconds
                if is_first() and (due or step % per_epoch == 0 or stop):
                    self._save(step, total, optimizer)
                    saved = time.monotonic()
                    stop = stop or (world_size() == 1 and stop_requested())  # of a signal while saving, others know not
                if stop:
                    self._stop()

    def _plan(self) -> EpochBatches:
        """The batches of this process. Raises ConfigError when they can not be divided evenly."""
        size, images = self.settings.batch_size, len(self.views)
        shared: dict[str, Any] = {"rank": rank(), "processes": world_size(), "bank": self.bank}
        plan = EpochBatches(images, size, self.settings.epochs, self.run.seed, **shared)
        check_shares(f"{self.name}.batch_size", size)
        if plan.batch_size % world_size():
            raise ConfigError(
                f"{self.name}.batch_size = {size}, but there are only {images} images, which can not be divided over "
                f"{world_size()} processes; make it a multiple of {world_size()} below {images}"
            )
        return plan

    def _shared_loss(self, batch: Batch) -> LossFunction:
        """The loss; where several processes work, as a module that averages their gradients in the backward pass."""
        if world_size() == 1:
            return self.loss
        share_batch_norm(self.network)
        with warnings.catch_warnings():  # newer torch has another name for `broadcast_buffers`
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(
                LossModule(self.network, self.loss),
                broadcast_buffers=False,
                find_unused_parameters=self._leaves_parameters_out(batch),
            )

    def _leaves_parameters_out(self, batch: Batch) -> bool:
        """Whether the loss reaches some parameters not at all, as that of ConvNeXt: gradients must be waited for."""
        self.network.eval()  # statistics stay as they are
        parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        with autocast(self.run, parameters[0].device):
            loss = self.loss(batch)
        return any(gradient is None for gradient in torch.autograd.grad(loss, parameters, allow_unused=True))

    def _stop(self) -> NoReturn:
        """Leave after an agreed stop, when all that is to be saved has been."""
        meet()
        raise_if_stopped()
        raise Interrupted("stopped with another process of this run; finished work is saved")

    def _step(
        self,
        loss_of: LossFunction,
        batch: Batch,
        step: int,
        per_epoch: int,
        total: int,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
    ) -> float:
        """One optimiser step; the loss of the whole batch. Raises TrainingDiverged, in all processes alike."""
        self.network.train()
        torch.manual_seed(self.run.seed * 1_000_003 + step + rank() * 500_000_003)  # dropout
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * learning_rate_factor(step, total, self.settings)
        with autocast(self.run, device):
            loss = loss_of(batch)
        if world_size() > 1:
            loss = loss * self._share(batch)
        value = sum(part for (part,) in exchange(float(loss.detach()))) / world_size()
        if not math.isfinite(value):
            where = f"epoch {step // per_epoch + 1}, step {step % per_epoch + 1} of {per_epoch}"
            raise TrainingDiverged(
                f"{self.name}: the loss is {value} at {where}; lower {self.name}.lr (now {self.settings.lr}). "
                "The last checkpoint is kept"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.settings.clip_norm:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip_norm)
        optimizer.step()
        return value

    def _share(self, batch: Batch) -> float:
        """What makes the mean over processes of their losses the mean over all that they count; 1 for equal parts."""
        counts = [count for (count,) in exchange(self.counts(batch))]
        return counts[rank()] * world_size() / max(sum(counts), 1.0)

    def _end_epoch(self, epoch: int) -> None:
        self.network.eval()
        with uncompiled(self.run):
            figures = {"epoch": float(epoch), "loss": self.losses.value, **from_first(self.report)}
        self.losses = Mean()
        self.history.append(figures)
        shown = ", ".join(f"{key} {value:.3f}" for key, value in figures.items() if key != "epoch")
        logger.info("%s: epoch %d of %d: %s", self.name, epoch, self.settings.epochs, shown)

    @property
    def _checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def _save(self, step: int, total: int, optimizer: torch.optim.Optimizer) -> None:
        if not all(parameter.isfinite().all() for parameter in self.network.parameters()):
            raise TrainingDiverged(
                f"{self.name}: the weights are not finite at step {step}; lower {self.name}.lr "
                f"(now {self.settings.lr}). The last checkpoint is kept"
            )
        state = {
            "step": step,
            "network": self.network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "history": json.dumps(self.history),
            "losses": [self.losses.sum, self.losses.count],
        }
        save_checkpoint(self._checkpoint, state)
        write_progress(self.folder, step, total, "steps")

    def _resume(self, optimizer: torch.optim.Optimizer) -> int:
        state = load_checkpoint(self._checkpoint)
        with checkpoint_fits(self._checkpoint):
            step = 0 if state is None else int(state["step"])
        if len(set(exchange(step))) > 1:
            raise ConfigError(
                "output.dir: the processes of this run find different checkpoints there; all machines must share it"
            )
        if state is None:
            return 0
        with checkpoint_fits(self._checkpoint):
            self.network.load_state_dict(state["network"])
            optimizer.load_state_dict(state["optimizer"])
            self.history = json.loads(state["history"])
            self.losses = Mean(*state.get("losses", ()))
        logger.info("%s: goes on from step %d", self.name, step)
        return step

    def write_history(self, path: Path) -> None:
        """The figures of every epoch as JSON lines."""
        write_text(path, "".join(json.dumps(figures) + "\n" for figures in self.history))
