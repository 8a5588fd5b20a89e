"""What is said to have no effect has none: the code that reads the settings gives the same with any value of theirs."""

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cam_pipeline.cams.extraction import CamExtractor
from cam_pipeline.config import Config, DataSettings
from cam_pipeline.data.readers import load_table
from cam_pipeline.models.classifier import Classifier, build_classifier
from cam_pipeline.refinement.labels import pseudo_labels
from cam_pipeline.refinement.merging import merged
from cam_pipeline.refinement.scores import refined
from cam_pipeline.store.cams import StoredCam
from cam_pipeline.training.loss import Loss
from cam_pipeline.training.objectives import classifier_objectives

REFINE = {
    "normalize": ["max", "minmax"],
    "background": [0.3, 0.6],
    "merge_with": [(), (Path("a.h5"),)],
    "band": [0.0, 0.2],
    "prototype_share": [0.2, 0.9],
    "background_map": [0.0, 0.8],
    "background_images": [5, 50],
    "background_split": ["val", "train"],
    "kernel": ["none", "color", "par"],
    "kernel_iterations": [1, 4],
    "kernel_guide": [0.5, 1.0],
    "kernel_sigma_floor": [0.0, 0.3],
    "max_pixels": [100, 10_000],
    "crf": [True, False],
    "crf_iterations": [1, 5],
    "gaussian_sxy": [1.0, 6.0],
    "gaussian_weight": [0.0, 3.0],
    "bilateral_sxy": [3.0, 30.0],
    "bilateral_srgb": [2.0, 20.0],
    "bilateral_weight": [0.0, 8.0],
}
CAM = {
    "source": ["classifier_weights", "class_token_gradient"],
    "map_function": ["grad", "cam_grad_s"],
    "start_layer": [-2, -1],
    "propagate": ["none", "attention", "features"],
    "walk_radius": [0, 1],
    "walk_power": [1.0, 4.0],
    "walk_steps": [1, 3],
    "walk_levels": [1, 2],
    "border": [0.0, 0.2],
    "border_power": [1.0, 5.0],
    "border_steps": [1, 3],
    "attention_layers": [(), (0,)],
    "attention_steps": [1, 3],
    "attention_normalize": [True, False],
    "calibration": ["none", "sfc"],
    "background_over": ["present", "all"],
    "seed_background": [0.1, 0.9],
    "correlation_steps": [0, 2],
}
SFC = {
    "draws": [0, 3],
    "blank_slots": [True, False],
    "prototype_weight": [0.0, 1.6],
    "scale_weight": [0.0, 0.8],
    "distribution_weights": [True, False],
    "background_over": ["present", "all"],
    "extra": [None, 50.0],
    "ramp": [0.0, 0.9],
}
ACR = {
    "activation_weight": [0.0, 0.5],
    "affinity_weight": [0.0, 0.5],
    "ramp": [0.0, 0.9],
}
SMALL = {"depth": 2, "embed_dim": 24, "num_heads": 2}
"""A transformer that is built in no time."""
Result = list[np.ndarray[Any, Any]]


def with_values(config: Config, section: str, **values: Any) -> Config:
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


def chosen(random: Random, values: dict[str, list[Any]]) -> dict[str, Any]:
    return {key: random.choice(some) for key, some in values.items()}


def idle_changes(config: Config, section: str, values: dict[str, list[Any]]) -> Iterator[tuple[str, Config]]:
    """The config with each of its idle keys changed."""
    for key, some in values.items():
        if config.why_idle(f"{section}.{key}"):
            other = next(value for value in some if value != getattr(getattr(config, section), key))
            yield f"{section}.{key}", with_values(config, section, **{key: other})


def differing(
    config: Config, section: str, values: dict[str, list[Any]], result: Callable[[Config], Result]
) -> tuple[set[str], set[str]]:
    """The idle keys, and those of them that change the result."""
    expected, idle, found = result(config), set(), set()
    for path, changed in idle_changes(config, section, values):
        idle.add(path)
        if any(not np.array_equal(*pair) for pair in zip(expected, result(changed), strict=True)):
            found.add(path)
    return idle, found


# Refinement and labels


def maps(seed: int) -> torch.Tensor:
    return torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(seed))


def scores_and_labels(config: Config) -> Result:
    size, ids = (12, 16), (1, 3)
    cam = StoredCam("a", maps(0), ids, size)
    if config.cam.calibration == "sfc":
        cam = StoredCam("a", maps(0), ids, size, maps(1)[0], torch.cat([maps(2), maps(3)[:1]]))
    elif config.refine.merge_with:
        cam = merged([cam, StoredCam("a", maps(4), ids, size)])
    image = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    found = refined(cam, lambda: image, config.refine)
    return [found.scores, *(found.labels[name] for name in sorted(found.labels)), pseudo_labels(found, config.labels)]


