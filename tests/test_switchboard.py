"""The methods as parts of whole runs: in any combination, resumed, and refused where the mathematics do not allow them.

A hybrid ViT of two small blocks over the tiny CNN takes its place as classifier.
"""

import itertools
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from cam_pipeline import open_run
from cam_pipeline.ops.cam import cam_scores
from cam_pipeline.refinement.scores import class_scores
from cam_pipeline.store.cams import CamStore, cam_record
from cam_pipeline.store.hdf5 import artefact_attributes
from cam_pipeline.store.labels import LabelStore
from cam_pipeline.store.parts import PartWriter
from cam_pipeline.store.scores import ScoreStore

HYBRID = (
    "classifier.backbone=vit_tiny_patch16_224",
    "classifier.backbone_args={depth = 2, embed_dim = 24, num_heads = 3, img_size = 48}",
    "classifier.pooling=class_token",
    "classifier.trunk=resnet10t",
    "classifier.trunk_args={channels = [8, 16, 24, 32], stem_width = 8}",
    "classifier.trunk_weights=none",
)
ACR = ("objectives.acr=true", "cam.source=class_token_gradient", "cam.propagate=attention")
SOURCES = ("classifier_weights", "class_token_gradient")


def options(*overrides: str) -> list[str]:
    return ["-c", "tiny.toml", *(word for override in overrides for word in ("--set", override))]


