"""A first config for a folder of images: settings chosen by what is there and by the machine, each with its reason."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from cam_pipeline.config import toml_value
from cam_pipeline.data.images import sample_size
from cam_pipeline.data.layout import Layout
from cam_pipeline.data.table import Sample, Table
from cam_pipeline.errors import DataError
from cam_pipeline.machine.cores import usable_cores
from cam_pipeline.machine.gpus import hidden_by, nvidia_driver
from cam_pipeline.machine.memory import memory

SIZES = 64
"""Number of images, spread over all, whose size is read."""
REPOSITORIES = {"resnet18": "timm/resnet18.a1_in1k", "resnet50": "timm/resnet50.a1_in1k"}
"""Backbones, the smallest first, and where timm's weights of them are."""
SMALL = "resnet10t"
"""What learns from random weights: with few images a larger network learns no better, only more slowly."""
STEPS, STEPS_ALONE = 600, 1500
"""Steps after which a classifier is good: from pretrained weights, from random ones."""
IMAGE_BYTES = 4e8
"""Memory that a training image of 256 x 256 takes in a ResNet-50 at stride 16, about."""
WORKER_BYTES = 1e9


@dataclass(frozen=True)
class Machine:
    """What settings are chosen by. `gpu`: its name, "" without one; `memory`: bytes that are free, None if unknown."""

    gpu: str
    cores: int
    memory: int | None


@dataclass(frozen=True)
class Backbone:
    """A network and its start. `why` is the comment on its line; `remedy`: how to get weights, "" with them."""

    name: str
    pretrained: bool
    why: str
    remedy: str = ""


@dataclass(frozen=True)
class Contents:
    """What was found: images of the training split, all images, the number of classes, the median size (H, W)."""

    train: int
    images: int
    classes: int
    size: tuple[int, int]


def this_machine() -> Machine:
    """The GPU that the NVIDIA driver lists, cores and free memory. torch is not asked, as it takes seconds to load."""
    driver = None if hidden_by() else nvidia_driver()
    return Machine(next(iter(driver.names), "") if driver else "", usable_cores(), memory().free)


def contents(table: Table, train: str) -> Contents:
    """Counts, and the median of the sizes of some images, of which only the first bytes are read."""
    samples = table.samples
    places = {round(place * (len(samples) - 1) / (SIZES - 1)) for place in range(SIZES)} if samples else set()
    sizes = [size for place in sorted(places) for size in _size(samples[place])]
    if not sizes:
        raise DataError(f"none of {len(places)} images that were tried can be read; check-data says why")
    height, width = (round(median(side)) for side in zip(*sizes, strict=True))
    learned = sum(sample.split == train for sample in samples)
    return Contents(learned, len(samples), len(table.classes), (height, width))


def _size(sample: Sample) -> Iterator[tuple[int, int]]:
    """The size of an image; nothing if it cannot be read, of which check-data tells."""
    try:
        yield sample_size(sample)
    except DataError:
        return


def choose_backbone(machine: Machine) -> Backbone:
    """The backbone whose weights can be had: on this machine, or from the hub; else a small one with random weights."""
    wanted = "resnet50" if machine.gpu else "resnet18"
    size = f"a GPU is there ({machine.gpu})" if machine.gpu else "small, as no GPU was found; resnet50 is better"
    order = [wanted, *(name for name in reversed(REPOSITORIES) if name != wanted)]
    for name in order:
        if is_kept(name):
            return Backbone(name, True, f"its weights are on this machine; {size}" if name == wanted else "its weights "
                            "are on this machine")  # fmt: skip
    silence = hub_silence()
    if not silence:
        return Backbone(wanted, True, f"{size}; its weights are fetched once (huggingface.co)")
    remedy = (
        f"connect to the network once and set backbone and encoder to '{wanted}', weights to 'pretrained'; or set "
        "weights to a file (.pth, .safetensors) of that network"
    )
    return Backbone(SMALL, False, f"small, as it learns from random weights: {silence}", remedy)


def is_kept(name: str) -> bool:
    """Whether timm's weights of a backbone of REPOSITORIES are on this machine."""
    from huggingface_hub import try_to_load_from_cache  # late: help is instant

    return isinstance(try_to_load_from_cache(REPOSITORIES[name], "model.safetensors"), str)


def hub_silence() -> str:
    """Why weights cannot be fetched; "" if they can."""
    from huggingface_hub import constants

    from cam_pipeline.models.hub import unreachable

    if constants.HF_HUB_OFFLINE:
        return "no pretrained ones are on this machine, and HF_HUB_OFFLINE is set"
    silence = unreachable(constants.ENDPOINT)
    return f"no pretrained ones are on this machine, and {constants.ENDPOINT} gives {silence}" if silence else ""


def config_text(
    layout: Layout, root: Path, found: Contents, machine: Machine, backbone: Backbone, command: str, said: Sequence[str]
) -> str:
    """The TOML text of a config. `root` is written as `data.root`; `said` is put above it, in comments."""
    lines = [f"# {re.sub(r'[^ -~]', '?', command)}", *(f"# {line}" for line in said)]
    for section, rows in _sections(layout, root, found, machine, backbone).items():
        lines += ["", f"[{section}]"]
        given = [(f"{key} = {toml_value(value)}", why) for key, value, why in rows]
        width = min(40, max(len(text) for text, _ in given))
        lines += [f"{text:<{width}}  # {why}" if why else text for text, why in given]
    return "\n".join([*lines, ""])


