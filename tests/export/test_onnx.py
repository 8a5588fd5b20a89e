"""What an ONNX file answers is what torch answers, for images of any size."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cam_pipeline.config import Config, load_config
from cam_pipeline.errors import LibraryMissing, StageNotReady, UserError

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ("ball", "cube", "étoile")
SIZES = [(97, 131), (64, 96), (1, 1), (5, 300), (33, 47), (300, 200)]
TINY = 'encoder_args = { channels = [8, 16, 24, 32], stem_width = 8 }\nweights = "none"'
VIT = """[classifier]
backbone = "vit_tiny_patch16_224"
backbone_args = { embed_dim = 32, depth = 2, num_heads = 2 }
weights = "none"
pooling = "class_token"
"""
CONVNEXT = """[classifier]
backbone = "convnext_atto"
backbone_args = { depths = [1, 1, 1, 1], dims = [8, 16, 24, 32] }
weights = "none"
stride = 16
"""
MOBILENET = """[classifier]
backbone = "mobilenetv2_050"
weights = "none"
stride = 16
"""
SWIN = """[classifier]
backbone = "swin_tiny_patch4_window7_224"
backbone_args = { embed_dim = 24, depths = [1, 1, 2, 1], num_heads = [1, 2, 4, 8] }
weights = "none"
"""
HYBRID = """[classifier]
backbone = "vit_tiny_patch16_224"
backbone_args = { embed_dim = 32, depth = 1, num_heads = 2 }
weights = "none"
trunk = "resnet10t"
trunk_args = { channels = [8, 16, 24, 32], stem_width = 8 }
trunk_weights = "none"
"""


def stored(folder: Path, settings: str, *networks: str) -> Config:
    """The config of a run folder with networks that have random weights, as if they were trained."""
    import torch

    from cam_pipeline.assembly.classifier import new_classifier
    from cam_pipeline.assembly.segmenter import new_segmenter
    from cam_pipeline.store.checkpoints import save_model

    file = folder / "my.toml"
    file.write_text(settings + f'\n[run]\ndevice = "cpu"\n[output]\ndir = "{folder / "run"}"\n')
    config = load_config(file, ["segmenter.max_side=160", "cam.max_side=160"])
    torch.manual_seed(0)
    for name in networks:
        network: Any = (
            new_segmenter(config.segmenter, len(CLASSES))
            if name == "segmenter"
            else new_classifier(config.classifier, len(CLASSES))
        )
        config.folder.mkdir(exist_ok=True)
        save_model(config.folder / f"{name}.safetensors", network, {"classes": CLASSES, "fingerprint": "f" * 8})
    return config


def settings_of_both(architecture: str = "deeplabv3plus") -> str:
    return (
        f'[segmenter]\narchitecture = "{architecture}"\nencoder = "resnet10t"\n{TINY}\n'
        f'[classifier]\nbackbone = "resnet10t"\n{TINY.replace("encoder", "backbone")}\nstride = 16\n'
    )


def image(height: int, width: int) -> Any:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


def answers(path: Path, *images: Any) -> dict[str, Any]:
    """The outputs of a file by their names, for images of one size."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(None, {"images": np.stack([one.transpose(2, 0, 1) for one in images])})
    return dict(zip((one.name for one in session.get_outputs()), found, strict=True))


def expected_maps(config: Config, pixels: Any) -> tuple[Any, Any]:
    """Probabilities and maps of the stored classifier, as `run.annotate` reads them at scale 1, before their peaks."""
    import torch

    from cam_pipeline.assembly.classifier import load_classifier
    from cam_pipeline.data.grid import grid_size, resize_to_grid, to_tensor
    from cam_pipeline.ops.cam import classifier_cam

    classifier = load_classifier(config.classifier, config.folder / "classifier.safetensors", CLASSES)
    grid = grid_size(*pixels.shape[:2], classifier.stride, config.cam.max_side)
    with torch.inference_mode():
        out = classifier(resize_to_grid(to_tensor(pixels), grid, classifier.stride)[None])
        maps = classifier_cam(out.features, classifier.head.weight).relu()
    assert tuple(maps.shape[2:]) == grid
    return out.logits.sigmoid().numpy(), maps.numpy()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """A run folder with both networks, and the folder with their ONNX files; not to be changed."""
    from cam_pipeline.export.onnx import export_onnx

    config = stored(tmp_path_factory.mktemp("onnx"), settings_of_both(), "segmenter", "classifier")
    found = export_onnx(config)
    assert [one.path.name for one in found] == ["segmenter.onnx", "classifier.onnx"]
    assert all(one.difference is not None and one.difference < 1e-5 for one in found)
    return config, config.folder / "export"