def test_refinement_and_labels() -> None:
    random, idle, found = Random(0), set[str](), set[str]()
    for _ in range(60):
        refine, calibration = chosen(random, REFINE), random.choice(["none", "sfc"])
        if calibration == "sfc":
            refine["merge_with"] = ()  # calibrated maps cannot be merged
        undecided = random.choice(["scores", "agreement", *(["backgrounds"] if refine["band"] else [])])
        config = with_values(Config(), "refine", **refine)
        config = with_values(with_values(config, "cam", calibration=calibration), "labels", undecided=undecided)
        for section, values in (("refine", REFINE), ("labels", {"low": [0.35, 0.1], "high": [0.55, 0.9]})):
            some, wrong = differing(config, section, values, scores_and_labels)
            idle, found = idle | some, found | wrong
    assert found == set()
    always = {"background", "merge_with", "band", "kernel", "crf"}
    assert idle == {f"refine.{key}" for key in REFINE.keys() - always} | {"labels.low", "labels.high"}


# Reading maps


@cache
def transformer() -> Classifier:
    torch.manual_seed(0)
    found = build_classifier("vit_tiny_patch16_224", 3, arguments=SMALL | {"img_size": 64}, pooling="class_token")
    nn.init.normal_(found.head.weight)
    for block in found.backbone.blocks:
        nn.init.normal_(block.attn.qkv.weight, std=0.3)
    return found


def class_maps(config: Config) -> Result:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    found = CamExtractor(transformer(), config).extract(images, ["a", "b"], [(1, 2), None], [(64, 64)] * 2)
    parts = [part for cam, chances in found for part in (cam.cam, cam.background, cam.prototype, chances)]
    return [part.numpy() for part in parts if part is not None]


def test_reading_of_maps() -> None:
    random, idle, found = Random(0), set[str](), set[str]()
    for _ in range(20):
        config = with_values(Config(), "cam", **chosen(random, CAM), scales=(1.0,), flip=False)
        some, wrong = differing(config, "cam", CAM, class_maps)
        idle, found = idle | some, found | wrong
    assert found == set()
    assert idle == {f"cam.{key}" for key in CAM.keys() - {"source", "propagate", "border", "calibration"}}


# Training


def loss_and_gradients(config: Config) -> Result:
    """What a training step learns from, and which views join the batches."""
    torch.manual_seed(0)
    network = build_classifier("vit_tiny_patch16_224", 3, arguments=SMALL | {"img_size": 48}, pooling="class_token")
    labels = torch.tensor([[1.0, 0.0, 0.0]] * 20 + [[0.0, 1.0, 0.0]] * 9 + [[0.0, 1.0, 0.0]] * 2)
    objectives = classifier_objectives(network, config, labels)
    images = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(6))
    batch = {
        "image": (255 * images).to(torch.uint8),
        "index": torch.tensor([0, 1]),
        "labels": torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]),
        "box": torch.tensor([[0, 0, 48, 48], [0, 0, 32, 48]]),
    }
    loss = Loss(network, objectives)(batch, 0.3)["loss"]
    loss.backward()
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    more = [one.more_views(iter([[(0, 0)], [(0, 20)]])) for one in objectives if one.more_views]
    drawn = [np.array(views) for steps in more for views in steps]
    return [loss.detach().numpy(), *(gradient.numpy() for gradient in gradients), *drawn]


@pytest.mark.parametrize(("section", "values"), [("sfc", SFC), ("acr", ACR)])
def test_training(section: str, values: dict[str, list[Any]]) -> None:
    random, idle, found = Random(0), set[str](), set[str]()
    for number in range(20):
        config = with_values(Config(), section, **chosen(random, values))
        config = with_values(config, "objectives", **{section: number > 0})
        some, wrong = differing(config, section, values, loss_and_gradients)
        idle, found = idle | some, found | wrong
    assert found == set()
    assert idle == {f"{section}.{key}" for key in values}  # the first config has the objective off


# Data


def layout(root: Path, name: str) -> None:
    """A data set of one image in each layout; readers only look at names."""
    if name == "csv":
        (root / "data.csv").write_text("image,labels\na.jpg,cat\n")
    elif name == "voc":
        (root / "ImageSets/Segmentation").mkdir(parents=True)
        (root / "ImageSets/Segmentation/train.txt").write_text("a\n")
        (root / "image_labels.txt").write_text("a cat\n")
    elif name == "coco":
        (root / "annotations").mkdir()
        image = {"id": 1, "file_name": "a.jpg", "height": 4, "width": 4}
        content = {"images": [image], "categories": [{"id": 1, "name": "cat"}], "annotations": []}
        (root / "annotations/instances_train.json").write_text(json.dumps(content))
    else:
        (root / "cat").mkdir()
        (root / "cat/a.jpg").touch()


@pytest.mark.parametrize("name", ["csv", "voc", "coco", "folders"])
def test_readers_ask_for_those_keys_that_matter(tmp_path: Path, name: str) -> None:
    asked = set[str]()

    class Watched(DataSettings):
        def __getattribute__(self, key: str) -> Any:
            asked.add(key)
            return super().__getattribute__(key)

    layout(tmp_path, name)
    settings = Watched(root=tmp_path, format=name, val="", classes=("cat",))
    assert len(load_table(settings).samples) == 1
    idle = {path.partition(".")[2] for path in Config(data=settings).idle() if path.startswith("data.")}
    assert DataSettings.model_fields.keys() - asked - {"val"} == idle  # stages ask for `val`, if a reader does not