@pytest.fixture(scope="module")
def acr_run(commands: Any, new_workspace: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder after a whole run with ACR."""
    folder = new_workspace(tmp_path_factory.mktemp("acr"))
    ended = commands.run("run", *options(*HYBRID, *ACR), folder=folder)
    assert ended.code == 0, ended.stderr
    return folder


def test_a_run_with_acr_ends_in_labels_and_is_then_current(commands: Any, acr_run: Path) -> None:
    with CamStore.open(acr_run / "run" / "cams.h5") as store:
        stored = [store.read(name) for name in store.names]
    assert all(cam.cam.shape[0] == len(cam.class_ids) for cam in stored)
    assert sum(bool(cam.cam.any()) for cam in stored) > len(stored) / 2
    again = commands.run("run", *options(*HYBRID, *ACR), folder=acr_run)
    assert again.stderr.count("current, nothing to do") == 5


@pytest.mark.parametrize(("source", "propagate"), list(itertools.product(SOURCES, ["none", "attention", "features"])))
def test_every_source_goes_with_every_propagation(
    commands: Any, acr_run: Path, tmp_path: Path, source: str, propagate: str
) -> None:
    """Read from the classifier that is there: none of it makes the training stale."""
    folder = Path(shutil.copytree(acr_run, tmp_path / "copy"))
    chosen = (f"cam.source={source}", f"cam.propagate={propagate}")
    ended = commands.run("make-cams", *options(*HYBRID, *ACR, *chosen), folder=folder)
    assert ended.code == 0, ended.stderr
    assert ("extract_cams: current" in ended.stderr) == (chosen == ACR[1:])


def test_a_killed_run_with_acr_ends_as_an_undisturbed_one(
    commands: Any, acr_run: Path, workspace: Path, differences: Callable[[Path, Path], list[str]]
) -> None:
    moment = {
        "function": "cam_pipeline.training.trainer.save_checkpoint", "holds": "train_cls-", "call": 3,
        "send": "SIGKILL", "group": True,
    }  # fmt: skip
    ended = commands.run("run", *options(*HYBRID, *ACR), folder=workspace, signal_at=moment)
    assert ended.code == -9
    assert commands.run("run", *options(*HYBRID, *ACR), folder=workspace).code == 0
    assert differences(workspace / "run", acr_run / "run") == []


def test_one_image_from_python_is_what_the_stage_stored(acr_run: Path) -> None:
    run = open_run(acr_run / "run", device="cpu")
    with CamStore.open(acr_run / "run" / "cams.h5") as store:
        stored = store.read("images/train_00001" if "images/train_00001" in store.names else store.names[0])
    names = [run.classes[class_id - 1] for class_id in stored.class_ids]
    image = next((acr_run / "data").rglob(f"{Path(stored.name).name}.*g"))
    found = run.annotate(image, classes=names)
    np.testing.assert_allclose(found.cams, cam_scores(stored.cam, stored.size).numpy(), atol=5e-3)
    unknown = run.annotate(image)
    assert len(unknown.names) >= 1 and unknown.cams.shape[0] == len(unknown.names)


def test_objectives_that_are_off_make_nothing_stale(commands: Any, acr_run: Path) -> None:
    used = commands.run("status", *options(*HYBRID, *ACR, "acr.affinity_weight=0.5"), folder=acr_run).stdout
    assert "acr.affinity_weight was 0.217, is 0.5" in " ".join(used.split())
    off = ("objectives.acr=false", "acr.affinity_weight=0.5")
    shown = " ".join(commands.run("status", *options(*HYBRID, *ACR, *off), folder=acr_run).stdout.split())
    assert "objectives.acr was True, is False" in shown


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("objectives.acr=true",), "objectives.acr compares attention between patches, but ResNet has no blocks with"),
        (("objectives.acr=true",), "take a ViT as classifier.backbone (a CNN can be its classifier.trunk)"),
        (
            ("train_cls.lr=0.1", "cam.source=class_token_gradient"),
            "this classifier does not allow it: ResNet has no blocks with attention",
        ),
        (
            ("train_cls.lr=0.1", "cam.propagate=attention"),
            "this classifier does not allow it: ResNet has no blocks with attention",
        ),
        ((*HYBRID, *ACR, "classifier.pooling=patches"), "its logits are not read from the class token"),
        ((*HYBRID, *ACR, "cam.start_layer=2"), "there is no block 2: the network has 2, numbered 0 to 1"),
        ((*HYBRID, *ACR, "cam.attention_layers=[0, 5]"), "there is no block 5"),
        ((*HYBRID, *ACR, "acr.layers=[-3]"), "acr.layers: there is no block -3"),
        ((*HYBRID, *ACR, "acr.transforms=['shear']"), "acr.transforms"),
        ((*HYBRID, *ACR, "acr.transforms=[]"), "acr.transforms"),
        ((*HYBRID, "classifier.trunk=test_vit", "classifier.trunk_args={}"), "classifier.trunk: 'test_vit'"),
        ((*HYBRID, "classifier.trunk_weights=gone.pth"), "there is no weights file gone.pth"),
        (("classifier.pooling=class_token",), "classifier.pooling: 'resnet10t' has no class token"),
    ],
)
def test_what_can_not_be_is_said_before_training(
    mistake: Callable[..., str], overrides: tuple[str, ...], words: str
) -> None:
    assert words in mistake("train-cls", *options(*overrides)[2:])


def test_what_cams_can_not_be_read_is_said_when_they_are_made(mistake: Callable[..., str]) -> None:
    line = mistake("make-cams", "--set", "cam.source=class_token_gradient")
    assert "cam.source = 'class_token_gradient', cam.propagate = 'none', cam.calibration = 'none': this" in line


# SFC

SFC = ("objectives.sfc=true", "cam.calibration=sfc", "refine.background=0.2")


@pytest.fixture(scope="module")
def sfc_run(commands: Any, new_workspace: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder after a whole run with SFC on the tiny CNN."""
    folder = new_workspace(tmp_path_factory.mktemp("sfc"))
    ended = commands.run("run", *options(*SFC), folder=folder)
    assert ended.code == 0, ended.stderr
    return folder


def test_a_run_with_sfc_stores_both_kinds_of_maps_and_is_then_current(commands: Any, sfc_run: Path) -> None:
    with CamStore.open(sfc_run / "run" / "cams.h5") as store:
        stored = [store.read(name) for name in store.names]
    for cam in stored:
        assert cam.background is not None and cam.prototype is not None
        assert cam.background.shape == cam.cam.shape[1:] and len(cam.prototype) == 1 + len(cam.cam)
    assert sum(bool(cam.prototype[1:].any()) for cam in stored if cam.prototype is not None) > len(stored) / 2
    again = commands.run("run", *options(*SFC), folder=sfc_run)
    assert again.stderr.count("current, nothing to do") == 5


def test_the_weights_of_the_two_maps_change_without_extraction(commands: Any, sfc_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sfc_run, tmp_path / "copy"))
    chosen = ("refine.prototype_share=0.0", "refine.background_map=0.3")
    ended = commands.run("make-cams", *options(*SFC, *chosen), folder=folder)
    assert ended.code == 0 and "extract_cams: current" in ended.stderr and "refine_cams: done" in ended.stderr


def test_a_killed_run_with_sfc_ends_as_an_undisturbed_one(
    commands: Any, sfc_run: Path, workspace: Path, differences: Callable[[Path, Path], list[str]]
) -> None:
    """The image bank is as it was: what it holds follows from the steps before."""
    moment = {
        "function": "cam_pipeline.training.trainer.save_checkpoint", "holds": "train_cls-", "call": 3,
        "send": "SIGKILL", "group": True,
    }  # fmt: skip
    ended = commands.run("run", *options(*SFC), folder=workspace, signal_at=moment)
    assert ended.code == -9
    assert commands.run("run", *options(*SFC), folder=workspace).code == 0
    assert differences(workspace / "run", sfc_run / "run") == []


