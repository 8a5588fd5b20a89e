"""The one training loop: optimiser, schedule, precision, checkpoints, resume.

Everything random in step t follows from (seed, t) or (seed, epoch, image); a resumed run therefore sees exactly what an
undisturbed one sees, and a checkpoint needs no state of random generators.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cam_pipeline.atomic import write_text
from cam_pipeline.config import RunSettings, TrainSettings
from cam_pipeline.data.batches import EpochBatches, TrainingViews, training_batches
from cam_pipeline.device import autocast, worker_count
from cam_pipeline.errors import TrainingDiverged
from cam_pipeline.interrupt import raise_if_stopped, stop_requested
from cam_pipeline.models.classifier import PretrainedHalf
from cam_pipeline.progress import track
from cam_pipeline.store.checkpoints import load_checkpoint, save_checkpoint
from cam_pipeline.store.hdf5 import write_progress

logger = logging.getLogger(__name__)

LossFunction = Callable[[dict[str, Any]], Tensor]
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


@dataclass
class Trainer:
    """Trains one network with checkpoints in `folder`, from the last of them if there is one.

    `loss` maps a batch (tensors on the device) to a scalar; `report` is asked for figures at the end of each epoch,
    which are logged and kept in `history`; `losses` holds the epoch's mean so far. `name` is the stage, for progress
    and messages.
    """

    name: str
    network: PretrainedHalf
    views: TrainingViews
    loss: LossFunction
    report: EndOfEpoch
    settings: TrainSettings
    run: RunSettings
    folder: Path
    history: list[dict[str, float]] = field(default_factory=list)
    losses: Mean = field(default_factory=Mean)

    def fit(self) -> None:
        """Train to the last step. Raises TrainingDiverged for a loss that is not finite, Interrupted after a signal."""
        device = next(self.network.parameters()).device
        optimizer = make_optimizer(self.network, self.settings)
        plan = EpochBatches(len(self.views), self.settings.batch_size, self.settings.epochs, self.run.seed)
        total, per_epoch = len(plan), plan.steps_per_epoch
        plan.start = step = self._resume(optimizer)
        write_progress(self.folder, step, total, "steps")
        saved = time.monotonic()
        loader = training_batches(self.views, plan, worker_count(self.run)) if step < total else ()
        with track(self.name, total, "steps", done=step) as progress:
            for batch in loader:
                self.losses.add(self._step(batch, step, per_epoch, total, optimizer, device))
                step += 1
                progress.advance(note=f"loss {self.losses.value:.3f}")
                if step % per_epoch == 0:
                    self._end_epoch(step // per_epoch)
                due = time.monotonic() - saved > self.settings.checkpoint_seconds
                if due or step % per_epoch == 0 or stop_requested():
                    self._save(step, total, optimizer)
                    saved = time.monotonic()
                raise_if_stopped()

    def _step(
        self,
        batch: dict[str, Any],
        step: int,
        per_epoch: int,
        total: int,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
    ) -> float:
        self.network.train()
        torch.manual_seed(self.run.seed * 1_000_003 + step)  # dropout
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * learning_rate_factor(step, total, self.settings)
        on_device = {
            key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for key, value in batch.items()
        }
        with autocast(self.run, device):
            loss = self.loss(on_device)
        value = float(loss.detach())
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

    def _end_epoch(self, epoch: int) -> None:
        self.network.eval()
        figures = {"epoch": float(epoch), "loss": self.losses.value, **self.report()}
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
        if state is None:
            return 0
        self.network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        self.history = json.loads(state["history"])
        self.losses = Mean(*state.get("losses", ()))
        logger.info("%s: goes on from step %d", self.name, state["step"])
        return int(state["step"])

    def write_history(self, path: Path) -> None:
        """The figures of every epoch as JSON lines."""
        write_text(path, "".join(json.dumps(figures) + "\n" for figures in self.history))


def learning_rate_factor(step: int, total: int, settings: TrainSettings) -> float:
    """Linear rise over the first `warmup` share of the steps, times (1 - step / total) ** poly_power."""
    warm = settings.warmup * total
    rise = min(1.0, (step + 1) / warm) if warm >= 1 else 1.0
    return float(rise * (1 - step / total) ** settings.poly_power)


def make_optimizer(network: PretrainedHalf, settings: TrainSettings) -> torch.optim.Optimizer:
    """SGD or AdamW: new layers at `head_lr_factor` times the rate, no weight decay on norms and biases."""
    pretrained = {id(parameter) for parameter in network.pretrained_half().parameters()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in network.parameters():
        if parameter.requires_grad:
            lr = settings.lr * (1.0 if id(parameter) in pretrained else settings.head_lr_factor)
            decay = settings.weight_decay if parameter.dim() > 1 else 0.0
            groups.setdefault((lr, decay), []).append(parameter)
    described = [
        {"params": tensors, "lr": lr, "base_lr": lr, "weight_decay": decay} for (lr, decay), tensors in groups.items()
    ]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(described, betas=(settings.momentum, 0.999))
    return torch.optim.SGD(described, lr=settings.lr, momentum=settings.momentum)