Row = tuple[str, Any, str]


def _sections(
    layout: Layout, root: Path, found: Contents, machine: Machine, backbone: Backbone
) -> dict[str, list[Row]]:
    weights = "pretrained" if backbone.pretrained else "none"
    how = backbone.remedy or "from the ImageNet weights that timm names"
    crop, why_crop = _crop(found, machine, backbone)
    batch, why_batch = _batch(found, machine, crop)
    steps = STEPS if backbone.pretrained else STEPS_ALONE
    epochs = _epochs(found, batch, steps)
    each = max(1, found.train // batch)
    rate: list[Row] = [("optimizer", "adamw", "needs no tuning of the learning rate"),
                       ("lr", 1e-4 if backbone.pretrained else 3e-3,
                        "low, so that the weights keep what they know" if backbone.pretrained else
                        "high, as everything is new")]  # fmt: skip
    if not backbone.pretrained:
        rate += [("head_lr_factor", 1.0, "the backbone is as new as the head"),
                 ("warmup", 0.15, "random weights diverge if the rate is high at once")]  # fmt: skip
    training: list[Row] = [("crop", crop, why_crop), ("batch_size", batch, why_batch)]
    shorter = max(1, epochs * 2 // 3)
    return {
        "data": [("root", root.as_posix(), "starts at the folder in which commands are given"),
                 *((key, value, _of_data(key, value, layout)) for key, value in layout.data.items())],
        "classifier": [("backbone", backbone.name, backbone.why), ("weights", weights, how),
                       ("stride", 16, "finer maps than the network's own 32")],
        "train_cls": [("epochs", epochs, f"{each:,} steps each; about {steps} steps are needed"), *training, *rate],
        "cam": [("scales", [0.75, 1.0, 1.5] if machine.gpu else [1.0, 1.5],
                 "image sizes whose maps are summed; more are better and slower")],
        "refine": [("background", "auto", "found without masks; or a number: higher for smaller objects")],
        "segmenter": [("encoder", backbone.name, "as the backbone"), ("weights", weights, "as above")],
        "train_seg": [("epochs", shorter, "fewer: every pixel teaches, not only every image"), *training, *rate],
        "run": _run(machine),
    }  # fmt: skip


def _of_data(key: str, value: Any, layout: Layout) -> str:
    """The comment on a setting of the data."""
    if key == "format":
        return layout.why
    none = "no split to report on was found" if value == "" else "the split to report on"
    return {"val": none, "train": "the split to train on", "scribbles": "what people drew: wins over the maps",
            "clicks": "what people clicked on: wins over the maps"}.get(key, "")  # fmt: skip


def _crop(found: Contents, machine: Machine, backbone: Backbone) -> tuple[int, str]:
    """The side of the training crop: a multiple of 16, no larger than images are."""
    most = 320 if machine.gpu else 224 if backbone.pretrained else 160
    longer = max(found.size)
    crop = min(most, max(64, 16 * math.ceil(longer / 1.25 / 16)))
    limit = (
        "" if crop < most else ", larger ones take long here" if not machine.gpu else ", larger ones take more memory"
    )
    height, width = found.size
    return crop, f"pixels; half of the images are larger than {width} x {height}{limit}"


def _batch(found: Contents, machine: Machine, crop: int) -> tuple[int, str]:
    """Images of a step: few for few images, as a classifier needs some hundred steps, and no more than fit."""
    batch, why = (16, "") if found.train >= 1000 or machine.gpu else (8, "")
    if found.train < 200:
        batch, why = 4, f"small, as {found.train:,} training images are few: more steps"
    if machine.memory is not None and not machine.gpu:
        fitting = int(machine.memory / 3 / (IMAGE_BYTES * (crop / 256) ** 2))
        if fitting < batch:
            batch, why = max(2, fitting), f"small, as {machine.memory / 1e9:.1f} GB of memory are free"
    return max(1, min(batch, found.train)), why or "images of a step"


def _epochs(found: Contents, batch: int, steps: int) -> int:
    return min(100, max(8, math.ceil(steps / max(1, found.train // batch))))


def _run(machine: Machine) -> list[Row]:
    """Settings of the machine, which make no result stale but the precision."""
    fitting = machine.cores if machine.memory is None else min(machine.cores, int(machine.memory / 2 / WORKER_BYTES))
    workers = 0 if fitting >= min(machine.cores, 8) else max(1, fitting)
    why = f"one process for each of {machine.cores} cores, at most 8"
    if workers:
        why = f"few, as {(machine.memory or 0) / 1e9:.1f} GB of memory are free"
    precision = "bfloat16" if machine.gpu else "float32"
    faster = "half the memory, and faster" if machine.gpu else "bfloat16 is faster on newer processors"
    return [("workers", workers, why), ("precision", precision, faster)]