def test_maps_are_calibrated_without_and_on_top_of_the_other_method(
    commands: Any, acr_run: Path, workspace: Path, tmp_path: Path
) -> None:
    """A classifier that never heard of SFC; the maps that ACR reads; and both objectives in one training."""
    folder = Path(shutil.copytree(acr_run, tmp_path / "copy"))
    ended = commands.run("make-cams", *options(*HYBRID, *ACR, *SFC[1:]), folder=folder)
    assert ended.code == 0, ended.stderr
    assert "train_cls: starts" not in ended.stderr, "the classifier stays"
    with CamStore.open(folder / "run" / "cams.h5") as store:
        assert all(store.read(name).prototype is not None for name in store.names)
    both = ("sfc.blank_slots=true", "sfc.background_over=all", "cam.background_over=all")
    ended = commands.run("run", *options(*HYBRID, *ACR, *SFC, *both), folder=workspace)
    assert ended.code == 0, ended.stderr


@pytest.mark.parametrize("chosen", [(), ("cam.source=classifier_weights", "cam.propagate=features"), SFC[1:]])
def test_what_is_like_the_border_can_be_taken_from_any_maps(
    commands: Any, acr_run: Path, tmp_path: Path, chosen: tuple[str, ...]
) -> None:
    folder = Path(shutil.copytree(acr_run, tmp_path / "copy"))
    ended = commands.run("make-cams", *options(*HYBRID, *ACR, *chosen, "cam.border=0.2"), folder=folder)
    assert ended.code == 0 and "extract_cams: done" in ended.stderr, ended.stderr
    shown = commands.run("status", *options(*HYBRID, *ACR, *chosen, "cam.border_power=2.0"), folder=folder).stdout
    assert "cam.border was 0.2, is 0.0" in " ".join(shown.split())


def test_a_border_that_is_off_makes_nothing_stale(commands: Any, acr_run: Path) -> None:
    ended = commands.run("make-cams", *options(*HYBRID, *ACR, "cam.border_power=2.0"), folder=acr_run)
    assert ended.code == 0 and "extract_cams: current" in ended.stderr


def test_one_image_with_calibrated_maps_from_python(sfc_run: Path) -> None:
    run = open_run(sfc_run / "run", device="cpu")
    with CamStore.open(sfc_run / "run" / "cams.h5") as store:
        stored = store.read(store.names[0])
    names = [run.classes[class_id - 1] for class_id in stored.class_ids]
    found = run.annotate(next((sfc_run / "data").rglob(f"{Path(stored.name).name}.*g")), classes=names)
    np.testing.assert_allclose(found.cams, class_scores(stored, run.config.refine)[0].numpy(), atol=5e-3)


# Self-Regulation

SR = ("segmenter.self_regulation=true", "self_regulation.start=0.3", "train_seg.average=0.9")