@pytest.mark.parametrize("size", SIZES)
def test_probabilities_are_those_of_predict(exported: tuple[Config, Path], size: tuple[int, int]) -> None:
    from cam_pipeline.api import stored_segmenter
    from cam_pipeline.prediction.predictor import Predictor

    config, folder = exported
    pixels = image(*size)
    found = answers(folder / "segmenter.onnx", pixels, pixels[::-1])
    assert list(found) == ["probabilities"] and found["probabilities"].shape == (2, 1 + len(CLASSES), *size)
    predictor = Predictor(stored_segmenter(config, CLASSES), config)
    for number, one in enumerate((pixels, pixels[::-1])):
        np.testing.assert_allclose(found["probabilities"][number], predictor.probabilities(one).numpy(), atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_maps_are_those_of_the_classifier(exported: tuple[Config, Path], size: tuple[int, int]) -> None:
    config, folder = exported
    found = answers(folder / "classifier.onnx", image(*size))
    assert list(found) == ["probabilities", "maps"]
    for ours, theirs in zip(found.values(), expected_maps(config, image(*size)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert found["maps"].min() >= 0 and found["maps"].max() > 0


def test_a_file_says_what_it_is(exported: tuple[Config, Path]) -> None:
    _, folder = exported
    told = {}
    for name in ("segmenter", "classifier"):
        session = onnxruntime.InferenceSession(str(folder / f"{name}.onnx"))
        told[name] = session.get_modelmeta().custom_metadata_map
        assert [(one.name, one.type, one.shape) for one in session.get_inputs()] == [
            ("images", "tensor(uint8)", ["batch", 3, "height", "width"])
        ]
        assert told[name]["fingerprint"] == "f" * 8 and told[name]["starts_from"] == "none"
        assert json.loads(told[name]["mean"]) == [0.485, 0.456, 0.406]
        content = (folder / f"{name}.onnx").read_bytes()
        assert b".py" not in content and str(ROOT).encode() not in content
    assert json.loads(told["segmenter"]["classes"]) == ["background", *CLASSES]
    assert json.loads(told["classifier"]["classes"]) == [*CLASSES]
    assert told["classifier"]["stride"] == "16"
    assert not [*folder.glob(".*")]


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(VIT, id="vit"),
        pytest.param(CONVNEXT, id="convnext", marks=pytest.mark.slow),
        pytest.param(HYBRID, id="hybrid", marks=pytest.mark.slow),
        pytest.param(MOBILENET, id="mobilenet", marks=pytest.mark.slow),
        pytest.param(SWIN, id="swin", marks=pytest.mark.slow),
    ],
)
def test_other_classifiers(tmp_path: Path, settings: str) -> None:
    from cam_pipeline.export.onnx import export_onnx

    config = stored(tmp_path, settings, "classifier")
    [found] = export_onnx(config, tmp_path / "elsewhere")
    assert found.path == tmp_path / "elsewhere" / "classifier.onnx"
    for size in SIZES:
        got = answers(found.path, image(*size))
        for ours, theirs in zip(got.values(), expected_maps(config, image(*size)), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.slow
def test_deeplabv2(tmp_path: Path) -> None:
    from cam_pipeline.export.onnx import export_onnx

    config = stored(tmp_path, settings_of_both("deeplabv2"), "segmenter", "classifier")
    [found] = export_onnx(config, only=["segmenter"])
    assert found.difference is not None and found.difference < 1e-5


def test_what_is_not_trained_is_named(tmp_path: Path) -> None:
    from cam_pipeline.export.onnx import export_onnx

    config = stored(tmp_path, settings_of_both())
    for only, line in (([], "segmenter. Run: cam-pipeline train-seg"), (["classifier"], "classifier. Run: ")):
        with pytest.raises(StageNotReady, match=line):
            export_onnx(config, only=only)
    assert not (config.folder / "export").exists()


def test_missing_libraries_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cam_pipeline.export import onnx

    config = stored(tmp_path, settings_of_both(), "segmenter")
    real: Callable[[str], Any] = onnx.find_spec
    monkeypatch.setattr(onnx, "find_spec", lambda name: None if name == "onnxscript" else real(name))
    with pytest.raises(LibraryMissing, match=r"onnxscript, which .*; pip install 'cam-pipeline\[onnx\]'"):
        onnx.export_onnx(config)


def test_a_network_that_torch_cannot_export_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from cam_pipeline.export.onnx import export_onnx

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such operator\nand many more lines")

    monkeypatch.setattr(torch.onnx, "export", fails)
    config = stored(tmp_path, settings_of_both(), "segmenter")
    with pytest.raises(UserError, match=r"segmenter.encoder 'resnet10t' cannot .*: RuntimeError: no such operator$"):
        export_onnx(config)
    assert not (config.folder / "export").exists()


@pytest.mark.parametrize("number", [0, 1], ids=["label map", "class maps"])
def test_the_page_shows_what_works(
    exported: tuple[Config, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
) -> None:
    from PIL import Image

    config, folder = exported
    program = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "onnx.md").read_text(), flags=re.DOTALL)[number]
    assert len(program.strip().splitlines()) <= 12 and "cam_pipeline" not in program
    Image.fromarray(image(33, 47)).save(tmp_path / "photo.jpg")
    for file in folder.glob("*.onnx"):
        (tmp_path / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)
    exec(program, {})
    if number == 0:
        from cam_pipeline.api import stored_segmenter
        from cam_pipeline.data.images import read_image
        from cam_pipeline.prediction.predictor import Predictor

        labels = Predictor(stored_segmenter(config, CLASSES), config).labels(read_image(tmp_path / "photo.jpg"))[0]
        with Image.open("labels.png") as found:
            assert np.array_equal(np.asarray(found), labels.numpy())
        assert capsys.readouterr().out.startswith("It shows: ")
    else:
        assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == [*CLASSES]
        with Image.open(f"map {CLASSES[2]}.png") as found:
            assert found.size == (47, 33)


def test_command(exported: tuple[Config, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from cam_pipeline.cli import main
    from cam_pipeline.export import onnx

    config, folder = exported
    asked: list[Any] = []

    def export_onnx(config: Config, *more: Any) -> list[Any]:
        asked.append((config.folder, *more))
        return [onnx.Exported(folder / "segmenter.onnx", 1e-6), onnx.Exported(folder / "classifier.onnx", None)]

    monkeypatch.setattr(onnx, "export_onnx", export_onnx)
    file = str(config.folder.parent / "my.toml")
    ended = CliRunner().invoke(main, ["export", "-c", file, "--to", "onnx", "-o", "models", "--only", "segmenter"])
    assert ended.exit_code == 0, ended.output
    assert asked == [(config.folder, Path("models"), ["segmenter"])]
    first, second = ended.output.splitlines()
    assert first.endswith("MB, differs from torch's answer by at most 1.0e-06")
    assert second.endswith("MB, not compared with torch's answer, as onnxruntime is not installed")


def test_without_onnxruntime_and_for_maps_by_gradient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from cam_pipeline.export import onnx

    real: Callable[[str], Any] = onnx.find_spec
    monkeypatch.setattr(onnx, "find_spec", lambda name: None if name == "onnxruntime" else real(name))
    monkeypatch.setattr(onnx, "_model", lambda network, metadata: SimpleNamespace(SerializeToString=lambda: b"model"))
    config = stored(tmp_path, VIT + '[cam]\nsource = "class_token_gradient"\n', "classifier")
    with caplog.at_level("INFO", logger="cam_pipeline"):
        [found] = onnx.export_onnx(config)
    assert found.difference is None and found.path.read_bytes() == b"model"
    none, gradients = (record.getMessage() for record in caplog.records)
    assert none == f"{config.folder} holds no segmenter, so that is not exported"
    assert gradients.startswith("cam.source = 'class_token_gradient' needs gradients")


@pytest.mark.parametrize(
    ("difference", "line"),
    [
        (0.02, r"the file's answer differs from the network's by 0\.02$"),
        (float("nan"), "the file's answer differs from the network's by nan$"),
        (None, "onnxruntime cannot run the file: Invalid"),
    ],
)
def test_a_file_that_answers_otherwise_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, difference: float | None, line: str
) -> None:
    from cam_pipeline.export import onnx

    monkeypatch.setattr(onnx, "_model", lambda network, metadata: SimpleNamespace(SerializeToString=lambda: b"model"))
    if difference is not None:
        monkeypatch.setattr(onnx, "_difference", lambda *_: difference)
    config = stored(tmp_path, VIT, "classifier")
    with pytest.raises(UserError, match=r"^classifier.backbone 'vit_tiny_patch16_224' cannot be .*ONNX: " + line):
        onnx.export_onnx(config)
    assert not (config.folder / "export").exists()


def test_weights_are_named_with_their_licence() -> None:
    from cam_pipeline.export.onnx import _start

    facts = {"architecture": "resnet50", "tag": "a1_in1k", "license": "apache-2.0"}
    network = SimpleNamespace(pretrained_cfg=facts)
    assert _start(network, "pretrained") == "resnet50.a1_in1k (licence: apache-2.0)"
    assert _start(SimpleNamespace(pretrained_cfg={"architecture": "x"}), "pretrained") == "x (licence: not known)"
    assert _start(network, "none") == "none"
    assert _start(network, "/home/me/weights/own.safetensors") == "own.safetensors"