@pytest.fixture(scope="module")
def sr_run(commands: Any, new_workspace: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder after a whole run whose segmenter was trained with exits."""
    folder = new_workspace(tmp_path_factory.mktemp("sr"))
    ended = commands.run("run", *options(*SR), folder=folder)
    assert ended.code == 0, ended.stderr
    return folder


def test_a_segmenter_trained_with_exits_has_none(commands: Any, sr_run: Path) -> None:
    stored = load_file(sr_run / "run" / "segmenter.safetensors")
    assert not [name for name in stored if "exits" in name or "average" in name]
    history = [json.loads(line) for line in (sr_run / "run" / "logs" / "train_seg.jsonl").read_text().splitlines()]
    assert "sr.shallow_to_deep_4" in history[-1] and "sr.segmentation_1" in history[0]
    run = open_run(sr_run / "run", device="cpu")
    image = next((sr_run / "data" / "images").glob("val*"))
    assert run.segment(image).dtype == np.uint8
    again = commands.run("run", *options(*SR), folder=sr_run)
    assert again.stderr.count("current, nothing to do") == 5


def test_a_killed_run_with_exits_ends_as_an_undisturbed_one(
    commands: Any, sr_run: Path, workspace: Path, differences: Callable[[Path, Path], list[str]]
) -> None:
    """Exits and averages are in the checkpoint."""
    moment = {
        "function": "cam_pipeline.training.trainer.save_checkpoint", "holds": "train_seg-", "call": 4,
        "send": "SIGKILL", "group": True,
    }  # fmt: skip
    ended = commands.run("run", *options(*SR), folder=workspace, signal_at=moment)
    assert ended.code == -9
    assert commands.run("run", *options(*SR), folder=workspace).code == 0
    assert differences(workspace / "run", sr_run / "run") == []


@pytest.mark.parametrize(
    "chosen",
    [
        ("train_seg.supervision=masks", "self_regulation.heads=released"),
        ("segmenter.architecture=deeplabv2", "run.precision=bfloat16", "self_regulation.feature_mode=soft"),
        ("self_regulation.shallowest_stride=2", "self_regulation.gate=confidence", "self_regulation.label_mode=pixel"),
        ("self_regulation.class_labels=pixels", "self_regulation.ignore_to_background=true"),
        ("train_seg.average=0.0", "train_seg.balance=true", "train_seg.schedule=cosine"),
        ("train_seg.color_jitter=0.4", "train_seg.greyscale=0.2", "train_seg.blur=0.5", "train_cls.blur=0.5"),
    ],
)
def test_exits_go_with_every_supervision_network_and_precision(
    commands: Any, sr_run: Path, tmp_path: Path, chosen: tuple[str, ...]
) -> None:
    folder = Path(shutil.copytree(sr_run, tmp_path / "copy"))
    ended = commands.run("run", *options(*SR, *chosen), folder=folder)
    assert ended.code == 0, ended.stderr
    assert "train_seg: done" in ended.stderr


# Training that bears wrong labels

BEARING = {
    "clipped losses": ("train_seg.clip_losses=true",),
    "confidence": ("train_seg.confidence_power=2.0",),
    "neighbours": ("train_seg.potts=0.5",),
    "soft labels": ("train_seg.soft_labels=true", "train_seg.potts=0.1"),
    "soft labels beside exits": ("train_seg.soft_labels=true", *SR),
}


@pytest.mark.parametrize("name", BEARING)
def test_a_killed_training_that_bears_wrong_labels_ends_as_an_undisturbed_one(
    commands: Any, finished: Path, tmp_path: Path, differences: Callable[[Path, Path], list[str]], name: str
) -> None:
    undisturbed, killed = (Path(shutil.copytree(finished, tmp_path / one)) for one in ("undisturbed", "killed"))
    chosen = options(*BEARING[name])
    ended = commands.run("run", *chosen, folder=undisturbed)
    assert ended.code == 0, ended.stderr
    assert "make_labels: current" in ended.stderr and "train_seg: done" in ended.stderr
    moment = {
        "function": "cam_pipeline.training.trainer.save_checkpoint", "holds": "train_seg-", "call": 4,
        "send": "SIGKILL", "group": True,
    }  # fmt: skip
    assert commands.run("run", *chosen, folder=killed, signal_at=moment).code == -9
    assert commands.run("run", *chosen, folder=killed).code == 0
    assert differences(killed / "run", undisturbed / "run") == []
    plain, bearing = (load_file(folder / "run" / "segmenter.safetensors") for folder in (finished, undisturbed))
    assert any(not np.array_equal(value, plain[name]) for name, value in bearing.items())


def test_pixels_count_by_the_agreement_of_merged_networks(commands: Any, finished: Path) -> None:
    other = finished / "other.h5"
    with CamStore.open(finished / "run" / "cams.h5") as store:
        writer = PartWriter(other, "cams", artefact_attributes(store.classes, "f", ""), [store.names])
        flipped = (store.read(name) for name in store.names)
        writer.write(0, [cam_record(replace(one, cam=one.cam.flip(-1))) for one in flipped])
        writer.join(store.names)
    merging = ("refine.merge_with=['other.h5']",)
    assert commands.run("run", *options(*merging), folder=finished).code == 0
    equal = load_file(finished / "run" / "segmenter.safetensors")
    weighted = (*merging, "train_seg.agreement_power=2.0")
    ended = commands.run("run", *options(*weighted), folder=finished)
    assert ended.code == 0, ended.stderr
    assert "make_labels: current" in ended.stderr and "compare_cams: done" in ended.stderr
    found = load_file(finished / "run" / "segmenter.safetensors")
    assert any(not np.array_equal(value, equal[name]) for name, value in found.items())
    assert commands.run("run", *options(*weighted), folder=finished).stderr.count("current, nothing to do") == 7


def test_agreement_of_one_network_is_refused(mistake: Callable[..., str]) -> None:
    line = mistake("train-seg", "--set", "train_seg.agreement_power=1")
    assert "train_seg.agreement_power needs maps of other networks: name them in refine.merge_with" in line


def test_a_run_that_learned_scores_is_current_and_can_be_opened(commands: Any, finished: Path) -> None:
    chosen = options("train_seg.soft_labels=true")
    ended = commands.run("make-cams", *chosen, folder=finished)
    assert ended.code == 0 and "score_cams: done" in ended.stderr and "make_labels: current" in ended.stderr
    assert commands.run("train-seg", *chosen, folder=finished).code == 0
    again = commands.run("run", *chosen, folder=finished)
    assert again.stderr.count("current, nothing to do") == 6
    run = open_run(finished / "run", device="cpu")
    assert run.config.train_seg.soft_labels
    assert run.segment(next((finished / "data" / "images").glob("val*"))).dtype == np.uint8
    # left behind by another config it says nothing about the others
    other = options("refine.background=0.5")
    assert commands.run("run", *other, folder=finished).code == 0
    run = open_run(finished / "run", device="cpu")
    assert (run.config.refine.background, run.config.train_seg.soft_labels) == (0.5, False)


def test_scores_that_were_not_made_are_asked_for(mistake: Callable[..., str]) -> None:
    line = mistake("train-seg", "--set", "train_seg.soft_labels=true")
    assert "soft_scores.h5 is missing (not made yet). Run: cam-pipeline make-cams" in line


def test_scores_in_place_of_labels_are_refused_beside_what_is_about_labels(mistake: Callable[..., str]) -> None:
    line = mistake("train-seg", "--set", "train_seg.soft_labels=true", "--set", "train_seg.balance=true")
    assert "train_seg: soft_labels cannot be combined with balance; switch one of them off" in line


# One stage in place of three

E2E = (
    "train_e2e.epochs=2", "train_e2e.batch_size=8", "train_e2e.crop=48", "train_e2e.optimizer=adamw",
    "train_e2e.lr=1e-3", "train_e2e.checkpoint_seconds=0", "tscd.start=0.3", "tscd.decoder_width=8", "tscd.points=8",
)  # fmt: skip
SINGLE_HYBRID = (
    "classifier.backbone=vit_tiny_patch16_224",
    "classifier.backbone_args={depth = 2, embed_dim = 24, num_heads = 3, img_size = 48}",
    "classifier.trunk=resnet10t",
    "classifier.trunk_args={channels = [8, 16, 24, 32], stem_width = 8}",
    "classifier.trunk_weights=none",
)


@pytest.mark.parametrize(
    "chosen",
    [
        (),
        SINGLE_HYBRID,
        (*SINGLE_HYBRID, "tscd.scd=released", "tscd.energy_weight=0.01", "tscd.kernel=par", "tscd.map_flip=true"),
        (*SINGLE_HYBRID, "tscd.scd=off", "tscd.affinity=false", "run.precision=bfloat16", "train_e2e.accumulate=2"),
    ],
)
def test_a_killed_single_stage_ends_as_an_undisturbed_one(
    commands: Any,
    workspace: Path,
    tmp_path: Path,
    differences: Callable[[Path, Path], list[str]],
    chosen: tuple[str, ...],
) -> None:
    undisturbed, killed = (Path(shutil.copytree(workspace, tmp_path / one)) for one in ("undisturbed", "killed"))
    given = options(*E2E, *chosen)
    ended = commands.run("train-e2e", *given, folder=undisturbed)
    assert ended.code == 0, ended.stderr
    assert "train_e2e: done" in ended.stderr and "label_e2e: done" in ended.stderr
    moment = {
        "function": "cam_pipeline.training.trainer.save_checkpoint", "holds": "train_e2e-", "call": 4,
        "send": "SIGKILL", "group": True,
    }  # fmt: skip
    assert commands.run("train-e2e", *given, folder=killed, signal_at=moment).code == -9
    assert commands.run("train-e2e", *given, folder=killed).code == 0
    assert differences(killed / "run", undisturbed / "run") == []
    with LabelStore.open(undisturbed / "run" / "e2e_labels.h5") as store:
        assert len(store.names) == 24


def test_a_run_may_end_with_the_single_stage(commands: Any, workspace: Path) -> None:
    """All commands about a segmenter then mean it, and the others' results are not asked for."""
    single = options(*E2E, *SINGLE_HYBRID, "predict.network=train_e2e", "cam.network=train_e2e")
    ended = commands.run("run", *single, folder=workspace)
    assert ended.code == 0, ended.stderr
    assert not (workspace / "run" / "segmenter.safetensors").exists()
    shown = commands.run("status", *single, folder=workspace).stdout
    assert shown.count("current") == 2 and "train_seg" not in shown and "missing" not in shown
    ended = commands.run("evaluate", *single, folder=workspace)
    assert ended.code == 0, ended.stderr
    assert "single-stage label" in ended.stdout and "Not all results are current" not in ended.stdout
    ended = commands.run("predict", "data/images", "-o", "new", *single, "--set", "predict.classes=classifier",
                         folder=workspace)  # fmt: skip
    assert ended.code == 0, ended.stderr
    assert len(list((workspace / "new").glob("*.png"))) == 32
    ended = commands.run("export", "--to", "png", "-o", "labels", *single, folder=workspace)
    assert ended.code == 0 and "Labels of 24 images" in ended.stdout, ended.stderr
    run = open_run(workspace / "run", device="cpu")
    image = next((workspace / "data" / "images").glob("val*"))
    assert run.segment(image).dtype == np.uint8
    assert run.annotate(image).scores.shape[1:] == run.segment(image).shape


def test_labels_and_maps_of_the_single_stage_serve_the_other_stages(commands: Any, finished: Path) -> None:
    teacher = options(*E2E, "train_seg.labels_from=train_e2e")
    assert commands.run("train-e2e", *teacher, folder=finished).code == 0
    ended = commands.run("run", *teacher, folder=finished)
    assert ended.code == 0, ended.stderr
    assert "label_e2e: current" in ended.stderr and "train_seg: done" in ended.stderr
    shown = commands.run("evaluate", *teacher, folder=finished).stdout
    assert all(row in shown for row in ("single-stage label", "single stage", "segmenter", "pseudo-label"))
    maps = options(*E2E, "cam.network=train_e2e", "output.dir=other")
    assert commands.run("train-e2e", *maps, folder=finished).code == 0
    ended = commands.run("make-cams", *maps, folder=finished)
    assert ended.code == 0 and "extract_cams: done" in ended.stderr, ended.stderr
    merged = options("refine.merge_with=['other/cams.h5']")
    ended = commands.run("make-cams", *merged, folder=finished)
    assert ended.code == 0 and "merge_cams: done" in ended.stderr, ended.stderr


def test_the_single_stage_says_what_it_cannot_do(mistake: Callable[..., str]) -> None:
    assert "train_e2e.crop = 40 must be a multiple of the stride 16" in mistake(
        "train-e2e", "--set", "train_e2e.crop=40"
    )
    assert "e2e.safetensors is missing (not made yet). Run: cam-pipeline train-e2e" in mistake(
        "train-seg", "--set", "train_seg.labels_from=train_e2e"
    )
    line = mistake("train-seg", "--set", "train_seg.labels_from=train_e2e", "--set", "train_seg.soft_labels=true")
    assert "labels_from = 'train_e2e' brings labels alone" in line
    assert "holds no segmenter. Run: cam-pipeline train-e2e" in mistake(
        "predict", "data/images", "-o", "new", "--set", "predict.network=train_e2e"
    )
    assert "tscd: low = 0.6 must not exceed high = 0.55" in mistake("train-e2e", "--set", "tscd.low=0.6")


# Clicks and scribbles, and the regularised loss

DFR = ("segmenter.regularizer=dfr", "dfr.beta_start=0.2", "dfr.threshold=0.3")
SCRIBBLES = ("train_seg.supervision=scribbles", "data.scribbles=scribbles")


def scribble(folder: Path, left_out: int = 3) -> None:
    """Give the training images of a workspace scribbles: some rows of their masks. A few get none."""
    masks = sorted((folder / "data" / "masks").glob("train*"))
    for path in masks[left_out:]:
        labels = np.array(Image.open(path))
        labels[np.arange(len(labels)) % 8 != 4] = 255
        target = folder / "data" / "scribbles" / "images" / f"{path.stem}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels).save(target)


@pytest.fixture(scope="module")
def scribbled_run(
    commands: Any, new_workspace: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with a segmenter that was trained on scribbles with the regularised loss."""
    folder = new_workspace(tmp_path_factory.mktemp("scribbles"))
    scribble(folder)
    ended = commands.run("train-seg", *options(*SCRIBBLES, *DFR), folder=folder)
    assert ended.code == 0, ended.stderr
    assert "3 of 24 training images have no click and no scribble" in ended.stderr
    return folder


def test_a_segmenter_that_learned_scribbles_has_no_head_of_features(commands: Any, scribbled_run: Path) -> None:
    stored = load_file(scribbled_run / "run" / "segmenter.safetensors")
    assert not [name for name in stored if "consistency" in name]
    log = scribbled_run / "run" / "logs" / "train_seg.jsonl"
    history = [json.loads(line) for line in log.read_text().splitlines()]
    assert history[-1]["dfr"] > 0 and 0 < history[-1]["dfr.known"] <= 1 and history[-1]["dfr.consistency_others"] > 0
    chosen = options(*SCRIBBLES, *DFR)
    assert "current, nothing to do" in commands.run("train-seg", *chosen, folder=scribbled_run).stderr
    ended = commands.run("evaluate", *chosen, folder=scribbled_run)
    assert ended.code == 0 and "clicks and scribbles" in ended.stdout, ended.stderr + ended.stdout


def test_another_scribble_makes_the_segmenter_stale(commands: Any, scribbled_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(scribbled_run, tmp_path / "copy"))
    scribble(folder, left_out=2)
    shown = commands.run("status", *options(*SCRIBBLES, *DFR), folder=folder).stdout
    assert re.search(r"train_seg.*stale", shown) and "data" in shown
    off = commands.run("status", *options(*SCRIBBLES), folder=folder).stdout
    assert "segmenter.regularizer was dfr, is none" in " ".join(off.split())


def test_a_killed_training_on_scribbles_ends_as_an_undisturbed_one(
    commands: Any, scribbled_run: Path, workspace: Path, differences: Callable[[Path, Path], list[str]]
) -> None:
    scribble(workspace)
    moment = {
        "function": "cam_pipeline.training.trainer.save_checkpoint", "holds": "train_seg-", "call": 4,
        "send": "SIGKILL", "group": True,
    }  # fmt: skip
    chosen = options(*SCRIBBLES, *DFR)
    assert commands.run("train-seg", *chosen, folder=workspace, signal_at=moment).code == -9
    assert commands.run("train-seg", *chosen, folder=workspace).code == 0
    assert differences(workspace / "run", scribbled_run / "run") == []


@pytest.mark.parametrize(
    "chosen",
    [
        (*SCRIBBLES,),
        (*SCRIBBLES, "train_seg.balance=true", "train_seg.potts=0.5"),
        (*SCRIBBLES, *DFR, "dfr.features=none", "segmenter.architecture=deeplabv2"),
        (*SCRIBBLES, *DFR, "dfr.features=backbone", "dfr.kernel=gauss", "run.precision=bfloat16"),
        (*SCRIBBLES, *DFR, "dfr.detach_features=false", "dfr.stride=8", "train_seg.accumulate=2"),
        (*SCRIBBLES, *DFR, "segmenter.self_regulation=true", "train_seg.average=0.9", "dfr.normalize=mass"),
        (*DFR, "train_seg.supervision=masks", "dfr.detach_backbone=true"),
        (*SCRIBBLES, *DFR, "train_seg.teacher=true", "teacher.start=0.3"),
    ],
)
def test_the_regularised_loss_goes_with_every_supervision_network_and_precision(
    commands: Any, workspace: Path, chosen: tuple[str, ...]
) -> None:
    scribble(workspace)
    ended = commands.run("train-seg", *options(*chosen), folder=workspace)
    assert ended.code == 0, ended.stderr
    assert "train_seg: done" in ended.stderr


def test_the_regularised_loss_goes_with_pseudo_labels(commands: Any, finished: Path) -> None:
    ended = commands.run("run", *options(*DFR, "train_seg.soft_labels=true"), folder=finished)
    assert ended.code == 0 and "train_seg: done" in ended.stderr, ended.stderr


def test_scribbles_that_are_not_there_are_asked_for(mistake: Callable[..., str]) -> None:
    line = mistake("train-seg", "--set", "train_seg.supervision=scribbles")
    assert "no image of split 'train' has a click or a scribble; add some" in line


# The EMA teacher

TEACHER = ("train_seg.teacher=true", "teacher.start=0.3", "teacher.ramp=0.2", "teacher.confidence=0.3")


@pytest.fixture(scope="module")
def taught_run(commands: Any, new_workspace: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder after a whole run whose segmenter had a teacher."""
    folder = new_workspace(tmp_path_factory.mktemp("teacher"))
    ended = commands.run("run", *options(*TEACHER), folder=folder)
    assert ended.code == 0, ended.stderr
    return folder


def test_a_segmenter_that_had_a_teacher_is_its_own(commands: Any, taught_run: Path) -> None:
    stored = load_file(taught_run / "run" / "segmenter.safetensors")
    assert not [name for name in stored if "average" in name]
    history = [json.loads(line) for line in (taught_run / "run" / "logs" / "train_seg.jsonl").read_text().splitlines()]
    assert 0 < history[-1]["teacher.sure"] <= 1 and history[-1]["teacher"] > 0
    again = commands.run("run", *options(*TEACHER), folder=taught_run)
    assert again.stderr.count("current, nothing to do") == 5
    shown = commands.run("status", *options(), folder=taught_run).stdout
    assert "train_seg.teacher was True, is False" in " ".join(shown.split())


def test_a_killed_run_with_a_teacher_ends_as_an_undisturbed_one(
    commands: Any, taught_run: Path, workspace: Path, differences: Callable[[Path, Path], list[str]]
) -> None:
    moment = {
        "function": "cam_pipeline.training.trainer.save_checkpoint", "holds": "train_seg-", "call": 5,
        "send": "SIGKILL", "group": True,
    }  # fmt: skip
    ended = commands.run("run", *options(*TEACHER), folder=workspace, signal_at=moment)
    assert ended.code == -9
    assert commands.run("run", *options(*TEACHER), folder=workspace).code == 0
    assert differences(workspace / "run", taught_run / "run") == []


@pytest.mark.parametrize(
    "chosen",
    [
        ("train_seg.supervision=masks", "train_seg.average=0.9", "teacher.pixels=unsure"),
        ("segmenter.architecture=deeplabv2", "run.precision=bfloat16", "teacher.start=0.0"),
        ("segmenter.self_regulation=true", "self_regulation.start=0.3", "segmenter.freeze_batch_norm=true"),
        ("train_seg.repeat=1.0",),
    ],
)
def test_a_teacher_goes_with_every_supervision_network_precision_and_sampling(
    commands: Any, taught_run: Path, tmp_path: Path, chosen: tuple[str, ...]
) -> None:
    folder = Path(shutil.copytree(taught_run, tmp_path / "copy"))
    ended = commands.run("run", *options(*TEACHER, *chosen), folder=folder)
    assert ended.code == 0, ended.stderr
    assert "train_seg: done" in ended.stderr
    assert ("images come more often than others, up to" in ended.stderr) == (chosen == ("train_seg.repeat=1.0",))


# Clicks

CLICKED = ("data.clicks=clicks.csv", "cam.keep_features=8", "train_seg.supervision=mixed")


def click(folder: Path, count: int) -> list[str]:
    """Write clicks on the first images that show a class, one on it and one on the background; the images' ids."""
    lines, names = ["image,x,y,class"], []
    for row in (folder / "data" / "data.csv").read_text().splitlines()[1:]:
        image, labels, _, split = row.split(",")
        if labels and split == "train" and len(names) < count:
            names.append(image.rpartition(".")[0])
            lines += [f"{image},30,20,{labels.split(';')[0]}", f"{image},5,5,background"]
    (folder / "data" / "clicks.csv").write_text("\n".join(lines) + "\n")
    return names


@pytest.mark.parametrize(
    "chosen",
    [
        (),
        ("cam.calibration=sfc", "cam.border=0.2", "cam.walk_levels=2", "refine.crf=false", "refine.kernel=par"),
        ("refine.kernel=varm", "refine.band=0.1", "labels.undecided=backgrounds", "refine.background=auto"),
        ("train_seg.soft_labels=true", "cam.propagate=features"),
    ],
)
def test_clicks_go_with_every_map_refinement_and_label(commands: Any, finished: Path, chosen: tuple[str, ...]) -> None:
    """A second look costs no maps, and the refinement of the images that are clicked alone."""
    names = click(finished, 2)
    ended = commands.run("run", *options(*CLICKED, *chosen), folder=finished)
    assert ended.code == 0, ended.stderr
    assert "2 of 24 images have clicks or scribbles, which spread to what is like their pixels" in ended.stderr
    with LabelStore.open(finished / "run" / "pseudo_labels.h5") as store:
        for name in names:
            origin, labels = store.origin(name), store.read(name)
            assert origin[20, 30] == origin[5, 5] == 1 and labels[5, 5] == 0 and labels[20, 30] not in (0, 255)
            assert (store.confidence(name)[origin > 0] == 255).all()
        assert {key.replace("%2F", "/") for key in store.file["origin"]} == set(names)
    if "train_seg.soft_labels=true" in chosen:
        with ScoreStore.open(finished / "run" / "soft_scores.h5") as scores:
            assert scores.read(names[0]).scores[0, 5, 5] == 1
    click(finished, 3)
    ended = commands.run("make-cams", *options(*CLICKED, *chosen), folder=finished)
    assert ended.code == 0, ended.stderr
    assert "extract_cams: current" in ended.stderr
    assert "refine_cams: 23 of 24 images are as before and keep their scores" in ended.stderr
